//! `cargo xtask experiment`: a grid of `lowrank` processes whose whole state is files in the grid's folder.

mod answers;
mod changes;
mod config;
mod files;
mod plan;
mod progress;
mod runner;
mod scores;
mod slurm;
mod spectrum;
mod state;
mod toy;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use self::{
    config::Config,
    plan::{Cell, Overrides},
    runner::{Estimates, Outcome, Runner, share_cores},
    state::Grid,
};
use crate::cargo::{Build, root};

/// Options of a grid.
#[derive(Args)]
pub(crate) struct Options {
    /// Experiment: a file of xtask/experiments, e.g. glue or lm; or toy, or spectrum
    kind: String,
    /// JSON file whose keys override the experiment's own
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Model folders or hub names
    #[arg(long, value_delimiter = ',')]
    model: Vec<String>,
    /// Root of the tasks' files
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Tasks
    #[arg(long, value_delimiter = ',')]
    tasks: Vec<String>,
    /// Methods of the experiment, optionally with their own ranks: full,lora:1:8
    #[arg(long, value_delimiter = ',')]
    methods: Vec<String>,
    /// Ranks of every method that has one
    #[arg(long, value_delimiter = ',')]
    ranks: Vec<u64>,
    /// Learning rates of every method; the table shows the best per cell
    #[arg(long, value_delimiter = ',')]
    lrs: Vec<f64>,
    /// Seeds
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Optimizer steps of every run
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// Any other setting, for every run or for a method's: warmup_ratio=0.1 or lora.alpha=[8,16]
    #[arg(long = "set", value_name = "[METHOD.]KEY=VALUE")]
    settings: Vec<String>,
    #[command(flatten)]
    build: Build,
    /// Folder of the grid's state [default: runs/<kind>-<model>]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Number of concurrent cells, 0 for one per core
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Threads per cell [default: cores divided by jobs]
    #[arg(long, value_name = "N", overrides_with = "threads")]
    threads: Option<usize>,
    /// Where to run the cells
    #[arg(long, value_enum, default_value = "local", overrides_with = "launcher")]
    launcher: Launcher,
    /// Further option of sbatch, e.g. --partition=long
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    sbatch_option: Vec<String>,
    /// Resume the grid; this is always done
    #[arg(long)]
    resume: bool,
    /// Print the plan only
    #[arg(long)]
    dry_run: bool,
    /// Run a few steps of a few cells, as a check
    #[arg(long)]
    smoke: bool,
    /// Run only the cell with this id, and those it needs
    #[arg(long, value_name = "ID", overrides_with = "cell")]
    cell: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Launcher {
    /// Processes on this machine
    Local,
    /// A Slurm array
    Slurm,
}

/// Runs the experiment; returns whether every cell succeeded.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if options.kind == "toy" {
        return toy::run(&options.build.example("toy")?, options.smoke, options.dry_run);
    }
    if options.kind == "spectrum" {
        let models = match &options.model[..] {
            [] => config::load("glue", None, false)?.models,
            given => given.to_vec(),
        };
        let folder = options.output.clone().unwrap_or_else(|| default_output(options, &models));
        return spectrum::run(&options.build.lowrank()?, &models, &folder, options.dry_run);
    }
    let (config, over) = configure(options)?;
    let grid = Grid::new(options.output.clone().unwrap_or_else(|| default_output(options, &config.models)));
    let mut cells = plan::cells(&config, &over, options.build.backend.name(), grid.root())?;
    if let Some(id) = &options.cell {
        cells = only(cells, id)?;
    }
    let (jobs, threads) = share_cores(options.jobs.unwrap_or(config.jobs));
    let threads = options.threads.unwrap_or(threads);
    let data = check_data(&config);
    if options.dry_run {
        // A plan may be made before the data exist.
        if let Err(error) = data {
            eprintln!("warning: {error:#}");
        }
        print_plan(&options.kind, &config, &grid, &cells, jobs);
        return Ok(true);
    }
    data?;
    let lowrank = options.build.lowrank()?;
    if options.launcher == Launcher::Slurm {
        let left: Vec<&Cell> = cells.iter().filter(|cell| !grid.is_done(cell)).collect();
        if !left.is_empty() {
            let (again, options) = (env::args().skip(1).collect(), &options.sbatch_option[..]);
            slurm::Array { grid: &grid, again, lowrank: &lowrank, jobs, threads, options }.submit(&left)?;
            return Ok(true);
        }
    }
    let outcome = Runner { lowrank: &lowrank, grid: &grid, jobs, threads }.run(&cells)?;
    print_outcome(&outcome);
    let has_results = outcome.done + outcome.skipped > 0;
    if options.cell.is_none() && has_results {
        if options.kind.starts_with("compress") {
            let scores = scores::collect(&grid, &cells)?;
            report(&lowrank, &scores.folder, &grid)?;
        } else if options.kind == "lm" {
            let scores = answers::collect(&grid, &cells)?;
            report(&lowrank, &scores.folder, &grid)?;
        } else {
            report(&lowrank, grid.root(), &grid)?;
        }
        if ["study", "zero-lora"].contains(&options.kind.as_str()) {
            changes::check(&lowrank, &grid, &cells)?;
        }
    }
    Ok(outcome.failed.is_empty())
}

/// The experiment's file, overridden by `--config` and `--smoke`, and then by the flags.
fn configure(options: &Options) -> Result<(Config, Overrides)> {
    // Language models and classifiers are scored differently.
    let writes =
        options.model.first().is_some_and(|model| scores::is_language_model(&plan::from_root(model)));
    let kind = if options.kind == "compress" && writes { "compress-lm" } else { &options.kind };
    let mut config = config::load(kind, options.config.as_deref(), options.smoke)?;
    replace(&mut config.models, &options.model);
    replace(&mut config.tasks, &options.tasks);
    replace(&mut config.methods, &options.methods);
    replace(&mut config.seeds, &options.seeds);
    if let Some(data) = &options.data {
        config.data.clone_from(data);
    }
    if config.models.is_empty() || config.data.is_empty() {
        bail!("{kind} has no default model and data; give --model and --data");
    }
    let mut over = Overrides { ranks: options.ranks.clone(), ..Overrides::default() };
    if over.ranks.contains(&0) {
        bail!("--ranks 0: ranks begin at 1");
    }
    if let Some(bad) = options.lrs.iter().find(|lr| !lr.is_finite() || **lr <= 0.0) {
        bail!("--lrs {bad}: a learning rate is a positive number");
    }
    match options.lrs[..] {
        [] => {}
        [lr] => drop(over.all.insert("lr".into(), lr.into())),
        _ => drop(over.all.insert("lr".into(), options.lrs.clone().into())),
    }
    if let Some(steps) = options.max_steps {
        over.all.insert("max_steps".into(), steps.into());
    }
    for setting in &options.settings {
        let (key, value) =
            setting.split_once('=').with_context(|| format!("--set {setting}: no KEY=VALUE"))?;
        // Text that is not JSON is a string: query,value needs no quotes.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        let (settings, key) = match key.split_once('.') {
            Some((method, key)) => {
                config.method(method).with_context(|| format!("--set {setting}"))?;
                (over.method.entry(method.to_owned()).or_default(), key)
            }
            None => (&mut over.all, key),
        };
        settings.insert(key.replace('-', "_"), value);
    }
    Ok((config, over))
}

/// Reported once here instead of by every cell; the models may be hub names, which only `lowrank` can check.
fn check_data(config: &Config) -> Result<()> {
    if !plan::from_root(&config.data).is_dir() {
        bail!("--data {}: no such folder; cargo xtask datasets makes the embedded ones", config.data);
    }
    Ok(())
}

fn replace<T: Clone>(target: &mut Vec<T>, given: &[T]) {
    if !given.is_empty() {
        *target = given.to_vec();
    }
}

/// `runs/glue-mini-bert` in the workspace, with the backend unless it is the default, and a separate one for
/// smoke.
fn default_output(options: &Options, models: &[String]) -> PathBuf {
    let mut parts = vec![options.kind.clone()];
    for model in models {
        parts.push(Path::new(model).file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    if options.build.backend != Default::default() {
        parts.push(options.build.backend.name().to_owned());
    }
    if options.smoke {
        parts.push("smoke".to_owned());
    }
    let folder = Path::new("runs").join(parts.join("-"));
    let here = env::current_dir().is_ok_and(|current| current == root());
    if here { folder } else { root().join(folder) }
}

/// The cell `id`, preceded by those that it needs.
fn only(cells: Vec<Cell>, id: &str) -> Result<Vec<Cell>> {
    let mut wanted = vec![id.to_owned()];
    let mut found: Vec<Cell> = Vec::new();
    // Cells come after those that they need.
    for cell in cells.into_iter().rev() {
        if wanted.contains(&cell.id) {
            wanted.extend(cell.needs.iter().cloned());
            found.push(cell);
        }
    }
    if found.is_empty() {
        bail!("no cell {id:?} in this grid; --dry-run lists them");
    }
    found.reverse();
    Ok(found)
}

fn print_plan(kind: &str, config: &Config, grid: &Grid, cells: &[Cell], jobs: usize) {
    let estimates = Estimates::new(grid, cells);
    let done = cells.iter().filter(|cell| grid.is_done(cell)).count();
    println!("{kind}: {}", config.about);
    println!("{} cells in {}, {done} done, {jobs} at once\n", cells.len(), grid.root().display());
    let (mut left, mut known, mut unknown) = (0.0, 0, 0);
    for cell in cells {
        let state = if grid.is_done(cell) { "done" } else { "todo" };
        let seconds = estimates.seconds(cell);
        let cost = match grid.cost(cell) {
            Some((seconds, Some(trainable))) => format!("{seconds:.0} s, {trainable} trainable"),
            Some((seconds, None)) => format!("{seconds:.0} s"),
            None => seconds.map_or("time unknown".to_owned(), |seconds| format!("about {seconds:.0} s")),
        };
        println!("{state}  {}  ({cost})\n      lowrank {}", cell.id, cell.args.join(" "));
        match seconds {
            _ if state == "done" => {}
            Some(seconds) => (left, known) = (left + seconds, known + 1),
            None => unknown += 1,
        }
    }
    let minutes = left / jobs as f64 / 60.0;
    match (known, unknown) {
        (_, 0) => println!("\nleft: about {minutes:.1} minutes"),
        (0, _) => println!("\nleft: unknown until the first cells are done"),
        _ => println!("\nleft: about {minutes:.1} minutes, and {unknown} cells of unknown time"),
    }
}

fn print_outcome(outcome: &Outcome) {
    let Outcome { skipped, done, failed } = outcome;
    eprintln!("{done} cells done, {skipped} done before, {} failed", failed.len());
    for (id, why) in failed {
        eprintln!("  {id}: {why}");
    }
}

/// The grid's table on standard output and its report as a file, both by `lowrank report`.
fn report(lowrank: &Path, runs: &Path, grid: &Grid) -> Result<()> {
    let mut command = Command::new(lowrank);
    command.arg("report").arg(runs).arg("-o").arg(grid.report()).stdin(Stdio::null());
    if let Some(name) = grid.root().file_name() {
        command.arg("--title").arg(name);
    }
    let status = command.status().with_context(|| format!("cannot run {}", lowrank.display()))?;
    if !status.success() {
        bail!("lowrank report failed with {status}");
    }
    Ok(())
}
