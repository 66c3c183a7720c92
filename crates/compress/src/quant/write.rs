//! The output folder of a quantization.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lowrank_checkpoint::{Dtype, StreamOptions, StreamWriter, TensorPlan, write_atomic};
use lowrank_spec::names::WeightPart;
use lowrank_spec::representation::{SECTION, VERSION};
use lowrank_spec::{BlockFormat, LowrankSection, ModuleEntry, Representation, transpose};
use serde_json::Map;

use super::errors::ErrorWeights;
use super::fit::{self, Base, Factor, Made, Rows, Target, named};
use super::pass;
use super::plan::QuantPlan;
use crate::error::{CompressError, Result};
use crate::folder;
use crate::options::{Calibrator, Progress};
use crate::report::{Change, ModuleReport, Report};
use crate::weights::Weight;

/// Quantizes and writes every weight. Without a calibrator, errors are weighted by `known`.
///
/// # Errors
/// Errors of reading, rounding and writing weights.
pub(crate) fn write(
    plan: &QuantPlan<'_>,
    targets: &[Target],
    staged: &Path,
    calibrator: &mut Option<&mut dyn Calibrator>,
    known: Option<&[ErrorWeights]>,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut writer = open(plan, targets, staged)?;
    let changed: BTreeSet<String> = plan
        .weights
        .iter()
        .zip(targets)
        .filter(|(_, target)| target.base != Base::Floats)
        .map(|(weight, _)| weight.key())
        .collect();
    for name in rest(plan, &changed) {
        let Some(info) = plan.checkpoint.info(name) else { continue };
        if folder::output_dtype(info.dtype, plan.options.dtype, false) == info.dtype {
            writer.copy(name, &plan.checkpoint, name)?;
        } else {
            writer.write_f32(name, &plan.checkpoint.read_f32(name)?)?;
        }
    }
    let shared = Mutex::new(&mut writer);
    let need = |index: usize, has_gram: bool| match targets[index].base {
        Base::Blocks(_) | Base::Absent => fit::bytes(&plan.weights[index], targets[index], has_gram),
        Base::Floats => 0,
    };
    let errors = pass::each(plan, calibrator, "blocks", progress, need, |index, weights| {
        let (weight, target) = (&plan.weights[index], targets[index]);
        if target.base == Base::Floats {
            return Ok(0.0);
        }
        // A second pass without a calibrator uses the diagonals of the first.
        let weights = known.filter(|_| weights.gram.is_none()).map_or(weights, |known| &known[index]);
        let is_in_parts = fit::is_in_parts(weight, target, weights.gram.is_some());
        let made = match target.format().filter(|_| is_in_parts) {
            Some(format) => Rows::make_in_parts(weight, &plan.checkpoint, format, weights)?,
            None => Rows::read(weight, &plan.checkpoint)?.make(target, weights)?,
        };
        let mut writer = shared.lock().unwrap_or_else(PoisonError::into_inner);
        put(&mut writer, weight, target, &made)?;
        Ok(made.error)
    })?;
    let files = writer.finish()?;
    let section = section(plan, targets, &errors);
    finish_folder(plan, staged, &section)?;
    report(plan, targets, &errors, &files)
}

/// Names of the tensors to copy.
fn rest<'p>(plan: &'p QuantPlan<'_>, changed: &'p BTreeSet<String>) -> impl Iterator<Item = &'p str> {
    plan.checkpoint.unchanged(changed).filter(|name| !plan.is_left_out(name))
}

/// The tensors of a weight in its target.
fn planned(plan: &QuantPlan<'_>, weight: &Weight, target: Target) -> Result<Vec<TensorPlan>> {
    let [rows, columns] = weight.row_shape();
    let path = &weight.site.path;
    let bytes = |format: BlockFormat, columns: usize| format.row_bytes(columns).map_err(named(path));
    let mut tensors = match target.base {
        Base::Floats => return Ok(Vec::new()),
        Base::Blocks(format) => {
            vec![TensorPlan::new(weight.key(), [rows, bytes(format, columns)?], Dtype::U8)]
        }
        Base::Absent => Vec::new(),
    };
    if target.rank > 0 {
        let float = folder::output_dtype(weight.dtype, plan.options.dtype, true);
        for (part, width) in [(WeightPart::FactorA, columns), (WeightPart::FactorB, rows)] {
            let key = part.key(path);
            tensors.push(if width.is_multiple_of(target.factors.block_len()) {
                TensorPlan::new(key, [target.rank, bytes(target.factors, width)?], Dtype::U8)
            } else if part == WeightPart::FactorA {
                TensorPlan::new(key, [target.rank, width], float)
            } else {
                TensorPlan::new(key, [width, target.rank], float)
            });
        }
    }
    Ok(tensors)
}

fn open(plan: &QuantPlan<'_>, targets: &[Target], staged: &Path) -> Result<StreamWriter> {
    let mut tensors = Vec::new();
    let mut changed = BTreeSet::new();
    for (weight, target) in plan.weights.iter().zip(targets) {
        let planned = planned(plan, weight, *target)?;
        if !planned.is_empty() {
            changed.insert(weight.key());
        }
        tensors.extend(planned);
    }
    for name in rest(plan, &changed) {
        if let Some(info) = plan.checkpoint.info(name) {
            let dtype = folder::output_dtype(info.dtype, plan.options.dtype, false);
            tensors.push(TensorPlan::new(name, info.shape.clone(), dtype));
        }
    }
    let metadata = BTreeMap::from([("lowrank".to_string(), format!("{:?}", plan.options.method))]);
    Ok(StreamWriter::create(staged, tensors, StreamOptions { metadata, ..StreamOptions::default() })?)
}

fn put(writer: &mut StreamWriter, weight: &Weight, target: Target, made: &Made) -> Result<()> {
    if target.base != Base::Absent {
        writer.write_bytes(&weight.key(), &made.blocks)?;
    }
    let Some(factors) = &made.factors else { return Ok(()) };
    let path = &weight.site.path;
    let rows = weight.row_shape()[0];
    let mut factor = |part: WeightPart, factor: &Factor, floats: &dyn Fn() -> Vec<f32>| -> Result<()> {
        match &factor.blocks {
            Some(blocks) => Ok(writer.write_bytes(&part.key(path), blocks)?),
            None => Ok(writer.write_f32(&part.key(path), &floats())?),
        }
    };
    factor(WeightPart::FactorA, &factors.right, &|| factors.right.values.clone())?;
    // In floats the file holds `(out, r)`.
    factor(WeightPart::FactorB, &factors.left, &|| transpose(&factors.left.values, target.rank, rows))
}

fn entry(weight: &Weight, target: Target, error: f64) -> Option<ModuleEntry> {
    let mut formats = BTreeMap::new();
    if let Some(format) = target.format() {
        formats.insert(WeightPart::Dense.name().to_string(), format.name().to_string());
    }
    let [rows, columns] = weight.row_shape();
    for (part, width) in [(WeightPart::FactorA, columns), (WeightPart::FactorB, rows)] {
        if target.rank > 0 && width.is_multiple_of(target.factors.block_len()) {
            formats.insert(part.name().into(), target.factors.name().into());
        }
    }
    let representation = match target.base {
        Base::Floats => return None,
        Base::Absent => Representation::low_rank(target.rank),
        Base::Blocks(_) if target.rank == 0 => Representation::Dense,
        Base::Blocks(_) => Representation::Sum { rank: target.rank },
    };
    Some(ModuleEntry { representation, error: Some(error), formats })
}

fn section(plan: &QuantPlan<'_>, targets: &[Target], errors: &[f64]) -> LowrankSection {
    let all = plan.weights.iter().zip(targets).zip(errors);
    let entries = all.filter_map(|((weight, target), error)| {
        Some((weight.site.path.clone(), entry(weight, *target, *error)?))
    });
    LowrankSection {
        version: VERSION,
        method: plan.options.method.name().to_string(),
        source: plan.source.clone(),
        modules: entries.collect(),
        other: Map::new(),
    }
}

fn report(plan: &QuantPlan<'_>, targets: &[Target], errors: &[f64], files: &[PathBuf]) -> Result<Report> {
    let bytes: u64 = files.iter().map(|path| folder::file_size(path)).sum::<Result<_>>()?;
    let mut after = 0;
    let all = plan.weights.iter().zip(targets).zip(errors);
    let modules: Vec<ModuleReport> = all
        .map(|((weight, target), &error)| {
            let [d_input, d_output] = weight.shape();
            let matrix = if target.base == Base::Absent { 0 } else { weight.numel() };
            let parameters = (matrix + target.rank * (d_input + d_output)) as u64;
            after += parameters;
            ModuleReport {
                module: weight.site.path.clone(),
                kind: match target.base {
                    Base::Absent => "low_rank",
                    _ if target.rank > 0 => "sum",
                    _ => "dense",
                },
                ranks: if target.rank > 0 { vec![target.rank] } else { Vec::new() },
                format: match target.base {
                    Base::Floats => None,
                    Base::Blocks(format) => Some(format.name()),
                    Base::Absent => Some(target.factors.name()),
                },
                parameters: Change::new(weight.numel() as u64, parameters),
                error,
            }
        })
        .collect();
    let sizes = &plan.sizes;
    Ok(Report {
        method: plan.options.method.name(),
        layers: Change::new(sizes.touched, after),
        model: Change::new(sizes.model, sizes.model - sizes.touched + after),
        file: Change::new(sizes.file, bytes),
        modules,
        dense: targets.iter().filter(|target| target.base == Base::Floats).count(),
        instead: instead(plan, targets),
        unreached: plan.unreached.paths(),
    })
}

/// Formats used instead of the given one, the reason, and the number of weights.
fn instead(plan: &QuantPlan<'_>, targets: &[Target]) -> Vec<String> {
    let Some(given) = plan.options.format else { return Vec::new() };
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (weight, target) in
        plan.weights.iter().zip(targets).filter(|(_, target)| target.format() != Some(given))
    {
        let columns = weight.row_shape()[1];
        let reason = if columns.is_multiple_of(given.block_len()) {
            "tables and heads keep at least 6 bits".to_string()
        } else {
            let alternative = match given {
                _ if !columns.is_multiple_of(BlockFormat::Nf4.block_len()) => "",
                BlockFormat::Q4K => "; NF4 would fit",
                BlockFormat::Q3K => "; NF3 would fit",
                BlockFormat::Q2K => "; NF2 would fit",
                _ => "",
            };
            format!("rows of {columns} elements do not fill blocks of {}{alternative}", given.block_len())
        };
        let format = target.format().map_or("floats".to_string(), |format| format.to_string());
        *counts.entry((reason, format)).or_default() += 1;
    }
    let weights = |n: usize| if n == 1 { "1 weight is".to_string() } else { format!("{n} weights are") };
    let line = |((reason, format), n)| format!("{} in {format} instead of {given}: {reason}", weights(n));
    counts.into_iter().map(line).collect()
}

/// Config and the other files of the model.
fn finish_folder(plan: &QuantPlan<'_>, staged: &Path, section: &LowrankSection) -> Result<()> {
    let mut config = plan.config.clone();
    section.write(&mut config)?;
    if let Some(dtype) = plan.options.dtype {
        folder::set_dtype(&mut config, dtype);
    }
    let path = staged.join("config.json");
    let text = serde_json::to_string_pretty(&config)
        .map_err(|e| CompressError::File { path: path.clone(), reason: format!("{SECTION}: {e}") })?;
    write_atomic(path, format!("{text}\n"))?;
    folder::copy_files(plan.model, staged)
}
