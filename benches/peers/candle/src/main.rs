//! The peer of `lowrank embed` and `lowrank generate`: candle on the CPU. compare.py runs it.
//!
//!     candle-peer embed    --model DIR --file F                              mean over tokens of each line
//!     candle-peer generate --model DIR --prompt P --max-new-tokens N         greedy, end of sequence ignored
//!
//! Each prints one JSON line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, llama};
use clap::Parser;
use serde_json::json;
use tokenizers::{PaddingParams, Tokenizer};

#[derive(Parser)]
enum Command {
    Embed {
        #[arg(long)]
        model: PathBuf,
        #[arg(long)]
        file: PathBuf,
        #[arg(long, default_value_t = 32)]
        batch_size: usize,
    },
    Generate {
        #[arg(long)]
        model: PathBuf,
        #[arg(long)]
        prompt: String,
        #[arg(long, default_value_t = 64)]
        max_new_tokens: usize,
    },
}

fn main() -> Result<()> {
    let output = match Command::parse() {
        Command::Embed { model, file, batch_size } => embed(&model, &file, batch_size)?,
        Command::Generate { model, prompt, max_new_tokens } => generate(&model, &prompt, max_new_tokens)?,
    };
    println!("{output}");
    Ok(())
}

#[allow(unsafe_code)]
fn weights(model: &Path) -> Result<VarBuilder<'static>> {
    let file = model.join("model.safetensors");
    // SAFETY: nobody changes the file meanwhile.
    Ok(unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &Device::Cpu)? })
}

fn embed(model: &Path, file: &Path, batch_size: usize) -> Result<serde_json::Value> {
    let config: bert::Config = serde_json::from_slice(&fs::read(model.join("config.json"))?)?;
    let mut tokenizer = Tokenizer::from_file(model.join("tokenizer.json")).map_err(Error::msg)?;
    tokenizer.with_padding(Some(PaddingParams::default()));
    let network = bert::BertModel::load(weights(model)?, &config)?;
    let text = fs::read_to_string(file)?;
    let lines: Vec<&str> = text.lines().collect();
    let (mut rows, mut tokens) = (Vec::<Vec<f32>>::new(), 0);
    let start = Instant::now();
    for lines in lines.chunks(batch_size) {
        let encoded = tokenizer.encode_batch(lines.to_vec(), true).map_err(Error::msg)?;
        let (n, width) = (encoded.len(), encoded[0].len());
        let ids: Vec<u32> = encoded.iter().flat_map(|e| e.get_ids().to_vec()).collect();
        let mask: Vec<u32> = encoded.iter().flat_map(|e| e.get_attention_mask().to_vec()).collect();
        tokens += mask.iter().sum::<u32>();
        let ids = Tensor::from_vec(ids, (n, width), &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, (n, width), &Device::Cpu)?;
        let hidden = network.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
        let sums = hidden.broadcast_mul(&mask)?.sum(1)?;
        rows.extend(sums.broadcast_div(&mask.sum(1)?)?.to_vec2()?);
    }
    let speed = f64::from(tokens) / start.elapsed().as_secs_f64();
    Ok(json!({"rows": rows.len(), "tokens_per_second": speed, "embeddings": rows}))
}

fn generate(model: &Path, prompt: &str, max_new_tokens: usize) -> Result<serde_json::Value> {
    let config: llama::LlamaConfig = serde_json::from_slice(&fs::read(model.join("config.json"))?)?;
    let config = config.into_config(false);
    let tokenizer = Tokenizer::from_file(model.join("tokenizer.json")).map_err(Error::msg)?;
    let network = llama::Llama::load(weights(model)?, &config)?;
    let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
    let mut next = tokenizer.encode(prompt, true).map_err(Error::msg)?.get_ids().to_vec();
    let (mut ids, mut read) = (Vec::new(), 0);
    let start = Instant::now();
    while ids.len() < max_new_tokens {
        let input = Tensor::new(&next[..], &Device::Cpu)?.unsqueeze(0)?;
        let logits = network.forward(&input, read, &mut cache)?;
        read += next.len();
        let id: u32 = logits.squeeze(0)?.argmax(D::Minus1)?.to_scalar()?;
        ids.push(id);
        next = vec![id];
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({"ids": ids, "tokens_per_second": max_new_tokens as f64 / seconds}))
}
