//! Which type each tensor of a file gets: llama.cpp's mixes (`llama_tensor_get_type_impl`).

use std::str::FromStr;

use lowrank_spec::BlockFormat;
use lowrank_spec::BlockFormat::{Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

use super::architecture::layer_of;
use crate::Checkpoint;
use crate::dtype::{Dtype, FloatType};

/// The type of a file, as llama.cpp's `llama-quantize` names it: what most of its matrices are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileType(&'static Kind);

#[derive(Debug, PartialEq, Eq)]
struct Kind {
    name: &'static str,
    /// `llama_ftype`.
    number: u32,
    base: Base,
    size: Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Float(FloatType),
    Block(BlockFormat),
}

/// How many tensors get more bits than the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Plain,
    Small,
    Medium,
    Large,
}

const fn kind(name: &'static str, number: u32, base: BlockFormat, size: Size) -> Kind {
    Kind { name, number, base: Base::Block(base), size }
}

const fn float(name: &'static str, number: u32, float: FloatType) -> Kind {
    Kind { name, number, base: Base::Float(float), size: Size::Plain }
}

const KINDS: [Kind; 21] = [
    float("F32", 0, FloatType::F32),
    float("F16", 1, FloatType::F16),
    float("BF16", 32, FloatType::BF16),
    kind("Q8_0", 7, Q8_0, Size::Plain),
    kind("Q4_0", 2, Q4_0, Size::Plain),
    kind("Q4_1", 3, Q4_1, Size::Plain),
    kind("Q5_0", 8, Q5_0, Size::Plain),
    kind("Q5_1", 9, Q5_1, Size::Plain),
    kind("IQ4_NL", 25, Iq4Nl, Size::Plain),
    kind("IQ4_XS", 30, Iq4Xs, Size::Plain),
    kind("Q2_K", 10, Q2K, Size::Medium),
    kind("Q2_K_S", 21, Q2K, Size::Small),
    kind("Q3_K_S", 11, Q3K, Size::Small),
    kind("Q3_K_M", 12, Q3K, Size::Medium),
    kind("Q3_K_L", 13, Q3K, Size::Large),
    kind("Q4_K_S", 14, Q4K, Size::Small),
    kind("Q4_K_M", 15, Q4K, Size::Medium),
    kind("Q5_K_S", 16, Q5K, Size::Small),
    kind("Q5_K_M", 17, Q5K, Size::Medium),
    kind("Q6_K", 18, Q6K, Size::Plain),
    kind("MXFP4_MOE", 38, Mxfp4, Size::Plain),
];

/// Other names of a type.
const ALIASES: [(&str, &str); 3] = [("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M")];

impl FromStr for FileType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let upper = name.to_ascii_uppercase();
        let own = ALIASES.iter().find(|(alias, _)| *alias == upper).map_or(upper.as_str(), |(_, own)| own);
        let names = || KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        KINDS
            .iter()
            .find(|kind| kind.name == own)
            .map(Self)
            .ok_or_else(|| format!("unknown type '{name}'; expected one of {}", names()))
    }
}

impl From<FloatType> for FileType {
    fn from(float: FloatType) -> Self {
        let is_it = |kind: &&Kind| kind.base == Base::Float(float);
        // Every float type has its line.
        Self(KINDS.iter().find(is_it).unwrap_or(&KINDS[0]))
    }
}

impl std::fmt::Display for FileType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a mix depends on beside the tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    /// Whether the head is tied to the embedding.
    pub(crate) tied: bool,
    /// Number of experts, 0 for none.
    pub(crate) experts: usize,
}

impl FileType {
    /// Experts in MXFP4.
    pub(crate) const MXFP4: Self = Self(&KINDS[20]);

    /// The type whose matrices are in the format of most elements in blocks of a checkpoint; f32 without any.
    pub(crate) fn most_like(weights: &Checkpoint) -> Self {
        let mut counts = [0; BlockFormat::ALL.len()];
        for info in weights.names().filter_map(|name| weights.info(name)) {
            let place = BlockFormat::ALL.iter().position(|format| info.dtype == Dtype::Block(*format));
            if let Some(place) = place {
                counts[place] += info.numel();
            }
        }
        let most = BlockFormat::ALL.into_iter().zip(counts).max_by_key(|(_, count)| *count);
        let format = most.filter(|(_, count)| *count > 0).map(|(format, _)| format);
        let is_it = |kind: &&Kind| format.is_some_and(|format| kind.base == Base::Block(format));
        let is_named = |kind: &&Kind| is_it(kind) && matches!(kind.size, Size::Plain | Size::Medium);
        KINDS.iter().find(is_named).map_or(FloatType::F32.into(), Self)
    }

    /// llama.cpp's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.0.name
    }

    /// Whether matrices are floats.
    pub(crate) const fn is_float(self) -> bool {
        matches!(self.0.base, Base::Float(_))
    }

    /// The number in a file (`general.file_type`).
    pub(crate) const fn number(self) -> u32 {
        self.0.number
    }

    /// The type that a tensor is to have, and the one that it gets where its width is not a multiple of a block.
    pub(crate) fn of(self, name: &str, dims: &[usize], model: Shape) -> (Dtype, Dtype) {
        let is_small = ["position_embd", "token_types", "rope_freqs", "rope_factors"];
        let is_router =
            [".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight"].iter().any(|end| name.ends_with(end));
        let is_matrix = dims.len() >= 2 && name.ends_with(".weight") && !name.ends_with("_norm.weight");
        if !is_matrix || is_router || is_small.iter().any(|start| name.starts_with(start)) {
            return (Dtype::F32, Dtype::F32);
        }
        let width = dims.last().copied().unwrap_or(1);
        match self.0.base {
            Base::Float(float) => (float.into(), float.into()),
            Base::Block(base) => {
                let wanted = self.format(base, name, width, model);
                (Dtype::Block(wanted), fallback(wanted, width))
            }
        }
    }

    /// The block format of a matrix, before its width is looked at.
    fn format(self, base: BlockFormat, name: &str, width: usize, model: Shape) -> BlockFormat {
        let Kind { size, .. } = *self.0;
        if base == Mxfp4 {
            return if name.ends_with("_exps.weight") { Mxfp4 } else { Q8_0 };
        }
        if name == "output.weight" || (model.tied && name == "token_embd.weight") {
            return match base {
                _ if !width.is_multiple_of(base.block_len()) => Q8_0,
                Q8_0 => Q8_0,
                _ => Q6K,
            };
        }
        let Some((i, stem)) = layer_of(name) else { return base };
        let n = model.layers;
        let more = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
        let is_shared = model.heads / model.key_heads.max(1) >= 4;
        let has_eight = model.experts == 8;
        match stem {
            // Small beside eight experts.
            "attn_v.weight" | "attn_qkv.weight" | "attn_k.weight" if has_eight => Q8_0,
            "attn_output.weight" if has_eight => match (base, size) {
                (Q2K | Q3K, Size::Small | Size::Medium) | (Q4K, _) | (Iq4Nl | Iq4Xs, _) => Q5K,
                _ => base,
            },
            "attn_v.weight" | "attn_qkv.weight" => {
                let format = match (base, size) {
                    (Q2K, Size::Medium) => [Q3K, Q4K][usize::from(is_shared)],
                    (Q2K, Size::Small) if is_shared => Q4K,
                    (Q3K, Size::Medium) => [Q4K, Q5K][usize::from(i < 2)],
                    (Q3K, Size::Large) => Q5K,
                    (Iq4Nl | Iq4Xs, _) if is_shared => Q5K,
                    (Q4K | Q5K, Size::Medium) if more => Q6K,
                    (Q4K, Size::Small) if i < 4 => Q5K,
                    _ => base,
                };
                // Llama's 70 billion parameters: eight heads share small values.
                let is_largest = model.layers == 80 && model.heads != model.key_heads;
                if is_largest && matches!(format, Q3K | Q4K) { Q5K } else { format }
            }
            "ffn_down.weight" | "ffn_down_exps.weight" | "ffn_down_shexp.weight" => match (base, size) {
                (Q2K, Size::Medium) => Q3K,
                (Q2K, Size::Small) if i < n / 8 => Q4K,
                (Q3K, Size::Medium) => [Q4K, Q5K][usize::from(i < n / 16)],
                (Q3K, Size::Large) => Q5K,
                (Q4K | Q5K, Size::Medium) if more => Q6K,
                (Iq4Nl | Iq4Xs, _) | (Q4K, Size::Small) if i < n / 8 => Q5K,
                _ => base,
            },
            "attn_output.weight" => match (base, size) {
                (Q2K, Size::Medium) => Q3K,
                (Q3K, Size::Medium) => Q4K,
                (Q3K, Size::Large) => Q5K,
                _ => base,
            },
            _ => base,
        }
    }
}

/// The type of rows of this width: another one where they do not fill whole blocks.
fn fallback(wanted: BlockFormat, width: usize) -> Dtype {
    let fits = |format: BlockFormat| width.is_multiple_of(format.block_len());
    if fits(wanted) {
        return Dtype::Block(wanted);
    }
    let other = match wanted {
        Q2K | Q3K => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        Iq4Xs => Iq4Nl,
        other => other,
    };
    if fits(other) { Dtype::Block(other) } else { Dtype::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_llama_quantize() {
        for kind in &KINDS {
            assert_eq!(kind.name.parse::<FileType>().unwrap().name(), kind.name);
        }
        assert_eq!("q4_k".parse::<FileType>().unwrap().name(), "Q4_K_M");
        assert!("Q9".parse::<FileType>().unwrap_err().contains("Q4_K_M"));
        assert_eq!(FileType::from(FloatType::BF16).name(), "BF16");
        assert_eq!(FileType::MXFP4.name(), "MXFP4_MOE");
    }

    /// The types that `llama-quantize` chose for a Mixtral of 16 layers, 8 heads, and 2 heads of keys with 8 experts or 4 with 12:
    /// of queries, keys, values, output, gates and down projections. Digits are the bits of `Qn_K` in each layer.
    #[test]
    fn mixes_of_experts_are_those_of_llama_quantize() {
        let golden: [(usize, &str, [&str; 6]); 25] = [
            (8, "Q2_K", ["Q2_K", "Q8_0", "Q8_0", "Q5_K", "Q2_K", "Q3_K"]),
            (8, "Q3_K_S", ["Q3_K", "Q8_0", "Q8_0", "Q5_K", "Q3_K", "Q3_K"]),
            (8, "Q3_K_M", ["Q3_K", "Q8_0", "Q8_0", "Q5_K", "Q3_K", "5444444444444444"]),
            (8, "Q3_K_L", ["Q3_K", "Q8_0", "Q8_0", "Q3_K", "Q3_K", "Q5_K"]),
            (8, "Q4_K_S", ["Q4_K", "Q8_0", "Q8_0", "Q5_K", "Q4_K", "5544444444444444"]),
            (8, "Q4_K_M", ["Q4_K", "Q8_0", "Q8_0", "Q5_K", "Q4_K", "6644644644644666"]),
            (8, "Q5_K_S", ["Q5_K", "Q8_0", "Q8_0", "Q5_K", "Q5_K", "Q5_K"]),
            (8, "Q5_K_M", ["Q5_K", "Q8_0", "Q8_0", "Q5_K", "Q5_K", "6655655655655666"]),
            (8, "IQ4_NL", ["IQ4_NL", "Q8_0", "Q8_0", "Q5_K", "IQ4_NL", "55--------------"]),
            (8, "IQ4_XS", ["IQ4_XS", "Q8_0", "Q8_0", "Q5_K", "IQ4_XS", "55--------------"]),
            (8, "Q4_0", ["Q4_0", "Q8_0", "Q8_0", "Q4_0", "Q4_0", "Q4_0"]),
            (8, "Q6_K", ["Q6_K", "Q8_0", "Q8_0", "Q6_K", "Q6_K", "Q6_K"]),
            (12, "Q2_K", ["Q2_K", "Q2_K", "Q3_K", "Q3_K", "Q2_K", "Q3_K"]),
            (12, "Q3_K_S", ["Q3_K"; 6]),
            (12, "Q3_K_M", ["Q3_K", "Q3_K", "5544444444444444", "Q4_K", "Q3_K", "5444444444444444"]),
            (12, "Q3_K_L", ["Q3_K", "Q3_K", "Q5_K", "Q5_K", "Q3_K", "Q5_K"]),
            (12, "Q4_K_S", ["Q4_K", "Q4_K", "5555444444444444", "Q4_K", "Q4_K", "5544444444444444"]),
            (12, "Q4_K_M", ["Q4_K", "Q4_K", "6644644644644666", "Q4_K", "Q4_K", "6644644644644666"]),
            (12, "Q5_K_S", ["Q5_K"; 6]),
            (12, "Q5_K_M", ["Q5_K", "Q5_K", "6655655655655666", "Q5_K", "Q5_K", "6655655655655666"]),
            (12, "IQ4_NL", ["IQ4_NL", "IQ4_NL", "IQ4_NL", "IQ4_NL", "IQ4_NL", "55--------------"]),
            (12, "IQ4_XS", ["IQ4_XS", "IQ4_XS", "IQ4_XS", "IQ4_XS", "IQ4_XS", "55--------------"]),
            (12, "Q4_0", ["Q4_0"; 6]),
            (12, "Q6_K", ["Q6_K"; 6]),
            (12, "MXFP4_MOE", ["Q8_0", "Q8_0", "Q8_0", "Q8_0", "MXFP4", "MXFP4"]),
        ];
        let stems = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_exps", "ffn_down_exps"];
        for (experts, kind, types) in golden {
            let key_heads = if experts == 8 { 2 } else { 4 };
            let model = Shape { layers: 16, heads: 8, key_heads, tied: false, experts };
            let file: FileType = kind.parse().unwrap();
            let of = |name: &str, dims: &[usize]| file.of(name, dims, model).1.name();
            for (stem, expected) in stems.into_iter().zip(types) {
                for layer in 0..16 {
                    let expected = match expected.as_bytes().get(layer) {
                        Some(bits) if expected.len() == 16 && bits.is_ascii_digit() => {
                            format!("Q{}_K", char::from(*bits))
                        }
                        Some(_) if expected.len() == 16 => kind.to_owned(),
                        _ => expected.to_owned(),
                    };
                    let dims: &[usize] =
                        if stem.ends_with("exps") { &[experts, 256, 256] } else { &[256, 256] };
                    let name = format!("blk.{layer}.{stem}.weight");
                    assert_eq!(of(&name, dims), expected, "{kind} of {experts} experts: {name}");
                }
            }
            assert_eq!(of("output.weight", &[64, 256]), if kind == "MXFP4_MOE" { "Q8_0" } else { "Q6_K" });
            assert_eq!(of("blk.3.ffn_gate_inp.weight", &[experts, 256]), "F32");
        }
    }

    /// What `llama-quantize` made of a model of 30 layers of width 576.
    #[test]
    fn mixes_are_those_of_llama_quantize() {
        let model = Shape { layers: 30, heads: 9, key_heads: 3, tied: true, experts: 0 };
        let of = |kind: &str, name: &str, dims: [usize; 2]| {
            kind.parse::<FileType>().unwrap().of(name, &dims, model).1.name()
        };
        assert_eq!(of("Q4_K_M", "token_embd.weight", [49_152, 576]), "Q8_0");
        assert_eq!(of("Q4_K_M", "blk.0.attn_q.weight", [576, 576]), "Q5_0");
        assert_eq!(of("Q4_K_M", "blk.0.attn_v.weight", [192, 576]), "Q8_0");
        assert_eq!(of("Q4_K_M", "blk.0.ffn_down.weight", [576, 1536]), "Q6_K");
        assert_eq!(of("Q4_K_M", "blk.3.ffn_down.weight", [576, 1536]), "Q4_K");
        assert_eq!(of("IQ4_XS", "blk.0.attn_q.weight", [576, 576]), "IQ4_NL");
        assert_eq!(of("Q2_K", "blk.3.ffn_down.weight", [576, 1536]), "Q3_K");
        assert_eq!(of("Q4_0", "blk.3.attn_norm.weight", [1, 576]), "F32");
        assert_eq!(of("Q4_0", "blk.3.ffn_up.weight", [576, 40]), "F16");
    }
}
