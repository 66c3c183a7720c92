//! An exact SVD of m × n holds at most 4·(m + n)·min(m, n) numbers beyond its input.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use lowrank_factor::{Mat, Scalar, svd};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes above the present level that running `work` reaches.
fn peak<R>(work: impl FnOnce() -> R) -> (usize, R) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = work();
    (MEMORY.peak_usage() - before, result)
}

fn check<T: Scalar>(m: usize, n: usize, fill: impl Fn(usize, usize) -> f64) {
    let a = Mat::from_fn(m, n, |i, j| T::of(fill(i, j)));
    let (bytes, svd) = peak(|| svd::exact(a.as_ref()).unwrap());
    let numbers = bytes / size_of::<T>();
    let allowed = 4 * (m + n) * m.min(n);
    assert!(svd.rank() == m.min(n) && numbers >= (m + n) * m.min(n), "the result itself was not counted");
    assert!(numbers <= allowed, "{m}x{n}: {numbers} numbers, {allowed} allowed");
}

/// One test, because the allocator counts all threads of the process.
#[test]
fn an_exact_svd_keeps_to_its_memory() {
    // Threads, their stacks and what faer's products keep for each of them are not part of the decomposition.
    let warm_up = || {
        let a = Mat::from_fn(300, 300, |i, j| ((i * j) as f64).sin());
        svd::exact(a.as_ref()).unwrap();
        svd::exact(Mat::from_fn(300, 300, |i, j| a[(i, j)] as f32).as_ref()).unwrap();
    };
    rayon::broadcast(|_| warm_up());
    warm_up();
    let generic = |i: usize, j: usize| ((i * 7 + j * 13) as f64).sin() + f64::from(u8::from(i == j));
    for (m, n) in [(256, 256), (600, 600), (900, 600), (600, 410), (2000, 200), (200, 2000), (4000, 300)] {
        check::<f32>(m, n, generic);
        check::<f64>(m, n, generic);
    }
    // A singular matrix takes the Householder path of the QR.
    check::<f32>(2000, 200, |i, j| if j % 2 == 0 { (i + j) as f64 } else { 1.0 });
    check::<f32>(700, 700, |_, _| 1.0);
}
