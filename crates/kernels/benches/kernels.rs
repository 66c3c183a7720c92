//! Each kernel beside the same step of burn-flex's own operations, on the shapes of MiniLM and BERT-base.
//!
//! `cargo bench -p lowrank-kernels --features flex --bench kernels [FILTER]`. For products of matrices an item
//! is a floating-point operation, for other steps an element.

use burn::tensor::activation::{gelu as burn_gelu, softmax};
use burn::tensor::{Distribution, Int, Tensor};
use burn_flex::Flex;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use lowrank_kernels::{
    AdamW, AdamWState, AttentionSpec, AttentionTensors, Dropout, Gelu, Kernels, Weight, adamw_step,
    attention, cross_entropy, gelu, layer_norm, linear, linear_gelu,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Default::default())
}

/// Tokens, inputs and outputs of linear steps.
const LINEAR: [[usize; 3]; 13] = [
    [434, 384, 384],
    [434, 384, 1536],
    [434, 1536, 384],
    [2048, 384, 1536],
    [64, 768, 768],
    [512, 768, 768],
    [512, 768, 3072],
    [512, 3072, 768],
    [512, 1024, 3072],
    [512, 3072, 1024],
    [4096, 768, 2304],
    [434, 384, 8],
    [434, 8, 384],
];

fn flops([m, k, n]: [usize; 3]) -> ItemsCount {
    ItemsCount::new(2 * m * k * n)
}

#[divan::bench_group]
mod linear_forward {
    use super::*;

    #[divan::bench(args = LINEAR)]
    fn kernel(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let (x, w, b) = (random([m, k]), random([k, n]), random([n]));
        bencher.counter(flops([m, k, n])).bench(|| linear(x.clone(), w.clone(), Some(b.clone())));
    }

    #[divan::bench(args = LINEAR)]
    fn flex(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let (x, w, b) = (random([m, k]), random([k, n]), random([n]));
        bencher.counter(flops([m, k, n])).bench(|| x.clone().matmul(w.clone()) + b.clone().unsqueeze());
    }
}

#[divan::bench_group]
mod linear_input_grad {
    use super::*;

    #[divan::bench(args = LINEAR)]
    fn kernel(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let dy = random([m, n]).into_primitive().tensor();
        let w = random([k, n]).into_primitive().tensor();
        bencher
            .counter(flops([m, k, n]))
            .bench(|| Flex::linear_input_grad(dy.clone(), Weight::Float(w.clone())));
    }

    #[divan::bench(args = LINEAR)]
    fn flex(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let (dy, w) = (random([m, n]), random([k, n]));
        bencher.counter(flops([m, k, n])).bench(|| dy.clone().matmul(w.clone().transpose()));
    }
}

#[divan::bench_group]
mod linear_weight_grad {
    use super::*;

    #[divan::bench(args = LINEAR)]
    fn kernel(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let x = random([m, k]).into_primitive().tensor();
        let dy = random([m, n]).into_primitive().tensor();
        bencher.counter(flops([m, k, n])).bench(|| Flex::linear_weight_grad(x.clone(), dy.clone()));
    }

    #[divan::bench(args = LINEAR)]
    fn flex(bencher: Bencher, [m, k, n]: [usize; 3]) {
        let (x, dy) = (random([m, k]), random([m, n]));
        bencher.counter(flops([m, k, n])).bench(|| x.clone().transpose().matmul(dy.clone()));
    }
}

/// One token: the matrix is read once.
#[divan::bench_group]
mod decode {
    use super::*;

    const SIZES: [[usize; 2]; 4] = [[768, 768], [768, 3072], [3072, 768], [2048, 8192]];

    #[divan::bench(args = SIZES)]
    fn kernel(bencher: Bencher, [k, n]: [usize; 2]) {
        let (x, w) = (random([1, k]), random([k, n]));
        bencher.counter(BytesCount::new(4 * k * n)).bench(|| linear(x.clone(), w.clone(), None));
    }

    #[divan::bench(args = SIZES)]
    fn kernel_f16(bencher: Bencher, [k, n]: [usize; 2]) {
        let (x, w) = (random([1, k]), random([k, n]).cast(burn::tensor::DType::F16));
        bencher.counter(BytesCount::new(2 * k * n)).bench(|| linear(x.clone(), w.clone(), None));
    }

    #[divan::bench(args = SIZES)]
    fn kernel_transposed(bencher: Bencher, [k, n]: [usize; 2]) {
        let (x, w) = (random([1, k]), random([n, k]).transpose());
        bencher.counter(BytesCount::new(4 * k * n)).bench(|| linear(x.clone(), w.clone(), None));
    }

    #[divan::bench(args = SIZES)]
    fn flex(bencher: Bencher, [k, n]: [usize; 2]) {
        let (x, w) = (random([1, k]), random([k, n]));
        bencher.counter(BytesCount::new(4 * k * n)).bench(|| x.clone().matmul(w.clone()));
    }
}

/// One token beside a matrix in blocks, or in bf16 as a head that is tied to an embedding has it.
#[divan::bench_group]
mod decode_blocks {
    use super::*;
    use lowrank_kernels::{BlockFormat, BlockMatrix};

    /// Inputs and outputs.
    const SIZES: [[usize; 2]; 3] = [[512, 512], [1536, 512], [512, 49152]];

    fn cases() -> impl Iterator<Item = (BlockFormat, [usize; 2])> {
        BlockFormat::ALL.into_iter().flat_map(|format| SIZES.map(|size| (format, size)))
    }

    #[divan::bench(args = cases())]
    fn kernel(bencher: Bencher, (format, [k, n]): (BlockFormat, [usize; 2])) {
        // Any bytes; the time does not depend on them as long as the scales are numbers.
        let bytes = k / format.block_len() * format.block_bytes() * n;
        let blocks = BlockMatrix::new(format, [n, k], std::sync::Arc::new(vec![0x11_u8; bytes]), 0)
            .expect("whole blocks");
        let (x, w) = (random([1, k]), Weight::from(blocks.transpose()));
        bencher.counter(BytesCount::new(bytes)).bench(|| w.clone().linear(x.clone(), None));
    }

    #[divan::bench(args = SIZES)]
    fn bf16_transposed(bencher: Bencher, [k, n]: [usize; 2]) {
        let (x, w) = (random([1, k]), random([n, k]).cast(burn::tensor::DType::BF16).transpose());
        bencher.counter(BytesCount::new(2 * k * n)).bench(|| linear(x.clone(), w.clone(), None));
    }
}

const MATRICES: [[usize; 2]; 2] = [[434, 1536], [4096, 3072]];

#[divan::bench_group]
mod gelus {
    use super::*;

    #[divan::bench(args = MATRICES)]
    fn kernel(bencher: Bencher, shape: [usize; 2]) {
        let x = random(shape);
        bencher.counter(ItemsCount::new(shape[0] * shape[1])).bench(|| gelu(x.clone(), Gelu::Erf));
    }

    #[divan::bench(args = MATRICES)]
    fn flex(bencher: Bencher, shape: [usize; 2]) {
        let x = random(shape);
        bencher.counter(ItemsCount::new(shape[0] * shape[1])).bench(|| burn_gelu(x.clone()));
    }

    #[divan::bench]
    fn fused_with_linear_434_384_1536(bencher: Bencher) {
        let (x, w, b) = (random([434, 384]), random([384, 1536]), random([1536]));
        bencher
            .counter(flops([434, 384, 1536]))
            .bench(|| linear_gelu(x.clone(), w.clone(), Some(b.clone()), Gelu::Erf));
    }
}

const ROWS: [[usize; 2]; 2] = [[434, 384], [4096, 768]];

#[divan::bench_group]
mod layer_norms {
    use super::*;

    #[divan::bench(args = ROWS)]
    fn kernel(bencher: Bencher, shape: [usize; 2]) {
        let (x, residual, gamma, beta) =
            (random(shape), random(shape), random([shape[1]]), random([shape[1]]));
        bencher.counter(ItemsCount::new(shape[0] * shape[1])).bench(|| {
            layer_norm(x.clone(), Some(residual.clone()), gamma.clone(), Some(beta.clone()), 1e-12, None)
        });
    }

    #[divan::bench(args = ROWS)]
    fn kernel_with_dropout(bencher: Bencher, shape: [usize; 2]) {
        let (x, residual, gamma) = (random(shape), random(shape), random([shape[1]]));
        let dropout = Some(Dropout { p: 0.1, seed: 1 });
        bencher
            .counter(ItemsCount::new(shape[0] * shape[1]))
            .bench(|| layer_norm(x.clone(), Some(residual.clone()), gamma.clone(), None, 1e-12, dropout));
    }

    #[divan::bench(args = ROWS)]
    fn flex(bencher: Bencher, shape: [usize; 2]) {
        let (x, residual, gamma, beta) =
            (random(shape), random(shape), random([shape[1]]), random([shape[1]]));
        bencher.counter(ItemsCount::new(shape[0] * shape[1])).bench(|| {
            let x = x.clone() + residual.clone();
            let (variance, mean) = x.clone().var_mean_bias(1);
            let x_hat = (x - mean) / (variance + 1e-12).sqrt();
            x_hat * gamma.clone().unsqueeze() + beta.clone().unsqueeze()
        });
    }
}

#[divan::bench_group]
mod attentions {
    use super::*;

    /// Sequences, their length, heads and their width.
    const SHAPES: [[usize; 4]; 4] =
        [[31, 14, 12, 32], [32, 128, 12, 64], [4, 512, 12, 64], [1, 2048, 12, 64]];

    fn work([sequences, length, heads, width]: [usize; 4]) -> ItemsCount {
        ItemsCount::new(4 * sequences * length * length * heads * width)
    }

    fn arguments([sequences, length, heads, width]: [usize; 4]) -> ([Tensor<Flex, 2>; 3], AttentionSpec) {
        let tensors = [0; 3].map(|_| random([sequences * length, heads * width]));
        (tensors, AttentionSpec::encoder(vec![length; sequences], heads, width))
    }

    #[divan::bench(args = SHAPES)]
    fn kernel(bencher: Bencher, shape: [usize; 4]) {
        let ([q, k, v], spec) = arguments(shape);
        bencher.counter(work(shape)).bench(|| attention(q.clone(), k.clone(), v.clone(), &spec));
    }

    #[divan::bench(args = SHAPES)]
    fn kernel_backward(bencher: Bencher, shape: [usize; 4]) {
        let (tensors, spec) = arguments(shape);
        let dy = tensors[0].clone().into_primitive().tensor();
        let [q, k, v] = tensors.map(|tensor| tensor.into_primitive().tensor());
        let tensors = AttentionTensors::new(q, k, v);
        let (y, log_sums) = Flex::attention_saving(tensors.clone(), &spec);
        let needed = [true, true, true, false, false];
        bencher.counter(work(shape)).bench(|| {
            let (tensors, y, log_sums) = (tensors.clone(), y.clone(), log_sums.clone());
            Flex::attention_grads(tensors, y, log_sums, dy.clone(), &spec, needed)
        });
    }

    #[divan::bench(args = SHAPES)]
    fn flex(bencher: Bencher, [sequences, length, heads, width]: [usize; 4]) {
        let heads_first = |x: Tensor<Flex, 2>| x.reshape([sequences, length, heads, width]).swap_dims(1, 2);
        let (tensors, spec) = arguments([sequences, length, heads, width]);
        bencher.counter(work([sequences, length, heads, width])).bench(|| {
            let [q, k, v] = tensors.clone().map(heads_first);
            let p = softmax(q.matmul(k.transpose()).mul_scalar(spec.scale), 3);
            p.matmul(v).swap_dims(1, 2).reshape([sequences * length, heads * width])
        });
    }
}

#[divan::bench]
fn cross_entropy_of_a_vocabulary(bencher: Bencher) {
    let logits = random([434, 30522]);
    let targets = Tensor::<Flex, 1, Int>::zeros([434], &Default::default());
    bencher
        .counter(ItemsCount::new(434_usize * 30522))
        .bench(|| cross_entropy(logits.clone(), targets.clone()));
}

#[divan::bench]
fn adamw_of_a_layer(bencher: Bencher) {
    let new = || random([768, 3072]);
    let options =
        AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, grad_scale: 1.0, step: 3 };
    bencher
        .counter(ItemsCount::new(768_usize * 3072))
        .with_inputs(|| (new(), new(), AdamWState { mean: new(), square: new().abs() }))
        .bench_values(|(param, grad, state)| adamw_step(param, grad, state, &options));
}
