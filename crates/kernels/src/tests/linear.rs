//! Linear steps and GELU.

use burn::tensor::{DType, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use rstest::rstest;

use super::{Exact, assert_close, on_backends, random, tensor, tolerance, values};
use crate::cpu::simd::Level;
use crate::kernels::{Kernels, LoraWeights};
use crate::ops::{add_lora, gelu, linear, linear_gelu, linear_lora};
use crate::spec::{Dropout, Gelu, LoraSpec};
use crate::weight::Weight;

/// Sizes m, k, n: tiles and panels of all machines, their tails, long sums, nothing at all.
#[rstest]
#[case([1, 1, 1])]
#[case([3, 5, 7])]
#[case([14, 32, 32])]
#[case([15, 33, 31])]
#[case([29, 64, 65])]
#[case([100, 8, 384])]
#[case([100, 384, 8])]
#[case([434, 96, 48])]
#[case([5, 1000, 40])]
#[case([64, 800, 230])]
#[case([500, 3, 500])]
#[case([0, 4, 5])]
#[case([4, 0, 5])]
#[case([4, 5, 0])]
fn products_are_those_of_double_precision(#[case] shape: [usize; 3]) {
    fn check<B: Kernels>([m, k, n]: [usize; 3]) {
        let (x, w, bias) = (random::<B, 2>([m, k], 1), random::<B, 2>([k, n], 2), random::<B, 1>([n], 3));
        let (ex, ew, ebias) =
            (random::<Exact, 2>([m, k], 1), random::<Exact, 2>([k, n], 2), random::<Exact, 1>([n], 3));
        let plain = matmul(&values(ex), &values(ew), [m, k, n]);
        let bias_values = values(ebias);
        let with_bias: Vec<f64> =
            plain.iter().enumerate().map(|(i, y)| y + bias_values[i % n.max(1)]).collect();
        let close = tolerance(k + 1);
        assert_close(&values(linear(x.clone(), w.clone(), None)), &plain, close, "without bias");
        assert_close(&values(linear(x.clone(), w.clone(), Some(bias))), &with_bias, close, "with bias");
        // The other layout of each operand: a transposed view.
        let w_view = tensor::<B, 2>(values(w.transpose()), [n, k]).transpose();
        assert_close(&values(linear(x, w_view, None)), &plain, close, "transposed weights");
    }
    on_backends!(check(shape));
}

fn matmul(a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for p in 0..k {
            for j in 0..n {
                c[i * n + j] += a[i * k + p] * b[p * n + j];
            }
        }
    }
    c
}

#[rstest]
#[case([3, 5, 7])]
#[case([33, 17, 50])]
#[case([434, 96, 48])]
#[case([0, 4, 5])]
fn gradients_are_products_with_transposes(#[case] shape: [usize; 3]) {
    fn check<B: Kernels>([m, k, n]: [usize; 3]) {
        let (x, w, dy) = (random::<B, 2>([m, k], 1), random::<B, 2>([k, n], 2), random::<B, 2>([m, n], 3));
        let primitive = |tensor: &Tensor<B, 2>| tensor.clone().into_primitive().tensor();
        let dx = B::linear_input_grad(primitive(&dy), Weight::Float(primitive(&w)));
        let dw = B::linear_weight_grad(primitive(&x), primitive(&dy));
        let db = B::sum_rows(primitive(&dy));
        let wrap = |tensor| Tensor::<B, 2>::from_primitive(burn::tensor::TensorPrimitive::Float(tensor));
        let (ex, ew, edy) =
            (random::<Exact, 2>([m, k], 1), random::<Exact, 2>([k, n], 2), random::<Exact, 2>([m, n], 3));
        let expected = matmul(&values(edy.clone()), &values(ew.transpose()), [m, n, k]);
        assert_close(&values(wrap(dx)), &expected, tolerance(n), "input");
        let expected = matmul(&values(ex.transpose()), &values(edy.clone()), [k, m, n]);
        assert_close(&values(wrap(dw)), &expected, tolerance(m), "weight");
        let db: Tensor<B, 1> = Tensor::from_primitive(burn::tensor::TensorPrimitive::Float(db));
        let dy = values(edy);
        let expected: Vec<f64> = (0..n).map(|j| (0..m).map(|i| dy[i * n + j]).sum()).collect();
        assert_close(&values(db), &expected, tolerance(m), "bias");
    }
    on_backends!(check(shape));
}

#[test]
fn views_are_read_where_they_begin() {
    fn check<B: Kernels>() {
        let x = random::<B, 2>([20, 12], 1);
        let w = random::<B, 2>([30, 9], 2);
        let (part_x, part_w) = (x.slice([3..17, 0..12]), w.slice([5..17, 0..9]));
        let expected = matmul(&values(part_x.clone()), &values(part_w.clone()), [14, 12, 9]);
        assert_close(&values(linear(part_x, part_w, None)), &expected, tolerance(12), "row slices");
        let wide = random::<B, 2>([6, 40], 3);
        let part = wide.slice([0..6, 10..22]);
        let w = random::<B, 2>([12, 5], 4);
        let expected = matmul(&values(part.clone()), &values(w.clone()), [6, 12, 5]);
        assert_close(&values(linear(part, w, None)), &expected, tolerance(12), "column slice");
    }
    on_backends!(check());
}

#[rstest]
#[case(DType::F16)]
#[case(DType::BF16)]
fn half_precision_weights_are_widened(#[case] dtype: DType, #[values(1, 3, 40)] m: usize) {
    let x = random::<Flex, 2>([m, 50], 1);
    let w = random::<Flex, 2>([50, 37], 2).cast(dtype);
    let widened = w.clone().cast(DType::F32);
    let expected = values(linear(x.clone(), widened.clone(), None));
    assert_eq!(values(linear(x.clone(), w.clone(), None)), expected);
    let transposed = widened.transpose().clone();
    let y = random::<Flex, 2>([m, 37], 3);
    let expected = values(linear(y.clone(), transposed, None));
    assert_eq!(values(linear(y, w.transpose(), None)), expected);
}

/// Few rows go another way than many, and add up in the same order.
#[rstest]
fn a_row_gives_the_same_bits_among_few_and_many(
    #[values(DType::F32, DType::F16, DType::BF16)] dtype: DType,
    #[values([16, 16], [70, 37], [9, 40], [64, 3], [1, 1], [400, 300])] shape: [usize; 2],
) {
    let [k, n] = shape;
    for transposed in [false, true] {
        let w = random::<Flex, 2>(if transposed { [n, k] } else { [k, n] }, 2).cast(dtype);
        let w = if transposed { w.transpose() } else { w };
        let (x, bias) = (random::<Flex, 2>([20, k], 1), random::<Flex, 1>([n], 3));
        let many = values(linear(x.clone(), w.clone(), Some(bias.clone())));
        for m in 1..=4 {
            for level in Level::available() {
                level.set();
                let few = linear(x.clone().narrow(0, 0, m), w.clone(), Some(bias.clone()));
                assert_eq!(values(few), many[..m * n], "{level:?}, {m} rows, transposed: {transposed}");
            }
        }
    }
}

/// The fused step over a half-precision base is that over the widened one, to the bit, forward and backward.
#[rstest]
fn a_step_with_an_adapter_reads_half_precision_bases_as_they_are(
    #[values(DType::F16, DType::BF16)] dtype: DType,
    #[values(false, true)] transposed: bool,
    #[values(2, 40)] m: usize,
    #[values(None, Some(Dropout { p: 0.2, seed: 3 }))] dropout: Option<Dropout>,
) {
    type B = Autodiff<Flex>;
    let x = random::<B, 2>([m, 50], 1).require_grad();
    let narrow = random::<B, 2>(if transposed { [37, 50] } else { [50, 37] }, 2).cast(dtype);
    let [a, b] = [random::<B, 2>([50, 4], 3).require_grad(), random::<B, 2>([4, 37], 4).require_grad()];
    let bias = random::<B, 1>([37], 5);
    let run = |w: Tensor<B, 2>| {
        let w = if transposed { w.transpose() } else { w };
        let weights = LoraWeights { w, a: a.clone(), b: b.clone() };
        let y = linear_lora(x.clone(), weights, Some(bias.clone()), LoraSpec { scale: 1.5, dropout });
        let grads = (y.clone() * random(y.dims(), 6)).backward();
        let mut all = vec![values(y)];
        all.extend([&x, &a, &b].map(|tensor| values(tensor.grad(&grads).unwrap())));
        all
    };
    assert_eq!(run(narrow.clone()), run(narrow.cast(DType::F32)));
}

#[test]
fn an_adapter_is_added_in_place() {
    let x = random::<Flex, 2>([30, 20], 1);
    let y = linear(x.clone(), random([20, 50], 2), None);
    let before = values(y.clone());
    let factors = [random([20, 4], 3), random([4, 50], 4)];
    let spec = LoraSpec { scale: 0.5, dropout: None };
    let delta = values(linear(linear(x.clone(), factors[0].clone(), None), factors[1].clone(), None));
    let expected: Vec<f64> = before.iter().zip(&delta).map(|(y, delta)| y + 0.5 * delta).collect();
    // While another handle exists, its data stay as they were.
    let sum = add_lora(y.clone(), x.clone(), factors.clone(), spec);
    assert_close(&values(sum), &expected, tolerance(24), "sum");
    assert_eq!(values(y.clone()), before);
    let place = |tensor: &Tensor<Flex, 2>| tensor.clone().into_primitive().tensor().storage::<f32>().as_ptr();
    let at = place(&y);
    assert_eq!(place(&add_lora(y, x, factors, spec)), at);
}

#[rstest]
fn gelu_is_that_of_double_precision(#[values(Gelu::Erf, Gelu::Tanh)] kind: Gelu) {
    fn check<B: Kernels>(kind: Gelu) {
        let x: Tensor<B, 2> = tensor((-1000..1000).map(|i| f64::from(i) * 0.007).collect(), [40, 50]);
        let exact: Tensor<Exact, 2> = tensor(values(x.clone()), [40, 50]);
        let expected = values(gelu(exact, kind));
        // Two roundings of a number below 7, beside the error of 2e-7 that is allowed to the function.
        for (got, (expected, x)) in values(gelu(x.clone(), kind)).iter().zip(expected.iter().zip(values(x))) {
            let allowed = 2e-7 * x.abs().max(1.0);
            assert!((got - expected).abs() <= allowed, "gelu({x}) is {got}, expected {expected}");
        }
    }
    on_backends!(check(kind));
}

/// Fusing changes no bit, but on GPUs, whose compilers contract sums of products as they like.
#[rstest]
fn fused_gelu_equals_its_parts(
    #[values(Gelu::Erf, Gelu::Tanh)] kind: Gelu,
    #[values([1, 8, 5], [50, 40, 70], [434, 96, 192])] shape: [usize; 3],
) {
    fn check<B: Kernels>([m, k, n]: [usize; 3], kind: Gelu) {
        let (x, w, bias) = (random::<B, 2>([m, k], 1), random::<B, 2>([k, n], 2), random::<B, 1>([n], 3));
        let parts = gelu(linear(x.clone(), w.clone(), Some(bias.clone())), kind);
        let fused = linear_gelu(x.clone(), w.clone(), Some(bias.clone()), kind);
        let equal = |got: Vec<f64>, expected: Vec<f64>| match cfg!(any(
            feature = "cuda",
            feature = "vulkan",
            feature = "metal"
        )) {
            true => assert_close(&got, &expected, tolerance(k), "fused"),
            false => assert_eq!(got, expected),
        };
        equal(values(parts.clone()), values(fused));
        let primitive = |tensor: Tensor<B, 2>| tensor.into_primitive().tensor();
        let bias = bias.into_primitive().tensor();
        let (y, slope) = B::linear_gelu_saving(
            primitive(x.clone()),
            Weight::Float(primitive(w.clone())),
            Some(bias.clone()),
            kind,
        );
        let wrap = |tensor| Tensor::<B, 2>::from_primitive(burn::tensor::TensorPrimitive::Float(tensor));
        equal(values(parts), values(wrap(y)));
        let linear = B::linear_forward(primitive(x), Weight::Float(primitive(w)), Some(bias));
        equal(values(wrap(B::gelu_saving(linear, kind).1)), values(wrap(slope)));
    }
    on_backends!(check(shape, kind));
}
