//! Weights that several tensors store, read as the one matrix that they stand for.
//!
//! Pivoted factors of our own compressed models, and quantized weights of GPTQ, AWQ, bitsandbytes and MXFP4, read as floats in the type of their
//! scales, in bitsandbytes' compute type or, for MXFP4, in bf16; reads in f32 are exact.
//!
//! Layouts: AutoGPTQ's `qlinear` (Frantar et al. 2023), AutoAWQ's GEMM (Lin et al. 2024), `Linear4bit` and `Linear8bitLt` of
//! bitsandbytes (Dettmers et al. 2022, 2023).

use std::{path::Path, sync::Arc};

use lowrank_spec::{
    names::{PIVOTS, WeightPart},
    transpose,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    CheckpointError, Dtype, TensorInfo,
    convert::{encode, extend_f32},
    dtype::FloatType,
    error::{Fault, excerpt},
    experts,
    map::Bytes,
    source::{Entry, Layout, Table},
};

/// A weight and its parts.
#[derive(Debug)]
pub(crate) enum Packed {
    /// `s·(q − z)` for each group of inputs.
    Groups(Groups),
    /// An entry of a table for each element, times a factor for each block of them.
    Codes(Codes),
    /// 8 bits with a factor for each row: `q·s/127`.
    Rows { values: Entry, scales: Entry },
    /// A factor of a compressed model without its rows of the identity.
    Pivots { rest: Entry, mask: Entry },
    /// Blocks of 32 codes in 16 bytes with a power of two for each.
    Mxfp4 { blocks: Entry, scales: Entry },
    /// The transpose of a weight of this shape.
    Transposed { weight: Arc<Packed>, shape: [usize; 2] },
}

/// GPTQ's or AWQ's words.
#[derive(Debug)]
pub(crate) struct Groups {
    is_awq: bool,
    bits: usize,
    d_input: usize,
    d_output: usize,
    values: Entry,
    zeros: Entry,
    scales: Entry,
    /// The group of each input, if they are not in order.
    index: Option<Entry>,
    group_size: usize,
    /// Offset of a stored zero point.
    zero_offset: u32,
}

/// bitsandbytes' blocks of 4 bits.
#[derive(Debug)]
pub(crate) struct Codes {
    numel: usize,
    block: usize,
    values: Entry,
    table: Entry,
    scales: Entry,
    nested: Option<Nested>,
}

/// Block factors that are themselves in 8 bits.
#[derive(Debug)]
struct Nested {
    table: Entry,
    scales: Entry,
    block: usize,
    offset: f32,
}

/// `quant_state` of a tensor of bitsandbytes.
#[derive(Deserialize)]
struct QuantState {
    blocksize: usize,
    shape: Vec<usize>,
    /// The type in which the model computes.
    dtype: Option<String>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

const STATE: &str = ".quant_state.bitsandbytes__";
/// The nibble that holds each of eight neighbouring outputs.
const AWQ_NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Combines the parts of quantized weights under the names of the weights, and splits fused experts.
///
/// # Errors
/// Parts that are missing or do not match, an unsupported variant.
pub(crate) fn resolve(path: &Path, files: &[Bytes], table: &mut Table) -> Result<(), CheckpointError> {
    let names = |end: &str| -> Vec<String> {
        table.tensors.keys().filter_map(|name| name.strip_suffix(end)).map(str::to_owned).collect()
    };
    let (groups, rows) = (names(".qweight"), names(".SCB"));
    let pivoted = names(&format!(".{PIVOTS}"));
    let states: Vec<String> = table.tensors.keys().filter(|name| name.contains(STATE)).cloned().collect();
    if !groups.is_empty() {
        let settings = Settings::read(path).map_err(|reason| CheckpointError::malformed(path, reason))?;
        for module in groups {
            let fault = |reason: String| Fault::tensor(&format!("{module}.qweight"), reason).at(path);
            let packed = Groups::take(table, &module, &settings, files).map_err(fault)?;
            let (name, shape) = (format!("{module}.weight"), vec![packed.d_output, packed.d_input]);
            let dtype = packed.scales.info.dtype;
            insert(table, &name, shape, dtype, Packed::Groups(packed)).map_err(fault)?;
        }
    }
    for module in rows {
        let fault = |reason: String| Fault::tensor(&format!("{module}.SCB"), reason).at(path);
        take_rows(table, &module, files).map_err(fault)?;
    }
    for module in pivoted {
        let fault = |reason: String| Fault::tensor(&format!("{module}.{PIVOTS}"), reason).at(path);
        take_pivots(table, &module, files).map_err(fault)?;
    }
    for name in states {
        let fault = |reason: String| Fault::tensor(&name, reason).at(path);
        take_codes(table, &name, files).map_err(fault)?;
    }
    present_conv1d(path, table);
    experts::split(path, table)
}

/// Ends of the names of weights that GPT-2's `Conv1D` has as `(in, out)`.
const CONV1D: [&str; 3] = [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"];

/// Presents quantized weights of GPT-2's `Conv1D` as `[d_input, d_output]`, as its other files have them: quantizers make linear
/// layers of these modules, whose weights are `[d_output, d_input]`.
fn present_conv1d(path: &Path, table: &mut Table) {
    let is_conv1d = |name: &str| CONV1D.iter().any(|end| name.ends_with(end));
    let weights = table.tensors.iter_mut().filter(|(name, _)| is_conv1d(name));
    let mut packed = weights
        .filter_map(|(_, entry)| match (&entry.layout, &*entry.info.shape) {
            (Layout::Packed(weight), &[rows, columns]) => Some((Arc::clone(weight), [rows, columns], entry)),
            _ => None,
        })
        .peekable();
    let is_gpt2 = || json_beside(path, "config.json").is_some_and(|config| config["model_type"] == "gpt2");
    if packed.peek().is_none() || !is_gpt2() {
        return;
    }
    for (weight, shape, entry) in packed {
        entry.info.shape.reverse();
        entry.layout = Layout::Packed(Arc::new(Packed::Transposed { weight, shape }));
    }
}

/// A JSON file in the folder of a checkpoint.
fn json_beside(checkpoint: &Path, name: &str) -> Option<Value> {
    let folder = checkpoint.parent().unwrap_or(Path::new(""));
    serde_json::from_slice(&lowrank_spec::read_file(folder.join(name)).ok()?).ok()
}

fn insert(
    table: &mut Table,
    name: &str,
    shape: Vec<usize>,
    dtype: Dtype,
    packed: Packed,
) -> Result<(), String> {
    let info = TensorInfo { dtype, shape };
    put(table, name, Entry { info, source: 0, layout: Layout::Packed(Arc::new(packed)) })
}

pub(crate) fn put(table: &mut Table, name: &str, entry: Entry) -> Result<(), String> {
    match table.tensors.insert(name.to_owned(), entry) {
        None => Ok(()),
        Some(_) => Err(format!("'{}' is there as well; expected one of them", excerpt(name))),
    }
}

pub(crate) fn take(table: &mut Table, name: &str) -> Result<Entry, String> {
    table.tensors.remove(name).ok_or_else(|| format!("'{}' is missing", excerpt(name)))
}

pub(crate) fn expect(entry: &Entry, what: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<(), String> {
    let TensorInfo { dtype, shape: found } = &entry.info;
    if found != shape || !dtypes.contains(dtype) {
        let names: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
        return Err(format!(
            "{what} is {} {found:?}; expected {} {shape:?}",
            dtype.name(),
            names.join(" or ")
        ));
    }
    Ok(())
}

/// The settings of a `quantization_config` that the tensors do not determine.
#[derive(Debug, Default)]
struct Settings {
    group_size: Option<usize>,
    /// Whether zero points are stored unchanged instead of minus 1.
    has_plain_zeros: bool,
}

impl Settings {
    /// From the config beside a checkpoint.
    fn read(checkpoint: &Path) -> Result<Self, String> {
        let json = |name: &str| json_beside(checkpoint, name);
        let section = json("config.json").and_then(|config| config.get("quantization_config").cloned());
        let Some(section) = section.or_else(|| json("quantize_config.json")) else {
            return Ok(Self::default());
        };
        let text = |key: &str| section.get(key).and_then(Value::as_str);
        let group_size = ["group_size", "q_group_size"].iter().find_map(|key| section.get(*key)?.as_u64());
        let is_awq = text("quant_method").or(text("method")) == Some("awq");
        if let Some(version) =
            text("version").filter(|version| is_awq && !version.eq_ignore_ascii_case("gemm"))
        {
            return Err(format!("AWQ in its layout '{}' is not supported; gemm is", excerpt(version)));
        }
        // The former is the newer name; some write both.
        let format = text("format").or(text("checkpoint_format")).unwrap_or("gptq");
        if !is_awq && !["gptq", "gptq_v2"].contains(&format) {
            return Err(format!(
                "GPTQ in the format '{}' is not supported; gptq and gptq_v2 are",
                excerpt(format)
            ));
        }
        Ok(Self {
            group_size: group_size.and_then(|n| usize::try_from(n).ok()),
            has_plain_zeros: format == "gptq_v2",
        })
    }
}

impl Groups {
    fn take(table: &mut Table, module: &str, settings: &Settings, files: &[Bytes]) -> Result<Self, String> {
        let [values, zeros, scales] = ["qweight", "qzeros", "scales"].map(|part| format!("{module}.{part}"));
        let (values, zeros, scales) = (take(table, &values)?, take(table, &zeros)?, take(table, &scales)?);
        let index = table.tensors.remove(&format!("{module}.g_idx"));
        let (&[words, width], &[n_groups, d_output]) = (&*values.info.shape, &*scales.info.shape) else {
            return Err("expected matrices of words and scales".into());
        };
        if n_groups == 0 || d_output == 0 || words == 0 {
            return Err("is empty".into());
        }
        // Modules of one checkpoint may differ in both, whatever the config says for all.
        let bits = zeros.info.shape.get(1).map_or(0, |n| n.saturating_mul(32) / d_output);
        let is_awq = width != d_output;
        if !(if is_awq { &[4][..] } else { &[2, 3, 4, 8] }).contains(&bits) {
            return Err(format!("{bits} bits are not supported; 2, 3, 4 and 8 are, and 4 of AWQ"));
        }
        if !(d_output * bits).is_multiple_of(32) || !(words * 32).is_multiple_of(bits) {
            return Err(format!("{d_output} outputs of {bits} bits do not fill words of 32 bits"));
        }
        let d_input = if is_awq { words } else { words * 32 / bits };
        let packed_width = if is_awq { d_output * bits / 32 } else { d_output };
        expect(&values, "qweight", &[Dtype::I32, Dtype::U32], &[words, packed_width])?;
        expect(&zeros, "qzeros", &[Dtype::I32, Dtype::U32], &[n_groups, d_output * bits / 32])?;
        expect(&scales, "scales", &[Dtype::F16, Dtype::BF16, Dtype::F32], &[n_groups, d_output])?;
        if let Some(index) = &index {
            expect(index, "g_idx", &[Dtype::I32, Dtype::I64], &[d_input])?;
            let is_group = |group: i64| usize::try_from(group).is_ok_and(|group| group < n_groups);
            if let Some(group) = read_integers(index, files).into_iter().find(|&group| !is_group(group)) {
                return Err(format!("g_idx names group {group}; expected 0 to {}", n_groups - 1));
            }
        }
        let fits = |size: &usize| *size > 0 && d_input.div_ceil(*size) == n_groups;
        let even = Some(d_input / n_groups).filter(|_| d_input.is_multiple_of(n_groups));
        let group_size = settings.group_size.filter(fits).or(even);
        let Some(group_size) = group_size.or(index.as_ref().map(|_| d_input)) else {
            return Err(format!("{d_input} inputs are not in {n_groups} groups of one size"));
        };
        let zero_offset = u32::from(!is_awq && !settings.has_plain_zeros);
        Ok(Self { is_awq, bits, d_input, d_output, values, zeros, scales, index, group_size, zero_offset })
    }

    fn floats(&self, files: &[Bytes]) -> Vec<f32> {
        let &Self { is_awq, bits, d_input, d_output, .. } = self;
        let (words, zeros) = (read_words(&self.values, files), read_words(&self.zeros, files));
        let scales = read_floats(&self.scales, files);
        let order = self.index.as_ref().map(|index| read_integers(index, files));
        let mask = (1u32 << bits) - 1;
        // Values of `bits` follow each other through the words of a column, or of a row.
        let at = |words: &[u32], place: usize, stride: usize, offset: usize| {
            let (word, shift) = (place * bits / 32, place * bits % 32);
            let get = |word: usize| words.get(word * stride + offset).copied().unwrap_or_default();
            let low = get(word) >> shift;
            let high = if shift + bits > 32 { get(word + 1) << (32 - shift) } else { 0 };
            (low | high) & mask
        };
        let nibble = |words: &[u32], row: usize, output: usize| {
            let word = words.get(row * d_output / 8 + output / 8).copied().unwrap_or_default();
            word >> (4 * AWQ_NIBBLE[output % 8]) & mask
        };
        let zero_words = d_output * bits / 32;
        let mut out = vec![0f32; d_output * d_input];
        // A few outputs at a time: their words are adjacent.
        const BAND: usize = 16;
        for first in (0..d_output).step_by(BAND) {
            for i in 0..d_input {
                let group = order.as_ref().map_or(i / self.group_size, |order| order[i] as usize);
                for o in first..(first + BAND).min(d_output) {
                    let (value, zero) = if is_awq {
                        (nibble(&words, i, o), nibble(&zeros, group, o))
                    } else {
                        let zero = at(&zeros[group * zero_words..], o, 1, 0);
                        (at(&words, i, d_output, o), (zero + self.zero_offset) & mask)
                    };
                    out[o * d_input + i] = scales[group * d_output + o] * (value as f32 - zero as f32);
                }
            }
        }
        out
    }
}

fn take_rows(table: &mut Table, module: &str, files: &[Bytes]) -> Result<(), String> {
    let (weight, scales) = (format!("{module}.weight"), format!("{module}.SCB"));
    let (values, scales) = (take(table, &weight)?, take(table, &scales)?);
    if let Some(format) = table.tensors.remove(&format!("{module}.weight_format"))
        && let Some(layout) = read_floats(&format, files).into_iter().find(|&layout| layout != 0.0)
    {
        return Err(format!(
            "weight_format is {layout}, a tiled layout, which is not supported; expected 0 (row-major)"
        ));
    }
    let &[rows, columns] = &*values.info.shape else { return Err("expected a matrix as its weight".into()) };
    expect(&values, "weight", &[Dtype::I8], &[rows, columns])?;
    expect(&scales, "SCB", &[Dtype::F32], &[rows])?;
    insert(table, &weight, vec![rows, columns], Dtype::F16, Packed::Rows { values, scales })
}

fn take_pivots(table: &mut Table, module: &str, files: &[Bytes]) -> Result<(), String> {
    let name = WeightPart::FactorB.key(module);
    let (mask, rest) = (take(table, &format!("{module}.{PIVOTS}"))?, take(table, &name)?);
    let &[others, rank] = &*rest.info.shape else { return Err("expected a matrix as lowrank_b".into()) };
    let rows = others.checked_add(rank).ok_or("the factor has too many rows")?;
    expect(&mask, "the mask", &[Dtype::U8], &[rows.div_ceil(8)])?;
    if !rest.info.dtype.is_float() {
        return Err(format!("lowrank_b is {}; expected floats", rest.info.dtype.name()));
    }
    let bytes = mask.plain_bytes(files);
    let ones: usize = bytes.iter().map(|byte| byte.count_ones() as usize).sum();
    let beyond = (rows..bytes.len() * 8).any(|row| is_set(&bytes, row));
    if ones != rank || beyond {
        return Err(format!("the mask has {ones} pivots among {rows} outputs; expected {rank}"));
    }
    let dtype = rest.info.dtype;
    insert(table, &name, vec![rows, rank], dtype, Packed::Pivots { rest, mask })
}

fn is_set(mask: &[u8], place: usize) -> bool {
    mask[place / 8] >> (place % 8) & 1 == 1
}

/// `[out, r]`, with the identity at the pivots.
fn with_identity(rest: &Entry, mask: &Entry, files: &[Bytes]) -> Vec<f32> {
    let (values, mask) = (read_floats(rest, files), mask.plain_bytes(files));
    let (others, rank) = (rest.info.shape[0], rest.info.shape[1]);
    let mut out = vec![0.0; (others + rank) * rank];
    let (mut values, mut pivot) = (values.chunks_exact(rank.max(1)), 0);
    for (place, row) in out.chunks_exact_mut(rank.max(1)).enumerate() {
        if is_set(&mask, place) {
            row[pivot] = 1.0;
            pivot += 1;
        } else if let Some(stored) = values.next() {
            row.copy_from_slice(stored);
        }
    }
    out
}

fn take_codes(table: &mut Table, state: &str, files: &[Bytes]) -> Result<(), String> {
    let name = state.split(STATE).next().unwrap_or_default().to_owned();
    let part = |part: &str| format!("{name}.{part}");
    let json = take(table, state)?;
    let json: QuantState = serde_json::from_slice(&json.plain_bytes(files))
        .map_err(|e| format!("malformed JSON: {}", excerpt(&e.to_string())))?;
    let numel = json.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).unwrap_or(usize::MAX);
    let values = take(table, &name)?;
    if matches!(values.layout, Layout::Packed(_)) {
        return Err(format!(
            "'{}' is quantized in another way as well; expected one of them",
            excerpt(&name)
        ));
    }
    let (table_of_codes, scales) = (take(table, &part("quant_map"))?, take(table, &part("absmax"))?);
    // The bytes may be stored under any type (`bnb_4bit_quant_storage`).
    if json.blocksize == 0 || values.info.byte_size() != numel.div_ceil(2) {
        return Err(format!(
            "a weight {:?} of 4 bits does not fit its {:?} bytes",
            json.shape, values.info.shape
        ));
    }
    let n_blocks = numel.div_ceil(json.blocksize);
    expect(&table_of_codes, "quant_map", &[Dtype::F32], &[16])?;
    expect(&scales, "absmax", &[Dtype::F32, Dtype::U8], &[n_blocks])?;
    let nested = if scales.info.dtype == Dtype::U8 {
        let block = json.nested_blocksize.filter(|&n| n > 0).ok_or("nested_blocksize is missing")?;
        let offset = json.nested_offset.ok_or("nested_offset is missing")?;
        let [table_of_scales, scales] =
            ["nested_quant_map", "nested_absmax"].map(|name| take(table, &part(name)));
        let (table_of_scales, scales) = (table_of_scales?, scales?);
        expect(&table_of_scales, "nested_quant_map", &[Dtype::F32], &[256])?;
        expect(&scales, "nested_absmax", &[Dtype::F32], &[n_blocks.div_ceil(block)])?;
        Some(Nested { table: table_of_scales, scales, block, offset })
    } else {
        None
    };
    let dtype = match json.dtype.as_deref() {
        Some("bfloat16") => Dtype::BF16,
        Some("float32") => Dtype::F32,
        _ => Dtype::F16,
    };
    let codes = Codes { numel, block: json.blocksize, values, table: table_of_codes, scales, nested };
    insert(table, &name, json.shape, dtype, Packed::Codes(codes))
}

impl Codes {
    fn floats(&self, files: &[Bytes]) -> Vec<f32> {
        let (values, table) = (self.values.plain_bytes(files), read_floats(&self.table, files));
        let mut scales = read_floats(&self.scales, files);
        if let Some(nested) = &self.nested {
            let (codes, factors) = (read_floats(&nested.table, files), read_floats(&nested.scales, files));
            for (place, scale) in scales.iter_mut().enumerate() {
                *scale = codes[*scale as usize] * factors[place / nested.block] + nested.offset;
            }
        }
        // The first of two elements is in the upper half.
        let code = |i: usize| if i.is_multiple_of(2) { values[i / 2] >> 4 } else { values[i / 2] & 15 };
        (0..self.numel).map(|i| table[usize::from(code(i))] * scales[i / self.block]).collect()
    }
}

impl Packed {
    /// The elements, exact.
    pub(crate) fn floats(&self, files: &[Bytes]) -> Vec<f32> {
        match self {
            Self::Groups(groups) => groups.floats(files),
            Self::Codes(codes) => codes.floats(files),
            Self::Pivots { rest, mask } => with_identity(rest, mask, files),
            Self::Mxfp4 { blocks, scales } => experts::mxfp4_floats(blocks, scales, files),
            Self::Transposed { weight, shape: [rows, columns] } => {
                transpose(&weight.floats(files), *rows, *columns)
            }
            Self::Rows { values, scales } => {
                let (mut values, scales) = (read_floats(values, files), read_floats(scales, files));
                let columns = values.len() / scales.len().max(1);
                for (row, scale) in values.chunks_exact_mut(columns.max(1)).zip(scales) {
                    row.iter_mut().for_each(|x| *x *= scale * (1.0 / 127.0));
                }
                values
            }
        }
    }

    /// The little-endian bytes of the elements in a float type. The error is an element outside its range.
    pub(crate) fn bytes(&self, files: &[Bytes], dtype: Dtype) -> Result<Vec<u8>, f32> {
        let floats = self.floats(files);
        // MXFP4 has no infinity: it is a product beyond f32, whose range is that of bf16.
        if let (Self::Mxfp4 { .. }, Some(beyond)) = (self, floats.iter().find(|x| x.is_infinite())) {
            return Err(*beyond);
        }
        let float = match dtype {
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::BF16,
            _ => FloatType::F32,
        };
        let mut bytes = Vec::with_capacity(floats.len() * dtype.size());
        encode(&floats, float, &mut bytes)?;
        Ok(bytes)
    }
}

fn read_floats(entry: &Entry, files: &[Bytes]) -> Vec<f32> {
    let mut out = Vec::with_capacity(entry.info.numel());
    extend_f32(entry.info.dtype, &entry.plain_bytes(files), &mut out);
    out
}

fn read_words(entry: &Entry, files: &[Bytes]) -> Vec<u32> {
    let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).unwrap_or_default();
    entry.plain_bytes(files).chunks_exact(4).map(word).collect()
}

/// Elements of I32 or I64.
fn read_integers(entry: &Entry, files: &[Bytes]) -> Vec<i64> {
    let bytes = entry.plain_bytes(files);
    match entry.info.dtype {
        Dtype::I64 => {
            let integer = |bytes: &[u8]| bytes.try_into().map(i64::from_le_bytes).unwrap_or_default();
            bytes.chunks_exact(8).map(integer).collect()
        }
        _ => read_words(entry, files).into_iter().map(|word| i64::from(word as i32)).collect(),
    }
}
