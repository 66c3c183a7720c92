//! Benchmarks of the decompositions: `cargo bench -p lowrank-factor`.
//!
//! `benches/peers/factor.py` at the root of the repository measures the same cases beside numpy, PyTorch
//! and scikit-learn.

#![allow(clippy::unwrap_used, reason = "a benchmark may end on the first surprise")]

use divan::Bencher;
use lowrank_factor::svd::{AdaptiveOptions, RandomizedOptions};
use lowrank_factor::tt::{Core, DimFactors, TensorTrain, TtMatrix, TtShape};
use lowrank_factor::{
    HostMatrix, Mat, RankItem, Truncation, allocate_ranks, elementwise_errors, qr, svd, whitened,
};

fn main() {
    divan::main();
}

/// Deterministic numbers, roughly normal: sums of four uniform ones.
fn random(rows: usize, cols: usize) -> Mat<f32> {
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    Mat::from_fn(rows, cols, |_, _| next() + next() + next() + next())
}

const SHAPES: [(usize, usize); 3] = [(768, 768), (3072, 768), (2048, 2048)];

#[divan::bench(args = SHAPES, sample_count = 7)]
fn exact_svd(bencher: Bencher<'_, '_>, (m, n): (usize, usize)) {
    let a = random(m, n);
    bencher.bench_local(|| svd::exact(a.as_ref()).unwrap());
}

#[divan::bench(args = SHAPES, sample_count = 7)]
fn singular_values(bencher: Bencher<'_, '_>, (m, n): (usize, usize)) {
    let a = random(m, n);
    bencher.bench_local(|| svd::singular_values(a.as_ref()).unwrap());
}

#[divan::bench(args = SHAPES, sample_count = 15)]
fn randomized_svd(bencher: Bencher<'_, '_>, (m, n): (usize, usize)) {
    let a = random(m, n);
    let rank = m.min(n) / 4;
    bencher.bench_local(|| {
        let host = HostMatrix::new(a.as_ref()).unwrap();
        svd::randomized(&host, rank, &RandomizedOptions::default()).unwrap()
    });
}

#[divan::bench(args = [(768, 768), (3072, 768)], sample_count = 7)]
fn adaptive_svd(bencher: Bencher<'_, '_>, (m, n): (usize, usize)) {
    // Rank 64 plus a little noise, to an error just above the noise.
    let noise = random(m, n);
    let strong = random(m, 64) * random(64, n);
    let a = Mat::from_fn(m, n, |i, j| strong[(i, j)] + 0.01 * noise[(i, j)]);
    let target = Truncation::RelativeError(0.01);
    bencher.bench_local(|| {
        let host = HostMatrix::new(a.as_ref()).unwrap();
        svd::adaptive(&host, &target, &AdaptiveOptions::default()).unwrap()
    });
}

#[divan::bench(args = [(3072, 768), (2048, 522)], sample_count = 15)]
fn thin_qr(bencher: Bencher<'_, '_>, (m, n): (usize, usize)) {
    let a = random(m, n);
    bencher.bench_local(|| qr::thin_qr(a.as_ref()).unwrap());
}

#[divan::bench(args = [768], sample_count = 5)]
fn elementwise_error_curve(bencher: Bencher<'_, '_>, side: usize) {
    let a = random(side, side);
    let svd = svd::exact(a.as_ref()).unwrap();
    bencher.bench_local(|| elementwise_errors(a.as_ref(), &svd).unwrap());
}

#[divan::bench(args = [(768, 768), (3072, 768), (768, 3072)], sample_count = 5)]
fn whitened_svd(bencher: Bencher<'_, '_>, (m, n): (usize, usize)) {
    let (a, x) = (random(m, n), random(2 * n, n));
    let gram = x.transpose() * &x;
    bencher.bench_local(|| whitened::by_gram(a.as_ref(), gram.as_ref()).unwrap());
}

/// A 768 × 768 TT-matrix of three cores, with all ranks equal.
fn tt_matrix(rank: usize) -> TtMatrix<f32> {
    let (rows, cols) = (vec![8, 8, 12], vec![12, 8, 8]);
    let core = |left: usize, mode: usize, right: usize| {
        let data = random(left * mode, right);
        Core::new(
            [left, mode, right],
            (0..left * mode * right).map(|i| data[(i / right, i % right)]).collect(),
        )
        .unwrap()
    };
    let cores = vec![core(1, 96, rank), core(rank, 64, rank), core(rank, 96, 1)];
    let dim = |factors: Vec<usize>| DimFactors::new(768, factors).unwrap();
    TtMatrix::new(TtShape::new(dim(rows), dim(cols)).unwrap(), TensorTrain::new(cores).unwrap()).unwrap()
}

#[divan::bench(args = [2, 4, 8, 16], sample_count = 100)]
fn tt_product_batch_32(bencher: Bencher<'_, '_>, rank: usize) {
    let (tt, x) = (tt_matrix(rank), random(32, 768));
    bencher.bench_local(|| tt.multiply_batch(x.as_ref()).unwrap());
}

#[divan::bench(sample_count = 100)]
fn dense_product_batch_32(bencher: Bencher<'_, '_>) {
    let (a, x) = (random(768, 768), random(32, 768));
    bencher.bench_local(|| &x * &a);
}

#[divan::bench(sample_count = 20)]
fn gather_512_rows(bencher: Bencher<'_, '_>) {
    let tt = tt_matrix(16);
    let rows: Vec<usize> = (0..512).map(|i| (i * 7) % 768).collect();
    bencher.bench_local(|| tt.gather_rows(&rows).unwrap());
}

#[divan::bench(sample_count = 5)]
fn allocate_224_matrices(bencher: Bencher<'_, '_>) {
    let items: Vec<RankItem> = (0..224)
        .map(|i| {
            let values: Vec<f64> =
                (1..=2560).map(|k| f64::from(k).powf(-0.3 - f64::from(i % 7) * 0.1)).collect();
            RankItem::new(&values, [5120, 9472, 2816][i as usize % 3]).unwrap()
        })
        .collect();
    bencher.bench_local(|| allocate_ranks(&items, 1_000_000_000).unwrap());
}
