//! Python's libraries as peers: checks of what we read and write, and comparisons of speed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{Build, root};

/// Where scripts are looked for: checks, then comparisons of speed.
const FOLDERS: [&str; 2] = ["tests/peers", "benches/peers"];

/// What to compare.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    build: Build,
    /// Python 3 to make the virtual environment with
    #[arg(long, default_value = "python3")]
    python: String,
    /// Script, by path or by name in tests/peers or benches/peers; without it, every check of tests/peers
    script: Option<String>,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Runs the scripts with the path of `lowrank` in the environment variable `LOWRANK`.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let scripts = match &options.script {
        Some(name) => vec![find(name)?],
        None => scripts(&root().join(FOLDERS[0]))?,
    };
    let python = environment(&options.python)?;
    let lowrank = options.build.lowrank()?;
    let mut failed = Vec::new();
    for script in &scripts {
        let name = script.strip_prefix(root()).unwrap_or(script).display().to_string();
        eprintln!("running {name}");
        let mut command = Command::new(&python);
        let status = command.arg(script).args(&options.args).env("LOWRANK", &lowrank).status()?;
        if !status.success() {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        eprintln!("{} of {} failed: {}", failed.len(), scripts.len(), failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn find(name: &str) -> Result<PathBuf> {
    let given = Path::new(name);
    if given.is_file() {
        return Ok(given.to_owned());
    }
    let file = format!("{}.py", name.trim_end_matches(".py"));
    if let Some(found) =
        FOLDERS.iter().map(|folder| root().join(folder).join(&file)).find(|path| path.is_file())
    {
        return Ok(found);
    }
    let mut known = Vec::new();
    for folder in FOLDERS {
        known.extend(scripts(&root().join(folder))?);
    }
    let known: Vec<_> = known.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
    bail!("no script {name:?} in {}; there are: {}", FOLDERS.join(" or "), known.join(", "))
}

/// The Python files of a folder, by name.
fn scripts(folder: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(|| format!("cannot read {}", folder.display()))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    paths.sort();
    Ok(paths)
}

/// The Python of `.venv`, which holds exactly what tests/peers/requirements.txt pins.
fn environment(python: &str) -> Result<PathBuf> {
    let folder = root().join(".venv");
    let inside = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let requirements = root().join("tests/peers/requirements.txt");
    let wanted =
        fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let stamp = folder.join("installed-requirements.txt");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(inside);
    }
    eprintln!("installing {} into {}", requirements.display(), folder.display());
    let run = |command: &mut Command, what: &str| match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("{what} failed with {status}"),
        Err(error) => Err(error).with_context(|| format!("cannot run {what}")),
    };
    run(Command::new(python).args(["-m", "venv"]).arg(&folder), &format!("{python} -m venv"))?;
    // The file lists the whole closure; pip's own resolution would add packages that only a GPU needs.
    let install = ["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"];
    run(Command::new(&inside).args(install).arg(&requirements), "pip install")?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(inside)
}
