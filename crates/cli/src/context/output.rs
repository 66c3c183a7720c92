//! Output of the commands: JSON on standard output, new folders.

use std::fs::DirEntry;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use lowrank_checkpoint::{StagedDir, is_temporary};
use serde_json::Value;

/// Prints one JSON object on standard output.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").context(crate::terminal::FAILED)
}

/// Writes a folder that appears under its name when all of its files are written. What a killed process leaves is hidden
/// and removed by the next one; two processes cannot write to the same folder.
pub(crate) fn write_folder(output: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let staged = StagedDir::create(output, false)?;
    write(staged.path())?;
    Ok(staged.commit()?)
}

/// Refuses an output that is one of the inputs, is a file, or is not empty: files of two outputs would mix. What a killed
/// process has not completely written does not count.
pub(crate) fn new_folder(output: &Path, inputs: &[&Path]) -> Result<()> {
    let place = output.canonicalize().ok();
    let is_it = |input: &&&Path| place.is_some() && input.canonicalize().ok() == place;
    if let Some(input) = inputs.iter().find(is_it) {
        bail!("{}: is the input {}; give another folder", output.display(), input.display());
    }
    if output.is_file() {
        bail!("{}: is a file; -o must be a folder", output.display());
    }
    let is_ours = |entry: io::Result<DirEntry>| entry.is_ok_and(|entry| is_temporary(&entry.file_name()));
    if output.read_dir().is_ok_and(|mut entries| !entries.all(is_ours)) {
        bail!("{}: is not empty; give a new folder", output.display());
    }
    Ok(())
}
