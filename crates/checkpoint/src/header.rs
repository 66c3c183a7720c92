//! The safetensors header: a length, a JSON object, then the bytes of the tensors without gaps.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. Everything is checked against the file's size
//! before anything of that size is allocated.

use std::{
    collections::{BTreeMap, btree_map::Entry as Slot},
    fmt,
};

use serde::{
    Deserialize,
    de::{self, MapAccess, Visitor},
};

use crate::{
    dtype::{Dtype, TensorInfo, byte_size},
    error::{Fault, excerpt},
    source::{Entry, Layout, Table},
};

/// The same limit as in the reference implementation.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// Reads and validates the header of a whole safetensors file.
pub(crate) fn parse(file: &[u8]) -> Result<Table, Fault> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(Fault::file("shorter than a safetensors header; the file is truncated"));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(Fault::file(format!(
            "safetensors header of {length} bytes, more than the {MAX_HEADER} allowed; not a safetensors file, or a corrupt one"
        )));
    }
    let length = usize::try_from(length).map_err(|_| Fault::file("safetensors header too long"))?;
    let Some((header, data)) = rest.split_at_checked(length) else {
        return Err(Fault::file(format!(
            "safetensors header of {length} bytes in a file of {}; the file is truncated",
            file.len()
        )));
    };
    let header: Header = serde_json::from_slice(header)
        .map_err(|e| Fault::file(format!("safetensors header: {}", excerpt(&e.to_string()))))?;
    layout(header, 8 + length, data.len())
}

/// Checks that the tensors tile the data section, and computes each one's position in the file.
fn layout(header: Header, start: usize, len: usize) -> Result<Table, Fault> {
    let mut table = Table { metadata: header.metadata, ..Table::default() };
    let mut spans = Vec::with_capacity(header.tensors.len());
    for (name, raw) in header.tensors {
        let Some(dtype) = Dtype::from_name(&raw.dtype) else {
            return Err(Fault::tensor(
                &name,
                format!("type '{}' is not supported; convert it to F32, F16 or BF16", excerpt(&raw.dtype)),
            ));
        };
        let [begin, end] = raw.data_offsets;
        let size = byte_size(&raw.shape, dtype)
            .ok_or_else(|| Fault::tensor(&name, format!("shape {:?} overflows", Dims(&raw.shape))))?;
        if begin > end || end > len {
            return Err(Fault::tensor(
                &name,
                format!(
                    "bytes {begin}..{end} lie outside the data of {len} bytes; the file is truncated or corrupt"
                ),
            ));
        }
        if end - begin != size {
            return Err(Fault::tensor(
                &name,
                format!(
                    "shape {:?} of {dtype} takes {size} bytes, the header gives {}",
                    Dims(&raw.shape),
                    end - begin
                ),
            ));
        }
        spans.push((begin, end, name.clone()));
        let layout = Layout::Contiguous { start: start + begin, len: size };
        table.tensors.insert(name, Entry { info: TensorInfo { shape: raw.shape, dtype }, source: 0, layout });
    }
    spans.sort_unstable();
    let mut reached = 0;
    for (begin, end, name) in spans {
        if begin != reached {
            let what =
                if begin < reached { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(Fault::tensor(&name, format!("{what} (starts at byte {begin}, expected {reached})")));
        }
        reached = end;
    }
    if reached != len {
        return Err(Fault::file(format!("the tensors take {reached} bytes of data, the file has {len}")));
    }
    share(&mut table);
    Ok(table)
}

/// Adds the tensors that `save_model` of the reference implementation leaves out because they share their data with
/// another: it writes the name of each into the metadata, with the name of the tensor that holds the data.
fn share(table: &mut Table) {
    let shared = table.metadata.iter().filter_map(|(name, owner)| {
        let entry = table.tensors.get(owner)?;
        (name != "format" && !table.tensors.contains_key(name)).then(|| (name.clone(), entry.clone()))
    });
    let shared: Vec<_> = shared.collect();
    table.tensors.extend(shared);
}

/// A shape for messages: at most eight dimensions, since a hostile header may have millions.
struct Dims<'a>(&'a [usize]);

impl fmt::Debug for Dims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        list.entries(self.0.iter().take(8));
        if self.0.len() > 8 { list.finish_non_exhaustive() } else { list.finish() }
    }
}

/// A tensor entry of the header; other keys are ignored, as in the reference implementation.
#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

struct Header {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, RawTensor>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    // By hand, since a map type would silently keep the last of two entries of one name.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut metadata = None;
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                // Writers without metadata may write null.
                let strings: Option<Strings> = map.next_value()?;
                if metadata.replace(strings.map_or_else(BTreeMap::new, |strings| strings.0)).is_some() {
                    return Err(de::Error::custom("two __metadata__ sections"));
                }
                continue;
            }
            match tensors.entry(name) {
                Slot::Vacant(slot) => {
                    slot.insert(map.next_value()?);
                }
                Slot::Occupied(slot) => {
                    return Err(de::Error::custom(format!("two tensors named '{}'", excerpt(slot.key()))));
                }
            }
        }
        Ok(Header { metadata: metadata.unwrap_or_default(), tensors })
    }
}

/// A JSON object of strings without repeated keys.
pub(crate) struct Strings(pub(crate) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StringsVisitor)
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = Strings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
        let mut strings = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            match strings.entry(key) {
                Slot::Vacant(slot) => {
                    slot.insert(map.next_value()?);
                }
                Slot::Occupied(slot) => {
                    return Err(de::Error::custom(format!("two entries named '{}'", excerpt(slot.key()))));
                }
            }
        }
        Ok(Strings(strings))
    }
}
