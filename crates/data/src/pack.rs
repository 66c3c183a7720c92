//! Packed batches: concatenated sequences, no padding.

mod batch;
mod loader;
mod plan;

pub use batch::{EncodedDataset, Labels, PackedBatch, SpanLabel};
pub use loader::{EvalBatch, EvalBatches, restore_order};
pub use plan::{BatchPlan, BatchSize, Shard, StepRows};
