//! Packed tokens: a batch is the concatenation of its sequences, with their lengths beside it.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::config::EncoderConfig;
use crate::error::{ModelError, Result};

/// A batch on the device, without padding.
#[derive(Clone, Debug)]
pub struct TokenBatch<B: Backend> {
    /// Token ids of all sequences, one after the other; shape `[tokens]`.
    pub ids: Tensor<B, 1, Int>,
    /// Token types; shape `[tokens]`.
    pub type_ids: Tensor<B, 1, Int>,
    /// Rows of the position embedding; shape `[tokens]`.
    pub positions: Tensor<B, 1, Int>,
    /// Where each sequence begins; shape `[sequences]`.
    pub starts: Tensor<B, 1, Int>,
    /// Length of each sequence.
    pub lengths: Arc<[usize]>,
}

impl<B: Backend> TokenBatch<B> {
    /// Moves a packed batch to the device.
    ///
    /// `ids` and `type_ids` hold `lengths.iter().sum()` tokens.
    ///
    /// # Errors
    /// [`ModelError::Input`] for an id outside the vocabulary, a sequence that is empty or longer than the
    /// model takes, or lengths that do not add up.
    pub fn new(
        config: &EncoderConfig,
        ids: &[u32],
        type_ids: &[u32],
        lengths: &[usize],
        device: &B::Device,
    ) -> Result<Self> {
        let tokens: usize = lengths.iter().sum();
        if ids.len() != tokens || type_ids.len() != tokens {
            return Err(ModelError::Input(format!(
                "{} ids and {} type ids for sequences of {tokens} tokens",
                ids.len(),
                type_ids.len()
            )));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(ModelError::Input(format!(
                "token id {id} is outside the vocabulary of {}; tokenizer and model do not belong together",
                config.vocab_size
            )));
        }
        let max = config.max_tokens();
        if let Some(n) = lengths.iter().find(|&&n| n == 0 || n > max) {
            return Err(ModelError::Input(format!("a sequence of {n} tokens; the model takes 1..={max}")));
        }
        let offset = config.position_offset;
        let positions = lengths.iter().flat_map(|&n| (offset..offset + n).map(|p| p as i32)).collect();
        let starts =
            lengths.iter().scan(0, |sum, &n| Some(std::mem::replace(sum, *sum + n as i32))).collect();
        // A model without a second type (RoBERTa) takes pairs by their separators alone.
        let types = type_ids.iter().map(|&t| (t as usize).min(config.type_vocab_size - 1) as i32).collect();
        Ok(Self {
            ids: int_tensor(ids.iter().map(|&id| id as i32).collect(), device),
            type_ids: int_tensor(types, device),
            positions: int_tensor(positions, device),
            starts: int_tensor(starts, device),
            lengths: lengths.into(),
        })
    }

    /// Number of sequences.
    pub fn n_sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// A vector of integers on the device.
pub fn int_tensor<B: Backend>(values: Vec<i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}
