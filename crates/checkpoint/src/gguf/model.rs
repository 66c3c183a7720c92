//! Writing a model: a checkpoint under llama.cpp's names, quantized, with its config and tokenizer.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value as Json};

use lowrank_spec::BlockFormat;
use lowrank_spec::names::{expert_of, is_buffer};

use super::architecture::{Architecture, Changes, layer_of};
use super::mix::FileType;
use super::rules::{Head, Rules};
use super::write::{Meta, Planned, write_file};
use super::write_tokenizer::TokenizerParts;
use super::{write_config, write_tokenizer};
use crate::Checkpoint;
use crate::convert::encode;
use crate::dtype::{Dtype, FloatType};
use crate::error::{CheckpointError, excerpt};
use crate::source::RowOrder;

/// A model that goes into a file.
#[derive(Debug)]
pub struct ModelParts<'a> {
    /// What the model is called.
    pub name: &'a str,
    /// `config.json`.
    pub config: &'a Map<String, Json>,
    /// The weights, under Hugging Face's names.
    pub weights: &'a Checkpoint,
    /// The tokenizer; a file without one takes and returns token ids only.
    pub tokenizer: Option<TokenizerParts<'a>>,
    /// The type of the matrices; `None` leaves each as it is stored, blocks byte for byte.
    pub kind: Option<FileType>,
    /// How hidden states become an embedding of a text, if the model says so.
    pub pooling: Option<Pooling>,
}

/// Pooling of hidden states, with llama.cpp's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over tokens.
    Mean = 1,
    /// The first token's.
    First = 2,
    /// The last token's.
    Last = 3,
}

impl Pooling {
    /// That of an open GGUF file, if it has one.
    ///
    /// # Errors
    /// [`Malformed`](CheckpointError::Malformed) for a file of another pooling: none, or the score of a reranker.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>, CheckpointError> {
        let Some(architecture) = checkpoint.metadata().get("general.architecture") else { return Ok(None) };
        let key = format!("{architecture}.pooling_type");
        match checkpoint.metadata().get(&key).map(String::as_str) {
            None => Ok(None),
            Some("1") => Ok(Some(Self::Mean)),
            Some("2") => Ok(Some(Self::First)),
            Some("3") => Ok(Some(Self::Last)),
            Some(other) => {
                let reason = format!(
                    "{key} = {other} is not supported; expected 1 (mean), 2 (first token) or 3 (last)"
                );
                Err(CheckpointError::malformed(checkpoint.path(), excerpt(&reason)))
            }
        }
    }
}

/// The result of writing a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Matrices in another type than their mix prescribes, because their width is not a multiple of its block: prescribed type,
    /// type, number of matrices.
    pub fallbacks: Vec<(Dtype, Dtype, usize)>,
    /// Where llama.cpp will deviate from the config.
    pub warnings: Vec<String>,
}

/// How the elements of a tensor are made.
struct Step {
    from: From,
    order: Option<RowOrder>,
    plus_one: bool,
    transposed: bool,
    /// Blocks, byte for byte.
    as_stored: bool,
}

/// The source of a tensor's elements.
enum From {
    /// A tensor of the checkpoint.
    Tensor(String),
    /// The maps of all experts, in their order.
    Experts(Vec<String>),
    /// Elements derived from the config.
    Values(Vec<f32>),
}

/// Writes a GGUF file that llama.cpp runs, whole or not at all.
///
/// # Errors
/// [`BadTensor`](CheckpointError::BadTensor) for a tensor that llama.cpp's architecture does not have, or whose values do not
/// fit the type; [`Malformed`](CheckpointError::Malformed) for a model that llama.cpp cannot run as it is meant, with the
/// reason; [`Io`](CheckpointError::Io).
pub fn write_model(path: &Path, model: &ModelParts<'_>) -> Result<Written, CheckpointError> {
    let fault = |reason: String| CheckpointError::malformed(model.weights.path(), reason);
    let architecture = architecture(model.config).map_err(fault)?;
    let rules = Rules::of(architecture.family);
    let is_tied = model.config.get("tie_word_embeddings").and_then(Json::as_bool);
    let is_tied = is_tied.unwrap_or(architecture.is_tied_by_default());
    let names = names(architecture, model.weights, &rules, is_tied)?;
    let tied = !names.iter().any(|(_, own, _)| own == "output.weight");
    let described = write_config::describe(architecture, model.config, tied)
        .map_err(|reason| fault(format!("config: {reason}")))?;
    let layers = described.shape.layers;
    let owns: BTreeSet<&str> = names.iter().map(|(_, own, _)| own.as_str()).collect();
    architecture.check_complete(layers as u64, owns.iter().copied()).map_err(fault)?;
    rules.check_biases(architecture.name(), layers, |name| owns.contains(name)).map_err(fault)?;
    let rows =
        find(&names, "token_embd.weight").and_then(|name| model.weights.info(name)?.shape.first().copied());
    let rows = rows.ok_or_else(|| fault("has no table of token embeddings".into()))?;
    let mut metadata = general(architecture, &model_name(model));
    metadata.extend(described.metadata);
    // Experts in MXFP4 stay in it in a file of floats, as in llama.cpp's conversion.
    let stays_mxfp4 =
        |name: &String| model.kind.is_some_and(FileType::is_float) && model.weights.is_mxfp4(name);
    let has_mxfp4 = names.iter().any(|(name, ..)| stays_mxfp4(name));
    let kind = match model.kind {
        Some(_) if has_mxfp4 => FileType::MXFP4,
        Some(kind) => kind,
        None => FileType::most_like(model.weights),
    };
    metadata.push(("general.file_type".into(), Meta::U32(kind.number())));
    metadata.push(("general.quantization_version".into(), Meta::U32(2)));
    if let Some(pooling) = model.pooling {
        metadata.push((format!("{}.pooling_type", architecture.name()), Meta::U32(pooling as u32)));
    }
    if let Some(tokenizer) = &model.tokenizer {
        let tokenizer = write_tokenizer::describe(tokenizer, rows);
        metadata.extend(tokenizer.map_err(|reason| fault(format!("tokenizer: {reason}")))?);
    } else {
        metadata.push(("tokenizer.ggml.model".into(), Meta::text("none")));
    }

    let (mut planned, mut steps, mut fallbacks) = (Vec::new(), Vec::new(), Vec::new());
    for (name, values) in described.vectors {
        planned.push(Planned { name: name.into(), shape: vec![values.len()], dtype: Dtype::F32 });
        steps.push(Step {
            from: From::Values(values),
            order: None,
            plus_one: false,
            transposed: false,
            as_stored: false,
        });
    }
    let (heads, key_heads) = (described.shape.heads, described.shape.key_heads);
    for (names, own, stem) in by_tensor(names) {
        let name = names[0].clone();
        let Some(info) = model.weights.info(&name) else { continue };
        let mut shape = info.shape.clone();
        let stays = names.iter().all(stays_mxfp4);
        let mut step = step(architecture, &name, stem, &shape, [heads, key_heads])
            .map_err(|reason| CheckpointError::tensor(model.weights.path(), &name, reason))?;
        let blocks = model.weights.block_format(&name).filter(|_| model.kind.is_none());
        if let Some((_, is_turned)) = blocks {
            // They run along the inputs, as in the file, whatever the layout of floats.
            (step.as_stored, step.transposed) = (true, is_turned);
        }
        if step.transposed {
            shape.reverse();
        }
        if stem.ends_with("_exps") {
            let count = described.shape.experts;
            let is_odd = |name: &&String| model.weights.info(name).is_none_or(|other| other.shape != shape);
            if let Some(odd) = names.iter().find(is_odd) {
                let reason = format!("has another shape than '{}'", excerpt(&name));
                return Err(CheckpointError::tensor(model.weights.path(), odd, reason));
            }
            let gap = names.iter().enumerate().find(|(place, name)| expert_number(name) != Some(*place));
            if names.len() != count || gap.is_some() {
                let of = gap.map_or(&name, |(_, name)| name);
                let reason = format!(
                    "is one of {} experts; expected those from 0 to {}",
                    names.len(),
                    count.saturating_sub(1)
                );
                return Err(CheckpointError::tensor(model.weights.path(), of, reason));
            }
            shape.insert(0, names.len());
            step.from = From::Experts(names);
        }
        let (wanted, dtype) = match (model.kind, blocks) {
            _ if stays => (Dtype::Block(BlockFormat::Mxfp4), Dtype::Block(BlockFormat::Mxfp4)),
            (Some(kind), _) => kind.of(&own, &shape, described.shape),
            (None, None) => FileType::from(float_of(info.dtype)).of(&own, &shape, described.shape),
            (None, Some((format, _))) if format.ggml_type().is_some() => {
                (Dtype::Block(format), Dtype::Block(format))
            }
            (None, Some((format, _))) => {
                let reason = format!("is stored in {format}, which GGUF files do not have; choose a type");
                return Err(CheckpointError::tensor(model.weights.path(), &name, reason));
            }
        };
        if wanted != dtype {
            match fallbacks.iter_mut().find(|(a, b, _)| (*a, *b) == (wanted, dtype)) {
                Some((_, _, count)) => *count += 1,
                None => fallbacks.push((wanted, dtype, 1)),
            }
        }
        planned.push(Planned { name: own, shape, dtype });
        steps.push(step);
    }
    let bytes =
        write_file(path, &metadata, &planned, |i| tensor(path, model.weights, &planned[i], &steps[i]))?;
    Ok(Written { bytes, tensors: planned.len(), fallbacks, warnings: described.warnings })
}

/// The float type of a tensor in a file of floats.
fn float_of(dtype: Dtype) -> FloatType {
    match dtype {
        Dtype::F16 => FloatType::F16,
        Dtype::BF16 => FloatType::BF16,
        _ => FloatType::F32,
    }
}

/// The name to write. llama.cpp assumes Phi-3's special tokens in any model called phi3, and fails if they are missing.
fn model_name(model: &ModelParts<'_>) -> String {
    let text = model.tokenizer.as_ref().map(|tokenizer| tokenizer.json.to_string());
    name_with(model.name, text.as_deref().unwrap_or_default()).to_owned()
}

/// The name to write beside a tokenizer of this text.
fn name_with<'n>(name: &'n str, tokenizer: &str) -> &'n str {
    let is_called_phi = ["phi3", "phi-3"].iter().any(|part| name.to_lowercase().contains(part));
    let has = |token: &&str| tokenizer.contains(&format!("\"{token}\""));
    let has_tokens = ["</s>", "<unk>", "<s>", "<|endoftext|>"].iter().all(has);
    if is_called_phi && !has_tokens { "model" } else { name }
}

/// The architecture of a config that is not compressed.
pub(crate) fn architecture(config: &Map<String, Json>) -> Result<&'static Architecture, String> {
    let kind = config.get("model_type").and_then(Json::as_str).unwrap_or_default();
    Architecture::of_model_type(kind).ok_or_else(|| {
        let known = Architecture::known();
        format!("model_type '{}' cannot be written as GGUF; llama.cpp's {known} can", excerpt(kind))
    })
}

/// The first entries of a file.
pub(crate) fn general(architecture: &Architecture, name: &str) -> Vec<(String, Meta)> {
    vec![
        ("general.architecture".into(), Meta::text(architecture.name())),
        ("general.type".into(), Meta::text("model")),
        ("general.name".into(), Meta::text(name)),
    ]
}

/// The tensors to write, outer ones first, then layer by layer: name, llama.cpp's name, its stem.
fn names(
    architecture: &'static Architecture,
    weights: &Checkpoint,
    rules: &Rules,
    is_tied: bool,
) -> Result<Vec<(String, String, &'static str)>, CheckpointError> {
    let prefix = architecture.layers.split_once('.').map_or("", |(prefix, _)| prefix);
    let is_prefixed =
        weights.names().any(|name| name.starts_with(prefix) && name[prefix.len()..].starts_with('.'));
    let mut names = Vec::new();
    for name in weights.names().filter(|name| !is_buffer(name)) {
        let full = if is_prefixed || name.starts_with("lm_head.") || name.starts_with("embed_out.") {
            name.to_owned()
        } else {
            format!("{prefix}.{name}")
        };
        let Some((own, stem)) = architecture.to_llama(&full) else {
            let reason = format!("llama.cpp's {} has no such tensor", architecture.name());
            return Err(CheckpointError::tensor(weights.path(), name, reason));
        };
        if let Some(info) = weights.info(name).filter(|info| !info.dtype.is_float()) {
            let reason = format!("is stored as {}; expected floats, or blocks of a GGUF file", info.dtype);
            return Err(CheckpointError::tensor(weights.path(), name, reason));
        }
        if own.ends_with(".bias") && !rules.has_bias(stem) {
            if weights.read_f32(name)?.iter().all(|&x| x == 0.0) {
                continue;
            }
            let reason = format!("llama.cpp's {} has no such bias", architecture.name());
            return Err(CheckpointError::tensor(weights.path(), name, reason));
        }
        names.push((name.to_owned(), own, stem));
    }
    let [table, mut head] =
        ["token_embd.weight", "output.weight"].map(|own| find(&names, own).map(str::to_owned));
    if head.is_none() && !is_tied {
        let reason = "has no head, and its config does not tie it to the embedding (tie_word_embeddings)";
        return Err(CheckpointError::malformed(weights.path(), reason));
    }
    // A head that is a copy of the table is not written.
    if let (Some(table), Some(copy)) = (&table, &head)
        && weights.info(table) == weights.info(copy)
        && weights.bytes(table)? == weights.bytes(copy)?
    {
        names.retain(|(_, own, _)| own != "output.weight");
        head = None;
    }
    match (rules.head, head, table) {
        (Head::Required, None, Some(table)) => names.push((table, "output.weight".into(), "output")),
        (Head::Tied, Some(head), _) => {
            let name = architecture.name();
            let reason = format!("is a separate head; the head of llama.cpp's {name} is the token embedding");
            return Err(CheckpointError::tensor(weights.path(), &head, reason));
        }
        _ => {}
    }
    let place = |own: &str| layer_of(own).map_or(0, |(layer, _)| layer + 1);
    names.sort_by(|a, b| (place(&a.1), &a.1).cmp(&(place(&b.1), &b.1)));
    Ok(names)
}

/// The checkpoint's name of one of llama.cpp's tensors.
fn find<'n>(names: &'n [(String, String, &'static str)], own: &str) -> Option<&'n str> {
    names.iter().find(|(_, other, _)| other == own).map(|(name, ..)| name.as_str())
}

/// The number of the expert that a tensor belongs to.
fn expert_number(name: &str) -> Option<usize> {
    expert_of(name)?.rsplit('.').next()?.parse().ok()
}

/// The names of the checkpoint's tensors that become one of llama.cpp's: one, or one for each expert, in their order.
fn by_tensor(names: Vec<(String, String, &'static str)>) -> Vec<(Vec<String>, String, &'static str)> {
    let mut tensors: Vec<(Vec<String>, String, &'static str)> = Vec::new();
    for (name, own, stem) in names {
        match tensors.last_mut() {
            Some((names, last, _)) if *last == own => names.push(name),
            _ => tensors.push((vec![name], own, stem)),
        }
    }
    for (names, ..) in &mut tensors {
        names.sort_by_key(|name| expert_number(name));
    }
    tensors
}

/// How llama.cpp's conversion changes a tensor.
fn step(
    architecture: &Architecture,
    name: &str,
    stem: &str,
    shape: &[usize],
    [heads, key_heads]: [usize; 2],
) -> Result<Step, String> {
    let mut step = Step {
        from: From::Tensor(name.to_owned()),
        order: None,
        plus_one: false,
        transposed: false,
        as_stored: false,
    };
    let rows = shape.first().copied().unwrap_or(0);
    match architecture.changes {
        Changes::Interleaved if matches!(stem, "attn_q" | "attn_k") => {
            let heads = if stem == "attn_q" { heads } else { key_heads };
            step.order = Some(interleave(rows, heads)?);
        }
        Changes::ByPart if stem == "attn_qkv" => {
            let width = rows / (3 * heads).max(1);
            if width * 3 * heads != rows {
                return Err(format!(
                    "{rows} rows do not divide into queries, keys and values of {heads} heads"
                ));
            }
            step.order = Some(RowOrder { dims: [3, heads, width], strides: [width, 3 * width, 1] });
        }
        Changes::PlusOne if stem.ends_with("norm") => step.plus_one = true,
        Changes::Transposed
            if shape.len() == 2
                && (stem.starts_with("ffn") || matches!(stem, "attn_qkv" | "attn_output")) =>
        {
            step.transposed = true;
        }
        _ => {}
    }
    Ok(step)
}

/// The order in which the halves of each head alternate.
pub(crate) fn interleave(rows: usize, heads: usize) -> Result<RowOrder, String> {
    let width = rows / heads.max(1);
    if width * heads != rows || !width.is_multiple_of(2) {
        return Err(format!("{rows} rows do not divide into pairs in {heads} heads"));
    }
    Ok(RowOrder { dims: [heads, width / 2, 2], strides: [width, 1, width / 2] })
}

/// The bytes of a tensor.
fn tensor(
    path: &Path,
    weights: &Checkpoint,
    planned: &Planned,
    step: &Step,
) -> Result<Vec<u8>, CheckpointError> {
    if step.as_stored {
        let names = match &step.from {
            From::Values(_) => &[][..],
            From::Experts(names) => names,
            From::Tensor(name) => std::slice::from_ref(name),
        };
        let mut bytes = Vec::new();
        for name in names {
            bytes.extend(weights.read_blocks(name)?);
        }
        let rows = planned.shape.first().copied().unwrap_or(1).max(1);
        return Ok(match &step.order {
            Some(order) => order.gather(&bytes, bytes.len() / rows),
            None => bytes,
        });
    }
    let mut values = match &step.from {
        From::Values(values) => values.clone(),
        From::Experts(names) => {
            // One expert's values at a time.
            let shape = planned.shape[1..].to_vec();
            let one = Planned { name: planned.name.clone(), shape, dtype: planned.dtype };
            let mut bytes = Vec::new();
            for name in names {
                bytes.extend(encode_values(path, &one, &weights.read_f32(name)?)?);
            }
            return Ok(bytes);
        }
        From::Tensor(name) if step.transposed => weights.read_f32_transposed(name)?,
        From::Tensor(name) => weights.read_f32(name)?,
    };
    if step.plus_one {
        values.iter_mut().for_each(|x| *x += 1.0);
    }
    if let Some(order) = &step.order {
        let rows = planned.shape.first().copied().unwrap_or(1).max(1);
        values = order.gather(&values, values.len() / rows);
    }
    encode_values(path, planned, &values)
}

/// Values in a planned type.
pub(crate) fn encode_values(
    path: &Path,
    planned: &Planned,
    values: &[f32],
) -> Result<Vec<u8>, CheckpointError> {
    let (float, name): (FloatType, &str) = match planned.dtype {
        Dtype::Block(format) => return quantize(path, planned, format, values),
        Dtype::F16 => (FloatType::F16, "F16"),
        Dtype::BF16 => (FloatType::BF16, "BF16"),
        _ => (FloatType::F32, "F32"),
    };
    let mut bytes = Vec::with_capacity(values.len() * planned.dtype.size());
    encode(values, float, &mut bytes).map_err(|value| CheckpointError::Overflow {
        path: path.to_owned(),
        tensor: excerpt(&planned.name),
        value,
        dtype: name,
    })?;
    Ok(bytes)
}

/// Rounds a matrix on all cores.
fn quantize(
    path: &Path,
    planned: &Planned,
    format: BlockFormat,
    values: &[f32],
) -> Result<Vec<u8>, CheckpointError> {
    let columns = planned.shape.last().copied().unwrap_or(1).max(1);
    let rows = values.len() / columns;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let band = rows.div_ceil(threads).max(1);
    let fault = |reason: String| CheckpointError::tensor(path, &planned.name, reason);
    let parts: Vec<Result<Vec<u8>, String>> = std::thread::scope(|scope| {
        let bands = values.chunks(band * columns);
        let handles: Vec<_> = bands
            .enumerate()
            .map(|(i, values)| {
                scope.spawn(move || {
                    let quantised = format.quantize([values.len() / columns, columns], values);
                    // Rows are counted from the band's first.
                    quantised.map_err(|error| match i {
                        0 => error.to_string(),
                        i => format!("from row {} on: {error}", i * band),
                    })
                })
            })
            .collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, _>| {
            handle.join().unwrap_or_else(|_| Err("rounding ended in a panic".into()))
        };
        handles.into_iter().map(join).collect()
    });
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend(part.map_err(fault)?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llama.cpp looks four tokens up in any model of that name.
    #[test]
    fn a_phi3_without_its_tokens_has_another_name() {
        let tokens = r#"["<unk>", "<s>", "</s>"]"#;
        assert_eq!(name_with("tiny-Phi3-style", tokens), "model");
        assert_eq!(name_with("tiny-Phi3-style", &format!(r#"{tokens} "<|endoftext|>""#)), "tiny-Phi3-style");
        assert_eq!(name_with("tiny-llama", ""), "tiny-llama");
    }
}
