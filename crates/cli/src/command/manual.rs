//! `lowrank manual`: the man pages and the shell completions, for packages. Hidden: `cargo xtask dist` calls it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::context::{new_folder, write_folder};

/// Options of `manual`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for man/*.1 and completions
    #[arg(short, long)]
    output: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    new_folder(&args.output, &[])?;
    write_folder(&args.output, |dir| {
        let [man, completions] = ["man", "completions"].map(|name| dir.join(name));
        for folder in [&man, &completions] {
            std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        }
        clap_mangen::generate_to(crate::Cli::command(), &man).with_context(|| man.display().to_string())?;
        let mut command = crate::Cli::command();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command, "lowrank", &completions)
                .with_context(|| completions.display().to_string())?;
        }
        Ok(())
    })
}
