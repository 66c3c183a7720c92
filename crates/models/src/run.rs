//! Context of a forward pass besides its tokens.

use burn::prelude::*;
use lowrank_adapters::{AdapterSet, PickedRows};
use lowrank_kernels::{Dropout, Kernels, dropout};
use lowrank_spec::{Mode, Stream};

/// Mode of a forward pass: the adapters over the model, and whether it trains.
#[derive(Debug)]
pub struct Run<'a, B: Backend> {
    /// Adapters over the model's sites.
    pub adapters: &'a AdapterSet<B>,
    /// Evaluation, or training with a seed for every random choice.
    pub mode: Mode,
    /// The rows of the step that a part of the model sees, if it does not see all of them.
    pub rows: Option<PickedRows<'a>>,
}

impl<B: Backend> Clone for Run<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Run<'_, B> {}

impl<'a, B: Backend> Run<'a, B> {
    /// A pass with these adapters in this mode.
    pub const fn new(adapters: &'a AdapterSet<B>, mode: Mode) -> Self {
        Self { adapters, mode, rows: None }
    }

    /// Evaluation: no dropout.
    pub const fn eval(adapters: &'a AdapterSet<B>) -> Self {
        Self::new(adapters, Mode::EVAL)
    }

    /// The same pass over some rows of a step.
    pub(crate) const fn on_rows(self, rows: PickedRows<'a>) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// The dropout at one place of the model, `None` in evaluation or at `p = 0`.
    pub(crate) fn dropout(&self, p: f64, stream: Stream) -> Option<Dropout> {
        self.mode.dropout(p, stream)
    }
}

impl<B: Kernels> Run<'_, B> {
    /// `x` after the dropout at one place of the model.
    pub(crate) fn drop(&self, x: Tensor<B, 2>, p: f64, stream: Stream) -> Tensor<B, 2> {
        match self.dropout(p, stream) {
            Some(drop) => dropout(x, drop),
            None => x,
        }
    }
}
