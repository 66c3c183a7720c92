//! TensorBoard event files: `events.out.tfevents.<seconds>.<host>.<pid>.<n>`.
//!
//! A file is a sequence of TFRecords, each one a protobuf `Event`; the first carries
//! `file_version = "brain.Event:2"`.

mod event;
mod frame;
mod hparams;
mod reader;
mod writer;

#[cfg(test)]
pub(crate) use frame::put_record;
pub use hparams::{Hparam, Session};
pub use reader::{FileReport, Logged, Scalar, read_events};
pub use writer::{EventWriter, now};

/// Whether a file is an event file, by its name.
#[must_use]
pub fn is_event_file(name: &str) -> bool {
    name.contains("tfevents")
}
