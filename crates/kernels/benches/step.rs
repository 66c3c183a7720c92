//! A training step of a MiniLM-shaped encoder with LoRA on query and value, on packed tokens.
//!
//! `cargo bench -p lowrank-kernels --features flex --bench step`.

use burn::tensor::{Distribution, Int, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use divan::Bencher;
use lowrank_kernels::{
    AttentionSpec, Dropout, Gelu, attention, cross_entropy, layer_norm, linear, linear_gelu,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type B = Autodiff<Flex>;

const D_MODEL: usize = 384;
const D_FFN: usize = 1536;
const LAYERS: usize = 6;
const HEADS: usize = 12;
const RANK: usize = 8;

fn main() {
    divan::main();
}

fn random<const D: usize>(shape: [usize; D], scale: f64) -> Tensor<B, D> {
    Tensor::random(shape, Distribution::Normal(0.0, scale), &Default::default())
}

struct Linear {
    w: Tensor<B, 2>,
    b: Tensor<B, 1>,
    lora: Option<[Tensor<B, 2>; 2]>,
}

impl Linear {
    fn new(d_input: usize, d_output: usize, with_lora: bool) -> Self {
        let lora = with_lora.then(|| {
            [random([d_input, RANK], 0.05).require_grad(), random([RANK, d_output], 0.05).require_grad()]
        });
        Self { w: random([d_input, d_output], 0.05), b: random([d_output], 0.05), lora }
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = linear(x.clone(), self.w.clone(), Some(self.b.clone()));
        match &self.lora {
            Some([a, b]) => y + linear(linear(x, a.clone(), None), b.clone() * 2.0, None),
            None => y,
        }
    }
}

struct Layer {
    attention: [Linear; 4],
    up: Linear,
    down: Linear,
    norms: [[Tensor<B, 1>; 2]; 2],
}

impl Layer {
    fn new() -> Self {
        let linear = |with_lora| Linear::new(D_MODEL, D_MODEL, with_lora);
        let norm = || [random([D_MODEL], 0.1) + 1.0, random([D_MODEL], 0.1)].map(Tensor::detach);
        Self {
            attention: [linear(true), linear(false), linear(true), linear(false)],
            up: Linear::new(D_MODEL, D_FFN, false),
            down: Linear::new(D_FFN, D_MODEL, false),
            norms: [norm(), norm()],
        }
    }

    fn forward(&self, x: Tensor<B, 2>, spec: &AttentionSpec, dropout: Option<Dropout>) -> Tensor<B, 2> {
        let [query, key, value, output] = &self.attention;
        let (q, k, v) = (query.forward(x.clone()), key.forward(x.clone()), value.forward(x.clone()));
        let attended = output.forward(attention(q, k, v, spec));
        let norm = |x, residual, [gamma, beta]: &[Tensor<B, 1>; 2]| {
            layer_norm(x, Some(residual), gamma.clone(), Some(beta.clone()), 1e-12, dropout)
        };
        let hidden = norm(attended, x, &self.norms[0]);
        let inner = linear_gelu(hidden.clone(), self.up.w.clone(), Some(self.up.b.clone()), Gelu::Erf);
        norm(self.down.forward(inner), hidden, &self.norms[1])
    }
}

/// Sequences, their length, and whether dropout is on.
#[divan::bench(args = [(31, 14, false), (31, 14, true), (32, 128, true), (8, 512, true)], max_time = 20)]
fn lora_step(bencher: Bencher, (sequences, length, with_dropout): (usize, usize, bool)) {
    let layers: Vec<Layer> = (0..LAYERS).map(|_| Layer::new()).collect();
    let head = random([D_MODEL, 2], 0.05).require_grad();
    let x = random([sequences * length, D_MODEL], 1.0);
    let dropout = with_dropout.then_some(Dropout { p: 0.1, seed: 1 });
    let spec =
        AttentionSpec { dropout, ..AttentionSpec::encoder(vec![length; sequences], HEADS, D_MODEL / HEADS) };
    let targets = Tensor::<B, 1, Int>::zeros([sequences], &Default::default());
    let first: Vec<i32> = (0..sequences).map(|i| (i * length) as i32).collect();
    let first = Tensor::<B, 1, Int>::from_data(first.as_slice(), &Default::default());
    bencher.bench_local(|| {
        let hidden = layers.iter().fold(x.clone(), |x, layer| layer.forward(x, &spec, dropout));
        let logits = linear(hidden.select(0, first.clone()), head.clone(), None);
        let grads = cross_entropy(logits, targets.clone()).backward();
        head.grad(&grads)
    });
}
