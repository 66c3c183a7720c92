//! Layer norm and RMS norm composed of burn operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{unwrap, wrap};
use crate::kernels::NormState;
use crate::spec::{Dropout, NormSpec};

pub(crate) fn norm_saving<B: Backend>(
    x: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    gamma: FloatTensor<B>,
    beta: Option<FloatTensor<B>>,
    dropout: Option<Dropout>,
    spec: NormSpec,
) -> (FloatTensor<B>, NormState<FloatTensor<B>>) {
    let x = match dropout {
        Some(dropout) => super::dropout::<B>(x, dropout),
        None => x,
    };
    let mut sum: Tensor<B, 2> = wrap(x);
    if let Some(residual) = residual {
        sum = sum + wrap(residual);
    }
    if spec.centered {
        sum = sum.clone() - sum.mean_dim(1);
    }
    let variance = sum.clone().square().mean_dim(1); // [tokens, 1]
    let inv_std = (variance + spec.eps).sqrt().recip();
    let x_hat = sum * inv_std.clone();
    let mut y = x_hat.clone() * wrap::<B, 1>(gamma).unsqueeze();
    if let Some(beta) = beta {
        y = y + wrap::<B, 1>(beta).unsqueeze();
    }
    (unwrap(y), NormState { x_hat: unwrap(x_hat), inv_std: unwrap(inv_std) })
}

/// With `g = dy ∘ gamma`: `(g - mean(g) - x_hat·mean(g ∘ x_hat)) / std`; an RMS norm has no `mean(g)`.
pub(crate) fn norm_input_grad<B: Backend>(
    dy: FloatTensor<B>,
    state: NormState<FloatTensor<B>>,
    gamma: FloatTensor<B>,
    spec: NormSpec,
) -> FloatTensor<B> {
    let x_hat: Tensor<B, 2> = wrap(state.x_hat);
    let g = wrap::<B, 2>(dy) * wrap::<B, 1>(gamma).unsqueeze();
    let along = (g.clone() * x_hat.clone()).mean_dim(1);
    let mut grad = g.clone() - x_hat * along;
    if spec.centered {
        grad = grad - g.mean_dim(1);
    }
    unwrap(grad * wrap(state.inv_std))
}
