//! Answers to questions: the best span of the windows over a context, and SQuAD's metrics.

use lowrank_data::glue::Metric;
use lowrank_data::questions::{Asked, AskedWindow};

use crate::error::{EvalError, Result};
use crate::score::argmax;
use crate::squad::{exact_match, word_f1};

/// Default limit on the tokens of an answer, as in transformers' pipeline.
pub const MAX_ANSWER_TOKENS: usize = 15;

/// How answers are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerOptions {
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Whether a question may have no answer.
    pub may_be_none: bool,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self { max_tokens: MAX_ANSWER_TOKENS, may_be_none: false }
    }
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its text, empty for no answer.
    pub text: String,
    /// Its first character in the context.
    pub start: usize,
    /// One more than its last character.
    pub end: usize,
    /// The probability of its start times that of its end, summed over the windows whose best span has the same text.
    pub score: f64,
    /// The same of no answer: the smallest of all windows.
    pub none_score: f64,
}

/// The answer to each question, from `[tokens, 2]` logits of each window.
///
/// In every window the probabilities of starts and ends are softmaxes over the tokens of the context and the first special
/// token, which stands for no answer. The best span of a window maximizes their product among spans of at most
/// `max_tokens`, extended to whole words; the best of the windows is the answer. This is the question answering pipeline of
/// transformers 4, except that an answer has no spaces around it.
///
/// # Errors
/// Non-finite logits, rows of logits that do not fit the windows.
pub fn answers(asked: &Asked, logits: &[Vec<f32>], options: AnswerOptions) -> Result<Vec<Answer>> {
    if logits.len() != asked.windows.len() {
        return Err(EvalError::Length { predictions: logits.len(), labels: asked.windows.len() });
    }
    let mut found: Vec<Vec<Answer>> = vec![Vec::new(); asked.rows.len()];
    for (index, (window, logits)) in asked.windows.iter().zip(logits).enumerate() {
        argmax(index, logits)?;
        let best = Best::of(window, logits, options.max_tokens).ok_or(EvalError::Kind {
            metric: "answer".into(),
            what: "a window whose logits are not two for each token",
        })?;
        let known = &mut found[window.question];
        let context = &asked.rows[window.question].context;
        let text: String = context.chars().skip(best.start).take(best.end - best.start).collect();
        let none_score = known.first().map_or(best.none, |first: &Answer| first.none_score.min(best.none));
        match known.iter_mut().find(|other| other.text.to_lowercase() == text.to_lowercase()) {
            Some(other) => other.score += best.score,
            None => {
                known.push(Answer { text, start: best.start, end: best.end, score: best.score, none_score });
            }
        }
        known.iter_mut().for_each(|answer| answer.none_score = none_score);
    }
    let choose = |known: Vec<Answer>| {
        let none_score = known.first().map_or(0.0, |answer| answer.none_score);
        let none = Answer { text: String::new(), start: 0, end: 0, score: none_score, none_score };
        // Of equal scores the first.
        let best =
            known.into_iter().reduce(|best, other| if other.score > best.score { other } else { best });
        best.filter(|best| !options.may_be_none || best.score >= none_score).unwrap_or(none)
    };
    Ok(found.into_iter().map(choose).collect())
}

/// SQuAD's F1 and exact match, means over the questions of the best over each one's right answers.
pub fn score_answers(asked: &Asked, answers: &[Answer]) -> [(Metric, f64); 2] {
    let mean = |value: fn(&str, &[String]) -> f64| {
        let sum: f64 =
            asked.rows.iter().zip(answers).map(|(row, answer)| value(&answer.text, &row.answers)).sum();
        sum / asked.rows.len().max(1) as f64
    };
    [(Metric::F1, mean(word_f1)), (Metric::ExactMatch, mean(exact_match))]
}

/// The best span of a window, in characters.
struct Best {
    start: usize,
    end: usize,
    score: f64,
    /// Score of no answer.
    none: f64,
}

impl Best {
    fn of(window: &AskedWindow, logits: &[f32], max_tokens: usize) -> Option<Self> {
        let tokens = logits.len() / 2;
        let fits =
            logits.len().is_multiple_of(2) && window.context.end <= tokens && !window.context.is_empty();
        if !fits || window.words.len() != window.context.len() {
            return None;
        }
        let [starts, ends] = [0, 1].map(|side| probabilities(window, logits, side));
        let none = if window.none.contains(&0) { starts[0] * ends[0] } else { 0.0 };
        let mut best = (window.context.start, window.context.start, 0.0);
        for start in window.context.clone() {
            let last = window.context.end.min(start.saturating_add(max_tokens));
            for (end, probability) in ends.iter().enumerate().take(last).skip(start) {
                let score = starts[start] * probability;
                if score > best.2 {
                    best = (start, end, score);
                }
            }
        }
        let word = |token: usize| &window.words[token - window.context.start];
        let (start, end) = (word(best.0).start, word(best.1).end);
        Some(Self { start, end: end.max(start), score: best.2, none })
    }
}

/// Softmax over the tokens of the context and those that stand for no answer; 0 elsewhere.
fn probabilities(window: &AskedWindow, logits: &[f32], side: usize) -> Vec<f64> {
    let logit = |token: usize| f64::from(logits[2 * token + side]);
    let taken = || {
        let none = window.none.iter().copied().filter(|token| !window.context.contains(token));
        window.context.clone().chain(none.filter(|token| 2 * token < logits.len()))
    };
    let top = taken().map(logit).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = taken().map(|token| (logit(token) - top).exp()).sum();
    let mut out = vec![0.0; logits.len() / 2];
    taken().for_each(|token| out[token] = (logit(token) - top).exp() / sum);
    out
}

#[cfg(test)]
mod tests {
    use lowrank_data::questions::AskedRow;

    use super::*;

    /// `[CLS] q [SEP] a b c [SEP]`, the context «aa bb cc», in one window or more.
    fn asked(windows: usize) -> Asked {
        let row = AskedRow { context: "aa bb cc".into(), answers: vec!["bb cc".into()] };
        let window = AskedWindow { question: 0, context: 3..6, words: vec![0..2, 3..5, 6..8], none: vec![0] };
        Asked { rows: vec![row], windows: vec![window; windows] }
    }

    fn logits(starts: [f32; 7], ends: [f32; 7]) -> Vec<f32> {
        starts.into_iter().zip(ends).flat_map(|(start, end)| [start, end]).collect()
    }

    #[test]
    fn the_best_span_is_within_the_context_and_the_limit() {
        // The largest logits are outside of the context, and an end cannot come before its start.
        let row = logits([0.0, 99.0, 99.0, 0.0, 3.0, 0.0, 99.0], [0.0, 99.0, 99.0, 4.0, 0.0, 2.0, 99.0]);
        let options = AnswerOptions::default();
        let found = &answers(&asked(1), std::slice::from_ref(&row), options).unwrap()[0];
        // By hand: softmax over [CLS] and the context.
        let [s, e] = [3.0 + 3f64.exp(), 2.0 + 4f64.exp() + 2f64.exp()];
        assert_eq!((&*found.text, found.start, found.end), ("bb cc", 3, 8));
        assert!((found.score - 3f64.exp() * 2f64.exp() / (s * e)).abs() < 1e-12);
        assert!((found.none_score - 1.0 / (s * e)).abs() < 1e-12);
        let options = AnswerOptions { max_tokens: 1, ..options };
        let found = &answers(&asked(1), &[row], options).unwrap()[0];
        assert_eq!(found.text, "aa");
        assert_eq!(
            score_answers(&asked(1), std::slice::from_ref(found)),
            [(Metric::F1, 0.0), (Metric::ExactMatch, 0.0)]
        );
    }

    #[test]
    fn equal_answers_of_windows_are_summed_and_none_is_the_least_sure() {
        let sure = logits([0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0]);
        let none = logits([9.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        let options = AnswerOptions { may_be_none: true, ..AnswerOptions::default() };
        let one = |rows: &[Vec<f32>]| answers(&asked(rows.len()), rows, options).unwrap().remove(0);
        let (once, twice) = (one(std::slice::from_ref(&sure)), one(&[sure.clone(), sure.clone()]));
        assert!((2.0 * once.score - twice.score).abs() < 1e-12);
        assert_eq!(one(&[none.clone(), sure]).text, "bb");
        let found = one(&[none]);
        assert_eq!((&*found.text, found.start, found.end), ("", 0, 0));
        assert_eq!(found.score, found.none_score);
    }

    #[test]
    fn misfits_are_errors() {
        let options = AnswerOptions::default();
        assert!(answers(&asked(1), &[], options).is_err());
        assert!(answers(&asked(1), &[vec![0.0; 8]], options).is_err());
        let error = answers(&asked(1), &[vec![f32::NAN; 14]], options).unwrap_err();
        assert!(matches!(error, EvalError::NotFinite { .. }), "{error}");
    }
}
