//! The interface that models which predict next tokens share.

use burn::prelude::*;
use lowrank_adapters::AdapterSet;
use lowrank_kernels::{Head, Kernels, cross_entropy_sum, linear_cross_entropy};

use crate::adapt::Adaptable;
use crate::config::DecoderConfig;
use crate::decoder::{Generated, GenerationOptions};
use crate::error::Result;
use crate::run::Run;

/// A model that predicts next tokens: a decoder, alone or after an encoder.
pub trait LanguageModel<B: Kernels>: Adaptable<B> {
    /// Whether it continues its prompt (a decoder) or generates a separate text (an encoder-decoder).
    const CONTINUES: bool;

    /// The config of the decoder.
    fn decoder(&self) -> &DecoderConfig;

    /// Logits of the next tokens from hidden states.
    ///
    /// # Shapes
    /// - hidden: `[rows, d_model]`
    /// - output: `[rows, vocab_size]`
    fn logits(&self, hidden: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2>;

    /// The head, if it is one matrix that is neither adapted nor scaled.
    fn plain_head(&self, run: Run<'_, B>) -> Option<Head<B>>;

    /// `Σ wᵢ·(−ln pᵢ)` of the next tokens of hidden states. With a [plain head](Self::plain_head), logits exist only a few
    /// rows at a time.
    ///
    /// # Shapes
    /// - hidden: `[rows, d_model]`
    /// - targets, weights: `[rows]`; a row of weight 0 is ignored
    /// - output: `[1]`
    fn nll_sum(
        &self,
        hidden: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        weights: Tensor<B, 1>,
        run: Run<'_, B>,
    ) -> Tensor<B, 1> {
        match self.plain_head(run) {
            Some(head) => linear_cross_entropy(hidden, head, targets, Some(weights)),
            None => cross_entropy_sum(self.logits(hidden, run), targets, Some(weights)),
        }
    }

    /// Generates a text for each prompt, all at once; the result for one prompt does not depend on the others. A routed set
    /// of adapters assigns one to each prompt.
    ///
    /// The prompts (the sources, of an encoder-decoder) are processed in one pass. The decoder of an encoder-decoder begins
    /// with the config's `start`, which counts in `max_length` and `min_length` and is not in the result. `on_tokens` is
    /// called for each new token with the number of its prompt and all its new tokens so far, and ends that text by
    /// returning `false`. With beams it is called for every candidate.
    ///
    /// # Errors
    /// [`ModelError::Input`](crate::ModelError::Input) for options out of range, prompts that the model does not accept, an
    /// encoder-decoder without a start token, logits that are not finite.
    fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerationOptions,
        adapters: &AdapterSet<B>,
        device: &B::Device,
        on_tokens: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<Vec<Generated>>;
}
