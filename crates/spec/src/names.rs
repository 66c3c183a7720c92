//! Names and layouts of the tensors that represent a module's weight in a checkpoint: the only table of them.
//!
//! | tensor | shape in the file | in the forward pass |
//! |---|---|---|
//! | `<module>.weight` | `(out, in)`, or as in the architecture | `[in, out]` |
//! | `<module>.lowrank_a.weight` | `(r_a, in)` | `A`, `[in, r_a]` |
//! | `<module>.lowrank_c.weight` | `(r_b, r_a)` | `C`, `[r_a, r_b]` |
//! | `<module>.lowrank_b.weight` | `(out, r_b)` | `B`, `[r_b, out]` |
//! | `<module>.lowrank_pivots` | bytes of `out` bits, the lowest first | – |
//! | `<module>.tt_cores.<k>` | `(r_{k-1}, m_k, n_k, r_k)` | the same |
//!
//! A quantized matrix is stored row by row as bytes (U8), `(rows, bytes of a row)`, whatever the
//! architecture does with floats. Its rows, which are divided into blocks:
//!
//! | part | of a linear map | of an embedding |
//! |---|---|---|
//! | weight | `(out, in)` | `(vocabulary, width)` |
//! | `A` | `(r, in)` | `(vocabulary, r)` |
//! | `B` | `(r, out)` | `(r, width)` |

/// Part of a weight that a tensor stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightPart {
    /// The one matrix of a dense weight.
    Dense,
    /// `A` of `A·B` or `A·C·B`: the factor on the input's side.
    FactorA,
    /// `C` of `A·C·B`.
    FactorC,
    /// `B` of `A·B` or `A·C·B`: the factor on the output's side.
    FactorB,
    /// Core `k` of a tensor train.
    Core(usize),
}

impl WeightPart {
    /// The matrices: all parts but the cores, whose number varies.
    const MATRICES: [(Self, &'static str); 4] = [
        (Self::Dense, "weight"),
        (Self::FactorA, "lowrank_a.weight"),
        (Self::FactorC, "lowrank_c.weight"),
        (Self::FactorB, "lowrank_b.weight"),
    ];

    /// Suffix after `<module>.` in the tensor's key.
    pub fn suffix(self) -> String {
        if let Self::Core(k) = self {
            return format!("{CORES}.{k}");
        }
        Self::MATRICES
            .iter()
            .find(|(part, _)| *part == self)
            .map_or_else(String::new, |(_, s)| (*s).to_string())
    }

    /// Key of this part of a module's weight.
    ///
    /// ```
    /// use lowrank_spec::names::WeightPart;
    /// assert_eq!(WeightPart::FactorA.key("layer.0.query"), "layer.0.query.lowrank_a.weight");
    /// assert_eq!(WeightPart::Core(2).key("embed"), "embed.tt_cores.2");
    /// ```
    pub fn key(self, module: &str) -> String {
        format!("{module}.{}", self.suffix())
    }

    /// Splits a key into its module and the part of its weight; `None` for biases and anything else.
    ///
    /// ```
    /// use lowrank_spec::names::WeightPart;
    /// assert_eq!(WeightPart::parse("l.q.lowrank_b.weight"), Some(("l.q", WeightPart::FactorB)));
    /// assert_eq!(WeightPart::parse("l.q.weight"), Some(("l.q", WeightPart::Dense)));
    /// assert_eq!(WeightPart::parse("l.q.bias"), None);
    /// ```
    pub fn parse(key: &str) -> Option<(&str, Self)> {
        let module_of = |suffix: &str| key.strip_suffix(suffix)?.strip_suffix('.');
        // The longest suffixes first: each factor's ends in `.weight` too.
        if let Some(found) =
            Self::MATRICES.iter().rev().find_map(|&(part, suffix)| Some((module_of(suffix)?, part)))
        {
            return Some(found);
        }
        let (rest, k) = key.rsplit_once('.')?;
        let module = rest.strip_suffix(CORES)?.strip_suffix('.')?;
        Some((module, Self::Core(k.parse().ok()?)))
    }

    /// Its name in a config that describes the storage of each part: `weight`, `lowrank_a`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "weight",
            Self::FactorA => "lowrank_a",
            Self::FactorC => "lowrank_c",
            Self::FactorB => "lowrank_b",
            Self::Core(_) => CORES,
        }
    }

    /// For a quantized part: whether the blocks are along the columns of the matrix in the forward pass
    /// (its transpose is stored). `None` for the parts that are never quantized.
    ///
    /// A product reads a column of the weight and a row of the right factor, and an embedding looks up rows.
    pub fn blocks_are_transposed(self, embedding: bool) -> Option<bool> {
        match self {
            Self::Dense | Self::FactorA => Some(!embedding),
            Self::FactorB => Some(false),
            Self::FactorC | Self::Core(_) => None,
        }
    }

    /// Whether the file stores the transpose of the matrix in the forward pass.
    pub fn is_transposed(self) -> bool {
        matches!(self, Self::FactorA | Self::FactorC | Self::FactorB)
    }
}

/// End of the path of a ViT's convolution over patches, whose stride is its kernel.
pub const PATCHES: &str = "patch_embeddings.projection";

/// Modules of a ViT's layer: in files, and in transformers 5, which calls them otherwise than the files that it writes.
const VIT_MODULES: [(&str, &str); 6] = [
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
];

/// Layers of a ViT, in files and in transformers 5.
const VIT_LAYERS: [&str; 2] = ["vit.encoder.layer.", "vit.layers."];

/// The head of GPT-NeoX, in files and in transformers 5.
pub const NEOX_HEAD: [&str; 2] = ["embed_out", "lm_head"];

/// Path of a module or parameter in transformers 5 and in PEFT's adapters over it, if it differs from that in the files of
/// models.
///
/// ```
/// use lowrank_spec::names::path_in_module;
/// assert_eq!(path_in_module("embed_out.weight").as_deref(), Some("lm_head.weight"));
/// let path = "vit.encoder.layer.3.attention.attention.query.bias";
/// assert_eq!(path_in_module(path).as_deref(), Some("vit.layers.3.attention.q_proj.bias"));
/// assert_eq!(path_in_module("bert.encoder.layer.3.output.dense"), None);
/// ```
pub fn path_in_module(path: &str) -> Option<String> {
    let [file, module] = NEOX_HEAD;
    let head = path.strip_prefix(file).filter(|rest| rest.is_empty() || rest.starts_with('.'));
    head.map(|rest| format!("{module}{rest}"))
        .or_else(|| renamed(path, VIT_LAYERS, |(file, module)| (file, module)))
}

/// Path in the files of models of a module or parameter named as in transformers 5, if it differs whatever the model.
pub fn path_in_files(path: &str) -> Option<String> {
    renamed(path, [VIT_LAYERS[1], VIT_LAYERS[0]], |(file, module)| (module, file))
}

/// Prefixes of an architecture's keys, and those in the files it was first published in.
const OLD_PREFIXES: [[&str; 2]; 1] = [["gte.", "new."]];

/// The older prefix of the keys that begin with `prefix`.
pub fn old_prefix(prefix: &str) -> Option<&'static str> {
    OLD_PREFIXES.iter().find(|[own, _]| *own == prefix).map(|[_, old]| *old)
}

/// Path of a module in the files that its architecture was first published in, if it differs.
///
/// ```
/// use lowrank_spec::names::{path_in_old_files, path_of_old_files};
/// let path = "gte.encoder.layer.0.mlp.down_proj";
/// assert_eq!(path_in_old_files(path).as_deref(), Some("new.encoder.layer.0.mlp.down_proj"));
/// assert_eq!(path_of_old_files("new.encoder.layer.0.mlp.down_proj").as_deref(), Some(path));
/// assert_eq!(path_in_old_files("bert.pooler.dense"), None);
/// ```
pub fn path_in_old_files(path: &str) -> Option<String> {
    OLD_PREFIXES.iter().find_map(|[own, old]| Some(format!("{old}{}", path.strip_prefix(own)?)))
}

/// The opposite of [`path_in_old_files`].
pub fn path_of_old_files(path: &str) -> Option<String> {
    OLD_PREFIXES.iter().find_map(|[own, old]| Some(format!("{own}{}", path.strip_prefix(old)?)))
}

/// A path without its first segment, as in a file made over the bare encoder or decoder; empty if it has one segment.
///
/// ```
/// use lowrank_spec::names::without_prefix;
/// assert_eq!(without_prefix("bert.embeddings.word_embeddings"), "embeddings.word_embeddings");
/// assert_eq!(without_prefix("lm_head"), "");
/// ```
pub fn without_prefix(path: &str) -> &str {
    path.split_once('.').map_or("", |(_, rest)| rest)
}

fn renamed(
    path: &str,
    [from, to]: [&str; 2],
    order: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Option<String> {
    let (index, inner) = path.strip_prefix(from)?.split_once('.')?;
    let other = VIT_MODULES.into_iter().map(order).find_map(|(from, to)| {
        let rest = inner.strip_prefix(from).filter(|rest| rest.is_empty() || rest.starts_with('.'))?;
        Some(format!("{to}{rest}"))
    });
    // Norms have the same names.
    Some(format!("{to}{index}.{}", other.as_deref().unwrap_or(inner)))
}

/// Suffix of the mask of pivots of a factor `B` that lacks the rows of the identity.
pub const PIVOTS: &str = "lowrank_pivots";

/// The list of cores below a module.
const CORES: &str = "tt_cores";

/// Suffixes of the names of buffers that checkpoints of any architecture store beside parameters.
pub(crate) const BUFFERS: [&str; 9] = [
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
    "encoder.version",
    "decoder.version",
];

/// Whether a tensor of this name in a checkpoint is a buffer, which is not counted among a model's
/// parameters.
///
/// ```
/// use lowrank_spec::names::is_buffer;
/// // A whole part of the path: `attn.bias` is a buffer, `c_attn.bias` is not.
/// assert!(is_buffer("transformer.h.0.attn.bias") && !is_buffer("transformer.h.0.attn.c_attn.bias"));
/// ```
pub fn is_buffer(name: &str) -> bool {
    let is_end =
        |end: &str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    BUFFERS.iter().any(|end| is_end(end))
}

/// The expert of a module: the path down to its number. Maps of one expert see the same tokens, those of
/// another see others.
///
/// ```
/// use lowrank_spec::names::expert_of;
/// assert_eq!(expert_of("model.layers.2.mlp.experts.17.up_proj"), Some("model.layers.2.mlp.experts.17"));
/// assert_eq!(expert_of("model.layers.2.mlp.shared_expert.up_proj"), None);
/// ```
pub fn expert_of(path: &str) -> Option<&str> {
    const LIST: &str = ".experts.";
    let start = path.find(LIST)? + LIST.len();
    let number = path[start..].split('.').next().unwrap_or_default();
    (number.parse::<usize>().is_ok() && path.len() > start + number.len())
        .then(|| &path[..start + number.len()])
}

/// Whether a module chooses among experts, or is the gate of a shared expert: a small map whose rounding
/// moves tokens to other experts, so that it is factored and quantized only if named explicitly.
///
/// ```
/// use lowrank_spec::names::is_router;
/// assert!(is_router("model.layers.0.mlp.gate") && !is_router("model.layers.0.mlp.gate_proj"));
/// ```
pub fn is_router(path: &str) -> bool {
    matches!(path.rsplit('.').next(), Some("gate" | "router" | "shared_expert_gate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_taken_apart_again() {
        let parts = [
            WeightPart::Dense,
            WeightPart::FactorA,
            WeightPart::FactorC,
            WeightPart::FactorB,
            WeightPart::Core(0),
            WeightPart::Core(12),
        ];
        for part in parts {
            assert_eq!(
                WeightPart::parse(&part.key("model.layers.3.q_proj")),
                Some(("model.layers.3.q_proj", part))
            );
        }
        for other in ["weight", "q.bias", "q.tt_cores.x", "tt_cores.0", "q.lowrank_a"] {
            assert_eq!(WeightPart::parse(other), None, "{other}");
        }
    }
}
