//! The format of `torch.save` before torch 1.6: five pickles, followed by the storages.
//!
//! The pickles are a magic number, a protocol version, facts about the machine, the object, and the list of storage
//! keys in the order in which their elements follow, each run preceded by its number of elements (64 bits).

use std::{collections::HashMap, ops::Range};

use super::{
    calls::MAX_KEY,
    cursor::Cursor,
    pickle, state_dict,
    value::{Storage, Value},
};
use crate::{
    error::{Fault, excerpt},
    source::Table,
};

/// 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

/// Whether the file begins with a pickle of the magic number, in any pickle protocol.
pub(crate) fn recognises(file: &[u8]) -> bool {
    let start = &file[..file.len().min(32)];
    file.first() == Some(&0x80) && start.windows(MAGIC.len()).any(|window| window == MAGIC)
}

pub(crate) fn parse(file: &[u8]) -> Result<Table, Fault> {
    let cursor = &mut Cursor::new(file, 0);
    let (arena, root) = pickle::load(cursor)?;
    if !matches!(arena.get(root), Value::BigInt(digits) if *digits == MAGIC) {
        return Err(Fault::file("a pickle, but not one of torch.save (wrong magic number)"));
    }
    let (arena, root) = pickle::load(cursor)?;
    if !matches!(arena.get(root), Value::Int(PROTOCOL)) {
        return Err(Fault::file(
            "an unknown version of torch's old format; load and save it with a newer torch",
        ));
    }
    let (arena, root) = pickle::load(cursor)?;
    if let Value::Dict(entries) = arena.get(root) {
        for &(key, value) in entries {
            if let (Value::Text("little_endian"), Value::Bool(false)) = (arena.get(key), arena.get(value)) {
                return Err(Fault::file(
                    "written on a big-endian machine; load and save it on a little-endian one",
                ));
            }
        }
    }
    let (arena, top) = pickle::load(cursor)?;
    let places = storages(cursor, arena.storages())?;
    state_dict::table(&arena, top, |storage| places.get(storage.key).cloned())
}

/// Visits the runs of elements after the last pickle.
fn storages<'a>(
    cursor: &mut Cursor<'a>,
    described: impl Iterator<Item = &'a Storage<'a>>,
) -> Result<HashMap<&'a str, Range<usize>>, Fault> {
    let (keys, root) = pickle::load(cursor)?;
    let Value::List(order) = keys.get(root) else {
        return Err(Fault::file("no list of storages behind the pickle"));
    };
    let sizes: HashMap<&str, usize> = described.map(|storage| (storage.key, storage.dtype.size())).collect();
    let mut places = HashMap::new();
    for &key in order {
        let key = match keys.get(key) {
            Value::Text(key) if key.len() <= MAX_KEY => *key,
            _ => return Err(Fault::file("a storage key that is not a short text")),
        };
        let fault = |what: &str| Fault::file(format!("storage '{}' {what}", excerpt(key)));
        let size = sizes.get(key).ok_or_else(|| fault("belongs to no tensor, so its size is unknown"))?;
        let numel = cursor.length(8)?;
        let start = cursor.position();
        let bytes = numel.checked_mul(*size).ok_or_else(|| fault("has a size that overflows"))?;
        cursor.take(bytes)?;
        if places.insert(key, start..start + bytes).is_some() {
            return Err(fault("is listed twice"));
        }
    }
    Ok(places)
}
