//! Models whose weights are factors: loaded as the config says, equal to the dense model of the same weights, saved
//! and loaded again.

use std::collections::BTreeMap;
use std::path::Path;

use burn::backend::Autodiff;
use burn::module::Param;
use burn::tensor::{Tensor, backend::Backend};
use lowrank_adapters::AdapterSet;
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use lowrank_kernels::Kernels;
use lowrank_models::decoder::GenerationOptions;
use lowrank_models::params::WeightType;
use lowrank_models::{
    Classifier, ClassifierConfig, Decoder, DecoderConfig, EncoderConfig, LanguageModel, ParamVisitor,
    Parameter, Parameters, Rows, Run, Stack, Tokens, Trainable,
};
use lowrank_spec::rng::normal_values;
use lowrank_spec::{LowrankSection, ModuleEntry, Representation};
use lowrank_tests::{assert_close, fixture, golden, pack, values};
use rstest::rstest;
use serde_json::{Map, Value};

/// Both models do the same arithmetic in another order.
const TOLERANCE: f32 = 1e-4;

/// A matrix by rows.
type Matrix = Vec<Vec<f32>>;

fn random(key: &str, [rows, columns]: [usize; 2]) -> Matrix {
    // Products of two have entries of about 0.3, as the fixtures' weights.
    let values = normal_values(5, key, rows * columns, 0.5 / (columns.min(rows) as f64).powf(0.25));
    values.chunks(columns).map(<[f32]>::to_vec).collect()
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let column = |j: usize| b.iter().map(move |row| row[j]);
    a.iter()
        .map(|row| (0..b[0].len()).map(|j| row.iter().zip(column(j)).map(|(x, y)| x * y).sum()).collect())
        .collect()
}

fn transposed(a: &Matrix) -> Matrix {
    (0..a[0].len()).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

fn tensor(name: String, matrix: &Matrix) -> HostTensor<'static> {
    HostTensor::new(name, [matrix.len(), matrix[0].len()], matrix.concat())
}

/// The same weights twice, as factors and dense; the module's entry; the factor `A` for others to share.
struct Module {
    factors: Vec<HostTensor<'static>>,
    /// `[d_input, d_output]`.
    dense: Matrix,
    representation: Representation,
    a: Matrix,
}

fn low_rank(path: &str, [d_in, d_out]: [usize; 2], rank: usize) -> Module {
    let (a, b) = (random(path, [d_in, rank]), random(&format!("{path} b"), [rank, d_out]));
    Module {
        factors: vec![
            tensor(format!("{path}.lowrank_a.weight"), &transposed(&a)),
            tensor(format!("{path}.lowrank_b.weight"), &transposed(&b)),
        ],
        dense: product(&a, &b),
        representation: Representation::low_rank(rank),
        a,
    }
}

/// `A` of another module, with a core between.
fn sharing(path: &str, d_out: usize, owner: &str, a: &Matrix) -> Module {
    let (core, b) = (random(path, [a[0].len(), 5]), random(&format!("{path} b"), [5, d_out]));
    Module {
        factors: vec![
            tensor(format!("{path}.lowrank_c.weight"), &transposed(&core)),
            tensor(format!("{path}.lowrank_b.weight"), &transposed(&b)),
        ],
        dense: product(&product(a, &core), &b),
        representation: Representation::LowRank {
            ranks: vec![a[0].len(), 5],
            a_of: Some(owner.into()),
            b_of: None,
            pivots: false,
        },
        a: a.clone(),
    }
}

/// Two cores over digits of the sides, the last digits split off by `[m, n]`.
fn tensor_train(path: &str, [d_in, d_out]: [usize; 2], [m, n]: [usize; 2]) -> Module {
    let (rank, outer) = (3, [d_in.div_ceil(m), d_out.div_ceil(n)]);
    let first = random(path, [outer[0] * outer[1], rank]);
    let second = random(&format!("{path} b"), [rank, m * n]);
    let entry = |i: usize, j: usize| -> f32 {
        let row = &first[(i / m) * outer[1] + j / n];
        (0..rank).map(|r| row[r] * second[r][(i % m) * n + j % n]).sum()
    };
    let cores = vec![[1, outer[0], outer[1], rank], [rank, m, n, 1]];
    Module {
        factors: vec![
            HostTensor::new(format!("{path}.tt_cores.0"), cores[0], first.concat()),
            HostTensor::new(format!("{path}.tt_cores.1"), cores[1], second.concat()),
        ],
        dense: (0..d_in).map(|i| (0..d_out).map(|j| entry(i, j)).collect()).collect(),
        representation: Representation::TensorTrain { cores },
        a: Vec::new(),
    }
}

/// Which parameters are trained.
#[derive(Default)]
struct Flags(Vec<(String, bool)>);

impl<B: Backend> ParamVisitor<B> for Flags {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        self.0.push((at.key(), param.is_require_grad()));
    }
}

fn config_of(dir: &Path) -> Map<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
}

/// Two copies of a fixture with these modules replaced: dense ones, and factors. `by_rows` tells which are stored as
/// `[d_input, d_output]`.
fn write(
    name: &str,
    modules: BTreeMap<String, Module>,
    by_rows: impl Fn(&str) -> bool,
) -> (tempfile::TempDir, tempfile::TempDir) {
    let source = fixture(name);
    let checkpoint = Checkpoint::open(&source).unwrap();
    let rest: Vec<HostTensor<'static>> = checkpoint
        .names()
        .filter(|n| !modules.contains_key(n.strip_suffix(".weight").unwrap_or(n)))
        .map(|n| {
            HostTensor::new(n, checkpoint.info(n).unwrap().shape.clone(), checkpoint.read_f32(n).unwrap())
        })
        .collect();
    let (mut dense, mut factored, mut section) =
        (rest.clone(), rest, LowrankSection { version: 1, ..Default::default() });
    for (path, module) in modules {
        let stored = format!("{path}.weight");
        let shape = checkpoint.info(&stored).unwrap().shape.clone();
        let matrix = if by_rows(&path) { module.dense } else { transposed(&module.dense) };
        assert_eq!([matrix.len(), matrix[0].len()], shape[..], "{path}");
        dense.push(tensor(stored, &matrix));
        factored.extend(module.factors);
        section.modules.insert(path, ModuleEntry::new(module.representation));
    }
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut config = config_of(&source);
    for (folder, tensors) in folders.iter().zip([dense, factored]) {
        write_safetensors(folder.path().join("model.safetensors"), tensors, FloatType::F32, &BTreeMap::new())
            .unwrap();
        let text = serde_json::to_string(&config).unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        section.write(&mut config).unwrap();
    }
    folders.into()
}

fn logits<B: Kernels>(folder: &Path, ids: &[u32]) -> (Vec<f32>, Vec<u32>) {
    let device = Default::default();
    let config = DecoderConfig::read(folder).unwrap();
    let model = Decoder::<B>::load(folder, config, WeightType::F32, &device).unwrap();
    let none = AdapterSet::empty();
    let batch = model.batch(Tokens::new(ids, &[ids.len()]), &device).unwrap();
    let all = model.forward(&batch, Rows::All, Run::eval(&none));
    let options = GenerationOptions { max_new_tokens: 8, ignore_eos: true, ..Default::default() };
    let new = model.generate(&[ids.to_vec()], &options, &none, &device, |_, _| true).unwrap();
    (values(all), new[0].ids.clone())
}

#[test]
fn a_decoder_of_factors_equals_the_dense_one() {
    let layer = |i: usize, name: &str| format!("model.layers.{i}.{name}");
    let q = low_rank(&layer(0, "self_attn.q_proj"), [32, 32], 6);
    let shared = sharing(&layer(1, "self_attn.q_proj"), 32, &layer(0, "self_attn.q_proj"), &q.a);
    let modules = BTreeMap::from([
        (layer(0, "self_attn.q_proj"), q),
        (layer(1, "self_attn.q_proj"), shared),
        (layer(0, "mlp.gate_proj"), tensor_train(&layer(0, "mlp.gate_proj"), [32, 56], [4, 7])),
        // Both sides padded: 32 to 33, 56 to 60.
        (layer(1, "mlp.down_proj"), tensor_train(&layer(1, "mlp.down_proj"), [56, 32], [15, 11])),
        ("model.embed_tokens".into(), low_rank("model.embed_tokens", [363, 32], 9)),
    ]);
    let (dense, factored) = write("llama-tied", modules, |path| path.ends_with("embed_tokens"));
    let ids = [1, 285, 270, 276, 263, 276, 271, 350, 262, 362];
    let (expect, expect_new) = logits::<burn_flex::Flex>(dense.path(), &ids);
    let (got, new) = logits::<burn_flex::Flex>(factored.path(), &ids);
    assert_close("flex", &got, &expect, TOLERANCE);
    assert_eq!(new, expect_new);
    assert_close("ndarray", &logits::<burn_ndarray::NdArray>(factored.path(), &ids).0, &expect, TOLERANCE);
}

#[test]
fn an_embedding_in_tensor_train_form_looks_up_rows_and_ties_the_head() {
    let embedding = tensor_train("wte", [317, 32], [20, 8]);
    let modules = BTreeMap::from([
        ("wte".to_string(), embedding),
        ("h.1.attn.c_attn".to_string(), low_rank("h.1.attn.c_attn", [32, 96], 7)),
    ]);
    // GPT-2's Conv1D lies as `[d_input, d_output]`, its factors as all others; the names have no prefix.
    let (dense, factored) = write("gpt2", modules, |_| true);
    let ids = [316, 0, 17, 300, 19, 20, 20];
    let (expect, expect_new) = logits::<burn_flex::Flex>(dense.path(), &ids);
    let (got, new) = logits::<burn_flex::Flex>(factored.path(), &ids);
    assert_close("gpt2", &got, &expect, TOLERANCE);
    assert_eq!(new, expect_new);
}

#[test]
fn an_encoder_of_factors_is_saved_as_factors() {
    type B = burn_flex::Flex;
    let layer = |i: usize, name: &str| format!("bert.encoder.layer.{i}.{name}");
    let (q0, q1) = (layer(0, "attention.self.query"), layer(1, "attention.self.query"));
    let q = low_rank(&q0, [32, 32], 6);
    let shared = sharing(&q1, 32, &q0, &q.a);
    let up = layer(1, "intermediate.dense");
    let shape =
        Checkpoint::open(fixture("bert-cls")).unwrap().info(&format!("{up}.weight")).unwrap().shape.clone();
    let modules = BTreeMap::from([
        (q0, q),
        (q1.clone(), shared),
        (up.clone(), tensor_train(&up, [shape[1], shape[0]], [4, 4])),
        ("classifier".into(), low_rank("classifier", [32, 3], 2)),
    ]);
    let (dense, factored) = write("bert-cls", modules, |_| false);
    let cases = golden("bert-cls").cases;
    let run = |folder: &Path| {
        let config = EncoderConfig::read(folder).unwrap();
        let model = Classifier::<B>::load(folder, config, 0, &Default::default()).unwrap();
        let batch = pack::<B>(&model, &cases.iter().collect::<Vec<_>>());
        (values(model.forward(&batch, Run::eval(&AdapterSet::empty()))), model)
    };
    let (expect, _) = run(dense.path());
    let (got, model) = run(factored.path());
    assert_close("bert-cls", &got, &expect, TOLERANCE);
    let saved = tempfile::tempdir().unwrap();
    model.save(saved.path(), factored.path(), FloatType::F32).unwrap();
    assert_eq!(run(saved.path()).0, got, "saved and loaded again");
    let names: Vec<String> = Checkpoint::open(saved.path()).unwrap().names().map(str::to_string).collect();
    let before: Vec<String> =
        Checkpoint::open(factored.path()).unwrap().names().map(str::to_string).collect();
    assert_eq!(names, before, "the shared factor once, no dense weight");
    // What several modules use stays as it is for all of them.
    let config = EncoderConfig::read(factored.path()).unwrap();
    let trained = Classifier::<Autodiff<B>>::load(factored.path(), config, 0, &Default::default()).unwrap();
    let mut flags = Flags::default();
    trained.with_trainable(Trainable::All).visit_params(&mut flags);
    let frozen: Vec<&str> =
        flags.0.iter().filter(|(_, trains)| !trains).map(|(key, _)| key.as_str()).collect();
    assert_eq!(frozen, [format!("{}.lowrank_a.weight", layer(0, "attention.self.query"))]);
    // Other labels: the factored head goes, the rest stays.
    let config =
        ClassifierConfig::read(factored.path()).unwrap().with_labels(vec!["a".into(), "b".into()], false);
    let model = Classifier::<B>::load(factored.path(), config, 0, &Default::default()).unwrap();
    assert!(model.newly_initialized().iter().any(|key| key == "classifier.weight"));
    model.save(saved.path(), factored.path(), FloatType::F32).unwrap();
    assert!(!config_of(saved.path())["lowrank"]["modules"].as_object().unwrap().contains_key("classifier"));
}

#[rstest]
#[case("model.layers.9.self_attn.q_proj", Representation::low_rank(2), "unknown module")]
#[case("model.layers.0.self_attn.q_proj", Representation::low_rank(0), "expected one or two")]
#[case("model.layers.0.self_attn.q_proj", Representation::low_rank(2), "missing")]
#[case("model.norm", Representation::low_rank(2), "unknown module")]
#[case(
    "model.layers.0.self_attn.q_proj",
    Representation::LowRank { ranks: vec![2], a_of: Some("model.elsewhere".into()), b_of: None, pivots: false },
    "unknown module 'model.elsewhere'"
)]
fn sections_that_do_not_fit_are_refused(
    #[case] path: &str,
    #[case] representation: Representation,
    #[case] part: &str,
) {
    let mut raw = config_of(&fixture("llama"));
    let mut section = LowrankSection { version: 1, ..Default::default() };
    section.modules.insert(path.into(), ModuleEntry::new(representation));
    section.write(&mut raw).unwrap();
    let config = DecoderConfig::parse(raw).unwrap();
    let error =
        Decoder::<burn_flex::Flex>::load(&fixture("llama"), config, WeightType::F32, &Default::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
    assert_eq!(error.lines().count(), 1);
}
