//! burn's data loader interface over our packed batches.

use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::backend::Backend;
use lowrank_data::pack::{EncodedDataset, LoaderState, PackedBatch, TrainBatches};
use lowrank_spec::rng::mix;

use crate::config::TrainConfig;
use crate::error::Result;
use crate::tuner::TrainItem;

/// An endless stream of shuffled batches that goes on where it stopped.
pub(crate) struct PackedLoader {
    batches: Arc<Mutex<Stream>>,
}

struct Stream {
    batches: TrainBatches,
    rows: usize,
    seed: u64,
    accum: usize,
    drawn: u64,
}

impl PackedLoader {
    /// Batches for a training that has made `steps` optimizer steps.
    ///
    /// # Errors
    /// No rows.
    pub(crate) fn new(data: Arc<EncodedDataset>, config: &TrainConfig, steps: usize) -> Result<Self> {
        let rows = data.len();
        let probe = TrainBatches::new(data.clone(), config.batch_size, config.seed)?;
        let drawn = steps * config.grad_accum;
        let per_epoch = probe.batches_per_epoch();
        let state =
            LoaderState { epoch: (drawn / per_epoch) as u64, index: drawn % per_epoch * config.batch_size };
        let batches = TrainBatches::resume(data, config.batch_size, config.seed, state)?;
        let stream =
            Stream { batches, rows, seed: config.seed, accum: config.grad_accum, drawn: drawn as u64 };
        Ok(Self { batches: Arc::new(Mutex::new(stream)) })
    }

    fn handle<B: Backend>(&self) -> Arc<dyn DataLoader<B, TrainItem>> {
        Arc::new(Self { batches: self.batches.clone() })
    }
}

struct Iter {
    batches: Arc<Mutex<Stream>>,
}

impl Iterator for Iter {
    type Item = TrainItem;

    fn next(&mut self) -> Option<TrainItem> {
        let mut stream = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = stream.batches.next()?.ok()?;
        stream.drawn += 1;
        let state = stream.batches.state();
        Some(TrainItem {
            batch,
            seed: mix(stream.seed, stream.drawn),
            weight: 1.0 / stream.accum as f64,
            epoch: state.epoch as f64 + state.index as f64 / stream.rows as f64,
        })
    }
}

impl DataLoaderIterator<TrainItem> for Iter {
    fn progress(&self) -> Progress {
        let stream = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        Progress::new(stream.batches.state().index, stream.rows)
    }
}

impl<B: Backend> DataLoader<B, TrainItem> for PackedLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TrainItem> + 'a> {
        Box::new(Iter { batches: self.batches.clone() })
    }

    fn num_items(&self) -> usize {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).rows
    }

    fn to_device(&self, _device: &B::Device) -> Arc<dyn DataLoader<B, TrainItem>> {
        self.handle::<B>()
    }

    fn slice(&self, _start: usize, _end: usize) -> Arc<dyn DataLoader<B, TrainItem>> {
        self.handle::<B>()
    }
}

/// No batches: the strategy evaluates by itself.
pub(crate) struct NoBatches;

struct Nothing;

impl Iterator for Nothing {
    type Item = PackedBatch;

    fn next(&mut self) -> Option<PackedBatch> {
        None
    }
}

impl DataLoaderIterator<PackedBatch> for Nothing {
    fn progress(&self) -> Progress {
        Progress::new(0, 0)
    }
}

impl<B: Backend> DataLoader<B, PackedBatch> for NoBatches {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<PackedBatch> + 'a> {
        Box::new(Nothing)
    }

    fn num_items(&self) -> usize {
        0
    }

    fn to_device(&self, _device: &B::Device) -> Arc<dyn DataLoader<B, PackedBatch>> {
        Arc::new(Self)
    }

    fn slice(&self, _start: usize, _end: usize) -> Arc<dyn DataLoader<B, PackedBatch>> {
        Arc::new(Self)
    }
}
