//! The plan of a compression, before any weight is read: the weights, their units, the budget.

use std::collections::BTreeMap;
use std::path::Path;

use lowrank_checkpoint::Checkpoint;
use lowrank_spec::names::WeightPart;
use serde_json::{Map, Value};

use crate::allocate::{self, Goal};
use crate::amount::{Allocation, Amount, Of, Sizes};
use crate::error::{CompressError, Result};
use crate::fit::{self, Rules};
use crate::folder;
use crate::method::{Method, Sides};
use crate::options::Options;
use crate::quant::factors::InFile;
use crate::statistics::Unreached;
use crate::unit::{Bytes, Choice, Form, Unit, units};
use crate::weights::{Weight, check_tied, find, named, select, settle_tie};

/// A compression whose only open decision is its ranks.
pub(crate) struct Plan<'a> {
    pub(crate) model: &'a Path,
    pub(crate) config: Map<String, Value>,
    pub(crate) checkpoint: Checkpoint,
    /// Content hash of the checkpoint.
    pub(crate) source: String,
    pub(crate) options: &'a Options,
    pub(crate) units: Vec<Unit>,
    pub(crate) sizes: Sizes,
    pub(crate) rules: Rules<'a>,
    /// Rank of each unit, if ranks are given.
    ranks: Vec<usize>,
    /// Maps of experts that no token of the calibration text reached.
    pub(crate) unreached: Unreached,
}

impl<'a> Plan<'a> {
    /// Reads the folder's config and the headers of its weights.
    ///
    /// # Errors
    /// Options out of range or that match nothing, a folder without a model, a model that is already
    /// compressed.
    pub(crate) fn new(model: &'a Path, options: &'a Options) -> Result<Self> {
        options.amount.validate()?;
        if !(2..=8).contains(&options.tt_order) {
            return Err(CompressError::Option {
                option: "tt-order",
                value: options.tt_order.to_string(),
                expected: "2..=8".into(),
            });
        }
        if options.format.is_some() && matches!(options.method, Method::Tt | Method::Shared | Method::Auto) {
            return Err(CompressError::Input(format!(
                "{} writes no factors of single weights, which --bits requires; choose svd, whitened, two-sided, asvd, \
                 fwsvd or quant",
                options.method.name()
            )));
        }
        let is_plain = !matches!(options.method, Method::Tt | Method::Shared) && options.format.is_none();
        if options.pivots && !is_plain {
            return Err(CompressError::Input(format!(
                "pivots apply to pairs of float factors; leave them out with {}{}",
                options.method.name(),
                if options.format.is_some() { " in bits" } else { "" }
            )));
        }
        let mut config = folder::read_dense_config(model)?;
        let checkpoint = Checkpoint::open(model)?;
        settle_tie(&checkpoint, &mut config)?;
        let (taken, ranks) = touched(&find(&checkpoint, &config), options)?;
        check_tied(&checkpoint, &config, &taken)?;
        if let Some(outer) = taken.iter().find(|w| w.site.layer.is_none())
            && options.method == Method::TwoSided
        {
            return Err(CompressError::Input(format!(
                "two-sided applies to weights inside the numbered layers, and '{}' is outside of them; leave it out \
                 with --exclude, or choose another method",
                outer.site.path
            )));
        }
        let mut sizes = folder::sizes(&checkpoint, &taken, options.dtype)?;
        if options.pivots {
            // The mask of each weight and its line in the header.
            sizes.other_bytes += taken.iter().map(|w| w.site.d_output as u64 / 8 + 128).sum::<u64>();
        }
        let source = checkpoint.content_hash()?;
        let mut units = units(taken.clone(), options.method == Method::Shared, options.pivots);
        if matches!(options.amount, Amount::Ratio { of: Of::File, .. }) {
            // The longer names of factors, large offsets, and the record of the job.
            let record = serde_json::Value::from(identity(&source, options, "")).to_string();
            sizes.other_bytes +=
                (32 * taken.len() + 16 * checkpoint.names().count() + record.len() + 256) as u64;
            if options.format.is_some() {
                sizes.bytes_each = 1.0;
                units.iter_mut().for_each(|unit| unit.bytes = Some(bytes(&unit.weights[0], options)));
            }
        }
        let rank_of = |unit: &Unit| {
            let first = &unit.weights[0].site.path;
            taken.iter().position(|w| w.site.path == *first).and_then(|i| ranks.get(i)).copied().unwrap_or(0)
        };
        let ranks = if ranks.is_empty() { ranks } else { units.iter().map(rank_of).collect() };
        let dense: u64 = units.iter().map(Unit::dense_cost).sum();
        let share = match options.amount {
            Amount::Ratio { ratio, of } => (sizes.budget(ratio, of) as f64 / dense as f64).max(0.0),
            _ => 0.5,
        };
        let rules = Rules {
            method: options.method,
            sides: options.sides,
            tt_order: options.tt_order,
            share,
            truncation: options.amount.truncation(),
            always_factor: options.always_factor,
            products: options.products.as_deref(),
        };
        Ok(Self {
            model,
            config,
            checkpoint,
            source,
            options,
            units,
            sizes,
            rules,
            ranks,
            unreached: Unreached::default(),
        })
    }

    /// The inputs that determine the output.
    pub(crate) fn identity(&self, calibration: &str) -> String {
        identity(&self.source, self.options, calibration)
    }

    /// Refuses weight files of more bytes than a ratio of the file allows.
    ///
    /// # Errors
    /// [`CompressError::FileBudget`].
    pub(crate) fn check_file(&self, bytes: u64) -> Result<()> {
        match self.options.amount {
            Amount::Ratio { ratio, of: Of::File } => self.sizes.check_file(ratio, bytes),
            _ => Ok(()),
        }
    }

    /// Refuses choices whose bytes, if these are counted, are more than a ratio of the file allows.
    ///
    /// # Errors
    /// [`CompressError::FileBudget`].
    pub(crate) fn check_choices(&self, choices: &[Choice]) -> Result<()> {
        if self.units.iter().all(|unit| unit.bytes.is_none()) {
            return Ok(());
        }
        let cost: u64 = self.units.iter().zip(choices).map(|(unit, choice)| unit.cost_of(choice)).sum();
        self.check_file(cost + self.sizes.other_bytes)
    }

    /// The target of the ranks, if they depend on the spectra.
    ///
    /// # Errors
    /// [`CompressError::Input`] if ranks are given.
    pub(crate) fn goal(&self) -> Result<Goal> {
        match (&self.options.amount, self.rules.truncation) {
            (&Amount::Ratio { ratio, of }, _) => Ok(Goal::Budget {
                budget: self.sizes.budget(ratio, of),
                ratio,
                allocation: self.options.allocation,
                sizes: self.sizes,
            }),
            (_, Some(truncation)) => Ok(Goal::Each(truncation)),
            _ => Err(CompressError::Input("ranks are given and need no analysis".into())),
        }
    }

    /// Whether one budget is allocated over the units.
    pub(crate) fn shares_out(&self) -> bool {
        matches!(self.options.amount, Amount::Ratio { .. }) && self.options.allocation == Allocation::Budget
    }

    /// Whether errors are weighted by calibration statistics.
    pub(crate) fn weighs_inputs(&self) -> bool {
        self.options.method.needs_inputs() || self.options.method.needs_gradients()
    }

    /// Whether to measure the effects of losses on a layer's output: ranks are allocated, and the losses
    /// are not already in units of the model's loss.
    pub(crate) fn measures_effects(&self) -> bool {
        self.shares_out() && self.options.method != Method::TwoSided
    }

    /// The choices, if they do not depend on the weights' values.
    ///
    /// # Errors
    /// [`CompressError::Budget`] or [`CompressError::FileBudget`] below the minimum that uniform ranks leave.
    pub(crate) fn known_choices(&self) -> Result<Option<Vec<Choice>>> {
        let Options { amount, allocation, method, always_factor, .. } = self.options;
        match amount {
            Amount::Ranks(_) => {
                let choice = |(unit, &rank): (&Unit, &usize)| {
                    Ok(allocate::at_rank(unit, &self.form(unit)?, rank, *always_factor))
                };
                Ok(Some(self.units.iter().zip(&self.ranks).map(choice).collect::<Result<_>>()?))
            }
            Amount::Ratio { ratio, of } if *allocation == Allocation::Uniform && method.is_low_rank() => {
                let budget = self.sizes.budget(*ratio, *of);
                let cheapest = |unit: &Unit| unit.cost(&Form::LowRank, 1).unwrap_or(1).min(unit.dense_cost());
                let minimum: u64 = self.units.iter().map(cheapest).sum();
                self.sizes.check(
                    *ratio,
                    budget,
                    minimum,
                    self.units.iter().any(|unit| unit.bytes.is_some()),
                )?;
                let choice = |unit| allocate::low_rank_at_share(unit, self.rules.share, *always_factor);
                Ok(Some(self.units.iter().map(choice).collect()))
            }
            _ => Ok(None),
        }
    }

    /// The form of a given rank.
    fn form(&self, unit: &Unit) -> Result<Form> {
        Ok(match (self.options.method, self.options.sides) {
            (Method::Tt, _) => Form::TensorTrain(fit::tt_shape(&self.rules, unit)?),
            (Method::Shared, Sides::One) => Form::SharedA,
            (Method::Shared, _) => Form::Tucker,
            _ => Form::LowRank,
        })
    }

    /// The number of stored elements of a unit's weights.
    pub(crate) fn read(&self, unit: &Unit) -> Result<Vec<Vec<f32>>> {
        unit.weights.iter().map(|weight| weight.read(&self.checkpoint)).collect()
    }
}

/// The inputs that determine the output.
fn identity(source: &str, options: &Options, calibration: &str) -> String {
    let Options {
        method,
        amount,
        allocation,
        targets,
        dtype,
        sides,
        tt_order,
        always_factor,
        format,
        pivots,
        products,
        ..
    } = options;
    // Sampled decompositions are others than exact ones.
    let place = if products.is_some() { ", sampled" } else { "" };
    format!(
        "source {source}, {method:?}, {amount:?}, {allocation:?}, {targets:?}, {dtype:?}, {sides:?}, {tt_order}, \
         {always_factor}, {format:?}, {pivots}, {calibration}{place}"
    )
}

/// Bytes of a weight as dense floats, and of each rank of its factors. A factor whose blocks would lie along the ranks counts
/// as floats: whether they fit depends on the rank.
fn bytes(weight: &Weight, options: &Options) -> Bytes {
    let dtype = folder::output_dtype(weight.dtype, options.dtype, true);
    let [d_input, d_output] = weight.shape();
    let factors = [(WeightPart::FactorA, [1, d_input]), (WeightPart::FactorB, [d_output, 1])];
    let of = |(part, shape): (WeightPart, [usize; 2])| {
        InFile::of(&part.suffix(), &shape, weight.site.embedding, options.format, dtype).bytes(shape)
    };
    let dense = weight.numel() * folder::output_dtype(weight.dtype, options.dtype, false).size();
    Bytes { dense: dense as u64, per_rank: factors.into_iter().map(of).sum() }
}

/// The weights to factor, and their ranks if ranks are given.
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
            // A later name overrides an earlier one.
            found.extend(index.filter(|_| is_within).map(|index| (index, *rank)));
        }
    }
    if found.is_empty() {
        return Err(CompressError::Input("none of the names in --ranks is among the targets".into()));
    }
    Ok(found.into_iter().map(|(index, rank)| (all[index].clone(), rank)).unzip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama")
    }

    #[test]
    fn given_ranks_and_uniform_ratios_need_no_analysis() {
        let model = llama();
        let ratio = Amount::Ratio { ratio: 0.3, of: Of::Layers };
        let ranks = Amount::Ranks(vec![("q_proj".into(), 3), ("1.self_attn.q_proj".into(), 4)]);
        for (amount, allocation, is_known) in [
            (ranks.clone(), Allocation::Budget, true),
            (ratio.clone(), Allocation::Uniform, true),
            (ratio, Allocation::Budget, false),
            (Amount::Error(0.1), Allocation::Budget, false),
        ] {
            let options = Options { allocation, ..Options::new(Method::Svd, amount) };
            let plan = Plan::new(&model, &options).unwrap();
            assert_eq!(plan.known_choices().unwrap().is_some(), is_known);
        }
        // A later name overrides an earlier one.
        let options = Options::new(Method::Svd, ranks);
        let choices = Plan::new(&model, &options).unwrap().known_choices().unwrap().unwrap();
        assert_eq!(choices, [3, 4].map(|rank| Choice::Rank(Form::LowRank, rank)));
    }

    #[test]
    fn the_identity_names_whatever_changes_the_output() {
        #[derive(Debug)]
        struct Nowhere;

        impl crate::Products for Nowhere {
            fn hold(
                &self,
                _a: lowrank_factor::MatRef<'_, f32>,
            ) -> lowrank_factor::Result<Box<dyn lowrank_factor::MatrixProducts<Scalar = f32>>> {
                panic!("nothing is decomposed here")
            }

            fn turn(&self) -> std::sync::MutexGuard<'_, ()> {
                panic!("nothing is decomposed here")
            }
        }

        let model = llama();
        let base = Options::new(Method::Svd, Amount::Error(0.1));
        let identity = |options: &Options| Plan::new(&model, options).unwrap().identity("none");
        let first = identity(&base);
        assert_eq!(first, identity(&Options { memory: Some(1 << 30), resume: true, ..base.clone() }));
        for changed in [
            Options { always_factor: true, ..base.clone() },
            Options { amount: Amount::Error(0.2), ..base.clone() },
            Options { pivots: true, ..base.clone() },
            Options { products: Some(std::sync::Arc::new(Nowhere)), ..base.clone() },
            Options { dtype: Some(lowrank_checkpoint::FloatType::BF16), ..base.clone() },
        ] {
            assert_ne!(first, identity(&changed), "{changed:?}");
        }
    }
}
