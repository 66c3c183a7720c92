//! burn-train's metrics into TensorBoard event files.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use lowrank_report::tfevents::{EventWriter, now};

/// Writes every numeric metric as a scalar, `train/<name>` and `eval/<name>`, at the optimizer step it belongs to,
/// and remembers the values for early stopping.
///
/// Events come in order but late, on another thread: the step is counted here, an event of training each.
pub(crate) struct EventLogger {
    writer: Option<EventWriter>,
    names: HashMap<MetricId, String>,
    values: HashMap<(String, usize, Split), Vec<NumericEntry>>,
    step: i64,
    rounds: Rounds,
}

/// The last evaluation round that the store has taken in.
///
/// burn-train hands metrics to its store on other threads; whoever asks the store about a round waits here first, so
/// that decisions do not depend on which thread was faster.
#[derive(Clone, Default)]
pub struct Rounds(Arc<(Mutex<usize>, Condvar)>);

impl Rounds {
    fn finish(&self, round: usize) {
        let (lock, signal) = &*self.0;
        *lock.lock().unwrap_or_else(PoisonError::into_inner) = round;
        signal.notify_all();
    }

    /// Blocks until round `round` is in the store.
    pub fn wait_for(&self, round: usize) {
        let (lock, signal) = &*self.0;
        let mut last = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while *last < round {
            last = signal.wait(last).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl EventLogger {
    /// A logger into `writer`, or into memory alone, of a training that has made `steps` steps.
    pub(crate) fn new(writer: Option<EventWriter>, steps: usize, rounds: Rounds) -> Self {
        Self { writer, names: HashMap::new(), values: HashMap::new(), step: steps as i64, rounds }
    }
}

impl MetricLogger for EventLogger {
    fn log(&mut self, update: MetricsUpdate, epoch: usize, split: &Split) {
        let prefix = if *split == Split::Train {
            self.step += 1;
            "train"
        } else {
            "eval"
        };
        let step = self.step;
        for numeric in update.entries_numeric {
            let Some(name) = self.names.get(&numeric.entry.metric_id) else { continue };
            let value = numeric.numeric_entry.current();
            if let Some(writer) = &mut self.writer
                && let Err(error) = writer.scalar(&format!("{prefix}/{name}"), step, value as f32, now())
            {
                tracing::warn!("the event file stops here: {error}");
                self.writer = None;
            }
            if *split != Split::Train {
                self.values
                    .entry((name.clone(), epoch, split.clone()))
                    .or_default()
                    .push(numeric.numeric_entry);
            }
        }
    }

    fn read_numeric(&mut self, name: &str, epoch: usize, split: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(self.values.get(&(name.to_string(), epoch, split.clone())).cloned().unwrap_or_default())
    }

    fn log_metric_definition(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }

    fn log_epoch_summary(&mut self, summary: EpochSummary) {
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.flush()
        {
            tracing::warn!("the event file stops here: {error}");
            self.writer = None;
        }
        if summary.split == Split::Valid {
            self.rounds.finish(summary.epoch_number);
        }
    }
}
