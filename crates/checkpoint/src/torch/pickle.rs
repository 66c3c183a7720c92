//! A machine for the pickles that `torch.save` writes. It executes nothing.
//!
//! Opcodes: CPython's `pickletools`, protocols 2 to 5. Python's own machine imports what a `GLOBAL` names and calls
//! what a `REDUCE` asks for, which makes a pickle a program. This one knows the handful of names that stand for
//! tensor data; any other ends the reading. Values live in an arena and refer to each other by index, so nothing
//! here recurses, cycles are harmless, and memory is linear in the length of the pickle.

use std::collections::HashMap;

use super::cursor::Cursor;
use crate::{
    Dtype,
    error::{Fault, printable},
};

/// Values a pickle may make: enough for a hundred thousand tensors, a bound for a hostile file.
const MAX_VALUES: usize = 4_000_000;

const TOO_MANY: &str = "pickle: more than four million values; convert the file to safetensors";
/// Dimensions of a tensor. Shapes are the one thing that many tensors copy from one place in the pickle.
const MAX_DIMS: usize = 16;
/// Bytes of a storage's key; torch writes small numbers.
pub(crate) const MAX_KEY: usize = 256;

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
    /// Raw bytes; no part of a tensor is one, so what they are is not kept.
    Bytes,
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(View),
}

/// The Python names that are known.
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
    /// A part of the storage, first element and number of elements; in old files only.
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
#[derive(Debug)]
pub(crate) struct Arena<'a>(Vec<Value<'a>>);

impl<'a> Arena<'a> {
    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        self.0.get(id.0 as usize).unwrap_or(&Value::None)
    }

    pub(crate) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.0.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}

/// Runs a pickle up to its `STOP`, leaving the cursor behind it.
pub(crate) fn load<'a>(cursor: &mut Cursor<'a>) -> Result<(Arena<'a>, Id), Fault> {
    let mut machine = Machine::default();
    loop {
        if let Some(root) = machine.step(cursor)? {
            return Ok((Arena(machine.arena), root));
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    arena: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which a `MARK` was set.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Entries copied from one value into another, which a pickle can ask for without end.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; the value of the whole pickle at its end.
    fn step(&mut self, cursor: &mut Cursor<'a>) -> Result<Option<Id>, Fault> {
        let at = cursor.position();
        match cursor.u8()? {
            // PROTO, FRAME: nothing that matters here
            0x80 => drop(cursor.u8()?),
            0x95 => drop(cursor.u64()?),
            b'(' => self.marks.push(self.stack.len()),
            b'.' => return self.pop().map(Some),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let bits = cursor.u32()?;
                self.push(Value::Int(i64::from(bits.cast_signed())))?;
            }
            b'K' => {
                let int = i64::from(cursor.u8()?);
                self.push(Value::Int(int))?;
            }
            b'M' => {
                let int = i64::from(cursor.u16()?);
                self.push(Value::Int(int))?;
            }
            0x8a => self.long(cursor, 1)?,
            0x8b => self.long(cursor, 4)?,
            b'G' => {
                // Alone among the numbers, big-endian.
                let bits = cursor.u64()?.swap_bytes();
                self.push(Value::Float(f64::from_bits(bits)))?;
            }
            b'X' | b'T' => self.text(cursor, 4)?,
            0x8c | b'U' => self.text(cursor, 1)?,
            0x8d => self.text(cursor, 8)?,
            b'C' => self.bytes(cursor, 1)?,
            b'B' => self.bytes(cursor, 4)?,
            0x8e => self.bytes(cursor, 8)?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(pairs(&items)?))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend_list(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)?;
            }
            b'q' => {
                let slot = u32::from(cursor.u8()?);
                self.remember(slot)?;
            }
            b'r' => {
                let slot = cursor.u32()?;
                self.remember(slot)?;
            }
            0x94 => self.remember(u32::try_from(self.memo.len()).unwrap_or(u32::MAX))?,
            b'h' => {
                let slot = u32::from(cursor.u8()?);
                self.recall(slot)?;
            }
            b'j' => {
                let slot = cursor.u32()?;
                self.recall(slot)?;
            }
            b'c' => {
                let (module, name) = (cursor.line()?, cursor.line()?);
                self.push(Value::Global(global(module, name)?))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (&Value::Text(module), &Value::Text(name)) = (self.get(module), self.get(name)) else {
                    return Err(Fault::file("pickle: a global whose name is not text"));
                };
                self.push(Value::Global(global(module, name)?))?;
            }
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.push(Value::Storage(storage))?;
            }
            other => {
                return Err(Fault::file(format!(
                    "pickle: opcode 0x{other:02x} at byte {at} is not one that torch.save writes; convert the file to safetensors"
                )));
            }
        }
        Ok(None)
    }

    fn get(&self, id: Id) -> &Value<'a> {
        self.arena.get(id.0 as usize).unwrap_or(&Value::None)
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), Fault> {
        let id = u32::try_from(self.arena.len()).ok().filter(|_| self.arena.len() < MAX_VALUES);
        let Some(id) = id else {
            return Err(Fault::file(TOO_MANY));
        };
        self.arena.push(value);
        self.stack.push(Id(id));
        Ok(())
    }

    /// The lowest height of the stack that opcodes other than those for marks may reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, Fault> {
        self.stack[self.floor()..].last().copied().ok_or_else(underflow)
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let height = self.marks.pop().ok_or_else(underflow)?;
        Ok(self.stack.split_off(height))
    }

    fn tuple(&mut self, n: usize) -> Result<(), Fault> {
        let height =
            self.stack.len().checked_sub(n).filter(|&height| height >= self.floor()).ok_or_else(underflow)?;
        let items = self.stack.split_off(height);
        self.push(Value::Tuple(items))
    }

    fn text(&mut self, cursor: &mut Cursor<'a>, length_bytes: usize) -> Result<(), Fault> {
        let length = cursor.length(length_bytes)?;
        let text = cursor.text(length)?;
        self.push(Value::Text(text))
    }

    fn bytes(&mut self, cursor: &mut Cursor<'a>, length_bytes: usize) -> Result<(), Fault> {
        let length = cursor.length(length_bytes)?;
        cursor.take(length)?;
        self.push(Value::Bytes)
    }

    fn long(&mut self, cursor: &mut Cursor<'a>, length_bytes: usize) -> Result<(), Fault> {
        let length = cursor.length(length_bytes)?;
        let digits = cursor.take(length)?;
        if digits.len() > 8 {
            return self.push(Value::BigInt(digits));
        }
        let fill = if digits.last().is_some_and(|&top| top >= 0x80) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..digits.len()].copy_from_slice(digits);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn remember(&mut self, slot: u32) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), Fault> {
        let Some(&id) = self.memo.get(&slot) else {
            return Err(Fault::file(format!("pickle: memo {slot} was never set")));
        };
        self.stack.push(id);
        Ok(())
    }

    fn extend_list(&mut self, items: &[Id]) -> Result<(), Fault> {
        let top = self.top()?;
        match self.arena.get_mut(top.0 as usize) {
            Some(Value::List(list)) => list.extend_from_slice(items),
            _ => return Err(Fault::file("pickle: items for something that is not a list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), Fault> {
        let top = self.top()?;
        match self.arena.get_mut(top.0 as usize) {
            Some(Value::Dict(dict)) => dict.extend(pairs(items)?),
            _ => return Err(Fault::file("pickle: entries for something that is not a dictionary")),
        }
        Ok(())
    }

    /// `BUILD` sets attributes. A state dict has one, `_metadata`, which says nothing about its tensors.
    fn build(&mut self) -> Result<(), Fault> {
        self.pop()?;
        match self.get(self.top()?) {
            Value::Dict(_) => Ok(()),
            _ => Err(Fault::file("pickle: attributes for something that is not a dictionary")),
        }
    }

    /// `REDUCE` calls something; here it makes the value that the call would have made.
    fn reduce(&mut self) -> Result<(), Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
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
            self.copied += entries.len();
            if self.copied > MAX_VALUES {
                return Err(Fault::file(TOO_MANY));
            }
        }
        self.push(value)
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
    fn persistent(&self, id: Id) -> Result<Storage<'a>, Fault> {
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

fn underflow() -> Fault {
    Fault::file("pickle: an opcode without its operands")
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Fault> {
    match items.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(Fault::file("pickle: a key without a value")),
    }
}

/// The short list of names that are tensor data.
fn global(module: &str, name: &str) -> Result<Global, Fault> {
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
    known.ok_or_else(|| Fault::Global(format!("{}.{}", printable(module), printable(name))))
}
