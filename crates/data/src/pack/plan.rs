//! The rows of an optimizer step: a function of the step alone, so that a resumed run sees the same rows as
//! an uninterrupted one.

use std::sync::{Mutex, PoisonError};

use crate::error::{DataError, Result};
use lowrank_spec::rng::SplitMix64;

/// The size of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    /// A number of rows.
    Rows(usize),
    /// Rows of similar length, with at most this many tokens in total.
    Tokens(usize),
}

/// The rows of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRows {
    /// Rows of each micro-batch.
    pub micro: Vec<Vec<usize>>,
    /// Epochs of data seen at the end of the step.
    pub epoch: f64,
}

/// The share of one process in every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    of: usize,
}

impl Shard {
    /// The only shard.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Shard `index`, counted from 0, of `of`.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] unless `index < of`.
    pub fn new(index: usize, of: usize) -> Result<Self> {
        if index < of {
            return Ok(Self { index, of });
        }
        let expected = format!("expected a number below {of}");
        Err(DataError::OutOfRange { what: "shard of a batch", got: index.to_string(), expected })
    }

    /// Its number, from 0.
    pub fn index(self) -> usize {
        self.index
    }

    /// The number of shards.
    pub fn of(self) -> usize {
        self.of
    }

    /// Whether this shard is the whole batch.
    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// The places of this shard's rows among rows of these lengths, ascending: the longest row first, each is given to the
    /// shard with the fewest tokens so far.
    pub fn of_lengths(self, lengths: &[usize]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&place| std::cmp::Reverse(lengths[place]));
        let mut tokens = vec![0; self.of];
        let mut mine = Vec::new();
        for place in order {
            let least = (0..self.of).min_by_key(|&shard| tokens[shard]).unwrap_or(0);
            tokens[least] += lengths[place];
            if least == self.index {
                mine.push(place);
            }
        }
        mine.sort_unstable();
        mine
    }
}

/// Batches of rows, reshuffled in each epoch.
///
/// The order of epoch `e` is the Fisher–Yates shuffle of the rows by [`SplitMix64::keyed`]`(seed, [e])`. With
/// [`BatchSize::Rows`] it is divided into micro-batches. With [`BatchSize::Tokens`], stretches of it are
/// sorted by length, divided at the token limit, and the batches are shuffled. A step takes `accum`
/// micro-batches of one epoch; the last step of an epoch may have fewer, so that an accumulated step has the
/// rows of one large batch.
///
/// ```
/// use lowrank_data::pack::{BatchPlan, BatchSize};
///
/// let plan = BatchPlan::new(vec![3; 10], BatchSize::Rows(4), 2, 17)?;
/// assert_eq!(plan.steps_for(2.0), 4);
/// let sizes: Vec<usize> = plan.step(1).micro.iter().map(Vec::len).collect();
/// assert_eq!(sizes, [2]);
/// # Ok::<(), lowrank_data::DataError>(())
/// ```
#[derive(Debug)]
pub struct BatchPlan {
    lengths: Vec<usize>,
    size: BatchSize,
    accum: usize,
    seed: u64,
    /// The most recently requested epoch, and the first step of each epoch so far.
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    starts: Vec<usize>,
    epoch: Option<(u64, Vec<Vec<usize>>)>,
}

/// Number of micro-batches whose rows are sorted by length together.
const BUCKET: usize = 16;

impl BatchPlan {
    /// A plan over rows of these lengths.
    ///
    /// # Errors
    /// [`DataError::OutOfRange`] for no rows, a size or `accum` of 0, or a row longer than a batch.
    pub fn new(lengths: Vec<usize>, size: BatchSize, accum: usize, seed: u64) -> Result<Self> {
        let positive = |what, value: usize| match value {
            0 => Err(DataError::OutOfRange { what, got: "0".into(), expected: "give at least 1".into() }),
            _ => Ok(()),
        };
        positive("number of rows", lengths.len())?;
        positive("number of accumulated batches", accum)?;
        match size {
            BatchSize::Rows(rows) => positive("batch size", rows)?,
            BatchSize::Tokens(tokens) => {
                positive("batch size in tokens", tokens)?;
                if let Some((row, length)) = lengths.iter().enumerate().find(|(_, n)| **n > tokens) {
                    return Err(DataError::OutOfRange {
                        what: "batch size in tokens",
                        got: tokens.to_string(),
                        expected: format!(
                            "row {} has {length} tokens; raise it, or cut rows with --max-length",
                            row + 1
                        ),
                    });
                }
            }
        }
        Ok(Self { lengths, size, accum, seed, cache: Mutex::default() })
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.lengths.len()
    }

    /// Steps per epoch.
    pub fn steps_in(&self, epoch: u64) -> usize {
        match self.size {
            BatchSize::Rows(rows) => self.lengths.len().div_ceil(rows).div_ceil(self.accum),
            BatchSize::Tokens(_) => self.batches(epoch).len().div_ceil(self.accum),
        }
    }

    /// Number of steps for `epochs`, at least one; a part of an epoch is rounded up.
    pub fn steps_for(&self, epochs: f64) -> usize {
        let whole = epochs.floor() as u64;
        let full: usize = match self.size {
            BatchSize::Rows(_) => self.steps_in(0).saturating_mul(whole as usize),
            BatchSize::Tokens(_) => (0..whole).map(|epoch| self.steps_in(epoch)).sum(),
        };
        let rest = epochs - whole as f64;
        let part = if rest > 0.0 { (rest * self.steps_in(whole) as f64).ceil() as usize } else { 0 };
        (full + part).max(1)
    }

    /// The rows of step `step`, counted from 0.
    pub fn step(&self, step: usize) -> StepRows {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let (epoch, place) = self.locate(step, &mut cache);
        if cache.epoch.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            cache.epoch = Some((epoch, self.batches(epoch)));
        }
        let batches = cache.epoch.as_ref().map_or(&[][..], |(_, batches)| batches);
        let end = batches.len().min((place + 1) * self.accum);
        let seen: usize = batches[..end].iter().map(Vec::len).sum();
        StepRows {
            micro: batches[place * self.accum..end].to_vec(),
            epoch: epoch as f64 + seen as f64 / self.lengths.len() as f64,
        }
    }

    /// The rows of one shard of step `step`; micro-batches of which it has no rows are left out.
    pub fn shard_of_step(&self, step: usize, shard: Shard) -> StepRows {
        let mut rows = self.step(step);
        if !shard.is_whole() {
            for micro in &mut rows.micro {
                let lengths: Vec<usize> = micro.iter().map(|&row| self.lengths[row]).collect();
                *micro = shard.of_lengths(&lengths).into_iter().map(|place| micro[place]).collect();
            }
            rows.micro.retain(|micro| !micro.is_empty());
        }
        rows
    }

    /// Epoch of a step, and its position in it.
    fn locate(&self, step: usize, cache: &mut Cache) -> (u64, usize) {
        if let BatchSize::Rows(_) = self.size {
            let per_epoch = self.steps_in(0);
            return ((step / per_epoch) as u64, step % per_epoch);
        }
        if cache.starts.is_empty() {
            cache.starts.push(0);
        }
        // `starts` has one more entry than there are known epochs.
        while cache.starts.last().is_some_and(|&end| end <= step) {
            let epoch = cache.starts.len() - 1;
            let end = cache.starts[epoch] + self.steps_in(epoch as u64);
            cache.starts.push(end);
        }
        let epoch = cache.starts.partition_point(|&start| start <= step) - 1;
        (epoch as u64, step - cache.starts[epoch])
    }

    /// The micro-batches of an epoch.
    fn batches(&self, epoch: u64) -> Vec<Vec<usize>> {
        let order = epoch_order(self.lengths.len(), self.seed, epoch);
        let tokens = match self.size {
            BatchSize::Rows(rows) => return order.chunks(rows).map(<[usize]>::to_vec).collect(),
            BatchSize::Tokens(tokens) => tokens,
        };
        let mean = (self.lengths.iter().sum::<usize>() / self.lengths.len()).max(1);
        let stretch = (tokens / mean).max(1) * BUCKET;
        let mut batches: Vec<Vec<usize>> = Vec::new();
        for part in order.chunks(stretch) {
            let mut part = part.to_vec();
            part.sort_by_key(|&row| std::cmp::Reverse(self.lengths[row]));
            let mut room = 0;
            for row in part {
                let length = self.lengths[row];
                match batches.last_mut() {
                    Some(batch) if room >= length => batch.push(row),
                    _ => {
                        batches.push(vec![row]);
                        room = tokens;
                    }
                }
                room -= length;
            }
        }
        SplitMix64::keyed(self.seed, &[epoch, 1]).shuffle(&mut batches);
        batches
    }
}

/// The order of rows in an epoch.
fn epoch_order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    SplitMix64::keyed(seed, &[epoch]).shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shards_of_a_step_are_the_whole_and_of_similar_size() {
        let lengths: Vec<usize> = (0..37).map(|row| 5 + row * row % 61).collect();
        let plan = BatchPlan::new(lengths.clone(), BatchSize::Rows(8), 2, 3).unwrap();
        for (step, of) in [(0, 2), (1, 3), (2, 4), (2, 9)] {
            let shards: Vec<StepRows> =
                (0..of).map(|index| plan.shard_of_step(step, Shard::new(index, of).unwrap())).collect();
            let mut rows = shards.iter().flat_map(|shard| shard.micro.concat()).collect::<Vec<usize>>();
            let mut whole = plan.step(step).micro.concat();
            rows.sort_unstable();
            whole.sort_unstable();
            assert_eq!(rows, whole);
            assert!(shards.iter().all(|shard| shard.epoch == plan.step(step).epoch));
        }
        let shard = |index| Shard::new(index, 2).unwrap().of_lengths(&[9, 1, 1, 7, 2]);
        assert_eq!([shard(0), shard(1)], [vec![0, 1], vec![2, 3, 4]]);
        assert!(Shard::new(2, 2).is_err());
    }

    fn rows_of_epoch(plan: &BatchPlan, first: usize, steps: usize) -> Vec<usize> {
        let mut rows: Vec<usize> = (first..first + steps).flat_map(|s| plan.step(s).micro.concat()).collect();
        rows.sort_unstable();
        rows
    }

    #[track_caller]
    fn check_epochs(size: BatchSize, accum: usize) {
        let lengths: Vec<usize> = (0..23).map(|i| 1 + i * 7 % 20).collect();
        let plan = BatchPlan::new(lengths.clone(), size, accum, 5).unwrap();
        let mut first = 0;
        for epoch in 0..3 {
            let steps = plan.steps_in(epoch);
            assert_eq!(rows_of_epoch(&plan, first, steps), (0..23).collect::<Vec<_>>());
            first += steps;
            assert_eq!(plan.step(first - 1).epoch, epoch as f64 + 1.0);
        }
        assert_eq!(plan.steps_for(3.0), first);
        if let BatchSize::Tokens(tokens) = size {
            let sum = |batch: &Vec<usize>| batch.iter().map(|&row| lengths[row]).sum::<usize>();
            assert!((0..first).flat_map(|s| plan.step(s).micro).all(|batch| sum(&batch) <= tokens));
        }
    }

    #[test]
    fn each_epoch_hands_out_every_row_once() {
        check_epochs(BatchSize::Rows(3), 1);
        check_epochs(BatchSize::Rows(3), 2);
        check_epochs(BatchSize::Rows(50), 3);
        check_epochs(BatchSize::Tokens(20), 1);
        check_epochs(BatchSize::Tokens(20), 4);
    }

    #[test]
    fn an_accumulated_step_has_the_rows_of_one_large_batch() {
        let plan = |rows, accum| BatchPlan::new(vec![1; 22], BatchSize::Rows(rows), accum, 3).unwrap();
        let (large, split) = (plan(8, 1), plan(2, 4));
        for step in 0..9 {
            let (large, split) = (large.step(step), split.step(step));
            assert_eq!(large.micro.concat(), split.micro.concat());
            assert_eq!(large.epoch, split.epoch);
        }
    }

    #[test]
    fn epochs_are_counted_in_rows_whatever_is_accumulated() {
        let steps = |rows, accum, epochs| {
            BatchPlan::new(vec![1; 8], BatchSize::Rows(rows), accum, 0).unwrap().steps_for(epochs)
        };
        assert_eq!(steps(8, 2, 1.0), 1);
        assert_eq!(steps(2, 2, 3.0), 6);
        assert_eq!(steps(2, 3, 3.0), 6);
        assert_eq!(steps(2, 1, 0.5), 2);
        assert_eq!(steps(8, 1, 0.1), 1);
    }

    #[test]
    fn any_step_can_be_asked_for_first() {
        let lengths: Vec<usize> = (0..40).map(|i| 1 + i * 3 % 11).collect();
        let plan = || BatchPlan::new(lengths.clone(), BatchSize::Tokens(30), 2, 1).unwrap();
        let whole = plan();
        let all: Vec<StepRows> = (0..20).map(|step| whole.step(step)).collect();
        assert_eq!(plan().step(17), all[17]);
        assert_eq!(whole.step(2), all[2]);
    }

    #[test]
    fn the_order_is_pinned() {
        assert_eq!(epoch_order(10, 1, 0), PINNED);
        assert_ne!(epoch_order(10, 2, 0), PINNED);
        assert_ne!(epoch_order(10, 1, 1), PINNED);
    }
    /// May change only if runs need not stay reproducible: then say so in the changelog.
    const PINNED: [usize; 10] = [3, 8, 6, 9, 4, 7, 0, 1, 2, 5];

    #[test]
    fn what_cannot_be_planned_is_refused() {
        let plan = |lengths: &[usize], size, accum| BatchPlan::new(lengths.to_vec(), size, accum, 0);
        assert!(plan(&[], BatchSize::Rows(1), 1).is_err());
        assert!(plan(&[1], BatchSize::Rows(0), 1).is_err());
        assert!(plan(&[1], BatchSize::Rows(1), 0).is_err());
        let error = plan(&[3, 9], BatchSize::Tokens(8), 1).unwrap_err().to_string();
        assert!(error.contains("row 2 has 9 tokens"), "{error}");
    }
}
