//! What rounding activations to 8 bits costs: the perplexity of token ids decoded one by one beside that of whole windows,
//! whose products are exact: `decoding_perplexity FOLDER|FILE.gguf IDS [WINDOW]`, where IDS is a file of numbers.

#![allow(clippy::print_stdout, reason = "a program's output")]

use std::path::PathBuf;

use burn_flex::Flex;
use lowrank_adapters::AdapterSet;
use lowrank_models::params::WeightType;
use lowrank_models::{Decoder, DecoderConfig, Run, Tokens};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: decoding_perplexity FOLDER|FILE.gguf IDS [WINDOW]";
    let (model, ids) = (PathBuf::from(args.next().ok_or(usage)?), args.next().ok_or(usage)?);
    let window = args.next().map_or(Ok(512), |window| window.parse())?;
    let text = std::fs::read_to_string(ids)?;
    let ids = text.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;

    let device = Default::default();
    let config = DecoderConfig::read(&model)?;
    let model = Decoder::<Flex>::load(&model, config, WeightType::F32, &device)?;
    let adapters = AdapterSet::empty();
    let run = Run::eval(&adapters);
    let (mut whole, mut stepped, mut count) = (0.0, 0.0, 0);
    for ids in ids.chunks(window) {
        let nll = model.token_nll(Tokens::new(ids, &[ids.len()]), run, &device)?;
        whole += nll.iter().flatten().sum::<f64>();
        let mut cache = model.cache(&[ids.len()], &device);
        for pair in ids.windows(2) {
            let logits = model.advance(Tokens::new(&pair[..1], &[1]), &[0], &mut cache, run, &device)?;
            let logits: Vec<f64> = logits.into_data().iter::<f64>().collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
            stepped += max + sum.ln() - logits[pair[1] as usize];
        }
        count += ids.len() - 1;
    }
    let [whole, stepped] = [whole, stepped].map(|sum| (sum / count as f64).exp());
    let change = 100.0 * (stepped / whole - 1.0);
    println!("{count} tokens: whole windows {whole:.4}, one by one {stepped:.4} ({change:+.3} %)");
    Ok(())
}
