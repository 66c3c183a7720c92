//! Laws of factors shared by a stack.

use lowrank_factor::tucker::{
    SharedSide, Tucker2, Tucker2Options, shared_basis, tucker2, tucker2_with_ranks,
};
use lowrank_factor::{FactorError, Mat, MatRef, Scalar, SigmaPlacement, Truncation, svd};
use proptest::prelude::*;
use rstest::rstest;

use crate::common::{check_orthonormal, distance, norm, random, tolerance};

/// Slices `L·M_s·R` with ranks `(p, q)` plus noise.
fn stack<T: Scalar>(
    slices: usize,
    (m, n): (usize, usize),
    (p, q): (usize, usize),
    noise: f64,
) -> Vec<Mat<T>> {
    let (l, r) = (random::<f64>(m, p, 1), random::<f64>(q, n, 2));
    let slice = |s: usize| {
        let core = random::<f64>(p, q, 10 + s as u64);
        let extra = random::<f64>(m, n, 100 + s as u64);
        let a = &l * core * &r;
        Mat::from_fn(m, n, |i, j| T::of(a[(i, j)] + noise * extra[(i, j)]))
    };
    (0..slices).map(slice).collect()
}

fn views<T: Scalar>(stack: &[Mat<T>]) -> Vec<MatRef<'_, T>> {
    stack.iter().map(Mat::as_ref).collect()
}

fn total<T: Scalar>(stack: &[Mat<T>]) -> f64 {
    stack.iter().map(|a| norm(a.as_ref()).powi(2)).sum::<f64>().sqrt()
}

#[track_caller]
fn check_exact_recovery<T: Scalar>(slices: usize, shape: (usize, usize), ranks: (usize, usize)) {
    let stack = stack::<T>(slices, shape, ranks, 0.0);
    let fit = tucker2_with_ranks(&views(&stack), ranks, &Tucker2Options::default()).unwrap();
    let floor = 4.0 * tolerance::<T>(shape.0, shape.1 * slices);
    assert!(fit.report.relative_error <= floor, "{:e} > {floor:e}", fit.report.relative_error);
    check_orthonormal(fit.factors.left(), "L");
    check_orthonormal(fit.factors.right().transpose(), "R");
    assert_eq!(fit.factors.relative_error(&views(&stack)).unwrap(), fit.report.relative_error);
}

#[rstest]
#[case(4, (20, 14), (3, 5))]
#[case(3, (14, 20), (5, 2))]
#[case(24, (16, 16), (4, 4))]
#[case(1, (9, 7), (2, 2))]
#[case(2, (1, 8), (1, 2))]
fn true_ranks_recover_exactly(
    #[case] slices: usize,
    #[case] shape: (usize, usize),
    #[case] ranks: (usize, usize),
) {
    check_exact_recovery::<f64>(slices, shape, ranks);
    check_exact_recovery::<f32>(slices, shape, ranks);
}

#[test]
fn sweeps_lower_the_error_of_the_hosvd() {
    let stack = stack::<f64>(6, (30, 25), (8, 8), 0.4);
    let options = Tucker2Options { max_iterations: 40, tolerance: 1e-9 };
    let fit = tucker2_with_ranks(&views(&stack), (5, 4), &options).unwrap();
    assert!(fit.errors.len() > 2 && fit.converged);
    assert!(fit.errors.windows(2).all(|pair| pair[1] <= pair[0] + 1e-14), "{:?}", fit.errors);
    assert!(fit.errors.last() < fit.errors.first());
    let start =
        tucker2_with_ranks(&views(&stack), (5, 4), &Tucker2Options { max_iterations: 0, ..options }).unwrap();
    assert_eq!(start.errors, fit.errors[..1]);
    assert!(!start.converged);
    // The cores are the best ones for the bases: L is orthogonal to the residual.
    let residual = &stack[2] - fit.factors.reconstruct(2).unwrap();
    let seen = fit.factors.left().transpose() * residual * fit.factors.right().transpose();
    assert!(seen.norm_max() < 1e-12);
}

#[test]
fn one_slice_is_an_svd() {
    let a = random::<f64>(18, 13, 4);
    let fit = tucker2(&[a.as_ref()], &Truncation::Rank(4), &Tucker2Options::default()).unwrap();
    let best = svd::exact(a.as_ref()).unwrap().low_rank(&Truncation::Rank(4), SigmaPlacement::Left).unwrap();
    assert!((fit.report.relative_error - best.report.relative_error).abs() < 1e-12);
    assert!(
        distance(fit.factors.reconstruct(0).unwrap().as_ref(), best.factors.reconstruct().as_ref()) < 1e-10
    );
}

#[rstest]
fn targets_are_met(
    #[values(Truncation::RelativeError(0.5), Truncation::RelativeError(0.1), Truncation::Energy(0.95))]
    target: Truncation,
) {
    let stack = stack::<f64>(5, (24, 20), (4, 4), 0.2);
    let fit = tucker2(&views(&stack), &target, &Tucker2Options::default()).unwrap();
    let allowed = match target {
        Truncation::RelativeError(error) => error,
        _ => 0.05_f64.sqrt(),
    };
    assert!(fit.report.relative_error <= allowed);
    let off: f64 = (0..5)
        .map(|s| distance(fit.factors.reconstruct(s).unwrap().as_ref(), stack[s].as_ref()).powi(2))
        .sum();
    assert!((off.sqrt() / total(&stack) - fit.report.relative_error).abs() < 1e-13);
}

#[test]
fn a_budget_is_spent_but_not_exceeded() {
    let stack = stack::<f64>(5, (24, 20), (9, 9), 0.1);
    let minimum = 24 + 20 + 5;
    let mut last = f64::INFINITY;
    for budget in [minimum, 200, 400, 800, 1600] {
        let fit =
            tucker2(&views(&stack), &Truncation::Parameters(budget), &Tucker2Options::default()).unwrap();
        let (p, q) = fit.factors.ranks();
        assert_eq!(fit.report.parameters_after, 24 * p + 20 * q + 5 * p * q);
        assert!(fit.report.parameters_after <= budget);
        let grown = |p: usize, q: usize| p > 24 || q > 20 || 24 * p + 20 * q + 5 * p * q > budget;
        assert!(grown(p + 1, q) && grown(p, q + 1), "room was left at {budget}");
        assert!(fit.report.relative_error <= last);
        last = fit.report.relative_error;
    }
    let small = tucker2(&views(&stack), &Truncation::Parameters(minimum - 1), &Tucker2Options::default());
    assert_eq!(small.unwrap_err(), FactorError::BudgetTooSmall { budget: 48, minimum: 49 });
}

#[test]
fn lotr_counts_come_out_exactly() {
    // 24 slices of 768 × 768 at rank r: 2·768·r + 24·r².
    let core = |r: usize| (0..24).map(move |_| Mat::<f32>::ones(r, r)).collect::<Vec<_>>();
    for r in [1, 2, 8, 32] {
        let tucker = Tucker2::new(Mat::ones(768, r), core(r), Mat::ones(r, 768)).unwrap();
        assert_eq!(tucker.parameters(), 2 * 768 * r + 24 * r * r);
    }
}

#[test]
fn a_shared_basis_is_the_svd_of_the_stack() {
    let parts = [random::<f64>(10, 12, 1), random::<f64>(7, 12, 2), random::<f64>(3, 12, 3)];
    let stacked = Mat::from_fn(20, 12, |i, j| match i {
        0..10 => parts[0][(i, j)],
        10..17 => parts[1][(i - 10, j)],
        _ => parts[2][(i - 17, j)],
    });
    for rank in [1, 5, 12] {
        let fit = shared_basis(&views(&parts), SharedSide::Right, &Truncation::Rank(rank)).unwrap();
        let best =
            svd::exact(stacked.as_ref()).unwrap().low_rank(&Truncation::Rank(rank), SigmaPlacement::Left);
        let best = best.unwrap();
        assert!((fit.report.relative_error - best.report.relative_error).abs() < 1e-13);
        assert_eq!(fit.report.parameters_after, rank * (12 + 20));
        assert_eq!(fit.report.parameters_after, fit.factors.parameters());
        check_orthonormal(fit.factors.shared().transpose(), "shared");
        let off: f64 = (0..3)
            .map(|s| distance(fit.factors.reconstruct(s).unwrap().as_ref(), parts[s].as_ref()).powi(2))
            .sum();
        assert!((off.sqrt() / total(&parts) - fit.report.relative_error).abs() < 1e-13);
    }
}

#[test]
fn sharing_the_left_side_is_sharing_the_right_side_of_the_transposes() {
    let parts = [random::<f32>(9, 4, 1), random::<f32>(9, 11, 2)];
    let fit = shared_basis(&views(&parts), SharedSide::Left, &Truncation::Rank(3)).unwrap();
    let flipped: Vec<_> = parts.iter().map(|a| a.transpose()).collect();
    let other = shared_basis(&flipped, SharedSide::Right, &Truncation::Rank(3)).unwrap();
    assert_eq!(fit.report, other.report);
    assert_eq!((fit.factors.shared().shape(), fit.factors.rank()), ((9, 3), 3));
    for s in 0..2 {
        let (x, y) = (fit.factors.reconstruct(s).unwrap(), other.factors.reconstruct(s).unwrap());
        assert!(distance(x.as_ref(), y.transpose()) < 1e-6);
    }
}

#[test]
fn bad_stacks_are_refused() {
    let options = Tucker2Options::default();
    let (a, b) = (random::<f64>(4, 5, 1), random::<f64>(4, 6, 2));
    let rank = Truncation::Rank(1);
    assert!(matches!(tucker2::<f64>(&[], &rank, &options), Err(FactorError::Empty { .. })));
    let mixed = [a.as_ref(), b.as_ref()];
    assert!(matches!(tucker2(&mixed, &rank, &options), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(shared_basis(&mixed, SharedSide::Right, &rank), Err(FactorError::ShapeMismatch { .. })));
    assert!(shared_basis(&mixed, SharedSide::Left, &rank).is_ok());
    assert!(matches!(shared_basis::<f64>(&[], SharedSide::Left, &rank), Err(FactorError::Empty { .. })));
    let one = [a.as_ref()];
    for ranks in [(0, 1), (1, 0), (5, 1), (1, 6)] {
        assert!(matches!(tucker2_with_ranks(&one, ranks, &options), Err(FactorError::RankOutOfRange { .. })));
    }
    let negative = Tucker2Options { tolerance: -1.0, ..options };
    assert!(matches!(tucker2(&one, &rank, &negative), Err(FactorError::InvalidOption { .. })));
    let cores = || vec![Mat::<f64>::ones(2, 3)];
    assert!(Tucker2::new(Mat::ones(4, 2), cores(), Mat::ones(3, 5)).is_ok());
    assert!(matches!(
        Tucker2::new(Mat::ones(4, 3), cores(), Mat::ones(3, 5)),
        Err(FactorError::ShapeMismatch { .. })
    ));
    assert!(matches!(
        Tucker2::new(Mat::<f64>::ones(4, 2), vec![], Mat::ones(3, 5)),
        Err(FactorError::Empty { .. })
    ));
    let fit = tucker2(&one, &rank, &options).unwrap().factors;
    assert_eq!(fit.reconstruct(1), Err(FactorError::IndexOutOfRange { index: 1, len: 1 }));
    assert!(matches!(fit.relative_error(&mixed[1..]), Err(FactorError::ShapeMismatch { .. })));
}

#[test]
fn zeros_are_factored_without_error() {
    let zero = Mat::<f32>::zeros(5, 4);
    let fit =
        tucker2(&[zero.as_ref(), zero.as_ref()], &Truncation::RelativeError(0.1), &Tucker2Options::default());
    let fit = fit.unwrap();
    assert_eq!((fit.factors.ranks(), fit.report.relative_error), ((1, 1), 0.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_fit_is_within_the_bound_of_its_tails(
        slices in 1..5_usize, m in 2..10_usize, n in 2..10_usize, seed: u64,
    ) {
        let stack: Vec<Mat<f64>> = (0..slices).map(|s| random(m, n, seed.wrapping_add(s as u64))).collect();
        let fit = tucker2(&views(&stack), &Truncation::Rank(m.min(n) / 2 + 1), &Tucker2Options::default()).unwrap();
        let (p, q) = fit.factors.ranks();
        let joined = Mat::from_fn(m, slices * n, |i, j| stack[j / n][(i, j % n)]);
        let piled = Mat::from_fn(slices * m, n, |i, j| stack[i / m][(i % m, j)]);
        let tail = |a: &Mat<f64>, r: usize| -> f64 {
            svd::singular_values(a.as_ref()).unwrap().iter().skip(r).map(|s| s * s).sum()
        };
        let bound = (tail(&joined, p) + tail(&piled, q)).sqrt() / total(&stack);
        let least = tail(&joined, p).max(tail(&piled, q)).sqrt() / total(&stack);
        prop_assert!(fit.errors[0] <= bound + 1e-12);
        prop_assert!(fit.report.relative_error >= least - 1e-12);
        prop_assert!(fit.errors.windows(2).all(|pair| pair[1] <= pair[0] + 1e-13));
    }
}
