//! `--init loftq` and `qera`: adapters that start from what `--base-bits` took from the weights.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use burn::prelude::*;
use lowrank_adapters::{AdapterConfig, AdapterError, AdapterSet, BaseWeights, Init, Site};
use lowrank_compress::{Residuals, Tokens};
use lowrank_models::Adaptable;

use super::Args;
use crate::backend::{Device, Inner, Train};

/// The checkpoint of a base that may be quantized, and the training rows.
pub(super) struct Published<'a> {
    /// Its folder.
    pub(super) folder: &'a Path,
    /// The first training rows, whose inputs weigh QERA's start; `None` where the base is never quantized.
    pub(super) rows: Option<&'a dyn Fn() -> Result<Vec<Tokens>>>,
}

impl Published<'_> {
    /// New adapters over a model.
    pub(super) fn adapters<M: Adaptable<Train>>(
        &self,
        args: &Args,
        config: &AdapterConfig,
        model: &M,
        device: &Device,
    ) -> Result<AdapterSet<Train>> {
        let init = |base: &dyn BaseWeights<Train>| AdapterSet::init(config, model.sites(), base, device);
        let (weights, name) = (model.base_weights(), config.init);
        if !matches!(name, Init::Loftq | Init::Qera) {
            return Ok(init(&weights)?);
        }
        let Some(rows) = self.rows else {
            bail!(
                "--init {name} is not supported for masked language modelling, whose base is not quantized; choose another --init"
            )
        };
        ensure!(
            args.base.is_quantized(),
            "--init {name} starts from what quantization takes from the weights; give --base-bits 4 or 8, or another --init"
        );
        if args.base.is_dry() {
            // Of the same sizes.
            let config = AdapterConfig { init: Init::Default, ..config.clone() };
            return Ok(AdapterSet::init(&config, model.sites(), &weights, device)?);
        }
        let rows = (name == Init::Qera).then(rows).transpose()?;
        let residuals = RefCell::new(Residuals::new(self.folder, rows, device)?);
        let blocks = model.blocks_where(|_| true).into_iter().map(|block| block.module).collect();
        let base = Quantized { weights, sites: model.sites(), blocks, residuals, has_lost: Cell::new(false) };
        let adapters = init(&base)?;
        ensure!(
            base.has_lost.get(),
            "--init {name}: --base-bits took nothing from the modules to adapt: they are quantized in {} already, have rows that fill \
             no blocks, or are outside the layers; give the model in floats, other --targets, or another --init",
            self.folder.display()
        );
        Ok(adapters)
    }
}

/// A quantized base beside its checkpoint.
struct Quantized<'a, W> {
    weights: W,
    sites: &'a [Site],
    /// Paths of the modules in blocks.
    blocks: BTreeSet<String>,
    residuals: RefCell<Residuals<Inner>>,
    /// Whether any weight lost something.
    has_lost: Cell<bool>,
}

impl<W: BaseWeights<Train>> BaseWeights<Train> for Quantized<'_, W> {
    fn weight(&self, site: usize) -> Option<Tensor<Train, 2>> {
        self.weights.weight(site)
    }

    fn lost(&self, site: usize, rank: usize) -> lowrank_adapters::Result<Option<[Tensor<Train, 2>; 2]>> {
        let of = &self.sites[site];
        if !self.blocks.contains(&of.path) {
            return Ok(None);
        }
        let Some(quantized) = self.weights.weight(site) else {
            return Err(AdapterError::NoWeight {
                site: of.path.clone(),
                method: "the initialization".into(),
            });
        };
        let factors = self.residuals.borrow_mut().factors(of, quantized.inner(), rank);
        let factors = factors.map_err(|error| AdapterError::Incompatible(error.to_string()))?;
        self.has_lost.set(self.has_lost.get() || factors.is_some());
        Ok(factors.map(|pair| pair.map(Tensor::from_inner)))
    }

    fn refusal(&self, site: usize) -> Option<&'static str> {
        self.weights.refusal(site)
    }
}
