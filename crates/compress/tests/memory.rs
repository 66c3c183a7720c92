//! `memory` caps what is in memory, however many layers there are and however large a table is.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::{collections::BTreeMap, fs, path::Path};

use lowrank_checkpoint::{FloatType, HostTensor, write_safetensors};
use lowrank_compress::{Amount, Method, Options, compress};
use lowrank_spec::BlockFormat;

/// What is not part of a layer's work: threads, buffers of products, pages of the file, what the allocator retains.
const BESIDE: u64 = 40 << 20;

fn tensor(name: &str, [rows, columns]: [usize; 2]) -> HostTensor<'static> {
    let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 5e5 - 1.0;
    HostTensor::new(name, [rows, columns], (0..rows * columns).map(value).collect::<Vec<_>>())
}

/// A Llama as far as a compression looks at it.
fn model(folder: &Path, n_layers: usize, width: usize, vocabulary: usize) {
    let layer = |i: usize| tensor(&format!("model.layers.{i}.mlp.up_proj.weight"), [2 * width, width]);
    let table = tensor("model.embed_tokens.weight", [vocabulary, width]);
    let tensors = (0..n_layers).map(layer).chain([table]);
    let path = folder.join("model.safetensors");
    write_safetensors(&path, tensors.collect::<Vec<_>>(), FloatType::BF16, &BTreeMap::new()).unwrap();
    fs::write(folder.join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
}

/// Resident bytes: `VmRSS`, or `VmHWM` for the most since the last reset.
fn resident(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Resident bytes above the present level that a compression reaches. Allocated bytes would count what products reserve for
/// each thread and never touch.
fn peak(model: &Path, output: &Path, options: &Options) -> u64 {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = resident("VmRSS:");
    compress(model, output, options, None, &()).unwrap();
    resident("VmHWM:") - before
}

/// One test: the counts are of the whole process.
#[test]
fn memory_is_a_cap() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("deep")).unwrap();
    model(&at("deep"), 192, 512, 32);
    let cap = 40 << 20;
    let ranks = Amount::Ranks(vec![("all-linear".into(), 4)]);
    let svd = Options { memory: Some(cap), ..Options::new(Method::Svd, ranks) };
    let used = peak(&at("deep"), &at("factors"), &svd);
    assert!(used <= cap + BESIDE, "{used} bytes for 192 layers, {cap} allowed");

    fs::create_dir(at("wide")).unwrap();
    model(&at("wide"), 1, 32, 1_000_000);
    let cap = 160 << 20;
    let quant = Options {
        memory: Some(cap),
        format: Some(BlockFormat::Q4_0),
        ..Options::new(Method::Quant, Amount::Stored)
    };
    let used = peak(&at("wide"), &at("blocks"), &quant);
    assert!(used <= cap + BESIDE, "{used} bytes for a table of 128 MB in f32, {cap} allowed");
}
