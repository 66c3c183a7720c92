//! Writing fields.

use super::{BYTES, FIXED32, FIXED64, VARINT};

/// Appends `value` in base 128, least significant group first.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, field: u32, wire: u64) {
    put_varint(out, u64::from(field) << 3 | wire);
}

/// Appends an `int64` field; negative numbers take ten bytes, as protobuf requires.
pub(crate) fn put_int64(out: &mut Vec<u8>, field: u32, value: i64) {
    put_key(out, field, VARINT);
    put_varint(out, value as u64);
}

/// Appends a `double` field.
pub(crate) fn put_double(out: &mut Vec<u8>, field: u32, value: f64) {
    put_key(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a `float` field.
pub(crate) fn put_float(out: &mut Vec<u8>, field: u32, value: f32) {
    put_key(out, field, FIXED32);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a `bytes`, `string` or message field.
pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    put_key(out, field, BYTES);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_varint(value: u64, expect: &[u8]) {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        assert_eq!(out, expect);
    }

    #[test]
    fn varints_as_in_the_protobuf_guide() {
        check_varint(0, &[0]);
        check_varint(1, &[1]);
        check_varint(127, &[0x7f]);
        check_varint(128, &[0x80, 1]);
        check_varint(150, &[0x96, 1]);
        check_varint(u64::MAX, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    }

    #[test]
    fn fields_as_in_the_protobuf_guide() {
        let mut out = Vec::new();
        put_bytes(&mut out, 2, b"testing");
        assert_eq!(out, [&[0x12, 7][..], b"testing"].concat());
        out.clear();
        put_int64(&mut out, 1, 150);
        assert_eq!(out, [0x08, 0x96, 1]);
        out.clear();
        put_float(&mut out, 2, 1.0);
        assert_eq!(out, [0x15, 0, 0, 0x80, 0x3f]);
        out.clear();
        put_double(&mut out, 1, 1.0);
        assert_eq!(out, [0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
    }
}
