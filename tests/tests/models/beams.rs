//! Beam search beside transformers' (`fixtures/make_beams.py`).

use std::collections::BTreeMap;

use burn_flex::Flex;
use lowrank_adapters::AdapterSet;
use lowrank_kernels::Kernels;
use lowrank_models::decoder::{Beams, Constraints, EarlyStopping, Finish, GenerationOptions, Sampling};
use lowrank_models::params::WeightType;
use lowrank_models::{
    Adaptable, Decoder, DecoderConfig, LanguageModel, ModelFolder, ModelKind, Seq2Seq, Seq2SeqConfig,
};
use lowrank_tests::fixture;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Case {
    texts: Vec<Text>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

#[derive(Deserialize)]
struct Golden {
    eos: Vec<u32>,
    prompts: Vec<Vec<u32>>,
    cases: Vec<Case>,
}

const NEW: usize = 12;

/// The settings of a `generation_config.json`, as the reader of such a file gives them.
fn options(settings: &Map<String, Value>) -> GenerationOptions {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("gpt2").join(file), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("generation_config.json");
    std::fs::write(path, serde_json::to_string(settings).unwrap()).unwrap();
    let read = ModelFolder::open(dir.path()).unwrap().generation().unwrap();
    assert!(read.ignored.is_empty(), "{:?}", read.ignored);
    GenerationOptions {
        beams: read.beam_search(),
        sampling: read.sampling,
        constraints: read.constraints,
        max_new_tokens: NEW,
        ..GenerationOptions::default()
    }
}

fn check<B: Kernels, M: LanguageModel<B>>(name: &str, model: &M, golden: &Golden) {
    let none = AdapterSet::empty();
    let search = |prompts: &[Vec<u32>], options: &GenerationOptions| {
        model.generate(prompts, options, &none, &Default::default(), |_, _| true).unwrap()
    };
    for case in &golden.cases {
        let options = options(&case.settings);
        assert_eq!(options.beams.unwrap().count, case.settings["num_beams"].as_u64().unwrap() as usize);
        let together = search(&golden.prompts, &options);
        for ((text, got), prompt) in case.texts.iter().zip(&together).zip(&golden.prompts) {
            assert_eq!(got.ids, text.ids, "{name}: {:?}", case.settings);
            let is_end = got.ids.last().is_some_and(|id| golden.eos.contains(id));
            assert_eq!(got.finish, if is_end { Finish::EndOfText } else { Finish::Length }, "{name}");
            assert_eq!(&search(std::slice::from_ref(prompt), &options)[0], got, "{name}: alone");
        }
    }
}

fn all() -> BTreeMap<String, Golden> {
    serde_json::from_str(&std::fs::read_to_string(fixture("beams.json")).unwrap()).unwrap()
}

#[test]
fn the_best_continuations_are_those_of_transformers() {
    let (mut decoders, mut pairs) = (0, 0);
    for (name, golden) in &all() {
        let (folder, device) = (fixture(name), Default::default());
        if ModelFolder::open(&folder).unwrap().kind() == ModelKind::Seq2Seq {
            let mut config = Seq2SeqConfig::read(&folder).unwrap();
            config.decoder.eos = golden.eos.clone();
            check(name, &Seq2Seq::<Flex>::load(&folder, config, WeightType::F32, &device).unwrap(), golden);
            pairs += 1;
        } else {
            let mut config = DecoderConfig::read(&folder).unwrap();
            config.eos = golden.eos.clone();
            check(name, &Decoder::<Flex>::load(&folder, config, WeightType::F32, &device).unwrap(), golden);
            decoders += 1;
        }
    }
    assert_eq!((decoders, pairs), (5, 3));
}

fn model(name: &str) -> Seq2Seq<Flex> {
    let config = Seq2SeqConfig::read(&fixture(name)).unwrap();
    Seq2Seq::load(&fixture(name), config, WeightType::F32, &Default::default()).unwrap()
}

fn searched(beams: Beams) -> GenerationOptions {
    GenerationOptions { max_new_tokens: NEW, beams: Some(beams), ..GenerationOptions::default() }
}

/// A candidate that the caller ends is complete; nothing else is longer than it.
#[test]
fn the_caller_ends_candidates() {
    let (model, none) = (model("seq2seq-t5"), AdapterSet::empty());
    let options = GenerationOptions { ignore_eos: true, ..searched(Beams::new(3)) };
    let prompts = [vec![5, 6, 7], vec![8, 9]];
    let mut seen = [0, 0];
    let got = model.generate(&prompts, &options, &none, &Default::default(), |prompt, new| {
        seen[prompt] += 1;
        prompt == 0 || new.len() < 4
    });
    let got = got.unwrap();
    assert_eq!((got[0].finish, got[0].ids.len()), (Finish::Length, NEW));
    assert_eq!((got[1].finish, got[1].ids.len()), (Finish::Stopped, 4));
    // Six candidates of each step.
    assert_eq!(seen, [6 * NEW, 6 * 4]);
}

/// Each source keeps its adapter in all of its beams.
#[test]
fn beams_have_the_adapter_of_their_prompt() {
    let (name, device) = ("peft-seq2seq-t5-lora", Default::default());
    let mut model = model("seq2seq-t5");
    let set = model.load_adapter(&fixture(name), &device).unwrap();
    let prompts = vec![vec![5, 6, 7], vec![8, 9], vec![5, 6, 7]];
    let search = |adapters: &AdapterSet<Flex>| {
        model.generate(&prompts, &searched(Beams::new(3)), adapters, &device, |_, _| true).unwrap()
    };
    let (with, without) = (search(&set), search(&AdapterSet::empty()));
    assert_ne!(with[0], without[0]);
    let joined = AdapterSet::join([("one".to_string(), set)]).unwrap();
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let routed = search(&joined.routed(&[Some("one"), None, None], &lengths).unwrap());
    assert_eq!(routed, [with[0].clone(), without[1].clone(), without[2].clone()]);
}

#[test]
fn options_out_of_range_are_refused() {
    let (model, none) = (model("seq2seq-t5"), AdapterSet::empty());
    let error = |options: &GenerationOptions| {
        let result = model.generate(&[vec![5]], options, &none, &Default::default(), |_, _| true);
        result.unwrap_err().to_string()
    };
    assert!(error(&searched(Beams::new(1))).contains("expected 2 or more"));
    let endless = Beams { length_penalty: f64::NAN, early_stopping: EarlyStopping::Never, ..Beams::new(2) };
    assert!(error(&searched(endless)).contains("length penalty"));
    let sampling = Sampling { temperature: 1e-4, ..Sampling::default() };
    let sampled = error(&GenerationOptions { sampling, ..searched(Beams::new(2)) });
    assert!(sampled.contains("expected 0, or 0.001 or more"), "{sampled}");
    let suppressed = (0..model.config().decoder.vocab_size as u32).collect();
    let constraints = Constraints { suppressed, ..Constraints::default() };
    for renormalize in [false, true] {
        let beams = Beams { renormalize, ..Beams::new(2) };
        let error = error(&GenerationOptions { constraints: constraints.clone(), ..searched(beams) });
        assert!(error.contains("non-finite"), "{error}");
    }
}

/// Forced tokens leave every beam the same choice.
#[test]
fn fewer_choices_than_beams_are_enough() {
    let (model, none) = (model("seq2seq-t5"), AdapterSet::empty());
    let size = model.config().decoder.vocab_size as u32;
    let constraints =
        Constraints { suppressed: (1..size).filter(|id| *id != 7).collect(), ..Constraints::default() };
    let options =
        GenerationOptions { constraints, max_new_tokens: 3, ignore_eos: true, ..searched(Beams::new(8)) };
    let got = model.generate(&[vec![5, 6]], &options, &none, &Default::default(), |_, _| true).unwrap();
    assert!(got[0].ids.len() == 3 && got[0].ids.iter().all(|id| [0, 7].contains(id)), "{got:?}");
}
