//! Writing a whole safetensors file at once.

use std::{collections::BTreeMap, io::Write, path::Path};

use lowrank_spec::HostTensor;
use serde_json::{Map, Value, json};

use crate::{
    CheckpointError, Dtype, FloatType,
    atomic::{persist, temporary_file},
    convert::encode,
    dtype::{byte_size, numel},
    error::excerpt,
    header::MAX_HEADER,
};

/// Number of elements converted and written at a time.
pub(crate) const BATCH: usize = 1 << 18;

/// Writes one safetensors file completely or not at all, replacing an existing one.
///
/// `metadata` gets the entry `"format": "pt"` that transformers requires, unless it has one. Tensors are laid
/// out by name, whatever their order, so that the same tensors give the same file.
///
/// # Errors
/// [`BadTensor`](CheckpointError::BadTensor) for a name given twice or a shape that disagrees with the elements;
/// [`Overflow`](CheckpointError::Overflow) for a finite value that `dtype` cannot hold;
/// [`Io`](CheckpointError::Io), including a full disk. The destination is then unchanged.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: Vec<HostTensor<'_>>,
    dtype: FloatType,
    metadata: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    write_safetensors_with(path, tensors, dtype, Vec::new(), metadata)
}

/// A tensor as the bytes of a file, little-endian and in row-major order.
#[derive(Clone, Debug)]
pub struct RawTensor<'a> {
    /// The key in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: &'a [u8],
}

/// Like [`write_safetensors`], with additional tensors that are written unchanged after those in `dtype`.
///
/// # Errors
/// As [`write_safetensors`].
pub fn write_safetensors_with(
    path: impl AsRef<Path>,
    mut tensors: Vec<HostTensor<'_>>,
    dtype: FloatType,
    mut raw: Vec<RawTensor<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let path = path.as_ref();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    raw.sort_by(|a, b| a.name.cmp(&b.name));
    for tensor in &raw {
        if byte_size(&tensor.shape, tensor.dtype) != Some(tensor.bytes.len()) {
            let (shape, bytes) = (&tensor.shape, tensor.bytes.len());
            let reason = format!("shape {shape:?} of {} given for {bytes} bytes", tensor.dtype);
            return Err(CheckpointError::tensor(path, &tensor.name, reason));
        }
    }
    for tensor in &tensors {
        if numel(&tensor.shape) != Some(tensor.data.len()) {
            let reason = format!("shape {:?} given for {} elements", tensor.shape, tensor.data.len());
            return Err(CheckpointError::tensor(path, &tensor.name, reason));
        }
    }
    let described = tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), Dtype::from(dtype)));
    let described = described.chain(raw.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.dtype)));
    let header = encode_header(path, described, metadata)?;
    let mut temporary = temporary_file(path)?;
    temporary.write_all(&header).map_err(|e| CheckpointError::io(path, "write", e))?;
    for tensor in &tensors {
        write_values(path, &tensor.name, &tensor.data, dtype, &mut temporary)?;
    }
    for tensor in &raw {
        temporary.write_all(tensor.bytes).map_err(|e| CheckpointError::io(path, "write", e))?;
    }
    persist(temporary, path)
}

/// Encodes and writes elements, one batch at a time.
pub(crate) fn write_values(
    path: &Path,
    name: &str,
    values: &[f32],
    dtype: FloatType,
    to: &mut impl Write,
) -> Result<(), CheckpointError> {
    let mut buffer = Vec::new();
    for batch in values.chunks(BATCH) {
        buffer.clear();
        encode(batch, dtype, &mut buffer).map_err(|value| CheckpointError::Overflow {
            path: path.to_owned(),
            tensor: excerpt(name),
            value,
            dtype: dtype.name(),
        })?;
        to.write_all(&buffer).map_err(|e| CheckpointError::io(path, "write", e))?;
    }
    Ok(())
}

/// The length and the header of a file with these tensors in this order, padded so that the data begin at a
/// multiple of eight.
pub(crate) fn encode_header<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], Dtype)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, CheckpointError> {
    let mut strings: Map<String, Value> =
        metadata.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect();
    strings.entry("format").or_insert_with(|| "pt".into());
    let mut object = Map::new();
    object.insert("__metadata__".to_owned(), Value::Object(strings));
    let mut offset = 0usize;
    for (name, shape, dtype) in tensors {
        if let Dtype::Block(format) = dtype {
            let reason = format!("safetensors files cannot hold {format}; write f32, f16 or bf16");
            return Err(CheckpointError::tensor(path, name, reason));
        }
        let end = byte_size(shape, dtype)
            .and_then(|size| offset.checked_add(size))
            .ok_or_else(|| CheckpointError::tensor(path, name, format!("shape {shape:?} overflows")))?;
        let described = json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [offset, end]});
        if object.insert(name.to_owned(), described).is_some() {
            return Err(CheckpointError::tensor(path, name, "name given twice, or reserved; rename one"));
        }
        offset = end;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER {
        return Err(CheckpointError::malformed(
            path,
            format!("the header would take {} bytes, more than readers accept", text.len()),
        ));
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok(header)
}
