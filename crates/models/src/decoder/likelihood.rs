//! Negative log-likelihood of tokens.

use lowrank_kernels::Kernels;

use crate::batch::{Rows, Tokens};
use crate::decoder::model::Decoder;
use crate::error::Result;
use crate::language::LanguageModel;
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

/// `ln Σ exp(logits) − logits[target]`.
fn nll(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
    sum.ln() + f64::from(max) - f64::from(logits[target])
}
