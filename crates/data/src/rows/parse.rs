//! One JSON object as a row: its format, and whether it is valid for training.

use lowrank_spec::text::excerpt;
use serde_json::{Map, Value, json};

use super::encode::request;
use super::{Conversation, Row};
use crate::chat::{FLAGS, Message};

/// ShareGPT's names of roles, and the common names.
const SHAREGPT: [(&str, &str); 10] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("bot", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
];

/// The roles of messages.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "ipython"];

const ASSISTANT: &str = "assistant";

/// Parses a row.
///
/// # Errors
/// The problem and the remedy.
pub(super) fn row(value: &Value) -> Result<Row, String> {
    let object = value.as_object().ok_or("a row is an object, such as {\"prompt\": …, \"completion\": …}")?;
    let has = |key: &str| object.get(key).is_some_and(|value| !value.is_null());
    let is_text = ["chosen", "rejected", "messages", "conversations", "instruction", "prompt"]
        .iter()
        .all(|key| !has(key));
    check_columns(object, is_text)?;
    let row = if has("chosen") || has("rejected") {
        preference(value)?
    } else if has("messages") {
        Row::Chat(conversation(value, messages(&value["messages"], "messages")?, None)?)
    } else if has("conversations") {
        Row::Chat(conversation(value, messages(&value["conversations"], "conversations")?, None)?)
    } else if has("instruction") && has("output") {
        instruction(value)?
    } else if has("prompt") && has("completion") {
        if value["prompt"].is_string() {
            let completion = answer(value, "completion")?;
            match prompt_of(value)?.filter(|_| has_more(value)) {
                Some(prompt) => Row::Chat(asked(value, prompt, &completion)?),
                None => Row::Completion { prompt: text(value, "prompt")?, completion },
            }
        } else {
            Row::Chat(joined(value, "completion", false)?)
        }
    } else if has("text") {
        let text = text(value, "text")?;
        if text.trim().is_empty() {
            return Err("'text' is empty; remove the row".into());
        }
        Row::Text(text)
    } else {
        let found = excerpt(&object.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
        return Err(format!(
            "a row of unknown format (keys {found}); expected messages, conversations, instruction and output, prompt and \
             completion, text, or prompt with chosen and rejected"
        ));
    };
    if let Row::Chat(conversation) = &row
        && !conversation.messages.iter().any(|message| message.role() == ASSISTANT)
    {
        return Err("the conversation has no assistant message; there is nothing to train on".into());
    }
    Ok(row)
}

/// Refuses columns that change what a row means; a plain text has a meaning without them.
fn check_columns(object: &Map<String, Value>, is_text: bool) -> Result<(), String> {
    if is_text {
        return Ok(());
    }
    let is_given = |key: &&&str| object.get(**key).is_some_and(has_content);
    let media = ["image", "images", "video", "videos", "audio", "audios"];
    if let Some(key) = media.iter().find(is_given) {
        return Err(format!("the row has '{key}', and only text is supported; remove the row"));
    }
    // `false` marks a bad answer, and `true` asks for another objective.
    let is_kto = |key: &&str| match object.get(*key) {
        Some(Value::Bool(_)) => true,
        Some(Value::Number(_)) => *key == "kto_tag",
        _ => false,
    };
    let kto = ["kto_tag", "label"].into_iter().find(is_kto);
    let others = ["rejected_response", "rejected_messages"];
    if let Some(key) = kto.or_else(|| others.iter().find(is_given).copied()) {
        return Err(format!("'{key}' is not supported; give preferences as prompt, chosen and rejected"));
    }
    Ok(())
}

/// Whether a column has something in it.
fn has_content(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => items.iter().any(has_content),
        Value::Object(object) => !object.is_empty(),
        Value::String(text) => !text.trim().is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

fn preference(value: &Value) -> Result<Row, String> {
    for key in ["chosen", "rejected"] {
        if value.get(key).is_none_or(Value::is_null) {
            return Err(format!("'{key}' is missing; a preference has chosen and rejected"));
        }
    }
    let row = if value["chosen"].is_string() {
        preferred_texts(value, answer(value, "chosen")?, answer(value, "rejected")?)?
    } else {
        let are_whole = are_whole(value);
        Row::PreferenceChat {
            chosen: joined(value, "chosen", are_whole)?,
            rejected: joined(value, "rejected", are_whole)?,
        }
    };
    let is_same = match &row {
        Row::PreferenceText { chosen, rejected, .. } => chosen == rejected,
        Row::PreferenceChat { chosen, rejected } => chosen.messages == rejected.messages,
        _ => false,
    };
    if is_same {
        return Err("'chosen' and 'rejected' are equal; remove the row".into());
    }
    Ok(with_common_prompt(row))
}

/// A preference whose answers are strings; without a prompt, what both begin with is the prompt (TRL).
fn preferred_texts(value: &Value, mut chosen: String, mut rejected: String) -> Result<Row, String> {
    let Some(messages) = prompt_of(value)? else {
        let n = common_beginning(&chosen, &rejected);
        let other =
            ["question", "query", "input", "history"].into_iter().find(|key| has_content(&value[*key]));
        if n == 0 || has_more(value) || other.is_some() {
            return Err("'prompt' is missing; give the request under that name".into());
        }
        let prompt = chosen[..n].to_owned();
        chosen.drain(..n);
        rejected.drain(..n);
        return Ok(Row::PreferenceText { prompt, chosen, rejected });
    };
    match &value["prompt"] {
        Value::String(prompt) if !has_more(value) => {
            Ok(Row::PreferenceText { prompt: prompt.clone(), chosen, rejected })
        }
        _ => Ok(Row::PreferenceChat {
            chosen: asked(value, messages.clone(), &chosen)?,
            rejected: asked(value, messages, &rejected)?,
        }),
    }
}

/// Bytes that two answers have in common at their beginning; a space before the difference belongs to the answers.
fn common_beginning(chosen: &str, rejected: &str) -> usize {
    let pairs = chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b);
    let n = pairs.map(|(c, _)| c.len_utf8()).sum();
    chosen[..n].strip_suffix(' ').map_or(n, str::len)
}

/// A request, which may follow other turns, and its answer.
fn asked(value: &Value, mut messages: Vec<Message>, answer: &str) -> Result<Conversation, String> {
    let n_prompt = messages.len();
    messages.push(Message::new(ASSISTANT, answer));
    let conversation = conversation(value, messages, Some(n_prompt))?;
    Ok(Conversation { is_of_texts: value["prompt"].is_string(), ..conversation })
}

/// Whether a row has something for the template beside its texts: a system message, earlier turns, tools, variables.
fn has_more(value: &Value) -> bool {
    ["system", "history", "tools", "chat_template_kwargs"].iter().any(|key| has_content(&value[*key]))
}

/// Turns a prompt and its answers that stand as they are into conversations.
pub(super) fn make_conversation(row: &mut Row) {
    let asked = |prompt: &str, answer: &str| Conversation {
        messages: vec![Message::new("user", prompt), Message::new(ASSISTANT, answer)],
        n_prompt: Some(1),
        is_of_texts: true,
        ..Conversation::default()
    };
    match row {
        Row::Completion { prompt, completion } => *row = Row::Chat(asked(prompt, completion)),
        Row::PreferenceText { prompt, chosen, rejected } => {
            *row = Row::PreferenceChat { chosen: asked(prompt, chosen), rejected: asked(prompt, rejected) };
        }
        _ => {}
    }
}

/// Preferences that contain whole conversations have a common beginning, which is the prompt.
fn with_common_prompt(row: Row) -> Row {
    match row {
        Row::PreferenceChat { mut chosen, mut rejected } if chosen.n_prompt.is_none() => {
            let pairs = chosen.messages.iter().zip(&rejected.messages);
            let common = pairs.take_while(|(a, b)| a == b).count();
            (chosen.n_prompt, rejected.n_prompt) = (Some(common), Some(common));
            Row::PreferenceChat { chosen, rejected }
        }
        row => row,
    }
}

/// The key of a preference's prompt, or of the prompt of a completion.
fn prompt_key(value: &Value) -> Option<&'static str> {
    ["prompt", "conversations", "messages"].into_iter().find(|key| !value[*key].is_null())
}

/// The messages under the key of a prompt; a string is a request.
fn prompt_messages(value: &Value, name: &str) -> Result<Vec<Message>, String> {
    match &value[name] {
        Value::String(text) => Ok(vec![Message::new("user", text)]),
        list => messages(list, name),
    }
}

/// The prompt of a row: messages, or a request or instruction after the turns of `history`.
fn prompt_of(value: &Value) -> Result<Option<Vec<Message>>, String> {
    let own = match prompt_key(value) {
        Some(key) => prompt_messages(value, key)?,
        None if value["instruction"].is_null() => return Ok(None),
        None => vec![request(&text(value, "instruction")?, &input(value)?)],
    };
    let mut messages = history(&value["history"])?;
    if !messages.is_empty() && prompt_key(value).is_some_and(|key| value[key].is_array()) {
        return Err("'history' is beside a list of messages; put its turns into the list".into());
    }
    messages.extend(own);
    Ok(Some(messages))
}

/// The messages of an answer.
fn answer_messages(value: &Value, key: &str) -> Result<Vec<Message>, String> {
    match &value[key] {
        // ShareGPT's preferences contain one message.
        Value::Object(_) => messages(&Value::Array(vec![value[key].clone()]), key),
        other => messages(other, key),
    }
}

/// System messages at the beginning, and the rest.
fn split_system(messages: &[Message]) -> (&[Message], &[Message]) {
    let is_system = |message: &Message| ["system", "developer"].contains(&message.role());
    messages.split_at(messages.iter().take_while(|message| is_system(message)).count())
}

/// Whether `chosen` and `rejected` repeat the prompt: they begin with its first message, or with a request and contain the only one
/// of the prompt. System messages need not be repeated.
fn are_whole(value: &Value) -> bool {
    let Ok(Some(prompt)) = prompt_of(value) else { return false };
    let (_, prompt) = split_system(&prompt);
    let request = |message: &Message| {
        (message.role() == "user").then(|| message.content().unwrap_or_default().trim().to_owned())
    };
    let only = if let [only] = prompt { request(only) } else { None };
    let repeats = |answer: Vec<Message>| {
        let (_, turns) = split_system(&answer);
        let begins_with_request = turns.first().is_some_and(|turn| request(turn).is_some());
        let contains = || only.is_some() && turns.iter().any(|turn| request(turn) == only);
        turns.first() == prompt.first() || (begins_with_request && contains())
    };
    !prompt.is_empty()
        && ["chosen", "rejected"].iter().all(|key| answer_messages(value, key).is_ok_and(repeats))
}

/// The messages of the prompt, if the row has one, followed by those of `key`, which may repeat it.
fn joined(value: &Value, key: &str, is_whole: bool) -> Result<Conversation, String> {
    let mut prompt = prompt_of(value)?;
    let answer = answer_messages(value, key)?;
    if answer.last().is_none_or(|message| message.role() != ASSISTANT) {
        return Err(format!("'{key}' does not end with an assistant message"));
    }
    let mut n_prompt = prompt.as_ref().map(Vec::len);
    if is_whole {
        let has_system = !split_system(&answer).0.is_empty();
        prompt = prompt.map(|prompt| split_system(&prompt).0.to_vec()).filter(|_| !has_system);
        n_prompt = None;
    }
    conversation(value, prompt.into_iter().flatten().chain(answer).collect(), n_prompt)
}

/// A conversation with what the row has beside it: `system` as its first message, tools and variables of the template.
fn conversation(
    value: &Value,
    mut messages: Vec<Message>,
    mut n_prompt: Option<usize>,
) -> Result<Conversation, String> {
    if let Some(system) = system(value)? {
        let own = messages.first().filter(|message| ["system", "developer"].contains(&message.role()));
        match own.map(Message::content) {
            None => {
                messages.insert(0, Message::new("system", system));
                n_prompt = n_prompt.map(|n| n + 1);
            }
            Some(own) if own.as_deref() == Some(system) => {}
            Some(_) => {
                return Err("'system' differs from the conversation's own system message; keep one".into());
            }
        }
    }
    let (tools, variables) = (tools(value.get("tools"))?, variables(value)?);
    Ok(Conversation { messages, n_prompt, tools, variables, is_of_texts: false })
}

/// Alpaca's format; a conversation if the row has more than it.
fn instruction(value: &Value) -> Result<Row, String> {
    let (instruction, input) = (text(value, "instruction")?, input(value)?);
    let output = answer(value, "output")?;
    if !has_more(value) {
        return Ok(Row::Instruction { instruction, input, output });
    }
    let mut messages = history(&value["history"])?;
    messages.push(request(&instruction, &input));
    Ok(Row::Chat(asked(value, messages, &output)?))
}

/// The input of an instruction, which a row may leave out.
fn input(value: &Value) -> Result<String, String> {
    if value["input"].is_null() { Ok(String::new()) } else { text(value, "input") }
}

/// The turns before an instruction (LLaMA-Factory): pairs of a request and its answer.
fn history(value: &Value) -> Result<Vec<Message>, String> {
    let invalid = || "'history' is not a list of pairs of a request and its answer".to_owned();
    let turns = match value {
        Value::Null => return Ok(Vec::new()),
        value => value.as_array().ok_or_else(invalid)?,
    };
    let pair = |turn: &Value| match turn.as_array().map(Vec::as_slice) {
        Some([Value::String(request), Value::String(answer)]) => {
            Ok([Message::new("user", request), Message::new(ASSISTANT, answer)])
        }
        _ => Err(invalid()),
    };
    Ok(turns.iter().map(pair).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// The system message that a row has beside its conversation.
fn system(value: &Value) -> Result<Option<&str>, String> {
    match &value["system"] {
        Value::Null => Ok(None),
        Value::String(system) => Ok(Some(&**system).filter(|system| !system.trim().is_empty())),
        _ => Err("'system' is not a string".into()),
    }
}

/// The variables that a row gives the template.
fn variables(value: &Value) -> Result<Map<String, Value>, String> {
    match &value["chat_template_kwargs"] {
        Value::Null => Ok(Map::new()),
        Value::Object(variables) => Ok(variables.clone()),
        _ => Err("'chat_template_kwargs' is not an object of the template's variables".into()),
    }
}

fn messages(value: &Value, key: &str) -> Result<Vec<Message>, String> {
    let items = value.as_array().ok_or_else(|| format!("'{key}' is not a list of messages"))?;
    if items.is_empty() {
        return Err(format!("'{key}' is empty; remove the row"));
    }
    items.iter().map(message).collect()
}

fn message(value: &Value) -> Result<Message, String> {
    let message = match value.get("from").filter(|_| value.get("role").is_none()) {
        None => Message::from_json(value)?,
        Some(from) => {
            let from = from.as_str().ok_or("a message has no string 'from'")?;
            if from == "function_call" {
                return function_call(value);
            }
            let role = SHAREGPT.iter().find(|(name, _)| *name == from).map(|(_, role)| *role);
            let known = || SHAREGPT.map(|(name, _)| name).join(", ");
            let role = role.ok_or_else(|| format!("unknown role '{from}'; expected one of {}", known()))?;
            let content = value.get("value").and_then(Value::as_str);
            let mut message = Map::new();
            message.insert("role".into(), role.into());
            message.insert("content".into(), content.ok_or("a message has no string 'value'")?.into());
            let weights = FLAGS.into_iter().filter_map(|key| Some((key, value.get(key)?)));
            message.extend(weights.map(|(key, weight)| (key.to_owned(), weight.clone())));
            Message::from_json(&message.into())?
        }
    };
    if !ROLES.contains(&message.role()) {
        return Err(format!("unknown role '{}'; expected one of {}", message.role(), ROLES.join(", ")));
    }
    let is_silent = message.content().is_none_or(|content| content.trim().is_empty());
    if message.role() == ASSISTANT && is_silent && !message.has_tool_calls() {
        return Err("an answer is empty; remove the row or fill the answer in".into());
    }
    Ok(message)
}

/// LLaMA-Factory's turn that calls functions: its `value` is the JSON of one call, or of a list of them.
fn function_call(value: &Value) -> Result<Message, String> {
    let invalid = || "a function_call's 'value' is not JSON of a name and its arguments".to_owned();
    let calls = value["value"].as_str().ok_or_else(invalid)?;
    let calls = match serde_json::from_str(calls).map_err(|_| invalid())? {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    if calls.is_empty() || calls.iter().any(|call| !call["name"].is_string()) {
        return Err(invalid());
    }
    let calls: Vec<Value> =
        calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect();
    let mut message = json!({"role": ASSISTANT, "content": "", "tool_calls": calls});
    for key in FLAGS.into_iter().filter(|key| value.get(key).is_some()) {
        message[key] = value[key].clone();
    }
    Message::from_json(&message)
}

fn tools(value: Option<&Value>) -> Result<Option<Value>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) if items.is_empty() => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(tools @ Value::Array(_)) => Ok(Some(tools.clone())),
        // Tabular data sets store them as text.
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Array(items)) => Ok((!items.is_empty()).then_some(Value::Array(items))),
            _ => Err("'tools' is not a JSON list".into()),
        },
        Some(_) => Err("'tools' is not a list".into()),
    }
}

fn text(value: &Value, key: &str) -> Result<String, String> {
    match value.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Null) | None => Err(format!("'{key}' is missing")),
        Some(_) => Err(format!("'{key}' is not a string")),
    }
}

fn answer(value: &Value, key: &str) -> Result<String, String> {
    let text = text(value, key)?;
    if text.trim().is_empty() {
        return Err(format!("'{key}' is empty; remove the row or fill the answer in"));
    }
    Ok(text)
}
