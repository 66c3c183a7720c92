//! The tensors that a stream will write, and their positions: shards, headers, offsets.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::Xxh3Default;

use crate::{CheckpointError, Dtype, dtype::byte_size, write::encode_header};

/// A planned tensor: only its name, shape and type are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// The key in the file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type in the file.
    pub dtype: Dtype,
}

impl TensorPlan {
    /// A plan from any type with a name and a shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, dtype: impl Into<Dtype>) -> Self {
        Self { name: name.into(), shape: shape.into(), dtype: dtype.into() }
    }
}

/// Naming, sharding and retention of the files of a [`StreamWriter`](crate::StreamWriter).
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// File name without `.safetensors`; `model` unless changed.
    pub stem: String,
    /// Split into shards of at most this many bytes of tensors, a larger tensor gets a separate shard;
    /// `None` writes one file.
    pub max_shard_bytes: Option<u64>,
    /// Strings for the header of each file; `"format": "pt"` is added.
    pub metadata: BTreeMap<String, String>,
    /// Leave the partial files behind when dropped unfinished, for [`resume`](crate::StreamWriter::resume).
    pub keep_partial: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            stem: "model".to_owned(),
            max_shard_bytes: None,
            metadata: BTreeMap::new(),
            keep_partial: false,
        }
    }
}

/// One file of the output.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) file_name: String,
    pub(crate) header: Vec<u8>,
    /// Header and tensors.
    pub(crate) file_size: u64,
}

/// The position of one tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) shard: usize,
    /// First byte in the shard's file.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// A plan with its layout.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) tensors: Vec<TensorPlan>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) by_name: HashMap<String, usize>,
    pub(crate) shards: Vec<Shard>,
    /// Total bytes of all tensors.
    pub(crate) total: u64,
    /// Identifies plan and options, so that only the same job can resume.
    pub(crate) fingerprint: String,
}

/// Lays out a plan: shards in the plan's order; within a shard the widest types first, which keeps every
/// tensor aligned, then by name.
pub(crate) fn lay_out(
    folder: &Path,
    tensors: Vec<TensorPlan>,
    options: &StreamOptions,
) -> Result<Layout, CheckpointError> {
    if options.stem.is_empty() || options.stem.contains(['/', '\\', ':']) {
        return Err(CheckpointError::malformed(folder, format!("'{}' cannot name a file", options.stem)));
    }
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut by_name = HashMap::with_capacity(tensors.len());
    for (i, tensor) in tensors.iter().enumerate() {
        let size = byte_size(&tensor.shape, tensor.dtype).ok_or_else(|| {
            CheckpointError::tensor(folder, &tensor.name, format!("shape {:?} overflows", tensor.shape))
        })?;
        sizes.push(size as u64);
        if by_name.insert(tensor.name.clone(), i).is_some() {
            return Err(CheckpointError::tensor(
                folder,
                &tensor.name,
                "planned twice; give each tensor its own name",
            ));
        }
    }
    let groups = group(&sizes, options.max_shard_bytes);
    let mut slots = vec![Slot { shard: 0, start: 0, len: 0 }; tensors.len()];
    let mut shards = Vec::with_capacity(groups.len());
    let mut total = 0u64;
    for (k, mut members) in groups.iter().cloned().enumerate() {
        members.sort_by_key(|&i| (std::cmp::Reverse(tensors[i].dtype.size()), &tensors[i].name));
        let file_name = if groups.len() == 1 {
            format!("{}.safetensors", options.stem)
        } else {
            format!("{}-{:05}-of-{:05}.safetensors", options.stem, k + 1, groups.len())
        };
        let described =
            members.iter().map(|&i| &tensors[i]).map(|t| (t.name.as_str(), t.shape.as_slice(), t.dtype));
        let header = encode_header(&folder.join(&file_name), described, &options.metadata)?;
        let mut end = header.len() as u64;
        for i in members {
            slots[i] = Slot { shard: k, start: end, len: sizes[i] };
            end = end.saturating_add(sizes[i]);
            total = total.saturating_add(sizes[i]);
        }
        shards.push(Shard { file_name, header, file_size: end });
    }
    let fingerprint = fingerprint(&shards);
    Ok(Layout { tensors, slots, by_name, shards, total, fingerprint })
}

/// Consecutive tensors share a shard while they fit.
fn group(sizes: &[u64], limit: Option<u64>) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = vec![Vec::new()];
    let mut filled = 0u64;
    for (i, &size) in sizes.iter().enumerate() {
        if let Some(group) = groups.last_mut()
            && (group.is_empty() || limit.is_none_or(|limit| filled.saturating_add(size) <= limit))
        {
            group.push(i);
            filled = filled.saturating_add(size);
        } else {
            groups.push(vec![i]);
            filled = size;
        }
    }
    groups
}

/// File names and headers determine a job completely: names, types, shapes, order, metadata, shards.
fn fingerprint(shards: &[Shard]) -> String {
    let mut hash = Xxh3Default::new();
    for shard in shards {
        hash.update(&(shard.file_name.len() as u64).to_le_bytes());
        hash.update(shard.file_name.as_bytes());
        hash.update(&(shard.header.len() as u64).to_le_bytes());
        hash.update(&shard.header);
    }
    format!("{:032x}", hash.digest128())
}

impl Layout {
    /// The text of the shard index, sorted by tensor name.
    pub(crate) fn index(&self) -> String {
        let mut names: Vec<usize> = (0..self.tensors.len()).collect();
        names.sort_by_key(|&i| &self.tensors[i].name);
        let map: Map<String, Value> = names
            .into_iter()
            .map(|i| {
                (self.tensors[i].name.clone(), self.shards[self.slots[i].shard].file_name.clone().into())
            })
            .collect();
        let mut text = format!("{:#}", json!({"metadata": {"total_size": self.total}, "weight_map": map}));
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_fill_up_in_order() {
        assert_eq!(group(&[4, 4, 4], None), [[0, 1, 2]]);
        assert_eq!(group(&[4, 4, 4], Some(8)), [vec![0, 1], vec![2]]);
        assert_eq!(group(&[4, 100, 4, 4], Some(8)), [vec![0], vec![1], vec![2, 3]]);
        assert_eq!(group(&[], Some(8)), [Vec::<usize>::new()]);
    }

    #[test]
    fn wide_types_come_first_and_stay_aligned() {
        let plan = vec![
            TensorPlan::new("a", [3], Dtype::U8),
            TensorPlan::new("b", [3], Dtype::F16),
            TensorPlan::new("d", [3], Dtype::F32),
            TensorPlan::new("c", [2], Dtype::F32),
        ];
        let layout = lay_out(Path::new("out"), plan, &StreamOptions::default()).unwrap();
        let header = layout.shards[0].header.len() as u64;
        assert_eq!(header % 8, 0);
        let starts: Vec<u64> = layout.slots.iter().map(|slot| slot.start - header).collect();
        assert_eq!(starts, [26, 20, 8, 0]);
        assert_eq!((layout.total, layout.shards[0].file_size), (29, header + 29));
    }

    #[test]
    fn the_fingerprint_knows_every_part_of_a_job() {
        let make = |shape: [usize; 1], metadata: &str, limit| {
            let options = StreamOptions {
                metadata: BTreeMap::from([("source".to_owned(), metadata.to_owned())]),
                max_shard_bytes: limit,
                ..StreamOptions::default()
            };
            let plan = vec![TensorPlan::new("a", shape, Dtype::F32), TensorPlan::new("b", [1], Dtype::F32)];
            lay_out(Path::new("out"), plan, &options).unwrap().fingerprint
        };
        let base = make([4], "x", None);
        assert_eq!(base, make([4], "x", None));
        for other in [make([5], "x", None), make([4], "y", None), make([4], "x", Some(4))] {
            assert_ne!(base, other);
        }
    }
}
