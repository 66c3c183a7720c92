//! Factors weighted by inputs and by gradients of outputs: the shrinkage chosen on held-out texts, then the
//! decomposition.

use lowrank_factor::{FactorError, Mat, MatRef, TwoSided};

use crate::fit::Kept;
use crate::statistics::{InputStatistics, SidedStatistics};

/// Shrinkages that are tried, smallest first; half steps between them are tried around the best one.
const SHRINKAGES: [f64; 4] = [1e-3, 1e-2, 1e-1, 0.5];
/// Default without held-out texts: suitable for a Gram matrix from as many samples as its width.
const UNKNOWN: f64 = 0.05;

/// The subspace of a weight `[d_output, d_input]`, and the shrinkage used: `known`, or the one whose factors
/// of rank `rank` have the least loss on the held-out texts.
pub(crate) fn subspace(
    a: MatRef<'_, f32>,
    sums: &SidedStatistics,
    held_out: Option<&SidedStatistics>,
    known: Option<f64>,
    rank: usize,
) -> Result<(Kept, f64), FactorError> {
    let fit = problem(a, sums)?;
    let (all, shrinkage) = match held_out {
        None => (fit, known.unwrap_or(UNKNOWN)),
        Some(held_out) => {
            let other = problem(a, held_out)?;
            let shrinkage = match known {
                Some(known) => known,
                None => choose(&fit, &other, rank)?,
            };
            let (of_fit, of_other) = (sums.inputs.rows as f64, held_out.inputs.rows as f64);
            // The share of the held-out samples, which the final factors use as well.
            (fit.pooled(&other, of_other / (of_fit + of_other).max(1.0)), shrinkage)
        }
    };
    let subspace = all.solve(shrinkage)?.subspace()?;
    let pool = |pick: fn(&SidedStatistics) -> &InputStatistics| {
        let parts: Vec<&InputStatistics> = std::iter::once(sums).chain(held_out).map(pick).collect();
        let rows: u64 = parts.iter().map(|part| part.rows).sum();
        let n = parts[0].gram.nrows();
        let diagonal =
            |i: usize| parts.iter().map(|part| part.gram[(i, i)]).sum::<f64>() / rows.max(1) as f64;
        let mean = (0..n).map(diagonal).sum::<f64>() / n as f64;
        (0..n).map(|i| ((1.0 - shrinkage) * diagonal(i) + shrinkage * mean) as f32).collect()
    };
    let kept = Kept { subspace, inputs: pool(|sums| &sums.inputs), outputs: pool(|sums| &sums.outputs) };
    Ok((kept, shrinkage))
}

/// The problem in means over tokens, so that its losses are in units of the loss per token.
fn problem(a: MatRef<'_, f32>, sums: &SidedStatistics) -> Result<TwoSided, FactorError> {
    let mean = |statistics: &InputStatistics| {
        let rows = statistics.rows.max(1) as f64;
        Mat::from_fn(statistics.gram.nrows(), statistics.gram.ncols(), |i, j| statistics.gram[(i, j)] / rows)
    };
    TwoSided::new(a, mean(&sums.inputs).as_ref(), mean(&sums.outputs).as_ref())
}

/// The shrinkage with the least held-out loss.
fn choose(fit: &TwoSided, held_out: &TwoSided, rank: usize) -> Result<f64, FactorError> {
    let loss = |shrinkage: f64| -> Result<(f64, f64), FactorError> {
        Ok((held_out.loss(&fit.solve(shrinkage)?, rank)?, shrinkage))
    };
    let better = |best: (f64, f64), next: (f64, f64)| if next.0 < best.0 { next } else { best };
    let mut best = loss(SHRINKAGES[0])?;
    for shrinkage in &SHRINKAGES[1..] {
        let next = loss(*shrinkage)?;
        // Beyond the minimum the loss only rises.
        if next.0 > best.0 {
            break;
        }
        best = better(best, next);
    }
    let step = 10f64.sqrt();
    for shrinkage in [best.1 / step, (best.1 * step).min(1.0)] {
        best = better(best, loss(shrinkage)?);
    }
    Ok(best.1)
}
