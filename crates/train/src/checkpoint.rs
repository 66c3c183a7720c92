//! Checkpoints of a training: trained tensors, optimizer state, the best weights so far and the position.
//!
//! A checkpoint is a folder `step-<n>`, written under another name and renamed, so that one that is there is whole.

use std::path::{Path, PathBuf};

use burn::record::{BinFileRecorder, FullPrecisionSettings};
use burn::tensor::backend::AutodiffBackend;
use burn::train::checkpoint::{Checkpointer, FileCheckpointer};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::optimizer::AdamWRecord;
use crate::tuner::TrainedRecord;

/// Where a training stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Optimizer steps made.
    pub step: usize,
    /// Step and value of the best evaluation.
    pub best: Option<(usize, f64)>,
}

/// The parts of a checkpoint.
pub struct Saved {
    /// Trained tensors.
    pub model: TrainedRecord,
    /// Optimizer state.
    pub optimizer: AdamWRecord,
    /// Trained tensors at the best evaluation.
    pub best: Option<TrainedRecord>,
}

/// A folder of checkpoints that belong to one configuration; the newest two are kept.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    config_hash: String,
}

#[derive(Serialize, Deserialize)]
struct State {
    config_hash: String,
    position: Position,
}

const KEPT: usize = 2;

impl CheckpointStore {
    /// Checkpoints below `folder` of the run that `config_hash` names.
    pub fn new(folder: impl Into<PathBuf>, config_hash: String) -> Self {
        Self { folder: folder.into(), config_hash }
    }

    fn error(&self, path: &Path, reason: impl ToString) -> TrainError {
        TrainError::Checkpoint { path: path.to_path_buf(), reason: reason.to_string() }
    }

    fn steps(&self) -> Vec<usize> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let mut steps: Vec<usize> = entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }

    fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// The position of the newest checkpoint, if there is one.
    ///
    /// # Errors
    /// A checkpoint of another configuration, or one that cannot be read.
    pub fn latest(&self) -> Result<Option<Position>> {
        let Some(&step) = self.steps().last() else { return Ok(None) };
        let path = self.path(step).join("state.json");
        let text = std::fs::read_to_string(&path).map_err(|e| self.error(&path, e))?;
        let state: State = serde_json::from_str(&text).map_err(|e| self.error(&path, e))?;
        if state.config_hash != self.config_hash {
            let reason = "belongs to a run with other settings; repeat them, or remove the folder";
            return Err(self.error(&path, reason));
        }
        Ok(Some(state.position))
    }

    /// Writes a checkpoint and removes all but the newest two.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save<B: AutodiffBackend>(
        &self,
        position: &Position,
        model: TrainedRecord,
        optimizer: AdamWRecord,
        best: Option<TrainedRecord>,
    ) -> Result<()> {
        let temporary = self.folder.join(format!(".step-{}.tmp", position.step));
        let failed = |e: &dyn ToString| self.error(&temporary, e.to_string());
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary).map_err(|e| failed(&e))?;
        }
        std::fs::create_dir_all(&temporary).map_err(|e| failed(&e))?;
        let step = position.step;
        let save = |name: &str, record: TrainedRecord| {
            Checkpointer::<TrainedRecord, B>::save(&files(&temporary, name), step, record)
                .map_err(|e| failed(&e))
        };
        save("model", model)?;
        if let Some(best) = best {
            save("best", best)?;
        }
        Checkpointer::<AdamWRecord, B>::save(&files(&temporary, "optim"), step, optimizer)
            .map_err(|e| failed(&e))?;
        let state = State { config_hash: self.config_hash.clone(), position: position.clone() };
        let json = serde_json::to_string_pretty(&state).map_err(|e| failed(&e))?;
        std::fs::write(temporary.join("state.json"), json).map_err(|e| failed(&e))?;
        let path = self.path(step);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(|e| failed(&e))?;
        }
        std::fs::rename(&temporary, &path).map_err(|e| failed(&e))?;
        let steps = self.steps();
        for &old in &steps[..steps.len().saturating_sub(KEPT)] {
            std::fs::remove_dir_all(self.path(old)).map_err(|e| failed(&e))?;
        }
        Ok(())
    }

    /// Reads the checkpoint at a position.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn load<B: AutodiffBackend>(&self, position: &Position) -> Result<Saved> {
        let path = self.path(position.step);
        let device = burn::tensor::Device::<B>::default();
        let step = position.step;
        let damaged =
            || self.error(&path, "is damaged; remove this folder to go on from the checkpoint before it");
        let load = |name: &str| {
            Checkpointer::<TrainedRecord, B>::restore(&files(&path, name), step, &device)
                .map_err(|_| damaged())
        };
        let optimizer = Checkpointer::<AdamWRecord, B>::restore(&files(&path, "optim"), step, &device)
            .map_err(|_| damaged())?;
        let best = position.best.is_some().then(|| load("best")).transpose()?;
        Ok(Saved { model: load("model")?, optimizer, best })
    }

    /// Removes all checkpoints: the run has ended.
    ///
    /// # Errors
    /// When the folder cannot be removed.
    pub fn clear(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(self.error(&self.folder, e)),
            _ => Ok(()),
        }
    }
}

fn files(folder: &Path, name: &str) -> FileCheckpointer<BinFileRecorder<FullPrecisionSettings>> {
    FileCheckpointer::new(BinFileRecorder::new(), folder, name)
}
