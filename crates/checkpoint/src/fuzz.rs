//! Fuzz bodies: any bytes in, no panic; what opens must read, and agree with itself.
//!
//! Run for hours by cargo-fuzz (`fuzz/`), and for seconds on mutated files by the tests.

use std::path::Path;

use crate::{Checkpoint, Dtype, error::Fault, header, map::Bytes, resolve, source::Table, torch};

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    walk(data, header::parse(data));
}

/// A file of `torch.save`, in either format.
pub fn torch(data: &[u8]) {
    walk(data, torch::parse(data));
}

/// Any tensor file, by its content.
pub fn any(data: &[u8]) {
    if let Err(error) = Checkpoint::from_bytes("fuzz", data.to_vec()) {
        check_message(&error.to_string());
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

/// Reads everything that parsing let through.
fn walk(data: &[u8], parsed: Result<Table, Fault>) {
    let table = match parsed {
        Ok(table) => table,
        Err(fault) => return check_message(&fault.at(Path::new("fuzz")).to_string()),
    };
    let checkpoint = Checkpoint::of_one("fuzz".into(), Bytes::Owned(data.to_vec()), table);
    let hash = checkpoint.content_hash();
    assert_eq!(hash.len(), 32);
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
        assert!(bytes.len() <= data.len(), "{name:?} is larger than its file");
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
