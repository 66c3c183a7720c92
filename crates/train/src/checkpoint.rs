//! Checkpoints of a training run: trained tensors, optimizer state, the best weights so far and the position.
//!
//! A checkpoint is a folder `step-<n>`, written under a temporary name, synced and renamed, so that it is
//! always complete.

use std::path::{Path, PathBuf};

use burn::record::{BinFileRecorder, FullPrecisionSettings};
use burn::tensor::backend::AutodiffBackend;
use burn::train::checkpoint::{Checkpointer, FileCheckpointer};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::optimizer::AdamWRecord;
use crate::record::TrainedRecord;

/// Position of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Completed optimizer steps.
    pub step: usize,
    /// Step and value of the best evaluation.
    pub best: Option<(usize, f64)>,
    /// Evaluations since the best one, for early stopping.
    #[serde(default)]
    pub stale: usize,
}

/// Starting point of a training run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// From its first step.
    #[default]
    Fresh,
    /// From its newest checkpoint, if it has one.
    Resume,
    /// From its newest checkpoint, with more steps than were planned before.
    Extend,
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

/// A folder of checkpoints that belong to one configuration; only the newest two are retained.
///
/// After the end of training, its last state is stored beside them, to be extended.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    /// The last state of a finished training run.
    ended: PathBuf,
    config_hash: String,
}

#[derive(Serialize, Deserialize)]
struct State {
    config_hash: String,
    /// Steps of the whole training run.
    #[serde(default)]
    planned: usize,
    position: Position,
}

const KEPT: usize = 2;

impl CheckpointStore {
    /// Checkpoints below `run`, the folder of the run whose settings and data `config_hash` identifies.
    pub fn new(run: &Path, config_hash: String) -> Self {
        Self { folder: run.join("checkpoints"), ended: run.join("state"), config_hash }
    }

    /// Whether the folder of a run contains checkpoints, of whatever settings.
    #[must_use]
    pub fn any(run: &Path) -> bool {
        Self::new(run, String::new()).newest().is_some()
    }

    fn error(&self, path: &Path, reason: impl ToString) -> TrainError {
        TrainError::Checkpoint { path: path.to_path_buf(), reason: reason.to_string() }
    }

    fn steps(&self) -> Vec<usize> {
        steps_in(&self.folder)
    }

    fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// The newest checkpoint: its step and folder. The state at the end of a run counts, too: a run that is being extended may
    /// not have a later one yet.
    fn newest(&self) -> Option<(usize, PathBuf)> {
        let ended = steps_in(&self.ended).last().copied();
        match (self.steps().last().copied(), ended) {
            (None, None) => None,
            (step, Some(end)) if step.is_none_or(|step| step < end) => {
                Some((end, self.ended.join(format!("step-{end}"))))
            }
            (step, _) => step.map(|step| (step, self.path(step))),
        }
    }

    /// The position at which a training of `planned` steps starts; `None` for its first step.
    ///
    /// # Errors
    /// A checkpoint of another configuration, or one that cannot be read; nothing to extend.
    pub fn position(&self, start: Start, planned: usize) -> Result<Option<Position>> {
        if start == Start::Fresh {
            return Ok(None);
        }
        let Some((_, path)) = self.newest() else {
            if start == Start::Extend {
                let reason =
                    "contains no training state to extend; full fine-tuning saves it with --save-every";
                return Err(self.error(&self.ended, reason));
            }
            return Ok(None);
        };
        let is_ended = path.starts_with(&self.ended);
        let path = path.join("state.json");
        let text = lowrank_spec::read_file(&path).map_err(|e| self.error(&path, e))?;
        let state: State = serde_json::from_slice(&text).map_err(|e| self.error(&path, e))?;
        if state.config_hash != self.config_hash {
            let reason =
                "belongs to a run with other settings or data; use the same ones, or give a new folder";
            return Err(self.error(&path, reason));
        }
        let position = state.position;
        let problem = match start {
            // One that was cut off before its result was saved has all its steps already.
            Start::Extend if planned < position.step || planned == position.step && is_ended => {
                format!("is at step {}; give a larger --max-steps or --epochs", position.step)
            }
            Start::Resume if planned != state.planned => format!(
                "belongs to a run of {} steps, not {planned}; --extend trains past the planned steps",
                state.planned
            ),
            _ => return Ok(Some(position)),
        };
        Err(self.error(&path, problem))
    }

    /// Writes a checkpoint of a training run of `planned` steps, and removes all but the newest two.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save<B: AutodiffBackend>(
        &self,
        position: &Position,
        planned: usize,
        model: TrainedRecord,
        optimizer: AdamWRecord,
        best: Option<TrainedRecord>,
    ) -> Result<()> {
        let temporary = self.folder.join(format!(".step-{}.tmp", position.step));
        let failed = |e: &dyn ToString| self.error(&temporary, e.to_string());
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary).map_err(|e| failed(&e))?;
        }
        lowrank_checkpoint::create_folder(&temporary).map_err(|e| failed(&e))?;
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
        let state = State { config_hash: self.config_hash.clone(), planned, position: position.clone() };
        let json = serde_json::to_string_pretty(&state).map_err(|e| failed(&e))?;
        std::fs::write(temporary.join("state.json"), json).map_err(|e| failed(&e))?;
        let path = self.path(step);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(|e| failed(&e))?;
        }
        lowrank_checkpoint::sync_tree(&temporary).map_err(|e| failed(&e))?;
        std::fs::rename(&temporary, &path).map_err(|e| failed(&e))?;
        lowrank_checkpoint::sync_folder(&self.folder).map_err(|e| failed(&e))?;
        let steps = self.steps();
        for &old in &steps[..steps.len().saturating_sub(KEPT)] {
            std::fs::remove_dir_all(self.path(old)).map_err(|e| failed(&e))?;
        }
        Ok(())
    }

    /// Reads the checkpoint at a position.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn load<B: AutodiffBackend>(&self, position: &Position) -> Result<Saved> {
        let (_, path) = self.newest().unwrap_or_else(|| (position.step, self.path(position.step)));
        let device = burn::tensor::Device::<B>::default();
        let step = position.step;
        let damaged =
            || self.error(&path, "is damaged; remove this folder to resume from the previous checkpoint");
        let load = |name: &str| {
            Checkpointer::<TrainedRecord, B>::restore(&files(&path, name), step, &device)
                .map_err(|_| damaged())
        };
        let optimizer = Checkpointer::<AdamWRecord, B>::restore(&files(&path, "optim"), step, &device)
            .map_err(|_| damaged())?;
        let best = position.best.is_some().then(|| load("best")).transpose()?;
        Ok(Saved { model: load("model")?, optimizer, best })
    }

    /// Ends the run: its newest checkpoint is retained as the state to extend it from if `keep`; all others
    /// are removed.
    ///
    /// # Errors
    /// If the folders cannot be changed.
    pub fn end(&self, keep: bool) -> Result<()> {
        let remove = |folder: &Path| match std::fs::remove_dir_all(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(self.error(folder, e)),
            _ => Ok(()),
        };
        let newest = self.steps().last().map(|&step| (step, self.path(step)));
        if let Some((step, path)) = newest.filter(|_| keep) {
            remove(&self.ended)?;
            lowrank_checkpoint::create_folder(&self.ended).map_err(|e| self.error(&self.ended, e))?;
            let to = self.ended.join(format!("step-{step}"));
            std::fs::rename(&path, &to).map_err(|e| self.error(&to, e))?;
            lowrank_checkpoint::sync_folder(&self.ended).map_err(|e| self.error(&self.ended, e))?;
        } else if !keep {
            remove(&self.ended)?;
        }
        remove(&self.folder)
    }
}

/// Steps of the checkpoints in a folder, ascending.
fn steps_in(folder: &Path) -> Vec<usize> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let step = |e: std::io::Result<std::fs::DirEntry>| {
        e.ok()?.file_name().to_str()?.strip_prefix("step-")?.parse().ok()
    };
    let mut steps: Vec<usize> = entries.filter_map(step).collect();
    steps.sort_unstable();
    steps
}

fn files(folder: &Path, name: &str) -> FileCheckpointer<BinFileRecorder<FullPrecisionSettings>> {
    FileCheckpointer::new(BinFileRecorder::new(), folder, name)
}
