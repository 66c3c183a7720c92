//! Writing a file: header first, tensors in order, under a temporary name until all is there.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use super::read::{ALIGNMENT, MAGIC, number_of};
use crate::atomic::{persist, temporary_file};
use crate::dtype::{Dtype, byte_size};
use crate::error::CheckpointError;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
}

impl Meta {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let list = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(x) => {
                out.extend(4u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Self::F32(x) => {
                out.extend(6u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Self::Bool(x) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*x));
            }
            Self::Text(text) => {
                out.extend(8u32.to_le_bytes());
                encode_text(text, out);
            }
            Self::Texts(texts) => {
                list(out, 8, texts.len());
                texts.iter().for_each(|text| encode_text(text, out));
            }
            Self::I32s(numbers) => {
                list(out, 5, numbers.len());
                out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            }
            Self::Bools(flags) => {
                list(out, 7, flags.len());
                out.extend(flags.iter().map(|flag| u8::from(*flag)));
            }
            Self::F32s(numbers) => {
                list(out, 6, numbers.len());
                out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
    }
}

fn encode_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor to come.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(crate) name: String,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
}

/// Writes a file whole or not at all; `bytes` gives each tensor's when its turn comes.
pub(crate) fn write_file(
    path: &Path,
    metadata: &[(String, Meta)],
    tensors: &[Planned],
    mut bytes: impl FnMut(usize) -> Result<Vec<u8>, CheckpointError>,
) -> Result<u64, CheckpointError> {
    let io = |e| CheckpointError::io(path, "write", e);
    let (header, sizes) = header(path, metadata, tensors)?;
    let mut file = temporary_file(path)?;
    file.write_all(&header).map_err(io)?;
    let mut written = header.len() as u64;
    for (i, (tensor, size)) in tensors.iter().zip(sizes).enumerate() {
        let mut data = bytes(i)?;
        if data.len() != size {
            let reason = format!("{size} bytes planned, {} given", data.len());
            return Err(CheckpointError::tensor(path, &tensor.name, reason));
        }
        data.resize(size.next_multiple_of(ALIGNMENT), 0);
        file.write_all(&data).map_err(io)?;
        written += data.len() as u64;
    }
    persist(file, path)?;
    Ok(written)
}

/// All that comes before the tensors, and the bytes of each.
fn header(
    path: &Path,
    metadata: &[(String, Meta)],
    tensors: &[Planned],
) -> Result<(Vec<u8>, Vec<usize>), CheckpointError> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        encode_text(key, &mut out);
        value.encode(&mut out);
    }
    let (mut names, mut sizes, mut offset) = (BTreeSet::new(), Vec::with_capacity(tensors.len()), 0u64);
    for Planned { name, shape, dtype } in tensors {
        let fault = |reason: String| CheckpointError::tensor(path, name, reason);
        if !names.insert(name) {
            return Err(fault("planned twice".into()));
        }
        let number = number_of(*dtype).ok_or_else(|| fault(format!("GGUF files cannot hold {dtype}")))?;
        let size = byte_size(shape, *dtype).ok_or_else(|| fault(format!("shape {shape:?} overflows")))?;
        encode_text(name, &mut out);
        out.extend((shape.len() as u32).to_le_bytes());
        out.extend(shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
        out.extend(number.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += size.next_multiple_of(ALIGNMENT) as u64;
        sizes.push(size);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok((out, sizes))
}
