//! What a LoRA adds to the memory of a training step grows with its factors, not with the weight.

use burn::tensor::{Distribution, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use lowrank_kernels::{LoraSpec, LoraWeights, linear, linear_lora};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

type B = Autodiff<Flex>;

const TOKENS: usize = 16;
const RANK: usize = 8;

fn random(shape: [usize; 2]) -> Tensor<B, 2> {
    Tensor::random(shape, Distribution::Normal(0.0, 0.02), &Default::default())
}

/// Numbers (of four bytes) above the present level that `forward` and its backward pass reach.
fn peak(forward: impl Fn() -> Tensor<B, 2>) -> usize {
    let pass = || {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        forward().sum().backward();
        (MEMORY.peak_usage() - before) / size_of::<f32>()
    };
    // What a thread keeps for itself it takes in the first pass in which it has work, whichever that is.
    (0..8).map(|_| pass()).min().unwrap_or(0)
}

/// One test, because the allocator counts all threads of the process.
#[test]
fn a_step_of_lora_needs_no_memory_of_the_weights_size() {
    for d in [256, 512, 1024] {
        let x = random([TOKENS, d]).require_grad();
        let (w, a, b) = (random([d, d]), random([d, RANK]).require_grad(), random([RANK, d]).require_grad());
        let base = peak(|| linear(x.clone(), w.clone(), None));
        let spec = LoraSpec { scale: 2.0, dropout: None };
        let adapted = LoraWeights { w: w.clone(), a: a.clone(), b: b.clone() };
        let lora = peak(|| linear_lora(x.clone(), adapted.clone(), None, spec));
        let composed = peak(|| linear(x.clone(), w.clone() + a.clone().matmul(b.clone()) * 2.0, None));
        let allowed = base + 4 * RANK * (d + d) + 2 * TOKENS * (d + RANK);
        assert!(lora <= allowed, "d = {d}: {lora} numbers, the frozen layer {base}, allowed {allowed}");
        assert!(composed >= base + d * d, "d = {d}: composing takes {composed}, the frozen layer {base}");
    }
}
