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
    /// Whether an earlier process may have logged the next step and later ones.
    is_resumed: bool,
}

impl EventWatch {
    /// Writes scalars to `writer`.
    pub fn new(writer: EventWriter) -> Self {
        Self { writer: Some(writer), is_resumed: false }
    }

    /// Writes scalars of a resumed run to `writer`. A restart mark precedes the first step: it voids the values of this step and
    /// later ones in earlier files of the folder.
    pub fn resumed(writer: EventWriter) -> Self {
        Self { writer: Some(writer), is_resumed: true }
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
        if std::mem::take(&mut self.is_resumed) {
            self.write(|writer| writer.restart(step));
        }
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use lowrank_report::tfevents::{Logged, read_events};

    use super::*;

    /// Readers then leave out the earlier process's values of the steps that are repeated.
    #[test]
    fn a_resumed_run_voids_the_steps_that_it_repeats() {
        let dir = tempfile::tempdir().unwrap();
        let found = |resumed: bool, steps: [usize; 2]| {
            let writer = EventWriter::create(dir.path()).unwrap();
            let path = writer.path().to_path_buf();
            let mut watch = if resumed { EventWatch::resumed(writer) } else { EventWatch::new(writer) };
            for step in steps {
                let report = StepReport { step, of: 9, loss: 1.0, lr: 0.1, epoch: 0.5, tokens: 3 };
                watch.step(&report).unwrap();
            }
            let mut found = Vec::new();
            let note = |logged: Logged| {
                match logged {
                    Logged::Restart { step } => found.push(format!("restart {step}")),
                    Logged::Scalar(scalar) if scalar.tag == "train/loss" => {
                        found.push(scalar.step.to_string())
                    }
                    _ => {}
                }
                ControlFlow::Continue(())
            };
            read_events(&path, note).unwrap();
            found
        };
        assert_eq!(found(false, [3, 4]), ["3", "4"]);
        assert_eq!(found(true, [4, 5]), ["restart 4", "4", "5"]);
    }
}
