//! One linear layer with a LoRA, forward and backward, beside the frozen layer alone and beside composing `W + A·B`.
//!
//! `cargo bench -p lowrank-adapters --bench lora_step`. 2,048 tokens of width 768; the input has a gradient, as every
//! layer above the first adapted one has.

use burn::tensor::{Distribution, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use divan::Bencher;
use lowrank_kernels::{LoraSpec, LoraWeights, linear, linear_lora};

type B = Autodiff<Flex>;

const TOKENS: usize = 2048;
const D: usize = 768;
const RANK: usize = 8;

fn main() {
    divan::main();
}

fn random(shape: [usize; 2]) -> Tensor<B, 2> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.02), &Default::default())
}

/// Input, its upstream gradient, weight and factors.
fn tensors() -> [Tensor<B, 2>; 5] {
    let [a, b] = [[D, RANK], [RANK, D]].map(|shape| random(shape).require_grad());
    [random([TOKENS, D]).require_grad(), random([TOKENS, D]), random([D, D]), a, b]
}

#[divan::bench]
fn frozen_base(bencher: Bencher) {
    let [x, dy, w, _, _] = tensors();
    bencher.bench_local(|| (linear(x.clone(), w.clone(), None) * dy.clone()).sum().backward());
}

#[divan::bench]
fn lora(bencher: Bencher) {
    let [x, dy, w, a, b] = tensors();
    let spec = LoraSpec { scale: 2.0, dropout: None };
    bencher.bench_local(|| {
        let weights = LoraWeights { w: w.clone(), a: a.clone(), b: b.clone() };
        (linear_lora(x.clone(), weights, None, spec) * dy.clone()).sum().backward()
    });
}

#[divan::bench]
fn dense_compose(bencher: Bencher) {
    let [x, dy, w, a, b] = tensors();
    bencher.bench_local(|| {
        let composed = w.clone() + a.clone().matmul(b.clone()) * 2.0;
        (linear(x.clone(), composed, None) * dy.clone()).sum().backward()
    });
}
