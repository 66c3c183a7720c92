//! Task runner: `cargo xtask COMMAND`.
//!
//! It spawns cargo, `lowrank` and Python; it links neither burn nor the lowrank crates, so that it builds
//! in seconds.

#![allow(clippy::print_stdout, reason = "a program's output")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

mod cargo;
mod dist;
mod experiment;
mod peers;
mod surface;
mod tasks;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cargo::{Backend, Build};

/// Task runner of the lowrank workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check formatting and lints, as in CI
    Check,
    /// Run all tests of the workspace and print the totals
    Test {
        /// Backend of the `lowrank` command under test, and for a GPU of kernels, models and trainings as well; without
        /// a card, CUBECL_WGPU_DEFAULT_DEVICE=Cpu selects Mesa's lavapipe for vulkan
        #[arg(long, value_enum, default_value_t)]
        backend: Backend,
        /// Arguments for cargo test, e.g. `-p lowrank-report`, `-p lowrank --features mpi` or `-- table`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run benches
    Bench {
        /// Arguments for cargo bench, e.g. `-p lowrank-factor -- svd`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Regenerate the embedded data sets and models, bit for bit
    Datasets {
        #[command(flatten)]
        build: Build,
        /// Output folder
        #[arg(short, long, default_value = "datasets")]
        output: String,
    },
    /// Run a grid of `lowrank` processes and print its table
    Experiment(Box<experiment::Options>),
    /// Compare with PyTorch, transformers and PEFT: install them into .venv and run a script
    Peers(peers::Options),
    /// Build a release: an archive with the program, man pages and licences, its bill of materials, checksums
    Dist(dist::Options),
    /// List the public items of the crates that nothing outside their own sources uses
    Surface {
        /// Include items that only the crate's own tests, examples and benches use
        #[arg(long)]
        tests: bool,
    },
}

fn main() -> ExitCode {
    // A reader that has enough, like `head`, ends the program quietly.
    sigpipe::reset();
    let done = match Cli::parse().command {
        Command::Check => tasks::check(),
        Command::Test { backend, args } => tasks::test(backend, &args),
        Command::Bench { args } => tasks::bench(&args),
        Command::Datasets { build, output } => tasks::datasets(&build, &output),
        Command::Experiment(options) => experiment::run(&options),
        Command::Peers(options) => peers::run(&options),
        Command::Dist(options) => dist::run(&options),
        Command::Surface { tests } => surface::run(std::path::Path::new("."), tests),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
