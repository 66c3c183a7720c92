//! From the values of a pickle to named tensors: finding the state dict, checking each view against its storage.

use std::{collections::HashSet, ops::Range};

use super::value::{Arena, Id, Storage, Value, View};
use crate::{
    dtype::{TensorInfo, byte_size, numel},
    error::Fault,
    source::{Entry, Layout, Table, is_contiguous},
};

/// Keys under which training scripts store the state dict, in order of precedence.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model", "module"];
/// Maximum nesting depth of such wrappers.
const MAX_DEPTH: usize = 4;

/// Builds the table of tensors; `place` finds a storage's bytes in the file.
pub(crate) fn table<'a>(
    arena: &Arena<'a>,
    top: Id,
    place: impl Fn(&Storage<'a>) -> Option<Range<usize>>,
) -> Result<Table, Fault> {
    let mut table = Table::default();
    // A collection may be stored under many names; checking it once is enough.
    let mut searched = HashSet::new();
    for &(key, value) in find(arena, top)? {
        let name = match arena.get(key) {
            Value::Text(name) => *name,
            _ if matches!(arena.get(value), Value::Tensor(_)) => {
                return Err(Fault::file("a tensor under a key that is not text; save a plain state dict"));
            }
            _ => continue,
        };
        match arena.get(value) {
            Value::Tensor(view) => {
                let entry = entry(arena, name, view, &place)?;
                if table.tensors.insert(name.to_owned(), entry).is_some() {
                    return Err(Fault::tensor(name, "two tensors of this name"));
                }
            }
            Value::Text(text) => {
                table.metadata.insert(name.to_owned(), (*text).to_owned());
            }
            Value::Int(int) => {
                table.metadata.insert(name.to_owned(), int.to_string());
            }
            Value::Float(float) => {
                table.metadata.insert(name.to_owned(), float.to_string());
            }
            Value::Bool(flag) => {
                table.metadata.insert(name.to_owned(), flag.to_string());
            }
            // Extra state of a module besides its weights, in a form that only the module understands.
            _ if name.ends_with("_extra_state") => {}
            inner if searched.insert(value) && holds_tensors(arena, inner) => {
                return Err(Fault::tensor(
                    name,
                    "a collection of tensors beside tensors; save a plain state dict",
                ));
            }
            _ => {}
        }
    }
    Ok(table)
}

/// The dictionary whose values are tensors: the object itself, or its entry under a usual key.
fn find<'b>(arena: &'b Arena<'_>, mut at: Id) -> Result<&'b [(Id, Id)], Fault> {
    for _ in 0..MAX_DEPTH {
        let Value::Dict(entries) = arena.get(at) else {
            return Err(Fault::file("not a state dict (a dictionary of tensors); save model.state_dict()"));
        };
        let under = |wrapper: &&str| {
            entries.iter().find(|(key, _)| matches!(arena.get(*key), Value::Text(text) if text == wrapper))
        };
        if entries.is_empty() || holds_tensors(arena, arena.get(at)) {
            return Ok(entries);
        }
        let Some(&(_, inner)) = WRAPPERS.iter().find_map(under) else {
            return Err(Fault::file(format!(
                "no tensors at the top nor under {}; save model.state_dict()",
                WRAPPERS.join(", ")
            )));
        };
        at = inner;
    }
    Err(Fault::file("a state dict nested too deep; save model.state_dict()"))
}

/// Whether a collection has a tensor as a direct member.
fn holds_tensors(arena: &Arena<'_>, value: &Value<'_>) -> bool {
    let is_tensor = |id: Id| matches!(arena.get(id), Value::Tensor(_));
    match value {
        Value::Dict(entries) => entries.iter().any(|&(_, value)| is_tensor(value)),
        Value::List(items) | Value::Tuple(items) => items.iter().any(|&item| is_tensor(item)),
        _ => false,
    }
}

/// Checks one view against its storage and computes its position in the file.
fn entry<'a>(
    arena: &Arena<'a>,
    name: &str,
    view: &View,
    place: impl Fn(&Storage<'a>) -> Option<Range<usize>>,
) -> Result<Entry, Fault> {
    let fault = |reason: String| Fault::tensor(name, reason);
    let Value::Storage(storage) = arena.get(view.storage) else {
        return Err(fault("no storage".to_owned()));
    };
    let dtype = storage.dtype;
    let Some(place) = place(storage) else {
        return Err(fault(
            "its storage is missing; the file is incomplete, download or save it again".to_owned(),
        ));
    };
    if storage.numel.checked_mul(dtype.size()) != Some(place.len()) {
        let expected = storage.numel;
        return Err(fault(format!(
            "its storage has {} bytes for {expected} elements of {dtype}",
            place.len()
        )));
    }
    let (first, available) = storage.part.unwrap_or((0, storage.numel));
    if first.checked_add(available).is_none_or(|end| end > storage.numel) {
        return Err(fault("its part of the storage lies outside the storage".to_owned()));
    }
    if view.shape.len() != view.strides.len() {
        return Err(fault(format!("{} dimensions but {} strides", view.shape.len(), view.strides.len())));
    }
    let (Some(numel), Some(len)) = (numel(&view.shape), byte_size(&view.shape, dtype)) else {
        return Err(fault("its shape overflows".to_owned()));
    };
    let last = last_element(view);
    if numel > 0 && last.is_none_or(|last| last >= available) || view.offset > available {
        return Err(fault(format!("reaches beyond the {available} elements of its storage")));
    }
    // The repetitions of a view would take many times more memory than the file.
    if numel > available {
        return Err(fault(format!(
            "an expanded view, {numel} elements of {available}; save tensor.contiguous()"
        )));
    }
    let start = place.start + (first + view.offset) * dtype.size();
    let layout = if numel == 0 || is_contiguous(&view.shape, &view.strides) {
        Layout::Contiguous { start, len }
    } else {
        Layout::Strided { start, strides: view.strides.clone() }
    };
    Ok(Entry { info: TensorInfo { shape: view.shape.clone(), dtype }, source: 0, layout })
}

/// The index of the last element of a view in its storage, or `None` if it overflows. Strides are not
/// negative.
fn last_element(view: &View) -> Option<usize> {
    view.shape.iter().zip(&view.strides).try_fold(view.offset, |last, (&dim, &stride)| {
        dim.saturating_sub(1).checked_mul(stride).and_then(|step| last.checked_add(step))
    })
}
