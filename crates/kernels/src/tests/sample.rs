//! Tokens chosen on the device against an order of all tokens in double precision.

use burn::tensor::{Tensor, TensorData};
use rstest::rstest;

use super::{Gpu, numbers};
use crate::kernels::Kernels;
use crate::ops::sample;
use crate::spec::{SampleRow, SampleSpec};

const GREEDY: SampleSpec = at(0.0);
const PLAIN: SampleSpec = at(1.0);

const fn at(temperature: f64) -> SampleSpec {
    SampleSpec { temperature, top_k: None, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, rows: Vec::new() }
}

/// How far apart a sum of probabilities in single precision and in double may be.
const ROUNDING: f64 = 2e-6;

/// The token of a draw; cutoffs of `top_p` are moved by `shift`.
fn expected(logits: &[f32], spec: &SampleSpec, draw: f64, shift: f64) -> Option<u32> {
    let mut tokens: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|&x| f64::from(x))).collect();
    tokens.retain(|(_, x)| x.is_finite());
    if spec.temperature == 0.0 {
        let top = tokens.iter().map(|(_, x)| *x).reduce(f64::max)?;
        return tokens.iter().find(|(_, x)| *x == top).map(|(id, _)| *id);
    }
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    tokens.truncate(spec.top_k.unwrap_or(usize::MAX));
    let top = tokens.first()?.1;
    tokens.iter_mut().for_each(|(_, x)| *x = ((*x - top) / spec.temperature).exp());
    let total = |tokens: &[(u32, f64)]| tokens.iter().map(|(_, p)| p).sum::<f64>();
    if spec.top_p < 1.0 {
        let (limit, mut sum) = ((spec.top_p + shift) * total(&tokens), 0.0);
        let kept = tokens.iter().take_while(|(_, p)| {
            let before = sum;
            sum += p;
            before < limit
        });
        let kept = kept.count().max(1);
        tokens.truncate(kept);
    }
    tokens.retain(|(_, p)| *p >= spec.min_p * (1.0 - shift.abs()));
    let mut rest = draw * total(&tokens);
    let chosen = tokens.iter().find(|(_, p)| {
        rest -= p;
        rest < 0.0
    });
    chosen.or(tokens.last()).map(|(id, _)| *id)
}

fn sampled(logits: &[f32], spec: SampleSpec) -> Vec<i64> {
    let rows = spec.rows.len();
    let data = TensorData::new(logits.to_vec(), [rows, logits.len() / rows]);
    let logits = Tensor::<Gpu, 2>::from_data(data, &Default::default());
    let before = logits.clone().into_data();
    let ids = sample(&logits, || spec).unwrap();
    assert_eq!(ids.dims(), [rows]);
    let ids = ids.into_data().iter::<i64>().collect();
    // Whatever is penalised or excluded.
    let bytes = |data: &TensorData| data.bytes.to_vec();
    assert_eq!(bytes(&logits.into_data()), bytes(&before), "the logits have changed");
    ids
}

/// Compares the tokens of one draw for each row; those that lie at a boundary may be on either side of it.
#[track_caller]
fn check_rows(what: &str, logits: &[f32], spec: &SampleSpec, draws: &[f64]) {
    let rows = draws.iter().map(|&draw| SampleRow { draw, ..SampleRow::default() }).collect();
    let got = sampled(logits, SampleSpec { rows, ..spec.clone() });
    let width = logits.len() / draws.len();
    for (row, (got, draw)) in got.into_iter().zip(draws).enumerate() {
        let logits = &logits[row * width..(row + 1) * width];
        let id = |draw, shift| expected(logits, spec, draw, shift).map_or(-1, i64::from);
        let near = [-ROUNDING, ROUNDING].into_iter().flat_map(|shift| {
            [0.0, -ROUNDING, ROUNDING].map(|by| id((draw + by).clamp(0.0, 1.0 - f64::EPSILON), shift))
        });
        assert!(
            got == id(*draw, 0.0) || near.clone().any(|id| id == got),
            "{what}, row {row}, draw {draw}: {got}, expected {}, or at a boundary one of {:?}",
            id(*draw, 0.0),
            near.collect::<Vec<_>>()
        );
    }
}

fn floats(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    numbers(count, seed).into_iter().map(|x| x as f32 * scale).collect()
}

/// Uniform numbers in 0..1.
fn draws(count: usize, seed: u64) -> Vec<f64> {
    numbers(count, seed).into_iter().map(|x| (x + 1.0) / 2.0).collect()
}

#[rstest]
fn tokens_are_those_of_an_order_of_all(
    #[values(
        GREEDY,
        PLAIN,
        SampleSpec { temperature: 0.3, ..PLAIN },
        SampleSpec { top_k: Some(1), ..PLAIN },
        SampleSpec { top_k: Some(20), ..PLAIN },
        SampleSpec { top_k: Some(600), ..PLAIN },
        SampleSpec { top_p: 0.0, ..PLAIN },
        SampleSpec { top_p: 1e-3, ..PLAIN },
        SampleSpec { top_p: 0.9, ..PLAIN },
        SampleSpec { min_p: 0.3, ..PLAIN },
        SampleSpec { temperature: 0.7, top_k: Some(50), top_p: 0.8, min_p: 0.05, ..PLAIN },
    )]
    spec: SampleSpec,
) {
    for (rows, width) in [(3, 1), (40, 3), (30, 129), (20, 1000)] {
        let random = floats(rows * width, width as u64, 6.0);
        check_rows("random logits", &random, &spec, &draws(rows, 1));
        // Values on a grid of halves, so that many are equal.
        let ties: Vec<f32> = random.iter().map(|x| (x * 2.0).round() / 2.0).collect();
        check_rows("ties", &ties, &spec, &draws(rows, 2));
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, 0.0, -0.0, f32::MIN];
        let mixed: Vec<f32> =
            (0..).zip(&random).map(|(i, &x)| special.get(i * 7 % 12).copied().unwrap_or(x)).collect();
        check_rows("special values", &mixed, &spec, &draws(rows, 3));
        check_rows("equal logits", &vec![-2.5; rows * width], &spec, &draws(rows, 4));
    }
}

#[test]
fn a_vocabulary_of_a_model_is_sampled() {
    let (rows, width) = (4, 50_257);
    let logits = floats(rows * width, 7, 9.0);
    for spec in [
        GREEDY,
        PLAIN,
        SampleSpec { temperature: 0.8, top_k: Some(400), top_p: 0.95, min_p: 0.01, ..PLAIN },
        SampleSpec { top_k: Some(512), ..PLAIN },
        SampleSpec { temperature: 2.0, top_k: Some(513), top_p: 0.95, min_p: 0.01, ..PLAIN },
    ] {
        check_rows("50257 tokens", &logits, &spec, &draws(rows, 8));
    }
}

#[test]
fn a_row_without_a_finite_logit_has_no_token() {
    let mut logits = vec![f32::NEG_INFINITY; 5 * 200];
    logits[200..400].fill(f32::NAN);
    logits[400..600].fill(f32::INFINITY);
    logits[600..800].copy_from_slice(&floats(200, 1, 1.0));
    logits[999] = -3.0e38;
    for spec in [GREEDY, PLAIN, SampleSpec { top_k: Some(3), top_p: 0.5, min_p: 0.5, ..PLAIN }] {
        let rows = vec![SampleRow { draw: 0.999_999_99, ..SampleRow::default() }; 5];
        let ids = sampled(&logits, SampleSpec { rows, ..spec });
        assert_eq!(ids[..3], [-1; 3]);
        assert!(ids[3] >= 0);
        assert_eq!(ids[4], 199);
    }
}

#[test]
fn the_most_likely_of_equal_temperatures_are_drawn_however_small_they_are() {
    let logits = [1.0, 3.0, f32::NAN, 2.0, 3.0];
    for temperature in [1e-300, f64::from_bits(1), 1e-3] {
        let ids = [0.0, 0.49, 0.51, 0.99].map(|draw| {
            let rows = vec![SampleRow { draw, ..SampleRow::default() }];
            sampled(&logits, SampleSpec { temperature, rows, ..PLAIN })[0]
        });
        assert_eq!(ids, [1, 1, 4, 4], "{temperature:e}");
    }
}

/// Pairs of a logit and the penalised value of another, in both orders: only if the two are equal to the last bit, both
/// orders give the first of a pair.
#[rstest]
fn penalties_are_those_of_the_host_to_the_bit(#[values(1.3, 0.7, 1e-3, 1.0 + f32::EPSILON)] penalty: f32) {
    let values = floats(300, 11, 20.0);
    let host = |x: f32| if x > 0.0 { x / penalty } else { x * penalty };
    for first in [true, false] {
        let pair = |&x: &f32| if first { [x, host(x)] } else { [host(x), x] };
        let logits: Vec<f32> = values.iter().flat_map(pair).collect();
        let row =
            SampleRow { penalised: vec![u32::from(!first), 99, u32::from(!first)], ..SampleRow::default() };
        let spec = SampleSpec { repetition_penalty: penalty, rows: vec![row; values.len()], ..GREEDY };
        assert_eq!(sampled(&logits, spec), vec![0; values.len()], "first: {first}");
    }
}

#[test]
fn excluded_tokens_are_not_chosen() {
    let logits = [[5.0, 4.0, 3.0, 2.0], [1.0, 9.0, f32::INFINITY, f32::MAX], [0.0, 8.0, 7.0, 0.0]].concat();
    let rows = vec![
        SampleRow { excluded: vec![0, 1, 0, 77], penalised: vec![0, 2], draw: 0.0 },
        // A penalty below 1 makes an infinity of the largest float, and leaves another as it is.
        SampleRow { penalised: vec![2, 3], ..SampleRow::default() },
        SampleRow { excluded: vec![0, 1, 2, 3], ..SampleRow::default() },
    ];
    for temperature in [0.0, 0.1] {
        let spec = SampleSpec { temperature, repetition_penalty: 0.5, rows: rows.clone(), ..PLAIN };
        assert_eq!(sampled(&logits, spec), [2, 1, -1], "{temperature}");
    }
}

/// More rows than a launch has room for in one direction.
#[test]
fn many_rows_are_sampled() {
    let (rows, width) = ((1 << 15) + 3, 2);
    let logits = floats(rows * width, 5, 1.0);
    check_rows("many rows", &logits, &GREEDY, &vec![0.0; rows]);
}

fn of_zeros(spec: SampleSpec) {
    let logits = Tensor::<Gpu, 2>::zeros([2, 3], &Default::default());
    let _ = Gpu::sample(&logits.into_primitive().tensor(), || spec);
}

#[test]
#[should_panic(expected = "sample: 2 rows of logits, 1 of the spec")]
fn rows_without_a_draw_are_refused() {
    of_zeros(SampleSpec { rows: vec![SampleRow::default()], ..PLAIN });
}

#[test]
#[should_panic(expected = "sample: a repetition penalty of 0")]
fn a_penalty_that_has_no_quotient_is_refused() {
    let rows = vec![SampleRow::default(); 2];
    of_zeros(SampleSpec { repetition_penalty: 0.0, rows, ..PLAIN });
}
