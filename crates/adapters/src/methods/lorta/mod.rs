//! LoRTA: the updates of a group of sites as one tensor in CP form.
//!
//! Files: the factors `lorta.a`, `lorta.b`, `lorta.heads`, `lorta.layers` and `lorta.kinds`, as in memory.

mod codec;

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_spec::Site;

use super::{FactorRole, Factors, Fresh, Method, MethodSpec, OptionKind, OptionSpec, Sharing};
use crate::config::AdapterConfig;
use crate::error::{AdapterError, Result};
use crate::init::normal;
use crate::peft::{AdapterFolder, OwnSite, Reader, Writer};
use crate::set::{Pair, Slot};

const HEADS: OptionSpec = OptionSpec {
    name: "heads",
    about: "size of the mode over attention heads [default: the model's]",
    kind: OptionKind::Number { default: 1, min: 1, max: usize::MAX },
};

const LORTA: &MethodSpec = &MethodSpec {
    sharing: Sharing::Shape,
    options: &[HEADS],
    check: check_heads,
    ..MethodSpec::new("lorta", "LORTA", "The updates of all layers as one tensor in CP form")
};

pub(super) const METHODS: &[&MethodSpec] = &[LORTA];

impl Method {
    /// LoRTA (Hounie et al. 2024, arXiv:2410.04060): the updates of all layers as one tensor in CP form.
    pub const LORTA: Self = Self(LORTA);
}

fn check_heads(config: &AdapterConfig, site: &Site) -> Result<()> {
    let heads = config.option(HEADS.name);
    if heads > 0 && site.d_output.is_multiple_of(heads) {
        return Ok(());
    }
    Err(AdapterError::BadValue {
        name: "heads",
        value: heads.to_string(),
        expected: "a divisor of the width of every adapted layer",
    })
}

/// One group of sites of one shape (Hounie et al. 2024, arXiv:2410.04060).
///
/// `ΔW_{layer, kind}[i, (h, j)] = scale·Σ_k A[i,k]·B[k,j]·H[h,k]·C_layer[layer,k]·C_kind[kind,k]`: modes are the
/// input width, the output width within a head, heads, layers and kinds of map.
#[derive(Module, Debug)]
pub struct Lorta<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub a: Param<Tensor<B, 2>>,
    /// Shape `[rank, d_output / heads]`.
    pub b: Param<Tensor<B, 2>>,
    /// Shape `[rank, heads]`.
    pub heads: Param<Tensor<B, 2>>,
    /// Shape `[layers, rank]`.
    pub layers: Param<Tensor<B, 2>>,
    /// Shape `[kinds, rank]`.
    pub kinds: Param<Tensor<B, 2>>,
    /// Row of `layers` and row of `kinds` of each slice.
    #[module(skip)]
    pub places: Vec<Place>,
    /// Factor on the update.
    pub scale: f64,
}

/// Position of a slice in the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Row of the mode over layers.
    pub layer: usize,
    /// Row of the mode over kinds.
    pub kind: usize,
}

/// The layer and kind rows of some sites, in order of first occurrence.
pub(crate) fn places(sites: &[&Site]) -> (Vec<Place>, [usize; 2]) {
    fn row<T: PartialEq>(rows: &mut Vec<T>, value: T) -> usize {
        rows.iter().position(|v| *v == value).unwrap_or_else(|| {
            rows.push(value);
            rows.len() - 1
        })
    }
    let (mut layers, mut kinds) = (Vec::new(), Vec::new());
    let places = sites
        .iter()
        .map(|site| Place { layer: row(&mut layers, site.layer), kind: row(&mut kinds, site.kind()) })
        .collect();
    (places, [layers.len(), kinds.len()])
}

impl<B: Backend> Lorta<B> {
    /// Newly initialized factors whose update is zero: `B` is zero, the others are normal, `A` with variance
    /// 1/d_input.
    pub fn new(config: &AdapterConfig, sites: &[&Site], key: &str, device: &B::Device) -> Self {
        let Site { d_input, d_output, .. } = *sites[0];
        let (rank, heads, seed) = (config.rank, config.option(HEADS.name), config.seed);
        let (places, [n_layers, n_kinds]) = places(sites);
        let factor = |name: &str, shape: [usize; 2], std: f64| {
            Param::from_tensor(normal(seed, &format!("{key}.{name}"), shape, std, device))
        };
        Self {
            a: factor("a", [d_input, rank], 1.0 / (d_input as f64).sqrt()),
            b: Param::from_tensor(Tensor::zeros([rank, d_output / heads], device)),
            heads: factor("heads", [rank, heads], 1.0),
            layers: factor("layers", [n_layers, rank], 1.0),
            kinds: factor("kinds", [n_kinds, rank], 1.0),
            places,
            scale: config.scale_of(sites[0]),
        }
    }

    /// The inner dimension.
    pub fn rank(&self) -> usize {
        self.a.dims()[1]
    }

    /// The update of a slice as a pair, exactly: `[d_input, rank]` and `[rank, d_output]`.
    pub fn factors(&self, slice: usize) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let Place { layer, kind } = self.places[slice];
        let (rank, [_, width], [_, heads]) = (self.rank(), self.b.dims(), self.heads.dims());
        let weights = self.layers.val().narrow(0, layer, 1) * self.kinds.val().narrow(0, kind, 1); // [1, rank]
        let heads_of = self.heads.val().reshape([rank, heads, 1]);
        let b = (heads_of * self.b.val().reshape([rank, 1, width])).reshape([rank, heads * width]);
        (self.a.val() * weights, b)
    }
}

impl<B: Backend> Factors<B> for Lorta<B> {
    fn init(fresh: &Fresh<'_, B>) -> Result<Self> {
        Ok(Self::new(fresh.config, &fresh.sites, &fresh.key("lorta"), fresh.device))
    }

    fn pair(&self, slice: usize) -> Option<Pair<B>> {
        let (a, b) = self.factors(slice);
        Some(Pair { a, b, scale: self.scale })
    }

    fn roles(&self) -> Vec<(ParamId, FactorRole)> {
        let small = [&self.heads, &self.layers, &self.kinds].map(|factor| (factor.id, FactorRole::Core));
        [(self.a.id, FactorRole::First), (self.b.id, FactorRole::Second)].into_iter().chain(small).collect()
    }

    fn read(file: &mut Reader<'_, B>) -> Result<()> {
        codec::read(file);
        Ok(())
    }

    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
        codec::write(self, slots, file);
        Ok(())
    }

    fn own_sites(folder: &AdapterFolder) -> Result<Vec<OwnSite>> {
        Ok(codec::own_sites(folder))
    }
}
