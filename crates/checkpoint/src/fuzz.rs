//! Fuzz bodies: arbitrary bytes must not panic; a file that opens must be readable and consistent with
//! itself.
//!
//! Run for hours by cargo-fuzz (`fuzz/`), and for seconds on mutated files by the tests.

use std::{io::Write, path::Path};

use crate::{Checkpoint, Dtype, error::Fault, gguf, header, map::Bytes, resolve, source::Table, torch};

/// Passes `data` to a body as a file whose name ends like this: in memory where the system has such a folder.
///
/// # Panics
/// The file cannot be written.
#[allow(clippy::expect_used, reason = "a fuzzer without files cannot go on")]
pub fn on_file(ending: &str, data: &[u8], body: impl FnOnce(&Path)) {
    let shared = Path::new("/dev/shm");
    let folder = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    let file = tempfile::Builder::new().suffix(ending).tempfile_in(folder);
    let mut file = file.expect("the fuzzer's file can be made");
    file.write_all(data).expect("the fuzzer's file can be written");
    body(file.path());
}

/// Passes a file to a body, then this many mutations of it.
pub fn on_mutations(seed: u64, rounds: usize, file: &[u8], mut body: impl FnMut(&[u8])) {
    body(file);
    let mut random = Random::new(seed);
    for _ in 0..rounds {
        body(&mutate(file, &mut random));
    }
}

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    walk(data, header::parse(data));
}

/// A GGUF file: its tensors, and the small files that it represents.
pub fn gguf(data: &[u8]) {
    let parts = [gguf::Part { path: "fuzz".into(), bytes: Bytes::Owned(data.to_vec()) }];
    match gguf::table(&parts) {
        Err(error) => check_message(&error.to_string()),
        Ok((table, beside)) => {
            let files = parts.into_iter().map(|part| part.bytes).chain([beside]).collect();
            read_all(&Checkpoint::new("fuzz".into(), files, table), data.len());
        }
    }
    let parts = [gguf::Part { path: "fuzz".into(), bytes: Bytes::Owned(data.to_vec()) }];
    for name in gguf::MEMBERS {
        match gguf::member(&parts, name) {
            Err(error) => check_message(&error.to_string()),
            Ok(Some(json)) => assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok()),
            Ok(None) => {}
        }
    }
}

/// A file of `torch.save`, in either format.
pub fn torch(data: &[u8]) {
    walk(data, torch::parse(data));
}

/// Any tensor file, by its content.
pub fn any(data: &[u8]) {
    match Checkpoint::from_bytes("fuzz", data.to_vec()) {
        Err(error) => check_message(&error.to_string()),
        // Weights assembled from other tensors, and parts of others, are checked only here.
        Ok(checkpoint) => {
            assert_eq!(checkpoint.content_hash().map(|hash| hash.len()).ok(), Some(32));
            checkpoint.names().for_each(|name| {
                assert_eq!(
                    checkpoint.read_f32(name).map(|x| Some(x.len())).ok(),
                    checkpoint.info(name).map(|info| Some(info.numel()))
                );
            });
        }
    }
}

/// A shard index: no shard's path may leave the folder.
pub fn index(data: &[u8]) {
    match resolve::parse_index(data) {
        Ok((_, shards)) => {
            for shard in shards.keys() {
                let leaves = shard.starts_with(['/', '\\']) || shard.contains(':');
                let climbs = shard.split(['/', '\\']).any(|part| part == "..");
                assert!(!leaves && !climbs, "{shard:?} leaves its folder");
            }
        }
        Err(fault) => check_message(&fault.at(Path::new("fuzz")).to_string()),
    }
}

/// Reads everything that parsing accepted.
fn walk(data: &[u8], parsed: Result<Table, Fault>) {
    let table = match parsed {
        Ok(table) => table,
        Err(fault) => return check_message(&fault.at(Path::new("fuzz")).to_string()),
    };
    read_all(&Checkpoint::new("fuzz".into(), vec![Bytes::Owned(data.to_vec())], table), data.len());
}

/// Reads every tensor of a file of this many bytes.
fn read_all(checkpoint: &Checkpoint, size: usize) {
    assert_eq!(checkpoint.content_hash().map(|hash| hash.len()).ok(), Some(32));
    for name in checkpoint.names() {
        let (Some(info), Ok(bytes), Ok(wide), Ok(double)) = (
            checkpoint.info(name),
            checkpoint.bytes(name),
            checkpoint.read_f32(name),
            checkpoint.read_f64(name),
        ) else {
            panic!("{name:?} is listed and cannot be read");
        };
        assert_eq!(bytes.len(), info.byte_size(), "{name:?}");
        // Blocks that are read as floats have at most 256 elements in 84 bytes.
        assert!(bytes.len() <= 13 * size, "{name:?} is larger than its file");
        assert_eq!((wide.len(), double.len()), (info.numel(), info.numel()), "{name:?}");
        if let &[rows, columns] = info.shape.as_slice() {
            let Ok(transposed) = checkpoint.read_f32_transposed(name) else {
                panic!("{name:?} is a matrix and cannot be transposed");
            };
            for (k, x) in transposed.iter().enumerate() {
                let (j, i) = (k / rows, k % rows);
                assert_eq!(x.to_bits(), wide[i * columns + j].to_bits(), "{name:?} at {i}, {j}");
            }
        }
        if matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            assert!(
                wide.iter()
                    .zip(&double)
                    .all(|(x, y)| x.is_nan() == y.is_nan() && (x.is_nan() || f64::from(*x) == *y))
            );
        }
    }
}

/// An error is one line of bounded length.
fn check_message(message: &str) {
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(message.len() < 1200, "{} bytes of message", message.len());
}

/// SplitMix64 (Steele, Lea & Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, or 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n.max(1) as u64) as usize
    }
}

/// Bytes that parsers treat specially, more telling than arbitrary ones.
const TELLING: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b'"', b'}', b'.', b'(', b'R'];

/// One to four changes: flips, telling bytes, cuts, insertions, repeated or moved pieces.
pub fn mutate(file: &[u8], random: &mut Random) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(file.len());
        match random.below(8) {
            0 | 1 => file[at] ^= 1 << random.below(8),
            2 | 3 => file[at] = TELLING[random.below(TELLING.len())],
            4 => file.truncate(at.max(1)),
            5 => file.insert(at, random.draw() as u8),
            6 => drop(file.remove(at)),
            _ => {
                let piece = file[at..file.len().min(at + random.below(16))].to_vec();
                let to = random.below(file.len() - piece.len() + 1);
                file[to..to + piece.len()].copy_from_slice(&piece);
            }
        }
        if file.is_empty() {
            file.push(0);
        }
    }
    file
}
