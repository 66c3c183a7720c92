//! Adapters that PEFT wrote, over decoders: what an adapter carries, what its initialization does to the
//! base, tied heads. Every folder `peft-small-*` is walked: loaded, merged, written and loaded again.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use lowrank_adapters::algebra::{Combination, Truncation, Update, combine};
use lowrank_adapters::peft::{AdapterFolder, is_adapter};
use lowrank_adapters::{AdapterSet, NoWeights};
use lowrank_checkpoint::Checkpoint;
use lowrank_models::{Adaptable, Decoder, DecoderConfig, Parameters, Rows, Run, Stack, Tokens};
use lowrank_tests::{assert_close, fixture, values};
use serde_json::Value;

type B = burn_flex::Flex;

fn expected(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixture(name).join("expected.json")).unwrap()).unwrap()
}

fn base(name: &str) -> Decoder<B> {
    let folder = fixture(name);
    let config = DecoderConfig::read(&folder).unwrap();
    Decoder::load(&folder, config, Default::default(), &Default::default()).unwrap()
}

/// Every adapter over a small decoder, by its folder's name.
fn cases() -> Vec<String> {
    let names = fixture("").read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("peft-small-")).collect();
    names.sort();
    assert!(names.len() > 30, "{names:?}");
    names
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// Logits after the last token of a text.
fn last_logits(model: &Decoder<B>, set: &AdapterSet<B>, case: &Value) -> Vec<f32> {
    let ids: Vec<u32> = numbers(&case["input_ids"]).into_iter().map(|v| v as u32).collect();
    let device = Default::default();
    let logits: Tensor<B, 2> = model.forward(
        &model.batch(Tokens::new(&ids, &[ids.len()]), &device).unwrap(),
        Rows::Last,
        Run::eval(set),
    );
    values(logits)
}

/// What no file but the data or another model could tell: refused by name.
fn is_refused_by_name(name: &str, error: &str) -> bool {
    [("corda", "'corda'"), ("loftq", "'loftq'"), ("adalora", "'ADALORA'"), ("ia3", "'IA3'")]
        .iter()
        .any(|(part, named)| name.contains(part) && error.contains(named))
}

fn check(name: &str, model: &Decoder<B>, set: &AdapterSet<B>, expect: &Value) {
    for case in expect["cases"].as_array().unwrap() {
        let what = format!("{name}, {}", case["name"]);
        // Two frameworks' sums in f32, in logits of size 1 to 10.
        assert_close(&what, &last_logits(model, set, case), &numbers(&case["last_logits"]), 2e-4);
    }
}

#[test]
fn adapters_answer_as_in_peft_loaded_merged_and_written_again() {
    let mut failures = Vec::new();
    for name in cases() {
        let outcome = std::panic::catch_unwind(|| one(&name));
        if outcome.is_err() {
            failures.push(name);
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

fn one(name: &str) {
    let (expect, dir, device) = (expected(name), fixture(name), Default::default());
    let mut model = base(expect["base"].as_str().unwrap());
    let before = model.config().clone();
    let set = match model.load_adapter(&dir, &device) {
        Ok(set) => set,
        Err(error) => {
            let error = error.to_string();
            assert!(is_refused_by_name(name, &error), "{name}: {error}");
            assert_eq!(*model.config(), before, "{name}: a refused adapter leaves the model as it was");
            return;
        }
    };
    check(name, &model, &set, &expect);
    match model.merged(&set) {
        Ok(merged) => check(&format!("{name} merged"), &merged, &AdapterSet::empty(), &expect),
        Err(error) => {
            assert!(expect["not_mergeable"] != Value::Null, "{name}: {error}");
            assert!(error.to_string().contains("has no bias"), "{name}: {error}");
        }
    }
    write_again(name, &model, &set, &expect);
}

/// The set and what its folder carried, in a folder of our own over the untouched base. Its config no longer names an
/// initialization.
fn write_again(name: &str, model: &Decoder<B>, set: &AdapterSet<B>, expect: &Value) {
    let carried = set.carried().next().unwrap();
    if carried.has_token_rows() {
        return;
    }
    let saved = model.tensors_where(|at| carried.holds(&at.key()));
    let folder = AdapterFolder::from_set(set, model.sites(), carried.config.clone(), saved).unwrap();
    assert_eq!(folder.config.init_lora_weights, Value::Bool(true), "{name}");
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path()).unwrap();
    let mut again = base(expect["base"].as_str().unwrap());
    let set = again.load_adapter(dir.path(), &Default::default()).unwrap();
    check(&format!("{name} written again"), &again, &set, expect);
}

/// Untying a head is recorded in the config that is written.
#[test]
fn a_head_that_parts_from_its_table_unties_the_config() {
    for (name, is_tied) in [
        ("peft-small-qwen2-save-head", false),
        ("peft-small-gpt2-lora-head", false),
        ("peft-small-qwen2-save-embedding-tied", true),
        ("peft-small-gpt2-lora-embedding", true),
    ] {
        let mut model = base(expected(name)["base"].as_str().unwrap());
        let set = model.load_adapter(&fixture(name), &Default::default()).unwrap();
        assert_eq!(model.config().tied, is_tied, "{name}");
        let merged = model.merged(&set).unwrap();
        let moves_table = name.contains("lora-embedding");
        assert_eq!(merged.config().tied, is_tied && !moves_table, "{name}");
        assert_eq!(
            merged.config().raw.get("tie_word_embeddings").is_some_and(|t| *t == false),
            !merged.config().tied
        );
    }
}

/// What an adapter folder says is found beside a base's own files.
#[test]
fn an_adapter_beside_its_base_is_read_as_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &Path| {
        for entry in from.read_dir().unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    };
    let name = "peft-small-llama-pissa";
    copy(&fixture("small-llama"));
    copy(&fixture(name));
    assert!(is_adapter(dir.path()));
    let expect = expected(name);
    let mut model = base("small-llama");
    let set = model.load_adapter(dir.path(), &Default::default()).unwrap();
    check(name, &model, &set, &expect);
}

fn updates(name: &str) -> Vec<Update> {
    let (dir, device) = (fixture(name), Default::default());
    let folder = AdapterFolder::read(&dir).unwrap();
    let sites = folder.own_sites::<B>(&dir).unwrap();
    let (set, _) = folder.into_set::<B>(&dir, &sites, &NoWeights, &device).unwrap();
    set.updates(&sites, |_| None).unwrap()
}

/// PEFT's `add_weighted_adapter` on the same three adapters: `cat` and `svd`, and `ties_svd` with signs by total weight.
#[test]
fn combinations_are_those_of_peft() {
    let expect = expected("peft-combined");
    let deltas = Checkpoint::open(fixture("peft-combined").join("deltas.safetensors")).unwrap();
    let mut checked = 0;
    for combination in expect["combinations"].as_array().unwrap() {
        let rank = combination["svd_rank"].as_u64().map(|rank| Truncation::Rank(rank as usize));
        let density = combination["density"].as_f64().unwrap_or(1.0);
        let by_total = combination["majority_sign_method"] == Value::Null;
        let how = match (combination["combination_type"].as_str().unwrap(), rank) {
            ("cat", _) => Combination::Concatenation,
            ("svd", Some(truncation)) => Combination::Svd(truncation),
            ("ties_svd", Some(truncation)) if by_total => Combination::Ties { density, truncation },
            _ => continue,
        };
        let names = combination["adapters"].as_array().unwrap().iter();
        let weights = numbers(&combination["weights"]);
        let parts: Vec<(Vec<Update>, f64)> = names
            .zip(weights)
            .map(|(name, weight)| {
                let folder = expect["adapters"][name.as_str().unwrap()].as_str().unwrap();
                // The weights are decimal numbers of one digit.
                (updates(folder), (f64::from(weight) * 10.0).round() / 10.0)
            })
            .collect();
        let name = combination["name"].as_str().unwrap();
        for (update, _) in combine(&parts, &how).unwrap() {
            let key = format!("{name}/{}", update.site.path);
            let Ok(expect) = deltas.read_f32(&key) else { continue };
            let product = update.factors.reconstruct();
            let (rows, columns) = (update.site.d_input, update.site.d_output);
            let got: Vec<f32> = (0..columns)
                .flat_map(|out| (0..rows).map(move |input| (out, input)))
                .map(|(out, input)| product[(input, out)] * update.scale as f32)
                .collect();
            assert_close(&key, &got, &expect, 2e-5);
            checked += 1;
        }
    }
    assert!(checked >= 12, "{checked} deltas were compared");
}
