//! A folder under construction that may survive an interruption.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::{
    CheckpointError,
    atomic::{check_free, create_folder, is_at, is_temporary, move_into_place, split, sync_tree},
};

/// A folder beside its destination, `.NAME.partial`, that becomes the destination when it is
/// [committed](Self::commit).
///
/// For work that takes hours: unlike [`write_dir_atomic`](crate::write_dir_atomic), which leaves nothing
/// behind, it can be kept and resumed. Dropped without a commit the folder is removed, unless
/// [`keep`](Self::keep) was called; a killed process leaves it. Only one process at a time may hold it: it locks a file
/// beside the folder, `.NAME.partial.lock`, which it removes at the end. Where files cannot be locked (some network
/// file systems), nothing is.
///
/// ```
/// use lowrank_checkpoint::{Checkpoint, Dtype, StagedDir, StreamOptions, StreamWriter, TensorPlan, write_atomic};
///
/// # let root = tempfile::tempdir()?;
/// # let output = root.path().join("model");
/// let mut staged = StagedDir::resume(&output, false)?;
/// staged.keep();
/// let plan = vec![TensorPlan::new("a", [2], Dtype::F32), TensorPlan::new("b", [1], Dtype::F32)];
/// let options = StreamOptions { keep_partial: true, ..StreamOptions::default() };
/// let mut writer = StreamWriter::resume(staged.path(), plan, options)?;
/// let missing: Vec<String> = writer.missing().map(str::to_owned).collect();
/// for name in missing {
///     let values = if name == "a" { vec![1.0, 2.0] } else { vec![3.0] };
///     writer.write_f32(&name, &values)?;
/// }
/// writer.finish()?;
/// write_atomic(staged.path().join("config.json"), "{}")?;
/// staged.commit()?;
/// assert_eq!(Checkpoint::open(&output)?.read_f32("b")?, [3.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct StagedDir {
    path: PathBuf,
    destination: PathBuf,
    replace: bool,
    keep: bool,
    /// Held for the lifetime of this value.
    _lock: FileLock,
}

impl StagedDir {
    /// Starts again, removing the remains of an earlier attempt. The destination must not exist or be an
    /// empty folder; with `replace` it may be any folder. Parents are created.
    ///
    /// # Errors
    /// [`DestinationExists`](CheckpointError::DestinationExists); [`InUse`](CheckpointError::InUse) if another process is at
    /// work on the same destination; [`Io`](CheckpointError::Io).
    pub fn create(destination: impl AsRef<Path>, replace: bool) -> Result<Self, CheckpointError> {
        let mut staged = Self::resume(destination, replace)?;
        // Until it is empty it is somebody's work, not to be removed because of an error here.
        staged.keep = true;
        clear(&staged.path).map_err(|e| CheckpointError::io(&staged.path, "clear", e))?;
        staged.keep = false;
        Ok(staged)
    }

    /// Resumes an earlier attempt, or starts a new one if there was no attempt.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn resume(destination: impl AsRef<Path>, replace: bool) -> Result<Self, CheckpointError> {
        let destination = destination.as_ref();
        let (parent, name) = split(destination)?;
        check_free(destination, replace)?;
        let beside = |ending: &str| {
            let mut path = std::ffi::OsString::from(".");
            path.push(name);
            path.push(ending);
            parent.join(path)
        };
        let path = beside(".partial");
        create_folder(&parent)?;
        let Some(lock) = FileLock::take(beside(".partial.lock"))? else {
            return Err(CheckpointError::InUse { path });
        };
        create_folder(&path)?;
        sweep(&path, true).map_err(|e| CheckpointError::io(&path, "clear", e))?;
        Ok(Self { path, destination: destination.to_owned(), replace, keep: false, _lock: lock })
    }

    /// The folder to write into.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on the folder is kept if this is dropped without a commit.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Syncs the folder and gives it its name.
    ///
    /// # Errors
    /// [`DestinationExists`](CheckpointError::DestinationExists) if the destination has been filled in the
    /// meantime; [`Io`](CheckpointError::Io). The folder is then kept or removed as on a drop.
    pub fn commit(mut self) -> Result<(), CheckpointError> {
        sync_tree(&self.path)?;
        check_free(&self.destination, self.replace)?;
        move_into_place(&self.path, &self.destination, self.replace)?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.keep {
            // No error can be reported from here; remains are hidden and removed by the next attempt.
            let _removed = fs::remove_dir_all(&self.path);
        }
    }
}

/// A file that exists while it is locked; a killed process leaves it unlocked.
#[derive(Debug)]
struct FileLock {
    path: PathBuf,
    _file: File,
}

impl FileLock {
    /// Nothing if another process holds it.
    fn take(path: PathBuf) -> Result<Option<Self>, CheckpointError> {
        loop {
            let file = File::create(&path).map_err(|e| CheckpointError::io(&path, "create", e))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                // Its holder has removed it since it was opened.
                Ok(()) if !is_at(&file, &path) => {}
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Some(Self { path, _file: file })),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Before it is released: another process's file must not be removed. If that fails, the next attempt reuses the file.
        let _removed = fs::remove_file(&self.path);
    }
}

/// Removes what a killed process was writing: it would become a part of the folder.
fn sweep(folder: &Path, below: bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        match (is_temporary(&entry.file_name()), is_folder) {
            (true, true) => fs::remove_dir_all(entry.path())?,
            (true, false) => fs::remove_file(entry.path())?,
            (false, true) if below => sweep(&entry.path(), true)?,
            (false, _) => {}
        }
    }
    Ok(())
}

/// Keeps other processes from writing into a folder that is filled file by file. The lock is on the folder itself and
/// ends with this value or the process, however it ends; no file is added. What a killed process was writing is removed.
///
/// ```
/// use lowrank_checkpoint::FolderLock;
///
/// let folder = tempfile::tempdir()?;
/// let lock = FolderLock::take(folder.path())?;
/// # #[cfg(unix)]
/// assert!(FolderLock::take(folder.path()).is_err());
/// drop(lock);
/// FolderLock::take(folder.path())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    folder: Option<File>,
}

impl FolderLock {
    /// Locks an existing folder. Where a folder cannot be locked (NFS, other systems than Unix), nothing is.
    ///
    /// # Errors
    /// [`InUse`](CheckpointError::InUse) if another process holds it.
    pub fn take(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref().to_owned();
        let Ok(folder) = File::open(&path) else { return Ok(Self { path, folder: None }) };
        match folder.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(CheckpointError::InUse { path }),
            Ok(()) => sweep(&path, false).map_err(|e| CheckpointError::io(&path, "clear", e))?,
            // Others may be writing.
            Err(TryLockError::Error(_)) => {}
        }
        Ok(Self { path, folder: Some(folder) })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder still has its name: if it was removed or replaced, further files would be lost, or appear in
    /// another one.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.folder.as_ref().is_none_or(|folder| is_at(folder, &self.path))
    }
}

fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
