//! Beam search, with the scores, the choice and the end of transformers' `_beam_search`. Above temperature 0 the next tokens
//! of all beams are sampled without replacement by their scores, as there with `do_sample`.

use std::cmp::Ordering;

use burn::prelude::*;
use lowrank_adapters::peft::host_values;
use lowrank_kernels::Kernels;

use crate::batch::Tokens;
use crate::cache::KvCache;
use crate::config::DecoderConfig;
use crate::decoder::generate::{Finish, Generated, GenerationOptions, not_finite};
use crate::decoder::sample::Sampler;
use crate::error::Result;

/// Options of beam search, which follows the sum of the logarithms of the probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beams {
    /// Number of continuations followed at once; a search has 2 or more.
    pub count: usize,
    /// The score of a complete continuation is divided by its number of new tokens to this power: a value above 0 favours longer ones.
    pub length_penalty: f64,
    /// When the search ends.
    pub early_stopping: EarlyStopping,
    /// Whether log-probabilities are renormalized after constraints and penalties.
    pub renormalize: bool,
}

impl Default for Beams {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Beams {
    /// `count` beams; the other options are transformers' defaults.
    pub fn new(count: usize) -> Self {
        Self { count, length_penalty: 1.0, early_stopping: EarlyStopping::default(), renormalize: false }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The option that is out of range.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        if self.count < 2 {
            return Err(format!("{} beams are out of range; expected 2 or more", self.count));
        }
        if !self.length_penalty.is_finite() {
            return Err(format!(
                "length penalty {} is out of range; expected a finite number",
                self.length_penalty
            ));
        }
        Ok(())
    }
}

/// When a search ends although some beams could continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// Once the best running beam, at its present length, is worse than every complete continuation.
    #[default]
    Heuristic,
    /// Once there are as many complete continuations as beams.
    Complete,
    /// Once the best running beam cannot become better than a complete continuation at any length.
    Never,
}

/// Added to the score of a beam that is continued only if no other is left, as in transformers.
const LEAST: f32 = -1e9;

/// A running hypothesis.
#[derive(Clone, Debug)]
struct Beam {
    /// Prompt and new tokens.
    ids: Vec<u32>,
    score: f32,
}

/// A slot for a finished hypothesis.
#[derive(Clone, Debug)]
struct Place {
    beam: Beam,
    /// Reason for its end; `None` while the slot is empty.
    finish: Option<Finish>,
}

/// The next token of a beam.
struct Candidate {
    /// The row of logits that chose it.
    row: usize,
    beam: Beam,
    finish: Option<Finish>,
}

/// The search of one prompt.
struct Search {
    /// As many as beams, the best first.
    running: Vec<Beam>,
    /// As many, the best first.
    places: Vec<Place>,
    prompt: usize,
    /// Number of tokens of each running beam that the cache holds.
    read: usize,
    can_improve: bool,
    is_over: bool,
    draws: Sampler,
}

/// Options and model, shared by all searches.
struct Rules<'a> {
    options: &'a GenerationOptions,
    beams: Beams,
    config: &'a DecoderConfig,
    penalties: Sampler,
}

/// `x − ln Σ exp x`; nothing changes if every logit is −∞.
fn log_softmax(logits: &mut [f32]) {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if top == f32::NEG_INFINITY {
        return;
    }
    let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
    let off = f64::from(top) + sum.ln();
    logits.iter_mut().for_each(|x| *x = (f64::from(*x) - off) as f32);
}

/// The larger score first, then the earlier place.
fn order(a: &(f32, usize), b: &(f32, usize)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The `n` best of `scores` as pairs of score and place, in order.
fn best(scores: impl Iterator<Item = f32>, n: usize) -> Vec<(f32, usize)> {
    let mut top: Vec<(f32, usize)> = Vec::with_capacity(n + 1);
    for pair in scores.zip(0..) {
        // Most scores of a vocabulary end here.
        if top.len() == n && top.last().is_some_and(|worst| order(worst, &pair).is_lt()) {
            continue;
        }
        top.insert(top.partition_point(|other| order(other, &pair).is_lt()), pair);
        top.truncate(n);
    }
    top
}

/// `n` of `scores` as pairs of score and place, drawn one after another without replacement with the probabilities
/// `softmax(scores)`. Where fewer have any, the best of the others follow.
fn sampled(scores: &[f32], n: usize, mut uniform: impl FnMut() -> f64) -> Vec<(f32, usize)> {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if top == f32::NEG_INFINITY {
        return best(scores.iter().copied(), n);
    }
    let mut weights: Vec<f64> = scores.iter().map(|&score| f64::from(score - top).exp()).collect();
    let mut chosen: Vec<(f32, usize)> = Vec::with_capacity(n);
    while chosen.len() < n {
        let mut rest = uniform() * weights.iter().sum::<f64>();
        let place = weights.iter().position(|weight| {
            rest -= weight;
            rest < 0.0
        });
        // Rounding may leave nothing of the last.
        let Some(place) = place.or_else(|| weights.iter().rposition(|weight| *weight > 0.0)) else { break };
        weights[place] = 0.0;
        chosen.push((scores[place], place));
    }
    if chosen.len() < n {
        let others: Vec<usize> =
            (0..scores.len()).filter(|place| chosen.iter().all(|(_, own)| own != place)).collect();
        let fill = best(others.iter().map(|&place| scores[place]), n - chosen.len());
        chosen.extend(fill.into_iter().map(|(score, i)| (score, others[i])));
    }
    chosen
}

impl Rules<'_> {
    /// The number of continuations considered for each beam: one more than there are ends of text, so that enough go on.
    fn width(&self) -> usize {
        let n_eos = if self.options.ignore_eos { 0 } else { self.config.eos.len() };
        (1 + n_eos).max(2)
    }

    /// A sum of logarithms over a number of tokens, as complete continuations are compared.
    fn by_length(&self, score: f32, tokens: usize) -> f32 {
        score / (tokens as f64).powf(self.beams.length_penalty) as f32
    }

    /// The number of tokens at which a running beam of `new` tokens is compared with complete ones.
    fn hypothetical_length(&self, new: usize, prompt: usize) -> usize {
        if self.beams.early_stopping == EarlyStopping::Never && self.beams.length_penalty > 0.0 {
            let most = self.options.max_length.map_or(usize::MAX, |most| most.saturating_sub(prompt));
            self.options.max_new_tokens.min(most)
        } else {
            new
        }
    }
}

impl Search {
    fn new(prompt: &[u32], number: u64, rules: &Rules<'_>) -> Self {
        let beam = |score| Beam { ids: prompt.to_vec(), score };
        let running = (0..rules.beams.count).map(|i| beam(if i == 0 { 0.0 } else { LEAST }));
        let place = Place { beam: beam(LEAST), finish: None };
        Self {
            running: running.collect(),
            places: vec![place; rules.beams.count],
            prompt: prompt.len(),
            read: 0,
            can_improve: true,
            is_over: rules.options.is_full(prompt.len(), 0),
            draws: Sampler::new(rules.options.sampling.clone(), number),
        }
    }

    /// Number of new tokens of the running beams.
    fn new_tokens(&self) -> usize {
        self.running[0].ids.len() - self.prompt
    }

    /// Follows the best or sampled next tokens by the logits of each running beam, or of the first if all are still the
    /// prompt, and returns the row of logits that each new beam continues.
    fn advance(
        &mut self,
        rules: &Rules<'_>,
        logits: &mut [f32],
        mut on_tokens: impl FnMut(&[u32]) -> bool,
    ) -> Result<Vec<usize>> {
        let Rules { options, beams, config, penalties } = rules;
        let rows = logits.len() / config.vocab_size;
        let is_sampled = options.sampling.temperature > 0.0;
        for (beam, logits) in self.running.iter().zip(logits.chunks_exact_mut(config.vocab_size)) {
            if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
                return Err(not_finite());
            }
            log_softmax(logits);
            options.constrain(logits, &beam.ids, self.prompt, &config.eos, penalties);
            if is_sampled {
                penalties.warp(logits, rules.width());
            }
            if beams.renormalize {
                log_softmax(logits);
            }
        }
        let row_of = |beam: usize| beam.min(rows - 1);
        let scores = self.running.iter().enumerate().flat_map(|(i, beam)| {
            let start = row_of(i) * config.vocab_size;
            logits[start..start + config.vocab_size].iter().map(|x| x + beam.score)
        });
        let n = beams.count;
        let chosen = if is_sampled {
            sampled(&scores.collect::<Vec<f32>>(), n * rules.width(), || self.draws.uniform())
        } else {
            best(scores, n * rules.width())
        };
        if chosen.first().is_none_or(|(score, _)| !score.is_finite()) {
            // Every token is excluded.
            return Err(not_finite());
        }
        let candidates: Vec<Candidate> = chosen
            .into_iter()
            .map(|(score, place)| {
                let (parent, id) = (place / config.vocab_size, (place % config.vocab_size) as u32);
                let ids = [self.running[parent].ids.as_slice(), &[id]].concat();
                let finish = options.finish(config, &ids, self.prompt, on_tokens(&ids[self.prompt..]));
                Candidate { row: row_of(parent), finish, beam: Beam { ids, score } }
            })
            .collect();
        let is_exhausted = candidates.iter().all(|candidate| candidate.finish.is_some());
        let penalty = |applies: bool| if applies { LEAST } else { 0.0 };
        let next = best(candidates.iter().map(|c| c.beam.score + penalty(c.finish.is_some())), n);
        let rows = next.iter().map(|&(_, place)| candidates[place].row).collect();
        self.running = next
            .iter()
            .map(|&(score, place)| Beam { ids: candidates[place].beam.ids.clone(), score })
            .collect();
        self.complete(rules, candidates);
        let new = self.new_tokens();
        let hypothetical =
            rules.by_length(self.running[0].score, rules.hypothetical_length(new, self.prompt));
        let worst = self.places.last().map_or(LEAST, |place| place.beam.score);
        self.can_improve &=
            self.places.iter().any(|place| hypothetical > if place.finish.is_some() { worst } else { LEAST });
        self.is_over = !self.can_improve || is_exhausted || self.is_closed(rules);
        Ok(rows)
    }

    /// Whether the set of complete continuations is final.
    fn is_closed(&self, rules: &Rules<'_>) -> bool {
        rules.beams.early_stopping == EarlyStopping::Complete
            && self.places.iter().all(|place| place.finish.is_some())
    }

    /// Keeps the best complete continuations among those of before and the first of the candidates.
    fn complete(&mut self, rules: &Rules<'_>, candidates: Vec<Candidate>) {
        let is_closed = self.is_closed(rules) || !self.can_improve;
        let n = rules.beams.count;
        let ended =
            candidates.into_iter().take(n).filter(|candidate| candidate.finish.is_some() && !is_closed);
        self.places.extend(ended.map(|Candidate { beam, finish, .. }| {
            let score = rules.by_length(beam.score, beam.ids.len() - self.prompt);
            Place { beam: Beam { score, ..beam }, finish }
        }));
        // Stable: those of before come first.
        self.places.sort_by(|a, b| b.beam.score.total_cmp(&a.beam.score));
        self.places.truncate(n);
    }

    fn result(self) -> Generated {
        let best = self.places.into_iter().next();
        let (ids, finish) = best.map_or((Vec::new(), None), |place| (place.beam.ids, place.finish));
        Generated {
            ids: ids.get(self.prompt..).unwrap_or_default().to_vec(),
            finish: finish.unwrap_or(Finish::Length),
        }
    }
}

/// The best continuation of each prompt; the result of one does not depend on the others. The arguments are those of
/// [`continued`](super::generate::continued); `on_tokens` sees the candidates.
///
/// # Errors
/// Those of `step`; logits that are not finite.
pub(crate) fn searched<B: Kernels>(
    config: &DecoderConfig,
    prompts: &[Vec<u32>],
    (options, beams): (&GenerationOptions, Beams),
    device: &B::Device,
    step: impl Fn(Tokens<'_>, &[usize], &mut KvCache<B>) -> Result<Tensor<B, 2>>,
    mut on_tokens: impl FnMut(usize, &[u32]) -> bool,
) -> Result<Vec<Generated>> {
    let n = beams.count;
    let rules = Rules { options, beams, config, penalties: Sampler::new(options.sampling.clone(), 0) };
    let rooms: Vec<usize> = prompts.iter().flat_map(|prompt| vec![options.capacity(prompt); n]).collect();
    let mut cache = KvCache::of(config, &rooms, device).with_beams(n);
    let mut searches: Vec<Search> =
        (0u64..).zip(prompts).map(|(number, prompt)| Search::new(prompt, number, &rules)).collect();
    loop {
        let open: Vec<usize> = (0..searches.len()).filter(|&i| !searches[i].is_over).collect();
        if open.is_empty() {
            break;
        }
        let (mut ids, mut lengths, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for &i in &open {
            let search = &mut searches[i];
            let length = search.running[0].ids.len();
            if config.restarts(search.read, length) {
                (i * n..(i + 1) * n).for_each(|slot| cache.clear(slot));
                search.read = 0;
            }
            // Until its first new token, all beams of a prompt are equal: one is computed.
            let different = if search.new_tokens() == 0 { 1 } else { n };
            for (place, beam) in search.running[..different].iter().enumerate() {
                ids.extend(&beam.ids[search.read..]);
                lengths.push(length - search.read);
                slots.push(i * n + place);
            }
            search.read = length;
        }
        let mut logits = host_values(step(Tokens::new(&ids, &lengths), &slots, &mut cache)?);
        let mut rest = logits.as_mut_slice();
        let mut moves = Vec::new();
        for &i in &open {
            let search = &mut searches[i];
            let is_first = search.new_tokens() == 0;
            let (own, others) = rest.split_at_mut(if is_first { 1 } else { n } * config.vocab_size);
            rest = others;
            let rows = search.advance(&rules, own, |new| on_tokens(i, new))?;
            if !search.is_over {
                // All beams hold the keys of the prompt from the first step on.
                let from = if is_first { 0 } else { search.prompt };
                moves.extend((0..n).zip(rows).map(|(place, row)| [i * n + place, i * n + row, from]));
            }
        }
        cache.rearrange(&moves);
    }
    Ok(searches.into_iter().map(Search::result).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use burn_flex::Flex;

    use super::*;
    use crate::decoder::sample::Sampling;

    /// Within five standard errors.
    fn check(got: usize, p: f64, n: usize, what: impl std::fmt::Debug) {
        let (share, error) = (got as f64 / n as f64, (p * (1.0 - p) / n as f64).sqrt());
        // Three more for what hardly ever occurs.
        assert!((share - p).abs() <= 5.0 * error + 3.0 / n as f64, "{what:?}: {share} for {p}");
    }

    #[test]
    fn draws_are_those_without_replacement() {
        let (n, p) = (40_000, [0.5f64, 0.3, 0.0, 0.15, 0.05]);
        let scores = p.map(|p| p.ln() as f32 - 700.0);
        let mut draws = Sampler::new(Sampling { temperature: 1.0, ..Sampling::default() }, 0);
        let mut counts: HashMap<(usize, usize), usize> = HashMap::new();
        for _ in 0..n {
            let pair = sampled(&scores, 2, || draws.uniform());
            assert!(pair.iter().all(|&(score, place)| score == scores[place]));
            *counts.entry((pair[0].1, pair[1].1)).or_default() += 1;
        }
        for first in 0..p.len() {
            for second in (0..p.len()).filter(|second| *second != first) {
                let exact = p[first] * p[second] / (1.0 - p[first]);
                check(counts.get(&(first, second)).copied().unwrap_or(0), exact, n, (first, second));
            }
        }
        let all: Vec<usize> = sampled(&scores, 9, || 0.0).iter().map(|(_, place)| *place).collect();
        assert_eq!(all, [0, 1, 3, 4, 2], "the impossible one is the last");
        let least = [2.0 * LEAST, 0.0, LEAST];
        assert_eq!(sampled(&least, 2, || 0.5), [(0.0, 1), (LEAST, 2)]);
        assert_eq!(sampled(&[f32::NEG_INFINITY; 2], 1, || 0.5).len(), 1);
    }

    const SIZE: usize = 5;

    /// Logits of the next token by the last one: a Markov chain whose token 4 is an end of text.
    fn chain(id: u32) -> [f32; SIZE] {
        [0, 1, 2, 3, 4].map(|next: u32| ((id * id + 3 * id + 7 * next) % 11) as f32 * 0.3)
    }

    fn search(options: &GenerationOptions, prompts: &[Vec<u32>]) -> Vec<Generated> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
        let config =
            DecoderConfig { vocab_size: SIZE, eos: vec![4], ..DecoderConfig::read(&folder).unwrap() };
        let device = Default::default();
        let step = |tokens: Tokens<'_>, slots: &[usize], cache: &mut KvCache<Flex>| {
            cache.begin(slots, tokens.lengths);
            let mut ids = tokens.ids;
            let mut last = |length: &usize| {
                let (own, others) = ids.split_at(*length);
                ids = others;
                chain(own[length - 1])
            };
            let logits: Vec<f32> = tokens.lengths.iter().flat_map(&mut last).collect();
            let rows = logits.len() / SIZE;
            Ok(Tensor::<Flex, 1>::from_floats(logits.as_slice(), &device).reshape([rows, SIZE]))
        };
        let beams = options.beams.unwrap();
        searched(&config, prompts, (options, beams), &device, step, |_, _| true).unwrap()
    }

    fn options(temperature: f64, seed: u64, max_new_tokens: usize) -> GenerationOptions {
        GenerationOptions {
            sampling: Sampling { temperature, seed, ..Sampling::default() },
            max_new_tokens,
            beams: Some(Beams::new(2)),
            ..GenerationOptions::default()
        }
    }

    /// The scores of the next tokens of a beam.
    fn scores(id: u32, score: f64, temperature: f64) -> Vec<f64> {
        let logits = chain(id).map(f64::from);
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        logits.iter().map(|x| score + (x - sum.ln()) / temperature).collect()
    }

    /// All sequences of `n` draws without replacement with their probabilities.
    fn sequences(scores: &[f64], n: usize) -> Vec<(Vec<usize>, f64)> {
        let weights: Vec<f64> = scores.iter().map(|score| score.exp()).collect();
        let mut all = vec![(Vec::new(), 1.0)];
        for _ in 0..n {
            all = all
                .into_iter()
                .flat_map(|(drawn, p): (Vec<usize>, f64)| {
                    let left: Vec<usize> = (0..weights.len()).filter(|i| !drawn.contains(i)).collect();
                    let total: f64 = left.iter().map(|&i| weights[i]).sum();
                    let next = |i: usize| ([drawn.as_slice(), &[i]].concat(), p * weights[i] / total);
                    left.into_iter().map(next).collect::<Vec<_>>()
                })
                .collect();
        }
        all
    }

    /// Two beams and two tokens: four tokens are drawn, the best two of them are followed, and the better of the first two
    /// pairs drawn then is the result.
    #[test]
    fn sampled_beams_follow_their_law() {
        let temperature = 2.0;
        let mut exact: HashMap<Vec<u32>, f64> = HashMap::new();
        let first = scores(2, 0.0, temperature);
        for (mut drawn, p) in sequences(&first, 4) {
            drawn.sort_by(|a, b| first[*b].total_cmp(&first[*a]));
            let second: Vec<f64> =
                drawn[..2].iter().flat_map(|&id| scores(id as u32, first[id], temperature)).collect();
            for (pair, q) in sequences(&second, 2) {
                let best = if second[pair[0]] > second[pair[1]] { pair[0] } else { pair[1] };
                let ids = vec![drawn[best / SIZE] as u32, (best % SIZE) as u32];
                *exact.entry(ids).or_default() += p * q;
            }
        }
        let (n, mut counts) = (6000, HashMap::<Vec<u32>, usize>::new());
        for seed in 0..n {
            let options = GenerationOptions { ignore_eos: true, ..options(temperature, seed, 2) };
            *counts.entry(search(&options, &[vec![1, 2]]).remove(0).ids).or_default() += 1;
        }
        assert!((exact.values().sum::<f64>() - 1.0).abs() < 1e-9);
        let likely = exact.values().filter(|p| **p > 0.02).count();
        assert!(likely > 5, "{exact:?}");
        for (ids, p) in &exact {
            check(counts.remove(ids).unwrap_or(0), *p, n as usize, ids);
        }
        assert!(counts.is_empty(), "{counts:?}");
    }

    #[test]
    fn sampled_beams_at_low_temperatures_are_beam_search() {
        for early_stopping in [EarlyStopping::Heuristic, EarlyStopping::Complete, EarlyStopping::Never] {
            for (count, length_penalty) in [(2, 1.0), (3, 0.0), (4, 2.0)] {
                for prompt in [vec![0], vec![3, 1], vec![2]] {
                    let beams = Beams { early_stopping, length_penalty, ..Beams::new(count) };
                    let with = |temperature| {
                        let options = GenerationOptions { beams: Some(beams), ..options(temperature, 7, 6) };
                        search(&options, std::slice::from_ref(&prompt))
                    };
                    assert_eq!(with(2e-3), with(0.0), "{beams:?} after {prompt:?}");
                }
            }
        }
    }

    #[test]
    fn draws_do_not_depend_on_other_prompts() {
        let both = search(&options(1.0, 3, 6), &[vec![0], vec![0]]);
        assert_eq!(search(&options(1.0, 3, 6), &[vec![0]]), both[..1]);
        assert_ne!(both[0], both[1], "each prompt has its draws");
        // Fewer tokens than draws are left: one of each beam.
        let mut few = options(1.0, 3, 3);
        few.sampling.top_k = Some(1);
        few.constraints.suppressed = vec![0, 1, 3, 4];
        few.ignore_eos = true;
        assert_eq!(search(&few, &[vec![0]])[0].ids, [2, 2, 2]);
    }
}
