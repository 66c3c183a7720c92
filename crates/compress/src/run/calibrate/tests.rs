//! Sums on the device beside those of the host.

use burn_flex::Flex;
use lowrank_factor::Mat;
use lowrank_factor::matrix::from_row_major;
use rstest::rstest;

use super::*;
use crate::{Amount, Method, Of, Options, compress};

/// A calibrator of a fixture, with more rows than are multiplied at once.
fn calibrator(
    model: &str,
    sums_on_device: bool,
    is_sequential: bool,
) -> (std::path::PathBuf, ModelCalibrator<Flex>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(model);
    let is_pair = model.starts_with("seq2seq");
    let batch = |seed: u32, n: usize| Tokens {
        ids: (0..24 * n as u32).map(|i| 5 + (i * i + seed * i) % 40).collect(),
        type_ids: vec![0; 24 * n],
        lengths: vec![24; n],
        targets: if is_pair { (0..6 * n as u32).map(|i| 5 + (i * i + i) % 40).collect() } else { Vec::new() },
        target_lengths: if is_pair { vec![6; n] } else { Vec::new() },
        ..Tokens::default()
    };
    let batches = vec![batch(3, 60), batch(7, 10)];
    let made = ModelCalibrator::<Flex>::new(&folder, batches, is_sequential, Default::default()).unwrap();
    (folder, ModelCalibrator { sums_on_device, ..made })
}

#[rstest]
#[case("llama")]
#[case("mixtral")]
#[case("bert-cls")]
#[case("seq2seq-bart")]
fn weightings_are_those_of_the_host(#[case] model: &str) {
    let all = |sums_on_device: bool| {
        let (_, mut calibrator) = calibrator(model, sums_on_device, false);
        let mut all = Weightings::new();
        (0..calibrator.config.n_layers()).for_each(|layer| all.extend(calibrator.weightings(layer).unwrap()));
        all.extend(calibrator.outside().unwrap());
        all
    };
    let (expected, got) = (all(false), all(true));
    let shared = |all: &Weightings| {
        let places: std::collections::HashSet<*const _> = all
            .values()
            .filter_map(|weighting| match weighting {
                Weighting::Inputs(inputs) => Some(Arc::as_ptr(inputs)),
                _ => None,
            })
            .collect();
        places.len()
    };
    assert_eq!((got.len(), shared(&got)), (expected.len(), shared(&expected)));
    assert!(shared(&got) < got.len(), "queries, keys and values have one input");
    for (path, weighting) in &expected {
        match (weighting, &got[path]) {
            (Weighting::Inputs(expected), Weighting::Inputs(got)) => {
                assert_eq!(got.rows, expected.rows, "{path}");
                // Sums of up to 1,024 terms in f32, in another order.
                let (scale, off) = (expected.gram.norm_max(), (&got.gram - &expected.gram).norm_max());
                assert!(off < 1e-5 * scale, "{path}: {off} of {scale}");
                for (got, expected) in got.magnitude.iter().zip(&expected.magnitude) {
                    assert!((got - expected).abs() <= 1e-5 * expected, "{path}: {got} beside {expected}");
                }
            }
            (Weighting::Channels(expected), Weighting::Channels(got)) => assert_eq!(expected, got),
            (_, other) => panic!("{path}: {other:?}"),
        }
    }
}

#[rstest]
#[case("llama", Method::Whitened, false)]
#[case("llama", Method::Whitened, true)]
#[case("llama", Method::Asvd, false)]
#[case("mixtral", Method::Whitened, false)]
fn a_compression_has_the_ranks_and_products_of_the_host(
    #[case] model: &str,
    #[case] method: Method,
    #[case] is_sequential: bool,
) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(method, Amount::Ratio { ratio: 0.4, of: Of::Layers });
    let [(expected, on_host), (got, on_device)] = [false, true].map(|sums_on_device| {
        let (folder, mut calibrator) = calibrator(model, sums_on_device, is_sequential);
        let out = dir.path().join(sums_on_device.to_string());
        let report = compress(&folder, &out, &options, Some(&mut calibrator), &()).unwrap();
        (report, Checkpoint::open(&out).unwrap())
    });
    let product = |checkpoint: &Checkpoint, module: &str| -> Mat<f32> {
        let [b, a] = ["lowrank_b", "lowrank_a"].map(|name| {
            let key = format!("{module}.{name}.weight");
            let shape = checkpoint.info(&key).unwrap().shape.clone();
            let values = checkpoint.read_f32(&key).unwrap();
            from_row_major(&values, shape[0], shape[1]).unwrap().to_owned()
        });
        b * a
    };
    let mut factored = 0;
    for (expected, got) in expected.modules.iter().zip(&got.modules) {
        assert_eq!((got.kind, &got.ranks), (expected.kind, &expected.ranks), "{}", expected.module);
        assert!((got.error - expected.error).abs() < 1e-4, "{}: {}", got.module, got.error);
        if got.kind == "low_rank" {
            let [expected, got] = [&on_host, &on_device].map(|from| product(from, &got.module));
            let off = (&got - &expected).norm_l2() / expected.norm_l2();
            assert!(off < 1e-3, "{off}");
            factored += 1;
        }
    }
    assert!(factored > 3, "{factored}");
}
