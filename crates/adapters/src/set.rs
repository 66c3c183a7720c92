//! A set of adapters over one base: every trainable factor, keyed by site.

use std::fmt::Debug;
use std::sync::Arc;

use burn::prelude::*;
use lowrank_kernels::Kernels;

use crate::config::{AdapterConfig, Method};
use crate::error::{AdapterError, Result};
use crate::lora::Lora;
use crate::lotr::Lotr;
use crate::site::{Mode, Site};
use crate::targets::Pattern;

/// One adapter: a pair of its own for a site, or factors shared by several.
#[derive(Module, Debug)]
pub enum Adapter<B: Backend> {
    /// A LoRA pair.
    Lora(Lora<B>),
    /// A LoTR group.
    Lotr(Lotr<B>),
}

/// Which adapter serves a site, and which slice of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index of the site in the model's list.
    pub site: usize,
    /// Module path of the site.
    pub path: String,
    /// Index into the set's adapters.
    pub adapter: usize,
    /// Slice within a shared adapter, 0 otherwise.
    pub slice: usize,
}

/// Sees what reaches each site while a model runs: calibration gathers its statistics with it.
pub trait Observer: Debug + Send + Sync {
    /// The input of a site, of shape `[rows, d_input]`; `values` reads it, row-major, from the device.
    fn input(&self, site: usize, shape: [usize; 2], values: &dyn Fn() -> Vec<f32>);
}

/// All adapters of one fine-tuning, apart from the base they sit on.
///
/// Shared factors are owned once, so the optimizer updates them once.
#[derive(Module, Debug)]
pub struct AdapterSet<B: Backend> {
    adapters: Vec<Adapter<B>>,
    slots: Vec<Slot>,
    /// By site index: the slot, if the site is adapted.
    by_site: Vec<Option<usize>>,
    dropout: f64,
    #[module(skip)]
    observer: Option<Arc<dyn Observer>>,
}

impl<B: Backend> AdapterSet<B> {
    /// No adapters at all: every site passes its base output on.
    pub fn empty() -> Self {
        Self { adapters: Vec::new(), slots: Vec::new(), by_site: Vec::new(), dropout: 0.0, observer: None }
    }

    /// Lets `observer` see the input of every site.
    pub fn observed(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Fresh adapters at the sites that the config's targets select; their update is zero.
    ///
    /// # Errors
    /// No matching site, a rank or value out of range, or LoTR over sites of different shapes.
    pub fn init(config: &AdapterConfig, sites: &[Site], device: &B::Device) -> Result<Self> {
        let selected = config.targets.select(sites)?;
        config.validate(selected.iter().map(|&i| &sites[i]))?;
        let mut adapters = Vec::new();
        let mut slots = Vec::new();
        match config.method {
            Method::Lora => {
                for &index in &selected {
                    let site = &sites[index];
                    // A head narrower than the rank is adapted at its own full rank, with the same alpha.
                    let rank = config.rank.min(site.max_rank());
                    let scale = crate::config::scale(config.alpha, rank, config.rslora);
                    slots.push(Slot {
                        site: index,
                        path: site.path.clone(),
                        adapter: adapters.len(),
                        slice: 0,
                    });
                    adapters.push(Adapter::Lora(Lora::init(site, rank, scale, config.seed, device)));
                }
            }
            Method::Lotr => {
                let first = &sites[selected[0]];
                let shape = [first.d_input, first.d_output];
                for (slice, &index) in selected.iter().enumerate() {
                    let site = &sites[index];
                    if [site.d_input, site.d_output] != shape {
                        return Err(AdapterError::MixedShapes {
                            site: site.path.clone(),
                            got: format!("{}x{}", site.d_input, site.d_output),
                            expected: format!("{}x{}", shape[0], shape[1]),
                        });
                    }
                    slots.push(Slot { site: index, path: site.path.clone(), adapter: 0, slice });
                }
                let (n, rank) = (selected.len(), config.rank);
                adapters.push(Adapter::Lotr(Lotr::init(
                    shape,
                    n,
                    rank,
                    config.scale(),
                    config.seed,
                    "lotr",
                    device,
                )));
            }
        }
        Ok(Self::from_parts(adapters, slots, sites.len(), config.dropout))
    }

    /// A set of given adapters; `n_sites` is the length of the model's site list.
    pub fn from_parts(adapters: Vec<Adapter<B>>, slots: Vec<Slot>, n_sites: usize, dropout: f64) -> Self {
        let mut by_site = vec![None; n_sites];
        for (index, slot) in slots.iter().enumerate() {
            by_site[slot.site] = Some(index);
        }
        Self { adapters, slots, by_site, dropout, observer: None }
    }

    /// Whether nothing is adapted.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The adapted sites, in the model's order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Whether [`AdapterSet::apply`] does anything at a site.
    pub fn covers(&self, site: usize) -> bool {
        self.slot(site).is_some() || self.observer.is_some()
    }

    /// The adapters that the slots point into.
    pub fn adapters(&self) -> &[Adapter<B>] {
        &self.adapters
    }

    /// The adapted sites as PEFT's `target_modules` names them: whole paths, so that no other layer matches.
    pub fn target_names(&self) -> Option<Pattern> {
        (!self.is_empty()).then(|| Pattern::Names(self.slots.iter().map(|s| s.path.clone()).collect()))
    }

    fn slot(&self, site: usize) -> Option<&Slot> {
        self.by_site.get(site).copied().flatten().map(|index| &self.slots[index])
    }

    /// `ΔW` of a site, shape `[d_input, d_output]`, or `None` where nothing is adapted.
    pub fn delta_weight(&self, site: usize) -> Option<Tensor<B, 2>> {
        let slot = self.slot(site)?;
        Some(match &self.adapters[slot.adapter] {
            Adapter::Lora(lora) => lora.delta_weight(),
            Adapter::Lotr(lotr) => lotr.delta_weight(slot.slice),
        })
    }
}

impl<B: Kernels> AdapterSet<B> {
    /// Adds a site's update to its base output: `y + delta(x)`.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_input]`
    /// - `y`, output: `[tokens, d_output]`
    pub fn apply(&self, site: usize, x: &Tensor<B, 2>, y: Tensor<B, 2>, mode: Mode) -> Tensor<B, 2> {
        if let Some(observer) = &self.observer {
            observer.input(site, x.dims(), &|| crate::peft::host_values(x.clone()));
        }
        let Some(slot) = self.slot(site) else { return y };
        // Streams below 2³² belong to the model's own dropouts.
        let drop = mode.dropout(self.dropout, (1 << 32) + site as u64);
        y + match &self.adapters[slot.adapter] {
            Adapter::Lora(lora) => lora.forward(x.clone(), drop),
            Adapter::Lotr(lotr) => lotr.forward(slot.slice, x.clone(), drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use burn_flex::Flex;

    use super::*;

    /// Site, shape and values of one input.
    type Input = (usize, [usize; 2], Vec<f32>);

    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<Input>>);

    impl Observer for Seen {
        fn input(&self, site: usize, shape: [usize; 2], values: &dyn Fn() -> Vec<f32>) {
            self.0.lock().unwrap().push((site, shape, values()));
        }
    }

    #[test]
    fn an_observer_sees_inputs_and_changes_nothing() {
        let (seen, device) = (Arc::new(Seen::default()), Default::default());
        let x = Tensor::<Flex, 2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device);
        let set = AdapterSet::empty().observed(seen.clone());
        assert!(set.covers(7) && !AdapterSet::<Flex>::empty().covers(7));
        let y = set.apply(7, &x, x.clone() * 2.0, Mode::EVAL);
        assert_eq!(crate::peft::host_values(y), [2.0, 4.0, 6.0, 8.0]);
        assert_eq!(*seen.0.lock().unwrap(), [(7, [2, 2], vec![1.0, 2.0, 3.0, 4.0])]);
    }
}
