//! Reading fields.

use super::{BYTES, FIXED32, FIXED64, VARINT};

/// Bytes that do not form a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Field<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

/// The fields of a message in order, each with its number; ends after the first malformed one.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn next_field(&mut self) -> Result<(u64, Field<'a>), Malformed> {
        let key = take_varint(&mut self.rest)?;
        let field = match key & 7 {
            VARINT => Field::Varint(take_varint(&mut self.rest)?),
            FIXED64 => Field::Fixed64(*self.rest.split_off(..8).and_then(<[u8]>::as_array).ok_or(Malformed)?),
            FIXED32 => Field::Fixed32(*self.rest.split_off(..4).and_then(<[u8]>::as_array).ok_or(Malformed)?),
            BYTES => {
                let length = usize::try_from(take_varint(&mut self.rest)?).map_err(|_| Malformed)?;
                Field::Bytes(self.rest.split_off(..length).ok_or(Malformed)?)
            }
            // Groups, which our messages do not use, and invalid numbers.
            _ => return Err(Malformed),
        };
        Ok((key >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let next = self.next_field();
        if next.is_err() {
            self.rest = &[];
        }
        Some(next)
    }
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for (index, byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// The numbers of a packed repeated field.
pub(crate) fn varints(mut packed: &[u8]) -> impl Iterator<Item = Result<u64, Malformed>> {
    std::iter::from_fn(move || {
        if packed.is_empty() {
            return None;
        }
        let next = take_varint(&mut packed);
        if next.is_err() {
            packed = &[];
        }
        Some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{put_bytes, put_double, put_float, put_int64};

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        put_int64(&mut out, 1, -2);
        put_double(&mut out, 2, 0.1);
        put_bytes(&mut out, 300, b"ab");
        put_float(&mut out, 4, 0.5);
        let fields: Vec<_> = Fields::new(&out).map(Result::unwrap).collect();
        let expect = [
            (1, Field::Varint((-2_i64) as u64)),
            (2, Field::Fixed64(0.1_f64.to_le_bytes())),
            (300, Field::Bytes(b"ab")),
            (4, Field::Fixed32(0.5_f32.to_le_bytes())),
        ];
        assert_eq!(fields, expect);
    }

    #[track_caller]
    fn check_malformed(message: &[u8]) {
        let fields: Vec<_> = Fields::new(message).take(5).collect();
        assert_eq!(fields.last(), Some(&Err(Malformed)), "{message:?}");
        assert!(fields.len() < 5, "it does not end");
    }

    #[test]
    fn messages_that_are_none_end_with_an_error() {
        check_malformed(&[0x80]);
        check_malformed(&[0xff; 11]);
        check_malformed(&[0x09, 1, 2, 3]);
        check_malformed(&[0x0d, 1, 2, 3]);
        check_malformed(&[0x0a, 3, 1, 2]);
        check_malformed(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        check_malformed(&[0x0b]);
        check_malformed(&[0x08, 0x01, 0x0e]);
    }

    #[test]
    fn packed_numbers() {
        let numbers: Vec<_> = varints(&[0x96, 0x01, 0x00]).collect();
        assert_eq!(numbers, [Ok(150), Ok(0)]);
        assert_eq!(varints(&[0x80]).collect::<Vec<_>>(), [Err(Malformed)]);
    }
}
