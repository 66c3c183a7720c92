//! `lowrank embed`: one vector for each text, pooled as the model's folder specifies.

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::Tensor;
use lowrank_adapters::AdapterSet;
use lowrank_data::pack::{EncodedDataset, PackedBatch};
use lowrank_models::{Decoder, ModelFolder, Rows, Run, SentencePooling, Stack, Tokens};
use lowrank_train::tuner::to_device;
use serde_json::{Value, json};

use crate::adapter::load_adapter;
use crate::backend::{Device, Inner, device};
use crate::context::{ModelArgs, TextArgs, Texts, adapter_folder, open_model, print_json};

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
    let mut texts = args.texts.texts()?;
    ensure!(args.batch_size > 0, "--batch-size 0 is out of range; expected 1 or more");
    let device = device()?;
    let folder = open_model(&args.model.model)?;
    let pooling = folder.pooling()?;
    if pooling.lower_case {
        texts.lower_case();
    }
    let (rows, tokens_per_second) = if folder.kind().is_decoder() {
        decoder(&args, &folder, &pooling, &texts, &device)?
    } else {
        encoder(&args, &pooling, &texts, &device)?
    };
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

fn encoder(
    args: &Args,
    pooling: &SentencePooling,
    texts: &Texts,
    device: &Device,
) -> Result<(Vec<Vec<f32>>, f64)> {
    let loaded = args.model.load::<Inner>(device)?;
    let (model, adapters) = (loaded.model.model(), loaded.model.adapters());
    let data = texts.encode(&loaded.tokenizer)?;
    embed(args, pooling, &data, |batch| {
        Ok(model.hidden_states(&to_device(model, batch, device)?, Rows::All, Run::eval(adapters)))
    })
}

fn decoder(
    args: &Args,
    folder: &ModelFolder,
    pooling: &SentencePooling,
    texts: &Texts,
    device: &Device,
) -> Result<(Vec<Vec<f32>>, f64)> {
    let tokenizer = folder.cutting_tokenizer(args.model.max_length)?;
    let mut model =
        Decoder::<Inner>::load(folder.path(), folder.decoder_config()?, Default::default(), device)?;
    let adapters = match args.model.adapter.as_deref().map(adapter_folder).transpose()? {
        Some(dir) => load_adapter(&mut model, &dir, device)?,
        None => AdapterSet::empty(),
    };
    let data = texts.encode(&tokenizer)?;
    embed(args, pooling, &data, |batch| {
        let batch = model.batch(Tokens::new(&batch.ids, &batch.lengths), device)?;
        Ok(model.hidden_states(&batch, Rows::All, Run::eval(&adapters)))
    })
}

/// The embedding of every text, and the tokens processed per second.
fn embed(
    args: &Args,
    pooling: &SentencePooling,
    data: &EncodedDataset,
    hidden_states: impl Fn(&PackedBatch) -> Result<Tensor<Inner, 2>>,
) -> Result<(Vec<Vec<f32>>, f64)> {
    let start = Instant::now();
    let mut rows: Vec<Vec<f32>> = Vec::new();
    let indices: Vec<usize> = (0..data.len()).collect();
    for chunk in indices.chunks(args.batch_size) {
        let batch = data.batch(chunk)?;
        let pooled = pooling.pool(hidden_states(&batch)?, &batch.lengths); // [sequences, width]
        let width = pooled.dims()[1];
        let values: Vec<f32> = pooled.into_data().iter::<f32>().collect();
        for row in values.chunks(width) {
            ensure!(
                row.iter().all(|value| value.is_finite()),
                "text {}: the embedding is not finite; check the checkpoint for NaN or Inf",
                rows.len() + 1
            );
            rows.push(row.to_vec());
        }
    }
    Ok((rows, data.n_tokens() as f64 / start.elapsed().as_secs_f64()))
}
