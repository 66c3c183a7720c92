//! Decompositions whose large products are computed in another place.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard};

use burn_flex::Flex;
use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_safetensors};
use lowrank_compress::{Amount, DeviceProducts, Method, Options, Products, compress, extract, extract_with};
use lowrank_factor::matrix::from_row_major;
use lowrank_factor::{FactorError, Mat, MatRef, MatrixProducts, Truncation};

/// The device of a backend, with the number of matrices that it was given.
#[derive(Debug)]
struct Counted {
    device: DeviceProducts<Flex>,
    held: AtomicUsize,
}

impl Counted {
    fn new() -> Self {
        Self { device: DeviceProducts::new(Default::default()), held: AtomicUsize::new(0) }
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

impl Products for Counted {
    fn hold(&self, a: MatRef<'_, f32>) -> Result<Box<dyn MatrixProducts<Scalar = f32>>, FactorError> {
        self.held.fetch_add(1, Ordering::SeqCst);
        self.device.hold(a)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.device.turn()
    }
}

/// Weights `[d_output, d_input]` of one layer, wide, tall and small.
const MAPS: [(&str, [usize; 2]); 3] =
    [("up_proj", [150, 190]), ("down_proj", [190, 150]), ("gate_proj", [40, 190])];

fn key(map: &str) -> String {
    format!("model.layers.0.mlp.{map}")
}

/// A matrix whose singular values decay slowly.
fn weight([rows, columns]: [usize; 2], seed: usize) -> Vec<f32> {
    let wave = |i: usize, j: usize, k: usize| {
        (((i + 1) * (k + seed + 1)) as f64 * 0.61).sin() * (((j + 1) * (k + 2)) as f64 * 0.43).cos()
    };
    let value = |i: usize, j: usize| (0..60).map(|k| wave(i, j, k) / (k + 1) as f64).sum::<f64>() as f32;
    (0..rows * columns).map(|at| value(at / columns, at % columns)).collect()
}

fn model(dir: &Path, name: &str, change: f32) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let tensors = MAPS.into_iter().enumerate().map(|(seed, (map, shape))| {
        let update = weight(shape, seed + 7);
        let values = weight(shape, seed).into_iter().zip(update).map(|(w, u)| w + change * u);
        HostTensor::new(format!("{}.weight", key(map)), shape, values.collect::<Vec<f32>>())
    });
    let file = folder.join("model.safetensors");
    write_safetensors(file, tensors.collect(), FloatType::F32, &BTreeMap::new()).unwrap();
    folder
}

/// `‖W − B·A‖ / ‖W‖` of what is written.
fn error(dense: &Path, out: &Path, map: &str) -> f64 {
    let matrix = |folder: &Path, name: String| -> Mat<f32> {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let shape = checkpoint.info(&name).unwrap().shape.clone();
        from_row_major(&checkpoint.read_f32(&name).unwrap(), shape[0], shape[1]).unwrap().to_owned()
    };
    let w = matrix(dense, format!("{}.weight", key(map)));
    let [b, a] = ["b", "a"].map(|name| matrix(out, format!("{}.lowrank_{name}.weight", key(map))));
    f64::from((&w - b * a).norm_l2() / w.norm_l2())
}

#[test]
fn a_small_given_rank_is_sampled_there_and_as_good_as_the_exact_one() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model(dir.path(), "model", 0.0);
    let run = |name: &str, rank: usize, products: Option<Arc<dyn Products>>| {
        let ranks = MAPS.map(|(map, _)| (map.to_string(), rank)).to_vec();
        let options = Options { products, ..Options::new(Method::Svd, Amount::Ranks(ranks)) };
        let out = dir.path().join(name);
        (compress(&folder, &out, &options, None, &()).unwrap(), out)
    };
    let counted = Arc::new(Counted::new());
    let (exact, _) = run("exact", 12, None);
    let (sampled, out) = run("sampled", 12, Some(counted.clone()));
    assert_eq!(counted.held(), 2, "the small one is decomposed at once");
    for (exact, sampled) in exact.modules.iter().zip(&sampled.modules) {
        assert_eq!((&sampled.module, &sampled.ranks), (&exact.module, &exact.ranks));
        let map = sampled.module.rsplit('.').next().unwrap();
        let measured = error(&folder, &out, map);
        assert!((measured - sampled.error).abs() < 1e-4, "{map}: {measured}, said {}", sampled.error);
        assert!(sampled.error <= 1.01 * exact.error, "{map}: {} beside {}", sampled.error, exact.error);
        assert!(exact.error > 0.05, "{map}: {}", exact.error);
    }
    // Past about a third of the side the exact decomposition is the better one.
    run("large", 60, Some(counted.clone()));
    assert_eq!(counted.held(), 2);
}

#[test]
fn a_difference_is_sampled_there() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = (model(dir.path(), "base", 0.0), model(dir.path(), "tuned", 0.3));
    let counted = Counted::new();
    let truncation = Truncation::Rank(10);
    let on_host = extract(&base, &tuned, &truncation).unwrap();
    let there = extract_with(&base, &tuned, &truncation, Some(&counted)).unwrap();
    assert_eq!((there.modules.len(), counted.held()), (3, 2));
    for (expected, got) in on_host.modules.iter().zip(&there.modules) {
        assert_eq!((&got.site.path, got.factors.rank()), (&expected.site.path, expected.factors.rank()));
        assert!((got.error / expected.error - 1.0).abs() < 1e-3, "{} beside {}", got.error, expected.error);
        let [expected, product] = [expected, got].map(|module| module.factors.reconstruct());
        let off = (&product - &expected).norm_l2() / expected.norm_l2();
        assert!(off < 0.05, "{}: {off}", got.site.path);
    }
}
