//! The wire format of protocol buffers, to the extent that a SentencePiece model needs it.

/// The value of a field.
#[derive(Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// A variable-length integer.
    Number(u64),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed(u32),
}

/// The fields of a message with their numbers; ends after the first error.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn take(&mut self, n: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(n).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = u64::from(self.take(1)?[0]);
            value |= (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Value::Number(self.number()?),
            1 => {
                let bytes = self.take(8)?;
                Value::Bytes(bytes)
            }
            2 => {
                let n = self.number()?;
                Value::Bytes(self.take(n)?)
            }
            5 => Value::Fixed(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(
            field.ok_or_else(|| {
                "is not a SentencePiece model, or is cut off; fetch the file again".to_owned()
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_their_wire_types() {
        let bytes = [0x08, 0xac, 0x02, 0x12, 0x02, b'h', b'i', 0x1d, 0, 0, 0x80, 0x3f];
        let fields: Result<Vec<_>, _> = Fields::new(&bytes).collect();
        let expect = [(1, Value::Number(300)), (2, Value::Bytes(b"hi")), (3, Value::Fixed(1.0f32.to_bits()))];
        assert_eq!(fields.unwrap(), expect);
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        for bytes in [&[0x12, 0x05, b'h'][..], &[0x08], &[0x0b], &[0xff; 12], &[0x1d, 0]] {
            let fields: Vec<_> = Fields::new(bytes).collect();
            assert!(fields.len() == 1 && fields[0].is_err(), "{bytes:?}");
        }
    }
}
