//! Tensor files of the Hugging Face ecosystem, as host arrays: read strictly and lazily, written completely
//! or not at all.
//!
//! - **Reading.** [`Checkpoint`] opens a file or a folder (safetensors, sharded or not; PyTorch's `.bin` in
//!   both its formats; llama.cpp's GGUF, see [`gguf`]) and returns one tensor at a time, converted. Files are
//!   mapped; pages are released after they are read, so that loading a model takes the memory of its weights
//!   and little more.
//! - **Writing.** [`write_safetensors`] writes one file; [`StreamWriter`] writes checkpoints larger than
//!   memory, in shards if requested, and can resume. [`write_atomic`], [`write_dir_atomic`] and [`StagedDir`]
//!   do the same for other files and folders: a reader sees all or nothing.
//! - **Trust.** Nothing in a file is trusted before it is checked: header lengths, offsets, shapes and views
//!   are compared with the file's size before anything is allocated, shards cannot be outside their folder,
//!   and a pickle is never executed: any name in it that is not tensor data is an error. Errors are one line
//!   with the file, the tensor and the remedy.
//!
//! The crate does not depend on adapters or a tensor library, and knows about models only what GGUF files
//! leave out.
//!
//! ```
//! use std::collections::BTreeMap;
//! use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//! let weight = HostTensor::new("fc.weight", [2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
//! write_safetensors(&path, vec![weight], FloatType::F32, &BTreeMap::new())?;
//!
//! let checkpoint = Checkpoint::open(folder.path())?;
//! assert_eq!(checkpoint.info("fc.weight").map(|info| info.shape.as_slice()), Some([2, 3].as_slice()));
//! assert_eq!(checkpoint.read_f32_transposed("fc.weight")?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may"))]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod atomic;
mod checkpoint;
mod companions;
mod convert;
mod dtype;
mod error;
mod experts;
mod fault;
#[doc(hidden)]
pub mod fuzz;
pub mod gguf;
mod header;
mod journal;
mod map;
mod packed;
mod plan;
mod resolve;
mod source;
mod staged;
mod stream;
mod torch;
mod write;

pub use lowrank_spec::HostTensor;

pub use self::{
    atomic::{
        create_folder, is_temporary, replace_dir_atomic, replace_file_atomic, sync_folder, sync_tree,
        write_atomic, write_dir_atomic, write_together,
    },
    checkpoint::Checkpoint,
    companions::{is_nested_companion, nested_companions},
    dtype::{Dtype, FloatType, TensorInfo},
    error::CheckpointError,
    experts::fuse_experts,
    fault::report_cut_files,
    map::{has_file, read_file, read_file_within},
    plan::{StreamOptions, TensorPlan},
    staged::{FolderLock, StagedDir},
    stream::StreamWriter,
    write::{RawTensor, write_safetensors, write_safetensors_with},
};
