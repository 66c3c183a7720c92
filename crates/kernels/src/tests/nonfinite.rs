//! NaNs of any payload and infinities: the results of every step with its own arithmetic.

use burn::tensor::{Element, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;

use super::{on_backends, random, values};
use crate::kernels::Kernels;
use crate::ops::{attention, cross_entropy, gated, gelu, layer_norm, linear_gelu, rms_norm};
use crate::spec::{AttentionSpec, Gate, Gelu};

/// The default NaNs of x86 and CUDA, signalling ones, and others.
const NANS: [u32; 7] =
    [0x7fc0_0000, 0xffc0_0000, 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0xff80_0001, 0x7fd5_5555];

/// `rows × 20` numbers with one of these bits in row 1.
fn with<B: Kernels>(rows: usize, bits: u32) -> Tensor<B, 2> {
    let mut numbers: Vec<f32> = values(random::<B, 2>([rows, 20], 1)).into_iter().map(|x| x as f32).collect();
    numbers[20 + 17] = f32::from_bits(bits);
    Tensor::from_data(
        TensorData::new(numbers, [rows, 20]),
        (&Default::default(), <B::FloatElem as Element>::dtype()),
    )
}

fn targets<B: Kernels>(rows: usize) -> Tensor<B, 1, Int> {
    Tensor::zeros([rows], &Default::default())
}

#[test]
fn a_nan_reaches_what_it_has_a_part_in_and_nothing_else() {
    #[track_caller]
    fn check_row(name: &str, bits: u32, y: &[f64], width: usize, whole_row: bool) {
        for (i, y) in y.iter().enumerate() {
            let reached = i / width == 1 && (whole_row || i % width == 17);
            assert_eq!(y.is_nan(), reached, "{name} of {bits:#x}: element {i} is {y}");
        }
    }
    fn check<B: Kernels>() {
        for bits in NANS {
            let x = || with::<B>(3, bits);
            let other = random::<B, 2>([3, 20], 2);
            for kind in [Gelu::Erf, Gelu::Tanh] {
                check_row("gelu", bits, &values(gelu(x(), kind)), 20, false);
                let w = random::<B, 2>([20, 33], 3);
                check_row("linear_gelu", bits, &values(linear_gelu(x(), w, None, kind)), 33, true);
                let tracked = with::<Autodiff<B>>(3, bits).require_grad();
                let grads = gelu(tracked.clone(), kind).backward();
                check_row("gelu's slope", bits, &values(tracked.grad(&grads).unwrap()), 20, false);
            }
            for kind in [Gate::Silu, Gate::Gelu(Gelu::Erf), Gate::Gelu(Gelu::Tanh)] {
                check_row("a gate", bits, &values(gated(x(), other.clone(), kind)), 20, false);
                check_row("what is gated", bits, &values(gated(other.clone(), x(), kind)), 20, false);
            }
            let gamma = random::<B, 1>([20], 4);
            check_row("rms_norm", bits, &values(rms_norm(x(), gamma.clone(), 1e-5)), 20, true);
            let y = layer_norm(x(), None, gamma, None, 1e-5, None);
            check_row("layer_norm", bits, &values(y), 20, true);
            assert!(values(cross_entropy(x(), targets(3)))[0].is_nan(), "cross_entropy of {bits:#x}");
            let tracked = with::<Autodiff<B>>(3, bits).require_grad();
            let grads = cross_entropy(tracked.clone(), targets(3)).backward();
            check_row("cross_entropy's gradient", bits, &values(tracked.grad(&grads).unwrap()), 20, true);
            // A single query; a key reaches all queries of its sequence.
            let spec = AttentionSpec::encoder([3, 3], 1, 20);
            let [k, v] = [5, 6].map(|seed| random::<B, 2>([6, 20], seed));
            let y = attention(with::<B>(6, bits), k.clone(), v.clone(), &spec);
            check_row("attention's query", bits, &values(y), 20, true);
            let y = values(attention(k, with::<B>(6, bits), v, &spec));
            assert!(
                y.iter().enumerate().all(|(i, y)| y.is_nan() == (i < 60)),
                "attention's key of {bits:#x}"
            );
        }
    }
    on_backends!(check());
}

#[test]
fn infinities_are_those_of_the_formulas() {
    fn check<B: Kernels>() {
        let at = |tensor: Tensor<B, 2>| values(tensor)[20 + 17];
        let (plus, minus) = (f32::INFINITY.to_bits(), f32::NEG_INFINITY.to_bits());
        let ones = Tensor::<B, 2>::ones([3, 20], (&Default::default(), <B::FloatElem as Element>::dtype()));
        for kind in [Gelu::Erf, Gelu::Tanh] {
            assert_eq!(at(gelu(with(3, plus), kind)), f64::INFINITY);
            // -∞·0, as in PyTorch.
            assert!(at(gelu(with(3, minus), kind)).is_nan());
        }
        assert_eq!(at(gated(with(3, plus), ones.clone(), Gate::Silu)), f64::INFINITY);
        assert!(at(gated(with(3, minus), ones, Gate::Silu)).is_nan());
        // A logit of -∞ has probability zero; one of ∞ leaves no computable probability to the others.
        assert!(values(cross_entropy(with::<B>(3, minus), targets(3)))[0].is_finite());
        assert!(values(cross_entropy(with::<B>(3, plus), targets(3)))[0].is_nan());
    }
    on_backends!(check());
}
