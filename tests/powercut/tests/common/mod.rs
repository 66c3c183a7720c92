//! The programs under test.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;

static PROGRAMS: LazyLock<[PathBuf; 2]> = LazyLock::new(|| ["lowrank", "xtask"].map(build));

/// One package at a time, as `cargo xtask` builds them: together they would have other features.
fn build(name: &str) -> PathBuf {
    let args = ["build", "--release", "--package", name, "--bin", name];
    let format = "--message-format=json-render-diagnostics";
    let output = Command::new(env!("CARGO")).current_dir(root()).args(args).arg(format).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let mut made = messages.map(|line| serde_json::from_slice::<Value>(line).unwrap());
    made.find_map(|message| Some(message["executable"].as_str()?.into())).unwrap()
}

pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A program of the workspace, built as for its users.
pub(crate) fn program(name: &str) -> Command {
    let path = PROGRAMS.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
    Command::new(path.unwrap_or_else(|| panic!("cargo has built no {name}")))
}
