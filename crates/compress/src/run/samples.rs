//! The samples of a calibration with gradients: batches of sequences, some of them held out.

use lowrank_kernels::Precision;
use xxhash_rust::xxh3::Xxh3Default;

use super::fisher::Answers;
use super::network::Tokens;

/// One in this many samples is held out to choose the shrinkage.
const HELD_OUT: usize = 8;
/// Tokens per batch.
pub(super) const BATCH_TOKENS: usize = 2048;

/// Sequences that are run together.
pub(super) struct Batch {
    pub(super) tokens: Tokens,
    pub(super) answers: Answers,
    pub(super) is_held_out: bool,
}

/// Packs samples, with held-out samples in separate batches.
pub(super) fn batches(samples: Vec<(Tokens, Answers)>) -> Vec<Batch> {
    let single: Vec<(Tokens, Answers)> = samples.into_iter().flat_map(sequences).collect();
    let n = single.len();
    // Of a few samples one is held out, of a single one none.
    let is_held_out = |i: usize| i % HELD_OUT == HELD_OUT - 1 || (n < HELD_OUT && n > 1 && i + 1 == n);
    let mut batches: Vec<Batch> = Vec::new();
    for held_out in [false, true] {
        let first = batches.len();
        for (_, (tokens, answers)) in single.iter().enumerate().filter(|(i, _)| is_held_out(*i) == held_out) {
            match batches[first..].last_mut() {
                Some(batch) if batch.tokens.n_tokens() + tokens.n_tokens() <= BATCH_TOKENS => {
                    batch.tokens.extend(tokens);
                    batch.answers.extend(answers);
                }
                _ => batches.push(Batch {
                    tokens: tokens.clone(),
                    answers: answers.clone(),
                    is_held_out: held_out,
                }),
            }
        }
    }
    batches
}

/// The sequences of a sample, one by one.
fn sequences((tokens, answers): (Tokens, Answers)) -> Vec<(Tokens, Answers)> {
    let (mut start, mut target) = (0, 0);
    let mut parts = Vec::with_capacity(tokens.lengths.len());
    for (i, &length) in tokens.lengths.iter().enumerate() {
        let range = start..start + length;
        start += length;
        let written = tokens.target_lengths.get(i).copied();
        let to = target + written.unwrap_or_default();
        let targets = tokens.targets.get(target..to).map(<[u32]>::to_vec).unwrap_or_default();
        target = to;
        if length == 0 {
            continue;
        }
        let part = Tokens {
            ids: tokens.ids[range.clone()].to_vec(),
            type_ids: tokens.type_ids.get(range).map(<[u32]>::to_vec).unwrap_or_default(),
            lengths: vec![length],
            targets,
            target_lengths: written.into_iter().collect(),
            ..Tokens::default()
        };
        parts.push((part, answers.nth(i)));
    }
    parts
}

/// Hash of everything that the gradients depend on but the model.
pub(super) fn identity(samples: &[(Tokens, Answers)]) -> String {
    let mut hash = Xxh3Default::new();
    for (tokens, answers) in samples {
        let lengths = tokens.lengths.iter().chain(&tokens.target_lengths);
        lengths.for_each(|n| hash.update(&(*n as u64).to_le_bytes()));
        let ids = tokens.ids.iter().chain(&tokens.type_ids).chain(&tokens.targets);
        ids.for_each(|id| hash.update(&id.to_le_bytes()));
        hash.update(format!("{answers:?}").as_bytes());
    }
    format!("gradients of texts {:032x}{}", hash.digest128(), precision())
}

/// The part of an identity that says how the model's products are rounded, empty if they are not.
pub(super) fn precision() -> String {
    match Precision::chosen() {
        Precision::F32 => String::new(),
        precision => format!(", products in {}", precision.name()),
    }
}
