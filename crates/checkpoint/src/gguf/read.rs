//! The layout of a GGUF file: magic, version, counts, metadata, descriptions of tensors, their bytes.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Counts and lengths are believed only as far as the
//! file reaches; nothing is allocated by them.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};

use lowrank_spec::BlockFormat;

use super::value::{Array, Kind, Metadata, Value};
use crate::dtype::{Dtype, byte_size};
use crate::error::{Fault, excerpt};

/// First bytes of a file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// Where tensors begin unless the metadata say otherwise.
pub(crate) const ALIGNMENT: usize = 32;
/// The key of another alignment.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
/// Dimensions that a tensor has at most.
const MAX_DIMS: u32 = 4;
/// Longest name of a key or a tensor.
const MAX_NAME: usize = 65_535;

/// A model's file, or all of its files, parsed.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) files: Vec<&'a [u8]>,
    /// Of the first file.
    pub(crate) metadata: Metadata<'a>,
    pub(crate) tensors: BTreeMap<&'a str, Tensor>,
}

impl<'a> Parsed<'a> {
    /// The bytes of one of the tensors.
    pub(crate) fn bytes(&self, tensor: &Tensor) -> &'a [u8] {
        let file = self.files.get(tensor.source).copied().unwrap_or_default();
        file.get(tensor.start..tensor.start + tensor.len).unwrap_or_default()
    }

    /// Adds the tensors of a further file.
    pub(crate) fn add(&mut self, part: Parsed<'a>) -> Result<(), Fault> {
        for (name, mut tensor) in part.tensors {
            tensor.source += self.files.len();
            if self.tensors.insert(name, tensor).is_some() {
                return Err(Fault::tensor(name, "is in an earlier part of the model as well"));
            }
        }
        self.files.extend(part.files);
        Ok(())
    }
}

/// A tensor as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    /// Index of its file.
    pub(crate) source: usize,
    /// First byte in the file, and bytes.
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Takes a file apart.
pub(crate) fn parse(file: &[u8]) -> Result<Parsed<'_>, Fault> {
    let mut reader = Reader::new(file);
    if reader.take(4)? != MAGIC {
        return Err(Fault::file("not a GGUF file"));
    }
    let version = reader.u32()?;
    match version {
        2 | 3 => {}
        1 => return Err(Fault::file("GGUF version 1 is not supported; convert the model again")),
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return Err(Fault::file(
                "a big-endian GGUF file is not supported; convert it with gguf_convert_endian.py of llama.cpp",
            ));
        }
        _ => return Err(Fault::file(format!("GGUF version {version} is not supported; expected 2 or 3"))),
    }
    let (n_tensors, n_keys) = (reader.u64()?, reader.u64()?);
    let metadata = metadata(&mut reader, n_keys)?;
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => ALIGNMENT,
        Some(value) => {
            let fits = |n: &usize| n.is_power_of_two() && (8..=1 << 20).contains(n);
            let alignment = value.as_count().and_then(|n| usize::try_from(n).ok()).filter(fits);
            alignment.ok_or_else(|| {
                Fault::file(format!("{ALIGNMENT_KEY} is {value:?}; expected a power of two from 8 on"))
            })?
        }
    };
    let mut described = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..n_tensors {
        let tensor = describe(&mut reader)?;
        if !names.insert(tensor.0) {
            return Err(Fault::tensor(tensor.0, "two tensors of this name"));
        }
        described.push(tensor);
    }
    let data = reader.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    Ok(Parsed { files: vec![file], metadata, tensors: place(described, data, file.len(), alignment)? })
}

fn metadata<'a>(reader: &mut Reader<'a>, count: u64) -> Result<Metadata<'a>, Fault> {
    let mut metadata = Metadata::new();
    for _ in 0..count {
        let key = reader.name("a key of the metadata")?;
        let kind = reader.kind(key)?;
        let value = match kind {
            Kind::Array => Value::Array(reader.array(key)?),
            kind => reader.scalar(kind).map_err(|fault| at_key(key, fault))?,
        };
        match metadata.entry(key) {
            Slot::Vacant(slot) => drop(slot.insert(value)),
            Slot::Occupied(_) => {
                return Err(Fault::file(format!("two entries '{}' in the metadata", excerpt(key))));
            }
        }
    }
    Ok(metadata)
}

/// Names the key of a value that cannot be read.
fn at_key(key: &str, fault: Fault) -> Fault {
    match fault {
        Fault::File(reason) => Fault::file(format!("metadata '{}': {reason}", excerpt(key))),
        other => other,
    }
}

/// A tensor before its place in the file is known: name, shape, type, offset in the data.
type Described<'a> = (&'a str, Vec<usize>, Dtype, u64);

fn describe<'a>(reader: &mut Reader<'a>) -> Result<Described<'a>, Fault> {
    let name = reader.name("a tensor's name")?;
    let n_dims = reader.u32()?;
    if n_dims > MAX_DIMS {
        return Err(Fault::tensor(name, format!("has {n_dims} dimensions; expected at most {MAX_DIMS}")));
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        let dim = reader.u64()?;
        let dim = usize::try_from(dim).map_err(|_| Fault::tensor(name, format!("has a dimension {dim}")))?;
        shape.push(dim);
    }
    // The file has the innermost dimension first.
    shape.reverse();
    let number = reader.u32()?;
    let dtype = dtype(number).map_err(|known| {
        let name_of_type = known.map_or_else(|| format!("number {number}"), str::to_owned);
        Fault::tensor(
            name,
            format!("type {name_of_type} is not supported; quantize the model again to one of {}", types()),
        )
    })?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(dtype.unit_len()) {
        let reason = format!("rows of {row} elements do not fill whole blocks of {dtype}");
        return Err(Fault::tensor(name, reason));
    }
    Ok((name, shape, dtype, reader.u64()?))
}

/// The element type of a number in the file; the error is llama.cpp's name of one that is not supported.
fn dtype(number: u32) -> Result<Dtype, Option<&'static str>> {
    if let Some(format) = BlockFormat::from_ggml_type(number) {
        return Ok(Dtype::Block(format));
    }
    match number {
        0 => Ok(Dtype::F32),
        1 => Ok(Dtype::F16),
        24 => Ok(Dtype::I8),
        25 => Ok(Dtype::I16),
        26 => Ok(Dtype::I32),
        27 => Ok(Dtype::I64),
        28 => Ok(Dtype::F64),
        30 => Ok(Dtype::BF16),
        _ => Err(OTHER_TYPES.iter().find(|(other, _)| *other == number).map(|(_, name)| *name)),
    }
}

/// The number of an element type in a file, where it has one.
pub(crate) fn number_of(dtype: Dtype) -> Option<u32> {
    Some(match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 30,
        Dtype::Block(format) => return format.ggml_type(),
        Dtype::I8 => 24,
        Dtype::I16 => 25,
        Dtype::I32 => 26,
        Dtype::I64 => 27,
        Dtype::F64 => 28,
        Dtype::U64 | Dtype::U32 | Dtype::U16 | Dtype::U8 | Dtype::Bool => return None,
    })
}

/// Types that are known by name alone.
const OTHER_TYPES: [(u32, &str); 16] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// The types that can be read.
fn types() -> String {
    let blocks =
        BlockFormat::ALL.into_iter().filter(|format| format.ggml_type().is_some()).map(BlockFormat::name);
    ["F32", "F16", "BF16"].into_iter().chain(blocks).collect::<Vec<_>>().join(", ")
}

/// Gives each tensor its place, and checks that it is in the file and its own.
fn place(
    described: Vec<Described<'_>>,
    data: usize,
    file: usize,
    alignment: usize,
) -> Result<BTreeMap<&str, Tensor>, Fault> {
    let mut tensors = BTreeMap::new();
    let mut spans = Vec::with_capacity(described.len());
    for (name, shape, dtype, offset) in described {
        let len = byte_size(&shape, dtype)
            .ok_or_else(|| Fault::tensor(name, format!("shape {shape:?} overflows")))?;
        let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
        let inside = start.filter(|start| start.checked_add(len).is_some_and(|end| end <= file));
        let Some(start) = inside else {
            return Err(Fault::tensor(
                name,
                format!(
                    "{len} bytes from {offset} of the data lie outside the file of {file} bytes; it is truncated, \
                     download it again"
                ),
            ));
        };
        if !offset.is_multiple_of(alignment as u64) {
            let reason = format!("begins at byte {offset} of the data, no multiple of {alignment}");
            return Err(Fault::tensor(name, reason));
        }
        spans.push((start, start + len, name));
        tensors.insert(name, Tensor { shape, dtype, source: 0, start, len });
    }
    spans.sort_unstable();
    let mut reached = 0;
    for (start, end, name) in spans {
        if start < reached && end > start {
            return Err(Fault::tensor(name, "overlaps the tensor before it"));
        }
        reached = reached.max(end);
    }
    Ok(tensors)
}

/// Reads a file from front to back.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let bytes =
            self.at.checked_add(len).and_then(|end| self.file.get(self.at..end)).ok_or_else(|| {
                Fault::file(format!(
                    "ends inside its header: {len} bytes at {} of {}; the file is truncated or no GGUF file",
                    self.at,
                    self.file.len()
                ))
            })?;
        self.at += len;
        Ok(bytes)
    }

    fn array_of<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array_of()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array_of()?))
    }

    fn text(&mut self) -> Result<&'a str, Fault> {
        let len = self.u64()?;
        let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        std::str::from_utf8(bytes).map_err(|_| Fault::file("a string is not UTF-8"))
    }

    fn name(&mut self, what: &str) -> Result<&'a str, Fault> {
        let name = self.text()?;
        if name.is_empty() || name.len() > MAX_NAME {
            let len = name.len();
            return Err(Fault::file(format!("{what} has {len} bytes; expected 1 to {MAX_NAME}")));
        }
        Ok(name)
    }

    fn kind(&mut self, key: &str) -> Result<Kind, Fault> {
        let number = self.u32()?;
        Kind::from_number(number)
            .ok_or_else(|| Fault::file(format!("metadata '{}' has the unknown type {number}", excerpt(key))))
    }

    fn array(&mut self, key: &str) -> Result<Array<'a>, Fault> {
        let kind = self.kind(key)?;
        let count = self.u64()?;
        let len = usize::try_from(count).unwrap_or(usize::MAX);
        let start = self.at;
        match kind.size() {
            Some(size) => drop(self.take(len.saturating_mul(size)).map_err(|fault| at_key(key, fault))?),
            None if kind == Kind::Text => {
                for _ in 0..count {
                    self.text().map_err(|fault| at_key(key, fault))?;
                }
            }
            None => {
                let reason = format!("metadata '{}': lists of lists are not supported", excerpt(key));
                return Err(Fault::file(reason));
            }
        }
        Ok(Array { kind, len, bytes: &self.file[start..self.at] })
    }

    /// A value other than a list.
    pub(crate) fn scalar(&mut self, kind: Kind) -> Result<Value<'a>, Fault> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.array_of()?).into()),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.array_of()?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.array_of()?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.array_of()?).into()),
            Kind::U32 => Value::Unsigned(self.u32()?.into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.array_of()?).into()),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.array_of()?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.array_of()?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array_of()?)),
            Kind::Bool => match self.array_of::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(Fault::file(format!("a truth value is {other}; expected 0 or 1"))),
            },
            Kind::Text => Value::Text(self.text()?),
            Kind::Array => return Err(Fault::file("lists of lists are not supported")),
        })
    }
}
