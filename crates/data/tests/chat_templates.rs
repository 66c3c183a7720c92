//! Chat templates rendered beside transformers.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::{Path, PathBuf};

use lowrank_data::chat::{ChatTemplate, Message, RenderOptions};
use serde_json::{Map, Value};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat-templates")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A dictionary of `language.jinja` as transformers writes it, and with its keys sorted.
const LITERAL: [&str; 2] = [
    "{\"b\": 1, \"a\": [true, null, 1.5, \"é\\\"<>&'\"]}",
    "{\"a\": [true, null, 1.5, \"é\\\"<>&'\"], \"b\": 1}",
];

/// What is wrong with our rendering of a case, if anything.
fn difference(template: &ChatTemplate, now: &str, conversation: &Value, case: &Value) -> Option<String> {
    let messages: Vec<Message> = serde_json::from_value(conversation["messages"].clone()).unwrap();
    let mut variables: Map<String, Value> = conversation["options"].as_object().cloned().unwrap_or_default();
    if let Some(documents) = conversation.get("documents") {
        variables.insert("documents".into(), documents.clone());
    }
    let options = RenderOptions {
        add_generation_prompt: case["add_generation_prompt"] == true,
        tools: conversation.get("tools"),
        variables,
        now: Some(now),
    };
    let got = template.render(&messages, &options);
    let Some(text) = case["text"].as_str() else {
        let message =
            case["message"].as_str().filter(|_| case["error"] == "TemplateError").unwrap_or_default();
        return match got {
            Err(error) if error.to_string().contains(message) => None,
            other => Some(format!("{other:?}, expected the error {} {message:?}", case["error"])),
        };
    };
    let got = match got {
        Ok(got) => got,
        Err(error) => return Some(format!("{error}, expected {text:?}")),
    };
    // minijinja sorts the keys of a dictionary that the template itself writes; those of messages and tools keep their
    // order.
    let sorted = text.replace(LITERAL[0], LITERAL[1]);
    if got != sorted {
        return Some(format!("\n  {got:?}\n  {text:?}"));
    }
    let spans: Vec<(usize, usize)> = serde_json::from_value(case["spans"].clone()).unwrap_or_default();
    if !spans.is_empty() && !options.add_generation_prompt {
        let at = |byte: usize| got[..byte].chars().count();
        let found = template.answers(&messages, &options).unwrap().spans;
        let found: Vec<_> = found.into_iter().map(|span| (at(span.start), at(span.end))).collect();
        if found != spans {
            return Some(format!("spans {found:?}, expected {spans:?}"));
        }
    }
    None
}

#[test]
fn texts_and_errors_are_those_of_transformers() {
    let conversations = json(&fixtures().join("conversations.json"));
    let (mut wrong, mut n) = (Vec::new(), 0);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(fixtures().join("expected")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let expected = json(&path);
        let name = path.file_stem().unwrap().to_str().unwrap();
        let file = fixtures().join(format!("{name}.jinja"));
        let mut special = Map::new();
        for key in ["bos_token", "eos_token"] {
            special.insert(key.into(), expected[key].clone());
        }
        let source = std::fs::read_to_string(&file).unwrap();
        let template = ChatTemplate::new(&file, &source, special).unwrap();
        for case in expected["renderings"].as_array().unwrap() {
            let conversation = case["conversation"].as_str().unwrap();
            let now = expected["now"].as_str().unwrap();
            n += 1;
            if let Some(difference) = difference(&template, now, &conversations[conversation], case) {
                let prompt = &case["add_generation_prompt"];
                wrong.push(format!("{name}, {conversation}, prompt {prompt}: {difference}"));
            }
        }
    }
    assert!(n > 500 && wrong.is_empty(), "{} of {n}\n{}", wrong.len(), wrong.join("\n"));
}
