//! `lowrank embed`: one vector for each text, pooled as the model's folder specifies.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use burn::tensor::Tensor;
use lowrank_adapters::AdapterSet;
use lowrank_data::pack::{EncodedDataset, PackedBatch};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_models::{Decoder, ModelFolder, Rows, Run, SentencePooling, Stack, Tokens};
use lowrank_train::tuner::to_device;
use serde_json::{Value, json};

use crate::adapter::load_adapter;
use crate::backend::{Device, Inner, device};
use crate::context::{ModelArgs, TextArgs, Texts, adapter_folder, print_json, refuse_pictures};

/// Options of `embed`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    texts: TextArgs,
    /// Put the model's prompt of this name before every text, e.g. query [default: the default prompt of the model]
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
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
    ensure_usage!(args.batch_size > 0, "--batch-size 0 is out of range; expected 1 or more");
    let device = device()?;
    let folder = args.model.folder()?;
    refuse_pictures(&folder, "embeddings are of texts; give a model that reads them")?;
    let pooling = folder.pooling()?;
    let prompt = match pooling.prompt(args.prompt_name.as_deref()) {
        Ok(prompt) => prompt.to_owned(),
        Err(known) => bail!("--prompt-name {}: {known}", args.prompt_name.as_deref().unwrap_or_default()),
    };
    let prompt = if pooling.lower_case { prompt.to_lowercase() } else { prompt };
    if pooling.lower_case {
        texts.lower_case();
    }
    texts.prepend(&prompt);
    let (rows, tokens_per_second) = if folder.kind().is_decoder() {
        decoder(&args, &folder, &pooling, &prompt, &texts, &device)?
    } else {
        encoder(&args, &pooling, &prompt, &texts, &device)?
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
    prompt: &str,
    texts: &Texts,
    device: &Device,
) -> Result<(Vec<Vec<f32>>, f64)> {
    let loaded = args.model.load::<Inner>(device)?;
    let (model, adapters) = (loaded.model.model(), loaded.model.adapters());
    let tokenizer = loaded.tokenizer()?;
    let data = texts.encode(tokenizer)?;
    let skip = skipped(pooling, prompt, tokenizer)?;
    embed(args, pooling, &data, skip, |batch| {
        Ok(model.hidden_states(&to_device(model, batch, device)?, Rows::All, Run::eval(adapters)))
    })
}

fn decoder(
    args: &Args,
    folder: &ModelFolder,
    pooling: &SentencePooling,
    prompt: &str,
    texts: &Texts,
    device: &Device,
) -> Result<(Vec<Vec<f32>>, f64)> {
    let tokenizer = folder.cutting_tokenizer(args.model.max_length)?;
    let mut config = folder.decoder_config()?;
    // A base model has no head, and none is read here.
    config.tied |= !folder.checkpoint()?.contains(&format!("{}.weight", config.names().head));
    let mut model = Decoder::<Inner>::load(folder.path(), config, Default::default(), device)?;
    let adapters = match args.model.adapter.as_deref().map(adapter_folder).transpose()? {
        Some(dir) => load_adapter(&mut model, &dir, None, device)?,
        None => AdapterSet::empty(),
    };
    let data = texts.encode(&tokenizer)?;
    let skip = skipped(pooling, prompt, &tokenizer)?;
    embed(args, pooling, &data, skip, |batch| {
        let batch = model.batch(Tokens::new(&batch.ids, &batch.lengths), device)?;
        Ok(model.hidden_states(&batch, Rows::All, Run::eval(&adapters)))
    })
}

/// Number of first tokens that are not pooled: those of the prompt, without a special token at its end.
fn skipped(pooling: &SentencePooling, prompt: &str, tokenizer: &TextTokenizer) -> Result<usize> {
    if pooling.pools_prompt || prompt.is_empty() {
        return Ok(0);
    }
    let ids = tokenizer.encode(prompt, None)?.ids;
    let ends_special = ids.last().is_some_and(|&id| tokenizer.is_special(id));
    Ok(ids.len() - usize::from(ends_special))
}

/// The embedding of every text, and the tokens processed per second.
fn embed(
    args: &Args,
    pooling: &SentencePooling,
    data: &EncodedDataset,
    skip: usize,
    hidden_states: impl Fn(&PackedBatch) -> Result<Tensor<Inner, 2>>,
) -> Result<(Vec<Vec<f32>>, f64)> {
    let start = Instant::now();
    let mut rows: Vec<Vec<f32>> = Vec::new();
    let indices: Vec<usize> = (0..data.len()).collect();
    for chunk in indices.chunks(args.batch_size) {
        let batch = data.batch(chunk)?;
        if let Some(at) = batch.lengths.iter().position(|&n| n <= skip) {
            bail!(
                "text {}: only its prompt is left of {} tokens; raise --max-length",
                chunk[at] + 1,
                batch.lengths[at]
            );
        }
        let pooled = pooling.pool(hidden_states(&batch)?, &batch.lengths, skip); // [sequences, width]
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
