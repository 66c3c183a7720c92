//! Randomized methods on a burn device agree with those on the host.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use lowrank_factor::svd::{
    AdaptiveOptions, RandomizedOptions, SvdMethod, adaptive, auto, exact, randomized, sampled,
};
use lowrank_factor::{DeviceMatrix, FactorError, HostMatrix, Mat, MatrixProducts, Truncation, matrix};

fn tensor(a: &Mat<f32>) -> Tensor<Flex, 2> {
    let data = TensorData::new(matrix::to_row_major(a.as_ref()), [a.nrows(), a.ncols()]);
    Tensor::from_data(data, &Default::default())
}

/// Smooth kernel plus a little texture: a spectrum that decays over many orders.
fn sample(rows: usize, cols: usize) -> Mat<f32> {
    Mat::from_fn(rows, cols, |i, j| {
        let distance = i as f32 / rows as f32 - j as f32 / cols as f32;
        1.0 / (1.0 + 30.0 * distance * distance) + 0.01 * ((i * 31 + j * 17) as f32).sin()
    })
}

#[test]
fn products_are_those_of_the_host() {
    let a = sample(70, 45);
    let device = DeviceMatrix::<Flex, f32>::new(tensor(&a)).unwrap();
    check_products(&a, &device);
    check_products(&a, &device.in_parts());
}

fn check_products(a: &Mat<f32>, device: &DeviceMatrix<Flex, f32>) {
    let host = HostMatrix::new(a.as_ref()).unwrap();
    assert_eq!((device.nrows(), device.ncols()), (70, 45));
    let (x, y) = (sample(45, 6), sample(70, 6));
    // Dot products of at most 70 terms of size 1.
    let close = |p: Mat<f32>, q: Mat<f32>| assert!((p - q).norm_max() < 70.0 * f32::EPSILON * 8.0);
    close(device.multiply(x.as_ref()).unwrap(), host.multiply(x.as_ref()).unwrap());
    close(device.multiply_transposed(y.as_ref()).unwrap(), host.multiply_transposed(y.as_ref()).unwrap());
    let same = |p: f64, q: f64| assert!((p / q - 1.0).abs() < 1e-6, "{p} {q}");
    same(device.norm_squared().unwrap(), host.norm_squared().unwrap());
    let (left, right) = (sample(70, 3), sample(45, 3));
    same(
        device.residual_squared(left.as_ref(), right.as_ref()).unwrap(),
        host.residual_squared(left.as_ref(), right.as_ref()).unwrap(),
    );
}

#[test]
fn randomized_agrees_with_the_host_and_the_optimum() {
    for (rows, cols) in [(160, 120), (120, 160)] {
        let a = sample(rows, cols);
        let device = DeviceMatrix::<Flex, f32>::new(tensor(&a)).unwrap();
        let host = HostMatrix::new(a.as_ref()).unwrap();
        let options = RandomizedOptions { seed: 3, ..Default::default() };
        let (x, y) = (randomized(&device, 12, &options).unwrap(), randomized(&host, 12, &options).unwrap());
        let best = exact(a.as_ref()).unwrap().error_curve()[12];
        assert!((x.residual() - y.residual()).abs() <= 1e-2 * y.residual());
        assert!(x.is_settled() && x.residual() <= 1.01 * best + 1e-5, "{} {best}", x.residual());
        let top = f64::from(y.svd().s()[0]);
        let gaps = x.svd().s().iter().zip(y.svd().s()).map(|(p, q)| f64::from(p - q).abs());
        assert!(gaps.fold(0.0, f64::max) <= 1e-5 * top);
    }
}

#[test]
fn what_auto_samples_is_sampled_on_the_device() {
    let a = sample(160, 140);
    let hold = || -> Result<Box<dyn MatrixProducts<Scalar = f32>>, FactorError> {
        Ok(Box::new(DeviceMatrix::<Flex, f32>::new(tensor(&a))?.in_parts()))
    };
    for truncation in [Truncation::Rank(12), Truncation::RelativeError(0.05), Truncation::Parameters(3600)] {
        let found = sampled(a.shape(), &truncation, 0, hold).unwrap().unwrap();
        let expected = auto(a.as_ref(), &truncation, 0).unwrap();
        assert_eq!((found.method, found.svd.rank()), (expected.method, expected.svd.rank()));
        assert_ne!(found.method, SvdMethod::Exact);
        let gaps = found.svd.s().iter().zip(expected.svd.s()).map(|(p, q)| (p - q).abs());
        assert!(gaps.fold(0.0, f32::max) <= 1e-5 * expected.svd.s()[0]);
    }
    let unused = || -> Result<HostMatrix<'_, f32>, FactorError> { panic!("a large rank is not sampled") };
    assert!(sampled(a.shape(), &Truncation::Rank(100), 0, unused).unwrap().is_none());
}

#[test]
fn adaptive_meets_its_target_on_the_device() {
    let a = sample(150, 130);
    let device = DeviceMatrix::<Flex, f32>::new(tensor(&a)).unwrap();
    let svd = adaptive(&device, &Truncation::RelativeError(0.05), &AdaptiveOptions::default()).unwrap();
    let off = (svd.reconstruct() - &a).norm_l2() / a.norm_l2();
    assert!(off <= 0.05 + 1e-5, "{off}");
    assert!(svd.rank() < 65);
}

#[test]
fn extreme_magnitudes_are_rescaled_on_the_device() {
    let a = sample(40, 30);
    let large = Mat::from_fn(40, 30, |i, j| a[(i, j)] * 1e30);
    let device = DeviceMatrix::<Flex, f32>::new(tensor(&large)).unwrap();
    let fit = randomized(&device, 5, &RandomizedOptions::default()).unwrap();
    let plain = exact(a.as_ref()).unwrap();
    assert!((fit.svd().s()[0] / 1e30 / plain.s()[0] - 1.0).abs() < 1e-4);
    assert!((fit.residual() / plain.error_curve()[5] - 1.0).abs() < 1e-2);
}

#[test]
fn bad_tensors_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut a = sample(6, 5);
        a[(4, 3)] = bad;
        let got = DeviceMatrix::<Flex, f32>::new(tensor(&a)).map(drop);
        assert_eq!(got, Err(FactorError::NonFinite { what: "tensor", row: 4, col: 3 }));
    }
    let empty = Tensor::<Flex, 2>::zeros([0, 3], &Default::default());
    assert_eq!(
        DeviceMatrix::<Flex, f32>::new(empty).map(drop),
        Err(FactorError::Empty { what: "tensor", rows: 0, cols: 3 })
    );
}
