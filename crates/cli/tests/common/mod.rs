//! What the tests of the commands share.

#![allow(dead_code, clippy::unwrap_used, reason = "no test program takes all of it")]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// The program with arguments, without the network.
pub(crate) fn lowrank(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("lowrank").unwrap();
    command.args(args).env("HF_HUB_OFFLINE", "1");
    command
}

/// Standard output and standard error of a command that must succeed.
#[track_caller]
pub(crate) fn run(args: &[&str]) -> (String, String) {
    let output = lowrank(args).assert().success().get_output().clone();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// What a command prints with `--json`.
#[track_caller]
pub(crate) fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&run(&[args, &["--json"]].concat()).0).unwrap()
}

/// Runs a command that must fail with one line that contains `part`, and print nothing else.
#[track_caller]
pub(crate) fn fails(args: &[&str], part: &str) {
    fails_with(1, args, part);
}

/// The same for wrong usage.
#[track_caller]
pub(crate) fn misused(args: &[&str], part: &str) {
    fails_with(2, args, part);
}

#[track_caller]
fn fails_with(code: i32, args: &[&str], part: &str) {
    let output = lowrank(args).assert().code(code).get_output().clone();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(part), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "one line: {error}");
    assert!(output.stdout.is_empty());
}

/// The same, where warnings may come before the error.
#[track_caller]
pub(crate) fn fails_after_warnings(args: &[&str], part: &str) {
    let output = lowrank(args).assert().code(1).get_output().clone();
    let error = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = error.trim_end().lines().collect();
    let (last, warnings) = lines.split_last().unwrap();
    assert!(last.starts_with("error: ") && last.contains(part), "{error}");
    assert!(warnings.iter().all(|line| line.starts_with("warning: ")), "{error}");
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

pub(crate) fn s(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The contents of a JSON file.
#[track_caller]
pub(crate) fn config_of(folder: &Path, file: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap()
}

/// Changes a JSON file.
pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
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
