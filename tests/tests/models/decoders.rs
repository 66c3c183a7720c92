//! Decoders against transformers, on small random models (`fixtures/`, with the scripts that made them).

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::{TOLERANCE, check_logits, decoders, forward, golden};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use lowrank_adapters::{AdapterConfig, AdapterSet, Method, Pattern, Targets};
use lowrank_checkpoint::{FloatType, HostTensor, write_safetensors};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_kernels::{BlockFormat, Kernels};
use lowrank_models::config::QkvNames;
use lowrank_models::decoder::{Constraints, Cutoffs, Finish, GenerationOptions, Sampling};
use lowrank_models::params::WeightType;
use lowrank_models::{Adaptable, Decoder, DecoderConfig, LanguageModel, Parameters, Rows, Stack, Tokens};
use lowrank_tests::{Tested, assert_close, fixture, random};
use rstest::rstest;

type Flex = burn_flex::Flex;
type NdArray = burn_ndarray::NdArray;

fn load<B: Kernels>(name: &str) -> Decoder<B> {
    let folder = fixture(name);
    let config = DecoderConfig::read(&folder).unwrap();
    Decoder::load(&folder, config, WeightType::F32, &Default::default()).unwrap()
}

#[test]
fn equals_transformers() {
    for name in &decoders() {
        let golden = golden(name);
        check_logits(name, &load::<Tested>(name), &AdapterSet::empty(), &golden);
        check_logits(name, &load::<NdArray>(name), &AdapterSet::empty(), &golden);
    }
}

#[test]
fn tokenizers_give_the_ids() {
    for name in &decoders() {
        let tokenizer = TextTokenizer::from_folder(&fixture(name), None).unwrap();
        for case in golden(name).cases {
            assert_eq!(
                tokenizer.encode(&case.text, None).unwrap().ids,
                case.input_ids,
                "{name}/{}",
                case.name
            );
        }
    }
}

fn greedy(n: usize) -> GenerationOptions {
    GenerationOptions { max_new_tokens: n, ignore_eos: true, ..Default::default() }
}

fn check_generation<B: Kernels>(name: &str) {
    let (golden, device) = (golden(name), Default::default());
    let model = load::<B>(name);
    let none = AdapterSet::empty();
    let prompts: Vec<Vec<u32>> = golden.cases.iter().map(|c| c.input_ids.clone()).collect();
    let generate = |prompts: &[Vec<u32>], options: &GenerationOptions| {
        model.generate(prompts, options, &none, &device, |_, _| true).unwrap()
    };
    let together = generate(&prompts, &greedy(16));
    for ((case, prompt), got) in golden.cases.iter().zip(&prompts).zip(&together) {
        assert_eq!(got.ids, case.greedy, "{name}/{}", case.name);
        assert_eq!(got.finish, Finish::Length);
        // Without a cache: the whole text again for every token.
        let mut ids = prompt.clone();
        for &expect in &case.greedy {
            let logits = forward(&model, &ids, &[ids.len()], Rows::Last, &none);
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            assert_eq!(best as u32, expect, "{name}/{} without a cache", case.name);
            ids.push(expect);
        }
    }
    let sampling = Sampling { temperature: 1.0, top_p: 0.9, seed: 3, ..Default::default() };
    let options = GenerationOptions { sampling, ..greedy(12) };
    let sampled = generate(&prompts, &options);
    assert_ne!(sampled[0].ids, together[0].ids[..12], "{name}: sampling equals the greedy choice");
    assert_eq!(generate(&prompts[..1], &options)[0], sampled[0], "{name}: the others change nothing");
}

#[test]
fn greedy_tokens_equal_transformers_with_a_cache_and_without() {
    decoders().iter().for_each(|name| check_generation::<Tested>(name));
}

#[test]
fn every_backend_generates_the_same() {
    check_generation::<NdArray>("llama");
    check_generation::<NdArray>("mistral");
}

/// Logits differ by rounding alone, so a draw gives the same token wherever it is made.
#[rstest]
#[case(Sampling { top_k: Some(20), ..Sampling::default() }, Constraints::default())]
#[case(Sampling { top_p: 0.8, ..Sampling::default() }, Constraints { min_new_tokens: 3, ..Constraints::default() })]
#[case(
    Sampling { cutoffs: Cutoffs { min_p: 0.1, ..Cutoffs::default() }, repetition_penalty: 1.3, ..Sampling::default() },
    Constraints { no_repeat_ngram_size: 2, suppressed: vec![3, 4], ..Constraints::default() }
)]
// Two that no backend but the host has.
#[case(
    Sampling { cutoffs: Cutoffs { typical_p: 0.9, ..Cutoffs::default() }, ..Sampling::default() },
    Constraints::default()
)]
#[case(Sampling::default(), Constraints { sequence_biases: vec![(vec![7], 2.0)], ..Constraints::default() })]
fn every_backend_samples_the_same(#[case] sampling: Sampling, #[case] constraints: Constraints) {
    fn generated<B: Kernels>(name: &str, options: &GenerationOptions) -> Vec<Vec<u32>> {
        let prompts: Vec<Vec<u32>> = golden(name).cases.iter().map(|c| c.input_ids.clone()).collect();
        let none = AdapterSet::empty();
        let model = load::<B>(name);
        let got = model.generate(&prompts, options, &none, &Default::default(), |_, _| true).unwrap();
        got.into_iter().map(|generated| generated.ids).collect()
    }
    for (temperature, seed) in [(0.0, 0), (0.8, 1), (1.5, 2)] {
        let sampling = Sampling { temperature, seed, ..sampling.clone() };
        let options = GenerationOptions { sampling, constraints: constraints.clone(), ..greedy(10) };
        for name in ["llama", "gpt2"] {
            let got = generated::<Tested>(name, &options);
            assert_eq!(got, generated::<NdArray>(name, &options), "{name} at {temperature}");
        }
    }
}

#[test]
fn generation_ends_where_it_should() {
    let golden = golden("gpt2");
    let (model, device) = (load::<Flex>("gpt2"), Default::default());
    let none = AdapterSet::empty();
    let prompts = [golden.cases[0].input_ids.clone(), golden.cases[1].input_ids.clone()];
    // Stopped by the caller, after the third token of the first prompt alone.
    let got = model.generate(&prompts, &greedy(8), &none, &device, |i, new| i == 1 || new.len() < 3).unwrap();
    assert_eq!((got[0].finish, got[0].ids.len()), (Finish::Stopped, 3));
    assert_eq!((got[1].finish, got[1].ids.len()), (Finish::Length, 8));
    assert_eq!(got[0].ids, golden.cases[0].greedy[..3]);
    // By an end of text, which is part of the result.
    let mut config = DecoderConfig::read(&fixture("gpt2")).unwrap();
    config.eos = vec![golden.cases[0].greedy[4]];
    let ending = Decoder::<Flex>::load(&fixture("gpt2"), config, WeightType::F32, &device).unwrap();
    let options = GenerationOptions { ignore_eos: false, ..greedy(16) };
    let got = ending.generate(&prompts[..1], &options, &none, &device, |_, _| true).unwrap();
    let end = golden.cases[0].greedy.iter().position(|id| *id == golden.cases[0].greedy[4]).unwrap();
    assert_eq!((got[0].finish, &got[0].ids[..]), (Finish::EndOfText, &golden.cases[0].greedy[..=end]));
    // By the table of positions: 128 of them.
    let got = model.generate(&prompts[1..], &greedy(500), &none, &device, |_, _| true).unwrap();
    assert_eq!((got[0].finish, prompts[1].len() + got[0].ids.len()), (Finish::Full, 129));
    let none_asked = model.generate(&prompts, &greedy(0), &none, &device, |_, _| true).unwrap();
    assert!(none_asked.iter().all(|g| g.ids.is_empty()));
}

#[test]
fn a_cache_grows_without_a_trace() {
    let golden = golden("mistral");
    let (model, device) = (load::<Flex>("mistral"), Default::default());
    let none = AdapterSet::empty();
    let prompts: Vec<Vec<u32>> = golden.cases.iter().map(|c| c.input_ids.clone()).collect();
    // Far past the 256 positions of a block, in several sequences.
    let got = model.generate(&prompts, &greedy(700), &none, &device, |_, _| true).unwrap();
    for (prompt, got) in prompts.iter().zip(&got) {
        let ids = [prompt.as_slice(), &got.ids].concat();
        let n = ids.len();
        let logits = forward(&model, &ids[..n - 1], &[n - 1], Rows::All, &none);
        let vocab = model.config().vocab_size;
        for (i, &id) in ids.iter().enumerate().skip(prompt.len()) {
            let row = &logits[(i - 1) * vocab..i * vocab];
            let best = row.iter().copied().fold(f32::MIN, f32::max);
            assert!(best - row[id as usize] <= TOLERANCE, "token {i}: {} for {best}", row[id as usize]);
        }
    }
}

/// Phi-3 reads a text anew when it outgrows the original length, whose rotation is another.
#[test]
fn phi3_continues_over_its_original_length_as_without_a_cache() {
    let (name, device) = ("phi3", Default::default());
    let text = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
    let mut raw: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let pairs = DecoderConfig::read(&fixture(name)).unwrap().ropes[0].rotary_dim / 2;
    let (short, long) = (vec![1.0; pairs], (0..pairs).map(|i| 2.0 + i as f64).collect::<Vec<_>>());
    raw.remove("rope_parameters");
    raw.insert("original_max_position_embeddings".into(), 20.into());
    let scaling = serde_json::json!({"type": "longrope", "short_factor": short, "long_factor": long});
    raw.insert("rope_scaling".into(), scaling);
    let config = DecoderConfig::parse(raw).unwrap();
    assert_eq!(config.restart_length, Some(20));
    let model = Decoder::<Flex>::load(&fixture(name), config, WeightType::F32, &device).unwrap();
    let prompts: Vec<Vec<u32>> = [12, 17, 25].map(|n| (0..n).map(|i| 5 + i * 7 % 60).collect()).to_vec();
    let none = AdapterSet::empty();
    let together = model.generate(&prompts, &greedy(16), &none, &device, |_, _| true).unwrap();
    for (prompt, got) in prompts.iter().zip(&together) {
        let mut ids = prompt.clone();
        for &id in &got.ids {
            let logits = forward(&model, &ids, &[ids.len()], Rows::Last, &none);
            let best = logits.iter().copied().fold(f32::MIN, f32::max);
            assert!(best - logits[id as usize] <= TOLERANCE, "{} tokens", ids.len());
            ids.push(id);
        }
    }
}

#[rstest]
#[case("peft-gpt2-lora")]
#[case("peft-gpt2-dora")]
#[case("peft-llama-lora")]
fn an_adapter_from_peft_gives_its_logits(#[case] name: &str) {
    fn check<B: Kernels>(name: &str) {
        let golden = golden(name);
        let mut model = load::<B>(golden.base.as_deref().unwrap());
        let adapters = model.load_adapter(&fixture(name), &Default::default()).unwrap();
        check_logits(name, &model, &adapters, &golden);
        check_logits(name, &model.merged(&adapters).unwrap(), &AdapterSet::empty(), &golden);
    }
    check::<Flex>(name);
    check::<NdArray>(name);
}

/// Over the maps that PEFT adapts unless it is told otherwise: queries and values, or the map that makes both.
#[test]
fn an_adapter_merges_into_every_architecture() {
    struct Draw(usize);
    impl<B: burn::tensor::backend::Backend> ModuleMapper<B> for Draw {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            self.0 += 1;
            let shape: [usize; D] = param.dims();
            param.map(|_| random(&format!("factor {}", self.0), shape, 0.3))
        }
    }
    for name in &decoders() {
        let model = load::<Flex>(name);
        let targets = match model.config().architecture.names.qkv {
            QkvNames::Separate([query, _, value]) => vec![query, value],
            QkvNames::Fused { name, .. } => vec![name],
        };
        let targets: Vec<&str> = targets.iter().map(|path| path.rsplit('.').next().unwrap()).collect();
        let config = AdapterConfig {
            rank: 2,
            alpha: 5.0,
            ..AdapterConfig::new(Method::LORA, Targets::new(Pattern::parse(&targets.join(","))))
        };
        let set = AdapterSet::init(&config, model.sites(), &model.base_weights(), &Default::default());
        let set = set.unwrap().map(&mut Draw(0));
        let covered = (0..model.sites().len()).filter(|&site| set.covers(site)).count();
        assert_eq!(covered, targets.len() * model.config().n_layers, "{name}");
        let ids = &golden(name).cases[0].input_ids;
        let logits =
            |model: &Decoder<Flex>, set: &AdapterSet<Flex>| forward(model, ids, &[ids.len()], Rows::All, set);
        let (plain, adapted) = (logits(&model, &AdapterSet::empty()), logits(&model, &set));
        assert!(plain.iter().zip(&adapted).any(|(a, b)| (a - b).abs() > 1e-2), "{name}: nothing changes");
        let merged = logits(&model.merged(&set).unwrap(), &AdapterSet::empty());
        // Larger weights than the fixtures' own, whose rounding grows through the layers.
        assert_close(name, &merged, &adapted, 4.0 * TOLERANCE);
        assert_eq!(logits(&model, &AdapterSet::empty()), plain);
    }
}

/// Each prompt has its adapter to its end, whichever of them ends first.
#[test]
fn a_routed_generation_is_that_of_each_prompt() {
    let (golden, device) = (golden("peft-llama-lora"), Default::default());
    let mut model = load::<Flex>(golden.base.as_deref().unwrap());
    let set = model.load_adapter(&fixture("peft-llama-lora"), &device).unwrap();
    let prompts: Vec<Vec<u32>> = golden.cases.iter().take(3).map(|c| c.input_ids.clone()).collect();
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let joined = AdapterSet::join([("one".to_string(), set.clone())]).unwrap();
    let alone = |set: &AdapterSet<Flex>, i: usize| {
        model.generate(&prompts[i..=i], &greedy(8), set, &device, |_, _| true).unwrap().remove(0).ids
    };
    let (with, without) = (alone(&set, 0), alone(&AdapterSet::empty(), 0));
    assert_ne!(with, without, "the adapter changes the output");
    let routed = joined.routed(&[Some("one"), None, Some("one")], &lengths).unwrap();
    let got =
        model.generate(&prompts, &greedy(8), &routed, &device, |i, new| i > 0 || new.len() < 3).unwrap();
    assert_eq!(got[0].ids, with[..3]);
    assert_eq!(got[1].ids, alone(&AdapterSet::empty(), 1));
    assert_eq!(got[2].ids, alone(&set, 2));
}

#[rstest]
#[case(WeightType::F16, 2e-2)]
#[case(WeightType::Bf16, 2e-1)]
fn weights_in_half_precision_give_nearly_the_same(#[case] weights: WeightType, #[case] tolerance: f32) {
    // Rounding a weight changes it by 2⁻¹¹ or 2⁻⁸ of itself; logits are sums of tens of them, of size 3.
    for name in &decoders() {
        let (golden, device) = (golden(name), Default::default());
        let config = DecoderConfig::read(&fixture(name)).unwrap();
        // Rounding the router changes which experts a token takes.
        let has_experts = config.experts.is_some();
        let model = Decoder::<Flex>::load(&fixture(name), config, weights, &device).unwrap();
        for case in &golden.cases {
            let n = [case.input_ids.len()];
            let logits = forward(&model, &case.input_ids, &n, Rows::Last, &AdapterSet::empty());
            assert!(logits.iter().all(|x| x.is_finite()), "{name}");
            if !has_experts {
                assert_close(name, &logits, &case.last_logits, tolerance);
            }
            assert_ne!(logits, case.last_logits);
        }
    }
}

/// Weights, config and tokenizer, tied and untied.
#[test]
fn a_saved_decoder_is_the_same_when_loaded() {
    for name in ["gpt2", "llama", "llama-tied", "gpt-neox"] {
        let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
        let model = load::<Flex>(name);
        model.save(folder.path(), &fixture(name), FloatType::F32).unwrap();
        let config = DecoderConfig::read(folder.path()).unwrap();
        assert_eq!((config.tied, &config.eos), (model.config().tied, &model.config().eos));
        let again = Decoder::<Flex>::load(folder.path(), config, WeightType::F32, &device).unwrap();
        let tensors = |model: &Decoder<Flex>| {
            let tensors = model.tensors_where(|_| true);
            tensors.into_iter().map(|t| (t.name, t.shape, t.data.into_owned())).collect::<Vec<_>>()
        };
        assert_eq!(tensors(&again), tensors(&model), "{name}");
        assert!(TextTokenizer::from_folder(folder.path(), None).is_ok(), "{name}");
    }
}

/// gpt-oss is saved as its files are: all experts of a layer in one tensor per map, not in MXFP4.
#[test]
fn fused_experts_are_saved_fused() {
    let names = |folder: &Path| {
        // The names as they are stored: a length, and the header in JSON.
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        header
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name != "__metadata__")
            .collect::<BTreeSet<_>>()
    };
    let plain = names(&fixture("gpt-oss"));
    assert!(plain.contains("model.layers.0.mlp.experts.gate_up_proj_bias"), "{plain:?}");
    for name in ["gpt-oss", "quantised-mxfp4"] {
        let folder = tempfile::tempdir().unwrap();
        load::<Flex>(name).save(folder.path(), &fixture(name), FloatType::F32).unwrap();
        let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        assert!(!config.contains("quantization_config"), "{config}");
        let packed = names(&fixture(name)).into_iter().filter(|name| !name.ends_with("_scales"));
        let expected: BTreeSet<String> = packed.map(|name| name.replace("_blocks", "")).collect();
        assert_eq!(names(folder.path()), expected, "{name}");
    }
    // Experts in blocks have no place in such a tensor.
    let folder = tempfile::tempdir().unwrap();
    let (source, weights) = (fixture("quantised-mxfp4"), WeightType::Blocks(BlockFormat::Q8_0));
    let config = DecoderConfig::read(&source).unwrap();
    let model = Decoder::<Flex>::load(&source, config, weights, &Default::default()).unwrap();
    model.save(folder.path(), &source, FloatType::F32).unwrap();
    let written = names(folder.path());
    assert!(written.contains("model.layers.0.mlp.experts.3.gate_proj.weight"), "{written:?}");
    let config = DecoderConfig::read(folder.path()).unwrap();
    let again = Decoder::<Flex>::load(folder.path(), config, WeightType::F32, &Default::default()).unwrap();
    let logits = |model: &Decoder<Flex>| forward(model, &[1, 5, 9, 7], &[4], Rows::All, &AdapterSet::empty());
    assert_close("in blocks", &logits(&again), &logits(&model), 1e-5);
}

#[test]
fn what_a_model_cannot_take_is_refused() {
    let (model, device) = (load::<Flex>("gpt2"), Default::default());
    for (ids, lengths, part) in [
        (vec![317], vec![1], "outside the vocabulary of 317"),
        (vec![1; 129], vec![129], "a sequence of 129 tokens; the model takes 1..=128"),
        (vec![1], vec![1, 0], "no tokens"),
        (vec![1, 2], vec![1], "2 ids for sequences of 1"),
    ] {
        let error = model.batch(Tokens::new(&ids, &lengths), &device).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// The first files of OPT lack the beginning of their names, or all of it.
#[test]
fn names_may_lack_their_beginning() {
    let (golden, device) = (golden("opt"), Default::default());
    for lacking in ["model.", "model.decoder."] {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = load::<Flex>("opt").tensors_where(|_| true);
        tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace(lacking, ""));
        let path = folder.path().join("model.safetensors");
        write_safetensors(path, tensors, FloatType::F32, &Default::default()).unwrap();
        std::fs::copy(fixture("opt").join("config.json"), folder.path().join("config.json")).unwrap();
        let config = DecoderConfig::read(folder.path()).unwrap();
        let model = Decoder::<Flex>::load(folder.path(), config, WeightType::F32, &device).unwrap();
        assert!(model.config().tied);
        check_logits(lacking, &model, &AdapterSet::empty(), &golden);
    }
}

/// A head stored in the file is used, whatever the config says about tying; a head without an embedding serves as both.
#[test]
fn tying_is_what_the_file_says() {
    let (name, device) = ("llama-tied", Default::default());
    let ids = golden(name).cases[0].input_ids.clone();
    let reads = |change: &dyn Fn(&mut Vec<HostTensor<'static>>)| {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = load::<Flex>(name).tensors_where(|_| true);
        change(&mut tensors);
        let path = folder.path().join("model.safetensors");
        write_safetensors(path, tensors, FloatType::F32, &Default::default()).unwrap();
        std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
        let config = DecoderConfig::read(folder.path()).unwrap();
        let model = Decoder::<Flex>::load(folder.path(), config, WeightType::F32, &device).unwrap();
        let logits = forward(&model, &ids, &[ids.len()], Rows::Last, &AdapterSet::empty());
        (model.config().tied, logits, model.ignored().to_vec())
    };
    let table = "model.embed_tokens.weight";
    let copy = |tensors: &[HostTensor<'static>], scale: f32| {
        let mut head = tensors.iter().find(|t| t.name == table).unwrap().clone();
        head.name = "lm_head.weight".into();
        head.data.to_mut().iter_mut().for_each(|x| *x *= scale);
        head
    };
    let plain = reads(&|_| {});
    assert!(plain.0);
    let same = reads(&|tensors| tensors.push(copy(tensors, 1.0)));
    assert_eq!(same, plain);
    let own = reads(&|tensors| tensors.push(copy(tensors, 2.0)));
    let doubled: Vec<f32> = plain.1.iter().map(|x| 2.0 * x).collect();
    assert!(!own.0);
    assert_close("own head", &own.1, &doubled, TOLERANCE);
    let alone = reads(&|tensors| {
        let head = copy(tensors, 1.0);
        tensors.retain(|t| t.name != table);
        tensors.push(head);
    });
    assert_eq!(alone, plain);
    let beside = reads(&|tensors| {
        tensors.push(HostTensor::new("v_head.summary.weight", vec![1], vec![0.0]));
        tensors.push(HostTensor::new("model.layers.0.mlp._extra_state", vec![1], vec![0.0]));
    });
    assert_eq!((beside.1, beside.2), (plain.1, vec!["v_head.summary.weight".to_string()]));
}

/// The ids are those of `generate` in transformers 5.23 (f64).
#[rstest]
#[case(Constraints { bad_words: vec![vec![319], vec![160, 238], vec![39]], ..Constraints::default() }, 1.0,
       &[56, 197, 207, 235, 353, 172, 315, 172, 98, 56])]
#[case(Constraints { sequence_biases: vec![(vec![319], -5.0), (vec![30, 7], 20.0), (vec![7, 8], 9.5)], ..Constraints::default() },
       1.0, &[7, 8, 50, 207, 247, 50, 105, 233, 261, 210])]
#[case(Constraints { sequence_biases: vec![(vec![319], -0.5)], ..Constraints::default() }, 1.4,
       &[56, 197, 207, 235, 353, 172, 319, 20, 329, 316])]
#[case(Constraints { length_penalty: Some((3.0, 1.9)), ..Constraints::default() }, 1.0, &[319, 160, 238, 39, 21, 219, 100, 2])]
#[case(Constraints { length_penalty: Some((2.0, 3.5)), ..Constraints::default() }, 1.0, &[319, 160, 238, 39, 2])]
fn constraints_act_as_in_transformers(
    #[case] constraints: Constraints,
    #[case] repetition_penalty: f64,
    #[case] expected: &[u32],
) {
    let device = Default::default();
    let folder = fixture("llama");
    let config = DecoderConfig::read(&folder).unwrap();
    let model = Decoder::<Tested>::load(&folder, config, WeightType::F32, &device).unwrap();
    let sampling = Sampling { repetition_penalty, ..Sampling::default() };
    let options = GenerationOptions { constraints, sampling, ignore_eos: false, ..greedy(10) };
    let prompts = [vec![5, 17, 9, 30]];
    let got = model.generate(&prompts, &options, &AdapterSet::empty(), &device, |_, _| true).unwrap();
    assert_eq!(got[0].ids, expected);
    // What cannot be a token, and no room for one.
    let outside = Constraints { bad_words: vec![vec![99_999]], ..Constraints::default() };
    for (options, part) in [
        (
            GenerationOptions { constraints: outside, ..greedy(1) },
            "bad_words_ids has token 99999; expected ids below",
        ),
        (
            GenerationOptions { max_length: Some(4), ..greedy(1) },
            "max_length = 4 leaves no room after a prompt of 4 tokens",
        ),
    ] {
        let error =
            model.generate(&prompts, &options, &AdapterSet::empty(), &device, |_, _| true).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}
