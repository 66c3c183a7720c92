//! The files of a model that `llama-gguf-split` cut: the first has the metadata, each some of the tensors.

use std::path::{Path, PathBuf};

use super::read::{self, Parsed};
use super::recognises;
use crate::error::{CheckpointError, Fault, excerpt};
use crate::map::Bytes;

/// Keys of a part: its number from 0 on, the number of parts, the number of tensors in all of them.
const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// A file of a model.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Bytes,
}

/// A part's number from 0 on, and the number of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    number: u64,
    count: u64,
}

impl Place {
    fn of(parsed: &Parsed<'_>) -> Self {
        let value = |key: &str| parsed.metadata.get(key).and_then(|value| value.as_count());
        Self { number: value(NUMBER).unwrap_or(0), count: value(COUNT).unwrap_or(1).max(1) }
    }
}

/// Opens a GGUF file and, if it is one of several of a model, the others beside it, whose names differ in their number alone
/// (`NAME-00001-of-00003.gguf`). The first part comes first.
///
/// # Errors
/// A file that cannot be parsed; a part with another name, or without the others.
pub(crate) fn open(path: &Path, bytes: Bytes) -> Result<Vec<Part>, CheckpointError> {
    let at = |fault: Fault| fault.at(path);
    let place = Place::of(&read::parse(bytes.as_slice()).map_err(at)?);
    let own = Part { path: path.to_owned(), bytes };
    if place.count == 1 {
        return Ok(vec![own]);
    }
    let end = |number: u64| format!("-{:05}-of-{:05}.gguf", number + 1, place.count);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = if place.number < place.count { name.strip_suffix(&end(place.number)) } else { None };
    let Some(stem) = stem else {
        let reason = format!(
            "is part {} of {} of a model, and its name does not end with {}; give it the name it had, or join the parts with \
             `llama-gguf-split --merge`",
            place.number.saturating_add(1),
            place.count,
            end(place.number.min(place.count - 1))
        );
        return Err(at(Fault::file(reason)));
    };
    let (mut own, mut parts) = (Some(own), Vec::new());
    for number in 0..place.count {
        if number == place.number {
            parts.extend(own.take());
            continue;
        }
        let other = path.with_file_name(format!("{stem}{}", end(number)));
        if !other.exists() {
            let name = format!("{stem}{}", end(number));
            let reason = format!(
                "is one of {} parts of a model, and '{}' is missing; download it",
                place.count,
                excerpt(&name)
            );
            return Err(at(Fault::file(reason)));
        }
        let bytes = Bytes::open(&other)?;
        if !recognises(bytes.as_slice()) {
            return Err(CheckpointError::malformed(&other, "not a GGUF file; download it again"));
        }
        parts.push(Part { path: other, bytes });
    }
    Ok(parts)
}

/// Parses the files of a model.
///
/// # Errors
/// Files that are not all parts of one model, or not in their order.
pub(crate) fn parse(parts: &[Part]) -> Result<Parsed<'_>, CheckpointError> {
    let mut all: Option<Parsed<'_>> = None;
    for (number, Part { path, bytes }) in parts.iter().enumerate() {
        let at = |fault: Fault| fault.at(path);
        let part = read::parse(bytes.as_slice()).map_err(at)?;
        let place = Place::of(&part);
        let expected = Place { number: number as u64, count: parts.len() as u64 };
        if place != expected {
            let reason = format!(
                "is part {} of {}; expected part {} of {}",
                place.number.saturating_add(1),
                place.count,
                number + 1,
                parts.len()
            );
            return Err(at(Fault::file(reason)));
        }
        match &mut all {
            None => all = Some(part),
            Some(all) => all.add(part).map_err(at)?,
        }
    }
    let Some(all) = all else {
        return Err(CheckpointError::malformed(Path::new(""), "no file of a model"));
    };
    let count = all.metadata.get(TENSORS).and_then(|count| count.as_count());
    if let Some(count) = count.filter(|count| *count != all.tensors.len() as u64) {
        let reason =
            format!("{TENSORS} is {count}, and the parts have {}; download them again", all.tensors.len());
        return Err(CheckpointError::malformed(&parts[0].path, reason));
    }
    Ok(all)
}
