//! Masked language modelling: the masked tokens of a batch, and their targets.
//!
//! Devlin et al., «BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding», 2019:
//! of the tokens to predict, 80 % become the mask token, 10 % a random token, and 10 % are unchanged. They
//! are 25 % of all tokens instead of 15 %: a larger fraction trains faster (Wettig et al., «Should You Mask
//! 15 % in Masked Language Modeling?», 2023).

use crate::error::{DataError, Result};
use crate::pack::PackedBatch;
use crate::tokenize::TextTokenizer;
use lowrank_spec::rng::SplitMix64;

/// Fraction of the tokens to predict, in percent.
const PREDICTED: u64 = 25;
/// Fraction of the predicted tokens that become the mask token, in percent.
const MASKED: u64 = 80;
/// Fraction of the predicted tokens that become a random token, in percent.
const RANDOM: u64 = 10;

/// A batch with masked tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct MlmBatch {
    /// The batch as the model sees it.
    pub batch: PackedBatch,
    /// Positions to predict: ascending indices into the packed tokens, shape `[targets]`, at least one.
    pub places: Vec<usize>,
    /// The original tokens at these positions, shape `[targets]`.
    pub targets: Vec<u32>,
}

impl MlmBatch {
    /// Some sequences of the batch, in ascending order; `None` if no token of theirs is to be predicted.
    pub fn select(&self, sequences: &[usize]) -> Option<Self> {
        let offsets = self.batch.offsets();
        let batch = self.batch.select(sequences)?;
        let (mut places, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for &sequence in sequences {
            let tokens = offsets[sequence]..offsets[sequence + 1];
            for (&place, &target) in self.places.iter().zip(&self.targets) {
                if tokens.contains(&place) {
                    places.push(place - tokens.start + start);
                    targets.push(target);
                }
            }
            start += tokens.len();
        }
        (!places.is_empty()).then_some(Self { batch, places, targets })
    }
}

/// Masks tokens of batches, by seed and step.
///
/// ```
/// use lowrank_data::mlm::Masker;
/// use lowrank_data::pack::PackedBatch;
/// use lowrank_data::tokenize::Encoded;
///
/// // Ids 0 to 4 are special, 4 is the mask.
/// let masker = Masker::from_ids(4, &[0, 1, 2, 3, 4], 100)?;
/// let row = Encoded { ids: (0..60).collect(), type_ids: vec![0; 60] };
/// let mlm = masker.mask(PackedBatch::collate([(&row, None)])?, 17, 0)?;
/// for (&place, &target) in mlm.places.iter().zip(&mlm.targets) {
///     assert_eq!(row.ids[place], target);
///     assert!(target > 4);
/// }
/// # Ok::<(), lowrank_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Masker {
    mask: u32,
    is_reserved: Vec<bool>,
    /// The ids from which a random token is drawn.
    words: Vec<u32>,
}

impl Masker {
    /// Takes the mask and the special tokens from a tokenizer.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] if the tokenizer has no mask token or only special tokens.
    pub fn new(tokenizer: &TextTokenizer) -> Result<Self> {
        let mask = tokenizer.special_ids().mask.ok_or_else(|| DataError::OutOfRange {
            what: "mask token",
            got: "missing".to_owned(),
            expected: "masked language modelling needs a tokenizer with one, such as BERT's".to_owned(),
        })?;
        Self::from_ids(mask, &tokenizer.reserved_ids(), tokenizer.vocab_size())
    }

    /// Takes ids: the mask, the special tokens, which are neither masked nor drawn, and the size of the
    /// vocabulary.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] if every token of the vocabulary is reserved.
    pub fn from_ids(mask: u32, reserved: &[u32], vocab_size: usize) -> Result<Self> {
        let mut is_reserved = vec![false; vocab_size];
        for &id in reserved {
            if let Some(flag) = is_reserved.get_mut(id as usize) {
                *flag = true;
            }
        }
        let words: Vec<u32> = (0..vocab_size as u32).filter(|&id| !is_reserved[id as usize]).collect();
        if words.is_empty() {
            let expected = "it needs tokens that are not special".to_owned();
            return Err(DataError::OutOfRange { what: "vocabulary", got: vocab_size.to_string(), expected });
        }
        Ok(Self { mask, is_reserved, words })
    }

    /// Masks tokens; the same for equal batch, seed and step. At least one token is always masked.
    ///
    /// # Errors
    /// [`DataError::Batch`] if the batch has only special tokens.
    pub fn mask(&self, mut batch: PackedBatch, seed: u64, step: u64) -> Result<MlmBatch> {
        let mut rng = SplitMix64::keyed(seed, &[step]);
        let open: Vec<usize> =
            (0..batch.ids.len()).filter(|&place| !self.is_special(batch.ids[place])).collect();
        let mut places: Vec<usize> = open.iter().copied().filter(|_| rng.chance(PREDICTED, 100)).collect();
        if places.is_empty() {
            let place = open.get(rng.index(open.len())).copied();
            places.push(place.ok_or_else(|| {
                let message = "it has special tokens only, nothing to predict".to_owned();
                DataError::Batch { message }
            })?);
        }
        let targets: Vec<u32> = places.iter().map(|&place| batch.ids[place]).collect();
        for &place in &places {
            let draw = rng.below(100);
            if draw < MASKED {
                batch.ids[place] = self.mask;
            } else if draw < MASKED + RANDOM {
                batch.ids[place] = self.words[rng.index(self.words.len())];
            }
        }
        Ok(MlmBatch { batch, places, targets })
    }

    fn is_special(&self, id: u32) -> bool {
        self.is_reserved.get(id as usize).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenize::Encoded;

    const SPECIAL: [u32; 5] = [0, 1, 2, 3, 4];

    fn batch(ids: Vec<u32>) -> PackedBatch {
        let type_ids = vec![0; ids.len()];
        PackedBatch::collate([(&Encoded { ids, type_ids }, None)]).unwrap()
    }

    #[test]
    fn shares_are_as_documented() {
        let masker = Masker::from_ids(4, &SPECIAL, 1_000).unwrap();
        let ids: Vec<u32> = (0..40_000).map(|i| 5 + i % 995).collect();
        let mlm = masker.mask(batch(ids.clone()), 3, 1).unwrap();
        let count = |test: &dyn Fn(usize, u32) -> bool| {
            mlm.places.iter().zip(&mlm.targets).filter(|(p, t)| test(**p, **t)).count()
        };
        let masked = count(&|place, _| mlm.batch.ids[place] == 4);
        let kept = count(&|place, target| mlm.batch.ids[place] == target);
        let random = mlm.places.len() - masked - kept;
        // Six standard deviations each: √(40000·.25·.75) ≈ 87, √(40000·.2·.8) = 80, √(40000·.025·.975) ≈ 31.
        assert!(mlm.places.len().abs_diff(10_000) < 520, "{}", mlm.places.len());
        assert!(masked.abs_diff(8_000) < 480, "{masked}");
        assert!(kept.abs_diff(1_000) < 190 && random.abs_diff(1_000) < 190, "{kept} {random}");
        for (place, (&seen, &was)) in mlm.batch.ids.iter().zip(&ids).enumerate() {
            assert!(seen == was || mlm.places.binary_search(&place).is_ok());
        }
        assert_eq!(mlm, masker.mask(batch(ids.clone()), 3, 1).unwrap());
        assert_ne!(mlm.places, masker.mask(batch(ids), 3, 2).unwrap().places);
    }

    #[test]
    fn special_tokens_are_neither_hidden_nor_drawn() {
        let masker = Masker::from_ids(4, &SPECIAL, 8).unwrap();
        let ids: Vec<u32> = (0..4_000).map(|i| i % 8).collect();
        let mlm = masker.mask(batch(ids), 1, 0).unwrap();
        assert!(mlm.targets.iter().all(|&target| target > 4));
        let seen: Vec<u32> = mlm.places.iter().map(|&place| mlm.batch.ids[place]).collect();
        assert!(seen.iter().all(|&id| id >= 4));
    }

    #[test]
    fn one_token_is_always_to_be_predicted() {
        let masker = Masker::from_ids(4, &SPECIAL, 10).unwrap();
        for step in 0..50 {
            let mlm = masker.mask(batch(vec![2, 7, 3]), 0, step).unwrap();
            assert_eq!((mlm.places.as_slice(), mlm.targets.as_slice()), ([1].as_slice(), [7].as_slice()));
        }
        assert!(masker.mask(batch(vec![2, 3]), 0, 0).is_err());
        assert!(Masker::from_ids(4, &SPECIAL, 5).is_err());
    }
}
