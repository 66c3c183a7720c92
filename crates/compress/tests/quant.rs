//! Folders in blocks of few bits, read back by the format's own words.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lowrank_checkpoint::{Checkpoint, Dtype, FloatType, HostTensor, write_safetensors};
use lowrank_compress::{
    Allocation, Amount, Calibrator, InputStatistics, Method, Of, Options, Report, SidedStatistics, Weighting,
    Weightings, compress, quantize,
};
use lowrank_factor::Mat;
use lowrank_spec::names::WeightPart;
use lowrank_spec::rng::normal_values;
use lowrank_spec::{BlockFormat, LowrankSection, Pattern, Representation, Targets, transpose};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

const LAYERS: usize = 2;
/// Inputs of 64 and 256: the latter alone fit super-blocks.
const WIDTHS: [(&str, [usize; 2]); 4] = [
    ("self_attn.q_proj", [64, 64]),
    ("self_attn.v_proj", [64, 32]),
    ("mlp.up_proj", [64, 256]),
    ("mlp.down_proj", [256, 64]),
];

/// A folder with the names of a Llama, tied, with a copy of its table as a head.
fn model() -> TempDir {
    model_with_head(true)
}

/// The same, whose head is a copy of the table or has other elements; the config says that it is tied in either case.
fn model_with_head(is_copy: bool) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let matrix = |name: String, shape: [usize; 2]| {
        let values = normal_values(3, &name, shape[0] * shape[1], 0.05);
        HostTensor::new(name, shape, values)
    };
    let mut tensors = vec![matrix("model.embed_tokens.weight".into(), [96, 64])];
    for layer in 0..LAYERS {
        for (name, [d_in, d_out]) in WIDTHS {
            tensors.push(matrix(format!("model.layers.{layer}.{name}.weight"), [d_out, d_in]));
        }
        let norm = format!("model.layers.{layer}.input_layernorm.weight");
        tensors.push(HostTensor::new(norm, [64], vec![1.0; 64]));
    }
    // No model reads the copy of a tied table.
    let head = HostTensor::new("lm_head.weight", [96, 64], tensors[0].data.clone());
    tensors.push(if is_copy { head } else { matrix("lm_head.weight".into(), [96, 64]) });
    write_safetensors(dir.path().join("model.safetensors"), tensors, FloatType::F32, &BTreeMap::new())
        .unwrap();
    let config = json!({"model_type": "llama", "tie_word_embeddings": true});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// Second moments of inputs that differ between channels, and with `gradients` of outputs.
fn weightings(gradients: bool) -> Weightings {
    let statistics = |key: &str, n: usize| {
        let scales: Vec<f64> =
            normal_values(9, key, n, 1.0).into_iter().map(|x| f64::from(x).exp()).collect();
        let mixed = normal_values(8, key, n * n, 0.3);
        let root = Mat::from_fn(n, n, |i, j| {
            scales[i] * (f64::from(u8::from(i == j)) + f64::from(mixed[i * n + j]) / (n as f64).sqrt())
        });
        Arc::new(InputStatistics {
            gram: &root * root.transpose() * 50.0,
            magnitude: vec![50.0; n],
            rows: 50,
        })
    };
    let of = |layer: usize| {
        WIDTHS.map(|(name, [d_in, d_out])| {
            let path = format!("model.layers.{layer}.{name}");
            let inputs = statistics(&path, d_in);
            let outputs = statistics(&format!("{path} out"), d_out);
            let weighting = if gradients {
                Weighting::Both { sums: SidedStatistics { inputs, outputs }, held_out: None, share: 1.0 }
            } else {
                Weighting::Inputs(inputs)
            };
            (path, weighting)
        })
    };
    (0..LAYERS).flat_map(of).collect()
}

struct Made {
    dir: TempDir,
    report: Report,
}

impl Made {
    fn folder(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn section(&self) -> LowrankSection {
        let text = fs::read_to_string(self.folder().join("config.json")).unwrap();
        LowrankSection::of_config(serde_json::from_str::<Value>(&text).unwrap().as_object().unwrap()).unwrap()
    }

    /// A part of a module, in the layout of floats.
    fn part(&self, module: &str, part: WeightPart) -> (Vec<f32>, [usize; 2]) {
        let checkpoint = Checkpoint::open(self.folder()).unwrap();
        let entry = self.section().modules.get(module).cloned().unwrap_or_default();
        let key = part.key(module);
        let shape = checkpoint.info(&key).unwrap().shape.clone();
        let Some(format) = entry.formats.get(part.name()) else {
            return (checkpoint.read_f32(&key).unwrap(), [shape[0], shape[1]]);
        };
        assert_eq!(checkpoint.info(&key).unwrap().dtype, Dtype::U8);
        let format = BlockFormat::from_name(format).unwrap();
        let mut values = Vec::new();
        format.dequantize(&checkpoint.bytes(&key).unwrap(), &mut values);
        let columns = values.len() / shape[0];
        if part == WeightPart::FactorB {
            return (transpose(&values, shape[0], columns), [columns, shape[0]]);
        }
        (values, [shape[0], columns])
    }

    /// `[d_output, d_input]` as the folder says.
    fn weight(&self, module: &str) -> Mat<f32> {
        let matrix = |part: WeightPart| {
            let (values, [rows, columns]) = self.part(module, part);
            Mat::from_fn(rows, columns, |i, j| values[i * columns + j])
        };
        match self.section().modules.get(module).map(|entry| &entry.representation) {
            Some(Representation::LowRank { .. }) => matrix(WeightPart::FactorB) * matrix(WeightPart::FactorA),
            Some(Representation::Sum { .. }) => {
                matrix(WeightPart::Dense) + matrix(WeightPart::FactorB) * matrix(WeightPart::FactorA)
            }
            _ => matrix(WeightPart::Dense),
        }
    }
}

fn run(model: &Path, options: &Options, weightings: Option<Weightings>) -> Result<Made, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut weightings = weightings;
    let calibrator = weightings.as_mut().map(|w| w as &mut dyn Calibrator);
    let report =
        compress(model, &dir.path().join("out"), options, calibrator, &()).map_err(|e| e.to_string())?;
    Ok(Made { dir, report })
}

fn quant(format: BlockFormat) -> Options {
    Options { format: Some(format), ..Options::new(Method::Quant, Amount::Stored) }
}

fn original(model: &Path, module: &str) -> Mat<f32> {
    let checkpoint = Checkpoint::open(model).unwrap();
    let key = format!("{module}.weight");
    let shape = checkpoint.info(&key).unwrap().shape.clone();
    let values = checkpoint.read_f32(&key).unwrap();
    Mat::from_fn(shape[0], shape[1], |i, j| values[i * shape[1] + j])
}

/// Relative error, in the norm of the inputs where these are given.
fn error(model: &Path, made: &Made, module: &str, weightings: Option<&Weightings>) -> f64 {
    let w = original(model, module);
    let norm = |m: &Mat<f32>| -> f64 {
        let wide = Mat::from_fn(m.nrows(), m.ncols(), |i, j| f64::from(m[(i, j)]));
        let product = match weightings.and_then(|w| w.get(module)) {
            Some(Weighting::Inputs(inputs)) => &wide * &inputs.gram,
            _ => wide.clone(),
        };
        let row = |i: usize| (0..wide.ncols()).map(|j| wide[(i, j)] * product[(i, j)]).sum::<f64>();
        (0..wide.nrows()).map(row).sum()
    };
    (norm(&(made.weight(module) - &w)) / norm(&w)).sqrt()
}

#[rstest]
fn weights_are_rounded_and_the_rest_is_copied(#[values(true, false)] with_inputs: bool) {
    let model = model();
    for format in BlockFormat::ALL {
        let inputs = with_inputs.then(|| weightings(false));
        let made = run(model.path(), &quant(format), inputs.clone()).unwrap();
        assert_eq!(made.report.modules.len(), 4 * LAYERS + 1, "all maps and the table");
        for module in &made.report.modules {
            let name = &module.module;
            let columns = if name.ends_with("down_proj") { 256 } else { 64 };
            let is_table = name.ends_with("embed_tokens");
            let bits = 8.0 * format.block_bytes() as f64 / format.block_len() as f64;
            let expect = if is_table && bits < 6.5 { BlockFormat::Q6K } else { format };
            assert_eq!(module.format, expect.fitting(columns).map(BlockFormat::name), "{name}");
            let found = error(model.path(), &made, name, inputs.as_ref());
            assert!(
                (found - module.error).abs() < 1e-3 * found,
                "{format} {name}: {found}, {}",
                module.error
            );
            assert!(found < 0.5, "{format} {name}: {found}");
        }
        let [before, after] =
            [model.path().into(), made.folder()].map(|f: PathBuf| Checkpoint::open(f).unwrap());
        let norm = "model.layers.1.input_layernorm.weight";
        assert_eq!(before.bytes(norm).unwrap(), after.bytes(norm).unwrap());
        assert!(!after.contains("lm_head.weight"), "the copy of a tied table is left out");
        let size = fs::metadata(made.folder().join("model.safetensors")).unwrap().len();
        assert_eq!(made.report.file.after, size);
        let others = made.report.modules.iter().filter(|module| module.format != Some(format.name())).count();
        assert_eq!(made.report.instead.is_empty(), others == 0, "{format}: {:?}", made.report.instead);
    }
}

/// As in transformers, a head in the file that differs from the table is used, whatever the config says.
#[test]
fn a_trained_head_is_kept_under_a_config_that_ties_it() {
    let model = model_with_head(false);
    let made = run(model.path(), &quant(BlockFormat::Q8_0), None).unwrap();
    assert_eq!(made.report.modules.len(), 4 * LAYERS + 2, "all maps, the table and the head");
    assert!(error(model.path(), &made, "lm_head", None) < 0.01);
    let budget = Options::new(Method::Quant, Amount::Bytes(60_000));
    let made = run(model.path(), &budget, None).unwrap();
    assert!(made.report.file.after <= 60_000 && error(model.path(), &made, "lm_head", None) < 0.5);
    // Also where other weights alone are compressed, and where it is itself factored.
    let ratio = Amount::Ratio { ratio: 0.5, of: lowrank_compress::Of::Layers };
    for targets in [None, Some(Targets::new(Pattern::parse("lm_head")))] {
        let made = run(model.path(), &Options { targets, ..Options::new(Method::Svd, ratio.clone()) }, None)
            .unwrap();
        assert!(error(model.path(), &made, "lm_head", None) < 0.99);
        let config = fs::read_to_string(made.folder().join("config.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&config).unwrap()["tie_word_embeddings"], false);
    }
}

/// Some files hold a tied table under the name of the head alone; it is kept in floats.
#[test]
fn a_table_under_the_name_of_the_head_is_kept() {
    let model = model();
    let source = Checkpoint::open(model.path()).unwrap();
    let kept = source.names().filter(|name| *name != "model.embed_tokens.weight");
    let tensors = kept.map(|name| {
        let shape = source.info(name).unwrap().shape.clone();
        HostTensor::new(name, shape, source.read_f32(name).unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    write_safetensors(
        folder.path().join("model.safetensors"),
        tensors.collect(),
        FloatType::F32,
        &BTreeMap::new(),
    )
    .unwrap();
    fs::copy(model.path().join("config.json"), folder.path().join("config.json")).unwrap();
    let ratio = Amount::Ratio { ratio: 0.5, of: lowrank_compress::Of::Layers };
    for options in [quant(BlockFormat::Q4_0), Options::new(Method::Svd, ratio)] {
        let made = run(folder.path(), &options, None).unwrap();
        let written = Checkpoint::open(made.folder()).unwrap();
        assert_eq!(written.bytes("lm_head.weight").unwrap(), source.bytes("lm_head.weight").unwrap());
        let config = fs::read_to_string(made.folder().join("config.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&config).unwrap()["tie_word_embeddings"], true);
    }
    let same = lowrank_compress::extract(folder.path(), folder.path(), &lowrank_factor::Truncation::Rank(1));
    assert!(same.unwrap_err().to_string().contains("is stored as 'lm_head.weight'"));
}

#[test]
fn weights_of_errors_lower_the_error() {
    let model = model();
    for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Iq4Nl] {
        let inputs = weightings(false);
        let plain = run(model.path(), &quant(format), None).unwrap();
        let made = run(model.path(), &quant(format), Some(inputs.clone())).unwrap();
        for layer in 0..LAYERS {
            for (name, _) in WIDTHS {
                let module = format!("model.layers.{layer}.{name}");
                let [plain, made] =
                    [&plain, &made].map(|made| error(model.path(), made, &module, Some(&inputs)));
                assert!(made < plain, "{format} {module}: {made} is not less than {plain}");
            }
        }
    }
}

/// Beside rounding by the same mean squares of inputs, their products make later columns take back errors of earlier ones.
#[test]
fn errors_are_made_up_for_in_later_columns() {
    let model = model();
    // Channels that all follow two common ones, which is where feedback pays.
    let correlated = |n: usize| {
        let common = normal_values(12, "common", 2 * n, 1.0);
        let gram = Mat::from_fn(n, n, |i, j| {
            let shared: f64 =
                (0..2).map(|k| f64::from(common[2 * i + k]) * f64::from(common[2 * j + k])).sum();
            50.0 * (shared + 0.1 * f64::from(u8::from(i == j)))
        });
        Arc::new(InputStatistics { gram, magnitude: vec![50.0; n], rows: 50 })
    };
    let roots = |inputs: &InputStatistics| -> Vec<f32> {
        (0..inputs.gram.nrows()).map(|i| (inputs.gram[(i, i)] / inputs.rows as f64).sqrt() as f32).collect()
    };
    let modules = || {
        (0..LAYERS).flat_map(|layer| {
            WIDTHS.map(|(name, [d_in, _])| (format!("model.layers.{layer}.{name}"), correlated(d_in)))
        })
    };
    let channels: Weightings =
        modules().map(|(path, inputs)| (path, Weighting::Channels(roots(&inputs)))).collect();
    let inputs: Weightings = modules().map(|(path, inputs)| (path, Weighting::Inputs(inputs))).collect();
    for format in [BlockFormat::Q4_0, BlockFormat::Q8_0, BlockFormat::Iq4Nl] {
        let by_channel = run(model.path(), &quant(format), Some(channels.clone())).unwrap();
        let made = run(model.path(), &quant(format), Some(inputs.clone())).unwrap();
        for (name, _) in WIDTHS {
            let module = format!("model.layers.1.{name}");
            let [by_channel, made] =
                [&by_channel, &made].map(|made| error(model.path(), made, &module, Some(&inputs)));
            assert!(made < 0.97 * by_channel, "{format} {module}: {made}, {by_channel}");
        }
    }
}

#[rstest]
fn a_correction_lowers_the_error(#[values(true, false)] with_inputs: bool) {
    let model = model();
    let inputs = with_inputs.then(|| weightings(false));
    let plain = run(model.path(), &quant(BlockFormat::Q4_0), inputs.clone()).unwrap();
    let ranks = |text: &str| Amount::Ranks(lowrank_compress::parse_ranks(text).unwrap());
    for (amount, given) in [(Amount::Stored, None), (ranks("all-linear=8"), Some(8))] {
        let options = Options { amount, method: Method::QuantLowRank, ..quant(BlockFormat::Q4_0) };
        let made = run(model.path(), &options, inputs.clone()).unwrap();
        for module in made.report.modules.iter().filter(|module| !module.module.ends_with("embed_tokens")) {
            // 32 by default, or half the shorter side.
            let narrow = module.module.ends_with("v_proj");
            let rank = given.unwrap_or(if narrow { 16 } else { 32 });
            assert_eq!((module.kind, module.ranks.as_slice()), ("sum", &[rank][..]));
            let found = error(model.path(), &made, &module.module, inputs.as_ref());
            assert!(
                (found - module.error).abs() < 1e-3 * found,
                "{}: {found}, {}",
                module.module,
                module.error
            );
            let before = plain.report.modules.iter().find(|m| m.module == module.module).unwrap().error;
            assert!(found < 0.95 * before, "{}: {found} after {before}", module.module);
        }
    }
    // Named weights alone.
    let options =
        Options { amount: ranks("q_proj=8"), method: Method::QuantLowRank, ..quant(BlockFormat::Q4_0) };
    let made = run(model.path(), &options, None).unwrap();
    assert_eq!(made.report.modules.iter().filter(|module| module.kind == "sum").count(), LAYERS);
}

#[test]
fn a_number_of_bytes_is_kept_to_and_used() {
    let model = model();
    let with_bytes = |method, bytes, weightings| {
        run(model.path(), &Options::new(method, Amount::Bytes(bytes)), weightings)
    };
    let mut last = f64::INFINITY;
    for bytes in [60_000, 70_000, 90_000, 140_000] {
        for method in [Method::Quant, Method::Auto] {
            let made = with_bytes(method, bytes, Some(weightings(true))).unwrap();
            let size = made.report.file.after;
            assert!(size <= bytes && size * 10 >= bytes * 9, "{method:?}: {size} of {bytes}");
        }
        let made = with_bytes(Method::Quant, bytes, None).unwrap();
        let total: f64 = made.report.modules.iter().map(|m| m.error * m.error).sum();
        assert!(total < last, "{total} at {bytes} bytes, {last} with fewer");
        last = total;
    }
    // More than everything takes: nothing is touched.
    let made = with_bytes(Method::Quant, 10_000_000, None).unwrap();
    assert!(made.report.modules.iter().all(|module| module.format.is_none()) && made.report.dense == 9);
    let error = with_bytes(Method::Quant, 10_000, None).err().unwrap();
    assert!(error.contains("bytes = 10000 is out of range; expected at least"), "{error}");
}

/// What rounding the table does is measured on the model, where that can be done.
#[test]
fn the_table_is_priced_by_what_is_measured() {
    let model = model();
    let bytes_of_table = |slope: f64| {
        let dir = tempfile::tempdir().unwrap();
        let mut weightings = weightings(true);
        let mut measured = 0;
        let mut measure = |folder: &Path| {
            measured += 1;
            let section = fs::read_to_string(folder.join("config.json")).unwrap();
            Ok(if section.contains("embed_tokens") { slope } else { 0.0 })
        };
        let options = Options::new(Method::Quant, Amount::Bytes(70_000));
        quantize(
            model.path(),
            &dir.path().join("out"),
            &options,
            Some(&mut weightings),
            Some(&mut measure),
            &(),
        )
        .unwrap();
        assert_eq!(measured, 2, "the model as it is, and with the table rounded");
        let checkpoint = Checkpoint::open(dir.path().join("out")).unwrap();
        assert!(!dir.path().join("out/probe").exists());
        checkpoint.info("model.embed_tokens.weight").unwrap().byte_size()
    };
    assert!(bytes_of_table(1e6) > bytes_of_table(1e-9));
}

#[test]
fn factors_are_rounded_and_the_error_says_so() {
    let model = model();
    let of = |format| {
        let amount = Amount::Ranks(vec![("q_proj".into(), 20), ("down_proj".into(), 32)]);
        run(model.path(), &Options { format, ..Options::new(Method::Svd, amount) }, None).unwrap()
    };
    let (plain, made) = (of(None), of(Some(BlockFormat::Q4_0)));
    for (before, after) in plain.report.modules.iter().zip(&made.report.modules) {
        assert_eq!((after.kind, after.format), ("low_rank", Some("Q4_0")));
        let found = error(model.path(), &made, &after.module, None);
        assert!(found > before.error && (found / after.error - 1.0).abs() < 0.05, "{found}, {}", after.error);
    }
    assert!(made.report.file.after < plain.report.file.after);
}

/// Rows of 64 and 256, and rows that do not fill blocks.
#[test]
fn a_ratio_of_the_file_is_met_in_blocks() {
    let (model, odd) = (model(), Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama"));
    let (mut met, mut refused) = (0, 0);
    for folder in [model.path(), &odd] {
        for format in [BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Nf2] {
            for (ratio, allocation, dtype) in [
                (0.1, Allocation::Budget, None),
                (0.3, Allocation::Budget, None),
                (0.3, Allocation::Uniform, None),
                (0.5, Allocation::Budget, None),
                (0.65, Allocation::Uniform, Some(FloatType::BF16)),
                (0.65, Allocation::Budget, Some(FloatType::BF16)),
                (0.95, Allocation::Budget, None),
            ] {
                let amount = Amount::Ratio { ratio, of: Of::File };
                let format = Some(format);
                let options = Options { format, allocation, dtype, ..Options::new(Method::Svd, amount) };
                match run(folder, &options, None) {
                    Ok(Made { report, .. }) => {
                        met += 1;
                        let said = (report.file.ratio, &report.instead);
                        assert!(report.file.ratio >= ratio, "{options:?}: {said:?}");
                        // Full ranks in blocks may be smaller than what was asked for.
                        let is_whole = report.modules.iter().all(|module| module.error < 0.5);
                        assert!(report.file.ratio < ratio + 0.05 || is_whole, "{options:?}: {said:?}");
                    }
                    Err(error) => {
                        refused += 1;
                        let possible = error.split("at most ").nth(1).and_then(|text| text.split(',').next());
                        let possible: f64 = possible.unwrap().parse().unwrap();
                        assert!(possible < ratio, "{options:?}: {error}");
                        if allocation == Allocation::Budget {
                            let amount = Amount::Ratio { ratio: possible, of: Of::File };
                            let made = run(folder, &Options { amount, ..options }, None).unwrap();
                            assert!(made.report.file.ratio >= possible, "{}", made.report.file.ratio);
                        }
                    }
                }
            }
        }
    }
    assert!(met >= 30 && refused >= 6, "{met} met, {refused} refused");
}

#[test]
fn factors_that_no_block_holds_are_counted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
    let amount = Amount::Ranks(vec![("down_proj".into(), 4)]);
    let options = Options { format: Some(BlockFormat::Q4K), ..Options::new(Method::Svd, amount) };
    let report = run(&folder, &options, None).unwrap().report;
    let lines =
        ["are in Q5_0", "stay floats"].map(|end| format!("2 factors with rows that Q4_K cannot hold {end}"));
    assert_eq!(report.instead, lines);
}

#[test]
fn bad_options_are_refused() {
    let model = model();
    let fails = |options: &Options, part: &str| {
        let error = run(model.path(), options, None).err().unwrap();
        assert!(error.contains(part), "{error}");
        assert_eq!(error.lines().count(), 1);
    };
    let q4 = quant(BlockFormat::Q4_0);
    fails(&Options { format: None, ..q4.clone() }, "quant needs a number of bits or bytes");
    fails(
        &Options { amount: Amount::Error(0.1), ..q4.clone() },
        "quant takes --bits, --type or --bytes, not --error",
    );
    fails(
        &Options { amount: Amount::Ranks(vec![("q_proj".into(), 2)]), ..q4.clone() },
        "choose quant+lowrank",
    );
    fails(&Options { amount: Amount::Bytes(1 << 20), ..q4.clone() }, "leave out the one given (Q4_0)");
    fails(&Options { amount: Amount::Bytes(0), format: None, ..q4.clone() }, "bytes = 0 is out of range");
    fails(&Options { memory: Some(10), ..q4.clone() }, "memory = 10 is out of range; expected at least");
    fails(&Options { method: Method::Tt, amount: Amount::Error(0.1), ..q4.clone() }, "tt writes no factors");
    let targets = Some(Targets::new(Pattern::parse("nothing_like_it")));
    fails(&Options { targets, ..q4.clone() }, "no layer matches");
    let table = Amount::Ranks(vec![("embed_tokens".into(), 4)]);
    fails(&Options { amount: table, method: Method::QuantLowRank, ..q4 }, "corrections apply to linear maps");
}

#[rstest]
#[case(f32::NAN, "NaN")]
#[case(f32::NEG_INFINITY, "-inf")]
fn values_that_are_not_finite_are_named(#[case] value: f32, #[case] shown: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut values = vec![0.5; 64 * 64];
    values[64 * 3 + 7] = value;
    let tensor = HostTensor::new("model.layers.0.self_attn.q_proj.weight", [64, 64], values);
    write_safetensors(dir.path().join("model.safetensors"), vec![tensor], FloatType::F32, &BTreeMap::new())
        .unwrap();
    fs::write(dir.path().join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    let error = run(dir.path(), &quant(BlockFormat::Q4_1), None).err().unwrap();
    assert!(error.contains(&format!("q_proj': row 3, column 7 is {shown}")), "{error}");
}
