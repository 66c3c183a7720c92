//! Inference on factors beside the same model with dense weights, in tokens per second.
//!
//! `cargo bench -p lowrank-tests --bench factored`. A Llama of width 1024 with four layers; the argument is the share of
//! its block linears' parameters that the factors take away.

use burn_flex::Flex;
use divan::Bencher;
use divan::counter::ItemsCount;
use lowrank_adapters::AdapterSet;
use lowrank_models::decoder::GenerationOptions;
use lowrank_models::{Decoder, LanguageModel};
use lowrank_tests::llama;

const RATIOS: [f64; 5] = [0.0, 0.2, 0.4, 0.6, 0.8];

fn main() {
    divan::main();
}

/// Reads prompts of these lengths and writes `new` tokens to each.
fn run(bencher: Bencher, ratio: f64, prompts: &[usize], new: usize) {
    let device = Default::default();
    let Ok(model) = Decoder::<Flex>::init(llama(4, ratio), 0, &device) else { return };
    let prompts: Vec<Vec<u32>> = prompts.iter().map(|n| (0..*n as u32).map(|i| i % 256).collect()).collect();
    let options = GenerationOptions { max_new_tokens: new, ignore_eos: true, ..Default::default() };
    let tokens = if new == 1 { prompts.iter().map(Vec::len).sum() } else { new * prompts.len() };
    bencher
        .counter(ItemsCount::new(tokens))
        .bench_local(|| model.generate(&prompts, &options, &AdapterSet::empty(), &device, |_, _| true));
}

/// Tokens read at once.
#[divan::bench(args = RATIOS, sample_count = 10)]
fn read_256(bencher: Bencher, ratio: f64) {
    run(bencher, ratio, &[128, 97, 31], 1);
}

/// Tokens written one after the other.
#[divan::bench(args = RATIOS, sample_count = 10)]
fn write_32(bencher: Bencher, ratio: f64) {
    run(bencher, ratio, &[1], 32);
}
