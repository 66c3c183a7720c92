//! AdamW.

use burn_flex::Flex;
use rstest::rstest;

use super::{Exact, assert_close, on_backends, random, tolerance, values};
use crate::kernels::{AdamWState, Kernels};
use crate::ops::adamw_step;
use crate::spec::AdamW;

fn options(step: usize) -> AdamW {
    AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.02, grad_scale: 1.0, step }
}

/// A few steps with different gradients.
fn run<B: Kernels>(shape: [usize; 2]) -> [Vec<f64>; 3] {
    let zeros = || random::<B, 2>(shape, 1) * 0.0;
    let mut param = random::<B, 2>(shape, 1);
    let mut state = AdamWState { mean: zeros(), square: zeros() };
    for step in 1..=4 {
        let grad = random(shape, 10 + step as u64);
        (param, state) = adamw_step(param, grad, state, &options(step));
    }
    [param, state.mean, state.square].map(values)
}

#[rstest]
fn steps_are_those_of_double_precision(#[values([1, 1], [3, 7], [16, 16], [300, 100])] shape: [usize; 2]) {
    fn check<B: Kernels>(shape: [usize; 2]) {
        for (got, expected) in run::<B>(shape).iter().zip(&run::<Exact>(shape)) {
            // A gradient near zero is divided by a root that has its rounding errors.
            assert_close(got, expected, 10.0 * tolerance(4), "step");
        }
    }
    on_backends!(check(shape));
}

/// After bias correction the first moments are the gradient and its square, so that the step is `lr`.
#[test]
fn the_first_step_by_hand() {
    fn check<B: Kernels>() {
        let param = super::tensor::<B, 1>(vec![2.0, -1.0], [2]);
        let grad = super::tensor(vec![4.0, -0.5], [2]);
        let zeros = || super::tensor(vec![0.0, 0.0], [2]);
        let state = AdamWState { mean: zeros(), square: zeros() };
        let (param, state) = adamw_step(param, grad, state, &options(1));
        let keep = 1.0 - 0.1 * 0.02;
        assert_close(&values(param), &[2.0 * keep - 0.1, -keep + 0.1], tolerance(4), "parameter");
        assert_close(&values(state.mean), &[0.4, -0.05], tolerance(1), "mean");
        assert_close(&values(state.square), &[0.016, 0.00025], tolerance(1), "square");
    }
    on_backends!(check());
}

/// A scaled gradient is equivalent to a gradient of that size.
#[test]
fn gradients_are_scaled() {
    fn check<B: Kernels>() {
        let zeros = || random::<B, 2>([40, 50], 1) * 0.0;
        let step = |grad, grad_scale| {
            let state = AdamWState { mean: zeros(), square: zeros() };
            let (_, state) = adamw_step(zeros(), grad, state, &AdamW { grad_scale, ..options(1) });
            [values(state.mean), values(state.square)]
        };
        let (got, expected) = (step(random([40, 50], 2), 0.25), step(random([40, 50], 2) * 0.25, 1.0));
        for (got, expected) in got.iter().zip(&expected) {
            assert_close(got, expected, tolerance(2), "scaled");
        }
    }
    on_backends!(check());
}

#[test]
fn a_parameter_that_others_have_is_left_alone() {
    fn check<B: Kernels>() {
        let param = random::<B, 2>([5, 9], 1);
        let before = values(param.clone());
        let state = AdamWState { mean: param.clone() * 0.0, square: param.clone() * 0.0 };
        let (moved, _) = adamw_step(param.clone(), param.clone(), state, &options(1));
        assert_eq!(values(param), before);
        assert_ne!(values(moved), before);
    }
    on_backends!(check());
}

#[test]
fn a_view_is_updated_alone() {
    let whole = random::<Flex, 2>([10, 4], 1);
    let before = values(whole.clone());
    let part = whole.clone().slice([2..5, 0..4]);
    let state = AdamWState { mean: part.zeros_like(), square: part.zeros_like() };
    let (moved, _) = adamw_step(part.clone(), part.ones_like(), state, &options(1));
    assert_eq!(values(whole), before);
    let keep = 1.0 - 0.1 * 0.02;
    let expected: Vec<f64> = before[8..20].iter().map(|x| x * keep - 0.1).collect();
    assert_close(&values(moved), &expected, tolerance(4), "part");
}
