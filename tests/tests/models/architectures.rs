//! Every fixture of an architecture: its outputs, those of its compressed forms, and the table of docs/architectures.md that
//! says so.

use std::collections::BTreeMap;
use std::path::Path;

use burn_flex::Flex;
use lowrank_adapters::AdapterSet;
use lowrank_compress::{Amount, Method, Options, compress};
use lowrank_models::params::WeightType;
use lowrank_models::{Classifier, Decoder, MaskedLm, ModelFolder, ModelKind, Rows, Run, Stack, Tokens};
use lowrank_spec::BlockFormat;
use lowrank_tests::{assert_close, fixture, values};
use serde_json::Value;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/architectures.md");
const MARKS: [&str; 2] =
    ["<!-- tests/tests/models/architectures.rs writes this table -->\n", "<!-- end of the table -->\n"];

fn read(name: &str, file: &str) -> Option<Value> {
    let text = std::fs::read_to_string(fixture(name).join(file)).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// The tokens of a fixture's first case.
fn first_case(name: &str) -> Option<(Vec<u32>, Vec<u32>)> {
    let expected = read(name, "expected.json")?;
    let ids = |key: &str| -> Option<Vec<u32>> {
        let ids = expected["cases"][0][key].as_array()?;
        Some(ids.iter().map(|id| id.as_u64().unwrap() as u32).collect())
    };
    let tokens = ids("input_ids")?;
    let types = ids("token_type_ids").unwrap_or_else(|| vec![0; tokens.len()]);
    Some((tokens, types))
}

/// Folders of models in floats, with their model types.
fn models() -> Vec<(String, String)> {
    let names = fixture("").read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let model_type = |name: &String| {
        let config = read(name, "config.json")?;
        first_case(name)?;
        let is_model = config.get("quantization_config").is_none() && !name.starts_with("format-");
        Some((name.clone(), is_model.then(|| config["model_type"].as_str())??.to_owned()))
    };
    let mut found: Vec<_> = names.filter_map(|name| model_type(&name)).collect();
    found.sort();
    found
}

/// What a model computes for the first case of a fixture: hidden states of an encoder, else logits of all tokens.
fn outputs(name: &str, path: &Path) -> Vec<f32> {
    let (folder, device) = (ModelFolder::open(path).unwrap(), Default::default());
    let (ids, type_ids) = first_case(name).unwrap();
    let tokens = Tokens { ids: &ids, type_ids: &type_ids, lengths: &[ids.len()], pixels: &[] };
    let none = AdapterSet::<Flex>::empty();
    let run = Run::eval(&none);
    match folder.kind() {
        ModelKind::Decoder => {
            let config = folder.decoder_config().unwrap();
            let model = Decoder::load(path, config, WeightType::F32, &device).unwrap();
            values(model.forward(&model.batch(tokens, &device).unwrap(), Rows::All, run))
        }
        ModelKind::MaskedLm => {
            let model = MaskedLm::load(path, folder.encoder_config().unwrap(), &device).unwrap();
            values(model.hidden_states(&model.batch(tokens, &device).unwrap(), Rows::All, run))
        }
        _ => {
            let model = Classifier::load(path, folder.classifier_config().unwrap(), 0, &device).unwrap();
            values(model.hidden_states(&model.batch(tokens, &device).unwrap(), Rows::All, run))
        }
    }
}

/// What transformers computes, in part: the last states of an encoder, the last logits of a decoder.
fn expected(name: &str) -> Option<Vec<f32>> {
    let expected = read(name, "expected.json")?;
    let case = &expected["cases"][0];
    let numbers = |value: &Value| -> Option<Vec<f32>> {
        Some(value.as_array()?.iter().map(|v| v.as_f64().unwrap() as f32).collect())
    };
    numbers(&case["last_logits"]).or_else(|| case["last_hidden_state"].as_array()?.last().and_then(numbers))
}

/// The outputs of a compressed copy.
fn compressed(name: &str, options: &Options) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("model");
    compress(&fixture(name), &output, options, None, &()).unwrap_or_else(|error| panic!("{name}: {error}"));
    outputs(name, &output)
}

/// How far rounding to blocks of 8 bits may move the outputs of these models.
const ROUNDED: f32 = 0.1;

/// `‖a − b‖/‖b‖`.
fn relative(a: &[f32], b: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    assert_eq!(a.len(), b.len());
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[derive(Default)]
struct Shown {
    fixtures: usize,
    outputs: bool,
    trained: bool,
    blocks: bool,
    gguf: bool,
}

/// Checks one model.
fn shown(name: &str, trained: &Value) -> Shown {
    let dense = outputs(name, &fixture(name));
    let expected = expected(name);
    if let Some(expected) = &expected {
        let last = &dense[dense.len() - expected.len()..];
        assert_close(&format!("{name}: outputs"), last, expected, crate::common::TOLERANCE);
    }
    let whole = Options { always_factor: true, ..Options::new(Method::Svd, Amount::Energy(1.0 - 1e-12)) };
    assert_close(
        &format!("{name}: factored"),
        &compressed(name, &whole),
        &dense,
        20.0 * crate::common::TOLERANCE,
    );
    let blocks = Options { format: Some(BlockFormat::Q8_0), ..Options::new(Method::Quant, Amount::Stored) };
    let off = relative(&compressed(name, &blocks), &dense);
    assert!(off < ROUNDED, "{name}: in blocks, off by {off}");
    Shown {
        fixtures: 1,
        outputs: expected.is_some(),
        trained: trained.get(name).is_some(),
        // Rows that no block of 32 divides stay in floats.
        blocks: off > 0.0,
        gguf: false,
    }
}

/// The table, of checks that all passed.
fn table() -> String {
    let trained = read("", "gradients.json").unwrap();
    let models = models();
    // Most of the time is that of the disk.
    let rows: Vec<Shown> = std::thread::scope(|scope| {
        let workers: Vec<_> = models
            .chunks(models.len().div_ceil(8))
            .map(|part| {
                scope.spawn(|| part.iter().map(|(name, _)| shown(name, &trained)).collect::<Vec<_>>())
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let mut shown: BTreeMap<String, Shown> = BTreeMap::new();
    for ((_, model_type), of) in models.into_iter().zip(rows) {
        let row = shown.entry(model_type).or_default();
        row.fixtures += of.fixtures;
        row.outputs |= of.outputs;
        row.trained |= of.trained;
        row.blocks |= of.blocks;
    }
    // gguf.rs checks these, of quantized models too.
    for file in fixture("gguf").read_dir().unwrap() {
        let file = file.unwrap().path();
        let config = read(file.file_stem().unwrap().to_str().unwrap(), "config.json").unwrap();
        shown.get_mut(config["model_type"].as_str().unwrap()).unwrap().gguf = true;
    }
    let mut text = String::from(
        "| `model_type` | models | outputs | five steps | factored | in blocks | GGUF |\n|---|---|---|---|---|---|---|\n",
    );
    let mark = |is_shown: bool| if is_shown { "✓" } else { "–" };
    for (model_type, row) in shown {
        text += &format!(
            "| `{model_type}` | {} | {} | {} | ✓ | {} | {} |\n",
            row.fixtures,
            mark(row.outputs),
            mark(row.trained),
            mark(row.blocks),
            mark(row.gguf)
        );
    }
    text
}

#[test]
fn the_table_of_the_document_is_what_holds() {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = document.split_once(MARKS[0]).unwrap();
    let (written, after) = rest.split_once(MARKS[1]).unwrap();
    let table = table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(DOCUMENT, [before, MARKS[0], &table, MARKS[1], after].concat()).unwrap();
        return;
    }
    assert_eq!(written, table, "UPDATE_DOCS=1 writes the table anew");
    // The table of files names the same architectures.
    let listed = before.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | `"));
    // pictures.rs covers ViT.
    let listed = listed.flat_map(|(types, _)| types.split('`').step_by(1)).filter(|t| {
        !t.is_empty()
            && *t != "vit"
            && t.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
    });
    for model_type in listed {
        assert!(table.contains(&format!("| `{model_type}` |")), "no fixture of '{model_type}'");
    }
}
