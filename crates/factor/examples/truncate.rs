//! Truncates a matrix to several ranks: `cargo run --release -p lowrank-factor --example truncate`.

#![allow(clippy::print_stdout, reason = "a program's output")]

use lowrank_factor::{FactorError, Mat, SigmaPlacement, Truncation, svd};

fn main() -> Result<(), FactorError> {
    // Cauchy kernel of two grids: its singular values fall geometrically.
    let a = Mat::from_fn(300, 200, |i, j| 1.0 / (1.0 + i as f64 / 300.0 + j as f64 / 200.0));
    let svd = svd::exact(a.as_ref())?;
    for rank in [1, 2, 4, 8] {
        let fit = svd.low_rank(&Truncation::Rank(rank), SigmaPlacement::Split)?;
        println!("rank {rank}: relative error {:.2e}", fit.report.relative_error);
    }
    let fit = svd.low_rank(&Truncation::RelativeError(1e-6), SigmaPlacement::Split)?;
    println!("relative error 1e-6 needs rank {}", fit.report.rank);
    Ok(())
}
