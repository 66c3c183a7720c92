//! Positions of the assistant's turns in a rendered conversation whose template does not mark them, or marks parts of them.
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

/// The indices of all assistant messages with their spans in `whole`.
pub(super) fn of_answers(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions<'_>,
    whole: &str,
) -> Result<Vec<(usize, Range<usize>)>> {
    let mut spans: Vec<(usize, Range<usize>)> = Vec::new();
    for index in answers(messages) {
        let after = spans.last().map_or(0, |(_, span)| span.end);
        let span = Turn { template, messages, options, index, whole }.span(after)?;
        spans.push((index, span.ok_or_else(|| lost(template, index))?));
    }
    Ok(spans)
}

/// The index of the assistant message that each `{% generation %}` block belongs to: the first whose turn does not end
/// before the block begins. `None` if turns are not found and there is not one block for each answer.
pub(super) fn messages_of(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions<'_>,
    whole: &str,
    blocks: &[Range<usize>],
) -> Option<Vec<usize>> {
    let all: Vec<usize> = answers(messages).collect();
    let Some((&last, earlier)) = all.split_last().filter(|_| !blocks.is_empty()) else {
        return Some(vec![messages.len().saturating_sub(1); blocks.len()]);
    };
    let mut ends = Vec::with_capacity(earlier.len());
    for &index in earlier {
        let after = ends.last().map_or(0, |(_, end)| *end);
        // A template may refuse the conversations that the search renders.
        match (Turn { template, messages, options, index, whole }).span(after).ok().flatten() {
            // The end found may be too early, since the last turn may end differently; it is behind the turn's content.
            Some(span) => ends.push((index, span.end)),
            None => return (blocks.len() == all.len()).then_some(all),
        }
    }
    let of = |block: &Range<usize>| {
        ends.iter().find(|(_, end)| block.start < *end).map_or(last, |(index, _)| *index)
    };
    Some(blocks.iter().map(of).collect())
}

/// The indices of the assistant's messages.
fn answers(messages: &[Message]) -> impl Iterator<Item = usize> {
    messages.iter().enumerate().filter(|(_, message)| message.role() == ASSISTANT).map(|(index, _)| index)
}

fn lost(template: &ChatTemplate, index: usize) -> DataError {
    DataError::Template {
        path: template.path().to_path_buf(),
        message: format!("the chat template leaves message {} (of the assistant) out", index + 1),
    }
}

struct Turn<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
    options: &'a RenderOptions<'a>,
    index: usize,
    whole: &'a str,
}

impl Turn<'_> {
    /// The span, which begins at `after` or later.
    fn span(&self, after: usize) -> Result<Option<Range<usize>>> {
        match self.by_prefixes()? {
            Some(span) if span.start >= after => Ok(Some(span)),
            _ => self.by_probe(after),
        }
    }

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
        let probed = self.template.probed(&probe(self.messages, self.index), self.options)?;
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
        let own_tail = self.template.probed(&upto, self.options).ok();
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
