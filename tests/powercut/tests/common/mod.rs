//! The programs under test.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;

static PROGRAMS: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let args =
        ["build", "--release", "-p", "lowrank", "-p", "xtask", "--message-format=json-render-diagnostics"];
    let output = Command::new(env!("CARGO")).current_dir(root()).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let made = messages.map(|line| serde_json::from_slice::<Value>(line).unwrap());
    made.filter_map(|message| Some(message["executable"].as_str()?.into())).collect()
});

pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// A program of the workspace, built as for its users.
pub(crate) fn program(name: &str) -> Command {
    let path = PROGRAMS.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
    Command::new(path.unwrap_or_else(|| panic!("cargo has built no {name}")))
}
