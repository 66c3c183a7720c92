//! `lowrank merge`: fold an adapter into its model's weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_models::decoder::LogitRows;
use lowrank_models::params::Saver;
use lowrank_models::{Adaptable, Decoder, DecoderConfig, EncoderConfig, TokenBatch};

use crate::adapter::load_adapter;
use crate::backend::{Device, Inner, device};
use crate::context::{ModelArgs, adapter_folder, model_folder, new_folder, print_json};

/// Options of `merge`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Where the merged model goes
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Tokens of the probe: enough for every layer to see several positions.
const PROBE: usize = 16;

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let adapter = args.model.adapter.as_deref().context("nothing to merge: give --adapter")?;
    let source = model_folder(&args.model.model)?;
    new_folder(&args.output, &[&source, &args.model.model, adapter])?;
    let device = device()?;
    let (layers, difference) = match EncoderConfig::read(&source) {
        Ok(_) => classifier(&args, &source, &device)?,
        Err(encoder) => {
            let config = DecoderConfig::read(&source).map_err(|_| encoder)?;
            language_model(config, adapter, &args.output, &source, &device)?
        }
    };
    if args.json {
        let object = serde_json::json!({
            "merged": layers,
            "max_difference": difference,
            "output": args.output,
        });
        return print_json(&object);
    }
    println!(
        "{layers} layers merged into {}; largest difference of the outputs on a probe {difference:.3e}",
        args.output.display()
    );
    Ok(())
}

fn classifier(args: &Args, source: &Path, device: &Device) -> Result<(usize, f32)> {
    let (model, adapters) = args.model.load::<Inner>(device)?.model.into_parts();
    let merged = model.merged(&adapters)?;
    let config = model.config();
    let ids = probe(config.vocab_size, config.max_tokens());
    let batch = TokenBatch::new(config, &ids, &vec![0; ids.len()], &[ids.len()], device)?;
    let difference = largest(
        model.forward(&batch, &adapters, Mode::EVAL),
        merged.forward(&batch, &AdapterSet::empty(), Mode::EVAL),
    )?;
    merged.save(&args.output, source)?;
    Ok((adapters.slots().len(), difference))
}

fn language_model(
    config: DecoderConfig,
    adapter: &Path,
    output: &Path,
    source: &Path,
    device: &Device,
) -> Result<(usize, f32)> {
    let mut model = Decoder::<Inner>::load(source, config, Default::default(), device)?;
    let adapters = load_adapter(&mut model, &adapter_folder(adapter)?, device)?;
    let merged = model.merged(&adapters)?;
    let config = model.config();
    let ids = probe(config.vocab_size, config.max_positions);
    let run = |model: &Decoder<Inner>, adapters: &AdapterSet<Inner>| {
        model.forward(&ids, &[ids.len()], LogitRows::All, adapters, Mode::EVAL, device)
    };
    let difference = largest(run(&model, &adapters)?, run(&merged, &AdapterSet::empty())?)?;
    let mut saver = Saver::default();
    merged.clone().walk(&mut saver);
    write_language_model(saver, output, source)?;
    Ok((adapters.slots().len(), difference))
}

/// Weights, and every other file of the model's folder that is neither weights nor of another form of them.
fn write_language_model(saver: Saver, output: &Path, source: &Path) -> Result<()> {
    std::fs::create_dir_all(output).with_context(|| output.display().to_string())?;
    let no_metadata = std::collections::BTreeMap::new();
    let path = output.join("model.safetensors");
    lowrank_checkpoint::write_safetensors(
        path,
        saver.tensors,
        lowrank_checkpoint::FloatType::F32,
        &no_metadata,
    )?;
    for entry in source.read_dir().with_context(|| source.display().to_string())? {
        let from = entry?.path();
        let extension = from.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let name = from.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !matches!(extension, "json" | "txt" | "model") || name.ends_with(".index.json") {
            continue;
        }
        let bytes = std::fs::read(&from).with_context(|| from.display().to_string())?;
        lowrank_checkpoint::write_atomic(output.join(name), &bytes)?;
    }
    Ok(())
}

/// Token ids spread over the vocabulary.
fn probe(vocab_size: usize, max_tokens: usize) -> Vec<u32> {
    let n = PROBE.min(max_tokens);
    (0..n).map(|i| ((i * 7919 + 1) % vocab_size) as u32).collect()
}

fn largest<const D: usize>(
    factored: burn::tensor::Tensor<Inner, D>,
    merged: burn::tensor::Tensor<Inner, D>,
) -> Result<f32> {
    let difference = (factored - merged).abs().max().into_data().iter::<f32>().next().unwrap_or(f32::NAN);
    ensure!(difference.is_finite(), "the merged model's outputs are not finite; nothing was written");
    Ok(difference)
}
