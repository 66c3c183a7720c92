//! The journal of a stream: the tensors in the partial files, so that an interrupted job can resume.
//!
//! Lines of JSON: first `{"plan": FINGERPRINT}`, then `{"tensor": NAME, "hash": XXH3}` after each tensor. The
//! hash makes a line trustworthy after a crash of the machine, when the journal may have reached the disk and
//! the tensor not. A truncated last line is ignored.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::CheckpointError;

/// An open journal, locked against other processes for its lifetime.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
}

#[derive(Deserialize, Serialize)]
struct Start {
    plan: String,
}

#[derive(Deserialize, Serialize)]
struct Line {
    tensor: String,
    hash: String,
}

impl Journal {
    /// Starts a new journal, discarding an older one.
    pub(crate) fn create(path: PathBuf, fingerprint: &str) -> Result<Self, CheckpointError> {
        let mut journal = Self::open(path)?;
        journal.restart(fingerprint)?;
        Ok(journal)
    }

    /// Continues a journal, with the hashes of the tensors it has; starts a new one if the file does not exist.
    ///
    /// # Errors
    /// [`CannotResume`](CheckpointError::CannotResume) if it belongs to a different plan,
    /// [`InUse`](CheckpointError::InUse) if to a running process.
    pub(crate) fn resume(
        path: PathBuf,
        fingerprint: &str,
    ) -> Result<(Self, HashMap<String, String>), CheckpointError> {
        let mut journal = Self::open(path)?;
        let mut text = Vec::new();
        journal.file.read_to_end(&mut text).map_err(|e| CheckpointError::io(&journal.path, "read", e))?;
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].split(|&b| b == b'\n');
        let Some(Ok(start)) =
            lines.next().filter(|line| !line.is_empty()).map(serde_json::from_slice::<Start>)
        else {
            journal.restart(fingerprint)?;
            return Ok((journal, HashMap::new()));
        };
        if start.plan != fingerprint {
            return Err(CheckpointError::CannotResume {
                path: journal.path,
                reason: "the partial output was made from other input or with other settings; \
                         use the same ones, or start again without resuming"
                    .to_owned(),
            });
        }
        let done = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        let done = done.map(|line| (line.tensor, line.hash)).collect();
        let end = SeekFrom::Start(whole as u64);
        journal
            .file
            .set_len(whole as u64)
            .and_then(|()| journal.file.seek(end))
            .map_err(|e| journal.fault(e))?;
        Ok((journal, done))
    }

    fn open(path: PathBuf) -> Result<Self, CheckpointError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|e| CheckpointError::io(&path, "open", e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path }),
            Err(TryLockError::WouldBlock) => Err(CheckpointError::InUse { path }),
            Err(TryLockError::Error(e)) => Err(CheckpointError::io(&path, "lock", e)),
        }
    }

    fn restart(&mut self, fingerprint: &str) -> Result<(), CheckpointError> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(|e| self.fault(e))?;
        self.line(&Start { plan: fingerprint.to_owned() })
    }

    /// Records that a tensor is written.
    pub(crate) fn note(&mut self, tensor: &str, hash: String) -> Result<(), CheckpointError> {
        self.line(&Line { tensor: tensor.to_owned(), hash })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), CheckpointError> {
        let mut text = serde_json::to_vec(line).map_err(|e| self.fault(e.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(|e| self.fault(e))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn fault(&self, source: std::io::Error) -> CheckpointError {
        CheckpointError::io(&self.path, "write", source)
    }
}
