//! TensorBoard event files: `events.out.tfevents.<seconds>.<host>.<pid>.<n>`.
//!
//! A file is a sequence of TFRecords, each one a protobuf `Event`; the first carries
//! `file_version = "brain.Event:2"`.

pub(crate) mod frame;
mod writer;

pub use writer::{EventWriter, now};
