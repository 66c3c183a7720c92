//! Layer norm and RMS norm.

use burn::tensor::Tensor;
use rstest::rstest;

use super::{Exact, assert_close, on_backends, random, tensor, tolerance, values};
use crate::kernels::Kernels;
use crate::ops::{layer_norm, rms_norm};
use crate::spec::Dropout;

#[rstest]
fn norms_are_those_of_double_precision(
    #[values([1, 1], [3, 16], [7, 50], [200, 384], [0, 8])] shape: [usize; 2],
    #[values(false, true)] with_residual: bool,
    #[values(None, Some(Dropout { p: 0.3, seed: 5 }))] dropout: Option<Dropout>,
) {
    fn run<B: Kernels>(
        [rows, width]: [usize; 2],
        with_residual: bool,
        dropout: Option<Dropout>,
    ) -> [Vec<f64>; 2] {
        let x = random::<B, 2>([rows, width], 1);
        let residual = with_residual.then(|| random::<B, 2>([rows, width], 2).add_scalar(3.0));
        let (gamma, beta) = (random::<B, 1>([width], 3), random::<B, 1>([width], 4));
        let y = layer_norm(x.clone(), residual, gamma.clone(), Some(beta), 1e-5, dropout);
        [values(y), values(rms_norm(x, gamma, 1e-6))]
    }
    fn check<B: Kernels>(shape: [usize; 2], with_residual: bool, dropout: Option<Dropout>) {
        let got = run::<B>(shape, with_residual, dropout);
        let expected = run::<Exact>(shape, with_residual, dropout);
        // A row of few elements may have a small deviation, by which its rounding errors are divided.
        let close = 40.0 * tolerance(shape[1]);
        assert_close(&got[0], &expected[0], close, "layer norm");
        assert_close(&got[1], &expected[1], close, "RMS norm");
    }
    on_backends!(check(shape, with_residual, dropout));
}

#[test]
fn a_row_of_three_by_hand() {
    fn check<B: Kernels>() {
        let x: Tensor<B, 2> = tensor(vec![1.0, 2.0, 6.0], [1, 3]);
        let gamma: Tensor<B, 1> = tensor(vec![1.0, 1.0, 2.0], [3]);
        let beta: Tensor<B, 1> = tensor(vec![0.0, 0.5, 0.0], [3]);
        // Mean 3, variance (4 + 1 + 9) / 3.
        let deviation = (14.0_f64 / 3.0).sqrt();
        let expected = [-2.0 / deviation, -1.0 / deviation + 0.5, 6.0 / deviation];
        let y = layer_norm(x.clone(), None, gamma.clone(), Some(beta), 0.0, None);
        assert_close(&values(y), &expected, tolerance(3), "layer norm");
        let root = (41.0_f64 / 3.0).sqrt();
        let expected = [1.0 / root, 2.0 / root, 12.0 / root];
        assert_close(&values(rms_norm(x, gamma, 0.0)), &expected, tolerance(3), "RMS norm");
    }
    on_backends!(check());
}

#[test]
fn a_large_mean_costs_no_accuracy() {
    fn check<B: Kernels>() {
        let x: Tensor<B, 2> = tensor((0..64).map(|i| 4096.0 + f64::from(i % 2)).collect(), [1, 64]);
        let ones: Tensor<B, 1> = tensor(vec![1.0; 64], [64]);
        let expected: Vec<f64> = (0..64).map(|i| if i % 2 == 0 { -1.0 } else { 1.0 }).collect();
        let y = layer_norm(x, None, ones, None, 0.0, None);
        assert_close(&values(y), &expected, tolerance(64), "layer norm");
    }
    on_backends!(check());
}
