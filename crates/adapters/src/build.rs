//! Fresh adapters at the sites that a config selects.

use burn::prelude::*;
use lowrank_factor::qr::thin_qr;
use lowrank_factor::{Mat, SigmaPlacement, Truncation, svd};

use crate::config::{AdapterConfig, Grouping, Init, Method, name_of};
use crate::correction::Correction;
use crate::error::{AdapterError, Result};
use crate::host::{from_mat, to_mat};
use crate::lora::{Lora, Magnitude};
use crate::lorta::Lorta;
use crate::lotr::{Lotr, LotrShape};
use crate::set::{Adapter, AdapterSet, Slot};
use crate::tt::TtPair;
use crate::vera::Vera;
use lowrank_spec::Site;

/// The frozen weights, which some methods start from: DoRA, PiSSA, OLoRA, LoTR by Tucker2.
pub trait BaseWeights<B: Backend> {
    /// The weight of a site, `[d_input, d_output]`, or `None` where it is not at hand.
    fn weight(&self, site: usize) -> Option<Tensor<B, 2>>;
}

/// A base whose weights are not at hand.
#[derive(Clone, Copy, Debug)]
pub struct NoWeights;

impl<B: Backend> BaseWeights<B> for NoWeights {
    fn weight(&self, _site: usize) -> Option<Tensor<B, 2>> {
        None
    }
}

impl<B: Backend> AdapterSet<B> {
    /// Fresh adapters at the sites that the config's targets select; their update is zero.
    ///
    /// # Errors
    /// No matching site, a rank or value out of range, a method that starts from weights that `base` has not.
    pub fn init(
        config: &AdapterConfig,
        sites: &[Site],
        base: &dyn BaseWeights<B>,
        device: &B::Device,
    ) -> Result<Self> {
        let selected = config.targets.select(sites)?;
        config.validate(selected.iter().map(|&i| &sites[i]))?;
        // A misspelt key would pass unseen.
        let keys = config.rank_pattern.keys().chain(config.alpha_pattern.keys());
        let finds =
            |key: &str| selected.iter().any(|&i| lowrank_spec::targets::matches_end(key, &sites[i].path));
        if let Some(key) = keys.into_iter().find(|key| !finds(key)) {
            return Err(AdapterError::IdlePattern { key: key.clone() });
        }
        let build = Build { config, sites, base, device };
        let mut adapters = Vec::new();
        let mut slots = Vec::new();
        for (adapter, group) in build.groups(&selected).into_iter().enumerate() {
            adapters.push(build.adapter(&group, adapter)?);
            slots.extend(group.iter().enumerate().map(|(slice, &site)| Slot {
                site,
                path: sites[site].path.clone(),
                adapter,
                slice,
            }));
        }
        slots.sort_by_key(|slot| slot.site);
        Ok(Self::from_parts(adapters, slots, sites.len(), config.dropout))
    }
}

struct Build<'a, B: Backend> {
    config: &'a AdapterConfig,
    sites: &'a [Site],
    base: &'a dyn BaseWeights<B>,
    device: &'a B::Device,
}

impl<B: Backend> Build<'_, B> {
    /// The sites that each adapter serves.
    fn groups(&self, selected: &[usize]) -> Vec<Vec<usize>> {
        let config = self.config;
        if config.method == Method::Vera {
            return vec![selected.to_vec()];
        }
        let shares = config.method.is_shared() || (config.method == Method::LowRank && config.stack);
        if !shares {
            return selected.iter().map(|&site| vec![site]).collect();
        }
        let key = |site: usize| {
            let Site { d_input, d_output, .. } = self.sites[site];
            let kind = (config.grouping == Grouping::Kind).then(|| self.sites[site].kind());
            (d_input, d_output, kind)
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for &site in selected {
            match groups.iter_mut().find(|group| key(group[0]) == key(site)) {
                Some(group) => group.push(site),
                None => groups.push(vec![site]),
            }
        }
        groups
    }

    fn adapter(&self, group: &[usize], index: usize) -> Result<Adapter<B>> {
        let Self { config, device, .. } = *self;
        let first = &self.sites[group[0]];
        let sites: Vec<&Site> = group.iter().map(|&site| &self.sites[site]).collect();
        // The first group's values are those of a set with that group alone.
        let key = |name: &str| if index == 0 { name.to_string() } else { format!("{name}.{index}") };
        Ok(match config.method {
            Method::Lora => Adapter::Lora(self.pair(group[0])?),
            Method::LoraFa => Adapter::Lora(self.pair(group[0])?.with_frozen_a()),
            Method::Dora => {
                let magnitude = Magnitude::of_weight(self.weight(group[0], "dora")?);
                Adapter::Lora(Lora { magnitude: Some(magnitude), ..self.pair(group[0])? })
            }
            Method::Lotr if config.init == Init::Svd => {
                let weights = group.iter().map(|&site| self.weight(site, "lotr --init svd"));
                let weights = weights.collect::<Result<_>>()?;
                Adapter::Lotr(Lotr::from_weights(weights, config.rank_of(first), config.scale_of(first))?)
            }
            Method::Lotr => {
                let shape = LotrShape {
                    widths: [first.d_input, first.d_output],
                    slices: group.len(),
                    rank: config.rank_of(first),
                    scale: config.scale_of(first),
                    key: &key("lotr"),
                    seed: config.seed,
                };
                Adapter::Lotr(Lotr::init(shape, config.init, device))
            }
            Method::Vera => Adapter::Vera(Vera::init(&sites, config.rank, config.seed, device)),
            Method::Loretta | Method::TtLora => Adapter::Tt(TtPair::init(config, first, device)?),
            Method::Lorta => Adapter::Lorta(Lorta::init(config, &sites, &key("lorta"), device)),
            Method::LowRank => {
                let shape = [first.d_input, first.d_output];
                let rank = config.rank_of(first);
                Adapter::Correction(Correction::zeros(shape, group.len(), rank, config.stack, device))
            }
        })
    }

    fn weight(&self, site: usize, method: &str) -> Result<Tensor<B, 2>> {
        self.base.weight(site).ok_or_else(|| AdapterError::NoWeight {
            site: self.sites[site].path.clone(),
            method: method.to_string(),
        })
    }

    /// A fresh pair by the config's initialisation.
    fn pair(&self, index: usize) -> Result<Lora<B>> {
        let Self { config, device, .. } = *self;
        let site = &self.sites[index];
        let (rank, scale, seed) = (config.rank_of(site), config.scale_of(site), config.seed);
        let randomized = config.init == Init::PissaRandomized;
        match config.init {
            Init::Gaussian if !site.embedding => Ok(Lora::gaussian(site, rank, scale, seed, device)),
            Init::Pissa | Init::PissaRandomized => {
                let weight = to_mat(self.weight(index, &name_of(&config.init))?)?;
                let svd = if randomized {
                    svd::auto(weight.as_ref(), &Truncation::Rank(rank), seed)?.svd
                } else {
                    svd::exact(weight.as_ref())?
                };
                let fit = svd.low_rank(&Truncation::Rank(rank), SigmaPlacement::Split)?.factors;
                Ok(self.start(fit.left().to_owned(), fit.right().to_owned(), scale))
            }
            Init::Olora => {
                // PyTorch's weight (out, in) = Q·R; B is Q's first columns, A is R's first rows.
                let weight = to_mat(self.weight(index, "olora")?)?;
                let (q, r) = thin_qr(weight.transpose())?;
                let a = r.subrows(0, rank).transpose().to_owned();
                let b = q.subcols(0, rank).transpose().to_owned();
                Ok(Lora::from_start(from_mat(a.as_ref(), device), from_mat(b.as_ref(), device), scale))
            }
            _ => Ok(Lora::init(site, rank, scale, seed, device)),
        }
    }

    /// A pair whose scaled product is `left·right`.
    fn start(&self, left: Mat<f32>, right: Mat<f32>, scale: f64) -> Lora<B> {
        let root = scale.sqrt();
        let a = from_mat::<B>(left.as_ref(), self.device) / root;
        let b = from_mat::<B>(right.as_ref(), self.device) / root;
        Lora::from_start(a, b, scale)
    }
}
