//! An interpreter of the pickles written by `torch.save`. It executes nothing.
//!
//! Opcodes: CPython's `pickletools`, protocols 2 to 5. Python's own interpreter imports the name of a
//! `GLOBAL` and calls the target of a `REDUCE`, which makes a pickle a program. This one knows only the names
//! that stand for tensor data; any other ends the reading. Values live in an arena and refer to each other by
//! index, so nothing here recurses, cycles are harmless, and memory is linear in the length of the pickle.

use std::collections::HashMap;

use super::{
    calls::global,
    cursor::Cursor,
    value::{Arena, Id, Value},
};
use crate::error::Fault;

/// Runs a pickle up to its `STOP`, leaving the cursor after it.
pub(crate) fn load<'a>(cursor: &mut Cursor<'a>) -> Result<(Arena<'a>, Id), Fault> {
    let mut machine = Machine::default();
    loop {
        if let Some(root) = machine.step(cursor)? {
            return Ok((machine.arena, root));
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    arena: Arena<'a>,
    stack: Vec<Id>,
    /// Heights of the stack at which a `MARK` was set.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
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
                // The only big-endian number.
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
                let (&Value::Text(module), &Value::Text(name)) =
                    (self.arena.get(module), self.arena.get(name))
                else {
                    return Err(Fault::file("pickle: a global whose name is not text"));
                };
                self.push(Value::Global(global(module, name)?))?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let value = self.arena.call(function, arguments)?;
                self.push(value)?;
            }
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                let storage = self.arena.persistent(id)?;
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

    fn push(&mut self, value: Value<'a>) -> Result<(), Fault> {
        let id = self.arena.push(value)?;
        self.stack.push(id);
        Ok(())
    }

    /// The lowest stack height accessible to opcodes other than those for marks.
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
        match self.arena.get_mut(top) {
            Some(Value::List(list)) => list.extend_from_slice(items),
            _ => return Err(Fault::file("pickle: items for something that is not a list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), Fault> {
        let top = self.top()?;
        match self.arena.get_mut(top) {
            Some(Value::Dict(dict)) => dict.extend(pairs(items)?),
            _ => return Err(Fault::file("pickle: entries for something that is not a dictionary")),
        }
        Ok(())
    }

    /// `BUILD` sets attributes. A state dict has one, `_metadata`, which says nothing about its tensors.
    fn build(&mut self) -> Result<(), Fault> {
        self.pop()?;
        match self.arena.get(self.top()?) {
            Value::Dict(_) => Ok(()),
            _ => Err(Fault::file("pickle: attributes for something that is not a dictionary")),
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
