//! The `lowrank` command. The only place where a backend is chosen.

#![allow(clippy::print_stdout, reason = "a program's output")]

#[macro_use]
mod terminal;
#[macro_use]
mod usage;

mod adapter;
mod backend;
mod bars;
mod calibration;
mod command;
mod context;
mod failures;
mod language;
mod layers;
mod machine;
mod method;
mod processes;
mod products;
mod sampling;
mod spectrum;
mod stream;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use lowrank_checkpoint::FloatType;

/// Pages returned to the system are cleared again when they are next needed, which costs a fifth of a
/// training step; mimalloc keeps them. Its huge pages are disabled: they make a model's memory a sixth larger
/// and a start four times slower, and training no faster (docs/LOG.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Low-rank adaptation and compression of transformers.
#[derive(Parser)]
#[command(name = "lowrank", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Type in which a GPU multiplies: f32, f16 or bf16; sums are in f32
    #[arg(long, value_name = "TYPE", default_value_t, hide_default_value = true, global = true)]
    precision: FloatType,
}

#[derive(Subcommand)]
enum Command {
    /// Fine-tune a model: all weights, the head only, or a low-rank adapter
    Finetune(Box<command::finetune::Args>),
    /// Evaluate a model on a task's dev set
    Evaluate(command::evaluate::Args),
    /// Classify texts or pictures
    Predict(command::predict::Args),
    /// Compute sentence embeddings
    Embed(command::embed::Args),
    /// Measure the perplexity of a language model on texts
    Perplexity(command::perplexity::Args),
    /// Continue prompts with a language model
    Generate(command::generate::Args),
    /// Chat with a language model on the terminal
    Chat(command::chat::Args),
    /// Show layers, shapes and parameters of a model or an adapter
    Inspect(command::inspect::Args),
    /// Compress a model into low-rank factors, tensor trains or quantized blocks
    Compress(Box<command::compress::Args>),
    /// Merge an adapter into its model's weights
    Merge(command::merge::Args),
    /// Convert an adapter to LoRA, a LoRA to LoTR, or a model or an adapter to GGUF
    Convert(command::convert::Args),
    /// Change the rank of an adapter
    Resize(command::resize::Args),
    /// Extract a LoRA from the difference of two models
    Extract(command::extract::Args),
    /// Combine several adapters into one
    Combine(command::combine::Args),
    /// Convert event logs to Parquet or CSV
    Logs(command::logs::Args),
    /// Write tables and plots of finished runs
    Report(command::report::Args),
    /// Generate the embedded data sets and models
    Datasets(command::datasets::Args),
    /// Write the man pages and the shell completions
    #[command(hide = true)]
    Manual(command::manual::Args),
}

fn main() -> ExitCode {
    // A reader that has enough, like `head`, ends the program quietly.
    sigpipe::reset();
    terminal::survive_size_limit();
    lowrank_checkpoint::report_cut_files();
    let matches = Cli::command().get_matches();
    context::record_given(&matches);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // A missing driver is reported by our own error, once.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "warn,cubecl_common=off".into());
    let (writer, ansi) = (std::io::stderr, std::io::stderr().is_terminal());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(ansi)
        .without_time()
        .init();
    let is_parallel = matches!(cli.command, Command::Finetune(_));
    let processes = match processes::Processes::start(is_parallel) {
        Ok(processes) => processes,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            return ExitCode::FAILURE;
        }
    };
    let result = terminal::ends_with_output(|| {
        failures::with_failures(|| {
            products::choose_precision(cli.precision)?;
            run(cli.command, &processes)
        })
    });
    let Err(error) = result else { return processes.end(None) };
    let code = processes.end(Some(&one_line(&error)));
    if usage::is_usage(&error) { ExitCode::from(2) } else { code }
}

fn run(command: Command, processes: &processes::Processes) -> anyhow::Result<()> {
    match command {
        Command::Finetune(args) => command::finetune::run(*args, processes.team()),
        Command::Evaluate(args) => command::evaluate::run(args),
        Command::Predict(args) => command::predict::run(args),
        Command::Embed(args) => command::embed::run(args),
        Command::Perplexity(args) => command::perplexity::run(args),
        Command::Generate(args) => command::generate::run(args),
        Command::Chat(args) => command::chat::run(args),
        Command::Inspect(args) => command::inspect::run(args),
        Command::Compress(args) => command::compress::run(*args),
        Command::Merge(args) => command::merge::run(args),
        Command::Convert(args) => command::convert::run(args),
        Command::Resize(args) => command::resize::run(args),
        Command::Extract(args) => command::extract::run(args),
        Command::Combine(args) => command::combine::run(args),
        Command::Logs(args) => command::logs::run(args),
        Command::Report(args) => command::report::run(args),
        Command::Datasets(args) => command::datasets::run(args),
        Command::Manual(args) => command::manual::run(&args),
    }
}

/// An error with its causes on one line, each printed once.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
    }
    terminal::one_line(&text)
}
