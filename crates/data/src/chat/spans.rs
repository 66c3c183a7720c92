//! Positions of the assistant's turns in a rendered conversation whose template does not mark them.
//!
//! The turn of message `i` begins where the messages before it end when they are rendered with a generation
//! prompt, and ends where the messages up to it end. Templates that render earlier turns differently from the
//! last one (without their reasoning, for example) break that rule; for them the answer is replaced by a
//! marker, the conversation is rendered again, and the common text around the marker gives the position.

use std::ops::Range;

use super::{ChatTemplate, Message, RenderOptions};
use crate::error::{DataError, Result};

/// Stands for an answer whose position is searched. A noncharacter, which real text never contains.
pub(super) const PROBE: char = '\u{FDD2}';

/// The role of answers.
const ASSISTANT: &str = "assistant";

/// The conversation with the marker as the content of one message.
pub(super) fn probe(messages: &[Message], index: usize) -> Vec<Message> {
    let mut messages = messages.to_vec();
    messages[index] = messages[index].with_content(&PROBE.to_string());
    messages
}

/// The spans of all assistant messages in `whole`.
pub(super) fn of_answers(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions<'_>,
    whole: &str,
) -> Result<Vec<Range<usize>>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if message.role() != ASSISTANT {
            continue;
        }
        let after = spans.last().map_or(0, |span: &Range<usize>| span.end);
        let turn = Turn { template, messages, options, index, whole };
        let span = match turn.by_prefixes()? {
            Some(span) if span.start >= after => Some(span),
            _ => turn.by_probe(after)?,
        };
        let lost = || DataError::Template {
            path: template.path().to_path_buf(),
            message: format!("the chat template leaves message {} (of the assistant) out", index + 1),
        };
        spans.push(span.ok_or_else(lost)?);
    }
    Ok(spans)
}

struct Turn<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
    options: &'a RenderOptions<'a>,
    index: usize,
    whole: &'a str,
}

impl Turn<'_> {
    /// The rendering of some messages, or `None` if the template refuses to end there.
    fn rendered(&self, messages: &[Message], add_generation_prompt: bool) -> Option<String> {
        let options = RenderOptions { add_generation_prompt, ..self.options.clone() };
        if messages.is_empty() { None } else { self.template.render(messages, &options).ok() }
    }

    /// The span given by two prefixes of the text, if they are prefixes of it.
    fn by_prefixes(&self) -> Result<Option<Range<usize>>> {
        let is_last = self.index + 1 == self.messages.len();
        let to_end = if is_last {
            Some(self.whole.to_owned())
        } else {
            self.rendered(&self.messages[..=self.index], false)
        };
        let to_start = self.rendered(&self.messages[..self.index], true);
        let (Some(start), Some(end)) = (to_start, to_end) else { return Ok(None) };
        let fits = self.whole.starts_with(&end) && end.starts_with(&start) && start.len() < end.len();
        Ok(fits.then_some(start.len()..end.len()))
    }

    /// The span given by the position of the answer's content; the generation prompt gives the head of the
    /// turn, the text after the content of a final turn gives its tail.
    fn by_probe(&self, after: usize) -> Result<Option<Range<usize>>> {
        let probed = self.template.marked_raw(&probe(self.messages, self.index), self.options)?;
        let Some((head, tail)) = probed.split_once(PROBE) else { return Ok(None) };
        if !self.whole.ends_with(tail) || self.whole.len() < tail.len() {
            return Ok(None);
        }
        let content_end = self.whole.len() - tail.len();
        let content_start = common_prefix(head, self.whole).min(content_end);
        if content_start < after {
            return Ok(None);
        }
        let start = self.head(after..content_start).unwrap_or(content_start);
        let upto = probe(&self.messages[..=self.index], self.index);
        let own_tail = self.template.marked_raw(&upto, self.options).ok();
        let own_tail = own_tail.as_deref().and_then(|text| text.split_once(PROBE)).map(|(_, tail)| tail);
        let end = content_end + own_tail.map_or(0, |own| common_prefix(own, &self.whole[content_end..]));
        Ok((start < end).then_some(start..end))
    }

    /// End of the generation prompt, in the part of the text before the content.
    fn head(&self, part: Range<usize>) -> Option<usize> {
        let before = &self.messages[..self.index];
        let (with, without) = (self.rendered(before, true)?, self.rendered(before, false)?);
        let prompt = with.strip_prefix(&without).filter(|prompt| !prompt.is_empty())?;
        let place = self.whole[part.clone()].rfind(prompt)?;
        Some(part.start + place + prompt.len())
    }
}

/// Length of the common prefix of two texts in bytes, truncated to whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}
