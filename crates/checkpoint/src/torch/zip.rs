//! The directory of a zip file whose records are stored without compression, as written by `torch.save`.
//!
//! Format: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3 (zip64). A record is used in place, so
//! only the position of its data is needed. Checksums are not verified: torch itself may omit them.

use std::{collections::HashMap, ops::Range};

use super::cursor::Cursor;
use crate::error::{Fault, excerpt};

/// The records of an archive by name, each with the position of its data.
pub(crate) type Records<'a> = HashMap<&'a str, Range<usize>>;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// Length of the end record without its comment.
const END_LENGTH: usize = 22;
/// Length of the zip64 locator, which immediately precedes the end record.
const LOCATOR_LENGTH: usize = 20;

/// Reads the central directory.
pub(crate) fn records(file: &[u8]) -> Result<Records<'_>, Fault> {
    let directory = directory(file)?;
    let mut cursor = Cursor::new(file.get(..directory.end).unwrap_or_default(), directory.start);
    let mut records = Records::new();
    while cursor.position() < directory.end {
        let (name, place) = record(file, &mut cursor, directory.start)?;
        if records.insert(name, place).is_some() {
            return Err(Fault::file(format!("zip: two records named '{}'", excerpt(name))));
        }
    }
    Ok(records)
}

/// Finds the central directory from the end of the file.
fn directory(file: &[u8]) -> Result<Range<usize>, Fault> {
    // The comment, of at most 65,535 bytes, must fill exactly what remains.
    let last = file.len().saturating_sub(END_LENGTH);
    let first = last.saturating_sub(usize::from(u16::MAX));
    let end = (first..=last).rev().find(|&at| {
        let mut cursor = Cursor::new(file, at);
        cursor.u32().is_ok_and(|signature| signature == END)
            && cursor.take(16).is_ok()
            && cursor.length(2).is_ok_and(|comment| comment == file.len() - at - END_LENGTH)
    });
    let Some(end) = end else {
        return Err(Fault::file(
            "zip without its directory; the file is truncated, download or save it again",
        ));
    };
    let mut cursor = Cursor::new(file, end + 12);
    let (mut size, mut start, mut limit) = (cursor.length(4)?, cursor.length(4)?, end);
    if let Some(at) = end.checked_sub(LOCATOR_LENGTH)
        && Cursor::new(file, at).u32()? == LOCATOR_64
    {
        limit = Cursor::new(file, at + 8).length(8)?;
        let mut cursor = Cursor::new(file, limit);
        if cursor.u32()? != END_64 {
            return Err(Fault::file("zip: the zip64 end record is not where it should be"));
        }
        cursor.take(36)?;
        (size, start) = (cursor.length(8)?, cursor.length(8)?);
    }
    match start.checked_add(size) {
        Some(end) if end <= limit => Ok(start..end),
        _ => Err(Fault::file(format!(
            "zip: a directory of {size} bytes at byte {start} does not fit the file"
        ))),
    }
}

/// Reads one entry of the directory and the local header it points to.
fn record<'a>(
    file: &'a [u8],
    cursor: &mut Cursor<'a>,
    limit: usize,
) -> Result<(&'a str, Range<usize>), Fault> {
    if cursor.u32()? != CENTRAL {
        return Err(Fault::file("zip: the directory is corrupt"));
    }
    cursor.take(4)?;
    let flags = cursor.u16()?;
    let method = cursor.u16()?;
    cursor.take(8)?;
    let (mut stored, mut size) = (cursor.length(4)?, cursor.length(4)?);
    let (name_length, extra_length, comment_length) =
        (cursor.length(2)?, cursor.length(2)?, cursor.length(2)?);
    cursor.take(8)?;
    let mut header = cursor.length(4)?;
    let name = cursor.text(name_length)?;
    let extra = cursor.take(extra_length)?;
    cursor.take(comment_length)?;
    widen(extra, [&mut size, &mut stored, &mut header])?;

    let fault = |what: &str| Fault::file(format!("zip: record '{}' {what}", excerpt(name)));
    if flags & 1 != 0 {
        return Err(fault("is encrypted; save the file without a password"));
    }
    if method != 0 || stored != size {
        return Err(fault("is compressed, which torch.save never does; load it in Python and save it again"));
    }
    let mut local = Cursor::new(file, header);
    if local.u32()? != LOCAL {
        return Err(fault("has no local header where the directory says"));
    }
    local.take(22)?;
    let skipped = local.length(2)? + local.length(2)?;
    local.take(skipped)?;
    let start = local.position();
    match start.checked_add(size) {
        Some(end) if end <= limit => Ok((name, start..end)),
        _ => Err(fault("reaches beyond the data")),
    }
}

/// Replaces the fields that do not fit 32 bits by those of the zip64 extra field, which has exactly these, in order.
fn widen(extra: &[u8], fields: [&mut usize; 3]) -> Result<(), Fault> {
    const ZIP64: u16 = 1;
    let mut cursor = Cursor::new(extra, 0);
    while cursor.position() + 4 <= extra.len() {
        let (kind, length) = (cursor.u16()?, cursor.length(2)?);
        let body = cursor.take(length)?;
        if kind == ZIP64 {
            let mut wide = Cursor::new(body, 0);
            for field in fields {
                if *field == u32::MAX as usize {
                    *field = wide.length(8)?;
                }
            }
            return Ok(());
        }
    }
    Ok(())
}
