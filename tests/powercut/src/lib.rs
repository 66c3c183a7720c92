//! A file system that loses what was not synced, for tests of what a power cut leaves.
//!
//! It lives in memory and is mounted through FUSE. Beside its present state it holds the durable one: the bytes of a
//! file as of its last `fsync`, the names in a folder as of that folder's. That is what POSIX promises, and less than
//! what any journaling file system does: the `fsync` of a file does not make its name durable, and later changes may
//! reach the disk before earlier ones. [`Disk::cuts`] has what the machine finds after a cut, [`Disk::restore`] puts it
//! there.
//!
//! Needs Linux, `/dev/fuse` and the right to mount, and is empty without the feature `mount`.

#![cfg(feature = "mount")]

mod fuse;
mod state;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fuser::{BackgroundSession, Config, MountOption};
use tempfile::TempDir;

pub use state::{Cut, Loss, Tree};

use state::State;

/// A mounted disk, unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    /// Before the folder, which can be removed only when nothing is mounted there.
    _session: BackgroundSession,
    folder: TempDir,
}

impl Disk {
    /// Mounts an empty disk.
    ///
    /// # Errors
    /// Without `/dev/fuse` or the right to mount.
    pub fn mount() -> io::Result<Self> {
        let (state, folder) = (Arc::new(Mutex::new(State::default())), tempfile::tempdir()?);
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("powercut".to_owned())];
        let session = fuser::spawn_mount(fuse::Volatile::new(Arc::clone(&state)), folder.path(), &config)?;
        Ok(Self { state, _session: session, folder })
    }

    /// The mounted folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the present state durable and forgets the moments so far.
    pub fn settle(&self) {
        lock(&self.state).settle();
    }

    /// What power cuts leave, at every moment since the disk was [settled](Self::settle) or [restored](Self::restore)
    /// and now: before each change of names and each sync, for each [`Loss`], without repetitions.
    #[must_use]
    pub fn cuts(&self) -> Vec<Cut> {
        lock(&self.state).cuts()
    }

    /// What a power cut leaves now.
    #[must_use]
    pub fn cut(&self, loss: Loss) -> Cut {
        lock(&self.state).cut(loss)
    }

    /// Replaces everything by what a cut leaves, which is durable then. No file may be open.
    ///
    /// # Errors
    /// For a tree without the parent of one of its paths, which no cut of a disk leaves.
    pub fn restore(&self, cut: &Cut) -> io::Result<()> {
        lock(&self.state).restore(&cut.tree).map_err(|error| io::Error::from_raw_os_error(error.code()))
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
