//! The loss of a whole language model.

use std::path::Path;

use lowrank_adapters::AdapterSet;
use lowrank_kernels::Kernels;
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, ModelFolder, Run};

use super::network::Tokens;
use crate::error::Result;

/// The mean negative log-likelihood per token of packed texts under the language model in a folder; the first
/// token of each text is not predicted.
///
/// # Errors
/// A folder without a language model, tokens that it does not accept.
pub fn mean_nll<B: Kernels>(folder: &Path, texts: &[Tokens], device: &B::Device) -> Result<f64> {
    let config = ModelFolder::open(folder)?.decoder_config()?;
    let model = Decoder::<B>::load(folder, config, WeightType::F32, device)?;
    let none = AdapterSet::empty();
    let (mut sum, mut n) = (0.0, 0);
    for tokens in texts {
        for nll in model.token_nll(tokens.view(), Run::eval(&none), device)? {
            sum += nll.iter().sum::<f64>();
            n += nll.len();
        }
    }
    Ok(if n > 0 { sum / n as f64 } else { 0.0 })
}
