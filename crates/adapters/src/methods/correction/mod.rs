//! Low-rank optimization: full-size corrections that are projected after every step.
//!
//! Files: a LoRA, which represents the projected corrections exactly.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_factor::tucker::{Tucker2Options, tucker2};
use lowrank_factor::{Mat, SigmaPlacement, Truncation, svd};

use super::{FactorRole, Factors, Fresh, Method, MethodSpec, OptionKind, OptionSpec, Sharing};
use crate::error::Result;
use crate::host::{from_mat, to_mat};
use crate::peft::{AdapterFolder, OwnSite, Reader, Writer};
use crate::set::{Pair, Slot};

const STACK: OptionSpec = OptionSpec {
    name: "stack",
    about: "project the layers of one shape onto a joint Tucker2 rank instead of each onto its own rank",
    kind: OptionKind::Flag,
};

const LOWRANK: &MethodSpec = &MethodSpec {
    sharing: Sharing::ShapeIf(STACK.name),
    options: &[STACK],
    ignores: &["alpha", "rslora", "alpha-pattern", "lora-plus"],
    // Files do not record that a LoRA was trained at full size.
    is_of: |_| false,
    ..MethodSpec::new("lowrank", "LORA", "A full-size correction, brought back to low rank after every step")
};

pub(super) const METHODS: &[&MethodSpec] = &[LOWRANK];

impl Method {
    /// A full-size correction that is projected onto matrices of low rank after every step.
    pub const LOW_RANK: Self = Self(LOWRANK);
}

/// Full-size corrections, `y = x·W + x·Δ_s`, kept at low rank by [`Factors::project`]: each of them at
/// rank r, or all of them jointly at Tucker2 rank r.
#[derive(Module, Debug)]
pub struct Correction<B: Backend> {
    /// Shape `[d_input, d_output]` each.
    pub deltas: Vec<Param<Tensor<B, 2>>>,
    /// Rank of the projection.
    pub rank: usize,
    /// Whether the corrections share their factors.
    pub stack: bool,
}

impl<B: Backend> Correction<B> {
    /// Corrections of zero.
    pub fn zeros(shape: [usize; 2], slices: usize, rank: usize, stack: bool, device: &B::Device) -> Self {
        let delta = || Param::from_tensor(Tensor::zeros(shape, device));
        Self { deltas: (0..slices).map(|_| delta()).collect(), rank, stack }
    }

    /// Replaces the corrections by the nearest ones of the rank.
    ///
    /// # Errors
    /// Values that are not finite.
    fn projected(self) -> Result<Self> {
        let values = self.deltas.iter().map(Param::val).collect();
        let projected = project(values, self.rank, self.stack)?;
        let deltas = self.deltas.into_iter().zip(projected);
        let deltas = deltas.map(|(old, new)| old.map(|old| new.set_require_grad(old.is_require_grad())));
        Ok(Self { deltas: deltas.collect(), ..self })
    }

    /// A correction as a pair: exact after the projection.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn factors(&self, slice: usize) -> Result<(Tensor<B, 2>, Tensor<B, 2>)> {
        let delta = self.deltas[slice].val();
        let device = delta.device();
        let fit = truncated(&to_mat(delta)?, self.rank)?;
        Ok((from_mat(fit.left(), &device), from_mat(fit.right(), &device)))
    }
}

impl<B: Backend> Factors<B> for Correction<B> {
    fn init(fresh: &Fresh<'_, B>) -> Result<Self> {
        let (config, site) = (fresh.config, fresh.site());
        let shape = [site.d_input, site.d_output];
        let stack = config.option(STACK.name) != 0;
        Ok(Self::zeros(shape, fresh.sites.len(), fresh.rank(), stack, fresh.device))
    }

    fn pair(&self, _slice: usize) -> Option<Pair<B>> {
        None
    }

    fn to_pair(&self, slice: usize) -> Result<Option<Pair<B>>> {
        let (a, b) = self.factors(slice)?;
        Ok(Some(Pair { a, b, scale: 1.0 }))
    }

    fn delta_weight(&self, slice: usize) -> Option<Tensor<B, 2>> {
        Some(self.deltas[slice].val())
    }

    fn roles(&self) -> Vec<(ParamId, FactorRole)> {
        self.deltas.iter().map(|delta| (delta.id, FactorRole::Full)).collect()
    }

    fn needs_projection(&self) -> bool {
        true
    }

    fn project(self) -> Result<Self> {
        self.projected()
    }

    /// Its files are LoRA's, which [`Lora`](crate::methods::lora::Lora) reads.
    fn read(_file: &mut Reader<'_, B>) -> Result<()> {
        Ok(())
    }

    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
        for slot in slots {
            let (a, b) = self.factors(slot.slice)?;
            file.pair(slot, a, b, 1.0);
        }
        Ok(())
    }

    fn own_sites(_folder: &AdapterFolder) -> Result<Vec<OwnSite>> {
        Ok(Vec::new())
    }
}

/// The best approximation of rank `rank`; the singular values are split between both factors.
fn truncated(matrix: &Mat<f32>, rank: usize) -> Result<lowrank_factor::LowRank<f32>> {
    let rank = rank.min(matrix.nrows()).min(matrix.ncols());
    let truncation = Truncation::Rank(rank);
    let svd = svd::auto(matrix.as_ref(), &truncation, 0)?.svd;
    Ok(svd.low_rank(&truncation, SigmaPlacement::Split)?.factors)
}

/// Matrices of one shape, projected onto rank `rank`: individually (truncated SVD), or jointly (Tucker2).
///
/// # Errors
/// Values that are not finite.
pub fn project<B: Backend>(
    matrices: Vec<Tensor<B, 2>>,
    rank: usize,
    stack: bool,
) -> Result<Vec<Tensor<B, 2>>> {
    let Some(device) = matrices.first().map(Tensor::device) else { return Ok(matrices) };
    let hosts = matrices.into_iter().map(to_mat).collect::<Result<Vec<Mat<f32>>>>()?;
    if stack {
        let views: Vec<_> = hosts.iter().map(Mat::as_ref).collect();
        let fit = tucker2(&views, &Truncation::Rank(rank), &Tucker2Options::default())?;
        let rebuild = |slice| Ok(from_mat(fit.factors.reconstruct(slice)?.as_ref(), &device));
        return (0..hosts.len()).map(rebuild).collect();
    }
    hosts.iter().map(|m| Ok(from_mat(truncated(m, rank)?.reconstruct().as_ref(), &device))).collect()
}
