//! Files of `torch.save`, in both its formats, read without executing their pickle.

mod calls;
mod cursor;
mod legacy;
mod pickle;
mod state_dict;
mod value;
mod zip;

use std::{collections::HashMap, ops::Range};

use self::cursor::Cursor;
use crate::{error::Fault, source::Table};

/// Whether a file looks like one of the two formats.
pub(crate) fn recognises(file: &[u8]) -> bool {
    is_zip(file) || legacy::recognises(file)
}

fn is_zip(file: &[u8]) -> bool {
    file.starts_with(b"PK\x03\x04")
}

/// Reads a file in either format.
pub(crate) fn parse(file: &[u8]) -> Result<Table, Fault> {
    if is_zip(file) { archive(file) } else { legacy::parse(file) }
}

/// The zip format (torch 1.6 and later): `NAME/data.pkl` and a record `NAME/data/KEY` for each storage.
fn archive(file: &[u8]) -> Result<Table, Fault> {
    let records = zip::records(file)?;
    let mut pickles = records.iter().filter_map(|(name, place)| {
        let root = name.strip_suffix("/data.pkl")?;
        (!root.contains('/')).then_some((root, place))
    });
    let (Some((root, pickle)), None) = (pickles.next(), pickles.next()) else {
        return Err(Fault::file("a zip, but not one of torch.save (no single data.pkl in it)"));
    };
    let contents = |place: &Range<usize>| file.get(place.clone()).unwrap_or_default();
    if records.get(format!("{root}/byteorder").as_str()).is_some_and(|place| contents(place) != b"little") {
        return Err(Fault::file("written on a big-endian machine; load and save it on a little-endian one"));
    }
    let (arena, top) = pickle::load(&mut Cursor::new(contents(pickle), 0))?;
    let prefix = format!("{root}/data/");
    let data: HashMap<&str, &Range<usize>> =
        records.iter().filter_map(|(name, place)| Some((name.strip_prefix(&prefix)?, place))).collect();
    state_dict::table(&arena, top, |storage| data.get(storage.key).map(|place| (*place).clone()))
}
