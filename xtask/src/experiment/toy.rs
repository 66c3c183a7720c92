//! `cargo xtask experiment toy`: a rank-1 LoRA on a linear map whose weights are all shifted by 1.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Sizes of a smoke run, instead of 1001 inputs, 1000 outputs and 10,000 rows.
const SMALL: [&str; 8] = ["--inputs", "101", "--outputs", "100", "--rows", "1000", "--steps", "400"];

/// A claim of the study: the measured value, its description, and its condition.
struct Claim {
    key: &'static str,
    text: &'static str,
    holds: fn(f64) -> bool,
}

const CLAIMS: [Claim; 4] = [
    Claim { key: "pretrained_loss", text: "loss after full-rank training, below 1e-3", holds: |v| v < 1e-3 },
    Claim { key: "lora_loss", text: "loss after LoRA of rank 1, below 5e-3", holds: |v| v < 5e-3 },
    Claim { key: "delta_max_error", text: "largest |ΔW - 1|, below 0.05", holds: |v| v < 0.05 },
    Claim {
        key: "merged_max_difference",
        text: "largest difference of merged and factored outputs, below 1e-2",
        holds: |v| v < 1e-2,
    },
];

/// Runs the study and prints which of its claims hold; returns whether all do.
pub(crate) fn run(toy: &Path, smoke: bool, dry_run: bool) -> Result<bool> {
    let mut command = Command::new(toy);
    command.arg("--json");
    if smoke {
        command.args(SMALL);
    }
    if dry_run {
        println!("{command:?}");
        return Ok(true);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run {}", toy.display()))?;
    ensure!(output.status.success(), "the toy study failed");
    let result: Value = serde_json::from_slice(&output.stdout).context("the toy study printed no JSON")?;
    let shifted = result["shifted_loss"].as_f64().context("the toy study printed no loss")?;
    println!("every weight shifted by 1: loss {shifted:.1}");
    let mut all = true;
    for Claim { key, text, holds } in CLAIMS {
        let value = result[key].as_f64().unwrap_or(f64::NAN);
        all &= holds(value);
        println!("{} {value:.2e}  {text}", if holds(value) { "ok  " } else { "FAIL" });
    }
    let unchanged = result["base_unchanged"].as_bool().unwrap_or(false);
    println!("{} base bit-identical after training", if unchanged { "ok  " } else { "FAIL" });
    Ok(all && unchanged)
}
