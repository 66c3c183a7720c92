//! Question answering beside transformers: logits, the loss of a labelled span, windows and answers (`fixtures/make_answers.py`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_checkpoint::{Checkpoint, FloatType};
use lowrank_data::glue::Label;
use lowrank_data::pack::{EncodedDataset, PackedBatch};
use lowrank_data::questions::{Asked, MAX_WINDOW, WindowOptions, read_questions};
use lowrank_data::tokenize::{Encoded, TextTokenizer};
use lowrank_eval::{AnswerOptions, answers, score_answers};
use lowrank_kernels::Kernels;
use lowrank_models::{Classifier, ClassifierConfig, HeadLevel, ModelFolder, ModelKind, Parameters};
use lowrank_tests::{assert_close, fixture};
use lowrank_train::tuner::loss;
use lowrank_train::{FineTuner, predict};
use rstest::rstest;
use serde_json::{Value, json};

type Flex = burn_flex::Flex;
type NdArray = burn_ndarray::NdArray;

const TOLERANCE: f32 = 1e-4;

fn golden(name: &str, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture(name).join(file)).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    value["cases"].as_array().unwrap().clone()
}

fn load<B: Backend>(folder: &Path) -> FineTuner<B> {
    let config = ClassifierConfig::read(folder).unwrap();
    assert_eq!(config.level, HeadLevel::Span);
    let model = Classifier::<B>::load(folder, config, 0, &Default::default()).unwrap();
    assert!(model.newly_initialized().is_empty(), "{:?}", model.newly_initialized());
    FineTuner::new(model, AdapterSet::empty())
}

fn numbers<T: serde::de::DeserializeOwned>(case: &Value, key: &str) -> T {
    serde_json::from_value(case[key].clone()).unwrap()
}

/// Start and end logits, and the loss of a labelled span; as read, and as written and read again.
#[rstest]
#[case("bert-qa", "BertForQuestionAnswering")]
#[case("roberta-qa", "RobertaForQuestionAnswering")]
#[case("distilbert-qa", "DistilBertForQuestionAnswering")]
#[case("albert-qa", "AlbertForQuestionAnswering")]
#[case("electra-qa", "ElectraForQuestionAnswering")]
#[case("deberta-qa", "DebertaV2ForQuestionAnswering")]
#[case("mpnet-qa", "MPNetForQuestionAnswering")]
#[case("modernbert-qa", "ModernBertForQuestionAnswering")]
#[case("xlm-roberta-qa", "XLMRobertaForQuestionAnswering")]
#[case("camembert-qa", "CamembertForQuestionAnswering")]
#[case("xlm-roberta-xl-qa", "XLMRobertaXLForQuestionAnswering")]
#[case("ernie-qa", "ErnieForQuestionAnswering")]
#[case("roformer-qa", "RoFormerForQuestionAnswering")]
#[case("jina-qa", "JinaEmbeddingsV3ForQuestionAnswering")]
#[case("llama-qa", "LlamaForQuestionAnswering")]
#[case("mistral-qa", "MistralForQuestionAnswering")]
#[case("qwen3-qa", "Qwen3ForQuestionAnswering")]
#[case("gpt2-qa", "GPT2ForQuestionAnswering")]
#[case("gpt-neox-qa", "GPTNeoXForQuestionAnswering")]
#[case("opt-qa", "OPTForQuestionAnswering")]
fn equals_transformers(#[case] name: &str, #[case] class: &str) {
    fn check<B: Backend + Kernels>(name: &str, folder: &Path) {
        let tuner = load::<B>(folder);
        for case in golden(name, "expected.json") {
            let row =
                Encoded { ids: numbers(&case, "input_ids"), type_ids: numbers(&case, "token_type_ids") };
            let (starts, ends): (Vec<f32>, Vec<f32>) =
                (numbers(&case, "start_logits"), numbers(&case, "end_logits"));
            let expect: Vec<f32> = starts.iter().zip(&ends).flat_map(|(s, e)| [*s, *e]).collect();
            let label = (case.get("start").is_some())
                .then(|| Label::Span { start: numbers(&case, "start"), end: numbers(&case, "end") });
            let batch = PackedBatch::collate([(&row, label.clone())]).unwrap();
            let logits = tuner.logits(&batch, Mode::EVAL).unwrap();
            let got: Vec<f32> = logits.clone().into_data().iter::<f32>().collect();
            assert_close(&format!("{name}/{}", case["name"]), &got, &expect, TOLERANCE);
            if let Some(expect) = case["loss"].as_f64() {
                let got =
                    loss(logits, &batch.labels, None).unwrap().into_data().iter::<f64>().next().unwrap();
                assert!((got - expect).abs() < 1e-4, "{name}: loss {got}, transformers {expect}");
            }
        }
    }
    let folder = fixture(name);
    let kind = ModelFolder::open(&folder).unwrap().kind();
    assert!([ModelKind::QuestionAnswering, ModelKind::DecoderQuestionAnswering].contains(&kind), "{kind:?}");
    check::<Flex>(name, &folder);
    check::<NdArray>(name, &folder);
    let saved = tempfile::tempdir().unwrap();
    load::<Flex>(&folder).model().save(saved.path(), &folder, FloatType::F32).unwrap();
    check::<Flex>(name, saved.path());
    assert_eq!(ClassifierConfig::read(saved.path()).unwrap().raw()["architectures"], json!([class]));
    let names = |folder: &Path| {
        let file = Checkpoint::open(folder).unwrap();
        file.names().map(str::to_string).collect::<BTreeSet<String>>()
    };
    if kind.is_decoder() {
        assert_eq!(names(saved.path()), names(&folder));
    }
}

/// The loss of a batch is the mean of the losses of its sequences.
#[test]
fn a_packed_batch_equals_one_by_one() {
    let tuner = load::<Flex>(&fixture("deberta-qa"));
    let cases = golden("deberta-qa", "expected.json");
    let rows: Vec<(Encoded, Label)> = cases
        .iter()
        .map(|case| {
            let row = Encoded { ids: numbers(case, "input_ids"), type_ids: numbers(case, "token_type_ids") };
            (row, Label::Span { start: numbers(case, "start"), end: numbers(case, "end") })
        })
        .collect();
    let batch = PackedBatch::collate(rows.iter().map(|(row, label)| (row, Some(label.clone())))).unwrap();
    let logits = tuner.logits(&batch, Mode::EVAL).unwrap();
    let got = loss(logits, &batch.labels, None).unwrap().into_data().iter::<f64>().next().unwrap();
    let expect = cases.iter().map(|case| case["loss"].as_f64().unwrap()).sum::<f64>() / cases.len() as f64;
    assert!((got - expect).abs() < 1e-5, "{got}, one by one {expect}");
}

/// Windows, words, offsets in characters, products of probabilities: as the question answering pipeline of transformers 4.
#[rstest]
#[case("bert-qa")]
#[case("roberta-qa")]
fn answers_are_those_of_the_pipeline(#[case] name: &str) {
    let folder = fixture(name);
    let (tuner, tokenizer) = (load::<Flex>(&folder), TextTokenizer::from_folder(&folder, None).unwrap());
    let limit = tokenizer.model_max_length().unwrap().min(MAX_WINDOW);
    for case in golden(name, "answers.json") {
        let text = |key: &str| case[key].as_str().unwrap();
        let options = WindowOptions { max_length: limit, stride: None };
        let pairs = [(text("question"), text("context"))];
        let (asked, data) = Asked::encode_pairs(&pairs, &tokenizer, options).unwrap();
        assert_eq!(json!(data.len()), case["windows"], "{name}/{}", case["name"]);
        let (logits, _) = predict(&tuner, &Arc::new(data), 4).unwrap();
        let options = AnswerOptions {
            max_tokens: numbers(&case, "max_answer_len"),
            may_be_none: numbers(&case, "impossible"),
        };
        let found = &answers(&asked, &logits, options).unwrap()[0];
        let place = (json!(found.text), json!(found.start), json!(found.end));
        let expect = (case["answer"].clone(), case["start"].clone(), case["end"].clone());
        assert_eq!(place, expect, "{name}/{}", case["name"]);
        for (key, got) in [("score", found.score), ("null_score", found.none_score)] {
            let expect = case[key].as_f64().unwrap();
            assert!((got - expect).abs() < 1e-5 * expect, "{name}/{} {key}: {got}, {expect}", case["name"]);
        }
    }
}

fn encode(rows: &str, options: WindowOptions) -> lowrank_data::Result<(Asked, EncodedDataset)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, rows).unwrap();
    let tokenizer = TextTokenizer::from_folder(&fixture("bert-qa"), None).unwrap();
    Asked::encode(&read_questions(&path)?, &tokenizer, options)
}

/// Every window that contains the answer is labelled with it, every other one with `[CLS]`; the tokens' text is the answer.
#[test]
fn windows_are_labelled_with_the_answer() {
    let context = "The small boat crossed the cold river before the rain came down. She reads an old book.";
    let row = json!({"question": "Who?", "context": context,
                     "answers": {"text": ["river before", "x"], "answer_start": [32, 0]}});
    assert!(
        encode(&row.to_string(), WindowOptions { max_length: 12, stride: Some(3) }).is_err(),
        "'x' is not there"
    );
    let row = json!({"question": "Who?", "context": context,
                     "answers": {"text": ["river before"], "answer_start": [32]}});
    let options = WindowOptions { max_length: 14, stride: Some(4) };
    let (asked, data) = encode(&row.to_string(), options).unwrap();
    assert!(data.len() > 2 && data.rows().iter().all(|row| row.ids.len() <= 14));
    let mut n_found = 0;
    for (window, label) in asked.windows.iter().zip(data.labels()) {
        let Some(Label::Span { start, end }) = label else { panic!("{label:?}") };
        if (*start, *end) == (0, 0) {
            let whole = window.words[0].start..window.words[window.words.len() - 1].end;
            assert!(!(whole.start <= 32 && whole.end >= 44), "{whole:?}");
            continue;
        }
        n_found += 1;
        let word = |token: u32| window.words[token as usize - window.context.start].clone();
        assert_eq!(word(*start).start..word(*end).end, 32..44);
    }
    assert!(n_found >= 1);
    // Logits that are sure of the labels give the right answer.
    let logits: Vec<Vec<f32>> = data
        .rows()
        .iter()
        .zip(data.labels())
        .map(|(row, label)| {
            let Some(Label::Span { start, end }) = label else { panic!("{label:?}") };
            let sure = |token: usize, place: u32| if token == place as usize { 20.0 } else { 0.0 };
            (0..row.ids.len()).flat_map(|token| [sure(token, *start), sure(token, *end)]).collect()
        })
        .collect();
    let found = answers(&asked, &logits, AnswerOptions::default()).unwrap();
    assert_eq!((found[0].start, found[0].end, &*found[0].text), (32, 44, "river before"));
    assert!(score_answers(&asked, &found).iter().all(|(_, value)| *value == 1.0));
}

#[test]
fn questions_without_room_for_the_context_are_refused_by_row() {
    let ok = json!({"question": "Who?", "context": "The sea is calm.", "answers": []}).to_string();
    let long = json!({"question": "who sat on the red mat before the rain came down", "context": "The sea is calm.", "answers": []});
    let rows = format!("{ok}\n{long}\n");
    let error = encode(&rows, WindowOptions { max_length: 10, stride: None }).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:2: the number of tokens of the question is"), "{error}");
    assert!(error.contains("leaves no room for the context in 10 tokens (--max-length)"), "{error}");
    let error = encode(&ok, WindowOptions { max_length: 8, stride: Some(5) }).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:1: the overlap of windows (--doc-stride) is 5"), "{error}");
    encode(&ok, WindowOptions { max_length: 8, stride: None }).unwrap();
}
