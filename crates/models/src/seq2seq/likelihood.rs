//! Negative log-likelihood of target tokens.

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{Head, Kernels};

use crate::decoder::head;
use crate::decoder::likelihood::nll_of_head;
use crate::run::Run;
use crate::seq2seq::Seq2Seq;

impl<B: Kernels> Seq2Seq<B> {
    /// `Σ wᵢ·(−ln pᵢ)` of the next tokens of hidden states. Logits exist only a few rows at a time, unless
    /// the head is factored or adapted.
    ///
    /// # Shapes
    /// - hidden: `[rows, d_model]`, as [`hidden_states`](Self::hidden_states) returns them
    /// - targets, weights: `[rows]`; a row of weight 0 is ignored
    /// - output: `[1]`
    pub fn nll_sum(
        &self,
        hidden: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        weights: Tensor<B, 1>,
        run: Run<'_, B>,
    ) -> Tensor<B, 1> {
        nll_of_head(self.plain_head(run), hidden, targets, weights, |hidden| self.logits(hidden, run))
    }

    /// The head, if it is one matrix without an adapter.
    fn plain_head(&self, run: Run<'_, B>) -> Option<Head<B>> {
        let bias = self.logits_bias.as_ref().map(Param::val).map(|bias| bias.squeeze_dim::<1>(0));
        Some(Head { bias, ..head::plain(self.head.as_ref(), &self.words().projection, run)? })
    }
}
