//! `lowrank embed`: mean hidden states of texts.

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use lowrank_models::{Rows, Run, Stack};
use lowrank_train::tuner::to_device;
use serde_json::{Value, json};

use crate::backend::{Inner, device};
use crate::context::{ModelArgs, TextArgs, print_json};

/// Options of `embed`.
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
    ensure!(args.batch_size > 0, "--batch-size 0 is out of range; expected 1 or more");
    let device = device()?;
    let loaded = args.model.load::<Inner>(&device)?;
    let start = Instant::now();
    let data = texts.encode(&loaded.tokenizer)?;
    let (model, adapters) = (loaded.model.model(), loaded.model.adapters());
    let mut rows: Vec<Vec<f32>> = Vec::new();
    let indices: Vec<usize> = (0..data.len()).collect();
    for chunk in indices.chunks(args.batch_size) {
        let batch = data.batch(chunk)?;
        let hidden = model.hidden_states(&to_device(model, &batch, &device)?, Rows::All, Run::eval(adapters));
        let mut first = 0;
        for &n in &batch.lengths {
            let mean: Tensor<Inner, 2> = hidden.clone().narrow(0, first, n).mean_dim(0);
            let row: Vec<f32> = mean.into_data().iter::<f32>().collect();
            ensure!(
                row.iter().all(|value| value.is_finite()),
                "text {} has an embedding that is not finite; a weight of the model may be broken",
                rows.len() + 1
            );
            rows.push(row);
            first += n;
        }
    }
    let tokens_per_second = data.n_tokens() as f64 / start.elapsed().as_secs_f64();
    if args.json {
        let rows: Vec<Value> = rows.iter().map(|r| json!({ "embedding": r })).collect();
        return print_json(&json!({ "rows": rows, "tokens_per_second": tokens_per_second }));
    }
    for row in rows {
        let values: Vec<String> = row.iter().map(f32::to_string).collect();
        println!("{}", values.join("\t"));
    }
    Ok(())
}
