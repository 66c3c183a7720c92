//! Negative log-likelihood of tokens.

use burn::prelude::*;
use lowrank_kernels::{Head, Kernels, cross_entropy_sum, linear_cross_entropy};

use crate::batch::{Rows, Tokens};
use crate::decoder::head;
use crate::decoder::model::Decoder;
use crate::error::Result;
use crate::run::Run;
use crate::stack::Stack;

/// Number of logit rows processed at a time: a vocabulary of 128,000 takes 64 MB.
const ROWS: usize = 128;

/// `−ln p` of each token given those before it.
pub type TokenNll = Vec<f64>;

impl<B: Kernels> Decoder<B> {
    /// `−ln p` of each token of whole sequences except their first, sequence by sequence.
    ///
    /// Logits are computed a few rows at a time, so that `[tokens, vocab_size]` of a long text is never
    /// formed.
    ///
    /// # Errors
    /// [`ModelError::Input`](crate::ModelError::Input) for tokens that the model does not accept.
    pub fn token_nll(
        &self,
        tokens: Tokens<'_>,
        run: Run<'_, B>,
        device: &B::Device,
    ) -> Result<Vec<TokenNll>> {
        let Tokens { ids, lengths, .. } = tokens;
        let hidden = self.hidden_states(&self.batch(tokens, device)?, Rows::All, run);
        // Row i predicts token i + 1; the last row of a sequence predicts nothing.
        let [tokens, d_model] = hidden.dims();
        let mut all = Vec::with_capacity(tokens);
        for start in (0..tokens).step_by(ROWS) {
            let end = tokens.min(start + ROWS);
            let logits = self.logits(hidden.clone().slice([start..end, 0..d_model]), run).into_data();
            let values: Vec<f32> = logits.iter::<f32>().collect();
            let vocab = self.config().vocab_size;
            for (row, logits) in values.chunks_exact(vocab).enumerate() {
                all.push(ids.get(start + row + 1).map_or(0.0, |&next| nll(logits, next as usize)));
            }
        }
        let mut start = 0;
        Ok(lengths
            .iter()
            .map(|&n| {
                start += n;
                all[start - n..start - 1].to_vec()
            })
            .collect())
    }
}

impl<B: Kernels> Decoder<B> {
    /// `Σ wᵢ·(−ln pᵢ)` of the next tokens of hidden states. Logits exist only a few rows at a time, unless
    /// the head is factored, adapted or scaled.
    ///
    /// # Shapes
    /// - hidden: `[rows, d_model]`, as [`hidden_states`](Stack::hidden_states) returns them
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
        let config = self.config();
        if config.logit_scale != 1.0 {
            return None;
        }
        let soft_cap = config.logit_softcap.map(|cap| cap as f32);
        Some(Head { soft_cap, ..head::plain(self.head(), self.table(), run)? })
    }
}

/// `Σ wᵢ·(−ln pᵢ)` through a head of one matrix, or from the logits of any other.
///
/// # Shapes
/// - hidden: `[rows, d_model]`; targets, weights: `[rows]`; output: `[1]`
pub(crate) fn nll_of_head<B: Kernels>(
    head: Option<Head<B>>,
    hidden: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    weights: Tensor<B, 1>,
    logits: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 1> {
    match head {
        Some(head) => linear_cross_entropy(hidden, head, targets, Some(weights)),
        None => cross_entropy_sum(logits(hidden), targets, Some(weights)),
    }
}

/// `ln Σ exp(logits) − logits[target]`.
fn nll(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
    sum.ln() + f64::from(max) - f64::from(logits[target])
}
