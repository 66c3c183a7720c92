//! Metadata of a GGUF file: values that are read from the file where they are asked for.

use std::collections::BTreeMap;

use super::read::Reader;

/// Type of a value, by its number in the file (`gguf_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Text,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Bytes of a value, none where they differ.
    pub(crate) const fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

/// A value of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An integer without a sign.
    Unsigned(u64),
    /// An integer with a sign.
    Signed(i64),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(&'a str),
    /// A list.
    Array(Array<'a>),
}

/// A list of values of one type, none of which is a list. Its bytes have been checked to be in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    pub(crate) kind: Kind,
    pub(crate) len: usize,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values in order; text that is not UTF-8 ends the list.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (mut reader, kind) = (Reader::new(self.bytes), self.kind);
        (0..self.len).map_while(move |_| reader.scalar(kind).ok())
    }

    /// All texts, or none where the values are something else or not UTF-8.
    #[must_use]
    pub fn texts(&self) -> Option<Vec<&'a str>> {
        let texts: Vec<&str> = self.values().map_while(|value| value.as_text()).collect();
        (texts.len() == self.len).then_some(texts)
    }

    /// All numbers, or none where the values are something else.
    #[must_use]
    pub fn numbers(&self) -> Option<Vec<f64>> {
        let numbers: Vec<f64> = self.values().map_while(|value| value.as_number()).collect();
        (numbers.len() == self.len).then_some(numbers)
    }
}

impl<'a> Value<'a> {
    /// The text, if it is one.
    #[must_use]
    pub(crate) fn as_text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer of zero or more, if it is one.
    #[must_use]
    pub(crate) fn as_count(self) -> Option<u64> {
        match self {
            Self::Unsigned(count) => Some(count),
            Self::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// The number or truth value as a float, if it is one.
    #[must_use]
    pub(crate) fn as_number(self) -> Option<f64> {
        match self {
            Self::Unsigned(number) => Some(number as f64),
            Self::Signed(number) => Some(number as f64),
            Self::Float(number) => Some(number),
            Self::Bool(flag) => Some(f64::from(u8::from(flag))),
            Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// The truth value, if it is one.
    #[must_use]
    pub fn as_bool(self) -> Option<bool> {
        match self {
            Self::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// The list, if it is one.
    #[must_use]
    pub fn as_array(self) -> Option<Array<'a>> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

/// Keys and values.
pub(crate) type Metadata<'a> = BTreeMap<&'a str, Value<'a>>;
