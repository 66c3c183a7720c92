//! The loss of a head needs far less memory than its logits.

use burn::tensor::{Distribution, Int, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use lowrank_kernels::{Head, linear_cross_entropy};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

type B = Autodiff<Flex>;

const TOKENS: usize = 3000;
const VOCAB: usize = 20_000;
const D_MODEL: usize = 16;

#[test]
fn a_loss_and_its_gradient_hold_a_part_of_the_logits() {
    let random = |shape: [usize; 2]| {
        Tensor::<B, 2>::random(shape, Distribution::Normal(0.0, 0.1), &Default::default())
    };
    let x = random([TOKENS, D_MODEL]).require_grad();
    let table = random([VOCAB, D_MODEL]);
    let targets = Tensor::<B, 1, Int>::zeros([TOKENS], &Default::default());
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let loss = linear_cross_entropy(x.clone(), Head::new(table.transpose()), targets, None);
    let grads = loss.backward();
    let peak = MEMORY.peak_usage() - before;
    assert!(x.grad(&grads).is_some());
    let logits = TOKENS * VOCAB * size_of::<f32>();
    assert!(peak < logits / 5, "{peak} bytes beside logits of {logits}");
}
