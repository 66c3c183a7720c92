//! The loss of a whole language model.

use std::path::Path;

use burn::prelude::*;
use lowrank_adapters::AdapterSet;
use lowrank_kernels::Kernels;
use lowrank_models::batch::int_tensor;
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, LanguageModel, ModelFolder, ModelKind, Rows, Run, Seq2Seq};

use super::network::Tokens;
use crate::error::Result;

/// The mean negative log-likelihood per token of packed texts under the language model in a folder, of the targets under an
/// encoder-decoder; the first token of a decoder's text is not predicted.
///
/// # Errors
/// A folder without a language model, tokens that it does not accept.
pub fn mean_nll<B: Kernels>(folder: &Path, texts: &[Tokens], device: &B::Device) -> Result<f64> {
    let opened = ModelFolder::open(folder)?;
    let none = AdapterSet::empty();
    let run = Run::eval(&none);
    let (mut sum, mut n) = (0.0, 0);
    if opened.kind() == ModelKind::Seq2Seq {
        let model = Seq2Seq::<B>::load(folder, opened.seq2seq_config()?, WeightType::F32, device)?;
        for tokens in texts {
            let batch = tokens.pairs(&model, device)?;
            let hidden =
                model.hidden_states(&model.encode(&batch.source, run), &batch.target, Rows::All, run);
            let targets = int_tensor(tokens.targets.iter().map(|&id| id as i32).collect(), device);
            let weights = Tensor::ones([tokens.targets.len()], device);
            sum += model.nll_sum(hidden, targets, weights, run).into_scalar().elem::<f64>();
            n += tokens.targets.len();
        }
    } else {
        let model = Decoder::<B>::load(folder, opened.decoder_config()?, WeightType::F32, device)?;
        for tokens in texts {
            for nll in model.token_nll(tokens.view(), run, device)? {
                sum += nll.iter().sum::<f64>();
                n += nll.len();
            }
        }
    }
    Ok(if n > 0 { sum / n as f64 } else { 0.0 })
}
