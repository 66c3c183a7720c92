//! Classification and regression metrics from logits and labels, and perplexity.
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

mod answers;
mod entities;
mod error;
mod metrics;
mod perplexity;
mod score;
mod squad;
mod windows;

pub use answers::{Answer, AnswerOptions, MAX_ANSWER_TOKENS, answers, score_answers};
pub use entities::{Entity, EntityCounts, entities};
pub use error::{EvalError, Result};
pub use metrics::{accuracy, f1, matthews, pearson, spearman};
pub use perplexity::Perplexity;
pub use score::{argmax, predicted_set, score};
pub use squad::{exact_match, word_f1};
pub use windows::{Window, windows};
