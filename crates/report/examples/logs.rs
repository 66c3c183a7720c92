//! Converts a log tree: `cargo run --release -p lowrank-report --features parquet --example logs -- TREE
//! OUT.parquet NAME…`.

use std::{env, process::ExitCode, time::Instant};

use lowrank_report::logs::{LogsOptions, convert};

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let (Some(root), Some(output)) = (args.next(), args.next()) else {
        eprintln!("usage: logs TREE OUT.parquet|OUT.csv NAME…");
        return ExitCode::from(2);
    };
    let options = LogsOptions { names: args.collect(), ..LogsOptions::default() };
    let started = Instant::now();
    match convert(root, output, &options, |_| {}) {
        Ok(summary) => {
            for warning in &summary.warnings {
                eprintln!("warning: {warning}");
            }
            let seconds = started.elapsed().as_secs_f64();
            let mb = summary.bytes as f64 / 1e6;
            eprintln!(
                "{} runs, {} rows, {mb:.1} MB in {seconds:.2} s: {:.0} MB/s",
                summary.runs,
                summary.rows,
                mb / seconds
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
