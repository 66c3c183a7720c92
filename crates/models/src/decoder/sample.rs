//! From logits to the next token.

use lowrank_kernels::{SampleRow, SampleSpec};
use lowrank_spec::rng::mix;

/// Options of choosing the next token.
///
/// | name | default | purpose | range |
/// |---|---|---|---|
/// | `temperature` | 0 | divides the logits; 0 takes the most likely token | ≥ 0 |
/// | `top_k` | none | only the k most likely tokens | ≥ 1 |
/// | `top_p` | 1 | the smallest set of most likely tokens with at least this probability (Holtzman et al. 2020), one at least | 0 ≤ p ≤ 1 |
/// | `cutoffs` | none | [other ways](Cutoffs) to leave out unlikely tokens | |
/// | `repetition_penalty` | 1 | on logits of previous tokens: divides positive ones, multiplies negative ones (Keskar et al. 2019) | > 0 |
/// | `seed` | 0 | of the sampling | |
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; 0 for greedy decoding.
    pub temperature: f64,
    /// Only the k most likely tokens.
    pub top_k: Option<usize>,
    /// The smallest set of most likely tokens with at least this probability.
    pub top_p: f64,
    /// Other cutoffs.
    pub cutoffs: Cutoffs,
    /// Penalty on previous tokens.
    pub repetition_penalty: f64,
    /// Seed of the sampling.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            cutoffs: Cutoffs::default(),
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// Ways to leave out unlikely tokens, after the temperature; each renormalizes what the one before it has left. `top_h` is
/// applied before `top_k` and `top_p`, the others after them in the order of the table. `typical_p` may drop the most likely token, the others never do.
///
/// | name | default | tokens that stay | range |
/// |---|---|---|---|
/// | `top_h` | none | of the 100 most likely, the longest prefix whose share of the entropy is at most h, one at least (Potraghloo et al. 2025) | 0 < h ≤ 1 |
/// | `min_p` | 0 | those at least this times as likely as the most likely (Nguyen et al. 2024) | 0 ≤ p ≤ 1 |
/// | `typical_p` | 1 | those whose information is nearest to the entropy, with this probability in total (Meister et al. 2023) | 0 < p ≤ 1 |
/// | `epsilon` | 0 | those at least this likely (Hewitt et al. 2022) | 0 ≤ ε < 1 |
/// | `eta` | 0 | those with `p ≥ min(η, √η·exp(−entropy))` (Hewitt et al. 2022) | 0 ≤ η < 1 |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cutoffs {
    /// Part of the entropy.
    pub top_h: Option<f64>,
    /// Least probability, relative to the largest.
    pub min_p: f64,
    /// Probability of the locally typical tokens.
    pub typical_p: f64,
    /// Least probability.
    pub epsilon: f64,
    /// Least probability, lower where the entropy is high.
    pub eta: f64,
}

impl Default for Cutoffs {
    fn default() -> Self {
        Self { top_h: None, min_p: 0.0, typical_p: 1.0, epsilon: 0.0, eta: 0.0 }
    }
}

/// Candidates of [`Cutoffs::top_h`].
const TOP_H: usize = 100;

impl Cutoffs {
    fn check(&self) -> Result<(), String> {
        let Self { top_h, min_p, typical_p, epsilon, eta } = *self;
        let is_part = |x: f64| x > 0.0 && x <= 1.0;
        for (name, value, is_valid, expected) in [
            ("top-h", top_h.unwrap_or(1.0), top_h.is_none_or(is_part), "0 < h <= 1"),
            ("min-p", min_p, (0.0..=1.0).contains(&min_p), "0 <= p <= 1"),
            ("typical-p", typical_p, is_part(typical_p), "0 < p <= 1"),
            ("epsilon cutoff", epsilon, (0.0..1.0).contains(&epsilon), "0 <= x < 1"),
            ("eta cutoff", eta, (0.0..1.0).contains(&eta), "0 <= x < 1"),
        ] {
            if !is_valid {
                return Err(format!("{name} {value} is out of range; expected {expected}"));
            }
        }
        Ok(())
    }

    /// Whether `min_p` is the only one.
    fn is_min_p(&self) -> bool {
        *self == Self { min_p: self.min_p, ..Self::default() }
    }

    /// Of weights in descending order, which are those of the most likely tokens.
    fn apply_top_h(&self, candidates: &mut Vec<(u32, f64)>) {
        let Some(part) = self.top_h else { return };
        candidates.truncate(TOP_H);
        let terms: Vec<f64> = entropy_terms(candidates);
        let limit = part * terms.iter().sum::<f64>();
        let mut sum = 0.0;
        let kept = terms.iter().take_while(|term| {
            sum += *term;
            sum <= limit
        });
        let kept = kept.count().max(1);
        candidates.truncate(kept);
    }

    /// Expects weights in descending order; each cutoff leaves `least` of them at least.
    fn apply(&self, candidates: &mut Vec<(u32, f64)>, least: usize) {
        if self.min_p > 0.0 {
            let top = candidates.first().map_or(0.0, |(_, p)| *p);
            let kept = candidates.iter().take_while(|(_, p)| *p >= self.min_p * top).count();
            candidates.truncate(kept.max(least));
        }
        if self.typical_p < 1.0 {
            self.keep_typical(candidates, least);
        }
        if self.epsilon > 0.0 {
            keep_likely(candidates, self.epsilon, least);
        }
        if self.eta > 0.0 {
            let entropy: f64 = entropy_terms(candidates).iter().sum();
            keep_likely(candidates, self.eta.min(self.eta.sqrt() * (-entropy).exp()), least);
        }
    }

    /// Expects weights in descending order, and leaves them so.
    fn keep_typical(&self, candidates: &mut Vec<(u32, f64)>, least: usize) {
        let sum = total(candidates);
        let entropy: f64 = entropy_terms(candidates).iter().sum();
        // A token's distance from the entropy, and its weight.
        let mut order: Vec<(f64, f64)> =
            candidates.iter().map(|(_, p)| ((-(p / sum).ln() - entropy).abs(), *p)).collect();
        let distances: Vec<f64> = order.iter().map(|(distance, _)| *distance).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut mass = 0.0;
        let before = order.iter().take_while(|(_, p)| {
            mass += p;
            mass < self.typical_p * sum
        });
        let last = before.count().max(least.saturating_sub(1)).min(order.len().saturating_sub(1));
        let Some(&(limit, _)) = order.get(last) else { return };
        let mut distances = distances.into_iter();
        candidates.retain(|_| distances.next().is_some_and(|distance| distance <= limit));
    }
}

/// Drops candidates below this part of the total, except the `least` most likely ones and those as likely.
fn keep_likely(candidates: &mut Vec<(u32, f64)>, part: f64, least: usize) {
    let safe = candidates.get(least.max(1) - 1).or(candidates.last()).map_or(0.0, |(_, p)| *p);
    let limit = safe.min(part * total(candidates));
    candidates.retain(|(_, p)| *p >= limit);
}

fn total(candidates: &[(u32, f64)]) -> f64 {
    candidates.iter().map(|(_, p)| p).sum()
}

/// `−p·ln p` of each.
fn entropy_terms(candidates: &[(u32, f64)]) -> Vec<f64> {
    let total = total(candidates);
    let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
    candidates.iter().map(|(_, p)| term(p / total)).collect()
}

impl Sampling {
    /// Checks the values.
    ///
    /// # Errors
    /// A one-line message for the first value out of range.
    pub fn check(&self) -> Result<(), String> {
        let Self { temperature, top_k, top_p, cutoffs, repetition_penalty, .. } = self;
        if !(temperature.is_finite() && *temperature >= 0.0) {
            return Err(format!("temperature {temperature} is out of range; expected 0 or more"));
        }
        if *top_k == Some(0) {
            return Err("top-k 0 leaves no token; expected 1 or more".into());
        }
        if !(0.0..=1.0).contains(top_p) {
            return Err(format!("top-p {top_p} is out of range; expected 0 <= p <= 1"));
        }
        cutoffs.check()?;
        if !(repetition_penalty.is_finite() && *repetition_penalty > 0.0) {
            return Err(format!("repetition penalty {repetition_penalty} is out of range; expected above 0"));
        }
        Ok(())
    }

    /// Whether tokens can be chosen where the logits are, on a backend that does.
    pub(super) fn fits_spec(&self) -> bool {
        self.cutoffs.is_min_p() && (self.repetition_penalty as f32).is_normal()
    }

    /// The same for a backend, without the rows.
    pub(super) fn spec(&self) -> SampleSpec {
        SampleSpec {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.cutoffs.min_p,
            repetition_penalty: self.repetition_penalty as f32,
            rows: Vec::new(),
        }
    }
}

/// Chooses the tokens of one sequence. Draws depend only on the seed, the sequence's number and the number of
/// the draw, so that a batch gives the same results as single sequences.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    seed: u64,
    draws: u64,
}

impl Sampler {
    /// For sequence number `sequence` of a batch.
    pub fn new(sampling: Sampling, sequence: u64) -> Self {
        let seed = mix(sampling.seed, sequence);
        Self { sampling, seed, draws: 0 }
    }

    /// Penalises the logits of `seen`, the tokens of the sequence so far.
    pub fn penalise(&self, logits: &mut [f32], seen: &[u32]) {
        if self.sampling.repetition_penalty != 1.0 {
            penalise(logits, seen, self.sampling.repetition_penalty as f32);
        }
    }

    /// The next token after `logits`; `None` if no logit is finite.
    pub fn next(&mut self, logits: &[f32]) -> Option<u32> {
        if self.sampling.temperature == 0.0 {
            return largest(logits);
        }
        let draw = self.uniform();
        let candidates = self.kept(logits, 1);
        let mut rest = draw * total(&candidates);
        let chosen = candidates.iter().find(|(_, p)| {
            rest -= p;
            rest < 0.0
        });
        chosen.or(candidates.last()).map(|(id, _)| *id)
    }

    /// What a backend needs to choose the token that [`next`](Self::next) would, after the tokens `seen`.
    pub(super) fn row(&mut self, seen: &[u32], excluded: Vec<u32>) -> SampleRow {
        let Sampling { temperature, repetition_penalty, .. } = self.sampling;
        SampleRow {
            draw: if temperature == 0.0 { 0.0 } else { self.uniform() },
            penalised: if repetition_penalty == 1.0 { Vec::new() } else { seen.to_vec() },
            excluded,
        }
    }

    /// Divides logits by the temperature and sets those of unlikely tokens to −∞, as transformers' warpers do; each cutoff
    /// leaves `least` tokens at least.
    pub(crate) fn warp(&self, logits: &mut [f32], least: usize) {
        let kept = self.kept(logits, least);
        let mut warped = vec![f32::NEG_INFINITY; logits.len()];
        for (id, _) in kept {
            warped[id as usize] = (f64::from(logits[id as usize]) / self.sampling.temperature) as f32;
        }
        logits.copy_from_slice(&warped);
    }

    /// The tokens that the cutoffs leave with their weights, the most likely first.
    fn kept(&self, logits: &[f32], least: usize) -> Vec<(u32, f64)> {
        let mut candidates: Vec<(u32, f64)> = (0u32..)
            .zip(logits.iter())
            .filter(|(_, logit)| logit.is_finite())
            .map(|(id, &logit)| (id, f64::from(logit)))
            .collect();
        // The most likely first; ties in order of id.
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let cutoffs = &self.sampling.cutoffs;
        let top_k = self.sampling.top_k.map_or(usize::MAX, |k| k.max(least));
        let most = if cutoffs.top_h.is_some() { TOP_H } else { top_k };
        if most < candidates.len() {
            candidates.select_nth_unstable_by(most - 1, order);
            candidates.truncate(most);
        }
        candidates.sort_unstable_by(order);
        let Some(&(_, top)) = candidates.first() else { return candidates };
        // Differences first: the quotient of a logit and a tiny temperature overflows.
        candidates.iter_mut().for_each(|(_, x)| *x = ((*x - top) / self.sampling.temperature).exp());
        cutoffs.apply_top_h(&mut candidates);
        candidates.truncate(top_k);
        if self.sampling.top_p < 1.0 {
            let (total, mut sum) = (total(&candidates), 0.0);
            let kept = candidates.iter().take_while(|(_, p)| {
                let before = sum;
                sum += p;
                before < self.sampling.top_p * total
            });
            let kept = kept.count().max(least);
            candidates.truncate(kept);
        }
        cutoffs.apply(&mut candidates, least);
        candidates
    }

    /// In `[0, 1)`, 53 bits.
    pub(super) fn uniform(&mut self) -> f64 {
        self.draws += 1;
        (mix(self.seed, self.draws) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The first of the largest finite logits.
fn largest(logits: &[f32]) -> Option<u32> {
    // Vectorized, as a vocabulary is large and this is done for every token.
    let mut tops = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (top, &x) in tops.iter_mut().zip(chunk) {
            *top = if x > *top && x < f32::INFINITY { x } else { *top };
        }
    }
    let finite = |x: &f32| x.is_finite();
    let top = tops.into_iter().chain(rest.iter().copied()).filter(finite).reduce(f32::max)?;
    (0u32..).zip(logits).find(|(_, x)| **x == top).map(|(id, _)| id)
}

fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const LOGITS: [f32; 5] = [1.0, 3.0, f32::NAN, 2.0, 3.0];

    fn draws(sampling: &Sampling, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling.clone(), 0);
        (0..n).map(|_| sampler.next(&LOGITS).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(draws(&Sampling::default(), 2), [1, 1]);
        let greedy = |logits: &[f32]| Sampler::new(Sampling::default(), 0).next(logits);
        assert_eq!(greedy(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), None);
        let mut many = [f32::NEG_INFINITY; 40];
        assert_eq!(greedy(&many), None);
        (many[3], many[20], many[33], many[39]) = (f32::INFINITY, -2.0, f32::NAN, -2.0);
        assert_eq!(greedy(&many), Some(20));
        many[38] = -1.0;
        assert_eq!(greedy(&many), Some(38));
        many[5] = -1.0;
        assert_eq!(greedy(&many), Some(5));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let sampling = Sampling { temperature: 0.5, ..Default::default() };
        let drawn = draws(&sampling, 20_000);
        let weights = [2.0f64, 6.0, 0.0, 4.0, 6.0].map(f64::exp);
        let total: f64 = weights.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, w)| w).sum();
        for id in [0u32, 1, 3, 4] {
            let p = weights[id as usize] / total;
            let got = drawn.iter().filter(|&&d| d == id).count() as f64 / 20_000.0;
            // Five standard errors.
            assert!((got - p).abs() < 5.0 * (p * (1.0 - p) / 20_000.0).sqrt(), "{id}: {got} for {p}");
        }
        assert!(!drawn.contains(&2), "NaN is never drawn");
        assert_eq!(drawn, draws(&sampling, 20_000), "a seed repeats itself");
        assert_ne!(drawn, draws(&Sampling { seed: 1, ..sampling }, 20_000));
    }

    #[rstest]
    #[case(Sampling { top_k: Some(1), ..hot() }, &[1])]
    #[case(Sampling { top_k: Some(3), ..hot() }, &[1, 3, 4])]
    #[case(Sampling { top_k: Some(99), ..hot() }, &[0, 1, 3, 4])]
    #[case(Sampling { top_p: 1e-9, ..hot() }, &[1])]
    // At temperature 1: probabilities 0.40, 0.40, 0.15, 0.05 of tokens 1, 4, 3, 0.
    #[case(Sampling { top_p: 0.5, temperature: 1.0, ..hot() }, &[1, 4])]
    #[case(Sampling { top_p: 0.9, temperature: 1.0, ..hot() }, &[1, 3, 4])]
    #[case(Sampling { top_p: 0.0, ..hot() }, &[1])]
    #[case(with(Cutoffs { min_p: 0.3, ..Cutoffs::default() }), &[1, 3, 4])]
    #[case(with(Cutoffs { min_p: 0.4, ..Cutoffs::default() }), &[1, 4])]
    #[case(with(Cutoffs { epsilon: 0.06, ..Cutoffs::default() }), &[1, 3, 4])]
    #[case(with(Cutoffs { epsilon: 0.9, ..Cutoffs::default() }), &[1, 4])]
    fn the_unlikely_are_left_out(#[case] sampling: Sampling, #[case] expect: &[u32]) {
        let mut drawn = draws(&sampling, 3000);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, expect);
    }

    fn with(cutoffs: Cutoffs) -> Sampling {
        Sampling { cutoffs, temperature: 1.0, ..Sampling::default() }
    }

    /// The tokens that transformers' processors leave (5.23, at temperature 1), of ln(0.4, 0.25, 0.15, 0.1, 0.06, 0.04).
    #[rstest]
    #[case(Cutoffs { typical_p: 0.2, ..Cutoffs::default() }, &[1])]
    #[case(Cutoffs { typical_p: 0.5, ..Cutoffs::default() }, &[0, 1, 2])]
    #[case(Cutoffs { typical_p: 0.9, ..Cutoffs::default() }, &[0, 1, 2, 3])]
    #[case(Cutoffs { eta: 0.1, ..Cutoffs::default() }, &[0, 1, 2, 3])]
    #[case(Cutoffs { eta: 0.5, ..Cutoffs::default() }, &[0, 1])]
    #[case(Cutoffs { top_h: Some(0.3), ..Cutoffs::default() }, &[0])]
    #[case(Cutoffs { top_h: Some(0.7), ..Cutoffs::default() }, &[0, 1, 2])]
    #[case(Cutoffs { typical_p: 0.3, epsilon: 0.7, ..Cutoffs::default() }, &[1])]
    #[case(Cutoffs { min_p: 0.2, typical_p: 0.5, eta: 0.4, ..Cutoffs::default() }, &[0, 1])]
    fn cutoffs_leave_what_transformers_leaves(#[case] cutoffs: Cutoffs, #[case] expect: &[u32]) {
        let logits = [0.4f32, 0.25, 0.15, 0.1, 0.06, 0.04].map(f32::ln);
        let mut sampler = Sampler::new(with(cutoffs), 0);
        let mut drawn: Vec<u32> = (0..3000).map(|_| sampler.next(&logits).unwrap()).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, expect);
    }

    /// What transformers' warpers leave with `min_tokens_to_keep` 3 (5.23).
    #[rstest]
    #[case(Sampling { top_k: Some(1), ..with(Cutoffs::default()) })]
    #[case(Sampling { top_p: 0.1, ..with(Cutoffs::default()) })]
    #[case(with(Cutoffs { min_p: 0.9, ..Cutoffs::default() }))]
    #[case(with(Cutoffs { typical_p: 0.2, ..Cutoffs::default() }))]
    #[case(with(Cutoffs { epsilon: 0.5, ..Cutoffs::default() }))]
    #[case(with(Cutoffs { eta: 0.9, ..Cutoffs::default() }))]
    #[case(Sampling { top_p: 0.5, temperature: 2.0, ..with(Cutoffs::default()) })]
    fn warped_logits_keep_a_least_number(#[case] sampling: Sampling) {
        let logits = [0.4f32, 0.25, 0.15, 0.1, 0.06, 0.04].map(f32::ln);
        let (mut warped, temperature) = (logits, sampling.temperature as f32);
        Sampler::new(sampling, 0).warp(&mut warped, 3);
        let expected =
            [0, 1, 2, 3, 4, 5].map(|id| if id < 3 { logits[id] / temperature } else { f32::NEG_INFINITY });
        assert_eq!(warped, expected);
    }

    fn hot() -> Sampling {
        Sampling { temperature: 5.0, ..Default::default() }
    }

    #[test]
    fn the_smallest_temperatures_take_the_most_likely() {
        for temperature in [1e-300, 1e-308, 1e-310, f64::from_bits(1)] {
            let mut drawn = draws(&Sampling { temperature, ..Default::default() }, 200);
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn, [1, 4], "{temperature:e}: two tokens are equally likely");
        }
    }

    #[test]
    fn a_row_takes_the_draw_of_its_token() {
        let sampling = Sampling { repetition_penalty: 2.0, ..hot() };
        let [mut one, mut other] = [0, 0].map(|number| Sampler::new(sampling.clone(), number));
        let row = SampleRow { draw: other.uniform(), penalised: vec![3, 3], excluded: vec![1] };
        assert_eq!(one.row(&[3, 3], vec![1]), row);
        assert_eq!(one.uniform(), other.uniform());
        let mut greedy = Sampler::new(Sampling::default(), 0);
        assert_eq!(greedy.row(&[3, 3], Vec::new()), SampleRow::default());
        assert_eq!(greedy.draws, 0);
    }

    #[rstest]
    #[case(Sampling { top_k: Some(3), top_p: 0.5, repetition_penalty: 1.1, ..hot() }, true)]
    #[case(with(Cutoffs { min_p: 0.5, ..Cutoffs::default() }), true)]
    #[case(with(Cutoffs { min_p: 0.5, eta: 0.1, ..Cutoffs::default() }), false)]
    #[case(with(Cutoffs { epsilon: 0.1, ..Cutoffs::default() }), false)]
    #[case(with(Cutoffs { typical_p: 0.5, ..Cutoffs::default() }), false)]
    #[case(with(Cutoffs { top_h: Some(0.5), ..Cutoffs::default() }), false)]
    #[case(Sampling { repetition_penalty: 1e-300, ..hot() }, false)]
    fn a_backend_gets_what_a_spec_has(#[case] sampling: Sampling, #[case] fits: bool) {
        assert_eq!(sampling.fits_spec(), fits);
    }

    #[test]
    fn repetition_is_penalised_once_whatever_its_sign() {
        let mut logits = [2.0, -2.0, 1.5];
        penalise(&mut logits, &[0, 0, 1, 99], 2.0);
        assert_eq!(logits, [1.0, -4.0, 1.5]);
    }

    #[rstest]
    #[case(Sampling { temperature: -1.0, ..Default::default() }, "temperature")]
    #[case(Sampling { temperature: f64::NAN, ..Default::default() }, "temperature")]
    #[case(Sampling { top_k: Some(0), ..Default::default() }, "top-k")]
    #[case(Sampling { top_p: -0.1, ..Default::default() }, "top-p")]
    #[case(with(Cutoffs { min_p: 1.5, ..Cutoffs::default() }), "min-p")]
    #[case(with(Cutoffs { typical_p: 0.0, ..Cutoffs::default() }), "typical-p")]
    #[case(with(Cutoffs { epsilon: 1.0, ..Cutoffs::default() }), "epsilon")]
    #[case(with(Cutoffs { eta: f64::NAN, ..Cutoffs::default() }), "eta")]
    #[case(with(Cutoffs { top_h: Some(0.0), ..Cutoffs::default() }), "top-h")]
    #[case(Sampling { repetition_penalty: 0.0, ..Default::default() }, "repetition")]
    fn values_out_of_range_are_refused(#[case] sampling: Sampling, #[case] part: &str) {
        assert!(sampling.check().unwrap_err().contains(part));
    }
}
