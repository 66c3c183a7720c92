//! The methods and their names.

use std::str::FromStr;

/// Method of factoring weights.
///
/// | Name | Minimizes | Needs |
/// |---|---|---|
/// | `svd` | `‖ΔW‖` (Eckart–Young 1936) | nothing |
/// | `asvd` | `‖ΔW·diag(s)‖`, `s = (mean ∣x∣)^½` (ASVD, Yuan et al. 2023) | calibration text |
/// | `whitened` | `Σ‖ΔW·x‖²` over inputs `x`, exactly (as SVD-LLM, Wang et al. 2024, without its Cholesky factor) | calibration text |
/// | `two-sided` | `‖B^½·ΔW·A^½‖`, `A = E[x·xᵀ]` of inputs, `B = E[g·gᵀ]` of the loss's gradients by outputs, both shrunk | a language model's text, or a task |
/// | `fwsvd` | `‖ΔW·diag(s)‖`, `s² = Σ_out (∂L/∂W)²` (FWSVD, Hsu et al. 2022) | a task |
/// | `shared` | `Σ_s‖ΔW_s‖²` with factors shared by the layers of a kind (LoTR on the weights) | nothing |
/// | `tt` | `‖ΔW‖` in tensor-train form (Oseledets 2011) | nothing |
/// | `auto` | for each weight whichever of low rank and tensor train loses least; to a number of bytes, the block format and the rank of a correction | calibration text, if given |
/// | `quant` | the weighted squared error in blocks of few bits | nothing; calibration text gives the weights |
/// | `quant+lowrank` | `‖(W − Q − A·B)·E[x·xᵀ]^½‖`, `Q` in blocks (QERA, Zhang et al. 2024) | calibration text, if given |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Truncated SVD.
    Svd,
    /// Weighted by the magnitudes of the inputs.
    Asvd,
    /// Weighted by the inputs.
    Whitened,
    /// Weighted by the inputs and by the gradients of the loss with respect to the outputs.
    TwoSided,
    /// Weighted by Fisher information.
    Fwsvd,
    /// Factors shared by the layers of a kind.
    Shared,
    /// Tensor train.
    Tt,
    /// The best form for each weight.
    Auto,
    /// Quantized blocks.
    Quant,
    /// Quantized blocks with a low-rank correction.
    QuantLowRank,
}

impl Method {
    /// All methods, by their names on the command line.
    pub const NAMES: [(&'static str, Self); 10] = [
        ("svd", Self::Svd),
        ("whitened", Self::Whitened),
        ("two-sided", Self::TwoSided),
        ("asvd", Self::Asvd),
        ("fwsvd", Self::Fwsvd),
        ("shared", Self::Shared),
        ("tt", Self::Tt),
        ("auto", Self::Auto),
        ("quant", Self::Quant),
        ("quant+lowrank", Self::QuantLowRank),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, method)| *method == self).map_or("", |(name, _)| name)
    }

    /// Whether it requires the statistics of inputs.
    pub const fn needs_inputs(self) -> bool {
        matches!(self, Self::Asvd | Self::Whitened)
    }

    /// Whether it weights by gradients of a loss.
    pub const fn needs_gradients(self) -> bool {
        matches!(self, Self::Fwsvd | Self::TwoSided)
    }

    /// Whether it uses the statistics of inputs if they are given.
    pub const fn uses_inputs(self) -> bool {
        matches!(self, Self::Asvd | Self::Whitened | Self::Auto | Self::Quant | Self::QuantLowRank)
    }

    /// Whether weights are rounded to quantized blocks, alone or with a correction.
    pub const fn is_quant(self) -> bool {
        matches!(self, Self::Quant | Self::QuantLowRank)
    }

    /// Whether every weight becomes two factors that are not shared.
    pub(crate) const fn is_low_rank(self) -> bool {
        matches!(self, Self::Svd | Self::Asvd | Self::Whitened | Self::TwoSided | Self::Fwsvd)
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::NAMES.map(|(name, _)| name).join(", ");
        let found = Self::NAMES.iter().find(|(n, _)| *n == name);
        found.map(|(_, method)| *method).ok_or_else(|| format!("unknown method '{name}'; choose {}", known()))
    }
}

/// The sides shared by the layers of a kind under [`Method::Shared`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sides {
    /// The sides with the least loss.
    #[default]
    Best,
    /// One side: input or output.
    One,
    /// Both sides, with a core for each layer.
    Both,
}

impl FromStr for Sides {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "best" => Ok(Self::Best),
            "one" => Ok(Self::One),
            "both" => Ok(Self::Both),
            _ => Err(format!("unknown sides '{name}'; choose best, one or both")),
        }
    }
}
