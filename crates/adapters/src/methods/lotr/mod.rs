//! LoTR: `ΔW_s = scale·L·M_s·R`, with `L` and `R` shared by all slices `s` of a group.
//!
//! Files: `<path>.lotr_core.weight` `(r, r)` for each slice, and the shared `lotr.left.weight` `(r, in)` and
//! `lotr.right.weight` `(out, r)`, each the transpose of the matrix in the forward pass.

mod codec;

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_factor::tucker::{Tucker2Options, tucker2};
use lowrank_factor::{Mat, Truncation};

use super::{FactorRole, Factors, Fresh, Method, MethodSpec, Sharing};
use crate::config::Init;
use crate::error::Result;
use crate::host::{from_mat, to_mat};
use crate::init::normal;
use crate::peft::{AdapterFolder, OwnSite, Reader, Writer};
use crate::set::{Pair, Slot};

const LOTR: &MethodSpec = &MethodSpec {
    inits: &[Init::Trivial, Init::Neutral, Init::Normal, Init::Svd],
    sharing: Sharing::Shape,
    keys: &[codec::CORE],
    ..MethodSpec::new("lotr", "LOTR", "Low tensor rank adapters, factors shared by the layers")
};

pub(super) const METHODS: &[&MethodSpec] = &[LOTR];

impl Method {
    /// Low tensor rank (Bershatsky et al. 2024, arXiv:2402.01376): factors shared by the sites, and a core
    /// for each.
    pub const LOTR: Self = Self(LOTR);
}

/// One group of slices (Bershatsky et al. 2024, arXiv:2402.01376).
///
/// The stack of updates is a Tucker2 tensor: parameters `r·(d_input + d_output) + slices·r²`.
#[derive(Module, Debug)]
pub struct Lotr<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub left: Param<Tensor<B, 2>>,
    /// Shape `[rank, d_output]`.
    pub right: Param<Tensor<B, 2>>,
    /// A core `[rank, rank]` for each slice.
    pub cores: Vec<Param<Tensor<B, 2>>>,
    /// Initial factors, if their update is not zero; they are subtracted from the update.
    pub start: Option<LotrStart<B>>,
    /// Factor on the update.
    pub scale: f64,
}

/// Initial values of a group whose initial update is not zero: `ΔW_s = scale·(L·M_s·R − L₀·M_s₀·R₀)`.
#[derive(Module, Debug)]
pub struct LotrStart<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub left: Tensor<B, 2>,
    /// Shape `[rank, d_output]`.
    pub right: Tensor<B, 2>,
    /// A core `[rank, rank]` for each slice.
    pub cores: Vec<Tensor<B, 2>>,
}

/// Shape and scale of a newly initialized group.
#[derive(Clone, Copy, Debug)]
pub struct LotrShape<'a> {
    /// Widths of every slice, `[d_input, d_output]`.
    pub widths: [usize; 2],
    /// Number of slices.
    pub slices: usize,
    /// Inner dimension.
    pub rank: usize,
    /// Factor on the update.
    pub scale: f64,
    /// Key that separates this group's random values from those of other groups.
    pub key: &'a str,
    /// Seed of the random values.
    pub seed: u64,
}

impl<B: Backend> Lotr<B> {
    /// A newly initialized group whose update is zero, after the initializations of the authors' code:
    /// trivial (`L`, `R` normal, `M_s` zero), neutral (`L` normal, `M_s` the identity, `R` zero), or normal
    /// (all three, with the initial update subtracted).
    ///
    /// `L` has variance 1/d_input, so that `x·L` preserves the scale of `x`; `R` and `M_s` have variance
    /// 1/rank.
    pub fn new(shape: LotrShape<'_>, init: Init, device: &B::Device) -> Self {
        let LotrShape { widths: [d_input, d_output], slices, rank, scale, key, seed } = shape;
        let std = 1.0 / (rank as f64).sqrt();
        let left_std = 1.0 / (d_input as f64).sqrt();
        let left = normal(seed, &format!("{key}.left"), [d_input, rank], left_std, device);
        let right = match init {
            Init::Neutral => Tensor::zeros([rank, d_output], device),
            _ => normal(seed, &format!("{key}.right"), [rank, d_output], std, device),
        };
        let core = |slice: usize| match init {
            Init::Neutral => Tensor::eye(rank, device),
            Init::Normal => normal(seed, &format!("{key}.core.{slice}"), [rank, rank], std, device),
            _ => Tensor::zeros([rank, rank], device),
        };
        let group = Self::from_factors(left, right, (0..slices).map(core).collect(), scale);
        if init == Init::Normal { group.counted_from_here() } else { group }
    }

    /// A group initialized with the Tucker2 decomposition of the slices' weights, with an update of zero.
    ///
    /// # Shapes
    /// - `weights`: `[d_input, d_output]` each
    ///
    /// # Errors
    /// Weights of different shapes, or with non-finite values.
    pub(crate) fn from_weights(weights: Vec<Tensor<B, 2>>, rank: usize, scale: f64) -> Result<Self> {
        Ok(Self::tucker2(weights, rank, scale)?.0.counted_from_here())
    }

    /// The group whose updates are nearest to the given ones, and its relative error: Tucker2 of their stack.
    ///
    /// # Shapes
    /// - `updates`: `[d_input, d_output]` each
    ///
    /// # Errors
    /// Updates of different shapes, or with non-finite values.
    pub fn tucker2(updates: Vec<Tensor<B, 2>>, rank: usize, scale: f64) -> Result<(Self, f64)> {
        let device = updates.first().map(Tensor::device).unwrap_or_default();
        let stack = updates.into_iter().map(to_mat).collect::<Result<Vec<Mat<f32>>>>()?;
        let views: Vec<_> = stack.iter().map(Mat::as_ref).collect();
        let fit = tucker2(&views, &Truncation::Rank(rank), &Tucker2Options::default())?;
        let (left, cores, right) = fit.factors.into_parts();
        // The scale is divided out of the cores.
        let cores = cores.iter().map(|core| from_mat::<B>(core.as_ref(), &device) / scale).collect();
        let group = Self::from_factors(
            from_mat(left.as_ref(), &device),
            from_mat(right.as_ref(), &device),
            cores,
            scale,
        );
        Ok((group, fit.report.relative_error))
    }

    /// A group of given factors.
    pub fn from_factors(
        left: Tensor<B, 2>,
        right: Tensor<B, 2>,
        cores: Vec<Tensor<B, 2>>,
        scale: f64,
    ) -> Self {
        Self {
            left: Param::from_tensor(left),
            right: Param::from_tensor(right),
            cores: cores.into_iter().map(Param::from_tensor).collect(),
            start: None,
            scale,
        }
    }

    fn counted_from_here(self) -> Self {
        let start = LotrStart {
            left: self.left.val(),
            right: self.right.val(),
            cores: self.cores.iter().map(Param::val).collect(),
        };
        Self { start: Some(start), ..self }
    }

    /// The inner dimension of the trained factors.
    pub fn rank(&self) -> usize {
        self.right.dims()[0]
    }

    /// The update of a slice as a pair, exactly: `A = L`, `B = M_s·R`.
    pub fn factors(&self, slice: usize) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let b = self.cores[slice].val().matmul(self.right.val());
        match &self.start {
            None => (self.left.val(), b),
            Some(start) => {
                let b0 = start.cores[slice].clone().matmul(start.right.clone()).neg();
                (Tensor::cat(vec![self.left.val(), start.left.clone()], 1), Tensor::cat(vec![b, b0], 0))
            }
        }
    }

    /// The same group without initial factors to subtract: concatenated factors, at twice the rank.
    pub(crate) fn without_start(&self) -> Self {
        let Some(start) = &self.start else { return self.clone() };
        let rank = self.rank();
        let cores = self.cores.iter().zip(&start.cores).map(|(core, core0)| {
            let zero = Tensor::zeros([rank, rank], &core0.device());
            let top = Tensor::cat(vec![core.val(), zero.clone()], 1);
            let bottom = Tensor::cat(vec![zero, core0.clone().neg()], 1);
            Tensor::cat(vec![top, bottom], 0)
        });
        Self::from_factors(
            Tensor::cat(vec![self.left.val(), start.left.clone()], 1),
            Tensor::cat(vec![self.right.val(), start.right.clone()], 0),
            cores.collect(),
            self.scale,
        )
    }
}

impl<B: Backend> Factors<B> for Lotr<B> {
    fn init(fresh: &Fresh<'_, B>) -> Result<Self> {
        let (config, site) = (fresh.config, fresh.site());
        if config.init == Init::Svd {
            let weights = (0..fresh.sites.len()).map(|slice| fresh.weight(slice, "lotr --init svd"));
            return Self::from_weights(weights.collect::<Result<_>>()?, fresh.rank(), fresh.scale());
        }
        let shape = LotrShape {
            widths: [site.d_input, site.d_output],
            slices: fresh.sites.len(),
            rank: fresh.rank(),
            scale: fresh.scale(),
            key: &fresh.key("lotr"),
            seed: config.seed,
        };
        Ok(Self::new(shape, config.init, fresh.device))
    }

    fn pair(&self, slice: usize) -> Option<Pair<B>> {
        let (a, b) = self.factors(slice);
        Some(Pair { a, b, scale: self.scale })
    }

    fn roles(&self) -> Vec<(ParamId, FactorRole)> {
        let outer = [(self.left.id, FactorRole::First), (self.right.id, FactorRole::Second)];
        outer.into_iter().chain(self.cores.iter().map(|core| (core.id, FactorRole::Core))).collect()
    }

    fn read(file: &mut Reader<'_, B>) -> Result<()> {
        codec::read(file);
        Ok(())
    }

    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
        codec::write(&self.without_start(), slots, file);
        Ok(())
    }

    fn own_sites(folder: &AdapterFolder) -> Result<Vec<OwnSite>> {
        Ok(codec::own_sites(folder))
    }
}
