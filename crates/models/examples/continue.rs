//! Continues token ids with a language model: `continue FOLDER ID…`.

#![allow(clippy::print_stdout, reason = "a program's output")]

use std::path::PathBuf;

use burn_flex::Flex;
use lowrank_adapters::AdapterSet;
use lowrank_models::decoder::GenerationOptions;
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, DecoderConfig, LanguageModel};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("usage: continue FOLDER ID…")?);
    let prompt = args.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;

    let device = Default::default();
    let config = DecoderConfig::read(&folder)?;
    let model = Decoder::<Flex>::load(&folder, config, WeightType::F32, &device)?;
    let options = GenerationOptions { max_new_tokens: 16, ..Default::default() };
    let generated = model.generate(&[prompt], &options, &AdapterSet::empty(), &device, |_, _| true)?;
    println!("{:?}", generated[0].ids);
    Ok(())
}
