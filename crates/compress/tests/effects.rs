//! What the error of one weight does to its layer, and the ranks that follow.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::{Path, PathBuf};

use burn_flex::Flex;
use lowrank_checkpoint::Checkpoint;
use lowrank_compress::{
    Amount, Calibrator, CompressedModule, Method, ModelCalibrator, Of, Options, Result, Tokens, Weighting,
    Weightings, compress,
};
use lowrank_factor::matrix::from_row_major;
use lowrank_factor::{Truncation, subspace};
use lowrank_spec::Representation;
use rstest::rstest;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// The module of a checkpoint as factors of a rank, by plain SVD.
fn factored(folder: &Path, module: &str, rank: usize) -> CompressedModule {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let key = format!("{module}.weight");
    let [rows, columns] = *checkpoint.info(&key).unwrap().shape else { panic!("{key} is not a matrix") };
    let values = checkpoint.read_f32(&key).unwrap();
    let a = from_row_major(&values, rows, columns).unwrap();
    let fit = subspace::leading(a).unwrap().low_rank(a, &Truncation::Rank(rank)).unwrap();
    let (left, right) = fit.factors.to_row_major();
    CompressedModule {
        module: module.into(),
        representation: Representation::low_rank(rank),
        tensors: vec![
            ("lowrank_a.weight".into(), vec![rank, columns], right),
            ("lowrank_b.weight".into(), vec![rows, rank], left),
        ],
    }
}

fn calibrator(folder: &Path, is_sequential: bool) -> ModelCalibrator<Flex> {
    let tokens =
        Tokens { ids: (5..25).collect(), type_ids: vec![0; 20], lengths: vec![8, 12], ..Tokens::default() };
    ModelCalibrator::new(folder, vec![tokens], is_sequential, Default::default()).unwrap()
}

#[rstest]
#[case::llama("llama", "model.layers.1.mlp.down_proj")]
#[case::llama_keys("llama", "model.layers.1.self_attn.k_proj")]
#[case::gpt_neox("gpt-neox", "gpt_neox.layers.1.mlp.dense_h_to_4h")]
#[case::bert_last("bert-cls", "bert.encoder.layer.1.output.dense")]
fn nothing_lost_does_nothing_and_more_lost_does_more(
    #[case] model: &str,
    #[case] module: &str,
    #[values(false, true)] is_sequential: bool,
) {
    let folder = fixture(model);
    let mut calibrator = calibrator(&folder, is_sequential);
    calibrator.weightings(0).unwrap();
    calibrator.compressed(0, &[]).unwrap();
    calibrator.weightings(1).unwrap();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let shape = &checkpoint.info(&format!("{module}.weight")).unwrap().shape;
    let full = shape[0].min(shape[1]);
    let mut effect = |rank| calibrator.effect(1, factored(&folder, module, rank)).unwrap().unwrap();
    let effects = [full, full * 3 / 4, full / 4].map(&mut effect);
    assert!(effects[0] < 1e-10, "{effects:?}");
    assert!(1e-6 < effects[1] && effects[1] < effects[2] && effects[2] < 10.0, "{effects:?}");
    assert_eq!(effect(full / 4), effects[2], "measuring changes nothing");
}

/// One module counts, the others hardly.
struct Only(&'static str);

impl Calibrator for Only {
    fn weightings(&mut self, _layer: usize) -> Result<Weightings> {
        Ok(Weightings::from([("none".into(), Weighting::None)]))
    }

    fn identity(&self) -> String {
        self.0.into()
    }

    fn effect(&mut self, layer: usize, module: CompressedModule) -> Result<Option<f64>> {
        assert!(module.module.contains(&format!(".{layer}.")), "{} in layer {layer}", module.module);
        Ok(Some(if module.module == self.0 { 1.0 } else { 1e-9 }))
    }
}

#[test]
fn ranks_go_where_they_count() {
    let modules = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.gate_proj"];
    let errors = modules.map(|counting| {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(Method::Svd, Amount::Ratio { ratio: 0.5, of: Of::Layers });
        let output = dir.path().join("out");
        let report = compress(&fixture("llama"), &output, &options, Some(&mut Only(counting)), &()).unwrap();
        modules.map(|name| report.modules.iter().find(|m| m.module == name).unwrap().error)
    });
    let [[first, of_second], [of_first, second]] = errors;
    assert!(first == 0.0 && second == 0.0, "what counts loses something: {errors:?}");
    assert!(of_first > 0.1 && of_second > 0.1, "{errors:?}");
}

#[test]
fn weightings_that_are_given_stand_in_for_sums() {
    let folder = fixture("llama");
    let given =
        Weightings::from([("model.layers.0.mlp.up_proj".to_string(), Weighting::Channels(vec![1.0; 32]))]);
    let module = || factored(&folder, "model.layers.0.mlp.up_proj", 8);
    let mut plain = calibrator(&folder, false);
    let mut weighted = calibrator(&folder, false).weighted_by(given.clone());
    assert_ne!(plain.identity(), weighted.identity());
    let sums = plain.weightings(0).unwrap();
    assert!(sums.len() > 1 && sums.values().all(|w| matches!(w, Weighting::Inputs(_))));
    let same = weighted.weightings(0).unwrap();
    assert!(same.len() == 1 && matches!(same.values().next(), Some(Weighting::Channels(w)) if w.len() == 32));
    assert_eq!(weighted.effect(0, module()).unwrap(), plain.effect(0, module()).unwrap());
}
