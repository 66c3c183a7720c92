//! Rotary position embedding.

use burn::tensor::Tensor;
use rstest::rstest;

use super::{Exact, assert_close, on_backends, random, tensor, tolerance, values};
use crate::kernels::Kernels;
use crate::ops::rope;
use crate::spec::RopeSpec;

fn angles<B: Kernels>(tokens: usize, half: usize) -> [Tensor<B, 2>; 2] {
    let angles = numbers(tokens * half);
    [f64::cos, f64::sin].map(|f| tensor(angles.iter().map(|&angle| f(angle)).collect(), [tokens, half]))
}

fn numbers(count: usize) -> Vec<f64> {
    (0..count).map(|i| (i as f64 * 0.37).sin() * 3.0).collect()
}

#[rstest]
fn each_pair_is_rotated_by_its_angle(
    #[values(false, true)] interleaved: bool,
    #[values([1, 8, 8], [3, 64, 64], [2, 80, 32], [4, 6, 0])] sizes: [usize; 3],
) {
    fn check<B: Kernels>(spec: RopeSpec, head_dim: usize) {
        let (tokens, half) = (7, spec.rotary_dim / 2);
        let x = random::<B, 2>([tokens, spec.n_heads * head_dim], 1);
        let [cos, sin] = angles::<B>(tokens, half);
        let input = values(x.clone());
        let mut expected = input.clone();
        let angles = numbers(tokens * half);
        for token in 0..tokens {
            for head in 0..spec.n_heads {
                let start = (token * spec.n_heads + head) * head_dim;
                for i in 0..half {
                    let pair = if spec.interleaved { [2 * i, 2 * i + 1] } else { [i, i + half] };
                    let [a, b] = pair.map(|at| input[start + at]);
                    let (sin, cos) = angles[token * half + i].sin_cos();
                    expected[start + pair[0]] = a * cos - b * sin;
                    expected[start + pair[1]] = a * sin + b * cos;
                }
            }
        }
        assert_close(&values(rope(x, cos, sin, spec)), &expected, tolerance(2), &format!("{spec:?}"));
    }
    let [n_heads, head_dim, rotary_dim] = sizes;
    let spec = RopeSpec { n_heads, rotary_dim, interleaved };
    on_backends!(check(spec, head_dim));
    check::<Exact>(spec, head_dim);
}
