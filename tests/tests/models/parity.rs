//! Encoders against transformers, on small random models (`fixtures/`, with the scripts that made them).

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use lowrank_data::glue::{Label, read_tagged_file};
use lowrank_data::pack::EncodedDataset;
use lowrank_data::tokenize::TextTokenizer;
use lowrank_kernels::Kernels;
use lowrank_models::{
    Adaptable, Classifier, ClassifierConfig, EncoderConfig, MaskedLm, Parameters, Part, Rows, Run, Stack,
    Tokens, Trainable,
};
use lowrank_tests::{Case, Tested, assert_close, fixture, golden, load, pack, values};
use rstest::rstest;

type Flex = burn_flex::Flex;
type NdArray = burn_ndarray::NdArray;

/// What the issue asks for; f32 rounding alone is a hundred times smaller on these models.
const TOLERANCE: f32 = 1e-4;

fn check<B: Backend + Kernels>(name: &str) {
    let golden = golden(name);
    let (model, tokenizer) = load::<B>(name);
    let none = AdapterSet::empty();
    for case in &golden.cases {
        let encoded = tokenizer.encode(&case.text, case.text_pair.as_deref()).unwrap();
        assert_eq!(encoded.ids, case.input_ids, "{name}/{}: token ids", case.name);
        let batch = pack::<B>(&model, &[case]);
        if let Some(expect) = &case.last_hidden_state {
            let hidden = values(model.hidden_states(&batch, Rows::All, Run::eval(&none)));
            assert_close(
                &format!("{name}/{}: hidden states", case.name),
                &hidden,
                &expect.concat(),
                TOLERANCE,
            );
        }
        if let Some(logits) = &case.logits {
            let got = values(model.forward(&batch, Run::eval(&none)));
            assert_close(&format!("{name}/{}: logits", case.name), &got, logits, TOLERANCE);
        }
    }
}

#[rstest]
#[case("bert-cls")]
#[case("bert-regression")]
#[case("bert-gelu-new")]
#[case("bert-multilabel")]
#[case("bert-encoder")]
#[case("roberta-cls")]
#[case("roberta-regression")]
#[case("roberta-encoder")]
#[case("distilbert-cls")]
#[case("xlm-roberta-cls")]
#[case("electra-cls")]
#[case("albert-cls")]
#[case("albert-groups")]
#[case("albert-square")]
#[case("modernbert-cls")]
#[case("modernbert-biases")]
#[case("mpnet-cls")]
#[case("deberta-v3-cls")]
#[case("deberta-v2-cls")]
#[case("deberta-plain-cls")]
#[case("nomic-cls")]
#[case("gte-cls")]
#[case("jina-cls")]
#[case("roformer-cls")]
#[case("ernie-cls")]
#[case("xlm-roberta-xl-cls")]
#[case("t5-encoder")]
#[case("t5-gated")]
fn equals_transformers(#[case] name: &str) {
    check::<Tested>(name);
    check::<NdArray>(name);
}

#[rstest]
#[case("bert-cls")]
#[case("roberta-cls")]
#[case("distilbert-cls")]
#[case("modernbert-cls")]
#[case("modernbert-biases")]
#[case("mpnet-cls")]
#[case("deberta-v3-cls")]
#[case("deberta-v2-cls")]
fn a_packed_batch_equals_one_by_one(#[case] name: &str) {
    let golden = golden(name);
    let (model, _) = load::<Flex>(name);
    let cases: Vec<&Case> = golden.cases.iter().collect();
    let batch = pack::<Flex>(&model, &cases);
    let got = values(model.forward(&batch, Run::eval(&AdapterSet::empty())));
    let expect: Vec<f32> = cases.iter().flat_map(|c| c.logits.clone().unwrap()).collect();
    assert_close(name, &got, &expect, TOLERANCE);
}

#[rstest]
#[case("bert-cls")]
#[case("roberta-cls")]
fn dropout_is_there_in_training_alone(#[case] name: &str) {
    let golden = golden(name);
    let (model, _) = load::<Flex>(name);
    let batch = pack::<Flex>(&model, &[&golden.cases[0]]);
    let run = |mode| values(model.forward(&batch, Run::new(&AdapterSet::empty(), mode)));
    assert_eq!(run(Mode::EVAL), run(Mode::EVAL));
    assert_eq!(run(Mode::train(1)), run(Mode::train(1)), "a seed repeats its masks");
    assert_ne!(run(Mode::train(1)), run(Mode::train(2)), "seeds differ");
    assert_ne!(run(Mode::train(1)), run(Mode::EVAL));
}

#[rstest]
#[case("peft-bert-lora")]
#[case("peft-bert-lora-bin")]
#[case("peft-bert-rslora-patterns")]
#[case("peft-bert-regex")]
#[case("peft-bert-dora")]
#[case("peft-bert-embedding")]
#[case("peft-roberta-embedding")]
#[case("peft-bert-bias-lora-only")]
#[case("peft-bert-layers-heads")]
#[case("peft-roberta-dora")]
#[case("peft-roberta-bias-all")]
#[case("peft-roberta-lora")]
#[case("peft-roberta-rslora-patterns")]
fn an_adapter_from_peft_gives_its_logits(#[case] name: &str) {
    fn check<B: Backend + Kernels>(name: &str) {
        let golden = golden(name);
        let (mut model, _) = load::<B>(golden.base.as_deref().unwrap());
        let adapters = model.load_adapter(&lowrank_tests::fixture(name), &Default::default()).unwrap();
        let merged = model.merged(&adapters).unwrap();
        for case in &golden.cases {
            let batch = pack::<B>(&model, &[case]);
            let expect = case.logits.as_ref().unwrap();
            let got = values(model.forward(&batch, Run::eval(&adapters)));
            assert_close(&format!("{name}/{}", case.name), &got, expect, TOLERANCE);
            let got = values(merged.forward(&batch, Run::eval(&AdapterSet::empty())));
            assert_close(&format!("{name}/{} merged", case.name), &got, expect, TOLERANCE);
        }
    }
    check::<Flex>(name);
    check::<NdArray>(name);
}

/// The last token that is not padding, one by one and packed; written and read again.
#[rstest]
#[case("small-llama-cls", "LlamaForSequenceClassification")]
#[case("small-gpt2-cls", "GPT2ForSequenceClassification")]
#[case("small-qwen2-regression", "Qwen2ForSequenceClassification")]
fn classifiers_over_decoders_equal_transformers(#[case] name: &str, #[case] class: &str) {
    let golden = golden(name);
    let (model, _) = load::<Flex>(name);
    let saved = tempfile::tempdir().unwrap();
    model.save(saved.path(), &lowrank_tests::fixture(name), FloatType::F32).unwrap();
    let config = ClassifierConfig::read(saved.path()).unwrap();
    assert_eq!((&config.labels, config.problem), (&model.config().labels, model.config().problem));
    assert_eq!(config.raw()["architectures"][0], class);
    let again = Classifier::<Flex>::load(saved.path(), config, 0, &Default::default()).unwrap();
    assert!(again.newly_initialized().is_empty());
    for model in [&model, &again] {
        let none = AdapterSet::empty();
        let logits = |cases: &[&Case]| values(model.forward(&pack::<Flex>(model, cases), Run::eval(&none)));
        for case in &golden.cases {
            let expect = case.logits.as_ref().unwrap();
            assert_close(&format!("{name}/{}", case.name), &logits(&[case]), expect, TOLERANCE);
        }
        let cases: Vec<&Case> = golden.cases.iter().collect();
        let expect: Vec<f32> = cases.iter().flat_map(|c| c.logits.clone().unwrap()).collect();
        assert_close(&format!("{name} packed"), &logits(&cases), &expect, TOLERANCE);
    }
}

/// A label for every token; written and read again.
#[rstest]
#[case("bert-token-cls", "BertForTokenClassification")]
#[case("roberta-token-cls", "RobertaForTokenClassification")]
#[case("modernbert-token-cls", "ModernBertForTokenClassification")]
#[case("mpnet-token-cls", "MPNetForTokenClassification")]
#[case("deberta-token-cls", "DebertaV2ForTokenClassification")]
fn token_classifiers_equal_transformers(#[case] name: &str, #[case] class: &str) {
    let folder = lowrank_tests::fixture(name);
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    let device = Default::default();
    let load = |folder: &std::path::Path| {
        let config = ClassifierConfig::read(folder).unwrap();
        Classifier::<Flex>::load(folder, config, 0, &device).unwrap()
    };
    let (model, saved) = (load(&folder), tempfile::tempdir().unwrap());
    model.save(saved.path(), &folder, FloatType::F32).unwrap();
    let again = load(saved.path());
    assert_eq!(again.config().raw()["architectures"][0], class);
    assert!(again.newly_initialized().is_empty());
    for model in [model, again] {
        for case in golden["cases"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(case["input_ids"].clone()).unwrap();
            let logits: Vec<Vec<f32>> = serde_json::from_value(case["logits"].clone()).unwrap();
            let batch = model.batch(Tokens::new(&ids, &[ids.len()]), &device).unwrap();
            let got = values(model.forward(&batch, Run::eval(&AdapterSet::empty())));
            assert_close(&format!("{name}/{}", case["name"]), &got, &logits.concat(), TOLERANCE);
        }
    }
}

/// Words and their tokens as transformers aligns them: ids, the word of each token, the tags of first tokens alone.
#[rstest]
#[case("bert-token-cls")]
#[case("roberta-token-cls")]
fn words_are_aligned_as_in_transformers(#[case] name: &str) {
    let folder = lowrank_tests::fixture(name);
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    let limit = golden["max_length"].as_u64().unwrap() as usize;
    let tokenizer = TextTokenizer::from_folder(&folder, Some(limit)).unwrap();
    let names = ClassifierConfig::read(&folder).unwrap().labels;
    let dir = tempfile::tempdir().unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let words: Vec<String> = serde_json::from_value(case["words"].clone()).unwrap();
        let (encoded, of) = tokenizer.encode_words(&words).unwrap();
        assert_eq!(serde_json::json!(encoded.ids), case["input_ids"], "{name}/{}", case["name"]);
        assert_eq!(serde_json::json!(of), case["word_ids"], "{name}/{}", case["name"]);
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, serde_json::json!({"tokens": words, "tags": case["tags"]}).to_string())
            .unwrap();
        let set = read_tagged_file(name, &path, &names).unwrap();
        let (rows, cut) = EncodedDataset::encode_tagged(&set, &tokenizer).unwrap();
        let Some(Label::Tags(tags)) = &rows.labels()[0] else { panic!("tags were expected") };
        let labels: Vec<i64> = tags.iter().map(|tag| tag.map_or(-100, i64::from)).collect();
        assert_eq!(serde_json::json!(labels), case["labels"], "{name}/{}", case["name"]);
        assert_eq!(
            cut,
            usize::from(words.last().is_some_and(String::is_empty)),
            "an empty word has no token"
        );
    }
}

/// A head for a language model's checkpoint is drawn, trained alone by default, and saved under its name.
/// The model computes its rotary angles: a checkpoint with other ones is not that model.
#[test]
fn another_table_of_angles_is_refused() {
    let load = |change: f32| {
        let (folder, source) = (tempfile::tempdir().unwrap(), fixture("roformer-cls"));
        let checkpoint = Checkpoint::open(&source).unwrap();
        let tensors: Vec<HostTensor<'static>> = checkpoint
            .names()
            .map(|name| {
                let mut data = checkpoint.read_f32(name).unwrap();
                if name.ends_with("embed_positions.weight") {
                    data[9] += change;
                }
                HostTensor::new(name, checkpoint.info(name).unwrap().shape.clone(), data)
            })
            .collect();
        let path = folder.path().join("model.safetensors");
        write_safetensors(path, tensors, FloatType::F32, &Default::default()).unwrap();
        let config = ClassifierConfig::read(&source).unwrap();
        Classifier::<Flex>::load(folder.path(), config, 0, &Default::default()).map(|_| ())
    };
    load(0.0).unwrap();
    let error = load(0.1).unwrap_err().to_string();
    assert!(error.contains("embed_positions.weight' is not the table"), "{error}");
}

#[test]
fn a_language_model_gets_a_head() {
    let folder = lowrank_tests::fixture("small-llama");
    let config = ClassifierConfig::read(&folder).unwrap().with_labels(vec!["a".into(), "b".into()], false);
    let model = Classifier::<Autodiff<Flex>>::load(&folder, config, 1, &Default::default()).unwrap();
    assert_eq!(model.newly_initialized(), ["score.weight"]);
    assert_eq!(
        (model.head_modules(), model.head_tensors()[0].shape.clone()),
        (vec!["score".into()], vec![2, 24])
    );
    let mut trained = Vec::new();
    model.with_trainable(Trainable::Head).choose_trained(|at, is_trained| {
        trained.extend(is_trained.then(|| (at.key(), at.module.part)));
        is_trained
    });
    assert_eq!(trained, [("score.weight".to_string(), Part::Head)]);
}

/// Alibaba's files say `new.` and that positions are rotary.
#[test]
fn gte_is_read_from_the_files_it_was_first_published_in() {
    let rename = |name: &str, folder: &std::path::Path| {
        let source = fixture(name);
        let checkpoint = Checkpoint::open(&source).unwrap();
        let tensors = checkpoint.names().map(|name| {
            let shape = checkpoint.info(name).unwrap().shape.clone();
            let old = name.strip_prefix("gte.").map_or(name.to_owned(), |rest| format!("new.{rest}"));
            HostTensor::new(old, shape, checkpoint.read_f32(name).unwrap())
        });
        let tensors: Vec<_> = tensors.collect();
        assert!(tensors.iter().any(|tensor| tensor.name.starts_with("new.encoder.")));
        let file = folder.join("model.safetensors");
        write_safetensors(file, tensors, FloatType::F32, &Default::default()).unwrap();
        let config = std::fs::read_to_string(source.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["position_embedding_type"] = "rope".into();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        EncoderConfig::read(folder).unwrap()
    };
    let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
    let config = rename("gte-cls", folder.path());
    let model = Classifier::<Flex>::load(folder.path(), config, 0, &device).unwrap();
    let golden = golden("gte-cls");
    let batch = pack::<Flex>(&model, &[&golden.cases[0]]);
    let got = values(model.forward(&batch, Run::eval(&AdapterSet::empty())));
    assert_close("gte-cls", &got, golden.cases[0].logits.as_ref().unwrap(), TOLERANCE);

    let logits = |folder: &std::path::Path, config| {
        let model = MaskedLm::<Flex>::load(folder, config, &device).unwrap();
        let tokens = Tokens { ids: &[2, 7, 5], type_ids: &[0; 3], lengths: &[3], pixels: &[] };
        let batch = model.batch(tokens, &device).unwrap();
        let rows = lowrank_models::batch::int_tensor(vec![0, 1, 2], &device);
        values(model.forward(&batch, rows, Run::eval(&AdapterSet::empty())))
    };
    let config = rename("gte-mlm", folder.path());
    let got = logits(folder.path(), config);
    let source = fixture("gte-mlm");
    assert_eq!(got, logits(&source, EncoderConfig::read(&source).unwrap()));
}

#[rstest]
#[case("bert-mlm")]
#[case("modernbert-mlm")]
#[case("mpnet-mlm")]
#[case("deberta-mlm")]
#[case("gte-mlm")]
#[case("roformer-mlm")]
fn masked_language_models_equal_transformers(#[case] name: &str) {
    fn check<B: Backend + Kernels>(name: &str) {
        let folder = lowrank_tests::fixture(name);
        let golden: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
        let (config, device) = (EncoderConfig::read(&folder).unwrap(), Default::default());
        let model = MaskedLm::<B>::load(&folder, config, &device).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let ids: Vec<u32> = serde_json::from_value(case["input_ids"].clone()).unwrap();
            let types: Vec<u32> = serde_json::from_value(case["token_type_ids"].clone()).unwrap();
            let logits: Vec<Vec<f32>> = serde_json::from_value(case["logits"].clone()).unwrap();
            let batch = model
                .batch(Tokens { ids: &ids, type_ids: &types, lengths: &[ids.len()], pixels: &[] }, &device)
                .unwrap();
            let rows = lowrank_models::batch::int_tensor((0..ids.len() as i32).collect(), &device);
            let got = values(model.forward(&batch, rows, Run::eval(&AdapterSet::empty())));
            assert_close(&format!("{name}/{}", case["name"]), &got, &logits.concat(), TOLERANCE);
        }
    }
    check::<Flex>(name);
    check::<NdArray>(name);
}
