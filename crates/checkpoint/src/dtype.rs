//! Element types and tensor descriptions.

use std::{fmt, str::FromStr};

use lowrank_spec::BlockFormat;

/// The element type of a stored tensor, always little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Signed, 64 bits.
    I64,
    /// Signed, 32 bits.
    I32,
    /// Signed, 16 bits.
    I16,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 64 bits.
    U64,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 8 bits.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// Quantized blocks along the last dimension, which is a multiple of a block's length.
    Block(BlockFormat),
}

impl Dtype {
    /// Elements of the smallest unit stored in whole bytes: 1, or a block's length.
    #[must_use]
    pub(crate) const fn unit_len(self) -> usize {
        match self {
            Self::Block(format) => format.block_len(),
            _ => 1,
        }
    }

    /// Bytes of a unit: an element, or a block.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Block(format) => format.block_bytes(),
        }
    }

    /// Whether elements are real numbers: a floating-point type, or blocks.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::Block(_))
    }

    /// The name in a safetensors header (`F32`, `BF16`, `BOOL`, …); llama.cpp's name for blocks, which
    /// safetensors files cannot contain.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Block(format) => format.name(),
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        const ALL: [Dtype; 13] = [
            Dtype::F64,
            Dtype::F32,
            Dtype::F16,
            Dtype::BF16,
            Dtype::I64,
            Dtype::I32,
            Dtype::I16,
            Dtype::I8,
            Dtype::U64,
            Dtype::U32,
            Dtype::U16,
            Dtype::U8,
            Dtype::Bool,
        ];
        ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The types in which weights are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE binary32, exact.
    #[default]
    F32,
    /// IEEE binary16, rounded to nearest even; larger than 65,504 is an error.
    F16,
    /// bfloat16, rounded to nearest even.
    BF16,
}

impl FloatType {
    /// The name on the command line: `f32`, `f16`, `bf16`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

impl From<FloatType> for Dtype {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::BF16 => Self::BF16,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FloatType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::F32, Self::F16, Self::BF16]
            .into_iter()
            .find(|float| float.name() == name)
            .ok_or_else(|| format!("unknown float type '{name}'; choose f32, f16 or bf16"))
    }
}

/// Shape and element type of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorInfo {
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
}

impl TensorInfo {
    /// The number of elements. Every tensor of an open [`Checkpoint`](crate::Checkpoint) has passed the check
    /// that this does not overflow; for others it saturates.
    #[must_use]
    pub fn numel(&self) -> usize {
        numel(&self.shape).unwrap_or(usize::MAX)
    }

    /// The number of bytes that the elements take in a file.
    #[must_use]
    pub fn byte_size(&self) -> usize {
        (self.numel() / self.dtype.unit_len()).saturating_mul(self.dtype.size())
    }
}

/// Largest number of dimensions, PyTorch's; a hostile header may have millions.
const MAX_DIMS: usize = 64;

/// The product of the dimensions, or `None` if it overflows or they are more than any tensor has. A zero anywhere makes it
/// zero, whatever the rest.
pub(crate) fn numel(shape: &[usize]) -> Option<usize> {
    if shape.len() > MAX_DIMS {
        return None;
    }
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

/// The bytes of a contiguous tensor, or `None` if the product overflows.
pub(crate) fn byte_size(shape: &[usize], dtype: Dtype) -> Option<usize> {
    (numel(shape)? / dtype.unit_len()).checked_mul(dtype.size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_overflow_are_seen() {
        assert_eq!(numel(&[]), Some(1));
        assert_eq!(numel(&[2, 3]), Some(6));
        assert_eq!(numel(&[usize::MAX, 2]), None);
        assert_eq!((numel(&[1; 64]), numel(&[1; 65])), (Some(1), None));
        assert_eq!(numel(&[usize::MAX, 2, 0]), Some(0));
        assert_eq!(byte_size(&[usize::MAX / 4], Dtype::F64), None);
    }

    #[test]
    fn names_go_both_ways() {
        for name in
            ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"]
        {
            assert_eq!(Dtype::from_name(name).map(Dtype::name), Some(name));
        }
        assert_eq!(Dtype::from_name("F8_E4M3"), None);
        assert_eq!("bf16".parse(), Ok(FloatType::BF16));
        assert!("fp16".parse::<FloatType>().is_err());
    }
}
