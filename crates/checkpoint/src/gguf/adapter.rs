//! Writing a LoRA for llama.cpp's `--lora`.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::architecture::Changes;
use super::model::{architecture, encode_values, general, interleave};
use super::rules::{Head, Rules};
use super::write::{Meta, Planned, write_file};
use super::write_config;
use crate::dtype::{Dtype, FloatType};
use crate::error::CheckpointError;
use crate::source::RowOrder;

/// The factors of one map: its weight gains `scale·b·a`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Path of the map, as Hugging Face has it.
    pub path: String,
    /// Row-major, shape `[rank, d_input]`.
    pub a: Vec<f32>,
    /// Row-major, shape `[d_output, rank]`.
    pub b: Vec<f32>,
    /// The rank.
    pub rank: usize,
    /// Factor on the product.
    pub scale: f64,
}

/// An adapter to write.
#[derive(Debug)]
pub struct AdapterParts<'a> {
    /// Name of the adapter.
    pub name: &'a str,
    /// `config.json` of the base.
    pub config: &'a Map<String, Json>,
    /// Whether the base's head is tied to its embedding.
    pub tied: bool,
    /// The factors.
    pub pairs: &'a [Pair],
    /// Type of the factors in the file.
    pub dtype: FloatType,
}

/// Writes an adapter, whole or not at all; returns the bytes.
///
/// # Errors
/// [`BadTensor`](CheckpointError::BadTensor) for factors of a map that llama.cpp's architecture does not have, or that cannot
/// adapt it there; [`Malformed`](CheckpointError::Malformed) for a base that llama.cpp does not run;
/// [`Io`](CheckpointError::Io).
pub fn write_adapter(path: &Path, adapter: &AdapterParts<'_>) -> Result<u64, CheckpointError> {
    let fault = |reason: String| CheckpointError::malformed(path, reason);
    let architecture = architecture(adapter.config).map_err(fault)?;
    let described = write_config::describe(architecture, adapter.config, adapter.tied)
        .map_err(|reason| fault(format!("config of the base: {reason}")))?;
    let alphas = adapter.pairs.iter().map(|pair| pair.scale * pair.rank as f64);
    let alpha = alphas.clone().next().unwrap_or(0.0);
    // A common alpha, or 0, with which llama.cpp does not scale.
    let shared = alpha != 0.0 && alphas.clone().all(|other| (other - alpha).abs() <= 1e-6 * alpha.abs());
    let mut metadata = general(architecture, adapter.name);
    metadata.retain(|(key, _)| key != "general.type");
    metadata.push(("general.type".into(), Meta::text("adapter")));
    metadata.push(("adapter.type".into(), Meta::text("lora")));
    metadata.push(("adapter.lora.alpha".into(), Meta::F32(if shared { alpha as f32 } else { 0.0 })));
    // One table for both in the file of the base.
    let is_shared = adapter.tied && Rules::of(architecture.family).head != Head::Required;
    let (mut planned, mut values) = (Vec::new(), Vec::new());
    for pair in adapter.pairs {
        let wrong = |reason: String| CheckpointError::tensor(path, &pair.path, reason);
        let own = architecture.to_llama(&format!("{}.weight", pair.path));
        let (own, stem) =
            own.ok_or_else(|| wrong(format!("llama.cpp's {} has no such map", architecture.name())))?;
        if stem.ends_with("_exps") {
            return Err(wrong(
                "adapts a single expert, which a GGUF LoRA cannot; merge the adapter into the model and convert the \
                 result"
                    .into(),
            ));
        }
        // llama.cpp would take the embedding's factors, which are transposed, for the head's.
        if is_shared && (stem == "output" || stem == "token_embd") {
            return Err(wrong(
                "the head is tied to the embedding, and llama.cpp cannot adapt one of them alone; merge the adapter into \
                 the model and convert the result"
                    .into(),
            ));
        }
        if pair.rank == 0
            || !pair.a.len().is_multiple_of(pair.rank)
            || !pair.b.len().is_multiple_of(pair.rank)
        {
            let (a, b) = (pair.a.len(), pair.b.len());
            return Err(wrong(format!("factors of {a} and {b} elements do not have rank {}", pair.rank)));
        }
        let (d_input, d_output) = (pair.a.len() / pair.rank, pair.b.len() / pair.rank);
        let heads = [described.shape.heads, described.shape.key_heads];
        let (a, mut b) = (pair.a.clone(), pair.b.clone());
        if let Some(order) = order(architecture.changes, stem, d_output, heads).map_err(wrong)? {
            b = order.gather(&b, pair.rank);
        }
        if !shared {
            b.iter_mut().for_each(|x| *x = (f64::from(*x) * pair.scale) as f32);
        }
        let dtype = Dtype::from(adapter.dtype);
        // llama.cpp looks rows of the table up, so that this factor is transposed.
        let (a, a_shape) = match stem {
            "token_embd" => (lowrank_spec::transpose(&a, pair.rank, d_input), vec![d_input, pair.rank]),
            _ => (a, vec![pair.rank, d_input]),
        };
        planned.push(Planned { name: format!("{own}.lora_a"), shape: a_shape, dtype });
        planned.push(Planned { name: format!("{own}.lora_b"), shape: vec![d_output, pair.rank], dtype });
        values.extend([a, b]);
    }
    write_file(path, &metadata, &planned, |i| encode_values(path, &planned[i], &values[i]))
}

/// The order of the rows of a factor on the output's side.
fn order(
    changes: Changes,
    stem: &str,
    rows: usize,
    [heads, key_heads]: [usize; 2],
) -> Result<Option<RowOrder>, String> {
    match changes {
        Changes::Interleaved if stem == "attn_q" => interleave(rows, heads).map(Some),
        Changes::Interleaved if stem == "attn_k" => interleave(rows, key_heads).map(Some),
        Changes::ByPart if stem == "attn_qkv" => {
            let width = rows / (3 * heads).max(1);
            Ok(Some(RowOrder { dims: [3, heads, width], strides: [width, 3 * width, 1] }))
        }
        _ => Ok(None),
    }
}
