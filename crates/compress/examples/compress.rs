//! Compresses a model folder by plain SVD: `cargo run -p lowrank-compress --example compress -- MODEL OUTPUT 0.2`. Without
//! arguments it first generates a small model.

#![allow(clippy::print_stdout, reason = "a program's output")]

use std::path::{Path, PathBuf};

use lowrank_checkpoint::{FloatType, HostTensor, write_safetensors};
use lowrank_compress::{Amount, Method, Of, Options, compress};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let scratch = tempfile::tempdir()?;
    let (model, output, ratio) = match args.as_slice() {
        [] => (small_model(scratch.path())?, scratch.path().join("smaller"), 0.4),
        [model, output, ratio] => (PathBuf::from(model), PathBuf::from(output), ratio.parse()?),
        _ => return Err("usage: compress [MODEL OUTPUT RATIO]".into()),
    };
    let options = Options::new(Method::Svd, Amount::Ratio { ratio, of: Of::Layers });
    let report = compress(&model, &output, &options, None, &())?;
    for module in &report.modules {
        println!("{:48} {:?} error {:.4}", module.module, module.ranks, module.error);
    }
    println!("{} → {} bytes", report.file.before, report.file.after);
    Ok(())
}

/// A folder with two matrices whose singular values fall.
fn small_model(dir: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let model = dir.join("model");
    std::fs::create_dir(&model)?;
    std::fs::write(model.join("config.json"), r#"{"model_type": "llama"}"#)?;
    let smooth = |i: usize, j: usize| 1.0 / (1.0 + (i as f32 / 96.0 - j as f32 / 64.0).powi(2) * 40.0);
    let values: Vec<f32> = (0..96 * 64).map(|k| smooth(k / 64, k % 64)).collect();
    let tensors = ["up_proj", "gate_proj"]
        .map(|name| HostTensor::new(format!("model.layers.0.mlp.{name}.weight"), [96, 64], values.clone()));
    write_safetensors(model.join("model.safetensors"), tensors.into(), FloatType::F32, &Default::default())?;
    Ok(model)
}
