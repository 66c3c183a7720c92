//! Cross-entropy.

use burn::tensor::{Int, Tensor};
use burn_flex::Flex;
use rstest::rstest;

use super::{Exact, assert_close, on_backends, random, tensor, tolerance, values};
use crate::kernels::Kernels;
use crate::ops::{cross_entropy, cross_entropy_sum};

#[rstest]
fn losses_are_those_of_double_precision(#[values([1, 1], [5, 2], [32, 3], [40, 1000])] shape: [usize; 2]) {
    fn run<B: Kernels>([rows, classes]: [usize; 2]) -> Vec<f64> {
        let logits = random::<B, 2>([rows, classes], 1) * 20.0;
        let targets: Vec<i32> = (0..rows).map(|row| (row * 7 % classes) as i32).collect();
        let targets = Tensor::<B, 1, Int>::from_data(targets.as_slice(), &Default::default());
        values(cross_entropy(logits, targets))
    }
    fn check<B: Kernels>(shape: [usize; 2]) {
        assert_close(&run::<B>(shape), &run::<Exact>(shape), tolerance(shape[1]), "loss");
    }
    on_backends!(check(shape));
}

#[test]
fn two_classes_by_hand() {
    fn check<B: Kernels>() {
        let logits: Tensor<B, 2> = tensor(vec![0.0, 0.0, 100.0, -100.0], [2, 2]);
        let targets = Tensor::<B, 1, Int>::from_data([1, 1].as_slice(), &Default::default());
        let expected = (2.0_f64.ln() + 200.0) / 2.0;
        assert_close(&values(cross_entropy(logits, targets)), &[expected], tolerance(2), "loss");
    }
    on_backends!(check());
}

#[test]
#[should_panic(expected = "target 3 of 3 classes")]
fn a_target_past_the_classes_is_named() {
    let logits = random::<Flex, 2>([2, 3], 1);
    cross_entropy(logits, Tensor::from_data([0, 3].as_slice(), &Default::default()));
}

#[test]
fn a_logit_that_is_not_a_number_reaches_the_loss() {
    fn check<B: Kernels>() {
        let mut logits = vec![0.0; 40];
        logits[33] = f64::NAN;
        let targets = Tensor::<B, 1, Int>::from_data([1, 1].as_slice(), &Default::default());
        let loss = cross_entropy(tensor::<B, 2>(logits, [2, 20]), targets);
        assert!(values(loss)[0].is_nan());
    }
    on_backends!(check());
}

#[test]
fn a_weighted_sum_counts_rows_by_their_weights() {
    fn check<B: Kernels>() {
        let row = |row: usize| random::<B, 2>([4, 7], 1).narrow(0, row, 1);
        let target = |class: i32| Tensor::<B, 1, Int>::from_data([class].as_slice(), &Default::default());
        let alone: Vec<f64> = [(0, 3), (1, 6), (3, 0)]
            .map(|(i, class)| values(cross_entropy(row(i), target(class)))[0])
            .to_vec();
        let mut logits = values(random::<B, 2>([4, 7], 1));
        logits[2 * 7 + 1] = f64::NAN;
        let targets = Tensor::<B, 1, Int>::from_data([3, 6, -100, 0].as_slice(), &Default::default());
        let weights = Tensor::<B, 1>::from_data([2.0, 0.25, 0.0, 1.0].as_slice(), &Default::default());
        let sum = cross_entropy_sum(tensor::<B, 2>(logits, [4, 7]), targets, Some(weights));
        assert_close(&values(sum), &[2.0 * alone[0] + 0.25 * alone[1] + alone[2]], tolerance(7), "sum");
    }
    on_backends!(check());
    check::<Exact>();
}
