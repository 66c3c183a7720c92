//! `cargo xtask experiment spectrum`: the losses of truncating a model's weights, as SVG and CSV.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::plan::from_root;

/// Writes `spectrum.csv` and `spectrum.svg` of each model into `folder`, or into subfolders if there are
/// several.
pub(crate) fn run(lowrank: &Path, models: &[String], folder: &Path, dry_run: bool) -> Result<bool> {
    for model in models {
        // A hub name is not a path.
        let here = from_root(model);
        let path = if here.is_dir() { here } else { model.into() };
        let output = match models {
            [_] => folder.to_owned(),
            _ => folder.join(Path::new(model).file_name().unwrap_or_default()),
        };
        let mut command = Command::new(lowrank);
        command.args(["inspect", "--spectrum"]).arg(&path).arg("-o").arg(&output);
        if dry_run {
            println!("{command:?}");
            continue;
        }
        let status = command.stdin(Stdio::null()).status();
        let status = status.with_context(|| format!("cannot run {}", lowrank.display()))?;
        ensure!(status.success(), "{model}: lowrank inspect failed");
        println!("wrote spectrum.csv and spectrum.svg to {}", output.display());
    }
    Ok(true)
}
