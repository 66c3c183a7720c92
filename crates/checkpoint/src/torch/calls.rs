//! The few constructors in the pickles of torch, interpreted without calling anything.

use super::value::{Arena, Global, Id, Storage, Value, View};
use crate::{
    Dtype,
    error::{Fault, excerpt},
};

/// Dimensions of a tensor. Shapes are the only values that many tensors copy from one place in the pickle.
const MAX_DIMS: usize = 16;
/// Bytes of a storage's key; torch writes small numbers.
pub(crate) const MAX_KEY: usize = 256;

impl<'a> Arena<'a> {
    /// The value that a call would return.
    pub(crate) fn call(&mut self, function: Id, arguments: Id) -> Result<Value<'a>, Fault> {
        let (&Value::Global(function), Value::Tuple(arguments)) = (self.get(function), self.get(arguments))
        else {
            return Err(Fault::file("pickle: a call of something that is not a function"));
        };
        let value = match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => Value::Dict(Vec::new()),
            (Global::OrderedDict, &[items]) => Value::Dict(self.items(items)?),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ref rest @ ..]) if rest.len() <= 3 => {
                // The third of the rest, if any, holds flags such as a pending conjugation.
                if let Some(&flags) = rest.get(2)
                    && !matches!(self.get(flags), Value::None)
                    && !matches!(self.get(flags), Value::Dict(flags) if flags.is_empty())
                {
                    return Err(Fault::file(
                        "pickle: a tensor with pending flags; save tensor.resolve_neg() instead",
                    ));
                }
                let Value::Storage(_) = self.get(storage) else {
                    return Err(Fault::file("pickle: a tensor without a storage"));
                };
                let offset = self.index(offset)?;
                Value::Tensor(View {
                    storage,
                    offset,
                    shape: self.indices(shape)?,
                    strides: self.indices(strides)?,
                })
            }
            (Global::RebuildParameter, &[tensor, _, _]) => match self.get(tensor) {
                Value::Tensor(view) => Value::Tensor(view.clone()),
                _ => return Err(Fault::file("pickle: a parameter without a tensor")),
            },
            (function, arguments) => {
                return Err(Fault::file(format!(
                    "pickle: {function:?} called with {} arguments",
                    arguments.len()
                )));
            }
        };
        if let Value::Dict(entries) = &value {
            self.count_copies(entries.len())?;
        }
        Ok(value)
    }

    /// The entries of an `OrderedDict` that is given as a list of pairs.
    fn items(&self, items: Id) -> Result<Vec<(Id, Id)>, Fault> {
        let (Value::List(list) | Value::Tuple(list)) = self.get(items) else {
            return Err(Fault::file("pickle: an OrderedDict of something that is not a list"));
        };
        let entry = |&item: &Id| match self.get(item) {
            Value::List(pair) | Value::Tuple(pair) => match pair.as_slice() {
                &[key, value] => Ok((key, value)),
                _ => Err(Fault::file("pickle: an OrderedDict of something that is not pairs")),
            },
            _ => Err(Fault::file("pickle: an OrderedDict of something that is not pairs")),
        };
        list.iter().map(entry).collect()
    }

    /// `('storage', type, key, location, number of elements[, part])`; the location (`cuda:0`) does not matter.
    pub(crate) fn persistent(&self, id: Id) -> Result<Storage<'a>, Fault> {
        let fault = || Fault::file("pickle: a persistent id that is not a storage of torch.save");
        let Value::Tuple(fields) = self.get(id) else { return Err(fault()) };
        let (&[kind, dtype, key, _location, numel], part) = (match fields.as_slice() {
            [fields @ .., part] if fields.len() == 5 => (fields, Some(*part)),
            fields => (fields, None),
        }) else {
            return Err(fault());
        };
        let (Value::Text("storage"), &Value::Global(Global::StorageType(dtype)), &Value::Text(key)) =
            (self.get(kind), self.get(dtype), self.get(key))
        else {
            return Err(fault());
        };
        if key.len() > MAX_KEY {
            return Err(fault());
        }
        let part = match part.map(|part| self.get(part)) {
            None | Some(Value::None) => None,
            Some(Value::Tuple(part)) => match part.as_slice() {
                &[_key, offset, numel] => Some((self.index(offset)?, self.index(numel)?)),
                _ => return Err(fault()),
            },
            Some(_) => return Err(fault()),
        };
        Ok(Storage { dtype, key, numel: self.index(numel)?, part })
    }

    fn index(&self, id: Id) -> Result<usize, Fault> {
        match self.get(id) {
            Value::Int(int) => usize::try_from(*int)
                .map_err(|_| Fault::file(format!("pickle: {int} where a size is expected"))),
            _ => Err(Fault::file("pickle: a size that is not a number")),
        }
    }

    fn indices(&self, id: Id) -> Result<Vec<usize>, Fault> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) if items.len() > MAX_DIMS => Err(Fault::file(format!(
                "pickle: a tensor of {} dimensions, more than {MAX_DIMS}",
                items.len()
            ))),
            Value::Tuple(items) | Value::List(items) => items.iter().map(|&item| self.index(item)).collect(),
            _ => Err(Fault::file("pickle: a shape that is not a tuple")),
        }
    }
}

/// The short list of names that stand for tensor data.
pub(crate) fn global(module: &str, name: &str) -> Result<Global, Fault> {
    let known = match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("torch" | "torch.cuda", name) => match name.strip_suffix("Storage") {
            Some("Double") => Some(Dtype::F64),
            Some("Float") => Some(Dtype::F32),
            Some("Half") => Some(Dtype::F16),
            Some("BFloat16") => Some(Dtype::BF16),
            Some("Long") => Some(Dtype::I64),
            Some("Int") => Some(Dtype::I32),
            Some("Short") => Some(Dtype::I16),
            Some("Char") => Some(Dtype::I8),
            Some("Byte") => Some(Dtype::U8),
            Some("Bool") => Some(Dtype::Bool),
            _ => None,
        }
        .map(Global::StorageType),
        _ => None,
    };
    known.ok_or_else(|| Fault::Global(format!("{}.{}", excerpt(module), excerpt(name))))
}
