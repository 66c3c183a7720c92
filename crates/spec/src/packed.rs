//! The layout of packed sequences: a batch is the concatenation of its sequences, without padding.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Result, SpecError};

/// Position of each sequence in a packed batch. Offsets and totals are computed once; a clone shares them.
///
/// ```
/// use lowrank_spec::PackedTokens;
/// let packed = PackedTokens::from([3, 0, 2]);
/// assert_eq!((packed.n_sequences(), packed.n_tokens(), packed.longest()), (3, 5, 3));
/// assert_eq!(packed.rows(2), 3..5);
/// assert_eq!(packed.positions().collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedTokens {
    /// The first row of each sequence, and the number of rows at the end.
    offsets: Arc<[usize]>,
    longest: usize,
}

impl PackedTokens {
    /// Sequences of these lengths, with `n_tokens` tokens in total.
    ///
    /// # Errors
    /// [`SpecError::Packed`] if the lengths do not add up to that.
    pub fn of_tokens(lengths: &[usize], n_tokens: usize) -> Result<Self> {
        let packed: Self = lengths.iter().copied().collect();
        if packed.n_tokens() != n_tokens {
            let (sequences, sum) = (packed.n_sequences(), packed.n_tokens());
            return Err(SpecError::Packed { sequences, sum, tokens: n_tokens });
        }
        Ok(packed)
    }

    /// Number of sequences.
    pub fn n_sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Total number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    /// Length of the longest sequence; 0 without sequences.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The first row of each sequence, and [`n_tokens`](Self::n_tokens) at the end: `n_sequences + 1` numbers.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// The first row of each sequence.
    pub fn starts(&self) -> &[usize] {
        &self.offsets[..self.n_sequences()]
    }

    /// Length of each sequence.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> {
        self.offsets.windows(2).map(|ends| ends[1] - ends[0])
    }

    /// Length of one sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    #[track_caller]
    pub fn length(&self, sequence: usize) -> usize {
        self.rows(sequence).len()
    }

    /// The rows of one sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    #[track_caller]
    pub fn rows(&self, sequence: usize) -> Range<usize> {
        self.offsets[sequence]..self.offsets[sequence + 1]
    }

    /// The rows of each sequence.
    pub fn all_rows(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        self.offsets.windows(2).map(|ends| ends[0]..ends[1])
    }

    /// The last row of each nonempty sequence.
    pub fn last_rows(&self) -> impl Iterator<Item = usize> {
        self.all_rows().filter(|rows| !rows.is_empty()).map(|rows| rows.end - 1)
    }

    /// The position of each token in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.lengths().flat_map(|length| 0..length)
    }
}

impl FromIterator<usize> for PackedTokens {
    /// Sequences of these lengths. A sum beyond `usize`, which no real data can have, saturates.
    fn from_iter<I: IntoIterator<Item = usize>>(lengths: I) -> Self {
        let mut longest = 0;
        let mut offsets = vec![0_usize];
        let mut end = 0_usize;
        for length in lengths {
            longest = longest.max(length);
            end = end.saturating_add(length);
            offsets.push(end);
        }
        Self { offsets: offsets.into(), longest }
    }
}

impl From<&[usize]> for PackedTokens {
    fn from(lengths: &[usize]) -> Self {
        lengths.iter().copied().collect()
    }
}

impl From<Vec<usize>> for PackedTokens {
    fn from(lengths: Vec<usize>) -> Self {
        lengths.into_iter().collect()
    }
}

impl<const N: usize> From<[usize; N]> for PackedTokens {
    fn from(lengths: [usize; N]) -> Self {
        lengths.into_iter().collect()
    }
}

impl From<Arc<[usize]>> for PackedTokens {
    fn from(lengths: Arc<[usize]>) -> Self {
        lengths.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_one_another() {
        let packed = PackedTokens::from(vec![2, 0, 3, 1]);
        assert_eq!(packed.offsets(), [0, 2, 2, 5, 6]);
        assert_eq!(packed.starts(), [0, 2, 2, 5]);
        assert_eq!(packed.all_rows().collect::<Vec<_>>(), [0..2, 2..2, 2..5, 5..6]);
        assert_eq!(packed.lengths().collect::<Vec<_>>(), [2, 0, 3, 1]);
        assert_eq!(packed.last_rows().collect::<Vec<_>>(), [1, 4, 5]);
        assert_eq!(packed.positions().collect::<Vec<_>>(), [0, 1, 0, 1, 2, 0]);
        assert_eq!((packed.length(2), packed.rows(3), packed.longest()), (3, 5..6, 3));
    }

    #[test]
    fn a_batch_may_be_empty() {
        let packed = PackedTokens::from([]);
        assert_eq!((packed.n_sequences(), packed.n_tokens(), packed.longest()), (0, 0, 0));
        assert_eq!(packed.all_rows().len(), 0);
        assert_eq!(packed.last_rows().count(), 0);
    }

    #[test]
    fn lengths_that_do_not_add_up_are_an_error() {
        assert_eq!(PackedTokens::of_tokens(&[1, 2], 3).unwrap(), PackedTokens::from([1, 2]));
        let error = PackedTokens::of_tokens(&[1, 2], 4).unwrap_err().to_string();
        assert_eq!(error, "4 tokens for 2 sequences whose lengths add up to 3");
        assert!(PackedTokens::of_tokens(&[usize::MAX, 1], 0).is_err());
    }
}
