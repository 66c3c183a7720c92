//! A compression from folder to folder: plan, analyse, write.

use std::path::Path;

use lowrank_checkpoint::StagedDir;

use crate::allocate;
use crate::amount::Amount;
use crate::analyse::analyse;
use crate::error::{CompressError, Result};
use crate::folder;
use crate::options::{Calibrator, Options, Progress};
use crate::pivots;
use crate::plan::Plan;
use crate::quant::quantize;
use crate::report::{Change, Report};
use crate::scratch::Scratch;
use crate::write::write;

/// Compresses the model folder `model` into the folder `output`, which must not exist or be empty.
///
/// # Errors
/// Options out of range or that match nothing, an input without a model, one that is already compressed or
/// has a non-finite weight, an output that is not empty or is the input, a full disk. The input is never
/// modified, and the output appears only when it is complete.
pub fn compress(
    model: &Path,
    output: &Path,
    options: &Options,
    mut calibrator: Option<&mut dyn Calibrator>,
    progress: &dyn Progress,
) -> Result<Report> {
    if options.method.is_quant() || matches!(options.amount, Amount::Bytes(_)) {
        return quantize(model, output, options, calibrator, None, progress);
    }
    folder::check_output(model, output)?;
    let plan = Plan::new(model, options)?;
    let mut staged =
        if options.resume { StagedDir::resume(output, false)? } else { StagedDir::create(output, false)? };
    staged.keep();
    let report = match run(&plan, staged.path(), &mut calibrator, progress) {
        Ok(report) => report,
        Err(error) => {
            // A job that the disk interrupted can be resumed; one with wrong options cannot.
            if !matches!(error, CompressError::Checkpoint(_) | CompressError::File { .. }) {
                let partial = staged.path().to_owned();
                drop(staged);
                std::fs::remove_dir_all(&partial).map_err(folder::io(&partial))?;
            }
            return Err(error);
        }
    };
    staged.commit()?;
    Ok(report)
}

fn run(
    plan: &Plan<'_>,
    staged: &Path,
    calibrator: &mut Option<&mut dyn Calibrator>,
    progress: &dyn Progress,
) -> Result<Report> {
    let calibration = calibrator.as_ref().map_or_else(|| "no calibration".into(), |c| c.identity());
    let identity = plan.identity(&calibration);
    folder::check_identity(staged, &identity)?;
    let scratch_folder = staged.join("scratch");
    let scratch = Scratch::open(&scratch_folder)?;
    let choices = match plan.known_choices()? {
        Some(choices) => choices,
        None => {
            let analyses = analyse(plan, &scratch, calibrator, progress)?;
            allocate::choose(
                &plan.units,
                &analyses,
                plan.goal()?,
                plan.rules.share,
                plan.options.always_factor,
            )?
        }
    };
    plan.check_choices(&choices)?;
    let mut report = write(plan, &choices, staged, &scratch, &identity, calibrator, progress)?;
    if plan.options.pivots {
        let dtypes = plan.units.iter().flat_map(|unit| &unit.weights).map(|weight| {
            (weight.site.path.clone(), folder::output_dtype(weight.dtype, plan.options.dtype, true))
        });
        report.file = Change::new(plan.sizes.file, pivots::take_out(staged, &dtypes.collect())?);
    }
    plan.check_file(report.file.after)?;
    std::fs::remove_dir_all(&scratch_folder).map_err(folder::io(&scratch_folder))?;
    folder::remove_identity(staged)?;
    Ok(report)
}
