//! Rotary position embedding composed of burn operations.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{unwrap, wrap};
use crate::spec::RopeSpec;

pub(crate) fn rope<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    spec: RopeSpec,
    inverse: bool,
) -> FloatTensor<B> {
    if spec.rotary_dim == 0 {
        return x;
    }
    let x: Tensor<B, 2> = wrap(x);
    let RopeSpec { n_heads, rotary_dim, interleaved } = spec;
    let [tokens, width] = x.dims();
    let (head_dim, half) = (width / n_heads, rotary_dim / 2);
    let angles = |angles| wrap::<B, 2>(angles).reshape([tokens, 1, half]);
    let (cos, sin) = (angles(cos), angles(sin));
    let sin = if inverse { sin.neg() } else { sin };
    let x = x.reshape([tokens, n_heads, head_dim]);
    let rotary = x.clone().slice([0..tokens, 0..n_heads, 0..rotary_dim]);
    // [tokens, n_heads, half, 2] or [tokens, n_heads, 2, half]
    let (pairs, axis) =
        if interleaved { ([tokens, n_heads, half, 2], 3) } else { ([tokens, n_heads, 2, half], 2) };
    let rotary = rotary.reshape(pairs);
    let [a, b] = [0, 1].map(|i| rotary.clone().narrow(axis, i, 1).reshape([tokens, n_heads, half]));
    let rotated = [a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
    let rotated = Tensor::stack::<4>(rotated.to_vec(), axis).reshape([tokens, n_heads, rotary_dim]);
    let rest = x.slice([0..tokens, 0..n_heads, rotary_dim..head_dim]);
    let y = if rotary_dim == head_dim { rotated } else { Tensor::cat(vec![rotated, rest], 2) };
    unwrap(y.reshape([tokens, width]))
}
