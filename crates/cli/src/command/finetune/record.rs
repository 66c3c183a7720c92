//! The record of a run: its settings, its evaluations, its result.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use burn::tensor::backend::Backend;
use lowrank_adapters::peft::host_values;
use lowrank_adapters::{Adapter, AdapterSet};
use lowrank_eval::MAX_ANSWER_TOKENS;
use lowrank_kernels::Precision;
use lowrank_report::run::{Evaluation, RunRecord, Status};
use lowrank_train::{Better, EvalOutput, Outcome, TrainConfig, Watch};
use serde_json::{Map, Value, json};

use super::Args;
use super::start::StartAdapter;
use crate::context::print_json;

/// Adds evaluations to the run's record as they come.
pub(super) struct RecordWatch {
    record: Arc<Mutex<RunRecord>>,
    path: PathBuf,
}

impl RecordWatch {
    pub(super) fn new(record: Arc<Mutex<RunRecord>>, path: PathBuf) -> Self {
        Self { record, path }
    }
}

impl Watch for RecordWatch {
    fn evaluation(&mut self, step: usize, _of: usize, output: &EvalOutput) -> lowrank_train::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let primary = record.train_info.metric_name.clone();
        note_evaluation(&mut record, step, output, &primary);
        Ok(record.write_atomic(&self.path)?)
    }
}

fn note_evaluation(record: &mut RunRecord, step: usize, output: &EvalOutput, primary: &str) {
    let values = &output.values;
    let info = &mut record.train_info;
    let finite = |v: &f64| v.is_finite().then_some(*v);
    // A resumed run repeats evaluations if it was killed between an evaluation and a checkpoint.
    info.evals.retain(|e| e.step < step as u64);
    info.evals.push(Evaluation {
        step: step as u64,
        metrics: values.iter().filter(|(k, _)| *k != "loss").map(|(k, v)| (k.clone(), finite(v))).collect(),
        loss: values.get("loss").and_then(finite),
        samples: output.samples.clone(),
    });
    info.steps = step as u64;
    let value = values.get(primary).and_then(finite);
    if let Some(value) = value
        && direction(primary).improves(value, info.best_metric)
    {
        info.best_metric = Some(value);
        info.best_step = Some(step as u64);
        if !output.samples.is_empty() {
            info.text = Some(output.samples.join("\n"));
        }
    }
}

fn direction(metric: &str) -> Better {
    if lowrank_report::Metric::new(metric).higher_is_better() { Better::Higher } else { Better::Lower }
}

/// Fills in the final results: the saved weights are those of the best evaluation.
pub(super) fn finish(record: &mut RunRecord, outcome: &Outcome) {
    let info = &mut record.train_info;
    info.status = Status::Done;
    info.steps = outcome.steps as u64;
    if let Some((step, value)) = outcome.best {
        info.best_metric = Some(value);
        info.best_step = Some(step as u64);
    }
    info.metric = info.best_metric;
    let mut times: Vec<f64> = outcome.step_times.iter().map(|t| t.as_secs_f64()).collect();
    let (seconds, tokens): (f64, usize) = (times.iter().sum(), outcome.step_tokens.iter().sum());
    times.sort_by(f64::total_cmp);
    info.ms_per_step_median = times.get(times.len() / 2).map(|s| s * 1e3);
    info.tokens_per_second = (seconds > 0.0).then(|| tokens as f64 / seconds);
}

pub(super) fn print_result(args: &Args, record: &RunRecord) -> Result<()> {
    let info = &record.train_info;
    if args.json {
        return print_json(&json!({
            "metric": info.metric,
            "best_metric": info.best_metric,
            "steps": info.steps,
            "ms_per_step_median": info.ms_per_step_median,
            "tokens_per_second": info.tokens_per_second,
            "trainable": info.trainable,
            "total": info.total,
            "peak_rss_mb": info.peak_rss_mb,
            "wall_s": info.wall_s,
            "metric_name": info.metric_name,
            "best_step": info.best_step,
            "dev_loss": best_loss(record),
        }));
    }
    println!(
        "{} {:.4} at step {} of {}; {} of {} parameters trained; {:.0} ms per step, {:.0} tokens/s, {:.0} MB, {:.0} s",
        info.metric_name,
        info.metric.unwrap_or(f64::NAN),
        info.best_step.unwrap_or(0),
        info.steps,
        info.trainable,
        info.total,
        info.ms_per_step_median.unwrap_or(f64::NAN),
        info.tokens_per_second.unwrap_or(f64::NAN),
        info.peak_rss_mb.unwrap_or(f64::NAN),
        info.wall_s.unwrap_or(f64::NAN),
    );
    Ok(())
}

/// Dev loss of the saved weights.
fn best_loss(record: &RunRecord) -> Option<f64> {
    let info = &record.train_info;
    let saved = |e: &&Evaluation| info.best_step.is_none_or(|best| e.step == best);
    info.evals.iter().rev().find(saved)?.loss
}

/// Every setting of the run, defaults included.
pub(super) fn settings(
    args: &Args,
    config: &TrainConfig,
    task: &str,
    start: Option<&StartAdapter>,
    default_targets: &str,
) -> Map<String, Value> {
    let mut map = match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    map.insert("model".into(), json!(args.model));
    map.insert("task".into(), json!(task));
    map.insert("method".into(), json!(args.method.name()));
    args.base.settings(&mut map);
    if args.method.adapter().is_some() {
        args.adapter.settings(&mut map);
        if args.adapter.targets.is_none() {
            map.insert("targets".into(), json!(default_targets));
        }
        // Options that are not given are taken from the start.
        if let Some(start) = start.filter(|start| !start.set.is_empty()) {
            if args.adapter.targets.is_none() {
                map.insert("targets".into(), json!(start.config.target_modules));
            }
            if args.adapter.dropout.is_none() {
                map.insert("dropout".into(), json!(start.config.lora_dropout));
            }
        }
    }
    map.insert("max_length".into(), json!(args.max_length));
    if let Some(stride) = args.spans.doc_stride {
        map.insert("doc_stride".into(), json!(stride));
    }
    if args.spans.max_answer_len != MAX_ANSWER_TOKENS {
        map.insert("max_answer_len".into(), json!(args.spans.max_answer_len));
    }
    map.insert("init_from".into(), json!(args.init_from));
    map.insert("random_init".into(), json!(args.random_init));
    map.insert("zero_head".into(), json!(args.zero_head));
    let precision = Precision::chosen();
    if precision != Precision::F32 {
        map.insert("precision".into(), json!(precision.name()));
    }
    if let Some(name) = &args.model_name {
        map.insert("model_name".into(), json!(name));
    }
    if let Some(label) = &args.label {
        map.insert("label".into(), json!(label));
    }
    map
}

pub(super) fn hash_settings(settings: &Map<String, Value>, hashes: &[&str]) -> String {
    // The planned steps are stored beside the hash: they may be extended.
    let mut settings = settings.clone();
    for key in ["max_steps", "model_name", "label"] {
        settings.shift_remove(key);
    }
    let text = serde_json::to_string(&settings).unwrap_or_default();
    format!("{:016x}", fnv(text.bytes().chain(hashes.concat().bytes())))
}

/// Hash of the initial factors that adapters are saved relative to, empty if they have none. They are computed anew by a resumed
/// run and by each process, which must get the same.
pub(super) fn hash_starts<B: Backend>(adapters: &AdapterSet<B>) -> String {
    let starts = adapters.adapters().iter().filter_map(|adapter| match adapter {
        Adapter::Lora(lora) => lora.start.as_ref(),
        _ => None,
    });
    let mut factors = starts.flat_map(|start| [start.a.clone(), start.b.clone()]).peekable();
    if factors.peek().is_none() {
        return String::new();
    }
    let bytes = factors.flat_map(|factor| host_values(factor).into_iter().flat_map(f32::to_le_bytes));
    format!("{:016x}", fnv(bytes))
}

/// FNV-1a, 64 bits: distinguishes settings and data, nothing more.
pub(super) fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
