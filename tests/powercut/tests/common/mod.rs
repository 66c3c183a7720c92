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
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(args).arg("--message-format=json-render-diagnostics");
    // As in `cargo xtask`: build scripts that read these variables of this test (ring's) would run again for others.
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
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
