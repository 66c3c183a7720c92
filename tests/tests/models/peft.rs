//! Adapters written by PEFT over decoders: what an adapter contains, how its initialization changes the
//! base, tied heads. Every folder `peft-small-*` is loaded, merged, written and loaded again.

use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use lowrank_adapters::algebra::{Combination, Truncation, Update, combine};
use lowrank_adapters::peft::{AdapterFolder, PeftConfig, is_adapter};
use lowrank_adapters::{AdapterSet, NoWeights, Site};
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor};
use lowrank_models::{
    Adaptable, Decoder, DecoderConfig, EncoderConfig, MaskedLm, Parameters, Rows, Run, Stack, Tokens,
};
use lowrank_spec::Pattern;
use lowrank_tests::{assert_close, fixture, values};
use rstest::rstest;
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

/// What a file does not contain is not made at any size that its config names.
#[rstest]
#[case(6, "vera_lambda_d")]
#[case(1 << 40, "too large to be drawn")]
#[case(usize::MAX, "too large to be drawn")]
fn a_vera_without_projections_has_the_rank_of_its_vectors(#[case] rank: usize, #[case] part: &str) {
    let (source, folder) = (fixture("peft-small-llama-vera-bare"), tempfile::tempdir().unwrap());
    let file = "adapter_model.safetensors";
    fs::copy(source.join(file), folder.path().join(file)).unwrap();
    let config = fs::read_to_string(source.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["r"] = rank.into();
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let error = base("small-llama").load_adapter(folder.path(), &Default::default()).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
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

/// Adapters that cannot be restored from their files are refused by name.
fn is_refused_by_name(name: &str, error: &str) -> bool {
    [("corda", "'corda'"), ("loftq", "'loftq'"), ("adalora", "'ADALORA'"), ("ia3", "'IA3'")]
        .iter()
        .any(|(part, named)| name.contains(part) && error.contains(named))
}

fn check(name: &str, model: &Decoder<B>, set: &AdapterSet<B>, expect: &Value) {
    for case in expect["cases"].as_array().unwrap() {
        let what = format!("{name}, {}", case["name"]);
        // Rounding of sums in f32 in two frameworks, for logits of 1 to 10.
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

/// End of the key of a table's trained rows.
const ROWS: &str = ".token_adapter.trainable_tokens_delta";

/// Writes the set with everything else from its folder, and loads it over the original base. The new config no longer names
/// an initialization.
fn write_again(name: &str, model: &Decoder<B>, set: &AdapterSet<B>, expect: &Value) {
    let carried = set.carried().next().unwrap();
    let mut saved = model.tensors_where(|at| carried.holds(&at.key()));
    let tensors = AdapterFolder::read(&fixture(name)).unwrap().tensors.into_values();
    saved.extend(tensors.filter(|tensor| tensor.name.ends_with(ROWS)));
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

/// A resized table without that of a separate head, whose new rows would be random in PEFT.
#[rstest]
#[case("peft-small-llama-resized", None)]
#[case("peft-small-llama-resized-saved", Some("embed_tokens"))]
// A saved copy of a shared table is separate from the head.
#[case("peft-small-qwen2-resized-saved", Some("embed_tokens"))]
fn a_resized_vocabulary_needs_its_head(#[case] name: &str, #[case] saved: Option<&str>) {
    let model = base(expected(name)["base"].as_str().unwrap());
    let mut folder = AdapterFolder::read(&fixture(name)).unwrap();
    folder.config.modules_to_save = saved.map(|table| vec![table.to_string()]);
    let load = |folder: AdapterFolder| {
        let mut adapted = model.clone();
        let result = adapted.load_adapter_folder(folder, Path::new(name), &Default::default());
        (result.map_err(|error| error.to_string()), adapted.config().vocab_size)
    };
    assert!(matches!(load(folder.clone()), (Ok(_), 85)));
    folder.tensors.retain(|key, _| !key.starts_with("lm_head."));
    let (result, vocabulary) = load(folder);
    let error = result.unwrap_err();
    assert!(error.contains("no 'lm_head.weight' of 85 rows") && error.lines().count() == 1, "{error}");
    assert_eq!(vocabulary, model.config().vocab_size, "a refused adapter leaves the model as it was");
}

/// A file must contain rows of every table that its config names.
#[rstest]
#[case("peft-small-llama-tokens", "model.embed_tokens", "the input embedding")]
#[case("peft-small-llama-tables", "lm_head", "lm_head")]
#[case("peft-small-llama-tables", "model.embed_tokens", "model.embed_tokens")]
// On a tied base the head has a site only if it is untied.
#[case("peft-small-qwen2-tables-head", "lm_head", "lm_head")]
#[case("peft-small-qwen2-tables-apart", "lm_head", "lm_head")]
#[case("peft-small-qwen2-tables-same", "model.embed_tokens", "model.embed_tokens")]
#[case("peft-small-neox-tables", "lm_head", "embed_out")]
fn a_file_without_the_rows_of_a_table_is_refused(
    #[case] name: &str,
    #[case] table: &str,
    #[case] missing: &str,
) {
    let mut folder = AdapterFolder::read(&fixture(name)).unwrap();
    assert!(folder.tensors.remove(&format!("{table}{ROWS}")).is_some());
    let mut model = base(expected(name)["base"].as_str().unwrap());
    let error = model.load_adapter_folder(folder, Path::new(name), &Default::default()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains(&format!("missing rows of '{missing}'")) && error.lines().count() == 1, "{error}");
}

/// A bias would keep the old vocabulary.
#[test]
fn a_resized_vocabulary_needs_a_head_without_bias() {
    let (mut model, name) = (base("phi"), "peft-small-llama-resized");
    let (rows, width) = (model.config().vocab_size + 3, model.config().d_model);
    let mut folder = AdapterFolder::read(&fixture(name)).unwrap();
    let table = |path: &str| {
        let key = format!("{path}.weight");
        (key.clone(), HostTensor::new(key, vec![rows, width], vec![0.0; rows * width]))
    };
    folder.tensors = [table("model.embed_tokens"), table("lm_head")].into();
    let error = model.load_adapter_folder(folder, Path::new(name), &Default::default()).unwrap_err();
    assert!(error.to_string().contains("is not supported over a head with a bias"), "{error}");
}

/// The files of the base do not hide those of an adapter in the same folder.
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

/// A LoRA of one module in memory.
fn lora_of(site: &Site, [a, b]: [&str; 2]) -> AdapterFolder {
    let factor = |name: &str, shape: [usize; 2]| {
        let name = format!("{}.{name}", site.path);
        let data = (0..shape[0] * shape[1]).map(|i| 0.1 * (i % 7) as f32 - 0.2).collect::<Vec<f32>>();
        (name.clone(), HostTensor::new(name, shape, data))
    };
    let config = PeftConfig {
        r: 1,
        target_modules: Some(Pattern::Names(vec![site.path.clone()])),
        ..PeftConfig::default()
    };
    let tensors = [factor(a, [1, site.d_input]), factor(b, [site.d_output, 1])].into_iter().collect();
    AdapterFolder { config, tensors, alpha_is_assumed: false }
}

/// A merged masked language model keeps its head; an adapter on one use of the shared table cannot be merged.
#[rstest]
#[case("bert-mlm", "query", "word_embeddings")]
#[case("modernbert-mlm", "attn.Wo", "tok_embeddings")]
fn a_merged_masked_language_model_keeps_its_head(
    #[case] base: &str,
    #[case] module: &str,
    #[case] words: &str,
) {
    let (source, device, dir) = (fixture(base), Default::default(), tempfile::tempdir().unwrap());
    let load = || MaskedLm::<B>::load(&source, EncoderConfig::read(&source).unwrap(), &device).unwrap();
    let site = |end: &str| load().sites().iter().find(|site| site.path.ends_with(end)).unwrap().clone();
    let mut model = load();
    let folder = lora_of(&site(module), ["lora_A.weight", "lora_B.weight"]);
    let set = model.load_adapter_folder(folder, dir.path(), &device).unwrap();
    let merged = model.merged(&set).unwrap();
    let other = HostTensor::new("cls.seq_relationship.bias", [2], vec![1.0, 2.0]);
    merged.save_beside(dir.path(), &source, FloatType::F32, vec![other]).unwrap();
    let [before, after] = [&source, dir.path()].map(|path| Checkpoint::open(path).unwrap());
    assert_eq!(after.read_f32("cls.seq_relationship.bias").unwrap(), [1.0, 2.0]);
    let is_head = |key: &&str| ["cls.", "head.", "decoder.bias"].iter().any(|part| key.starts_with(part));
    let is_copy = |key: &&str| key.contains("predictions.decoder") || *key == "decoder.weight";
    let head: Vec<&str> = before.names().filter(is_head).filter(|key| !is_copy(key)).collect();
    assert!(head.len() > 1, "{head:?}");
    for key in head {
        assert_eq!(before.read_f32(key).unwrap(), after.read_f32(key).unwrap(), "{key}");
    }
    let key = format!("{}.weight", site(module).path);
    assert_ne!(before.read_f32(&key).unwrap(), after.read_f32(&key).unwrap());

    let folder = lora_of(&site(words), ["lora_embedding_A", "lora_embedding_B"]);
    let set = model.load_adapter_folder(folder, dir.path(), &device).unwrap();
    assert!(model.merged(&set).err().unwrap().to_string().contains("decoder"));
}

/// PEFT does not apply factors that the config leaves out.
#[test]
fn factors_that_the_config_leaves_out_are_refused() {
    let (name, device) = ("peft-small-llama-layers-pattern", Default::default());
    for (text, other) in [
        ("\"q_proj\"", "\"k_proj\""),
        ("\"exclude_modules\": null", "\"exclude_modules\": [\"q_proj\"]"),
        ("\"layers_pattern\": \"layers\"", "\"layers_pattern\": \"h\""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for entry in fixture(name).read_dir().unwrap().map(|e| e.unwrap()) {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let path = dir.path().join("adapter_config.json");
        let config = fs::read_to_string(&path).unwrap();
        assert!(config.contains(text), "{text}");
        fs::write(&path, config.replace(text, other)).unwrap();
        let error = base("small-llama").load_adapter(dir.path(), &device).unwrap_err().to_string();
        assert!(error.contains("leave out"), "{error}");
    }
}
