//! The factorable matrices of a checkpoint, found by names and shapes alone, for any architecture.

use std::collections::BTreeSet;

use lowrank_checkpoint::{Checkpoint, Dtype};
use lowrank_factor::MatRef;
use lowrank_factor::matrix::from_row_major;
use lowrank_spec::names::{PATCHES, is_router};
use lowrank_spec::{Pattern, Site, Targets, transpose};
use serde_json::{Map, Value};

use crate::error::{Result, at};

/// Role of a matrix in its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A linear map inside a transformer layer.
    Block,
    /// A map of a layer that chooses among experts.
    Router,
    /// A linear map outside the layers other than the head (a pooler).
    Outer,
    /// A head: classifier, language-model head.
    Head,
    /// A token embedding table.
    Embedding,
}

/// Layout of the matrix in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    /// `(out, in)`, PyTorch's `Linear`.
    OutIn,
    /// `(in, out)`: GPT-2's `Conv1D`, and embeddings, whose input is a token.
    InOut,
}

/// One matrix of a checkpoint that can be factored.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Path, layer and shape; `d_input` of an embedding is its vocabulary.
    pub site: Site,
    /// Its layer in the order in which layers are run: those of a decoder come after those of its encoder, which have the
    /// same numbers.
    pub step: Option<usize>,
    /// Its role.
    pub role: Role,
    /// Element type in the file.
    pub dtype: Dtype,
    stored: Stored,
}

impl Weight {
    /// Name of the tensor.
    pub fn key(&self) -> String {
        format!("{}.weight", self.site.path)
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.site.d_input * self.site.d_output
    }

    /// `[d_input, d_output]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.site.d_input, self.site.d_output]
    }

    /// Reads the elements in the file's layout.
    ///
    /// # Errors
    /// A checkpoint that does not hold the tensor.
    pub fn read(&self, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
        Ok(checkpoint.read_f32(&self.key())?)
    }

    /// `[rows, columns]` of the matrix whose rows are divided into blocks: `[d_output, d_input]`, or a table
    /// unchanged.
    pub(crate) fn row_shape(&self) -> [usize; 2] {
        let Site { d_input, d_output, embedding, .. } = self.site;
        if embedding { [d_input, d_output] } else { [d_output, d_input] }
    }

    /// Whether the file stores that matrix row after row.
    pub(crate) fn is_stored_in_rows(&self) -> bool {
        self.stored == Stored::OutIn || self.site.embedding
    }

    /// The result of [`Weight::read`] as rows of that matrix.
    pub(crate) fn in_rows(&self, values: Vec<f32>) -> (Vec<f32>, [usize; 2]) {
        let Site { d_input, d_output, .. } = self.site;
        if self.is_stored_in_rows() {
            return (values, self.row_shape());
        }
        (transpose(&values, d_input, d_output), self.row_shape())
    }

    /// Views the result of [`Weight::read`] as a matrix `[d_output, d_input]`: columns face the inputs.
    ///
    /// # Errors
    /// A slice of the wrong length.
    pub fn view<'a>(&self, values: &'a [f32]) -> Result<MatRef<'a, f32>> {
        let Site { d_input, d_output, ref path, .. } = self.site;
        match self.stored {
            Stored::OutIn => from_row_major(values, d_output, d_input).map_err(at(path)),
            Stored::InOut => Ok(from_row_major(values, d_input, d_output).map_err(at(path))?.transpose()),
        }
    }
}

/// Modules that hold a token embedding table.
const EMBEDDINGS: [&str; 6] =
    ["word_embeddings", "embed_tokens", "wte", "embed_in", "tok_embeddings", "shared"];
/// Other tables, which stay unchanged.
const TABLES: [&str; 7] = [
    "position_embeddings",
    "token_type_embeddings",
    "task_type_embeddings",
    "rel_embeddings",
    "wpe",
    "embed_positions",
    "relative_attention_bias",
];
/// Matrices that are not linear maps either: angles, norms by head.
const OTHERS: [&str; 3] = ["rotary_emb", "q_norm", "k_norm"];
/// First segments of a head's path.
const HEADS: [&str; 7] =
    ["classifier", "pre_classifier", "lm_head", "score", "embed_out", "qa_outputs", "cls"];
/// GPT-2's `Conv1D` modules.
const CONV1D: [&str; 3] = ["c_attn", "c_proj", "c_fc"];

/// Whether a key or path is a head's.
pub(crate) fn is_head(path: &str) -> bool {
    path.split('.').next().is_some_and(|first| HEADS.contains(&first))
}

/// Encoder-decoder models, whose halves share one table of words, `shared`.
const SHARED_WORDS: [&str; 4] = ["t5", "mt5", "bart", "mbart"];

/// Whether the table of words of an encoder-decoder is stored under the name of one of its halves.
fn is_of_half(path: &str, config: &Map<String, Value>) -> bool {
    let model_type = config.get("model_type").and_then(Value::as_str);
    model_type.is_some_and(|name| SHARED_WORDS.contains(&name)) && path.ends_with("coder.embed_tokens")
}

/// Whether a table of words is one that transformers' encoder-decoders, and T5's encoders, hold and call under the names of the
/// halves.
pub(crate) fn is_shared_words(path: &str, config: &Map<String, Value>) -> bool {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let is_shared = matches!(path, "shared" | "model.shared");
    (is_shared && model_type.is_some_and(|name| SHARED_WORDS.contains(&name))) || is_of_half(path, config)
}

/// Whether a module is a table whose rows are looked up by ids.
pub(crate) fn is_lookup(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    EMBEDDINGS.contains(&last) || TABLES.contains(&last)
}

/// Copies of the table of words of an encoder-decoder, which the model does not read.
pub(crate) fn word_copies(checkpoint: &Checkpoint, config: &Map<String, Value>) -> BTreeSet<String> {
    let has_words = checkpoint.names().any(|name| matches!(name, "shared.weight" | "model.shared.weight"));
    let is_copy = |name: &&str| name.strip_suffix(".weight").is_some_and(|path| is_of_half(path, config));
    checkpoint.names().filter(|_| has_words).filter(is_copy).map(str::to_owned).collect()
}

/// The factorable matrices of a checkpoint, layer by layer in the order of their names. Of the tables of an encoder-decoder
/// these are `shared` and its head: others are copies of `shared`, or stand for it and stay as they are.
pub fn find(checkpoint: &Checkpoint, config: &Map<String, Value>) -> Vec<Weight> {
    let is_gpt2 = config.get("model_type").and_then(Value::as_str) == Some("gpt2");
    let mut found: Vec<Weight> =
        checkpoint.names().filter_map(|name| weight(checkpoint, name, is_gpt2)).collect();
    found.retain(|weight| !is_of_half(&weight.site.path, config));
    if found.iter().any(|weight| is_in(weight, "decoder")) {
        let layers = found.iter().filter(|weight| is_in(weight, "encoder")).filter_map(|weight| weight.step);
        let first = layers.max().map_or(0, |last| last + 1);
        for weight in found.iter_mut().filter(|weight| is_in(weight, "decoder")) {
            weight.step = weight.step.map(|layer| first + layer);
        }
    }
    // Names sort layer 10 before layer 2.
    found.sort_by(|a, b| (a.step, &a.site.path).cmp(&(b.step, &b.site.path)));
    found
}

/// Whether a weight is in a layer of this half of its model.
fn is_in(weight: &Weight, half: &str) -> bool {
    weight.step.is_some() && weight.site.path.split('.').any(|segment| segment == half)
}

fn weight(checkpoint: &Checkpoint, name: &str, is_gpt2: bool) -> Option<Weight> {
    let path = name.strip_suffix(".weight")?;
    let info = checkpoint.info(name)?;
    // A convolution over patches is a matrix of one row per output.
    let kernel = match info.shape[..] {
        [_, channels, height, width] if path.ends_with(PATCHES) => Some([channels, height, width]),
        _ => None,
    };
    let (rows, columns) = match (&info.shape[..], kernel) {
        (&[rows, columns], _) => (rows, columns),
        (&[rows, ..], Some(kernel)) => (rows, kernel.iter().product()),
        _ => return None,
    };
    if !info.dtype.is_float() || rows == 0 || columns == 0 {
        return None;
    }
    let segments: Vec<&str> = path.split('.').collect();
    let last = segments.last().copied().unwrap_or_default();
    if TABLES.contains(&last) || OTHERS.contains(&last) {
        return None;
    }
    let layer = segments.iter().find_map(|s| s.parse().ok());
    let role = if EMBEDDINGS.contains(&last) {
        Role::Embedding
    } else if is_head(path) {
        Role::Head
    } else if layer.is_some() && is_router(path) {
        Role::Router
    } else if layer.is_some() {
        Role::Block
    } else {
        Role::Outer
    };
    let is_in_out = role == Role::Embedding || (is_gpt2 && CONV1D.contains(&last));
    let (stored, d_input, d_output) =
        if is_in_out { (Stored::InOut, rows, columns) } else { (Stored::OutIn, columns, rows) };
    let (head, embedding) = (role == Role::Head, role == Role::Embedding);
    let conv1d = is_in_out && !embedding;
    let site = Site { path: path.to_string(), layer, d_input, d_output, head, embedding, kernel, conv1d };
    Some(Weight { site, step: layer, role, dtype: info.dtype, stored })
}

/// The weights selected by `targets`; by default every linear map inside the transformer layers. Routers of experts
/// are selected only by name.
///
/// # Errors
/// Targets that match nothing.
pub fn select(weights: &[Weight], targets: Option<&Targets>) -> Result<Vec<Weight>> {
    let Some(targets) = targets else {
        let blocks: Vec<Weight> = weights.iter().filter(|w| w.role == Role::Block).cloned().collect();
        if blocks.is_empty() {
            return Err(crate::CompressError::Input(
                "the checkpoint has no linear weights inside numbered layers; name what to compress with --targets"
                    .into(),
            ));
        }
        return Ok(blocks);
    };
    let sites: Vec<Site> = weights.iter().map(|w| w.site.clone()).collect();
    Ok(targets.select(&sites)?.into_iter().map(|i| weights[i].clone()).collect())
}

/// Refuses a head that the model does not read, because it is tied to the embedding and stored only as a copy of it.
/// `config` is that of [`settle_tie`].
///
/// # Errors
/// [`CompressError::Input`](crate::CompressError::Input) naming the head and the table.
pub(crate) fn check_tied(
    checkpoint: &Checkpoint,
    config: &Map<String, Value>,
    taken: &[Weight],
) -> Result<()> {
    if !is_tied(config) {
        return Ok(());
    }
    let Some(head) = taken.iter().find(|w| w.role == Role::Head && LM_HEADS.contains(&w.site.path.as_str()))
    else {
        return Ok(());
    };
    let table = token_table(checkpoint).and_then(|name| name.strip_suffix(".weight"));
    Err(crate::CompressError::Input(format!(
        "'{}' is tied to '{}', and the model never reads the copy in the file; compress the embedding, or set \
         tie_word_embeddings to false in config.json",
        head.site.path,
        table.unwrap_or("the embedding")
    )))
}

/// Heads over the vocabulary, which may be tied to the embedding.
pub(crate) const LM_HEADS: [&str; 2] = ["lm_head", "embed_out"];

/// Architectures whose head is tied where their config does not say it; Llama's relatives state it explicitly.
const TIED_BY_DEFAULT: [&str; 10] = [
    "gpt2",
    "starcoder2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "smollm3",
    "opt",
    "cohere",
    "cohere2",
    "ernie4_5",
];

/// Whether the config of a language model ties its head to its embedding; a file may nevertheless hold a trained head
/// ([`settle_tie`]).
pub(crate) fn is_tied(config: &Map<String, Value>) -> bool {
    let kind = config.get("model_type").and_then(Value::as_str);
    let default = kind.is_some_and(|kind| TIED_BY_DEFAULT.contains(&kind));
    config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(default)
}

/// Whether the head is the embedding's table: the config ties them, and the file does not hold a head with other elements.
/// Such a head is used whatever the config says, as in transformers, and `config` is changed to say so.
///
/// # Errors
/// Errors of reading the checkpoint.
pub(crate) fn settle_tie(checkpoint: &Checkpoint, config: &mut Map<String, Value>) -> Result<bool> {
    if !is_tied(config) {
        return Ok(false);
    }
    let heads = LM_HEADS.map(|path| format!("{path}.weight"));
    let Some(head) = heads.iter().find(|name| checkpoint.contains(name)) else { return Ok(true) };
    let is_copy = match token_table(checkpoint) {
        Some(table) => {
            checkpoint.info(table) == checkpoint.info(head)
                && checkpoint.bytes(table)? == checkpoint.bytes(head)?
        }
        // The table is stored under the name of the head alone.
        None => true,
    };
    if !is_copy {
        // T5's states are scaled where that key is not false, or this one says so.
        if config.get("model_type").and_then(Value::as_str) == Some("t5") {
            config.entry("scale_decoder_outputs").or_insert(true.into());
        }
        config.insert("tie_word_embeddings".into(), false.into());
    }
    Ok(is_copy)
}

/// Name of the token embedding's table.
pub(crate) fn token_table(checkpoint: &Checkpoint) -> Option<&str> {
    let is_table = |name: &&str| {
        name.strip_suffix(".weight")
            .and_then(|path| path.rsplit('.').next())
            .is_some_and(|last| EMBEDDINGS.contains(&last))
    };
    checkpoint.names().find(is_table)
}

/// The weights whose path ends in `name`.
///
/// # Errors
/// A name that matches nothing.
pub(crate) fn named(weights: &[Weight], name: &str) -> Result<Vec<Weight>> {
    select(weights, Some(&Targets::new(Pattern::parse(name))))
}
