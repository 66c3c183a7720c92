//! Pairs that start from the weight (PiSSA, OLoRA), or from its quantization residual (LoftQ, QERA).
//!
//! The former subtract the initial factors from the base: `W − scale·A₀·B₀ + scale·A·B`. Here the base is
//! unchanged and they are subtracted from the update, `ΔW = scale·(A·B − A₀·B₀)`, which gives the same sum.
//!
//! The latter train `Q + scale·A·B` over a quantized base, with `Q + scale·A₀·B₀ ≈ W` at the start. Files hold the update of
//! `W`, which is the same difference.

use burn::prelude::*;
use lowrank_factor::qr::thin_qr;
use lowrank_factor::{Mat, SigmaPlacement, Truncation, svd};

use crate::config::Init;
use crate::error::Result;
use crate::host::{from_mat, to_mat};
use crate::peft::InitTag;

/// Initial values of a pair.
#[derive(Module, Debug)]
pub struct Start<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub a: Tensor<B, 2>,
    /// Shape `[rank, d_output]`.
    pub b: Tensor<B, 2>,
    /// Whether the product approximates the quantization residual, which the base in memory lacks.
    pub is_residual: bool,
}

impl<B: Backend> Start<B> {
    /// The initial pair of an initialization: PiSSA (Meng et al. 2024, arXiv:2404.02948), the leading
    /// singular triplets; OLoRA (Büyükakyüz 2024, arXiv:2406.01775), the leading part of the QR decomposition
    /// of PyTorch's weight `(out, in)`.
    ///
    /// # Shapes
    /// - `weight`: `[d_input, d_output]`
    ///
    /// # Errors
    /// Values that are not finite.
    pub(crate) fn of_weight(
        init: Init,
        weight: Tensor<B, 2>,
        rank: usize,
        scale: f64,
        seed: u64,
    ) -> Result<Self> {
        let device = weight.device();
        let weight = to_mat(weight)?;
        match init {
            Init::Olora => olora(&weight, rank, false, &device),
            Init::PissaRandomized => {
                let svd = svd::auto(weight.as_ref(), &Truncation::Rank(rank), seed)?.svd;
                pissa(&svd, rank, scale, &device)
            }
            _ => pissa(&svd::exact(weight.as_ref())?, rank, scale, &device),
        }
    }

    /// The initial pair over a quantized base, from factors of its residual.
    pub(crate) fn of_residual([a, b]: [Tensor<B, 2>; 2], scale: f64) -> Self {
        let root = scale.sqrt();
        Self { a: a / root, b: b / root, is_residual: true }
    }

    /// The pair that PEFT subtracts from the base when it loads a folder whose config says
    /// `init_lora_weights`; `None` if the initialization does not change the base. `is_conv1d`: the base
    /// stores `(in, out)`, and PEFT's OLoRA takes the QR decomposition of the stored matrix.
    ///
    /// # Errors
    /// Values that are not finite.
    pub(crate) fn of_tag(
        tag: &InitTag,
        weight: impl FnOnce() -> Result<Tensor<B, 2>>,
        rank: usize,
        scale: f64,
        is_conv1d: bool,
    ) -> Result<Option<Self>> {
        match tag {
            // A randomized SVD of a given number of iterations converges to the exact one; its random numbers are not
            // in the file.
            InitTag::Pissa { .. } => Self::of_weight(Init::Pissa, weight()?, rank, scale, 0).map(Some),
            InitTag::Olora => {
                let weight = weight()?;
                let device = weight.device();
                olora(&to_mat(weight)?, rank, is_conv1d, &device).map(Some)
            }
            InitTag::Plain => Ok(None),
        }
    }
}

/// A pair whose scaled product is the best approximation of the weight.
fn pissa<B: Backend>(
    svd: &lowrank_factor::Svd<f32>,
    rank: usize,
    scale: f64,
    device: &B::Device,
) -> Result<Start<B>> {
    let fit = svd.low_rank(&Truncation::Rank(rank), SigmaPlacement::Split)?.factors;
    if scale <= 0.0 {
        // PEFT divides the singular values by the scale; with a scale of zero there is nothing to subtract.
        let [m, n] = [fit.left().nrows(), fit.right().ncols()];
        let (a, b) = (Tensor::zeros([m, rank], device), Tensor::zeros([rank, n], device));
        return Ok(Start { a, b, is_residual: false });
    }
    let root = scale.sqrt();
    let [a, b] = [fit.left(), fit.right()].map(|m| from_mat::<B>(m, device) / root);
    Ok(Start { a, b, is_residual: false })
}

/// The leading part of a QR decomposition.
fn olora<B: Backend>(
    weight: &Mat<f32>,
    rank: usize,
    as_stored: bool,
    device: &B::Device,
) -> Result<Start<B>> {
    if as_stored {
        let (q, r) = thin_qr(weight.as_ref())?;
        return Ok(Start {
            a: from_mat(q.subcols(0, rank), device),
            b: from_mat(r.subrows(0, rank), device),
            is_residual: false,
        });
    }
    let (q, r) = thin_qr(weight.transpose())?;
    Ok(Start {
        a: from_mat(r.subrows(0, rank).transpose(), device),
        b: from_mat(q.subcols(0, rank).transpose(), device),
        is_residual: false,
    })
}
