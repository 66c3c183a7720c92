//! The cross-entropy of a head compared with that of its logits.

use burn::tensor::{DType, Element, Int, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use rstest::rstest;

use super::gradients::{Case, check_case, vector};
use super::{Exact, assert_close, on_backends, random, tolerance, values};
use crate::kernels::Kernels;
use crate::ops::{Head, cross_entropy_sum, linear, linear_cross_entropy};
use crate::spec::{Dropout, LoraSpec};

const LORA: LoraSpec = LoraSpec { scale: 1.5, dropout: Some(Dropout { p: 0.2, seed: 3 }) };

/// Some targets; every fifth is -100 if rows may be ignored.
fn targets<B: Kernels>(rows: usize, vocab: usize, with_ignored: bool) -> Tensor<B, 1, Int> {
    let target = |row: usize| if with_ignored && row % 5 == 2 { -100 } else { (row * 7 % vocab) as i32 };
    let targets: Vec<i32> = (0..rows).map(target).collect();
    Tensor::from_data(targets.as_slice(), &Default::default())
}

/// Weights between 0.5 and 2, zero where the target is -100.
fn weights<B: Kernels>(rows: usize) -> Tensor<B, 1> {
    let weights: Vec<f32> =
        (0..rows).map(|row| if row % 5 == 2 { 0.0 } else { 0.5 + (row % 4) as f32 / 2.0 }).collect();
    Tensor::from_data(weights.as_slice(), (&Default::default(), <B::FloatElem as Element>::dtype()))
}

#[derive(Clone, Copy, Debug)]
struct HeadCase {
    rows: usize,
    vocab: usize,
    transposed: bool,
    weighted: bool,
    soft_cap: Option<f32>,
    /// Through [`cross_entropy_sum`] of all logits.
    composed: bool,
}

impl Case for HeadCase {
    fn shapes(&self) -> Vec<[usize; 2]> {
        let Self { rows, vocab, transposed, .. } = *self;
        let w = if transposed { [vocab, 8] } else { [8, vocab] };
        vec![[rows, 8], w, [1, vocab], [8, 3], [3, vocab]]
    }

    fn run<B: Kernels>(&self, arguments: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let Self { rows, vocab, transposed, weighted, soft_cap, composed } = *self;
        let [x, w, bias, a, b]: [_; 5] = arguments.try_into().unwrap();
        let weight = if transposed { w.transpose() } else { w } * 2.0;
        let bias = vector(bias);
        let (targets, weights) = (targets(rows, vocab, weighted), weighted.then(|| weights(rows)));
        if composed {
            let h = linear(crate::ops::dropout(x.clone(), LORA.dropout.unwrap()), a, None) * LORA.scale;
            let mut logits = linear(x, weight, Some(bias)) + linear(h, b, None);
            if let Some(cap) = soft_cap {
                logits = (logits / cap).tanh() * cap;
            }
            return cross_entropy_sum(logits, targets, weights).unsqueeze();
        }
        let head = Head { bias: Some(bias), lora: Some(([a, b], LORA)), soft_cap, ..Head::new(weight) };
        linear_cross_entropy(x, head, targets, weights).unsqueeze()
    }
}

#[rstest]
fn gradients_are_those_of_finite_differences(
    #[values(false, true)] transposed: bool,
    #[values(false, true)] weighted: bool,
    #[values(None, Some(1.5))] soft_cap: Option<f32>,
) {
    check_case(&HeadCase { rows: 7, vocab: 19, transposed, weighted, soft_cap, composed: false });
}

/// Loss and gradients of all arguments.
fn loss_and_gradients<B: Kernels>(case: HeadCase) -> Vec<Vec<f64>> {
    let arguments: Vec<Tensor<Autodiff<B>, 2>> = case
        .shapes()
        .into_iter()
        .enumerate()
        .map(|(i, shape)| random(shape, i as u64 + 1).require_grad())
        .collect();
    let loss = case.run(arguments.clone());
    // An upstream gradient other than one.
    let grads = (loss.clone() * 0.25).backward();
    let mut all = vec![values(loss)];
    all.extend(arguments.iter().map(|argument| values(argument.grad(&grads).unwrap())));
    all
}

/// Small cases, and vocabularies of which one row or more than [`MIN_ROWS`] rows form a chunk.
#[rstest]
#[case(1, 1)]
#[case(40, 100)]
#[case(70, 140_000)]
fn it_equals_the_loss_of_its_logits(
    #[case] rows: usize,
    #[case] vocab: usize,
    #[values(false, true)] transposed: bool,
    #[values(None, Some(3.0))] soft_cap: Option<f32>,
) {
    fn check<B: Kernels>(case: HeadCase) {
        let expected = loss_and_gradients::<B>(HeadCase { composed: true, ..case });
        for (i, (got, expected)) in loss_and_gradients::<B>(case).iter().zip(&expected).enumerate() {
            // The loss is a sum over rows, and the gradients of the factors sums over rows or classes.
            assert_close(got, expected, 8.0 * tolerance(case.rows), &format!("result {i} of {case:?}"));
        }
    }
    for weighted in [false, true] {
        on_backends!(check(HeadCase { rows, vocab, transposed, weighted, soft_cap, composed: false }));
    }
}

#[test]
fn the_composed_default_goes_chunk_by_chunk_as_well() {
    let case = HeadCase {
        rows: 70,
        vocab: 140_000,
        transposed: true,
        weighted: true,
        soft_cap: None,
        composed: false,
    };
    let expected = loss_and_gradients::<Exact>(HeadCase { composed: true, ..case });
    for (got, expected) in loss_and_gradients::<Exact>(case).iter().zip(&expected) {
        assert_close(got, expected, 1e-12, "chunks");
    }
}

#[rstest]
fn half_precision_heads_are_read_as_they_are(
    #[values(DType::F16, DType::BF16)] dtype: DType,
    #[values(false, true)] transposed: bool,
) {
    type B = Autodiff<Flex>;
    let x = random::<B, 2>([30, 24], 1).require_grad();
    let narrow = random::<B, 2>(if transposed { [50, 24] } else { [24, 50] }, 2).cast(dtype);
    let run = |weight: Tensor<B, 2>| {
        let weight = if transposed { weight.transpose() } else { weight };
        let loss = linear_cross_entropy(x.clone(), Head::new(weight), targets(30, 50, false), None);
        (values(loss.clone()), values(x.grad(&loss.backward()).unwrap()))
    };
    assert_eq!(run(narrow.clone()), run(narrow.cast(DType::F32)));
}

#[test]
fn ignored_rows_may_hold_anything() {
    fn check<B: Kernels>() {
        let mut x = values(random::<B, 2>([10, 4], 1));
        x[2 * 4..3 * 4].fill(f64::NAN);
        let x = super::tensor::<Autodiff<B>, 2>(x, [10, 4]).require_grad();
        let w = random::<Autodiff<B>, 2>([4, 6], 2).require_grad();
        let loss =
            linear_cross_entropy(x.clone(), Head::new(w.clone()), targets(10, 6, true), Some(weights(10)));
        let grads = loss.backward();
        assert!(values(loss)[0].is_finite());
        assert!(values(w.grad(&grads).unwrap()).iter().all(|x| x.is_finite()));
        let dx = values(x.grad(&grads).unwrap());
        assert!(dx.iter().enumerate().all(|(i, &x)| if i / 4 % 5 == 2 { x == 0.0 } else { x.is_finite() }));
        // If no row counts, the loss is zero.
        let none = Tensor::<B, 1>::zeros([3], (&Default::default(), <B::FloatElem as Element>::dtype()));
        let loss = linear_cross_entropy(
            random([3, 4], 1),
            Head::new(random([4, 6], 2)),
            targets(3, 6, true),
            Some(none),
        );
        assert_eq!(values::<B, 1>(loss), [0.0]);
    }
    on_backends!(check());
}

#[test]
#[should_panic(expected = "target 6 of 6 classes")]
fn a_target_past_the_vocabulary_is_named() {
    let targets = Tensor::from_data([0, 6].as_slice(), &Default::default());
    linear_cross_entropy(random::<Flex, 2>([2, 4], 1), Head::new(random([4, 6], 2)), targets, None);
}

#[test]
#[should_panic(expected = "linear_cross_entropy: weights has 3 elements, expected 2")]
fn weights_of_other_rows_are_refused() {
    let weights = Some(Tensor::<Flex, 1>::ones([3], &Default::default()));
    linear_cross_entropy(random([2, 4], 1), Head::new(random([4, 6], 2)), targets(2, 6, false), weights);
}
