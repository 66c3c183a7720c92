//! Packed tokens: a batch is the concatenation of its sequences, with their lengths beside it.

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_spec::PackedTokens;

use crate::cache::Writes;
use crate::config::PatchOptions;
use crate::encoder::BatchDistances;
use crate::error::{ModelError, Result};
use crate::rope::Angles;

/// Packed sequences on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tokens<'a> {
    /// Token ids of all sequences, one after the other.
    pub ids: &'a [u32],
    /// Token types, as many as ids, or none where all are 0. Models without token types ignore them.
    pub type_ids: &'a [u32],
    /// Length of each sequence; of a picture, its patches and the class token.
    pub lengths: &'a [usize],
    /// Values of all patches of all pictures, each in the order channel, row, column; for models of pictures, which take no
    /// ids.
    pub pixels: &'a [f32],
}

impl<'a> Tokens<'a> {
    /// Sequences whose tokens are all of type 0.
    pub const fn new(ids: &'a [u32], lengths: &'a [usize]) -> Self {
        Self { ids, type_ids: &[], lengths, pixels: &[] }
    }

    /// Pictures, of as many tokens each.
    pub const fn pictures(pixels: &'a [f32], lengths: &'a [usize]) -> Self {
        Self { ids: &[], type_ids: &[], lengths, pixels }
    }
}

/// Which rows of the last layer are wanted; it computes no other past its keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Every token.
    All,
    /// The first token of each sequence.
    First,
    /// The last token of each sequence.
    Last,
}

/// A batch on the device, without padding. [`Stack::batch`](crate::Stack::batch) checks and makes it; everything that
/// depends on the layout of the sequences is computed there, once for all layers.
#[derive(Clone, Debug)]
pub struct TokenBatch<B: Backend> {
    /// Token ids of all sequences; shape `[tokens]`.
    pub(crate) ids: Tensor<B, 1, Int>,
    /// Patches of all pictures; shape `[patches, channels · height · width]`.
    pub(crate) pixels: Option<Tensor<B, 2>>,
    /// Token types; shape `[tokens]`.
    pub(crate) type_ids: Option<Tensor<B, 1, Int>>,
    /// Rows of the table of positions; shape `[tokens]`.
    pub(crate) positions: Option<Tensor<B, 1, Int>>,
    /// Rotary angles of the tokens, for each kind of rotary position in the model.
    pub(crate) angles: Vec<Angles<B>>,
    /// The distances between tokens, in models with relative positions.
    pub(crate) distances: Option<BatchDistances<B>>,
    /// The rows of each sequence.
    pub(crate) packed: PackedTokens,
    /// The rows of each sequence where one of each is wanted.
    single: PackedTokens,
    /// The last row of each sequence that is not padding, where some sequence ends in padding.
    unpadded: Option<Vec<usize>>,
    /// Where the keys and values of this step go in a cache.
    pub(crate) writes: Option<Writes>,
}

/// What a model accepts, and what its batches hold.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Rows of the word embedding.
    pub(crate) vocab_size: usize,
    /// Longest sequence, where a table of positions bounds it.
    pub(crate) max_tokens: Option<usize>,
    /// Rows of the token-type embedding, where there is one.
    pub(crate) types: Option<usize>,
    /// Position of a sequence's first token in the table of positions, where there is one.
    pub(crate) first_position: Option<usize>,
}

impl Limits {
    /// Checks tokens that come after `past` others of their sequence.
    pub(crate) fn check(&self, tokens: Tokens<'_>, past: impl Iterator<Item = usize>) -> Result<()> {
        let Tokens { ids, type_ids, lengths, pixels } = tokens;
        if !pixels.is_empty() {
            return Err(ModelError::Input("the model reads texts; pictures were given".into()));
        }
        let total: usize = lengths.iter().sum();
        if ids.len() != total {
            return Err(ModelError::Input(format!("{} ids for sequences of {total} tokens", ids.len())));
        }
        if !type_ids.is_empty() && type_ids.len() != total {
            return Err(ModelError::Input(format!(
                "{} type ids for sequences of {total} tokens",
                type_ids.len()
            )));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(ModelError::Input(format!(
                "token id {id} is outside the vocabulary of {}; tokenizer and model do not belong together",
                self.vocab_size
            )));
        }
        if lengths.contains(&0) {
            return Err(ModelError::Input(
                "a sequence of no tokens; give a text, or a tokenizer that adds a first token".into(),
            ));
        }
        let longest = lengths.iter().zip(past).map(|(n, past)| n + past).max().unwrap_or(0);
        match self.max_tokens.filter(|&max| longest > max) {
            Some(max) => {
                Err(ModelError::Input(format!("a sequence of {longest} tokens; the model takes 1..={max}")))
            }
            None => Ok(()),
        }
    }
}

impl<B: Backend> TokenBatch<B> {
    /// Moves tokens to the device, after `past` earlier ones of each sequence.
    pub(crate) fn new(
        limits: &Limits,
        tokens: Tokens<'_>,
        past: impl Iterator<Item = usize> + Clone,
        device: &B::Device,
    ) -> Result<(Self, Vec<usize>)> {
        limits.check(tokens, past.clone())?;
        let Tokens { ids, type_ids, lengths, .. } = tokens;
        let positions: Vec<usize> = past.zip(lengths).flat_map(|(past, n)| past..past + n).collect();
        let table =
            |first: usize| int_tensor(positions.iter().map(|&p| (p + first) as i32).collect(), device);
        // A model with one type (RoBERTa) tells the texts of a pair apart by their separators alone.
        let types = |rows: usize| {
            let clamp = |&t: &u32| (t as usize).min(rows - 1) as i32;
            let all =
                if type_ids.is_empty() { vec![0; ids.len()] } else { type_ids.iter().map(clamp).collect() };
            int_tensor(all, device)
        };
        let batch = Self {
            type_ids: limits.types.map(types),
            positions: limits.first_position.map(table),
            ..Self::of_ids(int_tensor(ids.iter().map(|&id| id as i32).collect(), device), lengths)
        };
        Ok((batch, positions))
    }

    /// A batch of ids alone.
    fn of_ids(ids: Tensor<B, 1, Int>, lengths: &[usize]) -> Self {
        Self {
            ids,
            pixels: None,
            type_ids: None,
            positions: None,
            angles: Vec::new(),
            distances: None,
            packed: lengths.into(),
            single: std::iter::repeat_n(1, lengths.len()).collect(),
            unpadded: None,
            writes: None,
        }
    }

    /// Moves pictures to the device.
    pub(crate) fn of_pictures(
        options: &PatchOptions,
        tokens: Tokens<'_>,
        device: &B::Device,
    ) -> Result<Self> {
        let Tokens { ids, lengths, pixels, .. } = tokens;
        if !ids.is_empty() {
            return Err(ModelError::Input("the model reads pictures; a text was given".into()));
        }
        let (patches, width) = (options.n_patches(), options.width());
        if let Some(length) = lengths.iter().find(|&&length| length != patches + 1) {
            return Err(ModelError::Input(format!(
                "a picture of {length} tokens; the model takes {patches} patches and the class token"
            )));
        }
        let rows = lengths.len() * patches;
        if rows == 0 || pixels.len() != rows * width {
            return Err(ModelError::Input(format!(
                "{} values for {} pictures of {patches} patches of {width} values",
                pixels.len(),
                lengths.len()
            )));
        }
        Ok(Self {
            pixels: Some(Tensor::from_data(TensorData::new(pixels.to_vec(), [rows, width]), device)),
            ..Self::of_ids(Tensor::zeros([lengths.len() * (patches + 1)], device), lengths)
        })
    }

    /// The rows of each sequence.
    pub const fn packed(&self) -> &PackedTokens {
        &self.packed
    }

    /// The wanted rows of `x` `[tokens, width]`.
    pub fn select(&self, x: Tensor<B, 2>, rows: Rows) -> Tensor<B, 2> {
        let at = |rows: &mut dyn Iterator<Item = usize>| {
            int_tensor(rows.map(|row| row as i32).collect(), &x.device())
        };
        let indices = match rows {
            Rows::All => return x,
            _ if self.packed.n_tokens() == self.packed.n_sequences() => return x,
            Rows::First => at(&mut self.packed.starts().iter().copied()),
            Rows::Last => at(&mut self.packed.last_rows()),
        };
        x.select(0, indices)
    }

    /// Looks for the last token of each sequence that is not `padding`; its first token if all are padding.
    pub(crate) fn note_padding(&mut self, ids: &[u32], padding: Option<u32>) {
        let ends_in = |padding: u32| self.packed.last_rows().any(|row| ids[row] == padding);
        let Some(padding) = padding.filter(|&padding| ends_in(padding)) else { return };
        let last = self.packed.all_rows().map(|rows| {
            let start = rows.start;
            rows.rev().find(|&row| ids[row] != padding).unwrap_or(start)
        });
        self.unpadded = Some(last.collect());
    }

    /// Which rows of the last layer a head needs that reads the last token of each sequence that is not padding.
    pub(crate) fn last_rows(&self) -> Rows {
        if self.unpadded.is_some() { Rows::All } else { Rows::Last }
    }

    /// The last row of each sequence that is not padding, of `x` with [`last_rows`](Self::last_rows).
    pub(crate) fn select_last(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.unpadded {
            Some(rows) => {
                let rows = rows.iter().map(|&row| row as i32).collect();
                let device = x.device();
                x.select(0, int_tensor(rows, &device))
            }
            None => x,
        }
    }

    /// The queries of each sequence where these rows are wanted.
    pub(crate) fn queries(&self, rows: Rows) -> PackedTokens {
        if rows == Rows::All { self.packed.clone() } else { self.single.clone() }
    }
}

/// A vector of integers on the device.
pub fn int_tensor<B: Backend>(values: Vec<i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}
