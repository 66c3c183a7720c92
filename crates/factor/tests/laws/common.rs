//! Matrices to test on, tolerances, and small helpers shared by the law checkers.

use lowrank_factor::{Mat, MatRef, Scalar, qr::thin_qr};

/// Deterministic numbers in `(-1, 1)`, independent of the crate's own generator.
pub(crate) fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

pub(crate) fn random<T: Scalar>(rows: usize, cols: usize, seed: u64) -> Mat<T> {
    let mut next = noise(seed);
    Mat::from_fn(rows, cols, |_, _| T::of(next()))
}

/// Matrix with the given singular values (nonincreasing, at most `min(m, n)` of them).
pub(crate) fn with_spectrum<T: Scalar>(rows: usize, cols: usize, values: &[f64], seed: u64) -> Mat<T> {
    let k = values.len();
    let u = thin_qr(random::<f64>(rows, k, seed).as_ref()).unwrap().0;
    let v = thin_qr(random::<f64>(cols, k, seed + 1).as_ref()).unwrap().0;
    let us = Mat::from_fn(rows, k, |i, j| u[(i, j)] * values[j]);
    let a = us * v.transpose();
    Mat::from_fn(rows, cols, |i, j| T::of(a[(i, j)]))
}

/// The shapes of the law checkers: tall, wide, square, vectors, and sizes that cross block boundaries.
pub(crate) const SHAPES: &[(usize, usize)] = &[
    (1, 1),
    (1, 9),
    (9, 1),
    (2, 2),
    (5, 3),
    (3, 5),
    (17, 17),
    (40, 12),
    (12, 40),
    (64, 60),
    (130, 129),
    (300, 64),
];

/// The matrices of the law checkers for one shape.
pub(crate) fn matrices<T: Scalar>(rows: usize, cols: usize) -> Vec<(&'static str, Mat<T>)> {
    let k = rows.min(cols);
    let deficient = vec![1.0; k.div_ceil(2)];
    let graded: Vec<f64> = (0..k).map(|i| 10_f64.powf(-6.0 * i as f64 / k as f64)).collect();
    vec![
        ("random", random(rows, cols, 1)),
        ("zeros", Mat::zeros(rows, cols)),
        ("ones", Mat::ones(rows, cols)),
        ("identity", Mat::identity(rows, cols)),
        ("rank-deficient", with_spectrum(rows, cols, &deficient, 2)),
        ("graded", with_spectrum(rows, cols, &graded, 3)),
    ]
}

/// `c·ε·√max(m, n)`: the only source of tolerances. `c = 16` covers the constants of backward errors.
pub(crate) fn tolerance<T: Scalar>(rows: usize, cols: usize) -> f64 {
    16.0 * T::EPSILON * (rows.max(cols) as f64).sqrt()
}

/// Frobenius norm in `f64`.
pub(crate) fn norm<T: Scalar>(a: MatRef<'_, T>) -> f64 {
    let mut total = 0.0;
    for j in 0..a.ncols() {
        total += (0..a.nrows()).map(|i| a[(i, j)].widen().powi(2)).sum::<f64>();
    }
    total.sqrt()
}

/// `‖A − B‖_F`, subtracted in `f64`.
#[track_caller]
pub(crate) fn distance<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    norm(Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].widen() - b[(i, j)].widen()).as_ref())
}

/// Asserts that the columns are orthonormal.
#[track_caller]
pub(crate) fn check_orthonormal<T: Scalar>(q: MatRef<'_, T>, what: &str) {
    let gram = q.transpose() * q;
    let tolerance = tolerance::<T>(q.nrows(), q.ncols());
    for i in 0..q.ncols() {
        for j in 0..q.ncols() {
            let off = (gram[(i, j)].widen() - f64::from(u8::from(i == j))).abs();
            assert!(off <= tolerance, "{what}: Gram entry ({i}, {j}) is off by {off:e} > {tolerance:e}");
        }
    }
}
