//! Writes a log tree as a large grid leaves it, to measure with: `cargo run --release -p lowrank-report --example
//! log_tree -- DIR RUNS POINTS`.

use std::{env, path::Path, process::ExitCode};

use lowrank_report::{LogKey, Result, log_path, tfevents::EventWriter};

const METHODS: [&str; 5] = ["full", "head", "lora", "lotr", "dora"];
const TASKS: [&str; 4] = ["cola", "mrpc", "rte", "sst2"];
const LRS: [f64; 4] = [5e-5, 1e-4, 5e-4, 1e-3];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let numbers: Option<Vec<u64>> =
        args.get(1..3).and_then(|args| args.iter().map(|arg| arg.parse().ok()).collect());
    let Some([runs, points]) = numbers.as_deref() else {
        eprintln!("usage: log_tree DIR RUNS POINTS");
        return ExitCode::from(2);
    };
    match (0..*runs).try_for_each(|run| write(Path::new(&args[0]), run, *points)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A run of `points` values over the tags that a fine-tuning logs.
fn write(root: &Path, run: u64, points: u64) -> Result<()> {
    let pick = |count: usize, stride: u64| ((run / stride) % count as u64) as usize;
    let key = LogKey {
        model: "mini-bert",
        method: METHODS[pick(METHODS.len(), 1)],
        task: TASKS[pick(TASKS.len(), 5)],
        lr: LRS[pick(LRS.len(), 20)],
        rank: 1 << pick(4, 80),
        seed: run / 320,
    };
    let mut events = EventWriter::create(log_path(root, &key))?;
    for point in 0..points {
        let step = (point / 3 * 10) as i64;
        let tag = ["train/loss", "train/learning_rate", "train/epoch"][(point % 3) as usize];
        let value = ((run + 1) as f32).sqrt() / (1.0 + point as f32);
        events.scalar(tag, step, value, 1.7e9 + point as f64)?;
    }
    Ok(())
}
