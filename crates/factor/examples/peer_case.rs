//! One timed case of the peer comparison, as JSON; `benches/peers/factor.py` runs it.
//!
//! ```text
//! peer_case exact|randomized ROWS COLS RANK REPETITIONS MATRIX.f32
//! peer_case tt ROWS COLS RANK REPETITIONS        (batch 32; the dense product of the same shape beside it)
//! ```

use std::env;
use std::error::Error;
use std::fs;
use std::io::{Write, stdout};
use std::time::Instant;

use lowrank_factor::svd::RandomizedOptions;
use lowrank_factor::tt::{Core, TensorTrain, TtMatrix, TtShape};
use lowrank_factor::{HostMatrix, Mat, MatRef, Svd, matrix, svd};

/// Rows of the batch in the tensor-train case.
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [case, rows, cols, rank, repetitions, rest @ ..] = &args[..] else {
        return Err("usage: peer_case CASE ROWS COLS RANK REPETITIONS [MATRIX.f32]".into());
    };
    let (rows, cols, rank): (usize, usize, usize) = (rows.parse()?, cols.parse()?, rank.parse()?);
    let repetitions: usize = repetitions.parse()?;
    let json = match (case.as_str(), rest) {
        ("tt", []) => tensor_train(rows, cols, rank, repetitions)?,
        ("exact" | "randomized", [path]) => {
            let values = read(path)?;
            let a = matrix::from_row_major(&values, rows, cols)?.to_owned();
            decomposition(case, a.as_ref(), rank, repetitions)?
        }
        _ => return Err(format!("unknown case '{case}', or not its arguments").into()),
    };
    writeln!(stdout(), "{json}")?;
    Ok(())
}

fn decomposition(
    case: &str,
    a: MatRef<'_, f32>,
    rank: usize,
    repetitions: usize,
) -> Result<String, Box<dyn Error>> {
    let run = |seed: u64| -> Result<Svd<f32>, Box<dyn Error>> {
        if case == "exact" {
            return Ok(svd::exact(a)?);
        }
        let options = RandomizedOptions { seed, ..Default::default() };
        Ok(svd::randomized(&HostMatrix::new(a)?, rank, &options)?.into_svd())
    };
    let mut last = run(0)?;
    let mut errors = Vec::new();
    let mut seconds = Vec::new();
    for seed in 1..=repetitions as u64 {
        let start = Instant::now();
        last = run(seed)?;
        seconds.push(start.elapsed().as_secs_f64());
        errors.push(matrix::relative_error(a, last.leading(rank)?.reconstruct().as_ref())?);
    }
    drop(last);
    Ok(format!("{{\"seconds\": {seconds:?}, \"errors\": {errors:?}}}"))
}

fn tensor_train(rows: usize, cols: usize, rank: usize, repetitions: usize) -> Result<String, Box<dyn Error>> {
    let shape = TtShape::balanced(rows, cols, 3)?;
    let modes: Vec<usize> =
        shape.rows().factors().iter().zip(shape.cols().factors()).map(|(m, n)| m * n).collect();
    let ranks = [1, rank, rank, 1];
    let core = |k: usize| {
        let dims = [ranks[k], modes[k], ranks[k + 1]];
        Core::new(dims, numbers(dims.iter().product()))
    };
    let tt = TtMatrix::new(shape, TensorTrain::new(vec![core(0)?, core(1)?, core(2)?])?)?;
    let dense: Mat<f32> = tt.to_dense()?;
    let x = matrix::from_row_major(&numbers(BATCH * rows), BATCH, rows)?.to_owned();
    let (mut thin, mut full) = (Vec::new(), Vec::new());
    // In turn, so that both see the same machine.
    for _ in 0..repetitions {
        let start = Instant::now();
        let y = tt.multiply_batch(x.as_ref())?;
        thin.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let z = &x * &dense;
        full.push(start.elapsed().as_secs_f64());
        if (y - z).norm_l2() > 1e-4 * (&x * &dense).norm_l2() {
            return Err("the two products differ".into());
        }
    }
    let (count, all) = (tt.plan(BATCH).multiply_adds(), BATCH * rows * cols);
    Ok(format!(
        "{{\"seconds\": {thin:?}, \"dense_seconds\": {full:?}, \"multiply_adds\": {count}, \"dense_multiply_adds\": {all}}}"
    ))
}

fn numbers(len: usize) -> Vec<f32> {
    let mut state = 3_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    core::iter::repeat_with(next).take(len).collect()
}

fn read(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = fs::read(path)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
}
