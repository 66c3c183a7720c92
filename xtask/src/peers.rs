//! Python's libraries as peers: checks of our files and results, and comparisons of speed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{Build, root};

/// Folders of scripts: checks first, then comparisons of speed.
const FOLDERS: [&str; 2] = ["tests/peers", "benches/peers"];
/// The checks that need no arguments, in the first of the folders.
const CHECKS: &str = "all.sh";
/// The file that pins the environment's packages to the versions used to check the project.
const SETUP: &str = "setup.sh";
const REQUIREMENTS: &str = "requirements.txt";

/// Options of a comparison.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    build: Build,
    /// Script of tests/peers or benches/peers, by name or path [default: all checks]
    script: Option<String>,
    /// Its arguments; a shell script gets the Python and the `lowrank` before them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Runs a script with the path of `lowrank` in the environment variable `LOWRANK`, and this program's in `XTASK`.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let script = find(options.script.as_deref().unwrap_or(CHECKS))?;
    let python = environment()?;
    let lowrank = options.build.lowrank()?;
    let is_shell = script.extension().is_some_and(|extension| extension == "sh");
    let mut command = if is_shell { Command::new("bash") } else { Command::new(&python) };
    command.arg(&script);
    if is_shell {
        command.args([&python, &lowrank]);
    }
    let this = env::current_exe().context("cannot tell where this program is")?;
    let status = command.args(&options.args).env("LOWRANK", &lowrank).env("XTASK", this).status();
    Ok(status.with_context(|| format!("cannot run {}", script.display()))?.success())
}

fn find(name: &str) -> Result<PathBuf> {
    let given = Path::new(name);
    if given.is_file() {
        return Ok(given.to_owned());
    }
    let folders = FOLDERS.map(|folder| root().join(folder));
    let mut candidates = Vec::new();
    for file in [name.to_owned(), format!("{name}.py"), format!("{name}.sh")] {
        candidates.extend(folders.iter().map(|folder| folder.join(&file)));
    }
    if let Some(found) = candidates.into_iter().find(|path| path.is_file()) {
        return Ok(found);
    }
    let mut known = Vec::new();
    for folder in &folders {
        known.extend(scripts(folder)?);
    }
    bail!("no script {name:?} in {}; known: {}", FOLDERS.join(" or "), known.join(", "))
}

/// The names of a folder's scripts.
fn scripts(folder: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("cannot read {}", folder.display()))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if (name.ends_with(".py") || name.ends_with(".sh")) && name != SETUP {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The Python of `.venv`, which is created if missing or older than its requirements.
fn environment() -> Result<PathBuf> {
    let (folder, checks) = (root().join(".venv"), root().join(FOLDERS[0]));
    let python = folder.join("bin/python");
    let requirements = checks.join(REQUIREMENTS);
    let wanted =
        fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let stamp = folder.join("installed-requirements.txt");
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    eprintln!("installing {} into {}", requirements.display(), folder.display());
    let mut setup = Command::new("bash");
    setup.arg(checks.join(SETUP)).arg(&folder);
    if !setup.status().context("cannot run bash")?.success() {
        bail!("the Python packages could not be installed");
    }
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}
