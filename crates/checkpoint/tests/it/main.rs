//! Tests of the crate through its public interface, in one binary.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod atomic;
mod experts;
mod folders;
mod gguf;
mod mutation;
mod packed;
mod safetensors;
mod stream;
mod torch;

use std::path::Path;

use lowrank_checkpoint::CheckpointError;

/// Bytes of a safetensors file with this header and data.
fn raw_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// The names in a folder, hidden ones too, sorted.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Checks that an error is one line that has all of these parts.
#[track_caller]
fn check_error<T: std::fmt::Debug>(result: Result<T, CheckpointError>, parts: &[&str]) {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}
