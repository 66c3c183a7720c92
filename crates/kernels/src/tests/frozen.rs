//! The state that a forward pass saves: only what the gradients of its tracked arguments need.
//!
//! A tensor of the Flex backend knows whether its data are shared.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use burn_flex::{Flex, FlexTensor};

use super::random;
use crate::ops::{attention, dropout, layer_norm, linear, linear_gelu, sink_attention};
use crate::spec::{AttentionSpec, Dropout, Gelu};

type B = Autodiff<Flex>;

/// A tensor, and a second handle to its data.
fn held<const D: usize>(shape: [usize; D], seed: u64, tracked: bool) -> (Tensor<B, D>, FlexTensor) {
    let tensor = random::<B, D>(shape, seed).set_require_grad(tracked);
    let data = tensor.clone().inner().into_primitive().tensor();
    (tensor, data)
}

#[test]
fn a_linear_step_with_a_frozen_weight_lets_go_of_its_input() {
    let (x, x_data) = held([4, 8], 1, true);
    let (w, w_data) = held([8, 8], 2, false);
    let y = linear(x.clone() * 1.0, w, None);
    let (inner, inner_data) = {
        let inner = x * 2.0;
        let data = inner.clone().inner().into_primitive().tensor();
        (inner, data)
    };
    let (w2, _) = held([8, 8], 3, false);
    let z = linear(inner, w2, None);
    assert!(inner_data.is_unique(), "the input is kept for no gradient");
    assert!(!w_data.is_unique(), "the weight is needed for the input's gradient");
    drop((y, z, x_data));
}

#[test]
fn a_trained_weight_keeps_the_input_alone() {
    let (x, x_data) = held([4, 8], 1, false);
    let (w, w_data) = held([8, 8], 2, true);
    let (bias, _) = held([8], 3, true);
    let y = linear(x, w, Some(bias));
    assert!(!x_data.is_unique());
    assert!(w_data.is_unique(), "the weight is kept for no gradient");
    drop(y);
}

#[test]
fn a_bias_alone_keeps_neither() {
    let (x, x_data) = held([4, 8], 1, false);
    let (w, w_data) = held([8, 8], 2, false);
    let (bias, _) = held([8], 3, true);
    let y = linear(x, w, Some(bias));
    assert!(x_data.is_unique() && w_data.is_unique());
    drop(y);
}

#[test]
fn nothing_tracked_keeps_nothing() {
    let (x, x_data) = held([4, 8], 1, false);
    let (w, w_data) = held([8, 8], 2, false);
    let (gamma, gamma_data) = held([8], 3, false);
    let (q, q_data) = held([4, 8], 4, false);
    let y = linear_gelu(x, w, None, Gelu::Erf);
    let y_data = y.clone().inner().into_primitive().tensor();
    let z = layer_norm(y, None, gamma, None, 1e-5, Some(Dropout { p: 0.1, seed: 1 }));
    let z_data = z.clone().inner().into_primitive().tensor();
    let spec = AttentionSpec::encoder([4], 2, 4);
    let a = attention(q, z.clone(), dropout(z, Dropout { p: 0.1, seed: 1 }), &spec);
    assert!([x_data, w_data, gamma_data, q_data, y_data, z_data].iter().all(FlexTensor::is_unique));
    drop(a);
}

#[test]
fn a_fused_gelu_over_a_frozen_weight_keeps_neither_input_nor_output() {
    let (x, _) = held([4, 8], 1, true);
    let inner = x * 2.0;
    let inner_data = inner.clone().inner().into_primitive().tensor();
    let (w, _) = held([8, 8], 2, false);
    let y = linear_gelu(inner, w, None, Gelu::Erf);
    let y_data = y.clone().inner().into_primitive().tensor();
    let (w2, _) = held([8, 8], 3, false);
    let z = linear(y, w2, None);
    assert!(inner_data.is_unique() && y_data.is_unique());
    drop(z);
}

#[test]
fn a_norm_keeps_neither_its_input_nor_its_output() {
    let (x, _) = held([4, 8], 1, true);
    let inner = x.clone() * 2.0;
    let inner_data = inner.clone().inner().into_primitive().tensor();
    let (gamma, _) = held([8], 2, false);
    let y = layer_norm(inner, Some(x * 3.0), gamma, None, 1e-5, None);
    let y_data = y.clone().inner().into_primitive().tensor();
    let (w, _) = held([8, 8], 3, false);
    let z = linear(y, w, None);
    assert!(inner_data.is_unique() && y_data.is_unique());
    drop(z);
}

#[test]
fn an_attention_keeps_what_its_sinks_or_its_other_arguments_need() {
    let spec = AttentionSpec::encoder([4], 2, 4);
    for (q_tracked, sinks_tracked) in [(false, false), (false, true), (true, false)] {
        let (q, q_data) = held([4, 8], 1, q_tracked);
        let (k, k_data) = held([4, 8], 2, false);
        let (v, v_data) = held([4, 8], 3, false);
        let (sinks, sinks_data) = held([2], 4, sinks_tracked);
        let y = sink_attention(q, k, v, sinks, &spec);
        let let_go = [q_data, k_data, v_data].map(|data| data.is_unique());
        assert_eq!(let_go, [!q_tracked; 3]);
        assert_eq!(sinks_data.is_unique(), !sinks_tracked);
        drop(y);
    }
}
