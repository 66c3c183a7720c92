//! Beam search, with the scores, the choice and the end of transformers' `_beam_search`.

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

impl Rules<'_> {
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
    fn new(prompt: &[u32], rules: &Rules<'_>) -> Self {
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
        }
    }

    /// Number of new tokens of the running beams.
    fn new_tokens(&self) -> usize {
        self.running[0].ids.len() - self.prompt
    }

    /// Follows the best next tokens by the logits of each running beam, or of the first if all are still the prompt, and
    /// returns the row of logits that each new beam continues.
    fn advance(
        &mut self,
        rules: &Rules<'_>,
        logits: &mut [f32],
        mut on_tokens: impl FnMut(&[u32]) -> bool,
    ) -> Result<Vec<usize>> {
        let Rules { options, beams, config, penalties } = rules;
        let rows = logits.len() / config.vocab_size;
        for (beam, logits) in self.running.iter().zip(logits.chunks_exact_mut(config.vocab_size)) {
            if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
                return Err(not_finite());
            }
            log_softmax(logits);
            options.constrain(logits, &beam.ids, self.prompt, &config.eos, penalties);
            if beams.renormalize {
                log_softmax(logits);
            }
        }
        let row_of = |beam: usize| beam.min(rows - 1);
        let scores = self.running.iter().enumerate().flat_map(|(i, beam)| {
            let start = row_of(i) * config.vocab_size;
            logits[start..start + config.vocab_size].iter().map(|x| x + beam.score)
        });
        let n_eos = if options.ignore_eos { 0 } else { config.eos.len() };
        let n = beams.count;
        let chosen = best(scores, n * (1 + n_eos).max(2));
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
    let mut searches: Vec<Search> = prompts.iter().map(|prompt| Search::new(prompt, &rules)).collect();
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
