//! Tensor files of the Hugging Face world, as host arrays: read strictly and lazily, written whole or not at all.
//!
//! [`Checkpoint`] opens a file or a folder (safetensors, sharded or not; PyTorch's `.bin`, without executing its
//! pickle) and hands out one tensor at a time. [`write_safetensors`] writes a file,
//! [`StreamWriter`] one that is larger than memory;
//! [`write_atomic`], [`write_dir_atomic`] and [`StagedDir`] do the same for any other file or folder.
//!
//! ```
//! use std::collections::BTreeMap;
//! use lowrank_checkpoint::{Checkpoint, FloatType, NamedTensor, write_safetensors};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//! let weight = NamedTensor::new("fc.weight", [2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
//! write_safetensors(&path, vec![weight], FloatType::F32, &BTreeMap::new())?;
//!
//! let checkpoint = Checkpoint::open(folder.path())?;
//! assert_eq!(checkpoint.info("fc.weight").map(|info| info.shape.as_slice()), Some([2, 3].as_slice()));
//! assert_eq!(checkpoint.read_f32_transposed("fc.weight")?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may"))]

mod atomic;
mod checkpoint;
mod convert;
mod dtype;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod header;
mod journal;
mod map;
mod plan;
mod resolve;
mod source;
mod staged;
mod stream;
mod torch;
mod write;

pub use self::{
    atomic::{replace_dir_atomic, write_atomic, write_dir_atomic},
    checkpoint::Checkpoint,
    dtype::{Dtype, FloatType, TensorInfo},
    error::CheckpointError,
    plan::{StreamOptions, TensorPlan},
    staged::StagedDir,
    stream::StreamWriter,
    write::{NamedTensor, write_safetensors},
};
