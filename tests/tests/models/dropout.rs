//! Dropouts of decoders in training: their keys, and laws of their masks.

use burn_flex::Flex;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_models::config::{DecoderDropouts, HeadLevel};
use lowrank_models::params::WeightType;
use lowrank_models::{Classifier, ClassifierConfig, Decoder, DecoderConfig, Rows, Run, Stack, Tokens};
use lowrank_tests::{distance, fixture, values};
use rstest::rstest;
use serde_json::{Map, Value};

/// The config of a fixture without any key of dropouts, and with `changes`.
fn raw(name: &str, changes: &str) -> Map<String, Value> {
    let text = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
    let mut raw: Map<String, Value> = serde_json::from_str(&text).unwrap();
    raw.retain(|key, _| !key.contains("dropout") && !key.contains("pdrop"));
    if let Some(Value::Object(attention)) = raw.get_mut("attn_config") {
        attention.remove("attn_pdrop");
    }
    raw.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
    raw
}

/// Embeddings, attention probabilities, attention output, feed-forward output, token head; by the sources of transformers.
#[rstest]
#[case("gpt2", "{}", [0.1, 0.1, 0.1, 0.1, 0.1])]
#[case("gpt2", r#"{"embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.4}"#, [0.2, 0.3, 0.4, 0.4, 0.1])]
#[case("gpt-bigcode", "{}", [0.1, 0.1, 0.1, 0.1, 0.1])]
#[case("gptj", "{}", [0.0, 0.0, 0.0, 0.0, 0.1])]
#[case("gptj", r#"{"embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.4}"#, [0.2, 0.3, 0.4, 0.4, 0.1])]
#[case("gpt-neo", r#"{"embed_dropout": 0.2, "attention_dropout": 0.3, "resid_dropout": 0.4, "hidden_dropout": 0.5}"#, [0.2, 0.3, 0.4, 0.4, 0.1])]
#[case("gpt-neox", r#"{"hidden_dropout": 0.2, "attention_dropout": 0.3, "classifier_dropout": 0.4}"#, [0.2, 0.3, 0.2, 0.2, 0.4])]
#[case("opt", "{}", [0.0, 0.0, 0.1, 0.1, 0.1])]
#[case("opt", r#"{"dropout": 0.0, "attention_dropout": 0.2}"#, [0.0, 0.2, 0.0, 0.0, 0.1])]
#[case("bloom", "{}", [0.0, 0.0, 0.0, 0.0, 0.0])]
#[case("bloom", r#"{"hidden_dropout": 0.2, "attention_dropout": 0.3}"#, [0.0, 0.3, 0.2, 0.2, 0.2])]
#[case("falcon", r#"{"hidden_dropout": 0.2, "attention_dropout": 0.3}"#, [0.0, 0.3, 0.2, 0.2, 0.2])]
#[case("falcon", r#"{"hidden_dropout": 0.2, "attention_dropout": 0.3, "parallel_attn": false}"#, [0.0, 0.3, 0.3, 0.2, 0.2])]
#[case("mpt", r#"{"resid_pdrop": 0.3, "emb_pdrop": 0.3}"#, [0.0, 0.0, 0.0, 0.0, 0.1])]
#[case("mpt", r#"{"attn_config": {"attn_pdrop": 0.2}}"#, [0.0, 0.2, 0.2, 0.2, 0.1])]
#[case("phi", r#"{"embd_pdrop": 0.2, "attention_dropout": 0.3, "resid_pdrop": 0.4}"#, [0.2, 0.3, 0.4, 0.4, 0.1])]
#[case("phi3", r#"{"embd_pdrop": 0.2, "attention_dropout": 0.3, "resid_pdrop": 0.4}"#, [0.0, 0.3, 0.4, 0.4, 0.1])]
#[case("starcoder2", r#"{"embedding_dropout": 0.2, "attention_dropout": 0.3, "residual_dropout": 0.4}"#, [0.2, 0.3, 0.4, 0.4, 0.1])]
#[case("stablelm", r#"{"hidden_dropout": 0.2, "attention_dropout": 0.3}"#, [0.0, 0.3, 0.0, 0.2, 0.2])]
#[case("stablelm", "{}", [0.0, 0.0, 0.0, 0.0, 0.0])]
#[case("seed-oss", "{}", [0.0, 0.1, 0.1, 0.1, 0.1])]
#[case("llama", r#"{"attention_dropout": null}"#, [0.0, 0.0, 0.0, 0.0, 0.1])]
#[case("llama", r#"{"attention_dropout": 0.2, "hidden_dropout": 0.3}"#, [0.0, 0.2, 0.0, 0.0, 0.3])]
#[case("ernie4_5", r#"{"attention_dropout": 0.2, "classifier_dropout": 0.3}"#, [0.0, 0.0, 0.0, 0.0, 0.3])]
fn keys_and_defaults_are_those_of_transformers(
    #[case] name: &str,
    #[case] changes: &str,
    #[case] expected: [f64; 5],
) {
    let got = DecoderConfig::parse(raw(name, changes)).unwrap().dropouts;
    let got = [got.embeddings, got.attention, got.attention_output, got.mlp_output, got.token_head];
    assert_eq!(got, expected);
}

#[test]
fn a_probability_of_1_is_refused() {
    let error = DecoderConfig::parse(raw("gpt2", r#"{"resid_pdrop": 1.0}"#)).unwrap_err();
    assert!(error.contains("resid_pdrop = 1"), "{error}");
}

const NONE: DecoderDropouts = DecoderDropouts {
    embeddings: 0.0,
    attention: 0.0,
    attention_output: 0.0,
    mlp_output: 0.0,
    shares_mask: false,
    token_head: 0.0,
    mlp_inner: 0.0,
    last: 0.0,
};

fn logits(name: &str, dropouts: DecoderDropouts, mode: Mode) -> Vec<f32> {
    let mut config = DecoderConfig::read(&fixture(name)).unwrap();
    config.dropouts = dropouts;
    let device = Default::default();
    let model = Decoder::<Flex>::load(&fixture(name), config, WeightType::F32, &device).unwrap();
    let batch = model.batch(Tokens::new(&[5, 9, 23, 7, 41, 12, 6], &[4, 3]), &device).unwrap();
    values(model.forward(&batch, Rows::All, Run::new(&AdapterSet::empty(), mode)))
}

#[rstest]
#[case("gpt2")]
#[case("llama")]
#[case("falcon")]
#[case("gpt-neox")]
#[case("opt")]
fn each_place_drops_in_training_alone(#[case] name: &str) {
    let eval = logits(name, NONE, Mode::EVAL);
    assert_eq!(logits(name, NONE, Mode::train(3)), eval);
    let p = 0.02;
    for (what, dropouts) in [
        ("embeddings", DecoderDropouts { embeddings: p, ..NONE }),
        ("attention", DecoderDropouts { attention: 0.05, ..NONE }),
        ("attention output", DecoderDropouts { attention_output: p, ..NONE }),
        ("feed-forward output", DecoderDropouts { mlp_output: p, ..NONE }),
    ] {
        assert_eq!(logits(name, dropouts, Mode::EVAL), eval, "{name}: {what}");
        let of = |seed| logits(name, dropouts, Mode::train(seed));
        assert_eq!(of(3), of(3), "{name}: {what}");
        assert_ne!(of(3), of(4), "{name}: {what}");
        let runs: Vec<Vec<f32>> = (0..64).map(of).collect();
        let mean: Vec<f32> =
            (0..eval.len()).map(|i| runs.iter().map(|run| run[i]).sum::<f32>() / 64.0).collect();
        let squared = |a: &[f32]| a.iter().zip(&eval).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let single = runs.iter().map(|run| squared(run)).sum::<f32>() / 64.0;
        assert!(squared(&mean) < 0.15 * single, "{name}: {what}: {} {single}", squared(&mean));
    }
}

/// Falcon drops from the sum of its parallel parts: what one keeps, the other keeps.
#[test]
fn parallel_parts_of_falcon_share_their_mask() {
    let config = |name: &str| DecoderConfig::read(&fixture(name)).unwrap().dropouts;
    assert!(config("falcon").shares_mask && !config("gptj").shares_mask);
    let p = DecoderDropouts { attention_output: 0.5, mlp_output: 0.5, ..NONE };
    let layer = |dropouts: DecoderDropouts, mode| {
        let mut config = DecoderConfig::read(&fixture("falcon")).unwrap();
        config.dropouts = dropouts;
        let device = Default::default();
        let model = Decoder::<Flex>::load(&fixture("falcon"), config, WeightType::F32, &device).unwrap();
        let batch = model.batch(Tokens::new(&[5, 9, 23, 7], &[4]), &device).unwrap();
        let adapters = AdapterSet::empty();
        let run = Run::new(&adapters, mode);
        let x = model.embed(&batch, run);
        values(model.layer(0, x.clone(), &batch, Rows::All, run) - x)
    };
    let whole = layer(NONE, Mode::EVAL);
    let dropped = layer(DecoderDropouts { shares_mask: true, ..p }, Mode::train(1));
    let kept = dropped.iter().zip(&whole).filter(|(a, b)| (*a - 2.0 * *b).abs() < 1e-4).count();
    let zero = dropped.iter().filter(|a| a.abs() < 1e-6).count();
    assert!(kept + zero == whole.len() && kept > 0 && zero > 0, "{kept} {zero} of {}", whole.len());
    assert!(distance(&layer(p, Mode::train(1)), &dropped) > 1e-3);
}

#[rstest]
#[case("gpt2", &["classifier.bias", "classifier.weight"])]
#[case("gpt-neox", &["classifier.bias", "classifier.weight"])]
#[case("bloom", &["classifier.bias", "classifier.weight"])]
#[case("llama", &["score.bias", "score.weight"])]
#[case("stablelm", &["score.bias", "score.weight"])]
fn heads_over_tokens_have_their_names(#[case] name: &str, #[case] expected: &[&str]) {
    let names = |raw| {
        let config = ClassifierConfig::parse(raw).unwrap().at_level(HeadLevel::Token);
        let model = Classifier::<Flex>::init(config, 0, &Default::default());
        let mut names: Vec<String> = model.head_tensors().into_iter().map(|t| t.name).collect();
        names.sort();
        names
    };
    assert_eq!(names(raw(name, "{}")), expected);
    let without = names(raw(name, r#"{"token_classification_bias": false}"#));
    assert_eq!(without.len(), if expected[0] == "score.bias" { 1 } else { 2 });
}

#[test]
fn the_dropout_before_a_head_over_tokens_is_the_config_s() {
    let answers = |changes: &str, mode| {
        let config = ClassifierConfig::parse(raw("llama", changes)).unwrap().at_level(HeadLevel::Token);
        let device = Default::default();
        let model = Classifier::<Flex>::load(&fixture("llama"), config, 0, &device).unwrap();
        let batch = model.batch(Tokens::new(&[5, 9, 23, 7], &[4]), &device).unwrap();
        values(model.forward(&batch, Run::new(&AdapterSet::empty(), mode)))
    };
    let eval = answers("{}", Mode::EVAL);
    assert_ne!(answers("{}", Mode::train(1)), eval);
    assert_eq!(answers(r#"{"classifier_dropout": 0.0}"#, Mode::train(1)), eval);
    assert_eq!(answers(r#"{"hidden_dropout": 0.0}"#, Mode::train(1)), eval);
}
