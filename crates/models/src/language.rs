//! What models that generate texts have in common.

use burn::prelude::*;
use lowrank_adapters::AdapterSet;
use lowrank_kernels::Kernels;

use crate::adapt::Adaptable;
use crate::config::DecoderConfig;
use crate::decoder::{Decoder, Generated, GenerationOptions};
use crate::error::Result;
use crate::run::Run;
use crate::seq2seq::Seq2Seq;

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

    /// `Σ wᵢ·(−ln pᵢ)` of the next tokens of hidden states, as [`Decoder::nll_sum`] gives it.
    fn nll_sum(
        &self,
        hidden: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        weights: Tensor<B, 1>,
        run: Run<'_, B>,
    ) -> Tensor<B, 1>;

    /// The tokens that follow each prompt, as [`Decoder::generate`] gives them.
    ///
    /// # Errors
    /// As [`Decoder::generate`] and [`Seq2Seq::generate`].
    fn generate(
        &self,
        prompts: &[Vec<u32>],
        options: &GenerationOptions,
        adapters: &AdapterSet<B>,
        device: &B::Device,
        on_tokens: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<Vec<Generated>>;
}

macro_rules! language_model {
    ($model:ident, continues: $continues:literal, decoder: |$config:ident| $decoder:expr) => {
        impl<B: Kernels> LanguageModel<B> for $model<B> {
            const CONTINUES: bool = $continues;

            fn decoder(&self) -> &DecoderConfig {
                let $config = self.config();
                $decoder
            }

            fn logits(&self, hidden: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
                $model::logits(self, hidden, run)
            }

            fn nll_sum(
                &self,
                hidden: Tensor<B, 2>,
                targets: Tensor<B, 1, Int>,
                weights: Tensor<B, 1>,
                run: Run<'_, B>,
            ) -> Tensor<B, 1> {
                $model::nll_sum(self, hidden, targets, weights, run)
            }

            fn generate(
                &self,
                prompts: &[Vec<u32>],
                options: &GenerationOptions,
                adapters: &AdapterSet<B>,
                device: &B::Device,
                on_tokens: impl FnMut(usize, &[u32]) -> bool,
            ) -> Result<Vec<Generated>> {
                $model::generate(self, prompts, options, adapters, device, on_tokens)
            }
        }
    };
}

language_model!(Decoder, continues: true, decoder: |config| config);
language_model!(Seq2Seq, continues: false, decoder: |config| &config.decoder);
