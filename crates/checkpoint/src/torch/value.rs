//! The values of a pickle, restricted to tensor data.

use crate::{Dtype, error::Fault};

/// Maximum number of values of a pickle: enough for a hundred thousand tensors, a bound for a hostile file.
const MAX_VALUES: usize = 4_000_000;
const TOO_MANY: &str = "pickle: more than four million values; convert the file to safetensors";

/// Index of a value in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u32);

/// A value of the pickle.
#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, little-endian two's complement.
    BigInt(&'a [u8]),
    Float(f64),
    Text(&'a str),
    /// Raw bytes; no part of a tensor, so their content is dropped.
    Bytes,
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(View),
}

/// The known Python names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2` and the older `_rebuild_tensor`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and kin
    StorageType(Dtype),
}

/// A storage as its persistent id describes it: a run of elements somewhere else in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) key: &'a str,
    pub(crate) numel: usize,
    /// A part of the storage, first element and number of elements; only in old files.
    pub(crate) part: Option<(usize, usize)>,
}

/// A tensor: a strided view of a storage, not yet checked against it.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) storage: Id,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

/// The values of one pickle.
#[derive(Debug, Default)]
pub(crate) struct Arena<'a> {
    values: Vec<Value<'a>>,
    /// Number of entries copied from one value into another, which a pickle could request without end.
    copied: usize,
}

impl<'a> Arena<'a> {
    /// The value of an index; indices are only created by [`push`](Self::push).
    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        self.values.get(id.0 as usize).unwrap_or(&Value::None)
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut Value<'a>> {
        self.values.get_mut(id.0 as usize)
    }

    pub(crate) fn push(&mut self, value: Value<'a>) -> Result<Id, Fault> {
        match u32::try_from(self.values.len()) {
            Ok(id) if self.values.len() < MAX_VALUES => {
                self.values.push(value);
                Ok(Id(id))
            }
            _ => Err(Fault::file(TOO_MANY)),
        }
    }

    /// Counts entries that are about to be shared by two values.
    pub(crate) fn count_copies(&mut self, entries: usize) -> Result<(), Fault> {
        self.copied += entries;
        if self.copied > MAX_VALUES { Err(Fault::file(TOO_MANY)) } else { Ok(()) }
    }

    pub(crate) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.values.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}
