//! Options of question answering: windows over long contexts, and the choice of answers.

use anyhow::{Result, bail, ensure};
use clap::Args;
use lowrank_data::questions::{MAX_WINDOW, WindowOptions};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_eval::{AnswerOptions, MAX_ANSWER_TOKENS};
use lowrank_models::HeadLevel;

use super::given::check_effect;

/// `--doc-stride` and `--max-answer-len`.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct SpanArgs {
    /// Question answering: context tokens that neighbouring windows of a long context share [default: half of
    /// the window, at most 128]
    #[arg(long, value_name = "N")]
    pub(crate) doc_stride: Option<usize>,
    /// Question answering: longest answer in tokens
    #[arg(long, value_name = "N", default_value_t = MAX_ANSWER_TOKENS)]
    pub(crate) max_answer_len: usize,
}

impl SpanArgs {
    /// Fields of the options.
    const OPTIONS: [&str; 3] = ["doc_stride", "max_answer_len", "handle_impossible_answer"];

    /// Refuses the options for a head that does not answer questions.
    pub(crate) fn check(&self, level: HeadLevel) -> Result<()> {
        check_effect(level == HeadLevel::Span, &Self::OPTIONS, "applies to question answering only")?;
        ensure_usage!(self.max_answer_len > 0, "--max-answer-len is 0; give at least 1");
        Ok(())
    }

    /// The windows over contexts, of `max_length` tokens if it was given.
    pub(crate) fn windows(&self, max_length: Option<usize>, tokenizer: &TextTokenizer) -> WindowOptions {
        let limit = || tokenizer.max_length().map_or(MAX_WINDOW, |limit| limit.min(MAX_WINDOW));
        WindowOptions { max_length: max_length.unwrap_or_else(limit), stride: self.doc_stride }
    }

    /// The choice of answers.
    pub(crate) fn answers(&self, may_be_none: bool) -> AnswerOptions {
        AnswerOptions { max_tokens: self.max_answer_len, may_be_none }
    }
}

/// Refuses a question or context without text.
pub(crate) fn check_question<'a>(place: &str, question: &str, context: Option<&'a str>) -> Result<&'a str> {
    let Some(context) = context else {
        bail!(
            "{place}: the model answers questions, and this one has no context; give --text QUESTION --text-pair CONTEXT, \
             or in a file the context after a tab"
        );
    };
    ensure!(!question.trim().is_empty(), "{place}: the question is empty; write one");
    ensure!(
        !context.trim().is_empty(),
        "{place}: the context is empty; give the text that answers the question"
    );
    Ok(context)
}
