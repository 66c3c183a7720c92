//! Rows as tokens, with a flag on each target token.

use std::collections::HashSet;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Mutex, OnceLock};

use rayon::prelude::*;

use super::{Conversation, Row, Rows};
use crate::chat::{ChatTemplate, Message, RenderOptions};
use crate::error::{DataError, Result};
use crate::tokenize::TextTokenizer;

/// The target tokens of a conversation or completion. In plain text all tokens are targets. Answers whose `weight` or `train` is
/// 0 or false are never targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossOn {
    /// The completion: the row's `completion`, or otherwise the last answer of a conversation, or every answer if any is marked to
    /// be learnt by its `weight` or `train`.
    #[default]
    Completion,
    /// Every answer of the assistant.
    Assistant,
    /// Every token, except those of answers with `weight` 0.
    All,
}

impl LossOn {
    /// Its name on the command line and in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Assistant => "assistant",
            Self::All => "all",
        }
    }
}

impl FromStr for LossOn {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let all = [Self::Completion, Self::Assistant, Self::All];
        let found = all.into_iter().find(|known| known.name() == name);
        found.ok_or_else(|| format!("'{name}'; expected completion, assistant or all"))
    }
}

/// The tokens of a row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenRow {
    /// Token ids, shape `[tokens]`.
    pub ids: Vec<u32>,
    /// Whether the token is a target, to be predicted from those before it, shape `[tokens]`. The first token
    /// has nothing before it and is never a target.
    pub is_learnt: Vec<bool>,
}

impl TokenRow {
    fn new(ids: Vec<u32>, mut is_learnt: Vec<bool>) -> Self {
        if let Some(first) = is_learnt.first_mut() {
            *first = false;
        }
        Self { ids, is_learnt }
    }

    /// The number of target tokens.
    pub fn n_learnt(&self) -> usize {
        self.is_learnt.iter().filter(|&&learnt| learnt).count()
    }

    /// Whether the row begins with a prompt: the first possible target is not one.
    pub fn has_prompt(&self) -> bool {
        self.is_learnt.get(1).is_some_and(|learnt| !learnt)
    }

    /// The text, with `⟦` and `⟧` around the targets.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`].
    pub fn show(&self, tokenizer: &TextTokenizer) -> Result<String> {
        let mut out = String::new();
        let mut start = 0;
        while start < self.ids.len() {
            let learnt = self.is_learnt[start];
            let len = self.is_learnt[start..].iter().take_while(|&&other| other == learnt).count();
            let text = tokenizer.decode(&self.ids[start..start + len], false)?;
            out.push_str(&if learnt { format!("⟦{text}⟧") } else { text });
            start += len;
        }
        Ok(out)
    }

    /// Keeps the first `len` tokens; true if there were more.
    fn cut(&mut self, len: usize) -> bool {
        let is_longer = self.ids.len() > len;
        self.ids.truncate(len);
        self.is_learnt.truncate(len);
        is_longer
    }
}

/// The tokens of a preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPair {
    /// The chosen side.
    pub chosen: TokenRow,
    /// The rejected side.
    pub rejected: TokenRow,
}

/// All rows of a file as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodedRows {
    /// The rows in order; a long plain text gives several.
    pub rows: Vec<TokenRow>,
    /// The index of each row in the file.
    pub sources: Vec<usize>,
    /// Number of rows truncated to the maximum length.
    pub n_cut: usize,
    /// Number of rows left out because truncation, or the weights of their answers, leave no target.
    pub n_left_out: usize,
}

/// All preferences of a file as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairRows {
    /// The pairs in order.
    pub pairs: Vec<TokenPair>,
    /// The index of each pair in the file.
    pub sources: Vec<usize>,
    /// Number of pairs with a truncated side.
    pub n_cut: usize,
    /// Number of pairs left out because truncation leaves no target on a side.
    pub n_left_out: usize,
}

/// Turns rows into tokens.
#[derive(Debug)]
pub struct RowEncoder<'a> {
    pub(super) tokenizer: &'a TextTokenizer,
    template: Option<&'a ChatTemplate>,
    loss_on: LossOn,
    pub(super) max_length: usize,
    /// Added before and after a plain text.
    pub(super) frame: (Vec<u32>, Vec<u32>),
    /// Kinds of content that the template is known to render.
    shown: Mutex<HashSet<String>>,
    /// Whether the template ends answers with nothing.
    is_open: OnceLock<bool>,
}

impl<'a> RowEncoder<'a> {
    /// An encoder that truncates at `max_length` tokens. Conversations need the model's template.
    ///
    /// # Errors
    /// A `max_length` below 2; a tokenizer that cannot encode.
    pub fn new(
        tokenizer: &'a TextTokenizer,
        template: Option<&'a ChatTemplate>,
        loss_on: LossOn,
        max_length: usize,
    ) -> Result<Self> {
        let frame = tokenizer.frame()?;
        let least = 2 + frame.0.len() + frame.1.len();
        if max_length < least {
            let expected = format!("give at least {least}");
            return Err(DataError::OutOfRange { what: "max_length", got: max_length.to_string(), expected });
        }
        Ok(Self {
            tokenizer,
            template,
            loss_on,
            max_length,
            frame,
            shown: Mutex::default(),
            is_open: OnceLock::new(),
        })
    }

    /// Encodes a file's rows on all cores.
    ///
    /// # Errors
    /// Rows that are preferences, a conversation without a template or one that the template refuses, and a
    /// file without any target left. Each error names file and row.
    pub fn encode(&self, rows: &Rows) -> Result<EncodedRows> {
        let parts = each(rows, |row| self.row(row))?;
        let mut encoded = EncodedRows::default();
        for (index, part) in parts.into_iter().enumerate() {
            for mut row in part {
                encoded.n_cut += usize::from(row.cut(self.max_length));
                if row.n_learnt() == 0 {
                    encoded.n_left_out += 1;
                } else {
                    encoded.rows.push(row);
                    encoded.sources.push(index);
                }
            }
        }
        self.check_left(rows, encoded.rows.is_empty())?;
        Ok(encoded)
    }

    /// Encodes a file's preferences on all cores. The targets of each side are its completion.
    ///
    /// # Errors
    /// As [`RowEncoder::encode`]; rows that are not preferences.
    pub fn encode_pairs(&self, rows: &Rows) -> Result<PairRows> {
        let parts = each(rows, |row| self.pair(row))?;
        let mut encoded = PairRows::default();
        for (index, mut pair) in parts.into_iter().enumerate() {
            let is_cut = [pair.chosen.cut(self.max_length), pair.rejected.cut(self.max_length)];
            encoded.n_cut += usize::from(is_cut.contains(&true));
            if pair.chosen.n_learnt() == 0 || pair.rejected.n_learnt() == 0 || pair.chosen == pair.rejected {
                encoded.n_left_out += 1;
            } else {
                encoded.pairs.push(pair);
                encoded.sources.push(index);
            }
        }
        self.check_left(rows, encoded.pairs.is_empty())?;
        Ok(encoded)
    }

    fn check_left(&self, rows: &Rows, is_empty: bool) -> Result<()> {
        if is_empty {
            let remedy = format!(
                "none of its rows has a target token within {} tokens; raise the maximum length",
                self.max_length
            );
            return Err(DataError::Empty { path: rows.path().to_path_buf(), remedy });
        }
        Ok(())
    }

    fn row(&self, row: &Row) -> Result<Vec<TokenRow>> {
        match row {
            Row::Text(text) => self.text(text),
            Row::Completion { prompt, completion } => {
                Ok(vec![self.completion(prompt, completion, self.loss_on)?])
            }
            Row::Instruction { instruction, input, output } => {
                Ok(vec![self.instruction(instruction, input, output)?])
            }
            Row::Chat(conversation) => Ok(vec![self.chat(conversation, self.loss_on)?]),
            Row::PreferenceText { .. } | Row::PreferenceChat { .. } => Err(unfit(
                "the row is a preference (chosen, rejected), which this objective does not support",
            )),
        }
    }

    fn pair(&self, row: &Row) -> Result<TokenPair> {
        match row {
            Row::PreferenceText { prompt, chosen, rejected } => Ok(TokenPair {
                chosen: self.completion(prompt, chosen, LossOn::Completion)?,
                rejected: self.completion(prompt, rejected, LossOn::Completion)?,
            }),
            Row::PreferenceChat { chosen, rejected } => Ok(TokenPair {
                chosen: self.chat(chosen, LossOn::Completion)?,
                rejected: self.chat(rejected, LossOn::Completion)?,
            }),
            _ => Err(unfit("the row is not a preference; give prompt, chosen and rejected")),
        }
    }

    /// A text in pieces of at most the maximum length, each with the tokens that the tokenizer adds to a
    /// text; the last ends with the end-of-text token, if the tokenizer has one.
    fn text(&self, text: &str) -> Result<Vec<TokenRow>> {
        let (mut ids, _) = self.tokenizer.encode_spans(text)?;
        let (before, after) = &self.frame;
        if after.is_empty() {
            ids.extend(self.tokenizer.special_ids().eos.filter(|eos| ids.last() != Some(eos)));
        }
        let piece = |ids: &[u32]| {
            let ids = [before.as_slice(), ids, after.as_slice()].concat();
            let is_learnt = vec![true; ids.len()];
            TokenRow::new(ids, is_learnt)
        };
        Ok(ids.chunks(self.max_length - before.len() - after.len()).map(piece).collect())
    }

    /// Literal prompt and completion, with the tokens that the tokenizer adds before a text, and the
    /// end-of-text token.
    fn completion(&self, prompt: &str, completion: &str, loss_on: LossOn) -> Result<TokenRow> {
        let eos = self.eos()?;
        let text = format!("{prompt}{completion}");
        let (ids, offsets) = self.tokenizer.encode_spans(&text)?;
        let span = prompt.len()..text.len();
        let is_learnt = offsets.iter().map(|token| loss_on == LossOn::All || overlap(token, &span));
        let before = &self.frame.0;
        let mut is_learnt: Vec<bool> =
            before.iter().map(|_| loss_on == LossOn::All).chain(is_learnt).collect();
        let mut ids = [before.as_slice(), &ids].concat();
        if ids.last() != Some(&eos) {
            ids.push(eos);
            is_learnt.push(true);
        }
        Ok(TokenRow::new(ids, is_learnt))
    }

    /// The token that ends a completion.
    pub(super) fn eos(&self) -> Result<u32> {
        self.tokenizer.special_ids().eos.ok_or_else(|| {
            unfit("the tokenizer has no eos_token to end a completion with; set it in tokenizer_config.json")
        })
    }

    /// A conversation of two messages; without a template, Alpaca's own text around the instruction.
    fn instruction(&self, instruction: &str, input: &str, output: &str) -> Result<TokenRow> {
        if self.template.is_none() {
            return self.completion(&alpaca_prompt(instruction, input), output, self.loss_on);
        }
        let messages = vec![request(instruction, input), Message::new("assistant", output)];
        let conversation = Conversation { messages, n_prompt: Some(1), ..Conversation::default() };
        self.chat(&conversation, self.loss_on)
    }

    fn chat(&self, conversation: &Conversation, loss_on: LossOn) -> Result<TokenRow> {
        let template = self.template.ok_or_else(|| {
            unfit(
                "the model has no chat template for a conversation; add chat_template.jinja to its folder, or \
                 give prompt and completion as strings",
            )
        })?;
        let options = RenderOptions {
            tools: conversation.tools.as_ref(),
            variables: conversation.variables.clone(),
            ..RenderOptions::default()
        };
        let messages = &*template.with_arguments(&conversation.messages, &options)?;
        self.check_shown(template, messages, &options)?;
        let answers = template.answers(messages, &options)?;
        // Answers of the prompt are given, not targets.
        let first = match loss_on {
            LossOn::Completion => {
                let is_answer = |message: &Message| message.role() == "assistant";
                let is_marked = messages.iter().any(|message| is_answer(message) && message.is_marked());
                let last = || messages.iter().rposition(is_answer).filter(|_| !is_marked);
                conversation.n_prompt.or_else(last)
            }
            LossOn::Assistant | LossOn::All => None,
        };
        let first = first.unwrap_or(0);
        let (mut ids, offsets) = self.tokenizer.encode_spans(&answers.text)?;
        let by_default = loss_on == LossOn::All;
        let mut is_learnt = vec![by_default; ids.len()];
        let is_target = |index: usize| index >= first && messages[index].is_target();
        let are_targets: Vec<bool> = match answers.messages {
            Some(owners) => owners.into_iter().map(is_target).collect(),
            None if (0..messages.len()).all(is_target) => vec![true; answers.spans.len()],
            None => {
                return Err(unfit(
                    "the chat template marks parts of answers, and it cannot be told which belong to which answer; train on all \
                     with --loss-on assistant, or give one answer in each row",
                ));
            }
        };
        // The last token of the last answer, if it is learnt and nothing ends it.
        let mut open = None;
        let is_ended = template.marks_answers() || !self.is_open(template);
        let eos = self.tokenizer.special_ids().eos;
        for (is_target, span) in are_targets.into_iter().zip(&answers.spans) {
            let tokens = self.tokens_in(&ids, &offsets, span, &answers.text);
            let last = tokens.last().copied().filter(|_| is_target && !is_ended);
            open = last.filter(|&last| Some(ids[last]) != eos);
            if is_target != by_default {
                let stop = open.and_then(|last| self.stop_after(&ids, last));
                tokens.into_iter().chain(stop).for_each(|token| is_learnt[token] = is_target);
            }
        }
        if open.is_some_and(|last| last + 1 == ids.len())
            && let Some(eos) = eos
        {
            ids.push(eos);
            is_learnt.push(true);
        }
        Ok(TokenRow::new(ids, is_learnt))
    }

    /// Whether the template writes nothing after the text of a last answer.
    fn is_open(&self, template: &ChatTemplate) -> bool {
        *self.is_open.get_or_init(|| template.turn_end().is_ok_and(|end| end.trim().is_empty()))
    }

    /// The token after an answer's last one, if it is the one at which a reply stops: that of the next turn, in templates that end an
    /// answer with nothing (GLM-4).
    fn stop_after(&self, ids: &[u32], last: usize) -> Option<usize> {
        let next = *ids.get(last + 1)?;
        let is_begin = self.tokenizer.special_ids().bos == Some(next);
        (self.tokenizer.is_special(next) && !is_begin).then_some(last + 1)
    }

    /// The tokens of an answer. Text after the turn's last special token (the line feed after `<|im_end|>`) is never generated
    /// and not included.
    fn tokens_in(
        &self,
        ids: &[u32],
        offsets: &[Range<usize>],
        span: &Range<usize>,
        text: &str,
    ) -> Vec<usize> {
        let mut tokens: Vec<usize> = (0..ids.len()).filter(|&t| overlap(&offsets[t], span)).collect();
        let last = tokens.iter().rposition(|&t| self.tokenizer.is_special(ids[t]));
        let is_blank =
            |last: usize| text[offsets[tokens[last]].end.min(span.end)..span.end].trim().is_empty();
        if let Some(last) = last.filter(|&last| is_blank(last)) {
            tokens.truncate(last + 1);
        }
        tokens
    }

    /// Refuses messages of a role, calls or tools that the template omits; each kind is tried once.
    fn check_shown(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<()> {
        let kinds = kinds(messages, options);
        if self.shown.lock().is_ok_and(|seen| kinds.is_subset(&seen)) {
            return Ok(());
        }
        if let Some(dropped) = template.dropped(messages, options)? {
            let message = format!("the chat template omits {dropped}; remove them");
            return Err(DataError::Template { path: template.path().to_path_buf(), message });
        }
        if let Ok(mut seen) = self.shown.lock() {
            seen.extend(kinds);
        }
        Ok(())
    }
}

/// An instruction in Alpaca's format as a request.
pub(super) fn request(instruction: &str, input: &str) -> Message {
    if has_input(input) {
        return Message::new("user", &format!("{instruction}\n\n{input}"));
    }
    Message::new("user", instruction)
}

/// The kinds of content of a conversation: its roles, numbers of calls in a message, whether there are tools.
fn kinds(messages: &[Message], options: &RenderOptions<'_>) -> HashSet<String> {
    let roles =
        messages.iter().filter(|message| message.must_show()).map(|message| message.role().to_owned());
    let calls = messages.iter().map(Message::n_tool_calls).filter(|n| *n > 0).map(|n| format!("{n} calls"));
    roles.chain(calls).chain(options.tools.map(|_| "tools".to_owned())).collect()
}

/// Whether an instruction's input is more than white space.
fn has_input(input: &str) -> bool {
    !input.trim().is_empty()
}

/// The prompts of Stanford Alpaca (Taori et al. 2023).
pub(super) fn alpaca_prompt(instruction: &str, input: &str) -> String {
    if has_input(input) {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
             response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### \
             Input:\n{input}\n\n### Response:\n"
        )
    } else {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        )
    }
}

/// Whether a token covers a part of a span; a token without text belongs to the one before it.
fn overlap(token: &Range<usize>, span: &Range<usize>) -> bool {
    if token.is_empty() {
        span.start < token.end && token.end <= span.end
    } else {
        token.start < span.end && span.start < token.end
    }
}

pub(super) fn unfit(message: &str) -> DataError {
    DataError::Batch { message: message.to_owned() }
}

/// Maps a file's rows on all cores, in order; errors name file and row.
pub(super) fn each<T: Send>(rows: &Rows, f: impl Fn(&Row) -> Result<T> + Sync) -> Result<Vec<T>> {
    let map = |(index, (_, row)): (usize, &(usize, Row))| f(row).map_err(|e| located(rows, index, e));
    rows.rows.par_iter().enumerate().map(map).collect()
}

/// The error prefixed with file and row.
fn located(rows: &Rows, index: usize, error: DataError) -> DataError {
    match error {
        DataError::Batch { message } | DataError::Template { message, .. } => rows.error(index, message),
        error @ DataError::Encoding { .. } => rows.error(index, error.to_string()),
        other => other,
    }
}
