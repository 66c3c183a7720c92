//! What a training tells those who watch it.

use crate::error::Result;
use crate::objective::EvalOutput;

/// A step that has been made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: usize,
    /// Steps of the whole training.
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

/// Is told of every step and every evaluation, and may end a training.
pub trait Watch {
    /// After a step.
    ///
    /// # Errors
    /// Ends the training.
    fn step(&mut self, _report: &StepReport) -> Result<()> {
        Ok(())
    }

    /// After the evaluation that follows step `step` of `of`.
    ///
    /// # Errors
    /// Ends the training.
    fn evaluation(&mut self, _step: usize, _of: usize, _result: &EvalOutput) -> Result<()> {
        Ok(())
    }

    /// Whether to end the training after this evaluation.
    fn should_stop(&self) -> bool {
        false
    }

    /// At the end, successful or not.
    fn end(&mut self) {}
}

/// Watches nothing.
impl Watch for () {}

/// Tells all of them.
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
