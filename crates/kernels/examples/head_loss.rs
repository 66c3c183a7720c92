//! The loss of a language model's head without its logits: `cargo run --release -p lowrank-kernels --example head_loss`.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use burn::tensor::{Distribution, Int, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use lowrank_kernels::{BlockFormat, BlockMatrix, Head, KernelError, linear_cross_entropy};

type B = Autodiff<Flex>;

const TOKENS: usize = 256;
const D_MODEL: usize = 128;
const VOCAB: usize = 100_000;

fn main() -> Result<(), KernelError> {
    let device = Default::default();
    let x = Tensor::<B, 2>::random([TOKENS, D_MODEL], Distribution::Normal(0.0, 1.0), &device).require_grad();
    let table = Tensor::<B, 2>::random([VOCAB, D_MODEL], Distribution::Normal(0.0, 0.1), &device);
    let targets = Tensor::<B, 1, Int>::arange(0..TOKENS as i64, &device);
    let values: Vec<f32> = table.to_data().iter::<f32>().collect();
    // A table `[vocab, d_model]` is a head as its transposed view, in floats as in blocks.
    let quantized = BlockMatrix::quantize(BlockFormat::Q8_0, [VOCAB, D_MODEL], &values)?.transpose();
    for (name, head) in [("f32", Head::new(table.transpose())), ("Q8_0", Head::new(quantized))] {
        let start = Instant::now();
        let loss = linear_cross_entropy(x.clone(), head, targets.clone(), None) / TOKENS as f32;
        let grads = loss.clone().backward();
        let norm = x.grad(&grads).map_or(0.0, |grad| grad.powi_scalar(2).sum().into_scalar().sqrt());
        let loss = loss.into_scalar();
        println!("{name}: loss {loss:.5}, gradient norm {norm:.6}, {:.0?}", start.elapsed());
    }
    Ok(())
}
