//! The state of a grid's cells in its folder.
//!
//! ```text
//! <grid>/cells/<id>/          what `lowrank` left: run.json, adapter, head
//! <grid>/cells/<id>.json      what it printed; there once it has ended well
//! <grid>/cells/<id>.log       its progress and errors
//! <grid>/cells/<id>.seconds   how long it took; there where it has ended well
//! <grid>/cells/<id>.failed    why it failed
//! <grid>/cells/<id>.killed    what ended it from outside; its checkpoints are sound
//! <grid>/cells/<id>.lock      locked while it runs
//! <grid>/logs/                the tree of event files
//! <grid>/scores/<id>/run.json what a compressed model scores, as a record of a run
//! <grid>/scores.lock          locked while those are written and read
//! ```
//!
//! The lock is the operating system's, on the file's open description. A cell's process inherits it as its
//! standard input: the lock lasts as long as any of the two lives, and neither can leave a stale one behind.
//! A grid that was killed while its cells run on is therefore safe to start again.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{files::make_folder, plan::Cell};

/// A grid's folder.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    root: PathBuf,
}

impl Grid {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn create(&self) -> Result<()> {
        make_folder(&self.root.join("cells"))
    }

    /// The root of the tree of event files.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    pub(crate) fn folder(&self, cell: &Cell) -> PathBuf {
        self.root.join("cells").join(&cell.id)
    }

    /// A file beside a cell's folder.
    fn beside(&self, cell: &Cell, extension: &str) -> PathBuf {
        self.root.join("cells").join(format!("{}.{extension}", cell.id))
    }

    pub(crate) fn log(&self, cell: &Cell) -> PathBuf {
        self.beside(cell, "log")
    }

    pub(crate) fn printed(&self, cell: &Cell) -> PathBuf {
        self.beside(cell, "json")
    }

    fn failure_file(&self, cell: &Cell) -> PathBuf {
        self.beside(cell, "failed")
    }

    fn kill_file(&self, cell: &Cell) -> PathBuf {
        self.beside(cell, "killed")
    }

    /// Whether a cell has ended well: its record says so, or what it printed has been kept.
    pub(crate) fn is_done(&self, cell: &Cell) -> bool {
        if cell.is_finetuning() {
            self.record(cell).is_some_and(|record| record["train_info"]["status"] == "done")
        } else {
            self.printed(cell).is_file()
        }
    }

    /// The record of a cell's run.
    fn record(&self, cell: &Cell) -> Option<Value> {
        let text = fs::read(self.folder(cell).join("run.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn seconds_file(&self, cell: &Cell) -> PathBuf {
        self.beside(cell, "seconds")
    }

    /// The cost of a finished cell: seconds, and trained parameters if it trains.
    pub(crate) fn cost(&self, cell: &Cell) -> Option<(f64, Option<u64>)> {
        let record = self.record(cell).unwrap_or_default();
        let info = &record["train_info"];
        // A record also counts the parts before a kill.
        let seconds = match info["wall_s"].as_f64() {
            Some(seconds) => seconds,
            None => fs::read_to_string(self.seconds_file(cell)).ok()?.trim().parse().ok()?,
        };
        Some((seconds, info["trainable"].as_u64()))
    }

    /// Stores the duration of a finished cell.
    pub(crate) fn keep_seconds(&self, cell: &Cell, seconds: f64) -> Result<()> {
        let file = self.seconds_file(cell);
        fs::write(&file, format!("{seconds:.3}\n"))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Locks the folder of scores; waits while another process holds it.
    pub(crate) fn lock_scores(&self) -> Result<File> {
        let path = self.root.join("scores.lock");
        let open = || {
            let file = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(&path)?;
            file.lock().map(|()| file)
        };
        open().with_context(|| format!("cannot lock {}", path.display()))
    }

    /// Locks a cell, unless it is locked already.
    pub(crate) fn lock(&self, cell: &Cell) -> Result<Option<File>> {
        let path = self.beside(cell, "lock");
        let cannot = || format!("cannot lock {}", path.display());
        let file = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(&path);
        let file = file.with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
        }
    }

    /// Whether a killed cell has left checkpoints to resume from. One that failed starts again: it may have
    /// failed because of them.
    pub(crate) fn can_resume(&self, cell: &Cell) -> bool {
        let has_entries =
            |folder: PathBuf| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        cell.is_finetuning()
            && has_entries(self.folder(cell).join("checkpoints"))
            && !self.failure_file(cell).exists()
    }

    /// Removes the remains of an earlier attempt at a cell; only the holder of the lock may do so.
    pub(crate) fn clear(&self, cell: &Cell) -> Result<()> {
        let folder = self.folder(cell);
        absent_or(fs::remove_dir_all(&folder))
            .with_context(|| format!("cannot remove {}", folder.display()))?;
        let files =
            [self.printed(cell), self.seconds_file(cell), self.failure_file(cell), self.kill_file(cell)];
        files.iter().try_for_each(|file| remove(file))
    }

    /// Forgets what ended the attempt that the next one resumes; only the holder of the lock may do so.
    pub(crate) fn resume(&self, cell: &Cell) -> Result<()> {
        remove(&self.kill_file(cell))
    }

    /// Stores the reason for a cell's failure.
    pub(crate) fn fail(&self, cell: &Cell, reason: &str) -> Result<()> {
        let file = self.failure_file(cell);
        fs::write(&file, reason).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Stores what ended a cell from outside.
    pub(crate) fn kill(&self, cell: &Cell, reason: &str) -> Result<()> {
        let file = self.kill_file(cell);
        fs::write(&file, reason).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Time of a cell's last failure, be it its own or from outside.
    pub(crate) fn failed_at(&self, cell: &Cell) -> Option<SystemTime> {
        self.last_failure(cell).map(|(time, _)| time)
    }

    /// Reason for a cell's last failure.
    pub(crate) fn failure(&self, cell: &Cell) -> String {
        let file = self.last_failure(cell).map(|(_, file)| file);
        file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default()
    }

    fn last_failure(&self, cell: &Cell) -> Option<(SystemTime, PathBuf)> {
        let written = |file: PathBuf| {
            let time = fs::metadata(&file).and_then(|data| data.modified()).ok()?;
            Some((time, file))
        };
        [self.failure_file(cell), self.kill_file(cell)].into_iter().filter_map(written).max()
    }

    /// Reason for a cell's failure: the last error line of its log, or its last line.
    pub(crate) fn reason(&self, cell: &Cell) -> Option<String> {
        let text = tail(&self.log(cell)).ok()?;
        let error = text.lines().rev().find(|line| line.starts_with("error:"));
        error.map(str::to_owned).or_else(|| self.last_line(cell))
    }

    /// The last line of a cell's log.
    pub(crate) fn last_line(&self, cell: &Cell) -> Option<String> {
        let text = tail(&self.log(cell)).ok()?;
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }
}

fn remove(file: &Path) -> Result<()> {
    absent_or(fs::remove_file(file)).with_context(|| format!("cannot remove {}", file.display()))
}

fn absent_or(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The last few kilobytes of a file.
fn tail(path: &Path) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};

    const BYTES: u64 = 4096;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
