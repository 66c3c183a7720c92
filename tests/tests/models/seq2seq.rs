//! Encoder-decoder models against transformers and PEFT (`fixtures/make_seq2seq.py`).

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::module::Param;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use lowrank_data::rows::SourceTarget;
use lowrank_data::tokenize::TextTokenizer;
use lowrank_kernels::Kernels;
use lowrank_models::decoder::{Beams, Constraints, Finish, GenerationOptions, Sampling};
use lowrank_models::params::WeightType;
use lowrank_models::{
    Adaptable, LanguageModel, ModelFolder, ParamVisitor, Parameter, Parameters, Role, Rows, Run, Seq2Seq,
    Seq2SeqConfig, Tokens,
};
use lowrank_tests::{Tested, assert_close, check_gradients, fixture, values};
use lowrank_train::seq2seq::PairedTokens;
use lowrank_train::{Objective, SequencePairs, TrainConfig, TunedSeq2Seq};
use rstest::rstest;
use serde::Deserialize;

type NdArray = burn_ndarray::NdArray;
type Flex = burn_flex::Flex;

const TOLERANCE: f32 = 1e-4;
const MODELS: [&str; 7] = [
    "seq2seq-t5",
    "seq2seq-t5-head",
    "seq2seq-mt5",
    "seq2seq-bart",
    "seq2seq-bart-head",
    "seq2seq-mbart",
    "seq2seq-mbart-bos",
];

#[derive(Deserialize)]
struct Case {
    name: String,
    source: String,
    target: String,
    source_ids: Vec<u32>,
    labels: Vec<u32>,
    loss: f64,
    logits: Vec<Vec<f32>>,
    written: Vec<u32>,
    #[serde(default)]
    generated: Vec<u32>,
}

#[derive(Deserialize)]
struct Golden {
    base: Option<String>,
    cases: Vec<Case>,
    /// Norm and `Σ gᵢ·cos(i)` by name.
    #[serde(default)]
    gradients: BTreeMap<String, [f64; 2]>,
}

fn golden(name: &str) -> Golden {
    serde_json::from_str(&std::fs::read_to_string(fixture(name).join("expected.json")).unwrap()).unwrap()
}

fn load<B: Kernels>(name: &str) -> Seq2Seq<B> {
    let folder = fixture(name);
    let config = Seq2SeqConfig::read(&folder).unwrap();
    Seq2Seq::load(&folder, config, WeightType::F32, &Default::default()).unwrap()
}

/// The tokens that a decoder reads to write these labels.
fn shifted<B: Kernels>(model: &Seq2Seq<B>, labels: &[u32]) -> Vec<u32> {
    [&[model.config().start_token().unwrap()], &labels[..labels.len() - 1]].concat()
}

/// Logits of whole targets, all cases in one batch.
fn forward<B: Kernels>(
    model: &Seq2Seq<B>,
    cases: &[&Case],
    rows: Rows,
    adapters: &AdapterSet<B>,
) -> Vec<f32> {
    let (device, run) = (Default::default(), Run::eval(adapters));
    let sources: Vec<u32> = cases.iter().flat_map(|case| case.source_ids.clone()).collect();
    let lengths: Vec<usize> = cases.iter().map(|case| case.source_ids.len()).collect();
    let source = model.source(Tokens::new(&sources, &lengths), &device).unwrap();
    let targets: Vec<u32> = cases.iter().flat_map(|case| shifted(model, &case.labels)).collect();
    let lengths: Vec<usize> = cases.iter().map(|case| case.labels.len()).collect();
    let target = model.target(Tokens::new(&targets, &lengths), &device).unwrap();
    let states = model.encode(&source, run);
    values(model.logits(model.hidden_states(&states, &target, rows, run), run))
}

fn check_logits<B: Kernels>(name: &str, model: &Seq2Seq<B>, adapters: &AdapterSet<B>, golden: &Golden) {
    for case in &golden.cases {
        let got = forward(model, &[case], Rows::All, adapters);
        assert_close(&format!("{name}/{}", case.name), &got, &case.logits.concat(), TOLERANCE);
        let last = forward(model, &[case], Rows::Last, adapters);
        assert_close(name, &last, case.logits.last().unwrap(), TOLERANCE);
    }
    let all: Vec<&Case> = golden.cases.iter().collect();
    let expect: Vec<f32> = all.iter().flat_map(|case| case.logits.concat()).collect();
    assert_close(&format!("{name} packed"), &forward(model, &all, Rows::All, adapters), &expect, TOLERANCE);
}

/// Twelve tokens of which none ends the text, without the folder's own settings.
fn greedy() -> GenerationOptions {
    let constraints = Constraints { min_new_tokens: 12, ..Constraints::default() };
    GenerationOptions { max_new_tokens: 12, constraints, ..GenerationOptions::default() }
}

fn sources(golden: &Golden) -> Vec<Vec<u32>> {
    golden.cases.iter().map(|case| case.source_ids.clone()).collect()
}

fn check_generation<B: Kernels>(name: &str, model: &Seq2Seq<B>, adapters: &AdapterSet<B>, golden: &Golden) {
    let (device, prompts) = (Default::default(), sources(golden));
    let generate = |prompts: &[Vec<u32>], options: &GenerationOptions| {
        model.generate(prompts, options, adapters, &device, |_, _| true).unwrap()
    };
    let together = generate(&prompts, &greedy());
    for (case, got) in golden.cases.iter().zip(&together) {
        assert_eq!((&got.ids, got.finish), (&case.written, Finish::Length), "{name}/{}", case.name);
    }
    let sampling = Sampling { temperature: 1.5, top_p: 0.95, seed: 5, ..Default::default() };
    let options = GenerationOptions { sampling, ..greedy() };
    let sampled = generate(&prompts, &options);
    assert_ne!(sampled[0].ids, together[0].ids, "{name}: sampling equals the greedy choice");
    assert_eq!(generate(&prompts[..1], &options)[0], sampled[0], "{name}: the others change nothing");
    // A sequence that ends leaves the others as they are.
    let mut ended = 0;
    let some = model
        .generate(&prompts, &greedy(), adapters, &device, |i, new| {
            ended += usize::from(i == 1);
            i != 1 || new.len() < 3
        })
        .unwrap();
    assert_eq!((ended, &some[1].ids[..]), (3, &golden.cases[1].written[..3]));
    assert_eq!(some[2].ids, golden.cases[2].written);
}

#[test]
fn logits_and_greedy_tokens_equal_transformers() {
    for name in MODELS {
        let golden = golden(name);
        let model = load::<Tested>(name);
        check_logits(name, &model, &AdapterSet::empty(), &golden);
        check_generation(name, &model, &AdapterSet::empty(), &golden);
        let model = load::<NdArray>(name);
        check_logits(name, &model, &AdapterSet::empty(), &golden);
        check_generation(name, &model, &AdapterSet::empty(), &golden);
    }
}

/// Steps over a cache, whose distances grow with it, choose the tokens that whole sequences give.
#[test]
fn long_targets_equal_whole_sequences() {
    let (name, device, none) = ("seq2seq-t5", Default::default(), AdapterSet::empty());
    let (model, golden) = (load::<Flex>(name), golden(name));
    let options = GenerationOptions { max_new_tokens: 150, ignore_eos: true, ..GenerationOptions::default() };
    let prompts = sources(&golden)[..2].to_vec();
    let got = model.generate(&prompts, &options, &none, &device, |_, _| true).unwrap();
    for (source, got) in prompts.iter().zip(got) {
        let (run, target) = (Run::eval(&none), shifted(&model, &got.ids));
        let batch = model.source(Tokens::new(source, &[source.len()]), &device).unwrap();
        let target = model.target(Tokens::new(&target, &[150]), &device).unwrap();
        let states = model.encode(&batch, run);
        let logits = values(model.logits(model.hidden_states(&states, &target, Rows::All, run), run));
        for (step, (row, &id)) in
            logits.chunks_exact(model.config().decoder.vocab_size).zip(&got.ids).enumerate()
        {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert!(top - row[id as usize] < TOLERANCE, "step {step}");
        }
    }
}

#[test]
fn tokenizers_give_the_ids() {
    for name in MODELS {
        let tokenizer = TextTokenizer::from_folder(&fixture(name), None).unwrap();
        for case in golden(name).cases {
            assert_eq!(tokenizer.encode(&case.source, None).unwrap().ids, case.source_ids, "{name}");
            assert_eq!(tokenizer.encode(&case.target, None).unwrap().ids, case.labels, "{name}");
        }
    }
}

/// Forced first and last tokens, n-grams and lengths as the folder's `generation_config.json` has them.
#[test]
fn the_folders_settings_generate_as_in_transformers() {
    for name in MODELS {
        let golden = golden(name);
        let settings = ModelFolder::open(&fixture(name)).unwrap().generation().unwrap();
        assert!(settings.ignored.is_empty(), "{:?}", settings.ignored);
        let options = GenerationOptions {
            beams: settings.beam_search(),
            sampling: settings.sampling,
            constraints: settings.constraints,
            max_new_tokens: if settings.max_length.is_some() { usize::MAX } else { 9 },
            max_length: settings.max_length,
            ignore_eos: false,
        };
        let none = AdapterSet::empty();
        let model = load::<Flex>(name);
        let got = model.generate(&sources(&golden), &options, &none, &Default::default(), |_, _| true);
        for (case, got) in golden.cases.iter().zip(got.unwrap()) {
            assert_eq!(got.ids, case.generated, "{name}/{}", case.name);
        }
    }
}

/// Without a `generation_config.json` those in `config.json` hold, and what is not supported is named.
#[test]
fn settings_in_the_config_hold_where_there_is_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("seq2seq-bart").join("config.json")).unwrap();
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let keys = r#"{"forced_bos_token_id": 7, "num_beams": 4, "decoder_start_token_id": 5, "min_new_tokens": 3,
        "suppress_tokens": [8], "begin_suppress_tokens": [9], "stop_strings": "x", "max_new_tokens": 6,
        "typical_p": 0.5, "num_return_sequences": 1, "renormalize_logits": true}"#;
    config.extend(serde_json::from_str::<serde_json::Map<_, _>>(keys).unwrap());
    std::fs::write(folder.path().join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
    let opened = ModelFolder::open(folder.path()).unwrap();
    let settings = opened.generation().unwrap();
    let constraints = Constraints {
        forced_first: Some(7),
        forced_last: vec![2],
        min_new_tokens: 3,
        suppressed: vec![8],
        suppressed_first: vec![9],
        ..Constraints::default()
    };
    assert_eq!(settings.constraints, constraints);
    assert_eq!((settings.max_new_tokens, &settings.stop_strings[..]), (Some(6), &["x".to_string()][..]));
    assert!(settings.ignored.is_empty(), "{:?}", settings.ignored);
    assert_eq!(settings.beam_search(), Some(Beams { renormalize: true, ..Beams::new(4) }));
    assert_eq!(settings.source.file(), "config.json");
    assert_eq!(opened.seq2seq_config().unwrap().start, Some(5));
}

/// As transformers 5 has it (`generation/utils.py`): the start of `generation_config.json`, else its `bos_token_id`; those
/// of `config.json` only without the other file.
#[rstest]
#[case("t5", "{}", None, Some(3))]
#[case("t5", r#"{"bos_token_id": 6}"#, None, Some(6))]
#[case("t5", r#"{"bos_token_id": 6, "decoder_start_token_id": 5}"#, None, Some(5))]
#[case("t5", r#"{"decoder_start_token_id": 5}"#, Some(r#"{"decoder_start_token_id": 9}"#), Some(9))]
#[case("t5", r#"{"decoder_start_token_id": 5}"#, Some(r#"{"bos_token_id": 9}"#), Some(9))]
#[case("t5", r#"{"decoder_start_token_id": 5}"#, Some("{}"), None)]
#[case("t5", "{}", Some("{}"), Some(3))]
#[case("bart", "{}", None, None)]
#[case("bart", r#"{"bos_token_id": 6}"#, None, Some(6))]
#[case("mbart", r#"{"bos_token_id": 6}"#, Some("{}"), None)]
#[case("mbart", "{}", Some(r#"{"decoder_start_token_id": [9]}"#), Some(9))]
fn the_first_token_is_that_of_transformers(
    #[case] name: &str,
    #[case] config: &str,
    #[case] generation: Option<&str>,
    #[case] expect: Option<u32>,
) {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture(&format!("seq2seq-{name}")).join("config.json")).unwrap();
    let mut own: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    for key in ["decoder_start_token_id", "bos_token_id"] {
        own.shift_remove(key);
    }
    own.extend(serde_json::from_str::<serde_json::Map<_, _>>(config).unwrap());
    std::fs::write(folder.path().join("config.json"), serde_json::to_string(&own).unwrap()).unwrap();
    if let Some(generation) = generation {
        std::fs::write(folder.path().join("generation_config.json"), generation).unwrap();
    }
    assert_eq!(Seq2SeqConfig::read(folder.path()).unwrap().start, expect);
    let several = r#"{"decoder_start_token_id": [9, 10]}"#;
    std::fs::write(folder.path().join("generation_config.json"), several).unwrap();
    let error = Seq2SeqConfig::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("expected one token"), "{error}");
}

#[test]
fn gradients_of_every_parameter_equal_pytorchs() {
    for name in MODELS {
        let (golden, device, none) = (golden(name), Default::default(), AdapterSet::empty());
        let mut model = load::<Autodiff<Tested>>(name);
        model.choose_trained(|_, _| true);
        let (case, run) = (&golden.cases[0], Run::eval(&none));
        let (n, m) = (case.source_ids.len(), case.labels.len());
        let source = model.source(Tokens::new(&case.source_ids, &[n]), &device).unwrap();
        let target = model.target(Tokens::new(&shifted(&model, &case.labels), &[m]), &device).unwrap();
        let states = model.encode(&source, run);
        let hidden = model.hidden_states(&states, &target, Rows::All, run);
        let labels: Vec<i32> = case.labels.iter().map(|&id| id as i32).collect();
        let weights = Tensor::full([m], 1.0 / m as f32, &device);
        let loss = model.nll_sum(hidden, Tensor::from_ints(labels.as_slice(), &device), weights, run);
        let off = f64::from(values(loss.clone())[0]) - case.loss;
        assert!(off.abs() < 1e-4, "{name}: the loss is off by {off}");
        let grads = loss.backward();
        check_gradients(name, &mut model, &grads, &golden.gradients);
    }
}

/// Gradients by key.
struct Found<'a> {
    grads: &'a GradientsParams,
    by_key: BTreeMap<String, Vec<f32>>,
}

impl ParamVisitor<Autodiff<Tested>> for Found<'_> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<Autodiff<Tested>, D>>) {
        if at.role != Role::Constant {
            let grad = self.grads.get::<Tested, D>(param.id);
            self.by_key.insert(at.key(), values(grad.unwrap_or_else(|| panic!("{}: no gradient", at.key()))));
        }
    }
}

/// Of all parameters, with the dropout of the config: the masks of a recomputed layer are those of its first pass.
#[test]
fn recomputed_layers_have_the_same_gradients() {
    for name in MODELS {
        let mut model = load::<Autodiff<Tested>>(name);
        model.choose_trained(|_, _| true);
        let config = model.config().clone();
        let rows = golden(name).cases.into_iter();
        let rows: Vec<_> =
            rows.map(|case| SourceTarget { source: case.source_ids, target: case.labels }).collect();
        assert!(rows.len() > 1);
        let batch = PairedTokens::pack(&rows, &config).unwrap();
        let model = TunedSeq2Seq::new(model, AdapterSet::empty());
        let gradients = |recompute: bool, mode: Mode| {
            let train = TrainConfig::default();
            let objective =
                SequencePairs::new(rows.clone(), rows.clone(), config.clone(), &train, recompute).unwrap();
            let (loss, grads) =
                Objective::<Autodiff<Tested>>::gradients(&objective, &model, &batch, mode, 0.5).unwrap();
            let mut found = Found { grads: &grads, by_key: BTreeMap::new() };
            model.model().clone().visit_params(&mut found);
            (values(loss)[0], found.by_key)
        };
        let (still, _) = gradients(true, Mode::EVAL);
        let [(whole, expect), (parts, got)] =
            [false, true].map(|recompute| gradients(recompute, Mode::train(3)));
        assert!((whole - parts).abs() < 1e-5, "{name}: {whole} {parts}");
        assert!((whole - still).abs() > 1e-3, "{name}: {whole} {still}");
        assert_eq!(expect.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
        for (key, expect) in &expect {
            let largest = expect.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            assert_close(&format!("{name}: {key}"), &got[key], expect, 1e-5 + 1e-4 * largest);
        }
    }
}

#[rstest]
#[case("peft-seq2seq-t5-lora")]
#[case("peft-seq2seq-bart-lora")]
#[case("peft-seq2seq-head-lora")]
fn an_adapter_from_peft_gives_its_logits(#[case] name: &str) {
    let golden = golden(name);
    let mut model = load::<Tested>(golden.base.as_deref().unwrap());
    let adapters = model.load_adapter(&fixture(name), &Default::default()).unwrap();
    check_logits(name, &model, &adapters, &golden);
    check_generation(name, &model, &adapters, &golden);
    let merged = model.merged(&adapters).unwrap();
    check_logits(name, &merged, &AdapterSet::empty(), &golden);
}

/// Each source has its adapter to its end.
#[test]
fn a_routed_generation_is_that_of_each_source() {
    let (name, device) = ("peft-seq2seq-t5-lora", Default::default());
    let adapted = golden(name);
    let base = golden(adapted.base.as_deref().unwrap());
    let mut model = load::<Flex>(adapted.base.as_deref().unwrap());
    let set = model.load_adapter(&fixture(name), &device).unwrap();
    let prompts = sources(&base);
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let joined = AdapterSet::join([("one".to_string(), set)]).unwrap();
    let routed = joined.routed(&[Some("one"), None, Some("one")], &lengths).unwrap();
    let got = model.generate(&prompts, &greedy(), &routed, &device, |_, _| true).unwrap();
    let expect = [&adapted.cases[0].written, &base.cases[1].written, &adapted.cases[2].written];
    got.iter().zip(expect).for_each(|(got, expect)| assert_eq!(&got.ids, expect));
}

#[test]
fn a_saved_model_is_the_same_when_loaded() {
    for name in MODELS {
        let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
        let model = load::<Flex>(name);
        model.save(folder.path(), &fixture(name), FloatType::F32).unwrap();
        let config = Seq2SeqConfig::read(folder.path()).unwrap();
        let again = Seq2Seq::<Flex>::load(folder.path(), config, WeightType::F32, &device).unwrap();
        check_logits(name, &again, &AdapterSet::empty(), &golden(name));
        let names = |path: &std::path::Path| {
            let file = Checkpoint::open(path).unwrap();
            let mut names: Vec<String> = file.names().map(str::to_string).collect();
            names.sort();
            names
        };
        assert_eq!(names(folder.path()), names(&fixture(name)), "{name}");
    }
}

/// A head beside a factored table is not tied to it.
#[test]
fn a_head_beside_factors_of_the_words_is_used() {
    for name in ["seq2seq-t5-head", "seq2seq-bart-head"] {
        let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
        let mut tensors = load::<Flex>(name).tensors_where(|_| true);
        let place = tensors.iter().position(|tensor| tensor.name.ends_with("shared.weight")).unwrap();
        let table = tensors.remove(place);
        let (path, [rows, width]) =
            (table.name.trim_end_matches(".weight"), [table.shape[0], table.shape[1]]);
        let transposed = (0..width * rows).map(|at| table.data[at % rows * width + at / rows]);
        let identity = (0..width * width).map(|at| f32::from(u8::from(at % (width + 1) == 0)));
        let factor = |leaf: &str, shape: [usize; 2], data: Vec<f32>| {
            HostTensor::new(format!("{path}.{leaf}.weight"), shape.to_vec(), data)
        };
        tensors.push(factor("lowrank_a", [width, rows], transposed.collect()));
        tensors.push(factor("lowrank_b", [width, width], identity.collect()));
        let file = folder.path().join("model.safetensors");
        write_safetensors(file, tensors, FloatType::F32, &Default::default()).unwrap();
        let text = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["lowrank"] = serde_json::json!({"version": 1, "method": "svd", "source": "0", "modules": {}});
        config["lowrank"]["modules"][path] = serde_json::json!({"kind": "low_rank", "ranks": [width]});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let config = Seq2SeqConfig::read(folder.path()).unwrap();
        let model = Seq2Seq::<Flex>::load(folder.path(), config, WeightType::F32, &device).unwrap();
        check_logits(name, &model, &AdapterSet::empty(), &golden(name));
    }
}

/// Copies of the table of words, a table under another name, names without a prefix, a buffer of old checkpoints.
#[test]
fn checkpoints_of_other_origins_are_read() {
    let read = |name: &str, change: &dyn Fn(&mut Vec<HostTensor<'static>>)| {
        let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
        let mut tensors = load::<Flex>(name).tensors_where(|_| true);
        change(&mut tensors);
        let path = folder.path().join("model.safetensors");
        write_safetensors(path, tensors, FloatType::F32, &Default::default()).unwrap();
        std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
        let config = Seq2SeqConfig::read(folder.path()).unwrap();
        Seq2Seq::<Flex>::load(folder.path(), config, WeightType::F32, &device).map_err(|e| e.to_string())
    };
    let copy = |tensors: &mut Vec<HostTensor<'static>>, from: &str, to: &str| {
        let mut table = tensors.iter().find(|t| t.name == from).unwrap().clone();
        table.name = to.into();
        tensors.push(table);
    };
    let same = |name: &str, model: std::result::Result<Seq2Seq<Flex>, String>| {
        check_logits(name, &model.unwrap(), &AdapterSet::empty(), &golden(name));
    };
    let copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"];
    let t5 = "seq2seq-t5";
    same(t5, read(t5, &|tensors| copies.iter().for_each(|to| copy(tensors, "shared.weight", to))));
    for other in copies {
        same(
            t5,
            read(t5, &|tensors| {
                copy(tensors, "shared.weight", other);
                tensors.retain(|tensor| tensor.name != "shared.weight");
            }),
        );
    }
    same(
        t5,
        read(t5, &|tensors| {
            let name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight";
            tensors.push(HostTensor::new(name, vec![1], vec![0.0]));
        }),
    );
    let error = read(t5, &|tensors| {
        copy(tensors, "shared.weight", copies[1]);
        tensors.last_mut().unwrap().data.to_mut()[3] += 1.0;
    });
    assert!(error.unwrap_err().contains("'decoder.embed_tokens.weight' differs from 'shared.weight'"));
    let bare = |name: &str| name.trim_start_matches("model.").to_string();
    same(
        "seq2seq-bart",
        read("seq2seq-bart", &|tensors| {
            tensors.iter_mut().for_each(|tensor| tensor.name = bare(&tensor.name))
        }),
    );
    // transformers would draw the head anew.
    let error = read("seq2seq-bart-head", &|tensors| tensors.retain(|t| t.name != "lm_head.weight"));
    assert!(error.unwrap_err().contains("missing 'lm_head.weight'"));
    let error = read(t5, &|tensors| {
        tensors.retain(|t| !t.name.contains("decoder.block.1.layer.1.EncDecAttention.k"))
    });
    assert!(error.unwrap_err().contains("missing 'decoder.block.1.layer.1.EncDecAttention.k.weight'"));
}

#[test]
fn what_is_beyond_the_model_is_refused() {
    let (model, device, none) = (load::<Flex>("seq2seq-bart"), Default::default(), AdapterSet::empty());
    let generate = |sources: &[Vec<u32>], options: &GenerationOptions| {
        model.generate(sources, options, &none, &device, |_, _| true).map_err(|e| e.to_string())
    };
    let error = generate(&[vec![5; 41]], &greedy()).unwrap_err();
    assert!(error.contains("a sequence of 41 tokens; the model takes 1..=40"), "{error}");
    assert!(generate(&[vec![5, 99_999]], &greedy()).unwrap_err().contains("outside the vocabulary"));
    assert!(generate(&[vec![]], &greedy()).unwrap_err().contains("no tokens"));
    assert!(generate(&[], &greedy()).unwrap().is_empty());
    // The table of the decoder's positions: one for the start.
    let options = GenerationOptions { max_new_tokens: 500, ignore_eos: true, ..GenerationOptions::default() };
    let got = generate(&[vec![5; 4]], &options).unwrap();
    assert_eq!((got[0].finish, got[0].ids.len()), (Finish::Full, 40));
    let constraints = Constraints { forced_first: Some(99_999), ..Constraints::default() };
    let error = generate(&[vec![5]], &GenerationOptions { constraints, ..options }).unwrap_err();
    assert!(error.contains("forced_bos_token_id has token 99999; expected ids below"), "{error}");
    let mut config = Seq2SeqConfig::read(&fixture("seq2seq-bart")).unwrap();
    config.start = None;
    let silent = Seq2Seq::<Flex>::init(config, 0, &device).unwrap();
    let error = silent.generate(&[vec![5]], &greedy(), &none, &device, |_, _| true).unwrap_err();
    assert!(error.to_string().contains("decoder_start_token_id"), "{error}");
}
