//! The study of one weight: numerical rank, error curve over all ranks, and the least-squares refit that
//! changes nothing (Eckart–Young).
//!
//! ```text
//! cargo run --release -p lowrank-factor --example spectrum_study [OUT_DIR [WEIGHT.f32 ROWS COLS]]
//! ```
//!
//! The weight is a file of little-endian `f32` in row-major order; without one, a 768 × 768 matrix is made
//! that looks like a trained projection: noise with a slowly decaying signal on top. `spectrum.csv` and
//! `spectrum.svg` go to the output folder.

use std::env;
use std::error::Error;
use std::fs;
use std::io::{Write, stdout};
use std::path::PathBuf;

use lowrank_factor::truncation::break_even_rank;
use lowrank_factor::{ErrorCurve, Mat, MatRef, SigmaPlacement, Truncation, matrix, qr::thin_qr, svd};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let folder = args.first().map_or_else(|| env::temp_dir().join("spectrum_study"), PathBuf::from);
    let weight = match &args[1.min(args.len())..] {
        [] => made_up_weight(768)?,
        [path, rows, cols] => read_weight(path, rows.parse()?, cols.parse()?)?,
        _ => return Err("usage: spectrum_study [OUT_DIR [WEIGHT.f32 ROWS COLS]]".into()),
    };
    fs::create_dir_all(&folder)?;
    let curve = ErrorCurve::of(weight.as_ref())?;
    fs::write(folder.join("spectrum.csv"), curve.to_csv())?;
    fs::write(folder.join("spectrum.svg"), curve.to_svg("weight"))?;
    report(&curve, weight.as_ref())?;
    writeln!(stdout(), "wrote spectrum.csv and spectrum.svg to {}", folder.display())?;
    Ok(())
}

fn report(curve: &ErrorCurve, weight: MatRef<'_, f32>) -> Result<(), Box<dyn Error>> {
    let mut out = stdout().lock();
    let (m, n) = weight.shape();
    let spectrum = curve.spectrum();
    writeln!(
        out,
        "{m} x {n}: numerical rank {}, stable rank {:.1}, effective rank {:.1}, condition {:.1e}",
        spectrum.numerical_rank(),
        spectrum.stable_rank(),
        spectrum.effective_rank(),
        spectrum.condition_number()
    )?;
    writeln!(out, "factors pay up to rank {}", break_even_rank(m, n))?;
    writeln!(
        out,
        "{:>6} {:>9} {:>10} {:>10} {:>10} {:>16}",
        "rank", "energy", "rel. error", "mean", "max", "refit moves R by"
    )?;
    let svd = svd::exact(weight)?;
    let side = m.min(n);
    for rank in [1, side / 16, side / 8, side / 4, side / 2, side].into_iter().filter(|&rank| rank > 0) {
        let point = curve.points()[rank];
        let fit = svd.low_rank(&Truncation::Rank(rank), SigmaPlacement::Split)?.factors;
        let moved = matrix::relative_error(fit.right(), fit.refit_right(weight)?.right())?;
        writeln!(
            out,
            "{rank:>6} {:>9.4} {:>10.4} {:>10.2e} {:>10.2e} {moved:>16.1e}",
            point.energy, point.relative_error, point.elementwise.mean, point.elementwise.max
        )?;
    }
    Ok(())
}

/// Noise plus a signal whose singular values fall like `k^-0.7`.
fn made_up_weight(side: usize) -> Result<Mat<f32>, Box<dyn Error>> {
    let mut state = 7_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
    };
    let u = thin_qr(Mat::from_fn(side, side, |_, _| next()).as_ref())?.0;
    let v = thin_qr(Mat::from_fn(side, side, |_, _| next()).as_ref())?.0;
    let us = Mat::from_fn(side, side, |i, j| u[(i, j)] * 4.0 * (j as f64 + 1.0).powf(-0.7));
    let signal = us * v.transpose();
    Ok(Mat::from_fn(side, side, |i, j| (signal[(i, j)] + 0.05 * next()) as f32))
}

fn read_weight(path: &str, rows: usize, cols: usize) -> Result<Mat<f32>, Box<dyn Error>> {
    let bytes = fs::read(path)?;
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(format!("{path} is not a file of f32").into());
    }
    let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    Ok(matrix::from_row_major(&values, rows, cols)?.to_owned())
}
