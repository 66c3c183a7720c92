//! Compression from folder to folder, on the fixtures: what is written is what is reported.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lowrank_checkpoint::{
    Checkpoint, Dtype, FloatType, HostTensor, StreamOptions, StreamWriter, TensorPlan, write_safetensors,
};
use lowrank_compress::{
    Allocation, Amount, CompressError, Method, Of, Options, Progress, Report, Sides, Weighting, Weightings,
    compress,
};
use lowrank_factor::Mat;
use lowrank_factor::matrix::from_row_major;
use lowrank_spec::names::is_buffer;
use lowrank_spec::{LowrankSection, Pattern, Representation, Targets};
use rstest::rstest;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn ratio(ratio: f64) -> Amount {
    Amount::Ratio { ratio, of: Of::Layers }
}

fn matrix(checkpoint: &Checkpoint, key: &str) -> Mat<f32> {
    let shape = &checkpoint.info(key).unwrap().shape;
    from_row_major(&checkpoint.read_f32(key).unwrap(), shape[0], shape[1]).unwrap().to_owned()
}

/// The weight `[d_output, d_input]` that the output stands for, by the format's own words.
fn rebuilt(folder: &Path, module: &str) -> Mat<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let section = LowrankSection::of_config(config.as_object().unwrap()).unwrap();
    match &section.modules[module].representation {
        Representation::LowRank { a_of, b_of, .. } => {
            let of = |owner: &Option<String>| owner.clone().unwrap_or(module.into());
            let a = matrix(&checkpoint, &format!("{}.lowrank_a.weight", of(a_of)));
            let b = matrix(&checkpoint, &format!("{}.lowrank_b.weight", of(b_of)));
            let core = format!("{module}.lowrank_c.weight");
            if checkpoint.contains(&core) { b * matrix(&checkpoint, &core) * a } else { b * a }
        }
        Representation::TensorTrain { cores } => {
            let values: Vec<Vec<f32>> = (0..cores.len())
                .map(|k| checkpoint.read_f32(&format!("{module}.tt_cores.{k}")).unwrap())
                .collect();
            let (rows, columns): (usize, usize) =
                (cores.iter().map(|c| c[1]).product(), cores.iter().map(|c| c[2]).product());
            let digits = |mut index: usize, axis: usize| {
                let mut out = vec![0; cores.len()];
                for (k, core) in cores.iter().enumerate().rev() {
                    out[k] = index % core[axis];
                    index /= core[axis];
                }
                out
            };
            let entry = |j: usize, i: usize| {
                let (i, j) = (digits(i, 1), digits(j, 2));
                let mut row = vec![1.0_f32];
                for (k, &[left, m, n, right]) in cores.iter().enumerate() {
                    let at = |a: usize, b: usize| values[k][((a * m + i[k]) * n + j[k]) * right + b];
                    row = (0..right).map(|b| (0..left).map(|a| row[a] * at(a, b)).sum()).collect();
                }
                row[0]
            };
            Mat::from_fn(columns, rows, entry)
        }
        Representation::Sum { .. } => panic!("'{module}' is a sum, which these methods do not write"),
        Representation::Dense => matrix(&checkpoint, &format!("{module}.weight")),
    }
}

/// `[d_output, d_input]` of the dense input.
fn dense(folder: &Path, module: &str, is_in_out: bool) -> Mat<f32> {
    let stored = matrix(&Checkpoint::open(folder).unwrap(), &format!("{module}.weight"));
    if is_in_out { stored.transpose().to_owned() } else { stored }
}

fn run(model: &str, options: &Options) -> (tempfile::TempDir, PathBuf, Report) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let report = compress(&fixture(model), &out, options, None, &()).unwrap();
    (dir, out, report)
}

#[rstest]
#[case("llama", Method::Svd, false)]
#[case("llama", Method::Tt, false)]
#[case("llama", Method::Auto, false)]
#[case("bert-cls", Method::Svd, false)]
#[case("distilbert-cls", Method::Auto, false)]
#[case("gpt-neox", Method::Svd, false)]
#[case("gpt2", Method::Svd, true)]
#[case("gpt2", Method::Tt, true)]
fn what_is_written_has_the_error_that_is_reported(
    #[case] model: &str,
    #[case] method: Method,
    #[case] is_in_out: bool,
    #[values(Allocation::Budget, Allocation::Uniform)] allocation: Allocation,
) {
    let options = Options { allocation, ..Options::new(method, ratio(0.3)) };
    let (_dir, out, report) = run(model, &options);
    assert!(report.layers.ratio >= 0.3 && report.layers.ratio < 0.45, "{}", report.layers.ratio);
    assert!(report.modules.iter().any(|m| m.kind != "dense"));
    for module in report.modules.iter().filter(|m| m.kind != "dense") {
        let original = dense(&fixture(model), &module.module, is_in_out);
        let difference =
            rebuilt(&out, &module.module).subrows(0, original.nrows()).subcols(0, original.ncols())
                - &original;
        let error = f64::from(difference.norm_l2()) / f64::from(original.norm_l2());
        assert!((error - module.error).abs() < 1e-4, "{}: {error}, said {}", module.module, module.error);
    }
    let before: usize = parameters(&fixture(model));
    assert_eq!((report.model.before, report.model.after), (before as u64, parameters(&out) as u64));
    assert_eq!(report.file.after, fs::metadata(out.join("model.safetensors")).unwrap().len());
    assert!(out.join("tokenizer.json").is_file() && !out.join("scratch").exists());
}

fn parameters(folder: &Path) -> usize {
    let checkpoint = Checkpoint::open(folder).unwrap();
    checkpoint
        .names()
        .filter(|name| !is_buffer(name))
        .map(|n| checkpoint.info(n).unwrap())
        .filter(|i| i.dtype.is_float())
        .map(|i| i.numel())
        .sum()
}

#[rstest]
#[case(Sides::One)]
#[case(Sides::Both)]
#[case(Sides::Best)]
fn shared_factors_are_stored_once(#[case] sides: Sides) {
    let options = Options { sides, ..Options::new(Method::Shared, ratio(0.3)) };
    let (_dir, out, report) = run("llama", &options);
    assert_eq!(report.model.after as usize, parameters(&out));
    assert!(report.layers.ratio >= 0.29, "{}", report.layers.ratio);
    // The error of a group is that of all its weights together.
    let mut groups: BTreeMap<String, (f64, f64, f64)> = BTreeMap::new();
    for module in report.modules.iter().filter(|m| m.kind != "dense") {
        let original = dense(&fixture("llama"), &module.module, false);
        let difference = rebuilt(&out, &module.module) - &original;
        let group = groups.entry(module.module.replace(char::is_numeric, "")).or_default();
        group.0 += f64::from(difference.norm_l2()).powi(2);
        group.1 += f64::from(original.norm_l2()).powi(2);
        group.2 = module.error;
    }
    assert!(!groups.is_empty());
    for (name, (missed, all, said)) in groups {
        assert!(((missed / all).sqrt() - said).abs() < 1e-4, "{name}: {} said {said}", (missed / all).sqrt());
    }
}

#[test]
fn ratios_count_what_they_are_of() {
    for (of, pick) in [
        (Of::Layers, (|r: &Report| r.layers.ratio) as fn(&Report) -> f64),
        (Of::Model, |r| r.model.ratio),
        (Of::File, |r| r.file.ratio),
    ] {
        let (_dir, _, report) = run("llama", &Options::new(Method::Svd, Amount::Ratio { ratio: 0.15, of }));
        let reached = pick(&report);
        assert!((0.15..0.18).contains(&reached), "{of:?}: {reached}");
    }
    // Half precision is half the file already, so nothing need be removed.
    let options = Options {
        dtype: Some(FloatType::BF16),
        ..Options::new(Method::Svd, Amount::Ratio { ratio: 0.6, of: Of::File })
    };
    let (_dir, out, report) = run("llama", &options);
    assert!((0.6..0.63).contains(&report.file.ratio), "{}", report.file.ratio);
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert!(checkpoint.names().all(|name| checkpoint.info(name).unwrap().dtype == Dtype::BF16));
}

/// The same product in `r²` numbers less.
#[rstest]
#[case(None, 1e-5)]
#[case(Some(FloatType::BF16), 2e-2)]
fn pivots_store_the_same_product_in_less(#[case] dtype: Option<FloatType>, #[case] tolerance: f32) {
    let amount = Amount::Ranks(vec![("q_proj".into(), 14), ("0.mlp.up_proj".into(), 20)]);
    let plain = Options { dtype, ..Options::new(Method::Svd, amount) };
    let pivoted = Options { pivots: true, ..plain.clone() };
    let ((_a, whole, before), (_b, out, after)) = (run("llama", &plain), run("llama", &pivoted));
    assert_eq!(before.layers.after - after.layers.after, 14 * 14 * 2 + 20 * 20);
    assert!(after.file.after < before.file.after);
    assert!(after.modules.iter().all(|module| module.error.is_finite()));
    let size: u64 = fs::metadata(out.join("model.safetensors")).unwrap().len();
    assert_eq!(size, after.file.after, "the report has the size of the file");
    for module in &after.modules {
        let (a, b) = (rebuilt(&whole, &module.module), rebuilt(&out, &module.module));
        let error = (&a - &b).norm_l2() / a.norm_l2();
        assert!(error < tolerance, "{}: {error}", module.module);
    }
    let checkpoint = Checkpoint::open(&out).unwrap();
    let b = checkpoint.info("model.layers.0.self_attn.q_proj.lowrank_b.weight").unwrap();
    assert_eq!(
        b.shape,
        Checkpoint::open(&whole)
            .unwrap()
            .info("model.layers.0.self_attn.q_proj.lowrank_b.weight")
            .unwrap()
            .shape
    );
    assert!(!checkpoint.names().any(|name| name.ends_with("lowrank_pivots")));
}

/// At full rank, so that it is nothing but rounding.
#[test]
fn the_error_with_pivots_has_the_rounding_of_what_is_stored() {
    let amount = Amount::Ranks(vec![("up_proj".into(), 32), ("gate_proj".into(), 32)]);
    let exact = Options { pivots: true, always_factor: true, ..Options::new(Method::Svd, amount) };
    let rounded = Options { dtype: Some(FloatType::BF16), ..exact.clone() };
    let ((_a, _, before), (_b, out, after)) = (run("llama", &exact), run("llama", &rounded));
    let model = Checkpoint::open(fixture("llama")).unwrap();
    for (before, after) in before.modules.iter().zip(&after.modules) {
        let original = matrix(&model, &format!("{}.weight", after.module));
        let found = (&rebuilt(&out, &after.module) - &original).norm_l2() / original.norm_l2();
        let said = after.error as f32;
        assert!(before.error < 1e-5 && said > 1e-3, "{}: {} {said}", after.module, before.error);
        assert!((found / said - 1.0).abs() < 0.1, "{}: {found} said {said}", after.module);
    }
}

#[test]
fn a_weight_of_zeros_takes_pivots() {
    let (model, zeros) = (Checkpoint::open(fixture("llama")).unwrap(), "model.layers.0.mlp.gate_proj");
    let tensor = |name: &str| {
        let mut values = model.read_f32(name).unwrap();
        if name == format!("{zeros}.weight") {
            values.fill(0.0);
        }
        HostTensor::new(name, model.info(name).unwrap().shape.clone(), values)
    };
    let dir = tempfile::tempdir().unwrap();
    let tensors = model.names().map(tensor).collect::<Vec<_>>();
    let path = dir.path().join("model.safetensors");
    write_safetensors(path, tensors, FloatType::BF16, &BTreeMap::new()).unwrap();
    fs::copy(fixture("llama").join("config.json"), dir.path().join("config.json")).unwrap();
    let amount = Amount::Ranks(vec![("gate_proj".into(), 8)]);
    let options = Options { pivots: true, ..Options::new(Method::Svd, amount) };
    let elsewhere = tempfile::tempdir().unwrap();
    let out = elsewhere.path().join("out");
    let report = compress(dir.path(), &out, &options, None, &()).unwrap();
    assert_eq!((report.modules[0].module.as_str(), report.modules[0].error), (zeros, 0.0));
    assert_eq!(rebuilt(&out, zeros).norm_l2(), 0.0);
}

#[test]
fn a_budget_with_pivots_has_higher_ranks() {
    for (allocation, of) in
        [(Allocation::Budget, Of::Layers), (Allocation::Uniform, Of::Layers), (Allocation::Budget, Of::File)]
    {
        let plain = Options { allocation, ..Options::new(Method::Svd, Amount::Ratio { ratio: 0.2, of }) };
        let pivoted = Options { pivots: true, ..plain.clone() };
        let ((_a, _, before), (_b, _, after)) = (run("llama", &plain), run("llama", &pivoted));
        let loss = |report: &Report| report.modules.iter().map(|m| m.error * m.error).sum::<f64>();
        // Of so small a model's file, masks and their headers are a large part.
        assert!(
            of == Of::File || loss(&after) < 0.8 * loss(&before),
            "{allocation:?} {of:?}: {} {}",
            loss(&after),
            loss(&before)
        );
        let ratio = if of == Of::File { after.file.ratio } else { after.layers.ratio };
        assert!((0.2..0.24).contains(&ratio), "{ratio}");
    }
    for refused in [
        Options { pivots: true, ..Options::new(Method::Tt, ratio(0.3)) },
        Options { pivots: true, ..Options::new(Method::Shared, ratio(0.3)) },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = compress(&fixture("llama"), &dir.path().join("out"), &refused, None, &()).unwrap_err();
        assert!(error.to_string().contains("pivots apply to pairs"), "{error}");
    }
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ([2usize, 2], vec![0b0101u8], None),
        ([2, 2], vec![0b0111], Some("3 pivots among 4 outputs; expected 2")),
        ([2, 2], vec![0b1_0001], Some("among 4 outputs")),
        ([2, 2], vec![5, 0], Some("expected U8 [1]")),
    ];
    for (i, (shape, mask, fault)) in cases.into_iter().enumerate() {
        let folder = dir.path().join(i.to_string());
        fs::create_dir(&folder).unwrap();
        let plan = vec![
            TensorPlan::new("m.lowrank_b.weight", shape, Dtype::F32),
            TensorPlan::new("m.lowrank_pivots", [mask.len()], Dtype::U8),
        ];
        let mut writer = StreamWriter::create(&folder, plan, StreamOptions::default()).unwrap();
        writer.write_f32("m.lowrank_b.weight", &[1.0, 2.0, 3.0, 4.0]).unwrap();
        writer.write_bytes("m.lowrank_pivots", &mask).unwrap();
        writer.finish().unwrap();
        match (Checkpoint::open(&folder), fault) {
            (Ok(checkpoint), None) => {
                let b = checkpoint.read_f32("m.lowrank_b.weight").unwrap();
                assert_eq!(b, [1.0, 0.0, 1.0, 2.0, 0.0, 1.0, 3.0, 4.0]);
            }
            (Err(error), Some(fault)) => assert!(error.to_string().contains(fault), "{error}"),
            (result, _) => panic!("case {i}: {result:?}"),
        }
    }
}

#[test]
fn a_budget_loses_less_than_uniform_ranks() {
    let loss = |allocation| {
        let options = Options { allocation, ..Options::new(Method::Svd, ratio(0.3)) };
        let (_dir, _, report) = run("llama", &options);
        report.modules.iter().map(|m| m.error * m.error).sum::<f64>()
    };
    assert!(loss(Allocation::Budget) < loss(Allocation::Uniform));
}

#[test]
fn ranks_by_name_touch_nothing_else() {
    let options =
        Options::new(Method::Svd, Amount::Ranks(vec![("q_proj".into(), 5), ("0.mlp.up_proj".into(), 7)]));
    let (_dir, _, report) = run("llama", &options);
    let ranks: Vec<(&str, &[usize])> =
        report.modules.iter().map(|m| (m.module.as_str(), m.ranks.as_slice())).collect();
    assert_eq!(
        ranks,
        [
            ("model.layers.0.mlp.up_proj", &[7][..]),
            ("model.layers.0.self_attn.q_proj", &[5]),
            ("model.layers.1.self_attn.q_proj", &[5]),
        ]
    );
}

/// Fused experts are read one by one; a layer of which none is compressed is copied as it is stored.
#[rstest]
fn layers_of_fused_experts_stay_fused(#[values("gpt-oss", "quantised-mxfp4")] model: &str) {
    let ranks = [("q_proj".into(), 5), ("0.mlp.experts.1.up_proj".into(), 3)];
    let (_dir, out, report) = run(model, &Options::new(Method::Svd, Amount::Ranks(ranks.to_vec())));
    assert_eq!(report.dense, 0);
    let [source, written] = [fixture(model), out].map(|folder| Checkpoint::open(folder).unwrap());
    let none = BTreeSet::new();
    let fused: Vec<&str> =
        source.unchanged(&none).filter(|name| name.starts_with("model.layers.1.mlp.experts.")).collect();
    assert_eq!(fused.len(), if model == "gpt-oss" { 4 } else { 6 });
    let stored: BTreeSet<&str> = written.unchanged(&none).collect();
    for name in fused {
        assert!(stored.contains(name), "{name}");
        assert_eq!(source.info(name), written.info(name), "{name}");
        assert_eq!(source.bytes(name).unwrap(), written.bytes(name).unwrap(), "{name}");
    }
    for name in source.names().filter(|name| name.starts_with("model.layers.0.mlp.experts.")) {
        let is_kept = name != "model.layers.0.mlp.experts.1.up_proj.weight";
        assert_eq!(stored.contains(name), is_kept, "{name}");
    }
}

#[test]
fn a_layer_where_factors_do_not_pay_stays_dense_unless_told() {
    let amount = Amount::Ranks(vec![("q_proj".into(), 32)]);
    let (_dir, out, report) = run("llama", &Options::new(Method::Svd, amount.clone()));
    assert_eq!((report.dense, report.model.ratio), (2, 0.0));
    assert!(Checkpoint::open(&out).unwrap().contains("model.layers.0.self_attn.q_proj.weight"));
    let options = Options { always_factor: true, ..Options::new(Method::Svd, amount) };
    let (_dir, _, report) = run("llama", &options);
    assert_eq!(report.dense, 0);
    assert!(report.modules.iter().all(|m| m.error < 1e-3));
}

#[test]
fn an_embedding_can_be_named() {
    for method in [Method::Svd, Method::Tt] {
        let targets = Some(Targets::new(Pattern::parse("embed_tokens")));
        let (_dir, out, report) = run("llama", &Options { targets, ..Options::new(method, ratio(0.4)) });
        assert_eq!(report.modules.len(), 1);
        let original = dense(&fixture("llama"), "model.embed_tokens", true);
        let whole = rebuilt(&out, "model.embed_tokens");
        let difference = whole.subrows(0, original.nrows()).subcols(0, original.ncols()) - &original;
        let error = f64::from(difference.norm_l2()) / f64::from(original.norm_l2());
        assert!((error - report.modules[0].error).abs() < 1e-4);
    }
}

#[rstest]
#[case(Amount::Energy(0.9))]
#[case(Amount::Error(0.3))]
fn energy_and_error_are_met(
    #[case] amount: Amount,
    #[values(Method::Svd, Method::Tt, Method::Auto, Method::Shared)] method: Method,
) {
    let (_dir, _, report) = run("llama", &Options::new(method, amount.clone()));
    let allowed = if let Amount::Energy(energy) = amount { (1.0 - energy).sqrt() } else { 0.3 };
    assert!(report.modules.iter().all(|m| m.error <= allowed + 1e-6));
}

fn input_error(options: &Options, part: &str) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let error = compress(&fixture("llama"), &out, options, None, &()).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing stays behind");
}

#[test]
fn bad_options_leave_nothing_behind() {
    let svd = |amount| Options::new(Method::Svd, amount);
    for bad in [0.0, 1.0, -0.5, f64::NAN] {
        input_error(&svd(ratio(bad)), "ratio = ");
    }
    input_error(
        &svd(Amount::Ranks(vec![("q_porj".into(), 3)])),
        "no layer matches 'q_porj'; nearest: 'q_proj'",
    );
    input_error(&svd(Amount::Ranks(vec![("q_proj".into(), 0)])), "q_proj=0");
    input_error(&svd(Amount::Ratio { ratio: 0.99, of: Of::Model }), "lower --ratio");
    let uniform = Options { allocation: Allocation::Uniform, ..svd(ratio(0.999)) };
    input_error(&uniform, "lower --ratio");
    let targets = Some(Targets::new(Pattern::parse("nothing")));
    input_error(&Options { targets, ..svd(ratio(0.2)) }, "no layer matches");
    input_error(&Options { memory: Some(10), ..svd(ratio(0.2)) }, "memory = 10 is out of range");
    input_error(&Options { tt_order: 1, ..Options::new(Method::Tt, ratio(0.2)) }, "tt-order = 1");
}

#[test]
fn the_input_is_never_touched() {
    let model = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("llama")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.path().join(path.file_name().unwrap())).unwrap();
    }
    let options = Options::new(Method::Svd, ratio(0.2));
    for out in [model.path().to_owned(), model.path().join("inside"), model.path().join("inside/../x")] {
        assert!(compress(model.path(), &out, &options, None, &()).is_err());
    }
    let full = tempfile::tempdir().unwrap();
    fs::write(full.path().join("mine"), "").unwrap();
    let error = compress(model.path(), full.path(), &options, None, &()).unwrap_err();
    assert!(matches!(error, CompressError::Checkpoint(_)), "{error}");
    // A compressed model is not compressed again.
    let out = full.path().join("out");
    compress(model.path(), &out, &options, None, &()).unwrap();
    let error = compress(&out, &full.path().join("again"), &options, None, &()).unwrap_err().to_string();
    assert!(error.contains("compressed already"), "{error}");
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{\"model_type\": \"llama\"}").unwrap();
    let mut values = vec![1.0; 64];
    values[9] = f32::NAN;
    let name = "model.layers.3.self_attn.q_proj.weight";
    let tensor = HostTensor::new(name, [8, 8], values);
    write_safetensors(model.join("model.safetensors"), vec![tensor], FloatType::F32, &BTreeMap::new())
        .unwrap();
    let error = compress(&model, &dir.path().join("out"), &Options::new(Method::Svd, ratio(0.2)), None, &());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("'model.layers.3.self_attn.q_proj'") && error.contains("row 1, column 1"),
        "{error}"
    );
}

/// Ends the process's job in the middle.
struct Interrupt(std::sync::atomic::AtomicUsize);

impl Progress for Interrupt {
    fn done(&self, _module: &str, error: Option<f64>, _units: u64) {
        let count = self.0.fetch_add(usize::from(error.is_some()), std::sync::atomic::Ordering::SeqCst);
        assert!(count < 4, "interrupted");
    }
}

#[rstest]
#[case(Allocation::Budget)]
#[case(Allocation::Uniform)]
fn an_interrupted_job_resumes_to_the_same_files(#[case] allocation: Allocation) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    let options = Options { allocation, ..Options::new(Method::Svd, ratio(0.3)) };
    let expected = compress(&fixture("llama"), &whole, &options, None, &()).unwrap();
    // A panic drops the guards as a return does; a killed process would leave as much.
    let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let options = Options { resume: true, ..options.clone() };
        let _ = compress(&fixture("llama"), &out, &options, None, &Interrupt(Default::default()));
    }));
    assert!(attempt.is_err() && !out.exists());
    assert!(dir.path().join(".out.partial/scratch").is_dir(), "what was done is kept");
    let options = Options { resume: true, ..options };
    let report = compress(&fixture("llama"), &out, &options, None, &()).unwrap();
    assert_eq!(report, expected);
    for name in ["model.safetensors", "config.json"] {
        assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(whole.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_job_is_not_resumed_under_another_calibration() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let options = Options { resume: true, ..Options::new(Method::Fwsvd, ratio(0.3)) };
    let weightings = |factor: f32| -> Weightings {
        let width = |path: &str| if path.ends_with("down_proj") { 56 } else { 32 };
        let kinds = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let kinds = kinds.into_iter().chain(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
        let paths = kinds.flat_map(|kind| [0, 1].map(|layer| format!("model.layers.{layer}.{kind}")));
        paths.map(|path| (path.clone(), Weighting::Channels(vec![factor; width(&path)]))).collect()
    };
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut given = weightings(1.0);
        compress(&fixture("llama"), &out, &options, Some(&mut given), &Interrupt(Default::default()))
    }));
    assert!(dir.path().join(".out.partial").is_dir());
    let error = compress(&fixture("llama"), &out, &options, Some(&mut weightings(2.0)), &()).unwrap_err();
    assert!(error.to_string().contains("other options; start again without --resume"), "{error}");
    let error = compress(&fixture("llama"), &out, &options, None, &()).unwrap_err();
    assert!(error.to_string().contains("other options"), "{error}");
    compress(&fixture("llama"), &out, &options, Some(&mut weightings(1.0)), &()).unwrap();
}
