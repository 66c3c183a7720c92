//! Cargo and its build products.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

/// The numeric backend of a build of `lowrank`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// The CPU, pure Rust
    #[default]
    Flex,
    /// The CPU, through ndarray
    Ndarray,
    /// An NVIDIA GPU
    Cuda,
    /// A GPU through Vulkan
    Vulkan,
    /// An Apple GPU
    Metal,
}

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
        }
    }

    /// Whether it is a GPU's.
    pub(crate) fn is_gpu(self) -> bool {
        matches!(self, Self::Cuda | Self::Vulkan | Self::Metal)
    }

    /// Cargo's arguments for it, given the packages whose feature of its name is to be enabled.
    pub(crate) fn features(self, packages: &[&str]) -> Vec<String> {
        match self {
            Self::Flex => Vec::new(),
            Self::Ndarray | Self::Cuda | Self::Vulkan | Self::Metal => packages
                .iter()
                .flat_map(|name| ["--features".into(), format!("{name}/{}", self.name())])
                .collect(),
        }
    }
}

/// Selection of the `lowrank` executable.
#[derive(Args, Clone, Debug)]
pub(crate) struct Build {
    /// Backend to build `lowrank` with
    #[arg(long, value_enum, default_value_t)]
    pub(crate) backend: Backend,
    /// Cargo profile to build `lowrank` with
    #[arg(long, default_value = "release")]
    pub(crate) profile: String,
    /// Run this `lowrank` instead of building one
    #[arg(long, value_name = "FILE", overrides_with = "lowrank")]
    pub(crate) lowrank: Option<PathBuf>,
}

impl Build {
    /// The path of the executable, which is built first unless given.
    pub(crate) fn lowrank(&self) -> Result<PathBuf> {
        match &self.lowrank {
            Some(path) => path.canonicalize().with_context(|| format!("no executable {}", path.display())),
            None => self.build("lowrank", &["--bin", "lowrank"]),
        }
    }

    /// The path of an example of `lowrank`'s package, after building it.
    pub(crate) fn example(&self, name: &str) -> Result<PathBuf> {
        self.build(name, &["--example", name])
    }

    fn build(&self, name: &str, target: &[&str]) -> Result<PathBuf> {
        eprintln!("building {name} ({}, {})", self.backend.name(), self.profile);
        let mut command = cargo();
        command.args(["build", "--package", "lowrank", "--profile", &self.profile]).args(target);
        command.args(self.backend.features(&["lowrank"])).arg("--message-format=json-render-diagnostics");
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
        let output = child.stdout.take().context("cargo has no output")?;
        let mut executable = None;
        for line in BufReader::new(output).lines() {
            let message: Value = serde_json::from_str(&line?).context("cargo printed no JSON")?;
            if message["target"]["name"] == name && message["executable"].is_string() {
                executable = message["executable"].as_str().map(PathBuf::from);
            }
        }
        if !child.wait()?.success() {
            bail!("{name} could not be built");
        }
        executable.with_context(|| format!("cargo built no executable named {name}"))
    }
}

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo, the one that runs this program if there is one, on this workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    // Variables that `cargo run` sets for xtask would make build scripts that read them (ring's) run again
    // for other callers.
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    command.current_dir(root());
    command
}
