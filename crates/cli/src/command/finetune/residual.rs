//! `--init loftq` and `qera`: adapters that start from the quantization residual of `--base-bits`.

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

/// The weights of a base before quantization, and the training rows.
pub(super) struct Unquantized<'a> {
    /// Folder of the checkpoint.
    pub(super) folder: &'a Path,
    /// The first training rows, whose inputs weigh QERA's start; `None` where the base is never quantized.
    pub(super) rows: Option<&'a dyn Fn() -> Result<Vec<Tokens>>>,
}

impl Unquantized<'_> {
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
        if !name.needs_residual() {
            return Ok(init(&weights)?);
        }
        let Some(rows) = self.rows else {
            bail!(
                "--init {name} is not supported for masked language modelling, whose base is not quantized; choose another --init"
            )
        };
        ensure!(
            args.base.is_quantized(),
            "--init {name} starts from the quantization residual of the base; give --base-bits 4 or 8, or another --init"
        );
        if args.base.is_dry() {
            // Of the same sizes.
            let config = AdapterConfig { init: Init::Default, ..config.clone() };
            return Ok(AdapterSet::init(&config, model.sites(), &weights, device)?);
        }
        let rows = (name == Init::Qera).then(rows).transpose()?;
        let residuals = RefCell::new(Residuals::new(self.folder, rows, device)?);
        let blocks = model.blocks_where(|_| true).into_iter().map(|block| block.module).collect();
        let base =
            Quantized { weights, sites: model.sites(), blocks, residuals, has_residual: Cell::new(false) };
        let adapters = init(&base)?;
        ensure!(
            base.has_residual.get(),
            "--init {name}: --base-bits does not quantize any module to adapt: they are quantized in {} already, have rows that do \
             not fill blocks, or are outside the layers; give the model in floats, other --targets, or another --init",
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
    /// Whether any residual was found.
    has_residual: Cell<bool>,
}

impl<W: BaseWeights<Train>> BaseWeights<Train> for Quantized<'_, W> {
    fn weight(&self, site: usize) -> Option<Tensor<Train, 2>> {
        self.weights.weight(site)
    }

    fn residual(&self, site: usize, rank: usize) -> lowrank_adapters::Result<Option<[Tensor<Train, 2>; 2]>> {
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
        self.has_residual.set(self.has_residual.get() || factors.is_some());
        Ok(factors.map(|pair| pair.map(Tensor::from_inner)))
    }

    fn refusal(&self, site: usize) -> Option<&'static str> {
        self.weights.refusal(site)
    }
}
