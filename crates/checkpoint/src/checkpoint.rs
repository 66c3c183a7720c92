//! An open checkpoint: the tensors of one file or of all shards of a folder, read one at a time.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use lowrank_spec::BlockFormat;
use xxhash_rust::xxh3::Xxh3Default;

use crate::{
    CheckpointError, Dtype, TensorInfo,
    convert::{extend_bits, extend_f32, extend_f64, transpose, transpose_f32},
    error::{excerpt, nearest},
    experts::{self, FusedLayer},
    map::Bytes,
    packed::Packed,
    resolve::{self, Prefer},
    source::{Entry, Layout, Table},
};

/// Bytes that are converted before their pages are released, rounded to whole units.
const SPAN: usize = 4 << 20;

/// The tensors of a file or folder, of which only the headers have been read.
///
/// Opening reads and checks headers only. Each read copies one tensor out of the map, converted, and releases
/// the file's pages behind it, so that only the caller's data stay resident. Shared by reference between
/// threads.
///
/// Files of more than 16 MiB are mapped, smaller ones are copied into memory. A mapped file must not be changed in place
/// while the checkpoint is open (the writers of this crate never do that, they replace files): reads fail once its size or
/// time of modification has changed, but writing to it during a read is undefined behaviour, and truncating it then is a
/// SIGBUS on most systems, which ends the process; see [`report_cut_files`](crate::report_cut_files).
///
/// # Formats
/// By content, not by name: safetensors; llama.cpp's GGUF, under Hugging Face's names ([`gguf`](crate::gguf)); the zip
/// files of `torch.save` and its format from before 1.6, whose pickle
/// is interpreted by a machine that knows tensors, dictionaries, lists, strings and numbers and executes nothing.
/// Big-endian files, sparse tensors, PyTorch's quantized ones and whole pickled modules are refused.
///
/// Weights that GPTQ (2, 3, 4 and 8 bits), AWQ (4 bits, GEMM layout) or bitsandbytes (NF4 and FP4, also with
/// quantized scales; INT8) stored as several tensors are returned as one, under the name of the weight and in
/// the type of its scales or in bitsandbytes' compute type; reads in f32 and f64 are not rounded to it. Its
/// values are assembled at each read.
///
/// The fused experts of gpt-oss, in floats or MXFP4 (read as bf16), are presented one by one, as
/// `….mlp.experts.{e}.gate_proj.weight` `(out, in)` and so on; [`fuse_experts`](crate::fuse_experts) is the inverse.
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Bytes>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    fused: Vec<FusedLayer>,
}

impl Checkpoint {
    /// Opens a tensor file, a shard index (`*.index.json`), or a folder. In a folder the first of these is
    /// used: `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin`,
    /// `pytorch_model.bin.index.json`, `adapter_model.safetensors`, `adapter_model.bin`.
    ///
    /// With an index, the index defines the tensors; others in its shards are ignored.
    ///
    /// # Errors
    /// [`NoCheckpoint`](CheckpointError::NoCheckpoint) with the names tried; `Malformed`, `BadTensor` or
    /// `ForbiddenGlobal` for a file that breaks its format; `Io`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        resolve::open(path.as_ref(), Prefer::Model)
    }

    /// Like [`open`](Self::open), but in a folder with both a model and an adapter, the adapter's files are
    /// used.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_adapter(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        resolve::open(path.as_ref(), Prefer::Adapter)
    }

    /// A checkpoint in memory, in any of the formats; `label` replaces the path in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(label: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        resolve::of_bytes(label.into(), Bytes::Owned(bytes))
    }

    pub(crate) fn new(path: PathBuf, files: Vec<Bytes>, table: Table) -> Self {
        Self { path, files, tensors: table.tensors, metadata: table.metadata, fused: table.fused }
    }

    /// With these matrices of bytes, `(rows, bytes of a row)`, as blocks of a format, `(rows, columns)`.
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor); [`BadTensor`](CheckpointError::BadTensor) for one that does not hold whole
    /// blocks.
    pub fn with_blocks(mut self, formats: &BTreeMap<String, BlockFormat>) -> Result<Self, CheckpointError> {
        for (name, &format) in formats {
            self.entry(name)?;
            let Some(entry) = self.tensors.get_mut(name) else { continue };
            let size = format.block_bytes();
            let (Dtype::U8, &[rows, bytes], Layout::Contiguous { .. }) =
                (entry.info.dtype, &*entry.info.shape, &entry.layout)
            else {
                let reason = format!("is no matrix of bytes; expected rows of blocks in {format}");
                return Err(CheckpointError::tensor(&self.path, name, reason));
            };
            if !bytes.is_multiple_of(size) {
                let reason = format!("has rows of {bytes} bytes; blocks in {format} have {size}");
                return Err(CheckpointError::tensor(&self.path, name, reason));
            }
            entry.info.dtype = Dtype::Block(format);
            entry.info.shape = vec![rows, bytes / size * format.block_len()];
        }
        Ok(self)
    }

    /// The format of a matrix that is stored in blocks, also if it is read as floats because they run along its columns, and
    /// whether they do.
    pub(crate) fn block_format(&self, name: &str) -> Option<(BlockFormat, bool)> {
        let entry = self.find(name)?;
        match (entry.info.dtype, &entry.layout) {
            (Dtype::Block(format), _) => Some((format, false)),
            (_, Layout::Transposed { stored: Dtype::Block(format), .. }) => Some((*format, true)),
            _ => None,
        }
    }

    /// The blocks of such a matrix, row by row of the file.
    pub(crate) fn read_blocks(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let entry = self.entry(name)?;
        match entry.layout {
            Layout::Transposed { start, len, .. } => {
                let bytes = self.files[entry.source].as_slice().get(start..start + len);
                Ok(bytes.unwrap_or_default().to_vec())
            }
            _ => self.read_bytes(name),
        }
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The names of the tensors to copy beside those of `changed`, which are written anew.
    ///
    /// These are [`names`](Self::names) without `changed`, except that experts stay as they are stored, fused and in MXFP4
    /// (U8), if none of their layer is changed; [`info`](Self::info) and reads accept their stored names.
    pub fn unchanged<'a>(&'a self, changed: &'a BTreeSet<String>) -> impl Iterator<Item = &'a str> {
        let touched: BTreeSet<&str> = changed.iter().filter_map(|name| experts::module_of(name)).collect();
        let kept = self.fused.iter().filter(|layer| !touched.contains(&*layer.module));
        let kept: BTreeMap<&str, &FusedLayer> = kept.map(|layer| (&*layer.module, layer)).collect();
        let stored: Vec<&str> =
            kept.values().flat_map(|layer| layer.tensors.keys()).map(String::as_str).collect();
        let is_stored = move |name| experts::module_of(name).is_some_and(|module| kept.contains_key(module));
        self.names().filter(move |name| !changed.contains(*name) && !is_stored(name)).chain(stored)
    }

    /// The number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether the checkpoint is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The total bytes of all tensors, as stored; a tensor under two names counts twice.
    #[must_use]
    pub fn byte_size(&self) -> usize {
        self.tensors.values().fold(0, |sum, entry| sum.saturating_add(entry.info.byte_size()))
    }

    /// Shape and type of a tensor.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.find(name).map(|entry| &entry.info)
    }

    /// Whether a tensor is stored in MXFP4.
    pub(crate) fn is_mxfp4(&self, name: &str) -> bool {
        let entry = self.find(name);
        entry.is_some_and(|entry| match &entry.layout {
            Layout::Packed(packed) => matches!(**packed, Packed::Mxfp4 { .. }),
            _ => entry.info.dtype == Dtype::Block(BlockFormat::Mxfp4),
        })
    }

    /// Whether the checkpoint has a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The opened file; for a folder, the selected file or index inside it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The strings stored beside the tensors: safetensors' `__metadata__`, an index's `metadata`, the strings and
    /// numbers beside a `.bin`'s state dict.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The elements in row-major order as f32, from any type; f64 and integers are rounded to nearest.
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor).
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let entry = self.entry(name)?;
        if let Some(exact) = self.exact(entry)? {
            return Ok(exact);
        }
        let mut out = Vec::with_capacity(entry.info.numel());
        self.each_span(name, entry, |span| extend_f32(entry.info.dtype, span, &mut out))?;
        Ok(out)
    }

    /// The elements in row-major order as f32, `len` at a time (the last time the rest), without all of them in memory if the
    /// file stores them as they are; up to the first error.
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor), or an error of `f`.
    pub fn try_each_f32<E: From<CheckpointError>>(
        &self,
        name: &str,
        len: usize,
        mut f: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (entry, len) = (self.entry(name)?, len.max(1));
        if let Some(exact) = self.exact(entry)? {
            return exact.chunks(len).try_for_each(f);
        }
        let mut rest = Vec::new();
        self.spans(name, entry, |span| {
            extend_f32(entry.info.dtype, span, &mut rest);
            let whole = rest.len() - rest.len() % len;
            rest[..whole].chunks(len).try_for_each(&mut f)?;
            rest.drain(..whole);
            Ok::<_, E>(())
        })?;
        if rest.is_empty() { Ok(()) } else { f(&rest) }
    }

    /// The elements in row-major order as f64, from any type; 64-bit integers are rounded to nearest.
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor).
    pub fn read_f64(&self, name: &str) -> Result<Vec<f64>, CheckpointError> {
        let entry = self.entry(name)?;
        if let Some(exact) = self.exact(entry)? {
            return Ok(exact.into_iter().map(f64::from).collect());
        }
        let mut out = Vec::with_capacity(entry.info.numel());
        self.each_span(name, entry, |span| extend_f64(entry.info.dtype, span, &mut out))?;
        Ok(out)
    }

    /// A matrix `[a, b]` as the row-major f32 elements of its transpose `[b, a]`: PyTorch stores a linear
    /// layer's weight as `[d_output, d_input]`.
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor), and [`BadTensor`](CheckpointError::BadTensor) for a tensor
    /// that is not a matrix.
    pub fn read_f32_transposed(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let (entry, shape) = self.matrix(name)?;
        let file = &self.files[entry.source];
        if let Some(exact) = self.exact(entry)? {
            let [rows, columns] = shape;
            return Ok(lowrank_spec::transpose(&exact, rows, columns));
        }
        let mut out = vec![0f32; entry.info.numel()];
        match self.stored(name, entry)? {
            Cow::Borrowed(bytes) => {
                transpose_f32(entry.info.dtype, bytes, shape, &mut out, |band| file.release(band));
            }
            Cow::Owned(bytes) => transpose_f32(entry.info.dtype, &bytes, shape, &mut out, |_| ()),
        }
        file.check_unchanged()?;
        Ok(out)
    }

    /// The elements of an f16 or bf16 tensor in row-major order as their bits, without rounding.
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor), and [`BadTensor`](CheckpointError::BadTensor) for another
    /// type.
    pub fn read_bits(&self, name: &str) -> Result<Vec<u16>, CheckpointError> {
        let entry = self.half(name)?;
        let mut out = Vec::with_capacity(entry.info.numel());
        self.each_span(name, entry, |span| extend_bits(span, &mut out))?;
        Ok(out)
    }

    /// An f16 or bf16 matrix `[a, b]` as the bits of the row-major elements of its transpose `[b, a]`.
    ///
    /// # Errors
    /// As [`read_bits`](Self::read_bits), and [`BadTensor`](CheckpointError::BadTensor) for a tensor that is not a
    /// matrix.
    pub fn read_bits_transposed(&self, name: &str) -> Result<Vec<u16>, CheckpointError> {
        self.half(name)?;
        let (entry, shape) = self.matrix(name)?;
        let file = &self.files[entry.source];
        let mut out = vec![0u16; entry.info.numel()];
        match self.stored(name, entry)? {
            Cow::Borrowed(bytes) => {
                transpose(2, bytes, shape, &mut out, extend_bits, |band| file.release(band));
            }
            Cow::Owned(bytes) => transpose(2, &bytes, shape, &mut out, extend_bits, |_| ()),
        }
        file.check_unchanged()?;
        Ok(out)
    }

    /// A tensor of two dimensions.
    fn matrix(&self, name: &str) -> Result<(&Entry, [usize; 2]), CheckpointError> {
        let entry = self.entry(name)?;
        let &[rows, columns] = entry.info.shape.as_slice() else {
            let reason = format!("expected a matrix to transpose, got {} dimensions", entry.info.shape.len());
            return Err(CheckpointError::tensor(&self.path, name, reason));
        };
        Ok((entry, [rows, columns]))
    }

    /// A tensor of type f16 or bf16.
    fn half(&self, name: &str) -> Result<&Entry, CheckpointError> {
        let entry = self.entry(name)?;
        if !matches!(entry.info.dtype, Dtype::F16 | Dtype::BF16) {
            let reason = format!("expected F16 or BF16, got {}", entry.info.dtype.name());
            return Err(CheckpointError::tensor(&self.path, name, reason));
        }
        Ok(entry)
    }

    /// The little-endian bytes of a tensor in row-major order, borrowed from the map if they are stored so.
    ///
    /// Borrowed bytes stay resident once touched; [`read_bytes`](Self::read_bytes) copies and releases them.
    ///
    /// # Errors
    /// [`MissingTensor`](CheckpointError::MissingTensor).
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let entry = self.entry(name)?;
        self.stored(name, entry)
    }

    /// A copy of a tensor's bytes, whose mapped pages are released.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and a file that was changed in the meantime.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let entry = self.entry(name)?;
        let mut copy = Vec::with_capacity(entry.info.byte_size());
        self.each_span(name, entry, |span| copy.extend_from_slice(span))?;
        Ok(copy)
    }

    /// A hash of the tensors' names, types, shapes and elements, as 32 hexadecimal digits (XXH3, 128 bits).
    ///
    /// It identifies a model, whatever the format, sharding or order of its files; metadata are
    /// excluded. It does not protect against a deliberate collision. Reads every byte.
    ///
    /// # Errors
    /// A file that was changed in the meantime.
    pub fn content_hash(&self) -> Result<String, CheckpointError> {
        let mut hash = Xxh3Default::new();
        for (name, entry) in &self.tensors {
            // Lengths come before what they count, so that no two contents give the same stream.
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(entry.info.dtype.name().as_bytes());
            hash.update(&(entry.info.shape.len() as u64).to_le_bytes());
            for &dim in &entry.info.shape {
                hash.update(&(dim as u64).to_le_bytes());
            }
            match self.each_span(name, entry, |span| hash.update(span)) {
                // Values outside the range of their type are hashed in f32.
                Err(CheckpointError::Overflow { .. }) => {
                    let exact = self.exact(entry)?.unwrap_or_default();
                    exact.iter().for_each(|x| hash.update(&x.to_le_bytes()));
                }
                result => result?,
            }
        }
        Ok(format!("{:032x}", hash.digest128()))
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        let stored = || self.fused.iter().find_map(|layer| layer.tensors.get(name));
        self.tensors.get(name).or_else(stored)
    }

    fn entry(&self, name: &str) -> Result<&Entry, CheckpointError> {
        self.find(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            tensor: excerpt(name),
            count: self.tensors.len(),
            nearest: nearest(name, self.names())
                .map_or_else(|| "none".to_owned(), |near| format!("'{}'", excerpt(near))),
        })
    }

    /// Passes a tensor's bytes on in spans of whole elements, releasing each span's pages after it.
    fn each_span(&self, name: &str, entry: &Entry, mut f: impl FnMut(&[u8])) -> Result<(), CheckpointError> {
        self.spans(name, entry, |span| {
            f(span);
            Ok(())
        })
    }

    /// Like [`each_span`](Self::each_span), by name, up to the first error.
    pub(crate) fn try_each_span(
        &self,
        name: &str,
        f: impl FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        self.spans(name, self.entry(name)?, f)
    }

    /// As [`Entry::exact`].
    fn exact(&self, entry: &Entry) -> Result<Option<Vec<f32>>, CheckpointError> {
        self.check_unchanged(entry)?;
        let exact = entry.exact(&self.files);
        self.check_unchanged(entry)?;
        Ok(exact)
    }

    /// Refuses the tensor if a file that it is read from has been changed.
    fn check_unchanged(&self, entry: &Entry) -> Result<(), CheckpointError> {
        match entry.layout {
            Layout::Packed(_) => self.files.iter().try_for_each(Bytes::check_unchanged),
            _ => self.files[entry.source].check_unchanged(),
        }
    }

    /// The bytes of a tensor in its type.
    fn stored(&self, name: &str, entry: &Entry) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.check_unchanged(entry)?;
        entry.bytes(&self.files).map_err(|value| CheckpointError::Overflow {
            path: self.path.clone(),
            tensor: excerpt(name),
            value,
            dtype: entry.info.dtype.name(),
        })
    }

    fn spans<E: From<CheckpointError>>(
        &self,
        name: &str,
        entry: &Entry,
        mut f: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = &self.files[entry.source];
        let result = match self.stored(name, entry)? {
            Cow::Borrowed(bytes) => {
                bytes.chunks(SPAN - SPAN % entry.info.dtype.size()).try_for_each(|span| {
                    f(span)?;
                    file.release(span);
                    Ok(())
                })
            }
            Cow::Owned(bytes) => f(&bytes),
        };
        // First, since a system call that reads a map past a file's new end fails too.
        self.check_unchanged(entry)?;
        result
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("files", &self.files.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
