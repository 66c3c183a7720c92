//! The type in which a GPU multiplies matrices.

use std::sync::atomic::{AtomicU8, Ordering};

use burn::tensor::DType;

/// The type to which a GPU rounds the factors of linear steps; sums and results are in f32.
///
/// Products of up to 8 rows with an f32 weight, for which rounding the weight would take as long, stay in f32.
///
/// It is one for the whole process, like PyTorch's `set_float32_matmul_precision`. CPUs multiply in f32 whatever is
/// chosen. Gradients are below the range of f16, so that products of the backward pass stay in f32 there; in bf16 they
/// are rounded like those of the forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Half precision: 11 significant bits, up to 65,504.
    F16,
    /// 8 significant bits, the range of f32.
    Bf16,
}

static CHOSEN: AtomicU8 = AtomicU8::new(Precision::F32 as u8);

impl Precision {
    /// The process's choice.
    pub fn chosen() -> Self {
        [Self::F16, Self::Bf16]
            .into_iter()
            .find(|&precision| precision as u8 == CHOSEN.load(Ordering::Relaxed))
            .unwrap_or_default()
    }

    /// Makes this the choice for all products that begin from now on. Devices without the type multiply in f32.
    pub fn choose(self) {
        CHOSEN.store(self as u8, Ordering::Relaxed);
    }

    /// `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of the factors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The precision of the backward pass.
    pub fn of_gradients(self) -> Self {
        if self == Self::F16 { Self::F32 } else { self }
    }
}
