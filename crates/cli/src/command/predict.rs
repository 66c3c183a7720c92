//! `lowrank predict`: classify texts.

use anyhow::Result;
use lowrank_eval::argmax;
use lowrank_models::Problem;
use serde_json::{Value, json};

use crate::backend::{Inner, device};
use crate::context::{ModelArgs, TextArgs, print_json};

/// Options of `predict`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    texts: TextArgs,
    /// Sequences per batch
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let texts = args.texts.texts()?;
    let loaded = args.model.load::<Inner>(&device()?)?;
    loaded.require_sequence_head()?;
    let data = texts.encode(&loaded.tokenizer)?;
    let (rows, _) = lowrank_train::predict(&loaded.model, &data, args.batch_size)?;
    let config = loaded.model.model().config();
    let described = rows
        .iter()
        .enumerate()
        .map(|(i, logits)| {
            let class = argmax(i, logits)? as usize;
            let (label, score) = match config.problem {
                Problem::Regression => (config.labels[0].clone(), f64::from(logits[0])),
                Problem::SingleLabel => (config.labels[class].clone(), probability(logits, class)),
                Problem::MultiLabel => return Ok(multi_label(&config.labels, logits, class)),
            };
            Ok(json!({"logits": logits, "label": label, "score": score}))
        })
        .collect::<Result<Vec<Value>>>()?;
    if args.json {
        return print_json(&json!({ "rows": described }));
    }
    for ((text, pair), row) in texts.rows.iter().zip(&described) {
        let pair = pair.as_ref().map(|p| format!(" | {p}")).unwrap_or_default();
        let several = row["labels"]
            .as_array()
            .map(|labels| labels.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","));
        let label = several.unwrap_or_else(|| row["label"].as_str().unwrap_or_default().to_owned());
        let score = row["score"].as_f64();
        println!("{label}\t{:.4}\t{text}{pair}", score.unwrap_or(f64::NAN));
    }
    Ok(())
}

/// A row of labels that do not exclude each other: the likeliest, and with `labels` every one above a half.
fn multi_label(names: &[String], logits: &[f32], top: usize) -> Value {
    let scores: Vec<f64> = logits.iter().map(|&logit| 1.0 / (1.0 + (-f64::from(logit)).exp())).collect();
    let labels: Vec<&String> =
        names.iter().zip(&scores).filter(|(_, score)| **score > 0.5).map(|(name, _)| name).collect();
    json!({"logits": logits, "label": names[top], "score": scores[top], "labels": labels, "scores": scores})
}

/// Softmax of one class.
fn probability(logits: &[f32], class: usize) -> f64 {
    let top = f64::from(logits[class]);
    1.0 / logits.iter().map(|&v| (f64::from(v) - top).exp()).sum::<f64>()
}
