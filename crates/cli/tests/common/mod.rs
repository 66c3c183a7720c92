//! What the tests of the commands share.

#![allow(dead_code, clippy::unwrap_used, reason = "no test program takes all of it")]

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(crate) fn s(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of a fixture that a test may change.
pub(crate) fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}
