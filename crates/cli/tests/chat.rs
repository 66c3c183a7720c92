//! Conversations: rendered, answered once, and held on the terminal.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use common::{copy, fails, json_of, lowrank, s};

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// A small language model with a chat template.
fn model() -> TempDir {
    let folder = copy("llama3");
    fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    folder
}

fn conversation(folder: &Path, messages: &Value) -> String {
    let path = folder.join("messages.json");
    fs::write(&path, messages.to_string()).unwrap();
    s(&path).to_owned()
}

#[test]
fn a_conversation_is_rendered_by_the_model_s_template() {
    let folder = model();
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " hi "}]);
    let file = conversation(folder.path(), &messages);
    let model = s(folder.path());
    let rendered = json_of(&["generate", "--model", model, "--messages", &file, "--render"]);
    let expected = "<|begin_of_text|><system>Be brief.</system><user>hi</user><assistant>";
    assert_eq!(rendered, json!({"prompt": expected}));
    let answer = json_of(&["generate", "--model", model, "--messages", &file, "--max-new-tokens", "4"]);
    // The rendered text, special tokens and all, is the prompt: the tokenizer adds none.
    let prompted = ["generate", "--model", model, "--prompt", &expected["<|begin_of_text|>".len()..]];
    let prompted = json_of(&[&prompted[..], &["--max-new-tokens", "4"]].concat());
    assert_eq!(answer["ids"], prompted["ids"]);
}

#[test]
fn a_conversation_that_ends_in_an_answer_is_continued() {
    let folder = model();
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]);
    let file = conversation(folder.path(), &messages);
    let rendered = json_of(&["generate", "--model", s(folder.path()), "--messages", &file, "--render"]);
    assert_eq!(rendered, json!({"prompt": "<|begin_of_text|><user>hi</user><assistant>It is"}));
}

#[test]
fn conversations_that_cannot_be_answered_are_named() {
    let folder = model();
    let model = s(folder.path());
    let render = |messages: Value, part: &str| {
        let file = conversation(folder.path(), &messages);
        fails(&["generate", "--model", model, "--messages", &file, "--render"], part);
    };
    render(json!([]), "expected a JSON list of messages");
    render(json!([{"role": "user"}]), "message 1: a message has no 'content'");
    render(json!([{"content": "a"}]), "message 1: a message has no string 'role'");
    fs::write(folder.path().join("chat_template.jinja"), "{{ raise_exception('no') }}").unwrap();
    render(json!([{"role": "user", "content": "a"}]), "refuses the conversation: no");
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    render(json!([{"role": "user", "content": "a"}]), "the model has no chat template");
    fails(&["chat", "--model", model], "the model has no chat template");
}

#[test]
fn a_conversation_on_the_terminal_is_kept_saved_and_forgotten() {
    let folder = model();
    let saved = [folder.path().join("one.json"), folder.path().join("two.json")];
    let input = format!(
        "hi there\n/save {}\nand now\n/reset\nonce more\n/save {}\n/exit\nnever\n",
        s(&saved[0]),
        s(&saved[1])
    );
    let args = ["chat", "--model", s(folder.path()), "--max-new-tokens", "5", "--system", "Be brief."];
    let output = lowrank(&args).write_stdin(input).assert().success().get_output().stdout.clone();
    assert!(String::from_utf8(output).unwrap().lines().count() >= 3);
    let read = |path: &Path| -> Vec<Value> { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let [one, two] = [read(&saved[0]), read(&saved[1])];
    let roles = |messages: &[Value]| -> Vec<String> {
        messages.iter().map(|m| m["role"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(roles(&one), ["system", "user", "assistant"]);
    assert_eq!(one[1]["content"], "hi there");
    assert_eq!(roles(&two), ["system", "user", "assistant"]);
    assert_eq!(two[1]["content"], "once more");
}

#[test]
fn the_folder_says_how_text_is_generated() {
    let folder = model();
    let model = s(folder.path());
    let file = folder.path().join("generation_config.json");
    let generate = |config: Value, more: &[&str]| {
        fs::write(&file, config.to_string()).unwrap();
        let args =
            [&["generate", "--model", model, "--prompt", "the cat", "--ignore-eos", "--json"], more].concat();
        let output = lowrank(&args).assert().success().get_output().clone();
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        (object["ids"].as_array().unwrap().clone(), String::from_utf8(output.stderr).unwrap())
    };
    let (greedy, silent) = generate(json!({"max_new_tokens": 3}), &[]);
    assert_eq!((greedy.len(), silent.as_str()), (3, ""));
    let (ids, _) = generate(json!({"max_new_tokens": 3, "suppress_tokens": [greedy[0]]}), &[]);
    assert!(!ids.contains(&greedy[0]));
    let several = json!({"max_new_tokens": 3, "num_return_sequences": 4});
    let (ids, warning) = generate(several, &["--max-new-tokens", "2"]);
    assert_eq!(ids, greedy[..2]);
    assert!(warning.contains("not supported and ignored: num_return_sequences = 4"), "{warning}");
    // Beams of the file and of the command line.
    let beams = json!({"max_new_tokens": 6, "num_beams": 4, "length_penalty": 0.5, "early_stopping": true});
    let (searched, silent) = generate(beams.clone(), &[]);
    assert_eq!(silent, "");
    let options = ["--num-beams", "4", "--length-penalty", "0.5", "--early-stopping", "true"];
    assert_eq!(generate(json!({"max_new_tokens": 6}), &options).0, searched);
    let (greedy, _) = generate(json!({"max_new_tokens": 6}), &[]);
    assert_ne!(searched, greedy);
    assert_eq!(generate(beams.clone(), &["--num-beams", "1"]).0, greedy);
    // Sampled beams: the seed determines them, and a low temperature leaves the search.
    let sampled = |seed: &str| generate(beams.clone(), &["--temperature", "2", "--seed", seed]);
    let seeds = ["1", "2", "3", "4"].map(sampled);
    assert!(seeds.iter().all(|(_, warning)| warning.is_empty()), "{seeds:?}");
    assert_eq!(sampled("1"), seeds[0]);
    assert!(seeds.iter().any(|(ids, _)| *ids != searched));
    assert_eq!(generate(beams.clone(), &["--temperature", "0.001"]).0, searched);
    let (_, warning) = generate(json!({}), &["--max-new-tokens", "2", "--length-penalty", "2"]);
    assert!(warning.contains("--length-penalty requires --num-beams"), "{warning}");
    let mut chat = lowrank(&["chat", "--model", model, "--max-new-tokens", "2"]);
    fs::write(&file, beams.to_string()).unwrap();
    let output = chat.write_stdin("hello\n").assert().success().get_output().clone();
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.contains("num_beams = 4 is ignored, since answers are shown"), "{warning}");
    fs::write(&file, "{}").unwrap();
    let mixed = ["generate", "--model", model, "--prompt", "a", "--num-beams", "2", "--temperature", "1e-4"];
    fails(&mixed, "temperature 0.0001 is out of range for beams");
    for (config, part) in [
        (json!({"num_beams": 0}), "num_beams = 0; expected 1 or more"),
        (json!({"num_beams": 2, "early_stopping": 1}), "early_stopping = 1; expected a boolean or \"never\""),
    ] {
        fails_with(&file, &config, model, part);
    }
    fails_with(
        &file,
        &json!({"do_sample": true, "temperature": -1}),
        model,
        "temperature -1 is out of range",
    );
}

#[track_caller]
fn fails_with(file: &Path, config: &Value, model: &str, part: &str) {
    fs::write(file, config.to_string()).unwrap();
    fails(&["generate", "--model", model, "--prompt", "a"], part);
}
