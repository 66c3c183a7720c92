//! Progress events of training and their receivers.

use crate::error::Result;
use crate::objective::EvalOutput;

/// A completed step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: usize,
    /// Steps of the whole run.
    pub of: usize,
    /// Loss of the step.
    pub loss: f64,
    /// Base learning rate of the step.
    pub lr: f64,
    /// Epochs of data seen.
    pub epoch: f64,
    /// Real tokens of the step.
    pub tokens: usize,
}

/// Receives every step and every evaluation, and may stop training. Steps arrive in order, those whose losses are read together
/// one after the other.
pub trait Watch {
    /// After the loss of a step has been read.
    ///
    /// # Errors
    /// Stops training.
    fn step(&mut self, _report: &StepReport) -> Result<()> {
        Ok(())
    }

    /// After the evaluation that follows step `step` of `of`.
    ///
    /// # Errors
    /// Stops training.
    fn evaluation(&mut self, _step: usize, _of: usize, _result: &EvalOutput) -> Result<()> {
        Ok(())
    }

    /// Whether to stop training after this evaluation.
    fn should_stop(&self) -> bool {
        false
    }

    /// At the end, successful or not.
    fn end(&mut self) {}
}

/// Ignores all events.
impl Watch for () {}

/// Forwards events to all of them.
impl Watch for Vec<Box<dyn Watch>> {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.iter_mut().try_for_each(|watch| watch.step(report))
    }

    fn evaluation(&mut self, step: usize, of: usize, result: &EvalOutput) -> Result<()> {
        self.iter_mut().try_for_each(|watch| watch.evaluation(step, of, result))
    }

    fn should_stop(&self) -> bool {
        self.iter().any(|watch| watch.should_stop())
    }

    fn end(&mut self) {
        self.iter_mut().for_each(|watch| watch.end());
    }
}
