//! Files and folders that are written completely or not at all: written beside their destination, synced,
//! renamed.

use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tempfile::{Builder, NamedTempFile};

use crate::CheckpointError;

/// Characters after the prefix of a temporary file.
const RANDOM: usize = 16;

/// Writes a file, replacing an existing one: readers see the old content or the new, never a part.
///
/// # Errors
/// [`Io`](CheckpointError::Io), [`Malformed`](CheckpointError::Malformed) for a path that exists and is not a regular
/// file; the destination is then unchanged.
pub fn write_atomic(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), CheckpointError> {
    write_together(&[(path, bytes)])
}

/// Writes files, the first of which gets its name when all others have theirs: none does before the last of them is complete.
///
/// # Errors
/// As [`write_atomic`]; if a file cannot be written, no destination is changed.
pub fn write_together(files: &[(impl AsRef<Path>, impl AsRef<[u8]>)]) -> Result<(), CheckpointError> {
    let mut complete = Vec::with_capacity(files.len());
    for (path, bytes) in files {
        let path = path.as_ref();
        let mut temporary = temporary_file(path)?;
        temporary.write_all(bytes.as_ref()).map_err(|e| CheckpointError::io(path, "write", e))?;
        sync(&temporary, path)?;
        complete.push((temporary, path));
    }
    complete.into_iter().rev().try_for_each(|(temporary, path)| name(temporary, path))
}

/// Lets `build` write a file, replacing an existing one when it succeeds.
///
/// # Errors
/// As [`write_atomic`], or the error of `build`; the destination is then unchanged.
pub fn replace_file_atomic<T, E: From<CheckpointError>>(
    path: impl AsRef<Path>,
    build: impl FnOnce(File) -> Result<T, E>,
) -> Result<T, E> {
    let path = path.as_ref();
    let temporary = temporary_file(path)?;
    let file = temporary.as_file().try_clone().map_err(|e| CheckpointError::io(path, "write", e))?;
    let value = build(file)?;
    persist(temporary, path)?;
    Ok(value)
}

/// Builds a folder under a temporary name beside `destination` and renames it when `build` succeeds. An existing
/// destination must be an empty folder. Parents are created.
///
/// The error type is the caller's own; closures that use `?` on several kinds of error name it in their last
/// expression, `Ok::<_, MyError>(…)`.
///
/// # Errors
/// [`DestinationExists`](CheckpointError::DestinationExists), [`Io`](CheckpointError::Io), or the error of
/// `build`; in each case nothing remains.
pub fn write_dir_atomic<T, E: From<CheckpointError>>(
    destination: impl AsRef<Path>,
    build: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    write_dir(destination.as_ref(), false, build)
}

/// Like [`write_dir_atomic`], but an existing folder is replaced, whatever its contents. The two change places, and the
/// old one is removed once that is durable. Where the file system cannot exchange names, the old one is moved aside
/// first; between the two renames no folder of the name exists.
///
/// # Errors
/// As [`write_dir_atomic`]; after an error the old folder is still in place.
pub fn replace_dir_atomic<T, E: From<CheckpointError>>(
    destination: impl AsRef<Path>,
    build: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    write_dir(destination.as_ref(), true, build)
}

fn write_dir<T, E: From<CheckpointError>>(
    destination: &Path,
    replace: bool,
    build: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let (parent, name) = split(destination)?;
    // Before the work, so that hours are not spent on a destination that is taken; and again at the rename.
    check_free(destination, replace)?;
    create_folder(&parent)?;
    let mut builder = Builder::new();
    let prefix = prefix(name);
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let temporary =
        builder.tempdir_in(&parent).map_err(|e| CheckpointError::io(&parent, "create a folder in", e))?;
    let value = build(temporary.path())?;
    sync_tree(temporary.path())?;
    check_free(destination, replace)?;
    move_into_place(temporary.path(), destination, replace)?;
    // It has been renamed; there is nothing left to remove.
    let _renamed: PathBuf = temporary.keep();
    Ok(value)
}

/// Refuses a destination that is not empty.
pub(crate) fn check_free(destination: &Path, replace: bool) -> Result<(), CheckpointError> {
    match fs::read_dir(destination) {
        Ok(mut entries) => match entries.next() {
            Some(_) if !replace => Err(CheckpointError::DestinationExists { path: destination.to_owned() }),
            _ => Ok(()),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(CheckpointError::io(destination, "use as a folder", e)),
    }
}

/// Renames a finished folder to its destination, durably; an existing folder is removed afterwards if it may be replaced.
/// Another process may have filled it since the last check.
pub(crate) fn move_into_place(from: &Path, destination: &Path, replace: bool) -> Result<(), CheckpointError> {
    let (parent, name) = split(destination)?;
    // Succeeds on an empty folder only, which is then removed on every system.
    if fs::remove_dir(destination).is_ok() || !destination.exists() {
        rename(from, destination)?;
        return sync_folder(&parent);
    }
    check_free(destination, replace)?;
    // Both have names in a folder that no later run takes for its own.
    let aside = Builder::new()
        .prefix(&prefix(name))
        .tempdir_in(&parent)
        .map_err(|e| CheckpointError::io(&parent, "create a folder in", e))?;
    let [new, old] = ["new", "old"].map(|name| aside.path().join(name));
    rename(from, &new)?;
    if let Err(error) = trade(&new, destination, &old) {
        // What cannot be put back stays there.
        if rename(&new, from).is_err() || old.exists() {
            let _kept: PathBuf = aside.keep();
        }
        return Err(error);
    }
    // The old one goes when its successor cannot be lost any more.
    sync_folder(aside.path())?;
    sync_folder(&parent)
}

/// Gives `new` the name of `destination`, and that one another.
fn trade(new: &Path, destination: &Path, old: &Path) -> Result<(), CheckpointError> {
    if exchange(new, destination) {
        return Ok(());
    }
    rename(destination, old)?;
    rename(new, destination).or_else(|error| {
        rename(old, destination)?;
        Err(error)
    })
}

/// Exchanges two names at once; whether that succeeded.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn exchange(one: &Path, other: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn exchange(_one: &Path, _other: &Path) -> bool {
    false
}

fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    fs::rename(from, to).map_err(|e| CheckpointError::io(from, format!("rename to {}", to.display()), e))
}

/// A hidden file beside `path`, removed when dropped. It is locked while it exists, so that files left by killed processes
/// are recognized and removed.
pub(crate) fn temporary_file(path: &Path) -> Result<NamedTempFile, CheckpointError> {
    let (parent, name) = split(path)?;
    check_regular(path)?;
    let prefix = prefix(name);
    // A failed sweep does not prevent the write.
    let _swept = sweep(&parent, &prefix);
    let mut builder = Builder::new();
    builder.prefix(&prefix).rand_bytes(RANDOM);
    // By default only the owner may read it, which the renamed file would inherit; the umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    loop {
        let temporary =
            builder.tempfile_in(&parent).map_err(|e| CheckpointError::io(&parent, "create a file in", e))?;
        match temporary.as_file().try_lock() {
            // Another process has taken it for a remnant before it was locked.
            Err(TryLockError::WouldBlock) => {}
            Ok(()) if !is_at(temporary.as_file(), temporary.path()) => {}
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(temporary),
        }
    }
}

/// Removes the temporary files of a prefix that no process has locked. Where files cannot be locked, none is removed; where
/// locks are local to a host, writers of one file on several hosts remove each other's, and the later rename reports it.
fn sweep(folder: &Path, prefix: &OsStr) -> io::Result<()> {
    let is_remnant = |name: &OsStr| {
        let random = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        random.is_some_and(|random| random.len() == RANDOM && random.iter().all(u8::is_ascii_alphanumeric))
    };
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !is_remnant(&entry.file_name()) || !entry.file_type()?.is_file() {
            continue;
        }
        // One that has gone, or belongs to somebody else, is passed over.
        if let Ok(file) = File::options().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            let _removed = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Whether an open file still has this name; what cannot be looked up counts as unchanged.
#[cfg(unix)]
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let place = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata().map(place), fs::metadata(path).map(place)) {
        (Ok(open), Ok(named)) => open == named,
        (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
        _ => true,
    }
}

#[cfg(not(unix))]
pub(crate) fn is_at(_file: &File, path: &Path) -> bool {
    !matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Refuses devices, pipes, sockets and folders, which a rename would replace or fail on.
fn check_regular(path: &Path) -> Result<(), CheckpointError> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(CheckpointError::malformed(path, "exists and is not a regular file; choose another output"))
        }
        // What cannot be examined cannot be written either, which the write reports.
        _ => Ok(()),
    }
}

/// Makes a complete file durable and gives it its name.
pub(crate) fn persist(temporary: NamedTempFile, path: &Path) -> Result<(), CheckpointError> {
    sync(&temporary, path)?;
    name(temporary, path)
}

fn sync(temporary: &NamedTempFile, path: &Path) -> Result<(), CheckpointError> {
    temporary.as_file().sync_all().map_err(|e| CheckpointError::io(path, "sync", e))
}

/// Gives a file that is durable its name.
fn name(temporary: NamedTempFile, path: &Path) -> Result<(), CheckpointError> {
    check_regular(path)?;
    temporary.persist(path).map_err(|e| CheckpointError::io(path, "rename the finished file to", e.error))?;
    let (parent, _) = split(path)?;
    sync_folder(&parent)
}

/// Creates a folder and its missing parents, durably.
///
/// # Errors
/// [`Io`](CheckpointError::Io).
pub fn create_folder(folder: &Path) -> Result<(), CheckpointError> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
    fs::create_dir_all(folder).map_err(|e| CheckpointError::io(folder, "create folder", e))?;
    for created in missing.into_iter().rev().filter(|path| path.file_name().is_some()) {
        sync_folder(&split(created)?.0)?;
    }
    Ok(())
}

/// Makes renames in a folder durable, on systems that can open folders.
///
/// # Errors
/// [`Io`](CheckpointError::Io).
pub fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| CheckpointError::io(folder, "sync", e))?;
    }
    Ok(())
}

/// Syncs every file and folder of a tree, so that it can be renamed to its final name.
///
/// # Errors
/// [`Io`](CheckpointError::Io).
pub fn sync_tree(folder: &Path) -> Result<(), CheckpointError> {
    let io = |e| CheckpointError::io(folder, "sync", e);
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let kind = entry.file_type().map_err(io)?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            let file = File::options().read(true).open(entry.path());
            file.and_then(|f| f.sync_all()).map_err(|e| CheckpointError::io(&entry.path(), "sync", e))?;
        }
    }
    sync_folder(folder)
}

/// The folder and the last name of a path.
pub(crate) fn split(path: &Path) -> Result<(PathBuf, &OsStr), CheckpointError> {
    let Some(name) = path.file_name() else {
        return Err(CheckpointError::malformed(
            path,
            "cannot be written to; give a path that ends in a name",
        ));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, name))
}

/// Whether a name is one that a process killed while it wrote a file or folder may have left.
#[must_use]
pub fn is_temporary(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with('.') && name.contains(".tmp-"))
}

/// `.NAME.tmp-`: hidden, and recognizable if a killed process has left one.
fn prefix(name: &OsStr) -> std::ffi::OsString {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".tmp-");
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_killed_writers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let kept = |file: NamedTempFile| file.keep().unwrap();
        let (killed, stale) = kept(temporary_file(&path).unwrap());
        drop(killed);
        let (running, busy) = kept(temporary_file(&path).unwrap());
        let (other, unrelated) = kept(temporary_file(&folder.path().join("model.gguf.tmp-x")).unwrap());
        drop(other);
        let named = folder.path().join(".model.gguf.tmp-mine.txt");
        fs::write(&named, "").unwrap();
        assert!(!stale.exists(), "removed by the second");
        write_atomic(&path, "new").unwrap();
        assert!(busy.exists() && unrelated.exists() && named.exists());
        drop(running);
        write_atomic(&path, "newer").unwrap();
        assert!(!busy.exists() && unrelated.exists() && named.exists());
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn concurrent_writers_keep_each_others_temporary_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || (0..100).for_each(|_| write_atomic(path, [writer; 9]).unwrap()));
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
