//! A compression from folder to folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lowrank_checkpoint::{Checkpoint, StagedDir, StreamOptions, StreamWriter, TensorPlan, write_atomic};
use lowrank_spec::representation::{LowrankSection, ModuleEntry, Representation, SECTION, VERSION};
use serde_json::{Map, Value};

use crate::allocate::{self, Goal};
use crate::amount::{Allocation, Amount, Sizes};
use crate::error::{CompressError, Result};
use crate::fit::{self, Analysis, Fitted, Rules};
use crate::folder;
use crate::method::{Method, Sides};
use crate::options::{Calibrator, CompressedModule, Options, Progress};
use crate::parallel;
use crate::report::{Change, ModuleReport, Report};
use crate::scratch::Scratch;
use crate::statistics::{Weighting, Weightings, lookup};
use crate::unit::{Choice, Form, Unit, units};
use crate::weights::{Weight, find, named, select};

/// Compresses the model folder `model` into the folder `output`, which must not exist or be empty.
///
/// # Errors
/// Options out of range or that match nothing, an input that is not a model folder, is compressed already or has a weight
/// that is not finite, an output that is not empty or is the input, a disk that fills up. The input is never touched, and
/// the output appears when it is whole.
pub fn compress(
    model: &Path,
    output: &Path,
    options: &Options,
    calibrator: Option<&mut dyn Calibrator>,
    progress: &dyn Progress,
) -> Result<Report> {
    options.amount.validate()?;
    if !(2..=8).contains(&options.tt_order) {
        return Err(CompressError::Option {
            option: "tt-order",
            value: options.tt_order.to_string(),
            expected: "2..=8".into(),
        });
    }
    folder::check_output(model, output)?;
    let config = folder::read_config(model)?;
    let section = LowrankSection::of_config(&config)?;
    if !section.modules.is_empty() {
        return Err(CompressError::Input(format!(
            "{}: compressed already ({}); start from the dense model",
            model.display(),
            section.method
        )));
    }
    let checkpoint = Checkpoint::open(model)?;
    let job = Job::new(model, config, checkpoint, options, progress)?;
    let mut staged =
        if options.resume { StagedDir::resume(output, false)? } else { StagedDir::create(output, false)? };
    staged.keep();
    let report = match job.run(staged.path(), calibrator) {
        Ok(report) => report,
        Err(error) => {
            // What failed for the disk's sake can be taken up again; what was asked wrongly cannot.
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

struct Job<'a> {
    model: &'a Path,
    config: Map<String, Value>,
    checkpoint: Checkpoint,
    options: &'a Options,
    progress: &'a dyn Progress,
    units: Vec<Unit>,
    /// Rank of each unit, where ranks are given.
    ranks: Vec<usize>,
    sizes: Sizes,
    rules: Rules,
}

impl<'a> Job<'a> {
    fn new(
        model: &'a Path,
        config: Map<String, Value>,
        checkpoint: Checkpoint,
        options: &'a Options,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let all = find(&checkpoint, &config);
        let (taken, ranks) = touched(&all, options)?;
        let is_shared = options.method == Method::Shared;
        let units = units(taken.clone(), is_shared);
        let rank_of = |unit: &Unit| {
            let first = &unit.weights[0].site.path;
            taken.iter().position(|w| w.site.path == *first).and_then(|i| ranks.get(i)).copied().unwrap_or(0)
        };
        let ranks = if ranks.is_empty() { ranks } else { units.iter().map(rank_of).collect() };
        let sizes = folder::sizes(&checkpoint, &taken, options.dtype)?;
        let share = match options.amount {
            Amount::Ratio { ratio, of } => (sizes.budget(ratio, of) as f64 / sizes.touched as f64).max(0.0),
            _ => 0.5,
        };
        let rules = Rules {
            method: options.method,
            sides: options.sides,
            tt_order: options.tt_order,
            share,
            truncation: options.amount.truncation(),
        };
        Ok(Self { model, config, checkpoint, options, progress, units, ranks, sizes, rules })
    }

    fn run(&self, staged: &Path, mut calibrator: Option<&mut dyn Calibrator>) -> Result<Report> {
        let source = self.checkpoint.content_hash();
        let scratch_folder = staged.join("scratch");
        let calibration = calibrator.as_ref().map_or_else(|| "no calibration".into(), |c| c.identity());
        let identity = self.identity(&source, &calibration);
        folder::check_identity(staged, &identity)?;
        let scratch = Scratch::open(&scratch_folder)?;
        let choices = match self.known_choices()? {
            Some(choices) => choices,
            None => {
                let analyses = self.analyse(&scratch, &mut calibrator)?;
                let goal = match (self.options.amount.clone(), self.rules.truncation) {
                    (Amount::Ratio { ratio, of }, _) => Goal::Budget {
                        budget: self.sizes.budget(ratio, of),
                        ratio,
                        allocation: self.options.allocation,
                    },
                    (_, Some(truncation)) => Goal::Each(truncation),
                    _ => return Err(CompressError::Input("ranks are given and need no analysis".into())),
                };
                allocate::choose(&self.units, &analyses, goal, self.rules.share, self.options.always_factor)?
            }
        };
        let mut writer = self.writer(staged, &choices, &identity)?;
        self.copy_rest(&mut writer, &choices)?;
        let errors = self.write_factors(&mut writer, &choices, &scratch, &mut calibrator)?;
        let files = writer.finish()?;
        let section = self.section(&choices, &errors, source);
        let report = self.report(&choices, &errors, &section, &files)?;
        self.finish_folder(staged, &section)?;
        std::fs::remove_dir_all(&scratch_folder)
            .map_err(|e| CompressError::File { path: scratch_folder, reason: e.to_string() })?;
        folder::remove_identity(staged)?;
        Ok(report)
    }

    /// What the output depends on.
    fn identity(&self, source: &str, calibration: &str) -> String {
        let Options { method, amount, allocation, targets, dtype, sides, tt_order, always_factor, .. } =
            self.options;
        format!(
            "source {source}, {method:?}, {amount:?}, {allocation:?}, {targets:?}, {dtype:?}, {sides:?}, {tt_order}, \
             {always_factor}, {calibration}"
        )
    }

    /// The choices, where they do not depend on the weights' values.
    fn known_choices(&self) -> Result<Option<Vec<Choice>>> {
        let Options { amount, allocation, method, sides, always_factor, .. } = self.options;
        match amount {
            Amount::Ranks(_) => {
                let form = |unit: &Unit| -> Result<Form> {
                    Ok(match (method, sides) {
                        (Method::Tt, _) => Form::TensorTrain(fit::tt_shape(&self.rules, unit)?),
                        (Method::Shared, Sides::One) => Form::SharedA,
                        (Method::Shared, _) => Form::Tucker,
                        _ => Form::LowRank,
                    })
                };
                let pairs = self.units.iter().zip(&self.ranks);
                let choices = pairs
                    .map(|(unit, &rank)| Ok(allocate::at_rank(unit, &form(unit)?, rank, *always_factor)));
                Ok(Some(choices.collect::<Result<_>>()?))
            }
            Amount::Ratio { ratio, of } if *allocation == Allocation::Uniform && method.is_low_rank() => {
                let budget = self.sizes.budget(*ratio, *of);
                let cheapest =
                    |unit: &Unit| unit.cost_per_rank(&Form::LowRank).unwrap_or(1).min(unit.numel());
                let minimum: u64 = self.units.iter().map(cheapest).sum();
                if budget < 0 || minimum > budget as u64 {
                    let total = self.sizes.touched;
                    return Err(CompressError::Budget { ratio: *ratio, budget, minimum, total });
                }
                let choice = |unit| allocate::low_rank_at_share(unit, self.rules.share, *always_factor);
                Ok(Some(self.units.iter().map(choice).collect()))
            }
            _ => Ok(None),
        }
    }

    /// The units in the order of their layers, those outside first.
    fn by_layer(&self) -> BTreeMap<Option<usize>, Vec<usize>> {
        let mut groups: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for (index, unit) in self.units.iter().enumerate() {
            groups.entry(unit.layer()).or_default().push(index);
        }
        groups
    }

    /// Runs `work` on every unit, layer by layer where there is a calibrator, else all together.
    fn each_unit<T: Send>(
        &self,
        calibrator: &mut Option<&mut dyn Calibrator>,
        work: impl Fn(usize, &[Weighting]) -> Result<T> + Sync,
        mut after: impl FnMut(usize, &[usize], &[T], &mut dyn Calibrator) -> Result<()>,
    ) -> Result<Vec<T>> {
        let is_weighted = calibrator.is_some();
        let need = |index: usize| fit::bytes(&self.rules, &self.units[index], is_weighted);
        if let (Some(cap), Some(worst)) =
            (self.options.memory, (0..self.units.len()).max_by_key(|&i| need(i)))
            && need(worst) > cap
        {
            return Err(CompressError::Option {
                option: "memory",
                value: cap.to_string(),
                expected: format!("at least {} bytes for '{}'", need(worst), self.units[worst].name()),
            });
        }
        let cap = self.options.memory;
        let mut results: Vec<(usize, T)> = Vec::with_capacity(self.units.len());
        let Some(calibrator) = calibrator else {
            let all: Vec<usize> = (0..self.units.len()).collect();
            return parallel::map(&all, cap, need, |index| work(index, &self.unweighted(index)));
        };
        for (layer, indices) in self.by_layer() {
            let weightings = match layer {
                Some(layer) => calibrator.weightings(layer)?,
                None => Weightings::new(),
            };
            let made = parallel::map(&indices, cap, need, |index| {
                let of = |weight: &Weight| lookup(&weightings, &weight.site.path);
                let own: Vec<Weighting> = self.units[index].weights.iter().map(of).collect();
                work(index, &own)
            })?;
            if let Some(layer) = layer {
                after(layer, &indices, &made, &mut **calibrator)?;
            }
            results.extend(indices.into_iter().zip(made));
        }
        results.sort_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    fn unweighted(&self, index: usize) -> Vec<Weighting> {
        vec![Weighting::None; self.units[index].weights.len()]
    }

    fn read(&self, unit: &Unit) -> Result<Vec<Vec<f32>>> {
        unit.weights.iter().map(|weight| weight.read(&self.checkpoint)).collect()
    }

    /// What the ranks of each unit would lose; the subspaces go to the scratch folder.
    fn analyse(
        &self,
        scratch: &Scratch,
        calibrator: &mut Option<&mut dyn Calibrator>,
    ) -> Result<Vec<Analysis>> {
        self.progress.stage("spectra", self.units.iter().map(Unit::numel).sum());
        let work = |index: usize, weightings: &[Weighting]| {
            let unit = &self.units[index];
            let analysis = match scratch.load(index, unit)? {
                Some(analysis) => analysis,
                None => {
                    let mut analysis = fit::analyse(&self.rules, unit, &self.read(unit)?, weightings)?;
                    scratch.save(index, unit, &analysis)?;
                    analysis.subspace = None;
                    analysis
                }
            };
            self.progress.done(&unit.name(), None, unit.numel());
            Ok(analysis)
        };
        let is_shared_out = matches!(self.options.amount, Amount::Ratio { .. })
            && self.options.allocation == Allocation::Budget;
        let mut effects = vec![None; self.units.len()];
        let after = |layer: usize, indices: &[usize], made: &[Analysis], calibrator: &mut dyn Calibrator| {
            for (&index, analysis) in indices.iter().zip(made).filter(|_| is_shared_out) {
                effects[index] = self.effect(scratch, index, layer, analysis, calibrator)?;
            }
            Ok(())
        };
        let mut analyses = self.each_unit(calibrator, work, after)?;
        for (analysis, effect) in analyses.iter_mut().zip(effects) {
            analysis.importance = effect.unwrap_or(analysis.importance);
        }
        Ok(analyses)
    }

    /// What a loss of 1 of a unit does to its layer's output: measured at the rank of a uniform ratio, near which the
    /// budget's will be.
    fn effect(
        &self,
        scratch: &Scratch,
        index: usize,
        layer: usize,
        analysis: &Analysis,
        calibrator: &mut dyn Calibrator,
    ) -> Result<Option<f64>> {
        let unit = &self.units[index];
        let choice = allocate::low_rank_at_share(unit, self.rules.share, true);
        let (Some(subspace), Choice::Rank(_, rank)) = (scratch.subspace(index, unit)?, &choice) else {
            return Ok(None);
        };
        let loss: f64 = subspace.squared()[*rank..].iter().sum();
        // What rounding alone does says nothing.
        if loss <= f64::from(f32::EPSILON) * analysis.total {
            return Ok(None);
        }
        let fitted =
            fit::factor(&self.rules, unit, &self.read(unit)?, &choice, Some(&subspace), &[Weighting::None])?;
        let effect = calibrator.effect(layer, modules(unit, &choice, &fitted.factors).remove(0))?;
        Ok(effect.map(|effect| effect / loss).filter(|importance| importance.is_finite()))
    }

    fn writer(&self, staged: &Path, choices: &[Choice], identity: &str) -> Result<StreamWriter> {
        let mut plan = Vec::new();
        let mut replaced = std::collections::BTreeSet::new();
        for (unit, choice) in self.units.iter().zip(choices) {
            if *choice == Choice::Dense {
                continue;
            }
            for (weight, tensors) in unit.weights.iter().zip(fit::planned(unit, choice)) {
                let dtype = folder::output_dtype(weight.dtype, self.options.dtype, true);
                replaced.insert(weight.key());
                plan.extend(tensors.into_iter().map(|(suffix, shape)| {
                    TensorPlan::new(format!("{}.{suffix}", weight.site.path), shape, dtype)
                }));
            }
        }
        for name in self.checkpoint.names().filter(|name| !replaced.contains(*name)) {
            if let Some(info) = self.checkpoint.info(name) {
                let dtype = folder::output_dtype(info.dtype, self.options.dtype, false);
                plan.push(TensorPlan::new(name, info.shape.clone(), dtype));
            }
        }
        let metadata = BTreeMap::from([("lowrank".to_string(), identity.to_string())]);
        let options = StreamOptions { metadata, keep_partial: true, ..StreamOptions::default() };
        Ok(StreamWriter::resume(staged, plan, options)?)
    }

    /// Copies the tensors that are not factored.
    fn copy_rest(&self, writer: &mut StreamWriter, choices: &[Choice]) -> Result<()> {
        let factored: std::collections::BTreeSet<String> = self
            .units
            .iter()
            .zip(choices)
            .filter(|(_, choice)| **choice != Choice::Dense)
            .flat_map(|(unit, _)| unit.weights.iter().map(Weight::key))
            .collect();
        for name in self.checkpoint.names().filter(|name| !factored.contains(*name)) {
            let Some(info) = self.checkpoint.info(name).filter(|_| !writer.is_written(name)) else {
                continue;
            };
            if folder::output_dtype(info.dtype, self.options.dtype, false) == info.dtype {
                writer.copy(name, &self.checkpoint, name)?;
            } else {
                writer.write_f32(name, &self.checkpoint.read_f32(name)?)?;
            }
        }
        Ok(())
    }

    /// Factors and writes every unit; returns the relative errors.
    fn write_factors(
        &self,
        writer: &mut StreamWriter,
        choices: &[Choice],
        scratch: &Scratch,
        calibrator: &mut Option<&mut dyn Calibrator>,
    ) -> Result<Vec<f64>> {
        self.progress.stage("factors", self.units.iter().map(Unit::numel).sum());
        let is_sequential = calibrator.as_ref().is_some_and(|c| c.is_sequential());
        let writer = Mutex::new(writer);
        let work = |index: usize, weightings: &[Weighting]| {
            let (unit, choice) = (&self.units[index], &choices[index]);
            if *choice == Choice::Dense {
                self.progress.done(&unit.name(), None, unit.numel());
                return Ok((0.0, Vec::new()));
            }
            let names: Vec<Vec<(String, Vec<usize>)>> = fit::planned(unit, choice);
            let key = |i: usize, suffix: &str| format!("{}.{suffix}", unit.weights[i].site.path);
            let is_written = {
                let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                let mut keys = names.iter().enumerate().flat_map(|(i, t)| t.iter().map(move |(s, _)| (i, s)));
                keys.all(|(i, suffix)| writer.is_written(&key(i, suffix)))
            };
            if is_written
                && !is_sequential
                && let Some(error) = scratch.error(index)
            {
                self.progress.done(&unit.name(), Some(error), unit.numel());
                return Ok((error, Vec::new()));
            }
            // A sequential pass sees other inputs than the analysis did.
            let subspace = if is_sequential { None } else { scratch.subspace(index, unit)? };
            let values = self.read(unit)?;
            let Fitted { factors, error } =
                fit::factor(&self.rules, unit, &values, choice, subspace.as_ref(), weightings)?;
            drop(values);
            {
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                for (i, factor) in factors.iter().enumerate().flat_map(|(i, f)| f.iter().map(move |f| (i, f)))
                {
                    let key = key(i, &factor.suffix);
                    if !writer.is_written(&key) {
                        writer.write_f32(&key, &factor.values)?;
                    }
                }
            }
            scratch.save_error(index, error)?;
            self.progress.done(&unit.name(), Some(error), unit.numel());
            let kept = if is_sequential { factors } else { Vec::new() };
            Ok((error, kept))
        };
        let after = |layer: usize,
                     indices: &[usize],
                     made: &[(f64, Vec<Vec<fit::Factor>>)],
                     c: &mut dyn Calibrator| {
            if !is_sequential {
                return Ok(());
            }
            let made = indices.iter().zip(made);
            let modules: Vec<CompressedModule> = made
                .flat_map(|(&index, (_, factors))| modules(&self.units[index], &choices[index], factors))
                .collect();
            c.compressed(layer, &modules)
        };
        // Where subspaces are at hand the weightings are not needed again.
        let mut none = None;
        let calibrator =
            if is_sequential || self.known_choices()?.is_some() { calibrator } else { &mut none };
        Ok(self.each_unit(calibrator, work, after)?.into_iter().map(|(error, _)| error).collect())
    }

    fn section(&self, choices: &[Choice], errors: &[f64], source: String) -> LowrankSection {
        let mut modules = BTreeMap::new();
        for ((unit, choice), &error) in self.units.iter().zip(choices).zip(errors) {
            if *choice == Choice::Dense {
                continue;
            }
            for (weight, representation) in unit.weights.iter().zip(choice.representations(unit)) {
                let entry = ModuleEntry { representation, error: Some(error) };
                modules.insert(weight.site.path.clone(), entry);
            }
        }
        let method = self.options.method.name().to_string();
        LowrankSection { version: VERSION, method, source, modules, other: Map::new() }
    }

    fn report(
        &self,
        choices: &[Choice],
        errors: &[f64],
        section: &LowrankSection,
        files: &[PathBuf],
    ) -> Result<Report> {
        let after: u64 = self.units.iter().zip(choices).map(|(unit, choice)| choice.parameters(unit)).sum();
        let bytes: u64 = files.iter().map(|path| folder::file_size(path)).sum::<Result<_>>()?;
        let modules = self.units.iter().zip(errors).flat_map(|(unit, &error)| {
            unit.weights.iter().map(move |weight| {
                let path = &weight.site.path;
                let representation = section.modules.get(path).map(|entry| entry.representation.clone());
                module_report(weight, representation.unwrap_or_default(), error)
            })
        });
        Ok(Report {
            method: self.options.method.name(),
            layers: Change::new(self.sizes.touched, after),
            model: Change::new(self.sizes.model, self.sizes.model - self.sizes.touched + after),
            file: Change::new(self.sizes.file, bytes),
            modules: modules.collect(),
            dense: choices.iter().filter(|choice| **choice == Choice::Dense).count(),
        })
    }

    /// Config and the other files of the model.
    fn finish_folder(&self, staged: &Path, section: &LowrankSection) -> Result<()> {
        let mut config = self.config.clone();
        section.write(&mut config)?;
        if let Some(dtype) = self.options.dtype {
            folder::set_dtype(&mut config, dtype);
        }
        let path = staged.join("config.json");
        let text = serde_json::to_string_pretty(&config)
            .map_err(|e| CompressError::File { path: path.clone(), reason: format!("{SECTION}: {e}") })?;
        write_atomic(path, format!("{text}\n"))?;
        folder::copy_files(self.model, staged)
    }
}

/// The modules of a unit, from the factors of each.
fn modules(unit: &Unit, choice: &Choice, factors: &[Vec<fit::Factor>]) -> Vec<CompressedModule> {
    let all = unit.weights.iter().zip(choice.representations(unit)).zip(factors);
    all.map(|((weight, representation), factors)| CompressedModule {
        module: weight.site.path.clone(),
        representation,
        tensors: factors.iter().map(|f| (f.suffix.clone(), f.shape.clone(), f.values.clone())).collect(),
    })
    .collect()
}

/// The weights to factor, and their ranks where ranks are given.
fn touched(all: &[Weight], options: &Options) -> Result<(Vec<Weight>, Vec<usize>)> {
    let Amount::Ranks(ranks) = &options.amount else {
        return Ok((select(all, options.targets.as_ref())?, Vec::new()));
    };
    let within = options.targets.as_ref().map(|targets| select(all, Some(targets))).transpose()?;
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    for (name, rank) in ranks {
        for weight in named(all, name)? {
            let index = all.iter().position(|w| w.site.path == weight.site.path);
            let is_within = within.as_ref().is_none_or(|taken| taken.contains(&weight));
            // A later name overrules an earlier one.
            found.extend(index.filter(|_| is_within).map(|index| (index, *rank)));
        }
    }
    if found.is_empty() {
        return Err(CompressError::Input("the targets leave none of the names in --ranks".into()));
    }
    Ok(found.into_iter().map(|(index, rank)| (all[index].clone(), rank)).unzip())
}

fn module_report(weight: &Weight, representation: Representation, error: f64) -> ModuleReport {
    let after = representation.parameters(weight.shape()) as u64;
    let (kind, ranks) = match representation {
        Representation::Dense => ("dense", Vec::new()),
        Representation::LowRank { ranks, .. } => ("low_rank", ranks),
        Representation::TensorTrain { cores } => {
            ("tensor_train", cores[1..].iter().map(|core| core[0]).collect())
        }
    };
    let parameters = Change::new(weight.numel() as u64, after);
    ModuleReport { module: weight.site.path.clone(), kind, ranks, parameters, error }
}
