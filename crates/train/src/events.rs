//! Steps and evaluations as scalars of a TensorBoard event file.

use lowrank_report::tfevents::{EventWriter, now};

use crate::error::Result;
use crate::objective::EvalOutput;
use crate::watch::{StepReport, Watch};

/// Writes `train/loss`, `train/learning_rate` and `train/epoch` of each step and `eval/<name>` of each evaluation.
///
/// If a file can no longer be written, a warning is logged and training continues.
pub struct EventWatch {
    writer: Option<EventWriter>,
}

impl EventWatch {
    /// Writes scalars to `writer`.
    pub fn new(writer: EventWriter) -> Self {
        Self { writer: Some(writer) }
    }

    fn write(&mut self, write: impl FnOnce(&mut EventWriter) -> lowrank_report::Result<()>) {
        if let Some(writer) = &mut self.writer
            && let Err(error) = write(writer)
        {
            tracing::warn!("the event file cannot be continued: {error}");
            self.writer = None;
        }
    }
}

impl Watch for EventWatch {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        let step = report.step as i64;
        for (name, value) in [("loss", report.loss), ("learning_rate", report.lr), ("epoch", report.epoch)] {
            self.write(|writer| writer.scalar(&format!("train/{name}"), step, value as f32, now()));
        }
        Ok(())
    }

    fn evaluation(&mut self, step: usize, _of: usize, result: &EvalOutput) -> Result<()> {
        for (name, value) in &result.values {
            self.write(|writer| writer.scalar(&format!("eval/{name}"), step as i64, *value as f32, now()));
        }
        self.write(EventWriter::flush);
        Ok(())
    }

    fn end(&mut self) {
        self.write(EventWriter::flush);
    }
}
