//! The protobuf wire format, as far as event files need it.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

mod read;
mod write;

pub(crate) use read::{Field, Fields, Malformed, varints};
#[cfg(test)]
pub(crate) use write::put_varint;
pub(crate) use write::{put_bytes, put_double, put_float, put_int64};

/// A value in base 128, as long as it takes.
const VARINT: u64 = 0;
/// A value of eight bytes.
const FIXED64: u64 = 1;
/// A value with its length before it.
const BYTES: u64 = 2;
/// A value of four bytes.
const FIXED32: u64 = 5;
