//! Methods and ranks on one matrix: `cargo run --release -p lowrank-factor --example compress_matrix`.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use lowrank_factor::{FactorError, HostMatrix, Mat, SigmaPlacement, Truncation, svd};

fn main() -> Result<(), FactorError> {
    // Singular values that fall like those of a trained layer: a smooth part and a rough one.
    let a = Mat::from_fn(768, 512, |i, j| {
        let (x, y) = (i as f64 / 768.0, j as f64 / 512.0);
        1.0 / (1.0 + 20.0 * (x - y).powi(2)) + 0.02 * ((i * 7919 + j * 104_729) % 1000) as f64 / 1000.0
    });
    let start = Instant::now();
    let exact = svd::exact(a.as_ref())?;
    println!("exact SVD: {:.0?}", start.elapsed());
    for rank in [4, 16, 64] {
        let start = Instant::now();
        let sampled = svd::randomized(&HostMatrix::new(a.as_ref())?, rank, &Default::default())?;
        let best = exact.low_rank(&Truncation::Rank(rank), SigmaPlacement::Split)?.report;
        println!(
            "rank {rank}: error {:.5} at best, {:.5} randomized ({:.0?}); {} of {} numbers",
            best.relative_error,
            sampled.residual(),
            start.elapsed(),
            best.parameters_after,
            best.parameters_before,
        );
    }
    for error in [0.1, 0.01] {
        let report = exact.low_rank(&Truncation::RelativeError(error), SigmaPlacement::Split)?.report;
        println!(
            "error {error}: rank {}, {}",
            report.rank,
            if report.pays() { "pays" } else { "does not pay" }
        );
    }
    Ok(())
}
