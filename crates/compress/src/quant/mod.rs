//! Quantized weights, alone or with a low-rank correction: `W ≈ Q` and `W ≈ Q + A·B`.
//!
//! # Algorithm
//! `Q` is rounded to the nearest values of a block format under an importance of each input channel, the diagonal of
//! `R = E[x·xᵀ]`. The correction is the best of its rank in the norm of the inputs, `‖(W − Q − A·B)·R^½‖` (QERA-exact,
//! Zhang et al. 2024), in turn with `Q` (LoftQ, Li et al. 2023; CALDERA, Saha et al. 2024). Factors of given ranks are in Q8_0,
//! those chosen under a budget in NF4.
//!
//! Under a byte budget every weight gets the format and the rank of least total loss; by [`Method::Auto`](crate::Method::Auto) it may
//! also become factors alone. With the gradients of a
//! text this is `½·Σᵢⱼ E[gᵢ²]·E[xⱼ²]·ΔWᵢⱼ²`, in units of the model's loss per token; with inputs only, or
//! neither, the relative error.

mod budget;
mod errors;
pub(crate) mod factors;
mod fit;
mod pass;
mod plan;
mod write;

use std::path::Path;

use lowrank_checkpoint::StagedDir;

use self::budget::Candidate;
use self::errors::ErrorWeights;
use self::fit::{CORRECTION_RANKS, Target};
use self::plan::{Goal, QuantPlan};
use crate::error::{CompressError, Result};
use crate::folder;
use crate::options::{Calibrator, Options, Progress};
use crate::report::Report;

/// The mean loss per token of the model in a folder.
pub type Measure<'a> = dyn FnMut(&Path) -> Result<f64> + 'a;

/// Compresses by [`Method::Quant`](crate::Method::Quant),
/// [`Method::QuantLowRank`](crate::Method::QuantLowRank), or to a byte budget. `measure` returns the effect
/// on the loss of rounding an embedding table, for which no gradients are collected.
///
/// # Errors
/// As [`compress`](crate::compress); formats that do not go with the method, fewer bytes than the smallest formats take.
pub fn quantize(
    model: &Path,
    output: &Path,
    options: &Options,
    mut calibrator: Option<&mut dyn Calibrator>,
    mut measure: Option<&mut Measure<'_>>,
    progress: &dyn Progress,
) -> Result<Report> {
    folder::check_output(model, output)?;
    let plan = QuantPlan::new(model, options)?;
    let staged = StagedDir::create(output, false)?;
    let report = run(&plan, staged.path(), &mut calibrator, &mut measure, progress)?;
    staged.commit()?;
    Ok(report)
}

fn run(
    plan: &QuantPlan<'_>,
    staged: &Path,
    calibrator: &mut Option<&mut dyn Calibrator>,
    measure: &mut Option<&mut Measure<'_>>,
    progress: &dyn Progress,
) -> Result<Report> {
    match &plan.goal {
        Goal::Given(targets) => write::write(plan, targets, staged, calibrator, None, progress),
        Goal::Bytes { bytes, with_correction } => {
            let (candidates, known) =
                candidates(plan, *with_correction, calibrator, measure, staged, progress)?;
            let too_few = |least: u64| CompressError::Option {
                option: "bytes",
                value: bytes.to_string(),
                expected: format!("at least {least}, which the smallest formats and the other tensors take"),
            };
            let room = bytes.saturating_sub(plan.other_bytes());
            let chosen = budget::choose(&candidates, room).ok_or_else(|| {
                let least: u64 = candidates.iter().filter_map(|of| of.iter().map(|c| c.bytes).min()).sum();
                too_few(least + plan.other_bytes())
            })?;
            let targets: Vec<Target> = chosen.iter().zip(&candidates).map(|(&i, of)| of[i].target).collect();
            // The diagonals are known; whole Gram matrices are computed again, for corrections and for error
            // feedback.
            let report = write::write(plan, &targets, staged, calibrator, Some(&known), progress)?;
            if report.file.after > *bytes { Err(too_few(report.file.after)) } else { Ok(report) }
        }
    }
}

/// The size and loss of every choice for every weight, and the error weights without Gram matrices.
fn candidates(
    plan: &QuantPlan<'_>,
    with_correction: bool,
    calibrator: &mut Option<&mut dyn Calibrator>,
    measure: &mut Option<&mut Measure<'_>>,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<(Vec<Vec<Candidate>>, Vec<ErrorWeights>)> {
    let need =
        |index: usize, has_gram: bool| fit::bytes_to_compare(&plan.weights[index], with_correction, has_gram);
    let made = pass::each(plan, calibrator, "formats", progress, need, |index, weights| {
        let weight = &plan.weights[index];
        // Errors of rounding alone are independent of each other, so diagonals are as informative as whole
        // matrices.
        let diagonals = weights.without_gram();
        let rows = fit::Rows::read(weight, &plan.checkpoint)?;
        let plain = worthwhile(plan, index, &rows, &diagonals)?;
        if !with_correction {
            return Ok((plain, rows.total(&diagonals), diagonals));
        }
        let mut found = Vec::new();
        let mut add = |losses: Vec<(Target, f64)>| -> Result<()> {
            for (target, loss) in losses {
                found.push(Candidate { target, bytes: plan.bytes(index, target)?, loss });
            }
            Ok(())
        };
        for format in plain.iter().map(|candidate| candidate.target.format()) {
            let ranks: &[usize] = if rows.takes_correction(format) { CORRECTION_RANKS } else { &[] };
            add(rows.losses(format, ranks, weights)?)?;
        }
        if plan.allows_low_rank() {
            add(rows.low_rank_losses(weights)?)?;
        }
        Ok((found, rows.total(weights), diagonals))
    })?;
    let totals: Vec<f64> = made.iter().map(|(_, total, _)| *total).collect();
    let with_gradients: Vec<bool> = made.iter().map(|(_, _, weights)| weights.is_in_loss()).collect();
    let (mut all, known): (Vec<_>, Vec<_>) =
        made.into_iter().map(|(found, _, weights)| (found, weights)).unzip();
    for (index, found) in all.iter_mut().enumerate() {
        let scale = if !with_gradients.contains(&true) {
            // Relative errors.
            if totals[index] > 0.0 { totals[index].recip() } else { 0.0 }
        } else if with_gradients[index] {
            0.5
        } else {
            outside_scale(plan, index, found, &totals, &with_gradients, measure, scratch)?
        };
        found.iter_mut().for_each(|candidate| candidate.loss *= scale);
    }
    Ok((all, known))
}

/// The formats of a weight without corrections, and without those that another one beats in bytes and in loss: no budget would
/// choose these, and corrections are costly to try. The losses relative to the weight itself are those of some of its rows.
fn worthwhile(
    plan: &QuantPlan<'_>,
    index: usize,
    rows: &fit::Rows<'_>,
    weights: &ErrorWeights,
) -> Result<Vec<Candidate>> {
    let (sample, step) = rows.sample();
    let of_sample = weights.of_rows(step);
    let seen = sample.total(&of_sample);
    let (rows, weights, scale) = match seen > 0.0 {
        true => (&sample, &of_sample, rows.total(weights) / seen),
        false => (rows, weights, 1.0),
    };
    let mut all = Vec::new();
    for format in plan.formats(index) {
        for (target, loss) in rows.losses(format, &[], weights)? {
            all.push(Candidate { target, bytes: plan.bytes(index, target)?, loss: loss * scale });
        }
    }
    let beats = |a: &Candidate, b: &Candidate| {
        a.bytes <= b.bytes && a.loss <= b.loss && (a.bytes, a.loss) != (b.bytes, b.loss)
    };
    Ok(all.iter().filter(|candidate| !all.iter().any(|other| beats(other, candidate))).copied().collect())
}

/// Importance of a loss of 1 of a weight without gradients relative to those with gradients: measured on the
/// model with only this weight rounded, or the mean importance of the weights with gradients if that is
/// impossible.
fn outside_scale(
    plan: &QuantPlan<'_>,
    index: usize,
    found: &[Candidate],
    totals: &[f64],
    with_gradients: &[bool],
    measure: &mut Option<&mut Measure<'_>>,
    scratch: &Path,
) -> Result<f64> {
    let (mut sum, mut n) = (0.0, 0.0);
    for (total, _) in totals.iter().zip(with_gradients).filter(|(_, known)| **known) {
        sum += 0.5 * total;
        n += 1.0;
    }
    let mean = if totals[index] > 0.0 { sum / n / totals[index] } else { 0.0 };
    let coarse = found.iter().filter(|c| c.target.rank == 0).max_by(|a, b| a.loss.total_cmp(&b.loss));
    let (Some(coarse), Some(measure)) = (coarse.filter(|coarse| coarse.loss > 0.0), measure) else {
        return Ok(mean);
    };
    let dense = measure(plan.model)?;
    let probe = scratch.join("probe");
    std::fs::create_dir_all(&probe).map_err(folder::io(&probe))?;
    let mut targets = vec![Target::FLOATS; plan.weights.len()];
    targets[index] = coarse.target;
    write::write(plan, &targets, &probe, &mut None, None, &())?;
    let change = measure(&probe)? - dense;
    std::fs::remove_dir_all(&probe).map_err(folder::io(&probe))?;
    Ok(if change > 0.0 { change / coarse.loss } else { mean })
}
