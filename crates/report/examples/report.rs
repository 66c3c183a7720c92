//! Writes the report of a folder of runs: `cargo run -p lowrank-report --example report -- RUNS OUT.html`.

use std::{env, process::ExitCode};

use lowrank_report::html::{ReportOptions, write_report};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let [runs, output] = &args[..] else {
        eprintln!("usage: report RUNS OUT.html|OUT.md|OUT.csv|OUT.tex");
        return ExitCode::from(2);
    };
    match write_report(runs, output, &ReportOptions::default()) {
        Ok(summary) => {
            for path in &summary.written {
                eprintln!("{}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
