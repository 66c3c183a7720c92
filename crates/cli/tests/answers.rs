//! Question answering as a user types it: training on SQuAD's rows, answers, merging, compression, refusals.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lowrank_checkpoint::Checkpoint;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::{fails_after_warnings, fixture, json_of, misused, run, s};

const CONTEXTS: [(&str, &str, &str); 4] = [
    ("Who walked home?", "The king walked home before the rain came down.", "The king"),
    ("What is cold?", "The small boat crossed the cold river.", "river"),
    ("Who walked home?", "The cat walked home.", "The cat"),
    ("What is cold?", "The sea is calm, and the cold rain came down.", "rain"),
];

/// Rows of SQuAD's form, one without an answer if asked for.
fn rows(with_unanswerable: bool) -> Vec<Value> {
    let row = |(index, (question, context, answer)): (usize, &(&str, &str, &str))| {
        let start = context.find(answer).unwrap();
        json!({"id": index.to_string(), "question": question, "context": context,
               "answers": {"text": [answer], "answer_start": [start]}})
    };
    let none = json!({"id": "n", "question": "What is cold?", "context": "The cat sat on the red mat.",
                      "answers": {"text": [], "answer_start": []}});
    CONTEXTS.iter().enumerate().map(row).chain(with_unanswerable.then_some(none)).collect()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

struct Files(TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        s(&self.0.path().join(name)).to_owned()
    }
}

const STEPS: [&str; 8] = ["--batch-size", "4", "--eval-every", "40", "--lr", "2e-2", "--head-lr", "5e-2"];

fn finetune<'a>(model: &'a str, train: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["finetune", "--model", model, "--train", train, "--dev", train, "-o", out], &STEPS[..], more].concat()
}

fn read_json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Overfits four questions; the adapter is saved in PEFT's format, answers, is merged, and the merged model compressed.
#[test]
fn questions_are_answered() {
    for base in ["bert-encoder", "modernbert-mlm", "mpnet-mlm", "small-llama", "small-gpt2"] {
        let files = Files::new(&[("train.jsonl", &lines(&rows(false)))]);
        let (model, train, out) = (fixture(base), files.path("train.jsonl"), files.path("run"));
        let lora = ["--method", "lora", "--rank", "4", "--alpha", "8", "--max-steps", "160"];
        let result = json_of(&finetune(s(&model), &train, &out, &lora));
        assert_eq!((&result["metric_name"], &result["metric"]), (&json!("f1"), &json!(1.0)), "{base}");
        let adapter = format!("{out}/adapter");
        assert_eq!(read_json(&format!("{adapter}/adapter_config.json"))["task_type"], "QUESTION_ANS");
        assert_eq!(read_json(&format!("{adapter}/labels.json"))["handle_impossible_answer"], false);
        let merged = files.path("merged");
        let with = ["--model", s(&model), "--adapter", &adapter];
        run(&[&["merge", "-o", &merged][..], &with].concat());
        let config = read_json(&format!("{merged}/config.json"));
        assert!(config["architectures"][0].as_str().unwrap().ends_with("ForQuestionAnswering"), "{config}");
        assert_eq!((config.get("id2label"), config.get("handle_impossible_answer")), (None, None));
        let small = files.path("small");
        run(&["compress", "--model", &merged, "--method", "svd", "--energy", "0.9999999", "-o", &small]);
        let texts: String = CONTEXTS.iter().map(|(_, context, _)| format!("{context}\n")).collect();
        fs::write(files.path("texts.txt"), texts).unwrap();
        let (texts, whitened) = (files.path("texts.txt"), files.path("whitened"));
        let calibrated = ["--method", "whitened", "--ratio", "0.1", "--calibration", &texts, "-o", &whitened];
        run(&[&["compress", "--model", &merged][..], &calibrated].concat());
        json_of(&["evaluate", "--dev", &train, "--model", &whitened]);
        for model in [&with[..], &["--model", &merged], &["--model", &small]] {
            let scores = json_of(&[&["evaluate", "--dev", &train][..], model].concat());
            assert_eq!(
                [&scores["f1"], &scores["exact_match"], &scores["rows"]],
                [&json!(1.0), &json!(1.0), &json!(4)]
            );
            let (question, context, answer) = CONTEXTS[1];
            let predicted =
                json_of(&[&["predict", "--text", question, "--text-pair", context][..], model].concat());
            let row = &predicted["rows"][0];
            assert_eq!(
                [&row["answer"], &row["start"], &row["end"]],
                [&json!(answer), &json!(32), &json!(37)],
                "{base}"
            );
            assert!(row["score"].as_f64().unwrap() > 0.5 && row.get("null_score").is_none(), "{row}");
            let n = |key: &str| row["windows"][0][key].as_array().unwrap().len();
            assert!(n("start_logits") > 8 && n("start_logits") == n("end_logits"));
        }
    }
}

/// Rows without an answer teach to give none; the model and the adapter remember that they may.
#[test]
fn no_answer_is_an_answer_if_trained() {
    let nested = json!({"version": "v2.0", "data": [{"title": "t", "paragraphs": rows(true).iter().map(|row| {
        let texts = row["answers"]["text"].as_array().unwrap();
        let answers: Vec<Value> = texts.iter().zip(row["answers"]["answer_start"].as_array().unwrap())
            .map(|(text, start)| json!({"text": text, "answer_start": start})).collect();
        json!({"context": row["context"], "qas": [
            {"id": row["id"], "question": row["question"], "is_impossible": answers.is_empty(), "answers": answers}]})
    }).collect::<Vec<Value>>()}]});
    let files = Files::new(&[
        ("t.json", &nested.to_string()),
        ("p.txt", "What is cold?\tThe cat sat on the red mat.\n"),
    ]);
    let (train, base) = (files.path("t.json"), fixture("bert-encoder"));
    for (method, more) in [("full", &["--lr", "5e-3"][..]), ("lotr", &["--rank", "4", "--alpha", "8"])] {
        let out = files.path(method);
        let options = [&["--method", method, "--max-steps", "200"][..], more].concat();
        let args: Vec<&str> = finetune(s(&base), &train, &out, &[]);
        // The last value of an option would be a conflict: those of `more` replace the defaults.
        let args: Vec<&str> = if method == "full" { args[..13].to_vec() } else { args };
        let result = json_of(&[&args[..], &options].concat());
        assert_eq!(result["metric"], 1.0, "{method}: {result}");
        let model = match method {
            "full" => vec!["--model".to_owned(), out.clone()],
            _ => vec!["--model".to_owned(), s(&base).to_owned(), "--adapter".to_owned(), out.clone()],
        };
        let model: Vec<&str> = model.iter().map(String::as_str).collect();
        let predicted = json_of(&[&["predict", "--file", &files.path("p.txt")][..], &model].concat());
        let row = &predicted["rows"][0];
        assert_eq!([&row["answer"], &row["start"], &row["end"]], [&json!(""), &json!(0), &json!(0)], "{row}");
        assert_eq!(row["score"], row["null_score"]);
    }
    assert_eq!(
        read_json(&format!("{}/model/config.json", files.path("full")))["handle_impossible_answer"],
        true
    );
}

/// A base with the head of another task gets the new one, and so does its adapter later.
#[test]
fn a_base_with_another_head_is_trained_and_read() {
    let files = Files::new(&[("t.jsonl", &lines(&rows(false)))]);
    let (train, base, out, merged) =
        (files.path("t.jsonl"), fixture("bert-cls"), files.path("run"), files.path("merged"));
    let lora = ["--method", "lora", "--rank", "4", "--alpha", "8", "--max-steps", "120"];
    assert_eq!(json_of(&finetune(s(&base), &train, &out, &lora))["metric"], 1.0);
    let with = ["--model", s(&base), "--adapter", &out];
    run(&[&["merge", "-o", &merged][..], &with].concat());
    for model in [&with[..], &["--model", &merged]] {
        assert_eq!(json_of(&[&["evaluate", "--dev", &train][..], model].concat())["f1"], 1.0);
    }
    let again = files.path("again");
    let start = [&lora[..6], &["--max-steps", "1", "--lr", "1e-9", "--head-lr", "1e-9", "--init-from", &out]]
        .concat();
    let head = ["finetune", "--model", s(&base), "--train", &train, "--dev", &train, "-o", &again];
    assert_eq!(json_of(&[&head[..], &start].concat())["metric"], 1.0);
}

/// Long contexts are read in windows, whose limits are options; offsets count characters.
#[test]
fn long_contexts_are_read_in_windows() {
    let golden = read_json(s(&fixture("bert-qa").join("answers.json")));
    for case in golden["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        let (question, context, longest) =
            (text("question"), text("context"), case["max_answer_len"].to_string());
        let model = fixture("bert-qa");
        let mut args = vec![
            "predict",
            "--model",
            s(&model),
            "--text",
            &question,
            "--text-pair",
            &context,
            "--max-answer-len",
            &longest,
        ];
        if case["impossible"] == true {
            args.push("--handle-impossible-answer");
        }
        let row = json_of(&args)["rows"][0].clone();
        assert_eq!(
            [&row["answer"], &row["start"], &row["end"]],
            [&case["answer"], &case["start"], &case["end"]]
        );
        assert!((row["score"].as_f64().unwrap() - case["score"].as_f64().unwrap()).abs() < 1e-6);
        assert_eq!(json!(row["windows"].as_array().unwrap().len()), case["windows"]);
        args.extend(["--doc-stride", "2"]);
        let fewer = json_of(&args)["rows"][0]["windows"].as_array().unwrap().len();
        assert!(fewer == 1 || fewer < row["windows"].as_array().unwrap().len());
    }
}

/// Stacks of decoders have another prefix under a head for questions; either head is trained over a model with the other.
#[rstest]
#[case("llama-qa", false)]
#[case("small-llama-cls", true)]
fn a_head_is_trained_over_the_stack_of_another(#[case] base: &str, #[case] answers: bool) {
    let labelled =
        [("the cat", "a"), ("a dog", "b")].map(|(text, label)| json!({"text": text, "label": label}));
    let rows = if answers { rows(false) } else { labelled.into() };
    let files = Files::new(&[("train.jsonl", &lines(&rows))]);
    let (model, train, out) = (fixture(base), files.path("train.jsonl"), files.path("run"));
    run(&finetune(s(&model), &train, &out, &["--method", "head", "--max-steps", "2"]));
    let merged = files.path("merged");
    run(&["merge", "--model", s(&model), "--adapter", &out, "-o", &merged]);
    let prefix = |answers: bool| if answers { "transformer." } else { "model." };
    let stack = |folder: &Path, prefix: &str| {
        let file = Checkpoint::open(folder).unwrap();
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let parts = names.iter().filter_map(|name| Some((name.strip_prefix(prefix)?, name)));
        parts.map(|(part, name)| (part.to_owned(), file.read_f32(name).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let trained = stack(Path::new(&merged), prefix(answers));
    assert!(trained.len() > 10);
    assert_eq!(trained, stack(&model, prefix(!answers)));
}

#[test]
fn bad_questions_are_refused_in_one_line() {
    let off =
        json!({"question": "a", "context": "the king", "answers": {"text": ["king"], "answer_start": [3]}});
    let long = json!({"question": "the cat sat on the red mat ".repeat(5), "context": "the king",
                      "answers": {"text": ["king"], "answer_start": [4]}});
    let words = "the O\nking B-PER\n";
    let files = Files::new(&[
        ("ok.jsonl", &lines(&rows(false))),
        ("off.jsonl", &lines(&[rows(false)[0].clone(), off])),
        ("long.jsonl", &lines(&[long])),
        ("keys.jsonl", "{\"question\":\"a\",\"context\":\"b\"}\n"),
        ("w.conll", words),
        ("pairs.txt", "Who?\tThe cat.\nWho?\t\n"),
    ]);
    let (base, out) = (fixture("bert-encoder"), files.path("run"));
    let refused = |model: &Path, file: &str, more: &[&str], part: &str| {
        let train = files.path(file);
        fails_after_warnings(
            &[&finetune(s(model), &train, &out, &["--method", "head"])[..], more].concat(),
            part,
        );
        assert!(!Path::new(&out).exists(), "{part}");
    };
    refused(
        &base,
        "off.jsonl",
        &[],
        "off.jsonl:2: the answer 'king' is not at answer_start 3, where the context has ' kin'; it occurs at 4",
    );
    refused(&base, "long.jsonl", &[], "long.jsonl:1: the number of tokens of the question is 35");
    refused(&base, "keys.jsonl", &[], "keys.jsonl:1: no 'answers'; a row has question, context and answers");
    refused(&base, "ok.jsonl", &["--class-weights", "balanced"], "--class-weights applies to");
    refused(&base, "ok.jsonl", &["--max-length", "16", "--doc-stride", "14"], "--doc-stride) is 14");
    refused(
        &fixture("seq2seq-t5"),
        "ok.jsonl",
        &[],
        "and the rows have labels; give rows with prompt and completion",
    );
    refused(&fixture("t5-encoder"), "ok.jsonl", &[], "heads over T5 are not supported, only its embeddings");
    let qa = fixture("bert-qa");
    let predict = |more: &[&str], part: &str| {
        fails_after_warnings(&[&["predict", "--model", s(&qa)][..], more].concat(), part);
    };
    predict(&["--text", "Who?"], "text 1: the model answers questions, and this one has no context");
    predict(&["--text", "Who?", "--text-pair", " "], "text 1: the context is empty");
    predict(&["--text", "", "--text-pair", "The cat."], "text 1: the question is empty");
    predict(&["--file", &files.path("pairs.txt")], "pairs.txt:2: the context is empty");
    let long = "the cat sat on the red mat ".repeat(5);
    predict(
        &["--text", &long, "--text-pair", "The cat."],
        "text 1: the number of tokens of the question is 35",
    );
    let tagged = files.path("w.conll");
    fails_after_warnings(&["evaluate", "--model", s(&qa), "--dev", &tagged], "w.conll");
    let ok = files.path("ok.jsonl");
    fails_after_warnings(
        &["evaluate", "--model", s(&fixture("bert-cls")), "--dev", &ok],
        "ok.jsonl: holds questions",
    );
    let only = "--max-answer-len applies to question answering only";
    let classes = fixture("bert-cls");
    misused(&["predict", "--model", s(&classes), "--text", "a", "--max-answer-len", "3"], only);
    let words = files.path("w.conll");
    misused(&finetune(s(&base), &words, &out, &["--method", "head", "--max-answer-len", "4"]), only);
}
