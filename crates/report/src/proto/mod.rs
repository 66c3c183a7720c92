//! The protobuf wire format, to the extent that event files need it.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

mod read;
mod write;

pub(crate) use read::{Field, Fields, Malformed, varints};
#[cfg(test)]
pub(crate) use write::put_varint;
pub(crate) use write::{put_bytes, put_double, put_float, put_int64};

/// A variable-length value in base 128.
const VARINT: u64 = 0;
/// An eight-byte value.
const FIXED64: u64 = 1;
/// A length-prefixed value.
const BYTES: u64 = 2;
/// A four-byte value.
const FIXED32: u64 = 5;
