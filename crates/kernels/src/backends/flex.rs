//! Flex: the CPU kernels.

use burn_flex::Flex;

use crate::kernels::Kernels;

impl Kernels for Flex {}
