//! Fused experts of gpt-oss: one tensor per projection holds all experts of a layer.
//!
//! | tensor | floats | MXFP4: codes, scales |
//! |---|---|---|
//! | `gate_up_proj` | `[E, d, 2f]` | `[E, 2f, d/32, 16]`, `[E, 2f, d/32]` |
//! | `gate_up_proj_bias` | `[E, 2f]` | the same |
//! | `down_proj` | `[E, f, d]` | `[E, d, f/32, 16]`, `[E, d, f/32]` |
//! | `down_proj_bias` | `[E, d]` | the same |
//!
//! Outputs of gate and up are interleaved. MXFP4: 32 codes of 4 bits (E2M1) with a power of two
//! (E8M0), as in OCP's Microscaling Formats 1.0 (2023).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use lowrank_spec::{HostTensor, transpose};

use crate::{
    CheckpointError, Dtype, TensorInfo,
    dtype::{byte_size, numel},
    error::{Fault, excerpt},
    map::Bytes,
    packed::{Packed, expect, put, take},
    source::{Entry, Layout, Table, is_contiguous, row_major},
};

/// Elements that share a scale.
const BLOCK: usize = 32;
const FLOATS: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];
const GATE_UP: &str = "gate_up_proj";
const DOWN: &str = "down_proj";
const ENDS: [&str; 3] = ["bias", "blocks", "scales"];

/// Values of the codes: a sign, two bits of exponent, one of mantissa.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// `2^(scale − 127)`; 255 is not a number.
fn e8m0(scale: u8) -> f32 {
    f32::from_bits(match scale {
        // Subnormal.
        0 => 1 << 22,
        255 => return f32::NAN,
        exponent => u32::from(exponent) << 23,
    })
}

/// The elements of blocks `[…, 16]` with their scales `[…]`; beyond f32 they are infinite.
pub(crate) fn mxfp4_floats(blocks: &Entry, scales: &Entry, files: &[Bytes]) -> Vec<f32> {
    let (blocks, scales) = (blocks.plain_bytes(files), scales.plain_bytes(files));
    let mut out = Vec::with_capacity(2 * blocks.len());
    for (block, &scale) in blocks.as_chunks::<{ BLOCK / 2 }>().0.iter().zip(&*scales) {
        let factor = e8m0(scale);
        // The first of two elements is in the lower half.
        let value = |code: u8| E2M1[usize::from(code & 15)] * factor;
        out.extend(block.iter().flat_map(|&byte| [value(byte), value(byte >> 4)]));
    }
    out
}

/// A layer of fused experts as it is stored.
#[derive(Debug)]
pub(crate) struct FusedLayer {
    pub(crate) module: String,
    pub(crate) tensors: BTreeMap<String, Entry>,
}

impl FusedLayer {
    fn of(table: &Table, module: &str) -> Self {
        let ends = ENDS.map(|end| format!("_{end}"));
        let ends = || ends.iter().map(String::as_str).chain([""]);
        let names =
            [GATE_UP, DOWN].into_iter().flat_map(|map| ends().map(move |end| format!("{module}.{map}{end}")));
        let tensors = names.filter_map(|name| table.tensors.get_key_value(&name));
        let tensors = tensors.map(|(name, entry)| (name.clone(), entry.clone())).collect();
        Self { module: module.to_owned(), tensors }
    }
}

/// Presents fused experts as the matrices and biases of each.
///
/// A layer counts as fused if it has weights with a bias, codes or scales: other models fuse experts without biases, in other
/// layouts, and a shard or an adapter may hold a bias alone.
///
/// # Errors
/// Parts that are missing or do not match; experts that are stored separately as well.
pub(crate) fn split(path: &Path, table: &mut Table) -> Result<(), CheckpointError> {
    let modules = table.tensors.keys().filter_map(|name| fused_module(name));
    let modules: BTreeSet<String> =
        modules.filter(|module| has_weights(table, module)).map(str::to_owned).collect();
    for module in modules {
        let stored = FusedLayer::of(table, &module);
        split_layer(table, &module).map_err(|fault| fault.at(path))?;
        table.fused.push(stored);
    }
    Ok(())
}

fn fused_module(name: &str) -> Option<&str> {
    let (module, part) = name.rsplit_once('.')?;
    let (projection, end) = part.rsplit_once('_')?;
    let is_fused = is_experts(module) && [GATE_UP, DOWN].contains(&projection) && ENDS.contains(&end);
    is_fused.then_some(module)
}

fn has_weights(table: &Table, module: &str) -> bool {
    let [_, blocks, scales] = ENDS;
    let has = |name: String| table.tensors.contains_key(&name);
    [GATE_UP, DOWN].iter().any(|projection| {
        let name = format!("{module}.{projection}");
        has(format!("{name}_{blocks}")) || has(format!("{name}_{scales}")) || has(name)
    })
}

fn is_experts(module: &str) -> bool {
    module.strip_suffix("experts").is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn split_layer(table: &mut Table, module: &str) -> Result<(), Fault> {
    let names = [GATE_UP, DOWN].map(|projection| format!("{module}.{projection}"));
    let [gate_up, down] =
        names.each_ref().map(|name| Fused::take(table, name).map_err(|reason| Fault::tensor(name, reason)));
    let (gate_up, down) = (gate_up?, down?);
    let [_, inner, width] = down.dims;
    if Some(gate_up.dims) != inner.checked_mul(2).map(|outputs| [down.dims[0], width, outputs]) {
        let [experts, inputs, outputs] = gate_up.dims;
        let reason = format!(
            "has {experts} experts, {inputs} inputs and {outputs} outputs; {DOWN}, of {} experts, {inner} inputs and {width} \
             outputs, requires as many experts, {width} inputs and 2·{inner} outputs",
            down.dims[0]
        );
        return Err(Fault::tensor(&names[0], reason));
    }
    for expert in 0..down.dims[0] {
        let maps = [("gate_proj", &gate_up, Some(0)), ("up_proj", &gate_up, Some(1)), (DOWN, &down, None)];
        for (map, fused, first) in maps {
            let [weight, bias] = fused.map(expert, first);
            for (part, entry) in [("weight", weight), ("bias", bias)] {
                put(table, &format!("{module}.{expert}.{map}.{part}"), entry)
                    .map_err(|reason| Fault::tensor(&names[0], reason))?;
            }
        }
    }
    Ok(())
}

/// One map of all experts.
struct Fused {
    weight: Weight,
    bias: View,
    /// Experts, inputs, outputs.
    dims: [usize; 3],
}

enum Weight {
    /// `[experts, inputs, outputs]`
    Floats(View),
    /// `[experts, outputs, blocks, 16]` and `[experts, outputs, blocks]`
    Mxfp4 { blocks: View, scales: View },
}

impl Fused {
    fn take(table: &mut Table, name: &str) -> Result<Self, String> {
        let [bias, blocks, scales] = ENDS.map(|end| format!("{name}_{end}"));
        let is_packed = [&blocks, &scales].into_iter().any(|part| table.tensors.contains_key(part));
        let (weight, dims) = if is_packed {
            let (blocks, scales) = (take(table, &blocks)?, take(table, &scales)?);
            if table.tensors.contains_key(name) {
                return Err("is stored both as floats and in MXFP4; remove one of them".into());
            }
            let &[experts, outputs, n_blocks] = &*scales.info.shape else {
                return Err(format!(
                    "its scales are {:?}; expected experts, outputs, blocks",
                    scales.info.shape
                ));
            };
            expect(&scales, "the tensor of scales", &[Dtype::U8], &[experts, outputs, n_blocks])?;
            expect(&blocks, "the tensor of blocks", &[Dtype::U8], &[experts, outputs, n_blocks, BLOCK / 2])?;
            let inputs = n_blocks.checked_mul(BLOCK).ok_or("its shape overflows")?;
            byte_size(&[outputs, inputs], Dtype::F32).ok_or("its shape overflows")?;
            (
                Weight::Mxfp4 { blocks: View::of(blocks)?, scales: View::of(scales)? },
                [experts, inputs, outputs],
            )
        } else {
            let weight = take(table, name)?;
            let &[experts, inputs, outputs] = &*weight.info.shape else {
                return Err(format!("is {:?}; expected experts, inputs, outputs", weight.info.shape));
            };
            expect(&weight, "the weight", &FLOATS, &[experts, inputs, outputs])?;
            (Weight::Floats(View::of(weight)?), [experts, inputs, outputs])
        };
        let bias = take(table, &bias)?;
        expect(&bias, "its bias", &FLOATS, &[dims[0], dims[2]])?;
        Ok(Self { weight, bias: View::of(bias)?, dims })
    }

    /// Weight `[out, in]` and bias of an expert, of all outputs or of every second one.
    fn map(&self, expert: usize, first: Option<usize>) -> [Entry; 2] {
        let outputs = |view: View| match first {
            Some(first) => view.every_second(first).entry(),
            None => view.entry(),
        };
        let weight = match &self.weight {
            Weight::Floats(view) => outputs(view.at(expert).transposed()),
            Weight::Mxfp4 { blocks, scales } => {
                let (blocks, scales) = (outputs(blocks.at(expert)), outputs(scales.at(expert)));
                Entry {
                    info: TensorInfo { dtype: Dtype::BF16, shape: vec![scales.info.shape[0], self.dims[1]] },
                    source: 0,
                    layout: Layout::Packed(Arc::new(Packed::Mxfp4 { blocks, scales })),
                }
            }
        };
        [weight, outputs(self.bias.at(expert))]
    }
}

/// A tensor of a file: byte of the first element, and the step of each dimension in elements.
#[derive(Clone)]
struct View {
    dtype: Dtype,
    source: usize,
    start: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    fn of(entry: Entry) -> Result<Self, String> {
        // The number of experts is then at most that of the file's bytes.
        if entry.info.numel() == 0 {
            return Err("is empty".into());
        }
        let Entry { info: TensorInfo { dtype, shape }, source, layout } = entry;
        let (start, strides) = match layout {
            Layout::Contiguous { start, .. } => (start, row_major(&shape)),
            Layout::Strided { start, strides } => (start, strides),
            Layout::Rows { .. } | Layout::Transposed { .. } | Layout::Packed(_) => {
                return Err("is quantized; expected floats or MXFP4 of fused experts".into());
            }
        };
        Ok(Self { dtype, source, start, shape, strides })
    }

    /// One place of the first dimension, which is dropped.
    fn at(&self, index: usize) -> Self {
        let start = self.start + index * self.strides[0] * self.dtype.size();
        let (shape, strides) = (self.shape[1..].to_vec(), self.strides[1..].to_vec());
        Self { start, shape, strides, ..*self }
    }

    /// Every second place of the first dimension, from this one on.
    fn every_second(mut self, first: usize) -> Self {
        self.start += first * self.strides[0] * self.dtype.size();
        self.shape[0] /= 2;
        self.strides[0] *= 2;
        self
    }

    fn transposed(mut self) -> Self {
        self.shape.swap(0, 1);
        self.strides.swap(0, 1);
        self
    }

    fn entry(self) -> Entry {
        let Self { dtype, source, start, shape, strides } = self;
        let info = TensorInfo { dtype, shape };
        let layout = if is_contiguous(&info.shape, &strides) {
            Layout::Contiguous { start, len: info.byte_size() }
        } else {
            Layout::Strided { start, strides }
        };
        Entry { info, source, layout }
    }
}

/// The tensors of an expert.
const PARTS: [&str; 6] = [
    "gate_proj.weight",
    "gate_proj.bias",
    "up_proj.weight",
    "up_proj.bias",
    "down_proj.weight",
    "down_proj.bias",
];

/// Fuses experts as in gpt-oss's files; the inverse of their presentation by [`Checkpoint`](crate::Checkpoint).
///
/// `P.experts.{e}.{gate_proj,up_proj,down_proj}.{weight,bias}`, weights `(out, in)`, become `P.experts.gate_up_proj`
/// `[E, d, 2f]` with the outputs of the two maps interleaved, `gate_up_proj_bias` `[E, 2f]`, `down_proj` `[E, f, d]` and
/// `down_proj_bias` `[E, d]`, in the place of the first of them. All other tensors are passed on unchanged, in their order.
/// One fused tensor at a time is assembled beside its parts.
///
/// # Errors
/// [`UnfusableExperts`](CheckpointError::UnfusableExperts) for an expert or part that is missing or given twice, shapes
/// that differ.
pub fn fuse_experts(tensors: Vec<HostTensor<'static>>) -> Result<Vec<HostTensor<'static>>, CheckpointError> {
    let mut layers: BTreeMap<&str, BTreeMap<usize, [Option<usize>; 6]>> = BTreeMap::new();
    for (place, tensor) in tensors.iter().enumerate() {
        let Some((module, expert, part)) = part_of_expert(&tensor.name) else { continue };
        let slot = &mut layers.entry(module).or_default().entry(expert).or_default()[part];
        if slot.replace(place).is_some() {
            return Err(unfusable(&tensor.name, "given twice"));
        }
    }
    let mut starts = BTreeMap::new();
    for (module, experts) in layers {
        let layer = Layer::new(module, &experts, &tensors)?;
        let start = layer.places.iter().flatten().copied().min().unwrap_or_default();
        starts.insert(start, layer);
    }
    let mut tensors: Vec<_> = tensors.into_iter().map(Some).collect();
    let mut out = Vec::new();
    for place in 0..tensors.len() {
        match starts.remove(&place) {
            Some(layer) => layer.fuse(&mut tensors, &mut out),
            None => out.extend(tensors[place].take()),
        }
    }
    Ok(out)
}

/// The module of a tensor of an expert, as layers are presented.
pub(crate) fn module_of(name: &str) -> Option<&str> {
    part_of_expert(name).map(|(module, ..)| module)
}

/// Module, number and index among [`PARTS`] of a tensor of an expert.
fn part_of_expert(name: &str) -> Option<(&str, usize, usize)> {
    let (part, stem) = PARTS
        .iter()
        .enumerate()
        .find_map(|(part, end)| Some((part, name.strip_suffix(end)?.strip_suffix('.')?)))?;
    let (module, text) = stem.rsplit_once('.')?;
    let expert = text.parse::<usize>().ok().filter(|expert| expert.to_string() == text)?;
    is_experts(module).then_some((module, expert, part))
}

fn unfusable(tensor: &str, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::UnfusableExperts { tensor: excerpt(tensor), reason: reason.into() }
}

/// Experts of a layer.
struct Layer {
    module: String,
    /// Indices of each expert's tensors, in the order of [`PARTS`].
    places: Vec<[usize; 6]>,
    width: usize,
    inner: usize,
}

impl Layer {
    fn new(
        module: &str,
        experts: &BTreeMap<usize, [Option<usize>; 6]>,
        tensors: &[HostTensor<'_>],
    ) -> Result<Self, CheckpointError> {
        let mut places = Vec::with_capacity(experts.len());
        for expert in 0..experts.len() {
            let found = experts.get(&expert).copied().unwrap_or_default();
            let mut all = [0; PARTS.len()];
            for ((place, found), part) in all.iter_mut().zip(found).zip(PARTS) {
                *place = found.ok_or_else(|| {
                    let reason = "is missing; expected the weights and biases of all experts, from 0 on";
                    unfusable(&format!("{module}.{expert}.{part}"), reason)
                })?;
            }
            places.push(all);
        }
        let gate = places.first().map(|all| &tensors[all[0]]);
        let (inner, width) = match gate.map(|gate| &*gate.shape) {
            Some(&[inner, width]) if inner > 0 && width > 0 => (inner, width),
            shape => {
                let reason = format!("is {:?}; expected (out, in)", shape.unwrap_or_default());
                return Err(unfusable(&format!("{module}.0.{}", PARTS[0]), reason));
            }
        };
        let shapes: [&[usize]; 6] =
            [&[inner, width], &[inner], &[inner, width], &[inner], &[width, inner], &[width]];
        for all in &places {
            for (&place, expected) in all.iter().zip(shapes) {
                let HostTensor { name, shape, data } = &tensors[place];
                if shape != expected || numel(shape) != Some(data.len()) {
                    let elements = data.len();
                    let reason = format!("is {shape:?} with {elements} elements; expected {expected:?}");
                    return Err(unfusable(name, reason));
                }
            }
        }
        Ok(Self { module: module.to_owned(), places, width, inner })
    }

    fn fuse(&self, tensors: &mut [Option<HostTensor<'static>>], out: &mut Vec<HostTensor<'static>>) {
        let &Self { width, inner, .. } = self;
        let count = self.places.len();
        // A bias is a weight of one input.
        for (end, inputs, bias) in [("", width, 0), ("_bias", 1, 1)] {
            let mut values = Vec::with_capacity(count * 2 * inner * inputs);
            for all in &self.places {
                let [gate, up] = [bias, 2 + bias].map(|part| elements(tensors, all[part]));
                for i in 0..inputs {
                    let pair = |j: usize| [gate[j * inputs + i], up[j * inputs + i]];
                    values.extend((0..inner).flat_map(pair));
                }
            }
            let shape = [vec![count], vec![width; 1 - bias], vec![2 * inner]].concat();
            out.push(HostTensor::new(format!("{}.{GATE_UP}{end}", self.module), shape, values));
        }
        for (end, inputs, bias) in [("", inner, 0), ("_bias", 1, 1)] {
            let mut values = Vec::with_capacity(count * width * inputs);
            for all in &self.places {
                values.extend(transpose(&elements(tensors, all[4 + bias]), width, inputs));
            }
            let shape = [vec![count], vec![inner; 1 - bias], vec![width]].concat();
            out.push(HostTensor::new(format!("{}.{DOWN}{end}", self.module), shape, values));
        }
    }
}

/// Takes the elements of a tensor.
fn elements(tensors: &mut [Option<HostTensor<'static>>], place: usize) -> Cow<'static, [f32]> {
    tensors[place].take().map(|tensor| tensor.data).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code with every scale, against the bits that the format gives a meaning.
    #[test]
    fn codes_and_scales_are_those_of_the_format() {
        let codes: Vec<u8> = (0..8).flat_map(|pair| vec![(2 * pair) | ((2 * pair + 1) << 4); 2]).collect();
        let file = Bytes::Owned([codes.repeat(256), (0..=255).collect()].concat());
        let entry = |shape: Vec<usize>, start: usize, len: usize| Entry {
            info: TensorInfo { dtype: Dtype::U8, shape },
            source: 0,
            layout: Layout::Contiguous { start, len },
        };
        let (blocks, scales) = (entry(vec![256, 1, 16], 0, 4096), entry(vec![256, 1], 4096, 256));
        let values = mxfp4_floats(&blocks, &scales, &[file]);
        assert_eq!(values.len(), 256 * BLOCK);
        for (place, value) in values.into_iter().enumerate() {
            let (scale, within) = ((place / BLOCK) as i32, place % BLOCK);
            let code = within / 4 * 2 + within % 2;
            let (exponent, mantissa) = (code as i32 >> 1 & 3, (code & 1) as f64);
            let magnitude = match exponent {
                0 => mantissa / 2.0,
                _ => (1.0 + mantissa / 2.0) * 2f64.powi(exponent - 1),
            };
            let sign = if code < 8 { 1.0 } else { -1.0 };
            let expected = sign * magnitude * 2f64.powi(scale - 127);
            match scale {
                255 => assert!(value.is_nan(), "code {code}"),
                // Doubles have the range for all others, and the cast makes infinity of what f32 cannot hold.
                _ => assert_eq!(value.to_bits(), (expected as f32).to_bits(), "code {code}, scale {scale}"),
            }
            // Nothing is lost below.
            assert!(scale == 255 || value.is_infinite() || f64::from(value) == expected);
        }
    }

    /// A shard or an adapter may hold a bias and not the rest.
    #[test]
    fn a_bias_alone_stays_as_it_is() {
        let mut table = Table::default();
        let info = TensorInfo { dtype: Dtype::F32, shape: vec![1, 2] };
        let entry = Entry { info, source: 0, layout: Layout::Contiguous { start: 0, len: 8 } };
        let name = "experts.down_proj_bias";
        table.tensors.insert(name.to_owned(), entry.clone());
        split(Path::new("x"), &mut table).unwrap();
        assert!(table.tensors.keys().eq([name]));
        table.tensors.insert("experts.gate_up_proj_scales".to_owned(), entry);
        let error = split(Path::new("x"), &mut table).unwrap_err().to_string();
        assert!(error.contains("'experts.gate_up_proj_blocks' is missing"), "{error}");
    }

    /// Views of a `.bin`: the fused tensors stored in another order of their dimensions.
    #[test]
    fn views_are_split_as_well() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let file = Bytes::Owned(values.iter().flat_map(|x| x.to_le_bytes()).collect());
        let mut table = Table::default();
        // The first is stored as `[2f, d, E]`: its element (e, i, c) is number 6·c + 2·i + e.
        let views: [(&str, &[usize], &[usize], usize); 4] = [
            ("experts.gate_up_proj", &[2, 3, 4], &[1, 2, 6], 0),
            ("experts.gate_up_proj_bias", &[2, 4], &[1, 2], 4),
            ("experts.down_proj", &[2, 2, 3], &[6, 1, 2], 0),
            ("experts.down_proj_bias", &[2, 3], &[3, 1], 2),
        ];
        for (name, shape, strides, first) in views {
            let info = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec() };
            let layout = Layout::Strided { start: 4 * first, strides: strides.to_vec() };
            table.tensors.insert(name.to_owned(), Entry { info, source: 0, layout });
        }
        split(Path::new("x"), &mut table).unwrap();
        let checkpoint = crate::Checkpoint::new("x".into(), vec![file], table);
        assert_eq!(checkpoint.len(), 12);
        let read = |name: &str| checkpoint.read_f32(&format!("experts.1.{name}")).unwrap();
        assert_eq!(read("gate_proj.weight"), [1.0, 3.0, 5.0, 13.0, 15.0, 17.0]);
        assert_eq!(read("up_proj.weight"), [7.0, 9.0, 11.0, 19.0, 21.0, 23.0]);
        assert_eq!((read("gate_proj.bias"), read("up_proj.bias")), (vec![5.0, 9.0], vec![7.0, 11.0]));
        // (out, in) of [in, out] with the steps 1 and 2: rows are adjacent pairs.
        assert_eq!(read("down_proj.weight"), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
        assert_eq!(read("down_proj.bias"), [5.0, 6.0, 7.0]);
        let Some(entry) = checkpoint.info("experts.1.down_proj.weight") else { panic!("it was read") };
        assert_eq!(entry.shape, [3, 2]);
    }
}
