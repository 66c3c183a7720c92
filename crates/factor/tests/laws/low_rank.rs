//! Laws of low-rank matrices: refits, alternating least squares, arithmetic.

use lowrank_factor::low_rank::AlternatingOptions;
use lowrank_factor::svd::exact;
use lowrank_factor::{FactorError, LowRank, Mat, SigmaPlacement, Truncation};
use proptest::prelude::*;
use rstest::rstest;

use crate::common::{distance, norm, random, tolerance, with_spectrum};

fn best(a: &Mat<f64>, rank: usize, sigma: SigmaPlacement) -> LowRank<f64> {
    exact(a.as_ref()).unwrap().low_rank(&Truncation::Rank(rank), sigma).unwrap().factors
}

#[rstest]
fn sigma_goes_where_it_is_told(
    #[values(SigmaPlacement::Left, SigmaPlacement::Right, SigmaPlacement::Split)] sigma: SigmaPlacement,
) {
    let a = random::<f64>(20, 14, 1);
    let full = exact(a.as_ref()).unwrap();
    let fit = best(&a, 5, sigma);
    for k in 0..5 {
        let column = norm(fit.left().subcols(k, 1));
        let row = norm(fit.right().subrows(k, 1));
        let s = full.s()[k];
        let (left, right) = match sigma {
            SigmaPlacement::Left => (s, 1.0),
            SigmaPlacement::Right => (1.0, s),
            SigmaPlacement::Split => (s.sqrt(), s.sqrt()),
        };
        assert!((column - left).abs() < 1e-13 && (row - right).abs() < 1e-13);
    }
    let reference = best(&a, 5, SigmaPlacement::Left).reconstruct();
    assert!(distance(fit.reconstruct().as_ref(), reference.as_ref()) < 1e-13);
}

#[rstest]
#[case(24, 16, 4)]
#[case(16, 24, 7)]
#[case(9, 9, 9)]
#[case(1, 6, 1)]
fn a_refit_of_the_truncated_svd_changes_nothing(#[case] m: usize, #[case] n: usize, #[case] rank: usize) {
    let a = random::<f64>(m, n, 2);
    let fit = best(&a, rank, SigmaPlacement::Split);
    let slack = 4.0 * tolerance::<f64>(m, n) * norm(a.as_ref());
    let right = fit.refit_right(a.as_ref()).unwrap();
    assert!(distance(right.right(), fit.right()) <= slack);
    let left = fit.refit_left(a.as_ref()).unwrap();
    assert!(distance(left.left(), fit.left()) <= slack);
}

#[test]
fn a_refit_never_hurts_and_meets_the_normal_equations() {
    let a = random::<f64>(30, 20, 3);
    let start = LowRank::new(random(30, 4, 4), random(4, 20, 5)).unwrap();
    let fit = start.refit_right(a.as_ref()).unwrap();
    assert!(fit.relative_error(a.as_ref()).unwrap() < start.relative_error(a.as_ref()).unwrap());
    // Lᵀ(A − L·R) = 0.
    let residual = &a - fit.reconstruct();
    assert!((fit.left().transpose() * residual).norm_max() < 1e-12);
}

#[test]
fn a_rank_deficient_factor_gives_the_solution_of_least_norm() {
    let column = random::<f64>(10, 1, 6);
    let left = Mat::from_fn(10, 2, |i, _| column[(i, 0)]); // two equal columns
    let a = random::<f64>(10, 7, 7);
    let fit = LowRank::new(left, Mat::zeros(2, 7)).unwrap().refit_right(a.as_ref()).unwrap();
    // Both rows share the coefficient of the single direction.
    assert!(distance(fit.right().subrows(0, 1), fit.right().subrows(1, 1)) < 1e-14);
    let single = LowRank::new(column, Mat::zeros(1, 7)).unwrap().refit_right(a.as_ref()).unwrap();
    assert!(distance(fit.reconstruct().as_ref(), single.reconstruct().as_ref()) < 1e-13);
}

#[rstest]
#[case::random(random(40, 3, 8), random(3, 30, 9))]
#[case::zeros(Mat::zeros(40, 3), Mat::zeros(3, 30))]
#[case::dependent(Mat::ones(40, 3), random(3, 30, 9))]
fn alternating_least_squares_reaches_the_optimum_from_any_start(
    #[case] left: Mat<f64>,
    #[case] right: Mat<f64>,
) {
    let values: Vec<f64> = (0..30).map(|i| 0.6_f64.powi(i)).collect();
    let a = with_spectrum::<f64>(40, 30, &values, 10);
    let options = AlternatingOptions { max_iterations: 200, tolerance: 1e-12 };
    let (fit, report) = LowRank::new(left, right).unwrap().alternate(a.as_ref(), &options).unwrap();
    let optimum = best(&a, 3, SigmaPlacement::Split).relative_error(a.as_ref()).unwrap();
    assert!(report.converged);
    assert!((fit.relative_error(a.as_ref()).unwrap() / optimum - 1.0).abs() < 1e-9);
    assert!(report.errors.windows(2).all(|pair| pair[1] <= pair[0] + 1e-14), "{:?}", report.errors);
    assert_eq!(*report.errors.last().unwrap(), fit.relative_error(a.as_ref()).unwrap());
}

#[test]
fn too_few_sweeps_are_reported() {
    let a = random::<f64>(30, 30, 11);
    let start = LowRank::new(random(30, 5, 12), random(5, 30, 13)).unwrap();
    let options = AlternatingOptions { max_iterations: 2, tolerance: 0.0 };
    let (_, report) = start.alternate(a.as_ref(), &options).unwrap();
    assert_eq!((report.converged, report.errors.len()), (false, 3));
    let none = AlternatingOptions { max_iterations: 0, ..options };
    assert!(matches!(start.alternate(a.as_ref(), &none), Err(FactorError::InvalidOption { .. })));
    let bad = AlternatingOptions { tolerance: f64::NAN, ..options };
    assert!(matches!(start.alternate(a.as_ref(), &bad), Err(FactorError::InvalidOption { .. })));
}

#[test]
fn products_and_transposes_match_the_dense_matrix() {
    let low = LowRank::new(random::<f64>(12, 3, 1), random(3, 8, 2)).unwrap();
    let dense = low.reconstruct();
    let x = random::<f64>(5, 12, 3);
    assert!(distance(low.multiply_batch(x.as_ref()).unwrap().as_ref(), (&x * &dense).as_ref()) < 1e-13);
    assert!(distance(low.transpose().reconstruct().as_ref(), dense.transpose()) < 1e-14);
    assert!(matches!(low.multiply_batch(x.transpose()), Err(FactorError::ShapeMismatch { .. })));
    assert_eq!((low.shape(), low.rank(), low.parameters()), ((12, 8), 3, 60));
    let (left, right) = low.to_row_major();
    assert_eq!((left[1], right[9]), (low.left()[(0, 1)], low.right()[(1, 1)]));
}

#[test]
fn merging_an_adapter_never_goes_dense() {
    // W ≈ L·R at rank 6 plus a scaled adapter of rank 2: rank 8 exactly, and the best rank 4 of that.
    let base = LowRank::new(random::<f64>(50, 6, 1), random(6, 40, 2)).unwrap();
    let adapter = LowRank::new(random::<f64>(50, 2, 3), random(2, 40, 4)).unwrap().scale(0.25).unwrap();
    let sum = base.add(&adapter).unwrap();
    let dense = base.reconstruct() + adapter.reconstruct();
    assert_eq!(sum.rank(), 8);
    assert!(distance(sum.reconstruct().as_ref(), dense.as_ref()) < 1e-12);
    let exactly = sum.recompress(&Truncation::RelativeError(1e-12), SigmaPlacement::Split).unwrap();
    assert_eq!(exactly.report.rank, 8);
    let cut = sum.recompress(&Truncation::Rank(4), SigmaPlacement::Split).unwrap();
    let reference = best(&dense, 4, SigmaPlacement::Split).reconstruct();
    assert!(distance(cut.factors.reconstruct().as_ref(), reference.as_ref()) < 1e-11);
    assert_eq!((cut.report.parameters_before, cut.report.parameters_after), (8 * 90, 4 * 90));
    let other = LowRank::new(random::<f64>(50, 2, 3), random(2, 41, 4)).unwrap();
    assert!(matches!(base.add(&other), Err(FactorError::ShapeMismatch { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_svd_of_factors_is_that_of_the_product(
        m in 1..20_usize, n in 1..20_usize, r in 1..24_usize, seed: u64,
    ) {
        let low = LowRank::new(random::<f64>(m, r, seed), random(r, n, seed ^ 1)).unwrap();
        let dense = low.reconstruct();
        let (fast, slow) = (low.svd().unwrap(), exact(dense.as_ref()).unwrap());
        let slack = tolerance::<f64>(m.max(r), n.max(r)) * norm(low.left()) * norm(low.right());
        for (x, y) in fast.s().iter().zip(slow.s()) {
            prop_assert!((x - y).abs() <= slack);
        }
        prop_assert!(distance(fast.reconstruct().as_ref(), dense.as_ref()) <= slack);
    }
}
