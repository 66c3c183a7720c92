//! Matrices that are some rows and columns of larger ones, as the parts of a fused projection are.

use burn::tensor::{Element, Tensor};
use burn_autodiff::Autodiff;
use rstest::rstest;

use super::{on_backends, random, values};
use crate::kernels::Kernels;
use crate::ops::{attention, gated, rope, sink_attention};
use crate::spec::{AttentionSpec, Gate, Gelu, Keys, RopeSpec};

/// The same numbers as a view, beside NaNs that no step may read.
fn view<B: Kernels>(x: &Tensor<B, 2>) -> Tensor<B, 2> {
    let [rows, width] = x.dims();
    let around = |shape: [usize; 2]| {
        Tensor::<B, 2>::full(shape, f32::NAN, (&Default::default(), <B::FloatElem as Element>::dtype()))
    };
    let wide = Tensor::cat(vec![around([rows, 3]), x.clone(), around([rows, 5])], 1);
    let all = Tensor::cat(vec![around([2, width + 8]), wide, around([1, width + 8])], 0);
    all.narrow(0, 2, rows).narrow(1, 3, width)
}

#[rstest]
fn positions_and_gates_read_views(#[values(1, 2, 41)] rows: usize) {
    fn check<B: Kernels>(rows: usize) {
        let [x, up] = [1, 2].map(|seed| random::<B, 2>([rows, 2 * 40], seed));
        let angles = random::<B, 2>([rows, 16], 3);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        for interleaved in [false, true] {
            let spec = RopeSpec { n_heads: 2, rotary_dim: 32, interleaved };
            let expected = values(rope(x.clone(), cos.clone(), sin.clone(), spec));
            assert_eq!(values(rope(view(&x), view(&cos), view(&sin), spec)), expected);
        }
        for kind in [Gate::Silu, Gate::Gelu(Gelu::Erf)] {
            let expected = values(gated(x.clone(), up.clone(), kind));
            assert_eq!(values(gated(view(&x), up.clone(), kind)), expected);
            assert_eq!(values(gated(view(&x), view(&up), kind)), expected);
        }
    }
    on_backends!(check(rows));
}

#[test]
fn attention_reads_views() {
    fn check<B: Kernels>() {
        let mut cached = AttentionSpec::decoder([50, 9], 8, 2, 32);
        cached.queries = [1, 3].into();
        cached.keys = Keys::Cached([5..55, 55..64].into());
        let specs = [
            AttentionSpec::encoder([33, 1, 70], 4, 24),
            AttentionSpec::decoder([40, 3], 6, 3, 32),
            AttentionSpec::decoder([1], 2, 2, 8),
            cached,
        ];
        for spec in specs {
            let n_keys = spec.keys.end();
            let [q_width, kv_width] = [spec.n_heads, spec.n_kv_heads].map(|heads| heads * spec.head_dim);
            let q = random::<B, 2>([spec.queries.n_tokens(), q_width], 1);
            let [k, v] = [2, 3].map(|seed| random::<B, 2>([n_keys, kv_width], seed));
            let expected = values(attention(q.clone(), k.clone(), v.clone(), &spec));
            assert_eq!(values(attention(view(&q), view(&k), view(&v), &spec)), expected, "{spec:?}");
            assert_eq!(values(attention(q.clone(), view(&k), v.clone(), &spec)), expected, "{spec:?}");
            let sinks = random::<B, 1>([spec.n_heads], 4);
            let expected = values(sink_attention(q.clone(), k.clone(), v.clone(), sinks.clone(), &spec));
            assert_eq!(values(sink_attention(view(&q), view(&k), view(&v), sinks, &spec)), expected);
        }
    }
    on_backends!(check());
}

/// Gradients reach the columns that were viewed.
#[test]
fn gradients_of_views_are_those_of_their_copies() {
    fn grads<B: Kernels>(is_view: bool) -> Vec<f64> {
        let all = random::<Autodiff<B>, 2>([21, 3 * 64], 1).require_grad();
        let parts = [0, 1, 2].map(|part| all.clone().narrow(1, 64 * part, 64));
        // A product by one is a copy.
        let [q, k, v] = if is_view { parts } else { parts.map(|part| part * 1.0) };
        let [gate, up] = [q.clone(), k.clone()];
        let y = attention(q, k, v, &AttentionSpec::decoder([20, 1], 2, 2, 32));
        let y = y + gated(gate, up, Gate::Gelu(Gelu::Tanh));
        let weights = random::<Autodiff<B>, 2>([21, 64], 5);
        let grads = (y * weights).sum().backward();
        values(all.grad(&grads).unwrap())
    }
    fn check<B: Kernels>() {
        assert_eq!(grads::<B>(true), grads::<B>(false));
    }
    on_backends!(check());
}
