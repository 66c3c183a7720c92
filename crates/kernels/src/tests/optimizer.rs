//! AdamW.

use burn_flex::Flex;
use rstest::rstest;

use burn::tensor::Tensor;

use super::{Exact, assert_close, on_backends, random, tensor, tolerance, values};
use crate::kernels::{AdamWState, AdamWStep, Kernels};
use crate::ops::{adamw_step, adamw_steps, clip_factor};
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

/// More parameters than a launch has: empty ones, of one element, of odd numbers of them, of more than a cube's part.
const LENGTHS: [usize; 12] = [0, 1, 2, 3, 127, 128, 129, 1023, 1024, 1025, 5, 4099];

/// Parameters in turn of the lengths above and of `n_options` rates and decays; every fifth has no gradient.
fn steps<B: Kernels>(count: usize, n_options: usize) -> Vec<AdamWStep<Tensor<B, 1>>> {
    let step = |i: usize| {
        let length = LENGTHS[i % LENGTHS.len()];
        let vector = |seed: usize| random::<B, 1>([length], (4 * i + seed) as u64);
        let state = AdamWState { mean: vector(0), square: vector(1).abs() };
        let kind = (i % n_options) as f64;
        let options = AdamW { lr: 0.1 + 0.01 * kind, weight_decay: 0.02 * kind, ..options(3) };
        AdamWStep { param: vector(2), grad: (i % 5 != 4).then(|| vector(3)), state, options }
    };
    (0..count).map(step).collect()
}

type Updated<B> = Vec<(Tensor<B, 1>, AdamWState<Tensor<B, 1>>)>;

/// One parameter after the other.
fn one_by_one<B: Kernels>(steps: Vec<AdamWStep<Tensor<B, 1>>>, grad_scale: f64) -> Updated<B> {
    let update = |AdamWStep { param, grad, state, options }| {
        let grad: Tensor<B, 1> = grad.unwrap_or_else(|| Tensor::zeros_like(&param));
        adamw_step(param, grad, state, &AdamW { grad_scale, ..options })
    };
    steps.into_iter().map(update).collect()
}

fn all_values<B: Kernels>(updated: Updated<B>) -> Vec<[Vec<f64>; 3]> {
    updated.into_iter().map(|(param, state)| [param, state.mean, state.square].map(values)).collect()
}

#[rstest]
#[case::none(0, 1, None)]
#[case::one(1, 1, None)]
#[case::many(110, 1, Some(0.25))]
#[case::groups(110, 3, None)]
#[case::clipped_groups(60, 4, Some(0.3))]
#[case::more_groups_than_a_launch_has(40, 19, Some(1.0))]
fn many_parameters_have_the_steps_of_each(
    #[case] count: usize,
    #[case] n_options: usize,
    #[case] clip: Option<f64>,
) {
    fn check<B: Kernels>(count: usize, n_options: usize, clip: Option<f64>) {
        let factor = clip.map(|clip| tensor(vec![clip], [1]));
        let got = all_values(adamw_steps(steps::<B>(count, n_options), factor));
        let scale = clip.unwrap_or(1.0);
        let exact = all_values(one_by_one(steps::<Exact>(count, n_options), scale));
        let alone = all_values(one_by_one(steps::<B>(count, n_options), f64::from(scale as f32)));
        assert_eq!(got.len(), count);
        for (i, ((got, exact), alone)) in got.iter().zip(&exact).zip(&alone).enumerate() {
            for ((got, exact), alone) in got.iter().zip(exact).zip(alone) {
                assert_close(got, exact, 10.0 * tolerance(4), &format!("parameter {i}"));
                assert_eq!(got, alone, "parameter {i} alone");
            }
        }
    }
    on_backends!(check(count, n_options, clip));
}

#[test]
fn of_many_parameters_one_that_others_have_is_left_alone() {
    fn check<B: Kernels>() {
        let steps = steps::<B>(3, 1);
        let before = all_values(steps.iter().map(|s| (s.param.clone(), s.state.clone())).collect());
        let moved = all_values(adamw_steps(steps.clone(), None));
        assert_eq!(all_values(steps.into_iter().map(|s| (s.param, s.state)).collect()), before);
        assert!(moved[1..].iter().zip(&before[1..]).all(|(moved, before)| moved[0] != before[0]));
    }
    on_backends!(check());
}

/// More gradients than a launch has, empty ones and one of more than a cube's part among them.
fn grads<B: Kernels>(count: usize) -> Vec<Tensor<B, 1>> {
    let grad = |i: usize| match i {
        7 => random([10_001], 7),
        _ => random([LENGTHS[i % 8]], i as u64),
    };
    (0..count).map(grad).collect()
}

#[rstest]
fn gradients_are_clipped_to_their_joint_norm(
    #[values(1, 4, 8, 350)] count: usize,
    #[values(1e-3, 1.0, 1e6)] max_norm: f64,
) {
    fn check<B: Kernels>(count: usize, max_norm: f64) {
        let norm = grads::<Exact>(count).into_iter().flat_map(values).map(|g| g * g).sum::<f64>().sqrt();
        let expected = (max_norm / (norm + 1e-6)).min(1.0);
        let factor = || clip_factor(grads::<B>(count), max_norm).map(values);
        // Where there is nothing to clip there may be no factor.
        let got = factor().unwrap_or(vec![1.0]);
        let off = (got[0] - expected).abs();
        assert!(got.len() == 1 && off <= 4.0 * tolerance(1) * expected, "{got:?}, expected {expected}");
        assert_eq!(factor().unwrap_or(vec![1.0]), got, "the same each time");
    }
    on_backends!(check(count, max_norm));
}

/// As in `min(1, max_norm / (norm + 1e-6))` with numbers, whose minimum with NaN is the other one.
#[rstest]
#[case::nan(f64::NAN, 1.0)]
#[case::infinite(f64::INFINITY, 0.0)]
#[case::beyond_single_precision(1e30, 0.0)]
#[case::zero(0.0, 1.0)]
fn a_norm_that_is_no_usual_number_has_this_factor(#[case] value: f64, #[case] expected: f64) {
    fn check<B: Kernels>(value: f64, expected: f64) {
        for place in [0, 3, 4_998] {
            let mut long = vec![0.0; 4_999];
            long[place] = value;
            let grads = vec![tensor::<B, 1>(vec![0.0; 3], [3]), tensor(long, [4_999])];
            assert_eq!(clip_factor(grads, 0.5).map(values), Some(vec![expected]), "{value} at {place}");
        }
    }
    on_backends!(check(value, expected));
}

#[test]
fn without_gradients_there_is_nothing_to_clip() {
    fn check<B: Kernels>() {
        assert!(clip_factor::<B>(Vec::new(), 1.0).is_none());
    }
    on_backends!(check());
}

/// An infinite gradient makes its own element not a number and leaves the others to their moments.
#[test]
fn gradients_that_are_not_finite_reach_their_own_elements() {
    fn check<B: Kernels>() {
        let run = |value: f64, clipped: bool| {
            let mut steps = steps::<B>(3, 1);
            steps[2].grad = Some(tensor(vec![0.5, value], [2]));
            let grads = steps.iter().filter_map(|step| step.grad.clone()).collect();
            let clip = clip_factor(grads, 1.0).filter(|_| clipped);
            all_values(adamw_steps(steps, clip))[2].clone()
        };
        for (value, clipped) in [(f64::NAN, true), (f64::NAN, false), (f64::INFINITY, true)] {
            let [param, mean, square] = run(value, clipped);
            assert!(param[0].is_finite() && mean[0].is_finite() && square[0].is_finite(), "{value}");
            assert!(param[1].is_nan() && mean[1].is_nan(), "{value}: {param:?} {mean:?} {square:?}");
        }
    }
    on_backends!(check());
}
