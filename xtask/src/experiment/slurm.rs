//! Submission of the cells as a Slurm array.
//!
//! An array element is this program again, restricted to one cell: locks and states are files in the grid's
//! folder, which all nodes see. When a node fails, Slurm requeues its elements; they resume from the newest
//! checkpoints, or wait for the locks if the cells still run.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{self, Path},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{plan::Cell, runner::can_start, state::Grid};

/// Variables in which launchers give the number of processes, read by `lowrank`.
const LAUNCHED: [&str; 4] =
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Parameters of an array job.
pub(crate) struct Array<'a> {
    /// The grid's folder.
    pub(crate) grid: &'a Grid,
    /// The arguments that make this program plan the same grid.
    pub(crate) again: Vec<String>,
    /// The `lowrank` executable.
    pub(crate) lowrank: &'a Path,
    /// Number of concurrent elements.
    pub(crate) jobs: usize,
    /// Cores per element.
    pub(crate) threads: usize,
    /// Further options of `sbatch`.
    pub(crate) options: &'a [String],
}

impl Array<'_> {
    /// Writes the script for `cells` and submits it if there is an `sbatch`.
    pub(crate) fn submit(&self, cells: &[&Cell]) -> Result<()> {
        self.grid.create()?;
        let logs = self.grid.root().join("slurm");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let this = env::current_exe().context("cannot tell where this program is")?;
        let here = env::current_dir().context("cannot tell the current folder")?;
        let path = self.grid.root().join("grid.sbatch");
        fs::write(&path, self.script(cells, &this, &here)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let shown = path.display();
        if !can_start("sbatch") {
            println!("sbatch was not found; on a machine of the cluster run: sbatch {shown}");
            return Ok(());
        }
        println!("sbatch {shown}");
        let status = Command::new("sbatch").arg(&path).status().context("cannot run sbatch")?;
        if !status.success() {
            bail!("sbatch {shown} failed with {status}");
        }
        println!("the table, once all cells are done: the same command again");
        Ok(())
    }

    /// The script, which starts `this` in the folder `here`.
    fn script(&self, cells: &[&Cell], this: &Path, here: &Path) -> Result<String> {
        let mut text = String::from("#!/bin/bash\n#SBATCH --job-name=lowrank\n");
        writeln!(text, "#SBATCH --array=0-{}%{}", cells.len() - 1, self.jobs)?;
        writeln!(text, "#SBATCH --cpus-per-task={}", self.threads)?;
        // sbatch may be called from any folder.
        let root = path::absolute(self.grid.root()).context("cannot tell the current folder")?;
        writeln!(text, "#SBATCH --output={}", in_directive(&root.to_string_lossy(), "/slurm/%A_%a.log")?)?;
        // A requeued element's log follows that of its first attempt.
        writeln!(text, "#SBATCH --open-mode=append\n#SBATCH --requeue")?;
        for option in self.options {
            writeln!(text, "#SBATCH {option}")?;
        }
        writeln!(text, "cells=(")?;
        for cell in cells {
            writeln!(text, "  {}", cell.id)?;
        }
        writeln!(text, ")\ncd {} || exit 1", quoted(&here.to_string_lossy()))?;
        // A cell is one process, even if submitted from within a job of several.
        writeln!(text, "unset {}", LAUNCHED.join(" "))?;
        let again: Vec<String> = self.again.iter().map(|arg| quoted(arg)).collect();
        writeln!(
            text,
            "exec {} {} --launcher local --lowrank {} --threads {} --cell \"${{cells[$SLURM_ARRAY_TASK_ID]}}\"",
            quoted(&this.to_string_lossy()),
            again.join(" "),
            quoted(&self.lowrank.to_string_lossy()),
            self.threads,
        )?;
        Ok(text)
    }
}

/// A file name of a directive: `folder` as it is, then `pattern` with sbatch's replacements.
fn in_directive(folder: &str, pattern: &str) -> Result<String> {
    // Slurm makes no replacements in a name with a backslash, and a directive ends with its line.
    if folder.contains(['\\', '\n']) {
        bail!(
            "Slurm cannot write logs below {folder:?}: it has a backslash or a line break; choose another folder with -o"
        );
    }
    let folder = folder.replace('%', "%%").replace('"', r#"\""#);
    Ok(format!("\"{folder}{pattern}\""))
}

/// `text` quoted as one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell() {
        assert_eq!(quoted("--tasks=a,b"), "--tasks=a,b");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $x"), r"'it'\''s $x'");
    }

    #[test]
    fn file_names_of_directives() {
        let directive = |folder| in_directive(folder, "/%a.log").map_err(|error| error.to_string());
        assert_eq!(directive("/a b").unwrap(), r#""/a b/%a.log""#);
        assert_eq!(directive(r#"/90%A "b" #1"#).unwrap(), r#""/90%%A \"b\" #1/%a.log""#);
        for folder in ["/a\\b", "/a\nb"] {
            assert!(directive(folder).unwrap_err().contains("choose another folder with -o"));
        }
    }

    #[test]
    fn the_script_of_two_cells() {
        let cell = |id: &str| Cell {
            id: id.into(),
            method: "full".into(),
            task: "rte".into(),
            args: vec!["finetune".into()],
            needs: vec![],
        };
        let (one, two) = (cell("one-01"), cell("two-02"));
        let array = Array {
            grid: &Grid::new("/runs/my glue"),
            again: ["experiment", "glue", "-o", "/runs/my glue"].map(str::to_owned).to_vec(),
            lowrank: Path::new("target/release/lowrank"),
            jobs: 4,
            threads: 8,
            options: &["--partition=long".to_owned()],
        };
        let text = array.script(&[&one, &two], Path::new("target/debug/xtask"), Path::new("my project"));
        let expect = r#"#!/bin/bash
#SBATCH --job-name=lowrank
#SBATCH --array=0-1%4
#SBATCH --cpus-per-task=8
#SBATCH --output="/runs/my glue/slurm/%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --partition=long
cells=(
  one-01
  two-02
)
cd 'my project' || exit 1
unset OMPI_COMM_WORLD_SIZE PMI_SIZE MV2_COMM_WORLD_SIZE SLURM_STEP_NUM_TASKS
exec target/debug/xtask experiment glue -o '/runs/my glue' --launcher local --lowrank target/release/lowrank --threads 8 --cell "${cells[$SLURM_ARRAY_TASK_ID]}"
"#;
        assert_eq!(text.unwrap(), expect);
    }
}
