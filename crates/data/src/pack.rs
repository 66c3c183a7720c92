//! Packed batches: sequences one after the other, no padding.

mod batch;
mod loader;

pub use batch::{EncodedDataset, Labels, PackedBatch};
pub use loader::{EvalBatch, EvalBatches, LoaderState, TrainBatches, restore_order};
