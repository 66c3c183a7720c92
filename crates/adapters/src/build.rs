//! Newly initialized adapters at the sites that a config selects.

use burn::prelude::*;
use lowrank_spec::Site;

use crate::config::{AdapterConfig, Grouping};
use crate::error::{AdapterError, Result};
use crate::methods::{Adapter, Fresh, Sharing};
use crate::set::{AdapterSet, Slot};

/// The frozen weights, from which some methods start: DoRA, PiSSA, OLoRA, LoftQ, QERA, LoTR by Tucker2.
pub trait BaseWeights<B: Backend> {
    /// The weight of a site, `[d_input, d_output]`, or `None` if it is not available.
    fn weight(&self, site: usize) -> Option<Tensor<B, 2>>;

    /// A low-rank approximation of a site's quantization residual `W − Q`: factors `[d_input, rank]` and `[rank, d_output]`;
    /// `None` if the residual is zero.
    ///
    /// # Errors
    /// A base without the weights before quantization.
    fn residual(&self, _site: usize, _rank: usize) -> Result<Option<[Tensor<B, 2>; 2]>> {
        Err(AdapterError::Incompatible(
            "LoftQ and QERA need the weights before quantization, which this base does not have".into(),
        ))
    }

    /// Why a site takes no adapter, as a clause, if the model refuses it.
    fn refusal(&self, _site: usize) -> Option<&'static str> {
        None
    }
}

/// A base whose weights are not available.
#[derive(Clone, Copy, Debug)]
pub struct NoWeights;

impl<B: Backend> BaseWeights<B> for NoWeights {
    fn weight(&self, _site: usize) -> Option<Tensor<B, 2>> {
        None
    }
}

impl<B: Backend> AdapterSet<B> {
    /// Newly initialized adapters at the sites that the config's targets select; their update is zero, except
    /// under LoftQ and QERA, where it approximates the base's quantization residual.
    ///
    /// # Errors
    /// No matching site, a site that `base` refuses, a rank or value out of range, a method that needs weights that `base` does
    /// not have.
    pub fn init(
        config: &AdapterConfig,
        sites: &[Site],
        base: &dyn BaseWeights<B>,
        device: &B::Device,
    ) -> Result<Self> {
        let selected = config.targets.select(sites)?;
        check_refused(base, sites, selected.iter().copied())?;
        config.validate(selected.iter().map(|&i| &sites[i]))?;
        // A misspelt key would go unnoticed.
        let paths = || selected.iter().map(|&i| sites[i].path.as_str());
        let idle = config.rank_pattern.idle_key(paths()).or_else(|| config.alpha_pattern.idle_key(paths()));
        if let Some(key) = idle {
            return Err(AdapterError::IdlePattern { key: key.to_string() });
        }
        let mut adapters = Vec::new();
        let mut slots = Vec::new();
        for (index, group) in groups(config, sites, &selected).into_iter().enumerate() {
            let members = group.iter().map(|&site| &sites[site]).collect();
            let fresh = Fresh { config, sites: members, device, indices: &group, index, base };
            adapters.push(Adapter::init(&fresh)?);
            slots.extend(group.iter().enumerate().map(|(slice, &site)| Slot {
                site,
                path: sites[site].path.clone(),
                adapter: index,
                slice,
            }));
        }
        slots.sort_by_key(|slot| slot.site);
        Ok(Self::from_parts(adapters, slots, sites.len(), config.dropout))
    }
}

/// Refuses adapters of sites that the model refuses.
pub(crate) fn check_refused<B: Backend>(
    base: &dyn BaseWeights<B>,
    sites: &[Site],
    mut adapted: impl Iterator<Item = usize>,
) -> Result<()> {
    let refused = adapted.find_map(|site| Some((site, base.refusal(site)?)));
    refused.map_or(Ok(()), |(site, reason)| {
        Err(AdapterError::Incompatible(format!(
            "'{}' takes no adapter: {reason}; adapt other modules, or train it in full (modules_to_save of PEFT)",
            sites[site].path
        )))
    })
}

/// The sites that each adapter serves.
fn groups(config: &AdapterConfig, sites: &[Site], selected: &[usize]) -> Vec<Vec<usize>> {
    let shares = match config.method.sharing {
        Sharing::None => false,
        Sharing::Shape => true,
        Sharing::ShapeIf(option) => config.option(option) != 0,
        Sharing::All => return vec![selected.to_vec()],
    };
    if !shares {
        return selected.iter().map(|&site| vec![site]).collect();
    }
    let key = |site: usize| {
        let Site { d_input, d_output, .. } = sites[site];
        let kind = (config.grouping == Grouping::Kind).then(|| sites[site].kind());
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
