//! Batches for evaluation, bucketed by length.

use std::sync::Arc;

use crate::error::{DataError, Result};
use crate::pack::batch::{EncodedDataset, PackedBatch};

/// An evaluation batch and its rows.
#[derive(Debug, Clone)]
pub struct EvalBatch {
    /// The packed sequences.
    pub batch: PackedBatch,
    /// The row of each sequence, shape `[sequences]`.
    pub indices: Vec<usize>,
}

/// Every row once, in batches of similar lengths; [`restore_order`] undoes the sorting.
#[derive(Debug, Clone)]
pub struct EvalBatches {
    data: Arc<EncodedDataset>,
    batch_size: usize,
    order: Vec<usize>,
    next: usize,
}

impl EvalBatches {
    /// Batches of at most `batch_size` rows; with `bucket`, the longest rows come first (so that memory peaks
    /// at once) and rows of equal length keep their order, otherwise all rows keep their order.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] for a batch size of 0.
    pub fn new(data: Arc<EncodedDataset>, batch_size: usize, bucket: bool) -> Result<Self> {
        check_positive("batch size", batch_size)?;
        let mut order: Vec<usize> = (0..data.len()).collect();
        if bucket {
            let lengths = data.lengths();
            order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
        }
        Ok(Self { data, batch_size, order, next: 0 })
    }
}

impl Iterator for EvalBatches {
    type Item = Result<EvalBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.order.len().min(self.next + self.batch_size);
        let indices = self.order[self.next..end].to_vec();
        self.next = end;
        if indices.is_empty() {
            return None;
        }
        Some(self.data.batch(&indices).map(|batch| EvalBatch { batch, indices }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.order.len() - self.next).div_ceil(self.batch_size);
        (left, Some(left))
    }
}

impl ExactSizeIterator for EvalBatches {}

/// Puts the outputs of evaluation batches back into the order of the rows.
///
/// # Errors
/// [`DataError::Batch`] unless `indices` is a permutation of `0..outputs.len()`.
pub fn restore_order<T>(indices: &[usize], outputs: Vec<T>) -> Result<Vec<T>> {
    let n = outputs.len();
    let wrong =
        || DataError::Batch { message: format!("{} indices do not number the {n} outputs", indices.len()) };
    if indices.len() != n {
        return Err(wrong());
    }
    let mut slots: Vec<Option<T>> = std::iter::repeat_with(|| None).take(n).collect();
    for (&index, output) in indices.iter().zip(outputs) {
        let slot = slots.get_mut(index).ok_or_else(wrong)?;
        if slot.replace(output).is_some() {
            return Err(wrong());
        }
    }
    slots.into_iter().collect::<Option<Vec<T>>>().ok_or_else(wrong)
}

fn check_positive(what: &'static str, value: usize) -> Result<()> {
    if value == 0 {
        return Err(DataError::OutOfRange {
            what,
            got: "0".to_owned(),
            expected: "give at least 1".to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenize::Encoded;

    fn data(lengths: &[usize]) -> Arc<EncodedDataset> {
        let rows = lengths
            .iter()
            .enumerate()
            .map(|(i, &len)| Encoded { ids: vec![i as u32; len], type_ids: vec![0; len] })
            .collect();
        Arc::new(EncodedDataset::unlabelled(rows))
    }

    #[test]
    fn buckets_are_undone() {
        let rows = data(&[1, 5, 2, 5, 3]);
        let batches = EvalBatches::new(rows, 2, true).unwrap();
        assert_eq!(batches.len(), 3);
        let (mut indices, mut lengths) = (Vec::new(), Vec::new());
        for batch in batches {
            let EvalBatch { batch, indices: part } = batch.unwrap();
            lengths.extend(batch.lengths);
            indices.extend(part);
        }
        assert_eq!(lengths, [5, 5, 3, 2, 1]);
        assert_eq!(indices, [1, 3, 4, 2, 0]);
        assert_eq!(restore_order(&indices, lengths).unwrap(), [1, 5, 2, 5, 3]);
    }

    #[test]
    fn wrong_indices_are_refused() {
        assert!(restore_order(&[0, 0], vec![1, 2]).is_err());
        assert!(restore_order(&[0, 2], vec![1, 2]).is_err());
        assert!(restore_order(&[0], vec![1, 2]).is_err());
        assert!(EvalBatches::new(data(&[1]), 0, true).is_err());
    }
}
