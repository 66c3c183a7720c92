//! DoRA (Liu et al. 2024, arXiv:2402.09353): the columns of `W + ΔW`, of norm 1, times a trained magnitude.

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{Dropout, Kernels, dropout};

use crate::forward::{BaseLinear, low_rank};
use crate::set::Pair;

/// The magnitudes of one site.
#[derive(Module, Debug)]
pub struct Magnitude<B: Backend> {
    /// Shape `[d_output]`.
    pub value: Param<Tensor<B, 1>>,
    /// Squared norms of the columns of the frozen `W`, shape `[d_output]`.
    pub base_norms: Tensor<B, 1>,
}

/// Squared norms of the columns, `[d_input, d_output]` → `[d_output]`.
fn squared_norms<B: Backend>(weight: Tensor<B, 2>) -> Tensor<B, 1> {
    let [_, d_output] = weight.dims();
    weight.clone().mul(weight).sum_dim(0).reshape([d_output])
}

impl<B: Backend> Magnitude<B> {
    /// Magnitudes at the norms of `weight`'s columns, so that nothing changes.
    ///
    /// # Shapes
    /// - `weight`: `[d_input, d_output]`
    pub fn of_weight(weight: Tensor<B, 2>) -> Self {
        let base_norms = squared_norms(weight);
        Self { value: Param::from_tensor(base_norms.clone().sqrt()), base_norms }
    }

    /// `m / ‖column‖` from the squared norms of the columns. A zero column has no direction, and stays zero.
    fn scales(&self, squared_norms: Tensor<B, 1>) -> Tensor<B, 1> {
        let is_zero = squared_norms.clone().lower_equal_elem(f32::MIN_POSITIVE);
        let ratio = self.value.val() / squared_norms.clamp_min(f32::MIN_POSITIVE).sqrt();
        ratio.mask_fill(is_zero, 0.0)
    }

    /// The change of a weight by magnitudes and an update `[d_input, d_output]`.
    pub(super) fn change(&self, weight: &Tensor<B, 2>, delta: Tensor<B, 2>) -> Tensor<B, 2> {
        let full = weight.clone() + delta;
        let scales = self.scales(squared_norms(full.clone()));
        full * scales.unsqueeze() - weight.clone()
    }
}

impl<B: Kernels> Magnitude<B> {
    /// `m / ‖W + ΔW‖` of each column; the norm is a constant in the gradient, as in the paper.
    ///
    /// `through_base` multiplies rows by `W`: the norms come from `AᵀW` and `AᵀA`, never from `W + A·B`.
    pub(super) fn ratio(
        &self,
        pair: &Pair<B>,
        through_base: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 1> {
        let [d_output] = self.value.dims();
        let a = (pair.a.clone() * pair.scale).detach();
        let b = pair.b.clone().detach();
        let at = a.clone().transpose(); // [rank, d_input]
        let cross = through_base(at.clone()) * b.clone() * 2.0; // [rank, d_output]
        let square = at.matmul(a).matmul(b.clone()) * b; // [rank, d_output]
        let update = (cross + square).sum_dim(0).reshape([d_output]);
        self.scales((self.base_norms.clone() + update).detach())
    }

    /// `m/‖W + ΔW‖ ∘ (x·W + scale·(x·A)·B) + bias`. In training, dropout applies to all inputs except that of
    /// the base's own output, as in PEFT.
    pub(super) fn forward(
        &self,
        pair: Pair<B>,
        x: Tensor<B, 2>,
        base: &dyn BaseLinear<B>,
        drop: Option<Dropout>,
    ) -> Tensor<B, 2> {
        let ratio = self.ratio(&pair, |at| base.apply_exact(at)).unsqueeze(); // [1, d_output]
        let Some(drop) = drop else {
            let y = low_rank(pair, x, base, false, None) * ratio;
            return match base.bias() {
                Some(bias) => y + bias.unsqueeze(),
                None => y,
            };
        };
        let through = dropout(x.clone(), drop);
        let directed = low_rank(pair, through.clone(), base, false, None) * ratio;
        base.apply(x, true) + directed - base.apply(through, false)
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;
    use crate::host::host_values;

    /// A zero column in the base trains, merges and stays zero.
    #[test]
    fn a_column_of_zeros_has_no_direction() {
        let device = Default::default();
        let weight = Tensor::<Flex, 2>::from_floats([[3.0, 0.0], [4.0, 0.0]], &device);
        let magnitude = Magnitude::of_weight(weight.clone());
        let change = host_values(magnitude.change(&weight, weight.zeros_like()));
        assert!(change.iter().all(|v| v.abs() < 1e-6), "{change:?}");
    }
}
