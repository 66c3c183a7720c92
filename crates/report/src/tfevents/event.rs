//! The scalars of an event, from any writer.
//!
//! Field numbers are those of TensorFlow's `event.proto`, `summary.proto`, `tensor.proto` and `types.proto`. A
//! scalar is a `simple_value` (TensorFlow 1, PyTorch, ourselves) or a tensor of one numeric element
//! (TensorFlow 2).

use std::collections::HashMap;

use half::{bf16, f16};

use crate::proto::{Field, Fields, Malformed, varints};

/// A value in an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Value<'a> {
    /// Its name.
    pub(crate) tag: &'a str,
    /// Its number; absent for an image, a histogram, a text and so on.
    number: Option<f64>,
    /// Whether it is a tensor, whose meaning depends on a plugin.
    is_tensor: bool,
    /// Whether its metadata name a plugin other than the one for scalars; absent if they name none.
    other_plugin: Option<bool>,
    /// The content of its metadata, if they name the plugin of hyper-parameters.
    pub(crate) hparams: Option<&'a [u8]>,
}

/// Tags of a file that belong to a plugin other than the one for scalars: writers name it with a tag's first
/// value.
#[derive(Debug, Default)]
pub(crate) struct Plugins(HashMap<String, bool>);

impl Plugins {
    /// A value's number, if it is a scalar; must be called for the values of a file in their order.
    pub(crate) fn scalar(&mut self, value: &Value) -> Option<f64> {
        if let Some(other) = value.other_plugin {
            match self.0.get_mut(value.tag) {
                Some(known) => *known = other,
                None => drop(self.0.insert(value.tag.to_owned(), other)),
            }
        }
        let is_other = value.is_tensor && self.0.get(value.tag).is_some_and(|other| *other);
        value.number.filter(|_| !is_other)
    }
}

/// The contents of an event other than its values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Event<'a> {
    /// Seconds since 1970.
    pub(crate) wall_time: f64,
    /// The training step.
    pub(crate) step: i64,
    /// Whether it is a `SessionLog` with status START: earlier values of its step or later are void.
    pub(crate) restarts: bool,
    /// The message `Summary`, to be read by [`values`].
    summary: &'a [u8],
}

/// Reads an event; its values are read by [`values`].
pub(crate) fn event(message: &[u8]) -> Result<Event<'_>, Malformed> {
    let mut event = Event::default();
    for field in Fields::new(message) {
        match field? {
            (1, Field::Fixed64(bytes)) => event.wall_time = f64::from_le_bytes(bytes),
            (2, Field::Varint(step)) => event.step = step as i64,
            (5, Field::Bytes(summary)) => event.summary = summary,
            (7, Field::Bytes(session_log)) => event.restarts = is_start(session_log)?,
            _ => {}
        }
    }
    Ok(event)
}

/// Whether the status of a `SessionLog` is START.
fn is_start(session_log: &[u8]) -> Result<bool, Malformed> {
    let mut status = 0;
    for field in Fields::new(session_log) {
        if let (1, Field::Varint(value)) = field? {
            status = value;
        }
    }
    Ok(status == 1)
}

/// The values of an event, none if it cannot be read; an error ends them.
pub(crate) fn values<'a>(event: &Event<'a>) -> impl Iterator<Item = Result<Option<Value<'a>>, Malformed>> {
    Fields::new(event.summary).filter_map(|field| match field {
        Ok((1, Field::Bytes(message))) => Some(Ok(value(message).ok())),
        Ok(_) => None,
        Err(malformed) => Some(Err(malformed)),
    })
}

fn value(message: &[u8]) -> Result<Value<'_>, Malformed> {
    let mut value = Value { tag: "", number: None, is_tensor: false, other_plugin: None, hparams: None };
    for field in Fields::new(message) {
        match field? {
            (1, Field::Bytes(name)) => value.tag = std::str::from_utf8(name).map_err(|_| Malformed)?,
            (2, Field::Fixed32(bytes)) => {
                (value.number, value.is_tensor) = (Some(f64::from(f32::from_le_bytes(bytes))), false);
            }
            (8, Field::Bytes(message)) => {
                (value.number, value.is_tensor) = (Tensor::read(message)?.scalar()?, true);
            }
            (9, Field::Bytes(metadata)) => {
                let (plugin, content) = plugin(metadata)?;
                value.other_plugin = (!plugin.is_empty()).then_some(plugin != b"scalars");
                value.hparams = (plugin == b"hparams").then_some(content);
            }
            _ => {}
        }
    }
    Ok(value)
}

/// The plugin named in the metadata of a value, and the content for it.
fn plugin(metadata: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut name, mut content): (&[u8], &[u8]) = (b"", b"");
    for field in Fields::new(metadata) {
        let (1, Field::Bytes(data)) = field? else { continue };
        for field in Fields::new(data) {
            match field? {
                (1, Field::Bytes(text)) => name = text,
                (2, Field::Bytes(bytes)) => content = bytes,
                _ => {}
            }
        }
    }
    Ok((name, content))
}

/// A `TensorProto` of a numeric type.
#[derive(Default)]
struct Tensor<'a> {
    dtype: u64,
    shape: &'a [u8],
    /// The elements in their memory layout, little-endian.
    content: &'a [u8],
    /// The first of the individually stored elements, as its bits; their field depends on the
    /// type.
    first: Option<u64>,
}

impl<'a> Tensor<'a> {
    fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut tensor = Self::default();
        for field in Fields::new(message) {
            match field? {
                (1, Field::Varint(dtype)) => tensor.dtype = dtype,
                (2, Field::Bytes(shape)) => tensor.shape = shape,
                (4, Field::Bytes(content)) => tensor.content = content,
                // float_val and double_val; packed, or one by one as older writers have it.
                (5, Field::Fixed32(bytes)) => tensor.keep(u64::from(u32::from_le_bytes(bytes))),
                (5, Field::Bytes(packed)) => {
                    if let Some(bytes) = packed.first_chunk() {
                        tensor.keep(u64::from(u32::from_le_bytes(*bytes)));
                    }
                }
                (6, Field::Fixed64(bytes)) => tensor.keep(u64::from_le_bytes(bytes)),
                (6, Field::Bytes(packed)) => {
                    if let Some(bytes) = packed.first_chunk() {
                        tensor.keep(u64::from_le_bytes(*bytes));
                    }
                }
                // int_val, int64_val, bool_val, half_val, uint32_val, uint64_val.
                (7 | 10 | 11 | 13 | 16 | 17, Field::Varint(bits)) => tensor.keep(bits),
                (7 | 10 | 11 | 13 | 16 | 17, Field::Bytes(packed)) => {
                    if let Some(bits) = varints(packed).next() {
                        tensor.keep(bits?);
                    }
                }
                _ => {}
            }
        }
        Ok(tensor)
    }

    fn keep(&mut self, bits: u64) {
        self.first.get_or_insert(bits);
    }

    /// The number, if the tensor has one element.
    fn scalar(&self) -> Result<Option<f64>, Malformed> {
        let Some(bytes) = width(self.dtype) else { return Ok(None) };
        if elements(self.shape)? != 1 || self.content.len() > bytes {
            return Ok(None);
        }
        let bits = if self.content.is_empty() {
            // An omitted value is zero.
            self.first.unwrap_or(0)
        } else {
            let mut word = [0; 8];
            word[..self.content.len()].copy_from_slice(self.content);
            u64::from_le_bytes(word)
        };
        Ok(number(self.dtype, bits))
    }
}

/// Bytes of an element of a numeric type.
fn width(dtype: u64) -> Option<usize> {
    Some(match dtype {
        4 | 6 | 10 => 1,
        5 | 14 | 17 | 19 => 2,
        1 | 3 | 22 => 4,
        2 | 9 | 23 => 8,
        _ => return None,
    })
}

/// The number represented by `bits`; 64-bit integers beyond 2⁵³ are rounded.
fn number(dtype: u64, bits: u64) -> Option<f64> {
    Some(match dtype {
        1 => f64::from(f32::from_bits(bits as u32)),
        2 => f64::from_bits(bits),
        3 => f64::from(bits as i32),
        4 => f64::from(bits as u8),
        5 => f64::from(bits as i16),
        6 => f64::from(bits as i8),
        9 => bits as i64 as f64,
        10 => f64::from(u8::from(bits != 0)),
        14 => bf16::from_bits(bits as u16).to_f64(),
        17 => f64::from(bits as u16),
        19 => f16::from_bits(bits as u16).to_f64(),
        22 => f64::from(bits as u32),
        23 => bits as f64,
        _ => return None,
    })
}

/// Number of elements of a `TensorShapeProto`; `None` if the rank is unknown.
fn elements(shape: &[u8]) -> Result<u64, Malformed> {
    let mut product = 1_u64;
    for field in Fields::new(shape) {
        match field? {
            (2, Field::Bytes(dimension)) => {
                let mut size = 0;
                for field in Fields::new(dimension) {
                    if let (1, Field::Varint(value)) = field? {
                        size = value;
                    }
                }
                product = product.saturating_mul(size);
            }
            (3, Field::Varint(1)) => product = 0,
            _ => {}
        }
    }
    Ok(product)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{put_bytes, put_double, put_float, put_int64, put_varint};

    /// A tensor of a type, with dimensions, and whatever holds its elements.
    fn tensor(dtype: i64, dimensions: &[i64], rest: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut shape = Vec::new();
        for size in dimensions {
            let mut dimension = Vec::new();
            put_int64(&mut dimension, 1, *size);
            put_bytes(&mut shape, 2, &dimension);
        }
        let mut out = Vec::new();
        put_int64(&mut out, 1, dtype);
        put_bytes(&mut out, 2, &shape);
        rest(&mut out);
        out
    }

    fn packed(numbers: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        numbers.iter().for_each(|number| put_varint(&mut out, *number));
        out
    }

    #[track_caller]
    fn check(tensor: Vec<u8>, expect: Option<f64>) {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, b"t");
        put_bytes(&mut message, 8, &tensor);
        assert_eq!(scalar(&message), expect);
    }

    /// What the value alone says.
    fn scalar(message: &[u8]) -> Option<f64> {
        let value = value(message).unwrap();
        assert_eq!(value.tag, "t");
        Plugins::default().scalar(&value)
    }

    /// A value `t` with metadata that name a plugin.
    fn of_plugin(plugin: &str) -> Vec<u8> {
        let (mut data, mut metadata, mut message) = (Vec::new(), Vec::new(), Vec::new());
        put_bytes(&mut data, 1, plugin.as_bytes());
        put_bytes(&mut metadata, 1, &data);
        put_bytes(&mut message, 1, b"t");
        put_bytes(&mut message, 9, &metadata);
        message
    }

    #[test]
    fn tensors_of_every_type_given_one_by_one() {
        check(tensor(1, &[], |out| put_float(out, 5, 0.5)), Some(0.5));
        check(tensor(1, &[], |out| put_bytes(out, 5, &0.5_f32.to_le_bytes())), Some(0.5));
        check(tensor(2, &[], |out| put_double(out, 6, 0.1)), Some(0.1));
        check(tensor(2, &[], |out| put_bytes(out, 6, &0.1_f64.to_le_bytes())), Some(0.1));
        check(tensor(3, &[], |out| put_int64(out, 7, -7)), Some(-7.0));
        check(tensor(3, &[], |out| put_bytes(out, 7, &packed(&[7]))), Some(7.0));
        check(tensor(4, &[], |out| put_int64(out, 7, 255)), Some(255.0));
        check(tensor(5, &[], |out| put_int64(out, 7, -300)), Some(-300.0));
        check(tensor(6, &[], |out| put_int64(out, 7, -3)), Some(-3.0));
        check(tensor(9, &[], |out| put_int64(out, 10, -(1 << 40))), Some(-(2.0_f64.powi(40))));
        check(tensor(10, &[], |out| put_int64(out, 11, 1)), Some(1.0));
        check(tensor(14, &[], |out| put_int64(out, 13, 0x3fc0)), Some(1.5));
        check(tensor(17, &[], |out| put_int64(out, 7, 65_535)), Some(65_535.0));
        check(tensor(19, &[], |out| put_int64(out, 13, 0x3e00)), Some(1.5));
        check(tensor(22, &[], |out| put_int64(out, 16, 4_000_000_000)), Some(4e9));
        check(tensor(23, &[], |out| put_int64(out, 17, -1)), Some(2.0_f64.powi(64)));
    }

    #[test]
    fn tensors_given_as_memory() {
        check(tensor(1, &[], |out| put_bytes(out, 4, &1.5_f32.to_le_bytes())), Some(1.5));
        check(tensor(2, &[], |out| put_bytes(out, 4, &(-1.5_f64).to_le_bytes())), Some(-1.5));
        check(tensor(5, &[], |out| put_bytes(out, 4, &(-2_i16).to_le_bytes())), Some(-2.0));
        check(tensor(6, &[], |out| put_bytes(out, 4, &(-2_i8).to_le_bytes())), Some(-2.0));
        check(tensor(19, &[], |out| put_bytes(out, 4, &[0x00, 0x3e])), Some(1.5));
    }

    #[test]
    fn one_element_in_any_rank_and_zero_when_left_out() {
        check(tensor(1, &[1, 1], |out| put_float(out, 5, 2.0)), Some(2.0));
        check(tensor(1, &[], |_| {}), Some(0.0));
        check(tensor(3, &[1], |_| {}), Some(0.0));
    }

    #[test]
    fn what_is_not_one_number_is_no_scalar() {
        check(tensor(1, &[2], |out| put_float(out, 5, 2.0)), None);
        check(tensor(1, &[0], |_| {}), None);
        check(tensor(1, &[i64::MAX, i64::MAX], |_| {}), None);
        check(tensor(1, &[], |out| put_bytes(out, 4, &[0; 8])), None);
        check(tensor(7, &[], |out| put_bytes(out, 8, b"text")), None);
        check(tensor(8, &[], |_| {}), None);
        check(tensor(99, &[], |_| {}), None);
    }

    #[test]
    fn a_tensor_of_another_plugin_is_no_scalar() {
        for (plugin, expect) in [("scalars", Some(2.0)), ("", Some(2.0)), ("text", None), ("hparams", None)] {
            let mut message = of_plugin(plugin);
            put_bytes(&mut message, 8, &tensor(1, &[], |out| put_float(out, 5, 2.0)));
            assert_eq!(scalar(&message), expect, "{plugin}");
        }
    }

    #[test]
    fn a_simple_value_is_a_scalar_whatever_its_plugin() {
        let mut message = of_plugin("custom");
        put_float(&mut message, 2, 0.5);
        assert_eq!(scalar(&message), Some(0.5));
    }

    #[test]
    fn a_plugin_named_once_counts_for_the_later_values_of_the_tag() {
        let number = tensor(1, &[], |out| put_float(out, 5, 2.0));
        let (mut named, mut bare, mut other) = (of_plugin("text"), Vec::new(), Vec::new());
        for (message, tag) in [(&mut bare, b"t"), (&mut other, b"u")] {
            put_bytes(message, 1, tag);
            put_bytes(message, 8, &number);
        }
        put_bytes(&mut named, 8, &number);
        let mut plugins = Plugins::default();
        let found = [&named, &bare, &other].map(|message| plugins.scalar(&value(message).unwrap()));
        assert_eq!(found, [None, None, Some(2.0)]);
    }

    #[test]
    fn several_values_in_an_event() {
        let (mut summary, mut message) = (Vec::new(), Vec::new());
        for (tag, number) in [("a", 1.0), ("b", -0.0)] {
            let mut value = Vec::new();
            put_bytes(&mut value, 1, tag.as_bytes());
            put_float(&mut value, 2, number);
            put_bytes(&mut summary, 1, &value);
        }
        put_double(&mut message, 1, 12.5);
        put_int64(&mut message, 2, -3);
        put_bytes(&mut message, 5, &summary);
        let event = event(&message).unwrap();
        assert_eq!((event.wall_time, event.step), (12.5, -3));
        let values: Vec<_> = values(&event)
            .map(|value| value.unwrap().unwrap())
            .map(|value| (value.tag, Plugins::default().scalar(&value)))
            .collect();
        assert_eq!(values, [("a", Some(1.0)), ("b", Some(-0.0))]);
    }

    #[test]
    fn a_name_that_is_no_text_is_malformed() {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, &[0xff]);
        assert_eq!(value(&message), Err(Malformed));
    }
}
