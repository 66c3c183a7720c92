//! The tensors of a GGUF file under Hugging Face's names, with what llama.cpp's conversion changed in them undone.

use std::collections::btree_map::Entry as Slot;

use super::architecture::{Architecture, Changes};
use super::read::{Parsed, Tensor};
use super::value::Value;
use crate::dtype::{Dtype, TensorInfo};
use crate::error::{Fault, excerpt};
use crate::map::Bytes;
use crate::source::{Entry, Layout, RowOrder, Table};

/// Tensors that are part of the config.
const WITHOUT_MODULE: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
/// End of the names of a layer's frequencies, which follow from the config.
const FREQUENCIES: &str = ".attn_rot_embd.weight";

/// The tensors of a model, and bytes that some of them lie in, which come after its files.
///
/// A file of an architecture that is not known keeps llama.cpp's names.
pub(crate) fn table(parsed: &Parsed<'_>) -> Result<(Table, Bytes), Fault> {
    let mut table = Table { metadata: strings(parsed), ..Table::default() };
    let mut beside = Vec::new();
    let architecture =
        parsed.metadata.get("general.architecture").and_then(|value| value.as_text()).unwrap_or_default();
    let is_model = parsed.metadata.get("general.type").is_none_or(|kind| kind.as_text() == Some("model"));
    let known = Architecture::of_file(&parsed.metadata).filter(|_| is_model);
    let heads = Heads::of(architecture, parsed);
    let experts_key = format!("{architecture}.expert_count");
    let expert_count = parsed.metadata.get(experts_key.as_str()).and_then(|count| count.as_count());
    let mut insert = |name: &str, hub: String, entry: Entry| match table.tensors.entry(hub) {
        Slot::Vacant(slot) => {
            slot.insert(entry);
            Ok(())
        }
        Slot::Occupied(slot) => {
            let reason = format!("another tensor stands for '{}' as well", excerpt(slot.key()));
            Err(Fault::tensor(name, reason))
        }
    };
    for (&name, tensor) in &parsed.tensors {
        let entry = Entry {
            info: TensorInfo { shape: tensor.shape.clone(), dtype: tensor.dtype },
            source: tensor.source,
            layout: Layout::Contiguous { start: tensor.start, len: tensor.len },
        };
        let Some(known) = known else {
            insert(name, name.to_owned(), entry)?;
            continue;
        };
        if WITHOUT_MODULE.contains(&name) || name.ends_with(FREQUENCIES) {
            continue;
        }
        if let Some((hub, stem)) = known.to_hub(name) {
            if let Some((before, after)) = hub.split_once('*') {
                let parts =
                    experts(tensor, name.ends_with(".bias")).map_err(|reason| Fault::tensor(name, reason))?;
                let count = tensor.shape[0] as u64;
                if let Some(expected) = expert_count.filter(|expected| *expected != count) {
                    let reason = format!("holds {count} experts, and {experts_key} is {expected}");
                    return Err(Fault::tensor(name, excerpt(&reason)));
                }
                for (i, part) in parts.enumerate() {
                    insert(name, format!("{before}{i}{after}"), part)?;
                }
                continue;
            }
            let entry = changed(known, stem, tensor, entry, heads, parsed, &mut beside)
                .map_err(|reason| Fault::tensor(name, reason))?;
            insert(name, hub, entry)?;
            continue;
        }
        match split(known, name, tensor, heads, parsed)? {
            Some(parts) => {
                for (hub, part) in parts {
                    insert(name, hub, part)?;
                }
            }
            // The model reports a tensor that it does not have.
            None => insert(name, name.to_owned(), entry)?,
        }
    }
    Ok((table, Bytes::Owned(beside)))
}

/// Numbers, truth values and texts of the metadata.
fn strings(parsed: &Parsed<'_>) -> std::collections::BTreeMap<String, String> {
    let text = |value: &Value<'_>| match *value {
        Value::Unsigned(number) => Some(number.to_string()),
        Value::Signed(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Text(text) => Some(text.to_owned()),
        Value::Array(_) => None,
    };
    parsed.metadata.iter().filter_map(|(key, value)| Some(((*key).to_owned(), text(value)?))).collect()
}

/// Numbers of heads of queries and of keys; 0 if the file does not give them.
#[derive(Clone, Copy, Debug)]
struct Heads {
    queries: usize,
    keys: usize,
}

impl Heads {
    fn of(architecture: &str, parsed: &Parsed<'_>) -> Self {
        let count = |key: &str| {
            let value = *parsed.metadata.get(format!("{architecture}.{key}").as_str())?;
            // A list has a number for each layer; the config refuses a list of different ones.
            let value = match value {
                Value::Array(list) => list.values().next()?,
                value => value,
            };
            value.as_count().and_then(|count| usize::try_from(count).ok())
        };
        let queries = count("attention.head_count").unwrap_or(0);
        Self { queries, keys: count("attention.head_count_kv").unwrap_or(queries) }
    }
}

/// An entry with what the conversion changed undone.
fn changed(
    architecture: &Architecture,
    stem: &str,
    tensor: &Tensor,
    mut entry: Entry,
    heads: Heads,
    parsed: &Parsed<'_>,
    beside: &mut Vec<u8>,
) -> Result<Entry, String> {
    let rows = tensor.shape.first().copied().unwrap_or(0);
    if tensor.len == 0 || rows == 0 {
        return Err("has no elements".into());
    }
    match architecture.changes {
        Changes::Interleaved if matches!(stem, "attn_q" | "attn_k") => {
            let heads = if stem == "attn_q" { heads.queries } else { heads.keys };
            entry.layout = Layout::Rows { start: tensor.start, order: interleaved(heads, rows)? };
        }
        Changes::ByPart if stem == "attn_qkv" => {
            let parts = heads.queries.saturating_mul(3);
            if parts == 0 || !rows.is_multiple_of(parts) {
                return Err(format!(
                    "{rows} rows do not divide into queries, keys and values of {} heads",
                    heads.queries
                ));
            }
            let width = rows / parts;
            let order =
                RowOrder { dims: [heads.queries, 3, width], strides: [width, heads.queries * width, 1] };
            entry.layout = Layout::Rows { start: tensor.start, order };
        }
        // A map to one number may be a vector in llama.cpp.
        _ if stem == "ffn_gate_inp_shexp" && tensor.shape.len() == 1 => entry.info.shape.insert(0, 1),
        Changes::PlusOne if stem.ends_with("norm") => {
            if tensor.dtype != Dtype::F32 {
                return Err(format!("a norm in {}; expected F32", tensor.dtype));
            }
            let start = beside.len();
            // Exact where the sum was not rounded, and undone exactly by the model, which adds 1 again.
            beside.extend(
                parsed
                    .bytes(tensor)
                    .as_chunks()
                    .0
                    .iter()
                    .flat_map(|x| (f32::from_le_bytes(*x) - 1.0).to_le_bytes()),
            );
            (entry.source, entry.layout) =
                (parsed.files.len(), Layout::Contiguous { start, len: tensor.len });
        }
        Changes::Transposed
            if tensor.shape.len() == 2
                && (stem.starts_with("ffn") || stem == "attn_qkv" || stem == "attn_output") =>
        {
            entry.info.shape.reverse();
            if let Dtype::Block(_) = tensor.dtype {
                entry.info.dtype = Dtype::F32;
            }
            let (start, len, stored) = (tensor.start, tensor.len, tensor.dtype);
            entry.layout = Layout::Transposed { start, len, stored };
        }
        _ => {}
    }
    Ok(entry)
}

/// The maps or biases of all experts, which lie one after the other.
fn experts(tensor: &Tensor, is_bias: bool) -> Result<impl Iterator<Item = Entry>, String> {
    let (dims, expected) = if is_bias { (2, "outputs") } else { (3, "rows and columns") };
    let Some((&count, shape)) = tensor.shape.split_first().filter(|_| tensor.shape.len() == dims) else {
        return Err(format!("has {} dimensions; expected experts, {expected}", tensor.shape.len()));
    };
    if tensor.len == 0 {
        return Err("has no elements".into());
    }
    let (start, len, shape) = (tensor.start, tensor.len / count, shape.to_vec());
    let (source, dtype) = (tensor.source, tensor.dtype);
    Ok((0..count).map(move |i| Entry {
        info: TensorInfo { shape: shape.clone(), dtype },
        source,
        layout: Layout::Contiguous { start: start + i * len, len },
    }))
}

/// The order that puts the halves of heads one after the other again.
fn interleaved(heads: usize, rows: usize) -> Result<RowOrder, String> {
    if heads == 0 || heads > rows || !rows.is_multiple_of(2 * heads) {
        return Err(format!("{rows} rows do not divide into pairs in {heads} heads"));
    }
    let width = rows / heads;
    Ok(RowOrder { dims: [heads, 2, width / 2], strides: [width, 1, 2] })
}

/// Queries, keys and values of a fused map, where the architecture keeps them apart.
fn split(
    architecture: &Architecture,
    name: &str,
    tensor: &Tensor,
    heads: Heads,
    parsed: &Parsed<'_>,
) -> Result<Option<Vec<(String, Entry)>>, Fault> {
    let Some((stem, end)) = name.rsplit_once(".attn_qkv.") else { return Ok(None) };
    if !architecture.layer.iter().any(|(own, _)| *own == "attn_q") {
        return Ok(None);
    }
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let all = heads.queries.saturating_add(heads.keys.saturating_mul(2));
    if all == 0 || !rows.is_multiple_of(all) {
        let Heads { queries, keys } = heads;
        let reason = format!(
            "{rows} rows do not divide into {queries} heads of queries and 2·{keys} of keys and values"
        );
        return Err(Fault::tensor(name, reason));
    }
    let (width, row_bytes) = (rows / all, tensor.len / rows.max(1));
    let mut start = tensor.start;
    let mut parts = Vec::new();
    for (part, heads_of_part) in [("attn_q", heads.queries), ("attn_k", heads.keys), ("attn_v", heads.keys)] {
        let mut shape = tensor.shape.clone();
        shape[0] = heads_of_part * width;
        let len = shape[0] * row_bytes;
        let piece = Tensor { shape: shape.clone(), start, len, ..*tensor };
        let entry = Entry {
            info: TensorInfo { shape, dtype: tensor.dtype },
            source: tensor.source,
            layout: Layout::Contiguous { start, len },
        };
        let own = format!("{stem}.{part}.{end}");
        let Some((hub, _)) = architecture.to_hub(&own) else { return Ok(None) };
        let entry = changed(architecture, part, &piece, entry, heads, parsed, &mut Vec::new())
            .map_err(|reason| Fault::tensor(name, reason))?;
        parts.push((hub, entry));
        start += len;
    }
    Ok(Some(parts))
}
