//! The output folder: copied tensors, factors, config, and the report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lowrank_checkpoint::{Dtype, StreamOptions, StreamWriter, TensorPlan, write_atomic};
use lowrank_spec::representation::{SECTION, VERSION};
use lowrank_spec::{BlockFormat, LowrankSection, ModuleEntry, Representation};
use serde_json::Map;

use crate::error::{CompressError, Result};
use crate::fit::{self, Factor, Fitted};
use crate::folder;
use crate::options::{Calibrator, CompressedModule, Progress};
use crate::pass::each_unit;
use crate::pivots;
use crate::plan::Plan;
use crate::quant::factors::{self, InFile};
use crate::report::{Change, ModuleReport, Report};
use crate::rounding;
use crate::scratch::Scratch;
use crate::statistics::Weighting;
use crate::unit::{Choice, Unit};
use crate::weights::{Weight, word_copies};

/// Writes the whole folder: the second pass over the weights.
///
/// # Errors
/// Errors of reading, factoring and writing weights.
pub(crate) fn write(
    plan: &Plan<'_>,
    choices: &[Choice],
    staged: &Path,
    scratch: &Scratch,
    identity: &str,
    calibrator: &mut Option<&mut dyn Calibrator>,
    progress: &dyn Progress,
) -> Result<Report> {
    let job = Writing { plan, choices, scratch, progress };
    let mut writer = job.writer(staged, identity)?;
    job.copy_rest(&mut writer)?;
    let errors = job.write_factors(&mut writer, calibrator)?;
    let files = writer.finish()?;
    let section = job.section(&errors);
    let report = job.report(&errors, &section, &files)?;
    job.finish_folder(staged, &section)?;
    Ok(report)
}

/// Inputs of the second pass.
struct Writing<'a> {
    plan: &'a Plan<'a>,
    choices: &'a [Choice],
    scratch: &'a Scratch,
    progress: &'a dyn Progress,
}

impl Writing<'_> {
    /// Every unit with its choice.
    fn units(&self) -> impl Iterator<Item = (&Unit, &Choice)> {
        self.plan.units.iter().zip(self.choices)
    }

    /// Keys of the weights that become factors.
    fn factored(&self) -> BTreeSet<String> {
        let factored = self.units().filter(|(_, choice)| **choice != Choice::Dense);
        factored.flat_map(|(unit, _)| unit.weights.iter().map(Weight::key)).collect()
    }

    /// The same, and the copies of the table of words, which would differ from its factors.
    fn changed(&self) -> BTreeSet<String> {
        let mut changed = self.factored();
        changed.extend(word_copies(&self.plan.checkpoint, &self.plan.config));
        changed
    }

    fn writer(&self, staged: &Path, identity: &str) -> Result<StreamWriter> {
        let (checkpoint, wanted) = (&self.plan.checkpoint, self.plan.options.dtype);
        let mut plan = Vec::new();
        for (unit, choice) in self.units().filter(|(_, choice)| **choice != Choice::Dense) {
            for (weight, tensors) in unit.weights.iter().zip(fit::planned(unit, choice)) {
                let dtype = self.factor_dtype(weight, is_pivoted(unit, choice));
                plan.extend(tensors.into_iter().map(|(suffix, shape)| {
                    let key = format!("{}.{suffix}", weight.site.path);
                    self.in_file(weight, &suffix, &shape, dtype).plan(key, shape)
                }));
            }
        }
        let changed = self.changed();
        for name in checkpoint.unchanged(&changed) {
            if let Some(info) = checkpoint.info(name) {
                let dtype = folder::output_dtype(info.dtype, wanted, false);
                plan.push(TensorPlan::new(name, info.shape.clone(), dtype));
            }
        }
        let metadata = BTreeMap::from([("lowrank".to_string(), identity.to_string())]);
        let options = StreamOptions { metadata, keep_partial: true, ..StreamOptions::default() };
        Ok(StreamWriter::resume(staged, plan, options)?)
    }

    /// The type of a weight's factors; those with pivots are rounded when these are taken out.
    fn factor_dtype(&self, weight: &Weight, is_pivoted: bool) -> Dtype {
        if is_pivoted {
            Dtype::F32
        } else {
            folder::output_dtype(weight.dtype, self.plan.options.dtype, true)
        }
    }

    /// Storage of a factor in the file.
    fn in_file(&self, weight: &Weight, suffix: &str, shape: &[usize], dtype: Dtype) -> InFile {
        InFile::of(suffix, shape, weight.site.embedding, self.plan.options.format, dtype)
    }

    /// Copies the tensors that are not factored.
    fn copy_rest(&self, writer: &mut StreamWriter) -> Result<()> {
        let (checkpoint, changed) = (&self.plan.checkpoint, self.changed());
        for name in checkpoint.unchanged(&changed) {
            let Some(info) = checkpoint.info(name).filter(|_| !writer.is_written(name)) else {
                continue;
            };
            if folder::output_dtype(info.dtype, self.plan.options.dtype, false) == info.dtype {
                writer.copy(name, checkpoint, name)?;
            } else {
                writer.write_f32(name, &checkpoint.read_f32(name)?)?;
            }
        }
        Ok(())
    }

    /// Factors and writes every unit; returns the relative errors.
    fn write_factors(
        &self,
        writer: &mut StreamWriter,
        calibrator: &mut Option<&mut dyn Calibrator>,
    ) -> Result<Vec<f64>> {
        self.progress.stage("factors", self.plan.units.iter().map(Unit::numel).sum());
        let is_sequential = calibrator.as_ref().is_some_and(|c| c.is_sequential());
        let writer = Mutex::new(writer);
        let work = |index: usize, weightings: &[Weighting]| {
            let made = self.unit(index, &writer, is_sequential, weightings)?;
            let unit = &self.plan.units[index];
            let error = (self.choices[index] != Choice::Dense).then_some(made.error);
            self.progress.done(&unit.name(), error, unit.numel());
            Ok(made)
        };
        let mut after =
            |layer: Option<usize>, indices: &[usize], made: &[Fitted], calibrator: &mut dyn Calibrator| {
                let Some(layer) = layer.filter(|_| is_sequential) else { return Ok(()) };
                let modules: Vec<CompressedModule> = indices
                    .iter()
                    .zip(made)
                    .flat_map(|(&i, made)| modules(&self.plan.units[i], &self.choices[i], &made.factors))
                    .collect();
                calibrator.compressed(layer, &modules)
            };
        // With the subspaces stored by the analysis the weightings are not needed again.
        let mut none = None;
        let is_needed = is_sequential || self.plan.known_choices()?.is_some();
        if let Some(calibrator) = calibrator.as_mut().filter(|_| is_needed) {
            calibrator.prepare(self.progress)?;
            self.progress.stage("factors", self.plan.units.iter().map(Unit::numel).sum());
        }
        let calibrator = if is_needed { calibrator } else { &mut none };
        let made = each_unit(self.plan, calibrator, work, &mut after)?;
        Ok(made.into_iter().map(|made| made.error).collect())
    }

    /// Factors and writes one unit. The factors are returned only if later layers need them.
    fn unit(
        &self,
        index: usize,
        writer: &Mutex<&mut StreamWriter>,
        is_sequential: bool,
        weightings: &[Weighting],
    ) -> Result<Fitted> {
        let (plan, unit, choice) = (self.plan, &self.plan.units[index], &self.choices[index]);
        let first = &unit.weights[0];
        if *choice == Choice::Dense {
            let dtype = folder::output_dtype(first.dtype, plan.options.dtype, false);
            // A weight that keeps its type is copied bit by bit.
            let error = if dtype == first.dtype || plan.options.dtype.is_none() {
                0.0
            } else {
                let values = plan.read(unit)?;
                let each = values.iter().map(|values| rounding::relative(values, dtype));
                each.fold(0.0, f64::max)
            };
            return Ok(Fitted { factors: Vec::new(), error, kept: None });
        }
        let key = |i: usize, suffix: &str| format!("{}.{suffix}", unit.weights[i].site.path);
        let is_written = {
            let planned = fit::planned(unit, choice);
            let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let mut keys = planned.iter().enumerate().flat_map(|(i, t)| t.iter().map(move |(s, _)| (i, s)));
            keys.all(|(i, suffix)| writer.is_written(&key(i, suffix)))
        };
        if let Some(error) = self.scratch.error(index).filter(|_| is_written && !is_sequential) {
            return Ok(Fitted { factors: Vec::new(), error, kept: None });
        }
        // A sequential pass sees other inputs than the analysis did.
        let kept = if is_sequential { None } else { self.scratch.kept(index, unit)? };
        let values = plan.read(unit)?;
        let mut fitted = fit::factor(&plan.rules, unit, &values, choice, kept.as_ref(), weightings)?;
        drop(values);
        let is_pivoted = is_pivoted(unit, choice);
        let dtype = self.factor_dtype(first, is_pivoted);
        let stored = |(i, factors): (usize, &Vec<Factor>)| {
            let one = |factor: &Factor| {
                let file = self.in_file(&unit.weights[i], &factor.suffix, &factor.shape, dtype);
                file.stored(factor, &key(i, &factor.suffix))
            };
            factors.iter().map(one).collect::<Result<Vec<_>>>().map(|all| all.into_iter().unzip())
        };
        let (blocks, mut read): (Vec<Vec<_>>, Vec<Vec<_>>) =
            fitted.factors.iter().enumerate().map(stored).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        fitted.round(&read);
        if is_pivoted {
            let dtype = self.factor_dtype(first, false);
            for (factors, read) in fitted.factors.iter().zip(&mut read) {
                if let Some(pair) = pivots::as_read(factors, dtype, &first.site.path)? {
                    *read = pair;
                }
            }
            fitted.round_product(&read);
        }
        {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            for (i, (factors, blocks)) in fitted.factors.iter().zip(&blocks).enumerate() {
                for (factor, blocks) in factors.iter().zip(blocks) {
                    let key = key(i, &factor.suffix);
                    if !writer.is_written(&key) {
                        factors::put(&mut writer, &key, factor, blocks.as_ref())?;
                    }
                }
            }
        }
        // Later layers see the values as they will be read.
        for (factor, read) in fitted.factors.iter_mut().flatten().zip(read.into_iter().flatten()) {
            factor.values = read;
        }
        self.scratch.save_error(index, fitted.error)?;
        // Results of all units are held until the end; subspaces are as large as the weights.
        fitted.kept = None;
        if !is_sequential {
            fitted.factors.clear();
        }
        Ok(fitted)
    }

    fn section(&self, errors: &[f64]) -> LowrankSection {
        let mut modules = BTreeMap::new();
        for ((unit, choice), &error) in self.units().zip(errors) {
            if *choice == Choice::Dense {
                continue;
            }
            let all = unit.weights.iter().zip(choice.representations(unit)).zip(fit::planned(unit, choice));
            for ((weight, representation), tensors) in all {
                let formats = self.formats(weight, &tensors);
                let entry = ModuleEntry { representation, error: Some(error), formats };
                modules.insert(weight.site.path.clone(), entry);
            }
        }
        let method = self.plan.options.method.name().to_string();
        let source = self.plan.source.clone();
        LowrankSection { version: VERSION, method, source, modules, other: Map::new() }
    }

    /// The block formats of a weight's factors, by part.
    fn formats(&self, weight: &Weight, tensors: &[(String, Vec<usize>)]) -> BTreeMap<String, String> {
        let format = |(suffix, shape): &(String, Vec<usize>)| {
            let format = self.in_file(weight, suffix, shape, Dtype::F32).format()?;
            Some((suffix.strip_suffix(".weight")?.to_string(), format.to_string()))
        };
        tensors.iter().filter_map(format).collect()
    }

    fn report(&self, errors: &[f64], section: &LowrankSection, files: &[PathBuf]) -> Result<Report> {
        let after: u64 = self.units().map(|(unit, choice)| choice.parameters(unit)).sum();
        let bytes: u64 = files.iter().map(|path| folder::file_size(path)).sum::<Result<_>>()?;
        let modules = self.plan.units.iter().zip(errors).flat_map(|(unit, &error)| {
            unit.weights.iter().map(move |weight| {
                let path = &weight.site.path;
                let entry = section.modules.get(path).cloned().unwrap_or_default();
                module_report(weight, entry, error)
            })
        });
        Ok(Report {
            method: self.plan.options.method.name(),
            layers: Change::new(self.plan.sizes.touched, after),
            model: Change::new(
                self.plan.sizes.model,
                self.plan.sizes.model - self.plan.sizes.touched + after,
            ),
            file: Change::new(self.plan.sizes.file, bytes),
            modules: modules.collect(),
            dense: self.choices.iter().filter(|choice| **choice == Choice::Dense).count(),
            instead: self.instead(section),
            unreached: self.plan.unreached.paths(),
        })
    }

    /// Fallback formats of factors whose rows do not fit the blocks of the given one, and factors that stay floats.
    fn instead(&self, section: &LowrankSection) -> Vec<String> {
        let Some(given) = self.plan.options.format else { return Vec::new() };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for format in section.modules.values().flat_map(|entry| entry.formats.values()) {
            if format != given.name() {
                *counts.entry(format).or_default() += 1;
            }
        }
        let line = |(format, n)| format!("{n} factors with rows that {given} cannot hold are in {format}");
        let floats = |entry: &ModuleEntry| match entry.representation {
            // Formats go with methods whose weights have two factors each.
            Representation::LowRank { .. } => 2 - entry.formats.len().min(2),
            _ => 0,
        };
        let n: usize = section.modules.values().map(floats).sum();
        let floats = (n > 0).then(|| format!("{n} factors with rows that {given} cannot hold stay floats"));
        counts.into_iter().map(line).chain(floats).collect()
    }

    /// Config and the other files of the model.
    fn finish_folder(&self, staged: &Path, section: &LowrankSection) -> Result<()> {
        let mut config = self.plan.config.clone();
        section.write(&mut config)?;
        if let Some(dtype) = self.plan.options.dtype {
            folder::set_dtype(&mut config, dtype);
        }
        let path = staged.join("config.json");
        let text = serde_json::to_string_pretty(&config)
            .map_err(|e| CompressError::File { path: path.clone(), reason: format!("{SECTION}: {e}") })?;
        write_atomic(path, format!("{text}\n"))?;
        folder::copy_files(self.plan.model, staged)
    }
}

/// Whether pivots will be taken out of the factors of a choice.
fn is_pivoted(unit: &Unit, choice: &Choice) -> bool {
    choice.representations(unit).iter().any(Representation::is_pivoted)
}

/// The modules of a unit, from the factors of each.
pub(crate) fn modules(unit: &Unit, choice: &Choice, factors: &[Vec<Factor>]) -> Vec<CompressedModule> {
    let all = unit.weights.iter().zip(choice.representations(unit)).zip(factors);
    all.map(|((weight, representation), factors)| CompressedModule {
        module: weight.site.path.clone(),
        representation,
        tensors: factors.iter().map(|f| (f.suffix.clone(), f.shape.clone(), f.values.clone())).collect(),
    })
    .collect()
}

fn module_report(weight: &Weight, entry: ModuleEntry, error: f64) -> ModuleReport {
    let ModuleEntry { representation, formats, .. } = entry;
    let format = formats.values().next().and_then(|name| BlockFormat::from_name(name));
    let after = representation.parameters(weight.shape()) as u64;
    let (kind, ranks) = match representation {
        Representation::Dense => ("dense", Vec::new()),
        Representation::LowRank { ranks, .. } => ("low_rank", ranks),
        Representation::Sum { rank } => ("sum", vec![rank]),
        Representation::TensorTrain { cores } => {
            ("tensor_train", cores[1..].iter().map(|core| core[0]).collect())
        }
    };
    let parameters = Change::new(weight.numel() as u64, after);
    let format = format.map(BlockFormat::name);
    ModuleReport { module: weight.site.path.clone(), kind, ranks, format, parameters, error }
}
