//! Chat templates: a model's own Jinja template, rendered as in transformers, and the spans of the answers in
//! the text.
//!
//! A template comes from `chat_template.jinja`, `additional_chat_templates/*.jinja` or `chat_template` of
//! `tokenizer_config.json`. It runs in an environment like that of `apply_chat_template` (Jinja2, sandboxed, with
//! `trim_blocks` and `lstrip_blocks`): Python's string and dictionary methods, loop controls, `raise_exception`,
//! `strftime_now`, `tojson` as `json.dumps` writes it, and `{% generation %}`. Fuel bounds its steps and
//! its memory, and values nest to a bounded depth.

mod bounds;
mod environment;
mod message;
mod methods;
mod python;
mod source;
mod spans;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use minijinja::{Environment, ErrorKind};
use serde_json::Map;

use crate::error::{DataError, Result, one_line};
pub(crate) use message::FLAGS;
pub use message::Message;
use message::decoded;

/// Inputs of a template besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions<'a> {
    /// Whether the text ends where the assistant's next answer begins.
    pub add_generation_prompt: bool,
    /// Descriptions of tools, as JSON schemas.
    pub tools: Option<&'a serde_json::Value>,
    /// Further variables of the template, for example `enable_thinking`.
    pub variables: Map<String, serde_json::Value>,
    /// The local time that the template sees, e.g. `2025-03-07T09:05:04`; the system clock's by default.
    pub now: Option<&'a str>,
}

/// A rendered conversation and the positions of its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The rendered conversation.
    pub text: String,
    /// The assistant's turns, as byte ranges of `text`, ascending and disjoint: from the end of the
    /// generation prompt to the end of the turn, end-of-turn token included.
    pub spans: Vec<Range<usize>>,
    /// The index of the message that each span belongs to, ascending. A `{% generation %}` block gives a span, so that a
    /// message may have several or none; `None` if it is not known which blocks belong to which.
    pub messages: Option<Vec<usize>>,
}

/// A chat template, compiled.
///
/// ```
/// use lowrank_data::chat::{ChatTemplate, Message, RenderOptions};
///
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}\
///               {% if add_generation_prompt %}<assistant>{% endif %}";
/// let template = ChatTemplate::new("example".as_ref(), source, Default::default())?;
/// let messages = [Message::new("user", "1+1?"), Message::new("assistant", "2")];
/// let answers = template.answers(&messages, &RenderOptions::default())?;
/// assert_eq!(answers.text, "<user>1+1?</user><assistant>2</assistant>");
/// assert_eq!(&answers.text[answers.spans[0].clone()], "2</assistant>");
/// # Ok::<(), lowrank_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    /// Names of the templates.
    names: Vec<String>,
    special_tokens: Map<String, serde_json::Value>,
    has_generation: bool,
    /// For each template and role tried so far, whether the template accepts content as a list of parts.
    part_roles: Arc<Mutex<HashMap<(String, String), bool>>>,
}

/// The sources of a model folder's templates by name; empty if it has no template.
///
/// # Errors
/// A file that cannot be read or is malformed.
pub fn templates(folder: &Path) -> Result<Vec<(String, String)>> {
    Ok(source::find(folder)?.map(|found| found.templates).unwrap_or_default())
}

/// Name of the default template.
const DEFAULT: &str = "default";
/// Name of the default template if tools are given.
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// The template of a model folder, or `None` if the folder has no template.
    ///
    /// # Errors
    /// A file that cannot be read, is malformed, or contains a template with a syntax error.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        Self::from_folders(folder, folder)
    }

    /// The template of a folder, with the special tokens of the tokenizer in another one.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_folder`].
    pub fn from_folders(folder: &Path, tokenizer: &Path) -> Result<Option<Self>> {
        let Some(found) = source::find(folder)? else { return Ok(None) };
        let special_tokens = crate::tokenize::special_tokens(tokenizer)?;
        Self::compile(&found.path, found.templates, special_tokens).map(Some)
    }

    /// Compiles one template. `path` names it in messages; `special_tokens` (`bos_token`, …) are its variables.
    ///
    /// # Errors
    /// [`DataError::Template`] for a syntax error.
    pub fn new(path: &Path, source: &str, special_tokens: Map<String, serde_json::Value>) -> Result<Self> {
        Self::compile(path, vec![(DEFAULT.to_owned(), source.to_owned())], special_tokens)
    }

    fn compile(
        path: &Path,
        templates: Vec<(String, String)>,
        special_tokens: Map<String, serde_json::Value>,
    ) -> Result<Self> {
        let mut environment = environment::new();
        let mut has_generation = false;
        let mut names = Vec::new();
        for (name, source) in templates {
            // Jinja writes its own line breaks.
            let source = source.replace("\r\n", "\n").replace('\r', "\n");
            let (source, found) = environment::without_generation_tags(&source);
            has_generation |= found;
            let source = bounds::guarded(&source).map_err(|message| DataError::Template {
                path: path.to_path_buf(),
                message: format!("the chat template fails: {message}"),
            })?;
            environment.add_template_owned(name.clone(), source).map_err(|e| template_error(path, &e))?;
            names.push(name);
        }
        Ok(Self {
            path: path.to_path_buf(),
            environment,
            names,
            special_tokens,
            has_generation,
            part_roles: Arc::default(),
        })
    }

    /// The file that the template came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The conversation as the model reads it.
    ///
    /// # Errors
    /// [`DataError::Template`] if the template raises an exception, fails, or runs out of fuel.
    pub fn render(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String> {
        Ok(self.marked(messages, options)?.0)
    }

    /// The conversation and the spans of the assistant's turns in it. They come from the template's `{% generation %}`
    /// blocks if it has any, and otherwise from rendering the conversation up to and past each answer.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; a template that omits an answer or changes it so that it cannot be found.
    pub fn answers(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<Answers> {
        let options = RenderOptions { add_generation_prompt: false, ..options.clone() };
        let (text, blocks) = self.marked(messages, &options)?;
        if self.has_generation {
            let messages = spans::messages_of(self, messages, &options, &text, &blocks);
            return Ok(Answers { text, spans: blocks, messages });
        }
        let (messages, spans) = spans::of_answers(self, messages, &options, &text)?.into_iter().unzip();
        Ok(Answers { text, spans, messages: Some(messages) })
    }

    /// Whether the template itself marks what is learnt, in `{% generation %}` blocks.
    pub(crate) fn marks_answers(&self) -> bool {
        self.has_generation
    }

    /// The text that the template writes after an answer: the end of the turn.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn turn_end(&self) -> Result<String> {
        let messages = spans::probe(&[Message::new("user", "?"), Message::new("assistant", "")], 1);
        let text = self.probed(&messages, &RenderOptions::default())?;
        Ok(text.split_once(spans::PROBE).map_or("", |(_, tail)| tail).to_owned())
    }

    /// The part of a conversation that the template omits without an error: messages of a role, tool calls, or tool definitions.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn dropped(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<Option<String>> {
        let probe = spans::PROBE.to_string();
        let is_shown = |messages: &[Message], options: &_| Ok(shows(&self.probed(messages, options)?));
        for (index, message) in messages.iter().enumerate() {
            if message.must_show() && !is_shown(&spans::probe(messages, index), options)? {
                return Ok(Some(format!("messages of role '{}'", message.role())));
            }
            for call in 0..message.n_tool_calls() {
                let Some(renamed) = message.with_call(call, &probe) else { continue };
                let mut messages = messages.to_vec();
                messages[index] = renamed;
                if !is_shown(&messages, options)? {
                    return Ok(Some("tool calls".into()));
                }
            }
        }
        if let Some(tools) = options.tools {
            let mut tools = tools.clone();
            let first = tools.as_array_mut().and_then(|tools| tools.first_mut());
            if first.is_some_and(|tool| message::rename(tool, &probe))
                && !is_shown(messages, &RenderOptions { tools: Some(&tools), ..options.clone() })?
            {
                return Ok(Some("tool definitions".into()));
            }
        }
        Ok(None)
    }

    /// The messages with the arguments of tool calls as objects. OpenAI's messages have them as JSON strings, which a template that
    /// writes objects would quote once more; messages are unchanged for templates that write strings.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn with_arguments<'m>(
        &self,
        messages: &'m [Message],
        options: &RenderOptions<'_>,
    ) -> Result<Cow<'m, [Message]>> {
        if messages.iter().all(|message| message.arguments_in_json().next().is_none()) {
            return Ok(messages.into());
        }
        // The template may write the probe as it is, quote it, omit it, or fail.
        let object = format!("{{\"{}\": 0}}", spans::PROBE);
        let probes: Vec<Message> =
            messages.iter().map(|m| m.with_arguments(|_| Some(object.clone().into()))).collect();
        let is_written = self.probed(&probes, options).is_ok_and(|text| {
            shows(&text) && !text.contains(&format!("\\\"{}", spans::PROBE)) && !text.contains("\\\"\\ufdd2")
        });
        let objects: Vec<Message> = messages.iter().map(|message| message.with_arguments(decoded)).collect();
        if !is_written && self.marked_raw(&objects, options).is_ok() {
            return Ok(objects.into());
        }
        Ok(messages.into())
    }

    /// The conversation up to the end of the text of its last answer, which the model continues; as `continue_final_message` of
    /// transformers.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; a last message without text, or whose text the template omits.
    pub fn continuation(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String> {
        let lost = || DataError::Template {
            path: self.path.clone(),
            message: "the chat template omits the text of the last answer, which cannot be continued".into(),
        };
        self.check_characters(messages)?;
        let mut messages = messages.to_vec();
        let last = messages.last_mut().filter(|last| !last.has_tool_calls()).ok_or_else(lost)?;
        let content = last.content().ok_or_else(lost)?.into_owned();
        // A template that trims the text removes the space.
        *last = last.with_content(&format!("{content}{} ", spans::PROBE));
        let text =
            self.probed(&messages, &RenderOptions { add_generation_prompt: false, ..options.clone() })?;
        let (before, after) = text.rsplit_once(spans::PROBE).ok_or_else(lost)?;
        Ok(if after.starts_with(' ') { before } else { before.trim_end() }.to_owned())
    }

    /// Renders messages with a probe, without the markers of `{% generation %}`.
    fn probed(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String> {
        Ok(self.marked_raw(messages, options)?.replace([environment::BEGIN, environment::END], ""))
    }

    /// Refuses messages with the characters of markers and probes.
    fn check_characters(&self, messages: &[Message]) -> Result<()> {
        let reserved = [environment::BEGIN, environment::END, spans::PROBE];
        if messages.iter().any(|message| message.contains_any(&reserved)) {
            let message = "a message contains a Unicode noncharacter (U+FDD0 to U+FDD2); remove it".into();
            return Err(DataError::Template { path: self.path.clone(), message });
        }
        Ok(())
    }

    /// Renders, and removes the markers of `{% generation %}` from the text; the spans are those between them.
    fn marked(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
    ) -> Result<(String, Vec<Range<usize>>)> {
        self.check_characters(messages)?;
        let marked = self.marked_raw(messages, options)?;
        let (mut text, mut spans, mut begin) = (String::with_capacity(marked.len()), Vec::new(), None);
        for part in marked.split_inclusive([environment::BEGIN, environment::END]) {
            match part.chars().next_back() {
                Some(environment::BEGIN) => {
                    text.push_str(&part[..part.len() - environment::BEGIN.len_utf8()]);
                    begin = Some(text.len());
                }
                Some(environment::END) => {
                    text.push_str(&part[..part.len() - environment::END.len_utf8()]);
                    spans.extend(begin.take().map(|begin| begin..text.len()).filter(|span| !span.is_empty()));
                }
                _ => text.push_str(part),
            }
        }
        Ok((text, spans))
    }

    /// Renders. A list of parts is passed unchanged for roles whose parts the template reads, and joined into one string for
    /// the others.
    fn marked_raw(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String> {
        if messages.iter().all(|message| message.parts().is_none()) {
            return self.rendered(messages, options);
        }
        let Some(joined) = messages.iter().map(Message::joined).collect::<Option<Vec<_>>>() else {
            return self.rendered(messages, options);
        };
        let name = self.name(options)?;
        let is_raw = |(index, message): (usize, &Message)| {
            message.parts().is_some() && self.takes_parts(name, message, index, &joined, options)
        };
        let raw: Vec<bool> = messages.iter().enumerate().map(is_raw).collect();
        let prepared = messages.iter().zip(joined).zip(raw);
        let prepared = prepared.map(|((message, text), is_raw)| if is_raw { message.clone() } else { text });
        self.rendered(&prepared.collect::<Vec<_>>(), options)
    }

    /// Whether the template reads the parts of a role's messages: it writes their text, not the list itself in Python's
    /// notation. `texts`: the conversation with joined content.
    fn takes_parts(
        &self,
        name: &str,
        message: &Message,
        index: usize,
        texts: &[Message],
        options: &RenderOptions<'_>,
    ) -> bool {
        let key = (name.to_owned(), message.role().to_owned());
        if let Some(known) = self.part_roles.lock().ok().and_then(|roles| roles.get(&key).copied()) {
            return known;
        }
        let probe = spans::PROBE.to_string();
        let shown = |message: &Message| {
            let mut messages = texts.to_vec();
            messages[index] = message.with_content(&probe);
            self.rendered(&messages, options).ok().filter(|text| text.contains(spans::PROBE))
        };
        let list = format!("'text': '{probe}'");
        let is_taken = shown(message).is_some_and(|text| !text.to_lowercase().contains(&list));
        // Where plain text does not appear either, something other than the parts hides it.
        if (is_taken || shown(&texts[index]).is_some())
            && let Ok(mut roles) = self.part_roles.lock()
        {
            roles.insert(key, is_taken);
        }
        is_taken
    }

    /// The name of the template to render: `tool_use` for tools, if there is one, and otherwise `default`.
    fn name(&self, options: &RenderOptions<'_>) -> Result<&str> {
        let is_named = |wanted: &&str| self.names.iter().any(|name| name == wanted);
        let tool_use = Some(TOOL_USE).filter(|_| options.tools.is_some());
        let name = tool_use.filter(is_named).or(Some(DEFAULT).filter(is_named));
        name.ok_or_else(|| DataError::Template {
            path: self.path.clone(),
            message: format!(
                "has the chat templates {}, none of them named '{DEFAULT}'; rename the one to use to '{DEFAULT}'",
                self.names.join(", ")
            ),
        })
    }

    fn rendered(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String> {
        let name = self.name(options)?;
        // transformers: special tokens first, then the caller's variables, then the standard variables of
        // every template.
        let mut context = self.special_tokens.clone();
        context.extend(options.variables.clone());
        context.insert("messages".into(), messages.iter().map(Message::for_template).collect());
        context.insert("tools".into(), options.tools.cloned().unwrap_or_default());
        context.entry("documents").or_insert(serde_json::Value::Null);
        if let Some(now) = options.now {
            context.insert(environment::NOW.into(), now.into());
        }
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        let size: usize = messages.iter().map(Message::size).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(environment::fuel(size)));
        let template = environment.get_template(name).map_err(|e| template_error(&self.path, &e))?;
        let rendered = template.render(environment::value(context.into()));
        rendered.map_err(|e| template_error(&self.path, &e))
    }
}

/// Whether a text contains the probe, or its escape in Python's and JSON's notation.
fn shows(text: &str) -> bool {
    text.contains(spans::PROBE) || text.contains("\\ufdd2")
}

/// The library's error as a one-line error of ours.
fn template_error(path: &Path, error: &minijinja::Error) -> DataError {
    let mut cause = error;
    while let Some(inner) = std::error::Error::source(cause).and_then(|e| e.downcast_ref()) {
        cause = inner;
    }
    let detail = cause.detail().unwrap_or_default();
    let message = match detail.strip_prefix(environment::RAISED) {
        Some(message) => format!("the chat template refuses the conversation: {message}"),
        None if cause.kind() == ErrorKind::OutOfFuel => {
            "the chat template takes too many steps or too much memory; it may loop without end".to_owned()
        }
        None => {
            let line = cause.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            format!("the chat template fails: {}{detail}{line}", cause.kind())
        }
    };
    DataError::Template { path: path.to_path_buf(), message: one_line(message) }
}
