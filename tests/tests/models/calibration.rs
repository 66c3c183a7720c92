//! Calibration and large products on the build's backend beside those of a CPU.

use burn::backend::Autodiff;
use burn_ndarray::NdArray;
use lowrank_compress::{
    Answers, Calibrator, DeviceProducts, GradientCalibrator, InputStatistics, ModelCalibrator, Products,
    Tokens, Weighting, Weightings,
};
use lowrank_factor::{HostMatrix, Mat, MatrixProducts};
use lowrank_kernels::Kernels;
use lowrank_tests::{Tested, fixture};

fn tokens() -> Tokens {
    let ids: Vec<u32> = (0..96).map(|i| 5 + (i * i + 3 * i) % 40).collect();
    Tokens { type_ids: vec![0; ids.len()], lengths: vec![12; 8], ids, ..Tokens::default() }
}

fn inputs<B: Kernels>(model: &str) -> Weightings {
    let folder = fixture(model);
    let batches = vec![tokens(), tokens()];
    let mut made = ModelCalibrator::<B>::new(&folder, batches, false, Default::default()).unwrap();
    let mut all = made.weightings(0).unwrap();
    all.extend(made.weightings(1).unwrap());
    all.extend(made.outside().unwrap());
    all
}

fn gradients<B: Kernels>(model: &str) -> Weightings {
    let (folder, scratch) = (fixture(model), tempfile::tempdir().unwrap());
    let samples = vec![(tokens(), Answers::NextTokens)];
    let device = Default::default();
    let mut made = GradientCalibrator::<Autodiff<B>>::new(&folder, samples, scratch.path(), device).unwrap();
    made.prepare(&()).unwrap();
    let mut all = made.weightings(1).unwrap();
    all.extend(made.weightings(0).unwrap());
    all
}

fn check(path: &str, got: &InputStatistics, expected: &InputStatistics) {
    assert_eq!(got.rows, expected.rows, "{path}");
    let (scale, off) = (expected.gram.norm_max(), (&got.gram - &expected.gram).norm_max());
    assert!(scale > 0.0 && off < 1e-4 * scale, "{path}: {off} of {scale}");
    let largest = expected.magnitude.iter().fold(0.0, |a: f64, b| a.max(*b));
    for (got, expected) in got.magnitude.iter().zip(&expected.magnitude) {
        assert!((got - expected).abs() < 1e-4 * largest, "{path}: {got} beside {expected}");
    }
}

#[test]
fn sums_of_inputs_are_those_of_a_cpu() {
    for model in ["llama", "mixtral"] {
        let (got, expected) = (inputs::<Tested>(model), inputs::<NdArray>(model));
        assert_eq!(got.len(), expected.len(), "{model}");
        for (path, expected) in &expected {
            match (&got[path], expected) {
                (Weighting::Inputs(got), Weighting::Inputs(expected)) => check(path, got, expected),
                (Weighting::Channels(got), Weighting::Channels(expected)) => assert_eq!(got, expected),
                (other, _) => panic!("{path}: {other:?}"),
            }
        }
    }
}

#[test]
fn sums_of_gradients_are_those_of_a_cpu() {
    let (got, expected) = (gradients::<Tested>("llama"), gradients::<NdArray>("llama"));
    assert!(got.len() == expected.len() && !got.is_empty());
    for (path, expected) in &expected {
        let (Weighting::Both { sums: got, .. }, Weighting::Both { sums: expected, .. }) =
            (&got[path], expected)
        else {
            panic!("{path}")
        };
        check(path, &got.inputs, &expected.inputs);
        check(path, &got.outputs, &expected.outputs);
    }
}

/// Also on a device that rounds the operands of products to 11 bits.
#[test]
fn products_have_the_precision_of_f32() {
    let wave = |rows: usize, cols: usize| {
        Mat::from_fn(rows, cols, |i, j| ((i * 31 + j * 17 + 5) as f32 * 0.37).sin() + 1.0)
    };
    let (a, x, y) = (wave(96, 80), wave(80, 16), wave(96, 16));
    let held = DeviceProducts::<Tested>::new(Default::default()).hold(a.as_ref()).unwrap();
    let host = HostMatrix::new(a.as_ref()).unwrap();
    let close = |got: Mat<f32>, expected: Mat<f32>| {
        let off = (&got - &expected).norm_max() / expected.norm_max();
        assert!(off < 3e-6, "{off}");
    };
    close(held.multiply(x.as_ref()).unwrap(), host.multiply(x.as_ref()).unwrap());
    close(held.multiply_transposed(y.as_ref()).unwrap(), host.multiply_transposed(y.as_ref()).unwrap());
    assert!((held.norm_squared().unwrap() / host.norm_squared().unwrap() - 1.0).abs() < 1e-6);
}
