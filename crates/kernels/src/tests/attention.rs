//! Attention against a straightforward one in double precision.

use burn::tensor::{Element, Tensor, TensorPrimitive};
use burn_autodiff::Autodiff;
use rstest::rstest;

use super::{Exact, assert_close, on_backends, random, tensor, tolerance, values};
use crate::kernels::{AttentionTensors, Kernels};
use crate::ops::{attention, relative_attention, sink_attention};
use crate::spec::{Alibi, AttentionSpec, Distances, Dropout, Keys};

#[test]
fn keys_with_gaps_between_give_what_they_give_without() {
    fn check<B: Kernels>() {
        let mut spec = AttentionSpec::decoder([50, 9, 4], 8, 2, 32);
        spec.queries = [1, 3, 4].into();
        let q = random::<B, 2>([8, 8 * 32], 1);
        let [k, v] = [2, 3].map(|seed| random::<B, 2>([63, 2 * 32], seed));
        let sinks = random::<B, 1>([8], 7);
        let expected = values(attention(q.clone(), k.clone(), v.clone(), &spec));
        let with_sinks = values(sink_attention(q.clone(), k.clone(), v.clone(), sinks.clone(), &spec));
        // The second sequence first, and room before, between and behind.
        let room = |n| {
            Tensor::<B, 2>::full(
                [n, 2 * 32],
                f32::NAN,
                (&Default::default(), <B::FloatElem as Element>::dtype()),
            )
        };
        let spread = |x: Tensor<B, 2>| {
            let part = |start, n| x.clone().narrow(0, start, n);
            Tensor::cat(vec![room(2), part(50, 9), room(1), part(0, 50), room(5), part(59, 4), room(3)], 0)
        };
        spec.keys = Keys::Cached([12..62, 2..11, 67..71].into());
        let (k, v) = (spread(k), spread(v));
        assert_eq!(values(attention(q.clone(), k.clone(), v.clone(), &spec)), expected);
        assert_eq!(values(sink_attention(q, k, v, sinks, &spec)), with_sinks);
    }
    on_backends!(check());
}

/// Packed self-attention and attention to a cache, with all options in some combination.
fn specs() -> Vec<AttentionSpec> {
    let dropout = Some(Dropout { p: 0.2, seed: 77 });
    let cached = |mut spec: AttentionSpec, queries: &[usize]| {
        spec.queries = queries.into();
        spec
    };
    let capped = |spec: AttentionSpec, cap| AttentionSpec { softcap: Some(cap), ..spec };
    let sloped = |spec: AttentionSpec| {
        let slopes = (0..spec.n_heads).map(|head| 0.3 * 0.4f32.powi(head as i32)).collect();
        AttentionSpec { alibi: Some(Alibi { slopes, rounded: None }), ..spec }
    };
    let rounded = |spec: AttentionSpec| {
        let alibi = Alibi { slopes: [0.8, 0.3].into(), rounded: Some(0.25) };
        AttentionSpec { alibi: Some(alibi), ..spec }
    };
    let windowed = |spec: AttentionSpec, window| AttentionSpec { window: Some(window), ..spec };
    let first = |spec: AttentionSpec| AttentionSpec { queries_first: true, ..spec };
    // Some distances share a bucket, and keys before a query have others than those after it.
    let by_distance = |spec: AttentionSpec| {
        let bucket = |d: isize| (d.unsigned_abs().min(9) / 2 + if d > 0 { 5 } else { 0 }) as u32;
        let distances = Some(Distances::new(spec.keys.longest() + 2, bucket));
        AttentionSpec { distances, ..spec }
    };
    vec![
        by_distance(AttentionSpec::encoder([14, 1, 0, 21], 3, 24)),
        by_distance(AttentionSpec { dropout, ..AttentionSpec::encoder([300], 2, 16) }),
        by_distance(windowed(AttentionSpec::encoder([120, 7], 2, 32), 9)),
        by_distance(sloped(AttentionSpec::decoder([70, 5], 4, 2, 8))),
        by_distance(cached(AttentionSpec::decoder([50, 9, 4], 4, 2, 16), &[1, 3, 0])),
        by_distance(first(cached(AttentionSpec::encoder([40, 9, 4], 2, 16), &[1, 3, 4]))),
        AttentionSpec::cross([30, 1, 9, 0, 40], [4, 21, 9, 3, 1], 2, 16),
        AttentionSpec { dropout, ..AttentionSpec::cross([700], [3], 3, 24) },
        AttentionSpec::cross([5, 90], [600, 40], 2, 64),
        AttentionSpec::encoder([1], 1, 1),
        AttentionSpec::encoder([14, 3, 0, 21], 12, 32),
        AttentionSpec { dropout, ..AttentionSpec::encoder([14, 3, 21], 2, 64) },
        AttentionSpec::encoder([600], 1, 80),
        AttentionSpec::encoder([5, 40], 3, 8),
        AttentionSpec::decoder([17, 1, 90], 4, 2, 128),
        AttentionSpec::decoder([300, 20], 2, 1, 16),
        AttentionSpec { dropout, ..AttentionSpec::decoder([33, 70], 6, 3, 24) },
        windowed(AttentionSpec::decoder([400, 10], 2, 2, 32), 37),
        windowed(AttentionSpec::encoder([120, 7], 2, 32), 9),
        cached(AttentionSpec::decoder([50, 9, 4], 8, 2, 32), &[1, 3, 0]),
        cached(windowed(AttentionSpec::decoder([700], 2, 1, 64), 100), &[5]),
        cached(AttentionSpec::encoder([30, 31], 2, 40), &[4, 31]),
        first(cached(windowed(AttentionSpec::encoder([80, 3], 2, 16), 11), &[1, 1])),
        first(cached(windowed(AttentionSpec::encoder([300, 40], 2, 16), 30), &[200, 6])),
        AttentionSpec::encoder([0, 0], 2, 16),
        capped(AttentionSpec::decoder([40, 1, 9], 4, 2, 24), 2.5),
        capped(windowed(AttentionSpec { dropout, ..AttentionSpec::decoder([300], 2, 1, 16) }, 20), 50.0),
        sloped(AttentionSpec::decoder([70, 5], 4, 4, 32)),
        sloped(capped(windowed(AttentionSpec::decoder([500], 3, 1, 16), 90), 4.0)),
        sloped(AttentionSpec::encoder([30, 0, 8], 2, 8)),
        rounded(AttentionSpec::decoder([600, 3], 2, 1, 8)),
        cached(sloped(capped(AttentionSpec::decoder([50, 9, 4], 8, 2, 32), 1.5)), &[1, 3, 0]),
    ]
}

struct Expected {
    y: Vec<f64>,
    log_sums: Vec<f64>,
}

fn bias(alibi: &Alibi, head: usize, key: usize, query: usize) -> f64 {
    let slope = alibi.slopes[head];
    let Some(factor) = alibi.rounded else {
        // Biases are floats of single precision in every backend.
        return f64::from(slope * (key as f32 - query as f32));
    };
    let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
    let [key, query] = [key, query].map(|at| f64::from(rounded(rounded(slope) * rounded(at as f32))));
    (key - query) * f64::from(factor)
}

/// The attention of each query, where `sinks` has one of each head, or none at all.
fn expected(
    [q, k, v]: [&[f64]; 3],
    [by_query, by_key]: &[Vec<f64>; 2],
    sinks: &[f64],
    spec: &AttentionSpec,
) -> Expected {
    let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *spec;
    let (mut y, mut log_sums) = (vec![0.0; q.len()], vec![0.0; spec.queries.n_tokens() * n_heads]);
    let (mut first_query, mut first_key) = (0, 0);
    for (queries, keys) in spec.sequences().map(|(queries, keys)| (queries.len(), keys.len())) {
        for query in 0..queries {
            for head in 0..n_heads {
                let at = ((first_query + query) * n_heads + head) * head_dim;
                let kv_at =
                    |key: usize| ((first_key + key) * n_kv_heads + head * n_kv_heads / n_heads) * head_dim;
                let position = if spec.queries_first { query } else { keys - queries + query };
                let sees = |key: &usize| {
                    let near = spec.window.is_none_or(|window| position.abs_diff(*key) < window);
                    near && (!spec.causal || *key <= position)
                };
                let score = |key: usize| -> f64 {
                    let dot: f64 = (0..head_dim).map(|i| q[at + i] * k[kv_at(key) + i]).sum();
                    let term = spec.distances.as_ref().map_or(0.0, |distances| {
                        let (n, bucket) =
                            (distances.n_buckets(), distances.seen_from(position, 0)[key] as usize);
                        let row = |rows: usize, row: usize| (head * rows + row) * n + bucket;
                        by_query[row(spec.queries.n_tokens(), first_query + query)]
                            + by_key[row(spec.keys.end(), first_key + key)]
                    });
                    let score = dot * f64::from(spec.scale);
                    let score = spec.softcap.map_or(score, |cap| {
                        let cap = f64::from(cap);
                        cap * (score / cap).tanh()
                    });
                    score + term + spec.alibi.as_ref().map_or(0.0, |alibi| bias(alibi, head, key, position))
                };
                let visible: Vec<usize> = (0..keys).filter(sees).collect();
                let sink = sinks.get(head).map_or(0.0, |sink| sink.exp());
                let sum = sink + visible.iter().map(|&key| score(key).exp()).sum::<f64>();
                let row = (first_query + query) * n_heads + head;
                log_sums[row] = sum.ln();
                let kept = spec.dropout.map(|dropout| (dropout.row_mask(row as u64), dropout.scale()));
                for &key in &visible {
                    let factor = match &kept {
                        Some((keep, scale)) if keep(key as u32) => f64::from(*scale),
                        Some(_) => 0.0,
                        None => 1.0,
                    };
                    let p = score(key).exp() / sum * factor;
                    (0..head_dim).for_each(|i| y[at + i] += p * v[kv_at(key) + i]);
                }
            }
        }
        (first_query, first_key) = (first_query + queries, first_key + keys);
    }
    Expected { y, log_sums }
}

fn arguments<B: Kernels>(spec: &AttentionSpec) -> [Tensor<B, 2>; 3] {
    let AttentionSpec { n_heads, n_kv_heads, head_dim, .. } = *spec;
    let (q_width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
    [
        random([spec.queries.n_tokens(), q_width], 1) * 3.0,
        random([spec.keys.end(), kv_width], 2),
        random([spec.keys.end(), kv_width], 3),
    ]
}

/// Terms by distance, where the attention has any.
fn terms<B: Kernels>(spec: &AttentionSpec) -> [Option<Tensor<B, 3>>; 2] {
    [(spec.queries.n_tokens(), 5), (spec.keys.end(), 6)].map(|(rows, seed)| {
        let distances = spec.distances.as_ref()?;
        Some(random([spec.n_heads, rows, distances.n_buckets()], seed))
    })
}

fn primitives<B: Kernels>(spec: &AttentionSpec) -> AttentionTensors<B::FloatTensorPrimitive> {
    let [q, k, v] = arguments::<B>(spec).map(|tensor| tensor.into_primitive().tensor());
    let [by_query, by_key] = terms::<B>(spec).map(|terms| terms.map(|t| t.into_primitive().tensor()));
    AttentionTensors { q, k, v, by_query, by_key }
}

#[test]
fn outputs_are_those_of_double_precision() {
    fn check<B: Kernels>(epsilon: f64) {
        for spec in specs() {
            let [q, k, v] = arguments::<B>(&spec);
            let flat = [&q, &k, &v].map(|tensor| values(tensor.clone()));
            let terms = terms::<B>(&spec);
            let flat_terms = terms.clone().map(|terms| terms.map(values).unwrap_or_default());
            let expected = expected(flat.each_ref().map(Vec::as_slice), &flat_terms, &[], &spec);
            let y = relative_attention(q, k, v, terms, &spec);
            assert_close(&values(y), &expected.y, epsilon, &format!("{spec:?}"));
            let (y, log_sums) = B::attention_saving(primitives::<B>(&spec), &spec);
            let wrap = |tensor| Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(tensor));
            assert_close(&values(wrap(y)), &expected.y, epsilon, &format!("{spec:?}, saving"));
            assert_close(
                &values(wrap(log_sums)),
                &expected.log_sums,
                epsilon,
                &format!("{spec:?}, log sums"),
            );
        }
    }
    // Scores are sums of up to 128 products; a probability has the relative error of its score.
    on_backends!(check(8.0 * tolerance(128)));
    check::<Exact>(1e-12);
}

/// Sinks of about the size of the scores.
fn sinks<B: Kernels>(spec: &AttentionSpec) -> Tensor<B, 1> {
    random([spec.n_heads], 7) * 3.0 + 1.0
}

#[test]
fn outputs_with_sinks_are_those_of_double_precision() {
    fn check<B: Kernels>(epsilon: f64) {
        let wrap = |tensor| values(Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(tensor)));
        for spec in specs() {
            let [q, k, v] = arguments::<B>(&spec);
            let flat = [&q, &k, &v].map(|tensor| values(tensor.clone()));
            let flat_terms = terms::<B>(&spec).map(|terms| terms.map(values).unwrap_or_default());
            let sinks = sinks::<B>(&spec);
            let flat_sinks = values(sinks.clone());
            let expected = expected(flat.each_ref().map(Vec::as_slice), &flat_terms, &flat_sinks, &spec);
            if spec.distances.is_none() {
                let y = sink_attention(q, k, v, sinks.clone(), &spec);
                assert_close(&values(y), &expected.y, epsilon, &format!("{spec:?}"));
            }
            let sinks = sinks.into_primitive().tensor();
            let (y, log_sums) = B::sink_attention_saving(primitives::<B>(&spec), sinks, &spec);
            assert_close(&wrap(y), &expected.y, epsilon, &format!("{spec:?}, saving"));
            assert_close(&wrap(log_sums), &expected.log_sums, epsilon, &format!("{spec:?}, log sums"));
        }
    }
    on_backends!(check(8.0 * tolerance(128)));
    check::<Exact>(1e-12);
}

/// The output, and the gradients of queries, keys and values and, if there are any, of the sinks.
fn attended<B: Kernels>(sinks: Option<Vec<f64>>, spec: &AttentionSpec) -> Vec<Vec<f64>> {
    let [q, k, v] = arguments::<Autodiff<B>>(spec).map(Tensor::require_grad);
    let sinks = sinks.map(|sinks| tensor::<Autodiff<B>, 1>(sinks, [spec.n_heads]).require_grad());
    let y = match sinks.clone() {
        Some(sinks) => sink_attention(q.clone(), k.clone(), v.clone(), sinks, spec),
        None => attention(q.clone(), k.clone(), v.clone(), spec),
    };
    let grads = (y.clone() * random(y.dims(), 9)).backward();
    let mut all = vec![values(y)];
    all.extend([q, k, v].iter().map(|tensor| values(tensor.grad(&grads).unwrap())));
    all.extend(sinks.map(|sinks| values(sinks.grad(&grads).unwrap())));
    all
}

#[test]
fn sinks_far_below_the_scores_change_no_bit() {
    fn check<B: Kernels>() {
        for spec in specs().into_iter().filter(|spec| spec.distances.is_none()) {
            for sink in [f64::NEG_INFINITY, -1e30, -1e3] {
                let mut expected = attended::<B>(None, &spec);
                expected.push(vec![0.0; spec.n_heads]);
                assert_eq!(
                    attended::<B>(Some(vec![sink; spec.n_heads]), &spec),
                    expected,
                    "{sink}, {spec:?}"
                );
            }
        }
    }
    on_backends!(check());
    check::<Exact>();
}

#[test]
fn sinks_far_above_the_scores_leave_nothing() {
    fn check<B: Kernels>() {
        for spec in [AttentionSpec::encoder([14, 40], 2, 24), AttentionSpec::decoder([33, 5], 4, 2, 16)] {
            for sink in [1e30, 1e3] {
                for got in attended::<B>(Some(vec![sink; spec.n_heads]), &spec) {
                    assert!(got.iter().all(|&x| x == 0.0), "{sink}, {spec:?}: {got:?}");
                }
            }
            let [q, k, v] = arguments::<B>(&spec);
            let y = sink_attention(q, k, v, tensor(vec![f64::INFINITY; spec.n_heads], [spec.n_heads]), &spec);
            assert!(values(y).iter().all(|&x| x == 0.0), "{spec:?}");
        }
    }
    on_backends!(check());
    check::<Exact>();
}

#[test]
fn sinks_of_no_query_have_a_gradient_of_zero() {
    fn check<B: Kernels>() {
        let spec = AttentionSpec::encoder([0, 0], 2, 16);
        let no_rows = vec![vec![]; 4];
        assert_eq!(attended::<B>(Some(vec![0.5, 1.0]), &spec), [no_rows, vec![vec![0.0; 2]]].concat());
    }
    on_backends!(check());
    check::<Exact>();
}

#[test]
fn gradients_are_those_of_the_composed_default() {
    fn grads<B: Kernels>(spec: &AttentionSpec, needed: [bool; 5]) -> [Option<Vec<f64>>; 5] {
        let tensors = primitives::<B>(spec);
        let dy = random::<B, 2>([spec.queries.n_tokens(), spec.n_heads * spec.head_dim], 4);
        let (y, log_sums) = B::attention_saving(tensors.clone(), spec);
        let grads = B::attention_grads(tensors, y, log_sums, dy.into_primitive().tensor(), spec, needed);
        let data = |grad| Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(grad)).into_data();
        grads.map(|grad| grad.map(|grad| data(grad).convert::<f64>().into_vec().unwrap()))
    }
    fn check<B: Kernels>() {
        for spec in specs() {
            let has_terms = spec.distances.is_some();
            let expected = grads::<Exact>(&spec, [true; 5]);
            let single = (0..5).map(|wanted| std::array::from_fn(|i| i == wanted));
            for needed in single.chain([[true; 5], [false, true, false, false, true]]) {
                for (i, (got, expected)) in grads::<B>(&spec, needed).iter().zip(&expected).enumerate() {
                    assert_eq!(got.is_some(), needed[i] && (i < 3 || has_terms));
                    if let (Some(got), Some(expected)) = (got, expected) {
                        let what = format!("gradient {i} of {spec:?}");
                        // Keys and values get sums over the queries.
                        assert_close(got, expected, 8.0 * tolerance(600), &what);
                    }
                }
            }
        }
    }
    on_backends!(check());
}

/// Scores of about 10¹²: a softmax whose largest term is the only one that counts.
#[test]
fn large_scores_are_finite() {
    fn run<B: Kernels>(spec: &AttentionSpec) -> Vec<Vec<f64>> {
        let [q, k, v] = arguments::<Autodiff<B>>(spec);
        let [q, k, v] = [q * 1e6, k * 1e6, v].map(|tensor| tensor.require_grad());
        let y = attention(q.clone(), k.clone(), v.clone(), spec);
        let grads = (y.clone() * random(y.dims(), 9)).backward();
        let mut all = vec![values(y)];
        all.extend([q, k, v].iter().map(|tensor| values(tensor.grad(&grads).unwrap())));
        all
    }
    fn check<B: Kernels>() {
        for spec in [AttentionSpec::encoder([14, 40], 2, 24), AttentionSpec::decoder([33, 5], 4, 2, 16)] {
            let results = run::<B>(&spec).into_iter().zip(run::<Exact>(&spec)).enumerate();
            for (i, (got, expected)) in results {
                // Those of queries and keys are zero but for rounding errors, times keys and queries of 10⁶.
                let size = if i == 1 || i == 2 { 1e6 } else { 1.0 };
                assert_close(&got, &expected, size * tolerance(40), &format!("result {i} of {spec:?}"));
            }
        }
    }
    on_backends!(check());
}

#[rstest]
#[case(AttentionSpec { n_kv_heads: 2, ..AttentionSpec::encoder([3], 3, 4) }, "3 heads over 2 key heads")]
#[case(AttentionSpec { window: Some(0), ..AttentionSpec::encoder([3], 1, 4) }, "window of 0")]
#[case(AttentionSpec { alibi: Some(Alibi { slopes: [0.5; 2].into(), rounded: None }), ..AttentionSpec::encoder([3], 1, 4) }, "2 slopes for 1 heads")]
#[case(AttentionSpec { queries: [4].into(), ..AttentionSpec::encoder([3], 1, 4) }, "as many keys as queries")]
#[case(AttentionSpec::encoder([2], 1, 4), "expected [2, 4]")]
#[case(AttentionSpec { distances: Some(Distances::new(2, |_| 0)), ..AttentionSpec::encoder([3], 1, 4) }, "sequences of 2, keys of 3")]
#[case(AttentionSpec { distances: Some(Distances::new(3, |_| 0)), ..AttentionSpec::encoder([3], 1, 4) }, "expected [1, 3, 1]")]
#[case(AttentionSpec { keys: Keys::Cached(std::iter::once(1..4).collect()), ..AttentionSpec::encoder([3], 1, 4) }, "expected at least 4")]
fn layouts_that_cannot_be_are_refused(#[case] spec: AttentionSpec, #[case] message: &str) {
    let run = || {
        let x = random::<burn_flex::Flex, 2>([3, 4], 1);
        let terms = spec.distances.as_ref().map(|_| random::<burn_flex::Flex, 3>([1, 3, 4], 2));
        relative_attention(x.clone(), x.clone(), x, [terms, None], &spec)
    };
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| panic.downcast_ref::<&str>().unwrap().to_string());
    assert!(text.contains(message), "{text}");
}

#[test]
#[should_panic(expected = "sink_attention: sinks has 3 elements, expected 2")]
fn sinks_of_other_heads_are_refused() {
    let [q, k, v] = arguments::<burn_flex::Flex>(&AttentionSpec::encoder([3], 2, 4));
    sink_attention(q, k, v, random([3], 4), &AttentionSpec::encoder([3], 2, 4));
}

#[test]
#[should_panic(expected = "attention: keys in a cache have no gradient")]
fn gradients_of_cached_keys_with_sinks_are_refused() {
    type B = Autodiff<burn_flex::Flex>;
    let keys = Keys::Cached([0..2, 2..3].into());
    let spec = AttentionSpec { keys, ..AttentionSpec::encoder([2, 1], 2, 4) };
    let [q, k, v] = arguments::<B>(&spec);
    sink_attention(q, k, v, random::<B, 1>([2], 4).require_grad(), &spec);
}
