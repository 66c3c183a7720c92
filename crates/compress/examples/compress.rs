//! Compresses a model folder by plain SVD: `cargo run -p lowrank-compress --example compress -- MODEL OUTPUT 0.2`.

#![allow(clippy::print_stdout, reason = "a program's output")]

use std::path::Path;

use lowrank_compress::{Amount, Method, Of, Options, compress};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, output, ratio] = args.as_slice() else { return Err("give MODEL OUTPUT RATIO".into()) };
    let amount = Amount::Ratio { ratio: ratio.parse()?, of: Of::Layers };
    let report =
        compress(Path::new(model), Path::new(output), &Options::new(Method::Svd, amount), None, &())?;
    for module in &report.modules {
        println!("{:48} {:?} error {:.4}", module.module, module.ranks, module.error);
    }
    println!("{} → {} bytes", report.file.before, report.file.after);
    Ok(())
}
