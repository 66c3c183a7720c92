//! Trainings beside PyTorch: the losses of ten steps, the weights after them, and the gradients of DPO.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use lowrank_adapters::peft::{AdapterFolder, PeftConfig};
use lowrank_adapters::{Adapter, AdapterSet, Mode};
use lowrank_checkpoint::Checkpoint;
use lowrank_data::glue::{Label, Metric};
use lowrank_data::pack::{BatchPlan, BatchSize, EncodedDataset};
use lowrank_data::rows::{TokenPair, TokenRow};
use lowrank_data::tokenize::Encoded;
use lowrank_models::config::DecoderDropouts;
use lowrank_models::params::WeightType;
use lowrank_models::{Adaptable, Classifier, Decoder, DecoderConfig, EncoderConfig, Parameters, Trainable};
use lowrank_spec::HostTensor;
use lowrank_tests::{Tested, fixture};
use lowrank_train::{
    Alone, Classification, DevSet, DpoConfig, FineTuner, NextToken, Objective, Outcome, Preference, Shard,
    Start, StepReport, TrainConfig, TrainError, Training, TunedDecoder, Watch, train,
};
use rstest::rstest;
use serde_json::Value;

type B = Autodiff<Tested>;

fn expected(case: &str) -> Value {
    let text = std::fs::read_to_string(fixture(case).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn config(golden: &Value) -> TrainConfig {
    let number = |key: &str| golden[key].as_f64().unwrap();
    let steps = golden["steps"].as_array().unwrap();
    let rows = |micro: &Value| micro.as_array().unwrap().len();
    let micro = steps[0].as_array().unwrap();
    // Batches of unequal size are taken row by row: the step is the same.
    let (batch_size, grad_accum) = match micro.len() {
        1 => (rows(&micro[0]), 1),
        _ => (1, micro.iter().map(rows).sum()),
    };
    TrainConfig {
        lr: number("lr"),
        weight_decay: number("weight_decay"),
        max_grad_norm: number("max_grad_norm"),
        warmup_ratio: number("warmup_steps") / steps.len() as f64,
        max_steps: steps.len(),
        eval_every: steps.len(),
        batch_size,
        grad_accum,
        ..TrainConfig::default()
    }
}

/// The golden rows in such an order that the shuffled plan hands them out as the golden steps have them.
fn in_plan_order<T: Clone>(golden: &Value, config: &TrainConfig, rows: &[T]) -> Vec<T> {
    let step = |step: &Value| -> Vec<usize> {
        step.as_array().unwrap().iter().flat_map(ids).map(|row| row as usize).collect()
    };
    let steps: Vec<Vec<usize>> = golden["steps"].as_array().unwrap().iter().map(step).collect();
    let n = steps.concat().len();
    let plan = BatchPlan::new(vec![1; n], BatchSize::Rows(config.batch_size), config.grad_accum, config.seed)
        .unwrap();
    let mut ordered = vec![rows[0].clone(); n];
    for (index, step) in steps.iter().enumerate() {
        for (place, row) in plan.step(index).micro.concat().into_iter().zip(step) {
            ordered[place] = rows[*row].clone();
        }
    }
    ordered
}

#[derive(Default)]
struct Losses {
    losses: Vec<f64>,
    rates: Vec<f64>,
}

impl Watch for Losses {
    fn step(&mut self, report: &StepReport) -> lowrank_train::Result<()> {
        self.losses.push(report.loss);
        self.rates.push(report.lr);
        Ok(())
    }
}

/// Trains one process from the beginning, without checkpoints.
fn trained<O: Objective<B>>(
    config: &TrainConfig,
    objective: &O,
    model: O::Model,
) -> (lowrank_train::Result<(O::Model, Outcome)>, Losses) {
    let mut watch = Losses::default();
    let training = Training {
        config,
        checkpoints: None,
        start: Start::Fresh,
        keep_last: false,
        watch: &mut watch,
        team: &Alone,
    };
    (train(objective, model, training), watch)
}

/// Trains, compares losses and rates, and returns the model.
#[track_caller]
fn check<O: Objective<B>>(golden: &Value, config: &TrainConfig, objective: &O, model: O::Model) -> O::Model {
    let (result, watch) = trained(config, objective, model);
    let (model, outcome) = result.unwrap();
    assert_eq!(outcome.steps, config.max_steps);
    close(&watch.losses, &floats(&golden["losses"]), 5e-5);
    close(&watch.rates, &floats(&golden["learning_rates"]), 1e-12);
    model
}

#[track_caller]
fn close(got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "off by {worst:e}\n{got:?}\n{expected:?}");
}

/// Compares tensors with those of `final.safetensors`.
#[track_caller]
fn check_final<'a>(
    case: &str,
    golden: &Value,
    tensors: impl IntoIterator<Item = (String, &'a HostTensor<'static>)>,
) {
    let file = Checkpoint::open(fixture(case).join("final.safetensors")).unwrap();
    let free: Vec<&str> =
        golden["not_in_final"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut n = 0;
    for (name, tensor) in tensors {
        if free.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let Some(key) = file.names().find(|key| **key == name || key.ends_with(&format!(".{name}"))) else {
            panic!("{name} is not in the file");
        };
        let expected: Vec<f64> = file.read_f32(key).unwrap().iter().map(|&v| f64::from(v)).collect();
        let got: Vec<f64> = tensor.data.iter().map(|&v| f64::from(v)).collect();
        close(&got, &expected, 2e-4);
        n += 1;
    }
    assert_eq!(n, file.names().count());
}

fn adapter_tensors(
    set: &AdapterSet<Tested>,
    sites: &[lowrank_spec::Site],
) -> Vec<(String, HostTensor<'static>)> {
    let folder = AdapterFolder::from_set(set, sites, PeftConfig::default(), Vec::new()).unwrap();
    folder.tensors.into_iter().collect()
}

fn decoder(golden: &Value, adapter: Option<&str>) -> TunedDecoder<B> {
    let (folder, device) = (fixture(golden["base"].as_str().unwrap()), Default::default());
    let config = DecoderConfig::read(&folder).unwrap();
    let mut model = Decoder::<B>::load(&folder, config, WeightType::F32, &device).unwrap();
    let adapters = match adapter {
        Some(case) => model.load_adapter(&fixture(case), &device).unwrap(),
        None => AdapterSet::empty(),
    };
    model.choose_trained(|_, _| adapter.is_none());
    TunedDecoder::new(model, adapters)
}

fn token_rows(golden: &Value) -> Vec<TokenRow> {
    let all = golden["loss_on"] == "all";
    let row = |row: &Value| {
        let ids = ids(&row["input_ids"]);
        let learn = self::ids(&row["learn"]);
        let is_learnt = (0..ids.len()).map(|i| i > 0 && (all || learn[i] == 1)).collect();
        TokenRow { ids, is_learnt }
    };
    golden["rows"].as_array().unwrap().iter().map(row).collect()
}

#[rstest]
#[case("train-llama-lora", true, false)]
#[case("train-llama-lora", true, true)]
#[case("train-llama-completion", true, false)]
#[case("train-llama-full", false, false)]
#[case("train-llama-full", false, true)]
#[case("train-qwen2-moe-lora", true, false)]
#[case("train-qwen2-moe-lora", true, true)]
#[case("train-qwen2-moe-full", false, false)]
#[case("train-qwen2-moe-full", false, true)]
fn a_decoder_learns_as_in_pytorch(#[case] case: &str, #[case] has_adapter: bool, #[case] recompute: bool) {
    let golden = expected(case);
    let config = config(&golden);
    let rows = token_rows(&golden);
    let ordered = in_plan_order(&golden, &config, &rows);
    let objective = NextToken::new(ordered, rows, &config, recompute).unwrap();
    let model = decoder(&golden, has_adapter.then_some(case));
    let model = check(&golden, &config, &objective, model).valid();
    let tensors = if has_adapter {
        adapter_tensors(model.adapters(), model.model().sites())
    } else {
        let tensors = model.model().tensors_where(|_| true);
        tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
    };
    check_final(case, &golden, tensors.iter().map(|(name, tensor)| (name.clone(), tensor)));
}

/// The loss of a step is that before its update, so the last update shows in the evaluation alone.
#[test]
fn weights_that_diverge_in_the_last_step_are_refused() {
    let golden = expected("train-llama-full");
    let config = TrainConfig { lr: 1e38, max_steps: 1, eval_every: 1, warmup_ratio: 0.0, ..config(&golden) };
    let rows = token_rows(&golden);
    let objective = NextToken::new(rows.clone(), rows, &config, false).unwrap();
    let (result, watch) = trained(&config, &objective, decoder(&golden, None));
    let error = result.unwrap_err();
    assert!(matches!(error, TrainError::DevLoss { step: 1, .. }), "{error}");
    assert!(error.to_string().contains("after step 1; use a lower learning rate"), "{error}");
    assert_eq!(watch.losses.len(), 1);
}

/// The masks of a recomputed layer are those of its first pass.
#[test]
fn a_decoder_with_dropout_learns_the_same_with_recomputed_layers() {
    let rows: Vec<TokenRow> = (0..8)
        .map(|row| {
            let ids: Vec<u32> = (0..12).map(|i| (row * 31 + i * 7) % 300 + 3).collect();
            TokenRow { is_learnt: (0..ids.len()).map(|i| i > 0).collect(), ids }
        })
        .collect();
    let config =
        TrainConfig { max_steps: 4, eval_every: 4, batch_size: 2, lr: 1e-3, ..TrainConfig::default() };
    let losses = |recompute: bool, has_dropout: bool| {
        let (folder, device) = (fixture("gpt2"), Default::default());
        let mut decoder = DecoderConfig::read(&folder).unwrap();
        assert_eq!(decoder.dropouts.attention_output, 0.1);
        if !has_dropout {
            let none = DecoderDropouts { embeddings: 0.0, attention: 0.0, ..decoder.dropouts };
            decoder.dropouts = DecoderDropouts { attention_output: 0.0, mlp_output: 0.0, ..none };
        }
        let mut model = Decoder::<B>::load(&folder, decoder, WeightType::F32, &device).unwrap();
        model.choose_trained(|_, _| true);
        let objective = NextToken::new(rows.clone(), rows.clone(), &config, recompute).unwrap();
        let model = TunedDecoder::new(model, AdapterSet::empty());
        let (result, watch) = trained(&config, &objective, model);
        result.unwrap();
        watch.losses
    };
    let (plain, dropped) = (losses(false, false), losses(false, true));
    close(&losses(true, true), &dropped, 1e-5);
    for (a, b) in plain.iter().zip(&dropped) {
        assert!((a - b).abs() > 1e-3, "{plain:?} {dropped:?}");
    }
}

#[rstest]
#[case("train-bert", "train-bert-lora", true)]
#[case("train-bert", "train-bert-full", false)]
#[case("train-modernbert", "train-modernbert-lora", true)]
fn an_encoder_learns_as_in_pytorch(#[case] base: &str, #[case] case: &str, #[case] has_adapter: bool) {
    let golden = expected(case);
    let config = config(&golden);
    let row = |row: &Value| {
        let (ids, label) = (ids(&row["input_ids"]), row["label"].as_u64().unwrap() as u32);
        let types = row.get("token_type_ids").map_or_else(|| vec![0; ids.len()], self::ids);
        (Encoded { ids, type_ids: types }, Label::Class(label))
    };
    let rows: Vec<(Encoded, Label)> = golden["rows"].as_array().unwrap().iter().map(row).collect();
    let ordered = Arc::new(EncodedDataset::labelled(in_plan_order(&golden, &config, &rows)));
    let dev = DevSet::new(Arc::new(EncodedDataset::labelled(rows)));
    let objective = Classification::new(ordered, vec![dev], vec![Metric::Accuracy], &config).unwrap();
    let (folder, device) = (fixture(base), Default::default());
    let mut model =
        Classifier::<B>::load(&folder, EncoderConfig::read(&folder).unwrap(), 0, &device).unwrap();
    let adapters = match has_adapter {
        true => model.load_adapter(&fixture(case), &device).unwrap(),
        false => AdapterSet::empty(),
    };
    let model = model.with_trainable(if has_adapter { Trainable::Head } else { Trainable::All });
    let model = check(&golden, &config, &objective, FineTuner::new(model, adapters)).valid();
    let mut tensors =
        if has_adapter { adapter_tensors(model.adapters(), model.model().sites()) } else { Vec::new() };
    let own = if has_adapter { model.model().head_tensors() } else { model.model().tensors_where(|_| true) };
    tensors.extend(own.into_iter().map(|tensor| (tensor.name.clone(), tensor)));
    check_final(case, &golden, tensors.iter().map(|(name, tensor)| (name.clone(), tensor)));
}

#[rstest]
fn preferences_have_the_gradients_of_pytorch(
    #[values(("0", 0.0), ("0.1", 0.1))] (key, label_smoothing): (&str, f64),
    #[values(false, true)] recompute: bool,
) {
    let case = "train-llama-dpo";
    let golden = expected(case);
    let pair = |pair: &Value| {
        let side = |name: &str| {
            let (mut all, prompt) = (ids(&pair["prompt"]), ids(&pair["prompt"]).len());
            all.extend(ids(&pair[name]));
            let is_learnt = (0..all.len()).map(|i| i >= prompt).collect();
            TokenRow { ids: all, is_learnt }
        };
        TokenPair { chosen: side("chosen"), rejected: side("rejected") }
    };
    let pairs: Vec<TokenPair> = golden["pairs"].as_array().unwrap().iter().map(pair).collect();
    let config = TrainConfig { batch_size: pairs.len(), ..TrainConfig::default() };
    let loss = DpoConfig { beta: golden["beta"].as_f64().unwrap(), label_smoothing };
    let model = decoder(&golden, Some(case));
    let reference = TunedDecoder::new(model.model().valid(), AdapterSet::empty());
    let new = |reference| {
        Preference::<B>::new(pairs.clone(), pairs.clone(), reference, &config, loss, recompute).unwrap()
    };
    // An adapter that training starts from is a part of the reference.
    let itself = new(model.valid());
    let batch = itself.batches(0, Shard::WHOLE).unwrap().micro.remove(0).data;
    let (value, _) = itself.gradients(&model, &batch, Mode::train(0), 1.0).unwrap();
    close(&value.into_data().iter::<f64>().collect::<Vec<_>>(), &[std::f64::consts::LN_2], 1e-6);
    let objective = new(reference);
    let batch = objective.batches(0, Shard::WHOLE).unwrap().micro.remove(0).data;
    let (value, grads) = objective.gradients(&model, &batch, Mode::train(0), 1.0).unwrap();
    close(
        &[value.into_data().iter::<f64>().next().unwrap()],
        &[golden["smoothing"][key]["loss"].as_f64().unwrap()],
        1e-5,
    );
    let file =
        Checkpoint::open(fixture(case).join(format!("gradients-smoothing-{key}.safetensors"))).unwrap();
    let mut n = 0;
    for slot in model.adapters().slots() {
        let Adapter::Lora(lora) = &model.adapters().adapters()[slot.adapter] else { panic!("a LoRA") };
        for (name, factor) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
            let end = format!("{}.{name}.weight", slot.path);
            let key = file.names().find(|key| key.ends_with(&end)).unwrap();
            let expected: Vec<f64> = file.read_f32(key).unwrap().iter().map(|&v| f64::from(v)).collect();
            let grad = grads.get::<Tested, 2>(factor.id).unwrap();
            let grad = grad.transpose().into_data();
            close(&grad.iter::<f64>().collect::<Vec<_>>(), &expected, 2e-5);
            n += 1;
        }
    }
    assert_eq!(n, file.names().count());
}
