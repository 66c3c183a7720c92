//! Reading little-endian fields from a slice, never beyond its end.

use crate::error::Fault;

/// A position in a slice.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at a byte; beyond the end there is nothing to read.
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// The position of the next byte.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(Fault::file(format!(
                "{n} bytes expected at byte {}; the file is truncated",
                self.at
            )));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let taken = self.take(N)?;
        Ok(*taken.first_chunk().unwrap_or(&[0; N]))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Fault> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length field of 2, 4 or 8 bytes as an index.
    pub(crate) fn length(&mut self, bytes: usize) -> Result<usize, Fault> {
        let length = match bytes {
            1 => u64::from(self.u8()?),
            2 => u64::from(self.u16()?),
            4 => u64::from(self.u32()?),
            _ => self.u64()?,
        };
        usize::try_from(length).map_err(|_| Fault::file(format!("length {length} is beyond this machine")))
    }

    /// The text up to the next line feed, which is skipped.
    pub(crate) fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&b| b == b'\n') else {
            return Err(Fault::file("a line without end; the file is truncated"));
        };
        let line = self.text(length)?;
        self.at += 1;
        Ok(line)
    }

    /// The next `n` bytes as UTF-8.
    pub(crate) fn text(&mut self, n: usize) -> Result<&'a str, Fault> {
        let at = self.at;
        std::str::from_utf8(self.take(n)?).map_err(|_| Fault::file(format!("text at byte {at} is not UTF-8")))
    }
}
