//! Laws of the singular value decompositions.

use lowrank_factor::svd::{
    AdaptiveOptions, RandomizedOptions, SvdMethod, adaptive, auto, exact, randomized, singular_values,
};
use lowrank_factor::{FactorError, HostMatrix, Mat, MatRef, Scalar, SigmaPlacement, Svd, Truncation};
use proptest::prelude::*;
use rstest::rstest;

use crate::common::{
    SHAPES, check_orthonormal, distance, matrices, noise, norm, random, tolerance, with_spectrum,
};

/// Every law of an exact thin SVD.
#[track_caller]
fn check_svd<T: Scalar>(a: MatRef<'_, T>, svd: &Svd<T>, what: &str) {
    let (m, n) = a.shape();
    let k = m.min(n);
    let tolerance = tolerance::<T>(m, n);
    assert_eq!((svd.u().shape(), svd.s().len(), svd.v().shape()), ((m, k), k, (n, k)), "{what}");
    check_orthonormal(svd.u(), what);
    check_orthonormal(svd.v(), what);
    let s: Vec<f64> = svd.s().iter().map(|s| s.widen()).collect();
    assert!(s.iter().all(|&s| s >= 0.0), "{what}: negative singular value");
    assert!(s.windows(2).all(|pair| pair[0] >= pair[1]), "{what}: singular values increase");
    let size = norm(a);
    let off = distance(svd.reconstruct().as_ref(), a);
    assert!(off <= tolerance * size, "{what}: ‖A − USVᵀ‖ = {off:e}, ‖A‖ = {size:e}");
    for j in 0..k {
        let column: Vec<f64> = (0..m).map(|i| svd.u()[(i, j)].widen()).collect();
        let max = column.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        let leader = column.iter().find(|x| x.abs() >= max * (1.0 - T::EPSILON.sqrt())).unwrap();
        assert!(*leader > 0.0, "{what}: sign of column {j}");
    }
}

/// Eckart–Young: the error of every truncation is the norm of the dropped values.
#[track_caller]
fn check_eckart_young<T: Scalar>(a: MatRef<'_, T>, svd: &Svd<T>, what: &str) {
    let (m, n) = a.shape();
    let size = norm(a);
    let curve = svd.error_curve();
    assert_eq!(curve[0], if size > 0.0 { 1.0 } else { 0.0 }, "{what}");
    for (rank, &expected) in curve.iter().enumerate().skip(1) {
        let tail = svd.s()[rank..].iter().map(|s| s.widen().powi(2)).sum::<f64>().sqrt();
        let fit = svd.low_rank(&Truncation::Rank(rank), SigmaPlacement::Split).unwrap();
        let off = distance(fit.factors.reconstruct().as_ref(), a);
        let slack = tolerance::<T>(m, n) * size;
        assert!((off - tail).abs() <= slack, "{what}, rank {rank}: {off:e} against {tail:e}");
        assert!((fit.report.relative_error * size - tail).abs() <= slack, "{what}, rank {rank}");
        assert_eq!(fit.report.relative_error, expected, "{what}, rank {rank}");
        assert_eq!(fit.report.parameters_after, rank * (m + n));
        assert_eq!(fit.report.pays(), rank * (m + n) < m * n);
    }
}

#[track_caller]
fn check_all<T: Scalar>(rows: usize, cols: usize) {
    for (kind, a) in matrices::<T>(rows, cols) {
        let what = format!("{kind} {rows}x{cols}");
        let svd = exact(a.as_ref()).unwrap_or_else(|error| panic!("{what}: {error}"));
        check_svd(a.as_ref(), &svd, &what);
        if rows * cols <= 2000 {
            check_eckart_young(a.as_ref(), &svd, &what);
        }
        let slack = tolerance::<T>(rows, cols) * norm(a.as_ref());
        let close = |x: &[T], y: &[T]| x.iter().zip(y).all(|(x, y)| (x.widen() - y.widen()).abs() <= slack);
        assert!(close(&singular_values(a.as_ref()).unwrap(), svd.s()), "{what}: values alone");
        let flipped = exact(a.transpose()).unwrap();
        check_svd(a.transpose(), &flipped, &format!("{what} transposed"));
        assert!(close(flipped.s(), svd.s()), "{what}: transpose symmetry");
    }
}

#[test]
fn exact_laws_f32() {
    SHAPES.iter().for_each(|&(rows, cols)| check_all::<f32>(rows, cols));
}

#[test]
fn exact_laws_f64() {
    SHAPES.iter().for_each(|&(rows, cols)| check_all::<f64>(rows, cols));
}

#[test]
fn known_values() {
    // Eigenvalues of AᵀA = [[9, 12], [12, 41]] are 45 and 5.
    let a = Mat::from_fn(2, 2, |i, j| [[3.0, 4.0], [0.0, 5.0]][i][j]);
    let svd = exact(a.as_ref()).unwrap();
    assert!((svd.s()[0] - 45.0_f64.sqrt()).abs() < 1e-14 && (svd.s()[1] - 5.0_f64.sqrt()).abs() < 1e-14);
}

#[test]
fn strides_do_not_matter() {
    let a = random::<f64>(30, 20, 5);
    let values: Vec<f64> = (0..600).map(|i| a[(i / 20, i % 20)]).collect();
    let row_major = lowrank_factor::matrix::from_row_major(&values, 30, 20).unwrap();
    let reversed = a.reverse_rows_and_cols().to_owned();
    let plain = exact(a.as_ref()).unwrap();
    assert!(distance(plain.reconstruct().as_ref(), exact(row_major).unwrap().reconstruct().as_ref()) < 1e-13);
    let strided = exact(reversed.reverse_rows_and_cols()).unwrap();
    assert!(distance(plain.reconstruct().as_ref(), strided.reconstruct().as_ref()) < 1e-13);
}

#[rstest]
#[case::huge(1e300)]
#[case::tiny(1e-300)]
#[case::subnormal(1e-310)]
fn extreme_magnitudes(#[case] factor: f64) {
    let a = random::<f64>(20, 12, 6);
    let scaled = Mat::from_fn(20, 12, |i, j| a[(i, j)] * factor);
    let (plain, scaled) = (exact(a.as_ref()).unwrap(), exact(scaled.as_ref()).unwrap());
    for (x, y) in plain.s().iter().zip(scaled.s()) {
        // A subnormal of 1e-310 carries about 13 digits.
        assert!((x * factor / y - 1.0).abs() < 1e-10);
    }
}

#[test]
fn a_norm_beyond_the_type_is_an_overflow() {
    let a = Mat::from_fn(50, 50, |_, _| f64::MAX / 2.0);
    assert_eq!(exact(a.as_ref()), Err(FactorError::Overflow { what: "singular value" }));
    let a = Mat::from_fn(50, 50, |_, _| f32::MAX / 2.0);
    assert_eq!(singular_values(a.as_ref()), Err(FactorError::Overflow { what: "singular value" }));
}

/// Spectra on which the randomized methods are held to their bound.
fn spectra(k: usize) -> Vec<(&'static str, Vec<f64>)> {
    let curve = |f: &dyn Fn(f64) -> f64| (0..k).map(|i| f(i as f64 / k as f64)).collect::<Vec<_>>();
    vec![
        ("flat", curve(&|_| 1.0)),
        ("linear", curve(&|x| 1.0 - 0.9 * x)),
        ("inverse", curve(&|x| 1.0 / (1.0 + 100.0 * x))),
        ("exponential", curve(&|x| (-20.0 * x).exp())),
        ("step", curve(&|x| if x < 0.1 { 1.0 } else { 1e-3 })),
        ("ill-conditioned", curve(&|x| 10_f64.powf(-12.0 * x))),
    ]
}

#[track_caller]
fn check_randomized<T: Scalar>(rows: usize, cols: usize) {
    let k = rows.min(cols);
    for (kind, values) in spectra(k) {
        let a = with_spectrum::<T>(rows, cols, &values, 11);
        let host = HostMatrix::new(a.as_ref()).unwrap();
        let full = exact(a.as_ref()).unwrap();
        for rank in [1, k / 8, k / 4] {
            let what = format!("{kind} {rows}x{cols} rank {rank}");
            let fit = randomized(&host, rank, &RandomizedOptions::default()).unwrap();
            let svd = fit.svd();
            assert_eq!((svd.rank(), svd.shape()), (rank, (rows, cols)), "{what}");
            check_orthonormal(svd.u(), &what);
            check_orthonormal(svd.v(), &what);
            let size = norm(a.as_ref());
            let off = distance(svd.reconstruct().as_ref(), a.as_ref()) / size;
            let floor = tolerance::<T>(rows, cols);
            // The residual that comes for free: a difference of which at most 10 bits are rounding.
            assert!(
                (fit.residual() - off).abs() <= floor.max(2e-3 * off),
                "{what}: {} {off}",
                fit.residual()
            );
            let best = full.error_curve()[rank];
            assert!(off >= best - floor, "{what}: better than the best");
            if fit.is_settled() {
                assert!(off <= 1.01 * best + floor, "{what}: {off} against {best}");
            }
            for (x, y) in svd.s().iter().zip(full.s()) {
                assert!(
                    x.widen() <= y.widen() + floor * full.s()[0].widen(),
                    "{what}: values bound from below"
                );
            }
        }
    }
}

#[rstest]
#[case(160, 160)]
#[case(400, 130)]
#[case(130, 400)]
fn randomized_laws(#[case] rows: usize, #[case] cols: usize) {
    check_randomized::<f32>(rows, cols);
    check_randomized::<f64>(rows, cols);
}

#[test]
fn randomized_recovers_exactly_low_rank() {
    let values: Vec<f64> = (0..20).map(|i| 1.0 / (1 + i) as f64).collect();
    let a = with_spectrum::<f32>(200, 150, &values, 4);
    let fit = randomized(&HostMatrix::new(a.as_ref()).unwrap(), 20, &RandomizedOptions::default()).unwrap();
    // The free residual has a floor of √ε = 3e-4; below it the residual is formed.
    assert!(fit.residual() < tolerance::<f32>(200, 150), "{}", fit.residual());
    assert!(fit.is_settled());
}

#[test]
fn equal_seeds_repeat_and_signs_agree_with_exact() {
    let values: Vec<f64> = (0..60).map(|i| 0.8_f64.powi(i)).collect();
    let a = with_spectrum::<f64>(150, 60, &values, 9);
    let host = HostMatrix::new(a.as_ref()).unwrap();
    let options = RandomizedOptions { seed: 5, ..Default::default() };
    let once = randomized(&host, 10, &options).unwrap();
    assert_eq!(once, randomized(&host, 10, &options).unwrap());
    let full = exact(a.as_ref()).unwrap();
    assert!(distance(once.svd().u(), full.u().subcols(0, 10)) < 1e-6);
    assert!(distance(once.svd().v(), full.v().subcols(0, 10)) < 1e-6);
}

#[test]
fn an_unsettled_result_says_so() {
    // Without power iterations on a slowly falling spectrum: far from the optimum, and known to be.
    let values: Vec<f64> = (0..150).map(|i| 1.0 / (1.0 + 0.02 * f64::from(i))).collect();
    let a = with_spectrum::<f64>(200, 150, &values, 12);
    let host = HostMatrix::new(a.as_ref()).unwrap();
    let with = |power_iterations| {
        let options = RandomizedOptions { power_iterations, ..Default::default() };
        randomized(&host, 30, &options).unwrap()
    };
    let fits: Vec<_> = [0, 1, 4].into_iter().map(with).collect();
    assert!(!fits[0].is_settled() && fits[0].last_gain() > 0.01);
    assert!(fits[2].is_settled() && fits[2].last_gain() < 0.01);
    assert!(fits.windows(2).all(|pair| pair[1].residual() < pair[0].residual()));
    assert!(fits.windows(2).all(|pair| pair[1].last_gain() < pair[0].last_gain()));
}

#[rstest]
fn adaptive_meets_its_target(
    #[values(Truncation::RelativeError(0.3), Truncation::RelativeError(0.02), Truncation::Energy(0.99))]
    target: Truncation,
    #[values((220, 140), (140, 220))] shape: (usize, usize),
) {
    let allowed = match target {
        Truncation::Energy(energy) => (1.0_f64 - energy).sqrt(),
        Truncation::RelativeError(error) => error,
        _ => unreachable!(),
    };
    for (kind, values) in spectra(140) {
        let a = with_spectrum::<f32>(shape.0, shape.1, &values, 21);
        let svd =
            adaptive(&HostMatrix::new(a.as_ref()).unwrap(), &target, &AdaptiveOptions::default()).unwrap();
        let off = distance(svd.reconstruct().as_ref(), a.as_ref()) / norm(a.as_ref());
        let floor = tolerance::<f32>(shape.0, shape.1);
        assert!(off <= allowed + floor, "{kind}: {off} > {allowed}");
        check_orthonormal(svd.u(), kind);
        check_orthonormal(svd.v(), kind);
        let best = exact(a.as_ref()).unwrap().low_rank(&target, SigmaPlacement::Left).unwrap().report.rank;
        assert!(svd.rank() <= best + 2 + best / 10, "{kind}: rank {} against {best}", svd.rank());
        let report = svd.low_rank(&target, SigmaPlacement::Left).unwrap().report;
        assert!((report.relative_error - off).abs() <= 2e-3 * off + floor, "{kind}");
    }
}

#[test]
fn adaptive_goes_below_the_free_resolution() {
    let values: Vec<f64> = (0..80).map(|i| 10_f64.powf(-f64::from(i) / 10.0)).collect();
    let a = with_spectrum::<f64>(120, 90, &values, 2);
    let target = Truncation::RelativeError(1e-7);
    let svd = adaptive(&HostMatrix::new(a.as_ref()).unwrap(), &target, &AdaptiveOptions::default()).unwrap();
    let off = distance(svd.reconstruct().as_ref(), a.as_ref()) / norm(a.as_ref());
    assert!(off <= 1e-7, "{off:e}");
    assert!((65..=75).contains(&svd.rank()), "{}", svd.rank());
}

#[test]
fn adaptive_refuses_what_it_cannot_do() {
    let a = random::<f32>(40, 40, 3);
    let host = HostMatrix::new(a.as_ref()).unwrap();
    let capped = AdaptiveOptions { max_rank: Some(8), ..Default::default() };
    let missed = adaptive(&host, &Truncation::RelativeError(0.1), &capped);
    assert!(matches!(missed, Err(FactorError::TargetNotReached { reached, .. }) if reached > 0.5));
    let default = AdaptiveOptions::default();
    assert!(matches!(
        adaptive(&host, &Truncation::Rank(3), &default),
        Err(FactorError::InvalidOption { .. })
    ));
    let empty = AdaptiveOptions { block: 0, ..default };
    let target = Truncation::RelativeError(0.1);
    assert!(matches!(adaptive(&host, &target, &empty), Err(FactorError::InvalidOption { .. })));
}

#[test]
fn zeros_are_of_rank_one_with_error_zero() {
    let a = Mat::<f32>::zeros(150, 140);
    let host = HostMatrix::new(a.as_ref()).unwrap();
    let fit = randomized(&host, 5, &RandomizedOptions::default()).unwrap();
    assert_eq!((fit.residual(), fit.is_settled()), (0.0, true));
    let target = Truncation::RelativeError(0.1);
    let svd = adaptive(&host, &target, &AdaptiveOptions::default()).unwrap();
    assert_eq!((svd.rank(), svd.s()[0]), (1, 0.0));
    let found = auto(a.as_ref(), &target, 0).unwrap();
    assert_eq!(found.svd.low_rank(&target, SigmaPlacement::Split).unwrap().report.rank, 1);
}

#[test]
fn auto_takes_the_method_that_suits() {
    let decaying: Vec<f64> = (0..150).map(|i| 0.7_f64.powi(i)).collect();
    let easy = with_spectrum::<f64>(200, 150, &decaying, 8);
    let method = |a: &Mat<f64>, t: Truncation| auto(a.as_ref(), &t, 1).unwrap().method;
    assert_eq!(method(&easy, Truncation::Rank(20)), SvdMethod::Randomized);
    assert_eq!(method(&easy, Truncation::Parameters(350 * 20)), SvdMethod::Randomized);
    assert_eq!(method(&easy, Truncation::RelativeError(0.05)), SvdMethod::Adaptive);
    assert_eq!(method(&easy, Truncation::Rank(100)), SvdMethod::Exact);
    let hard = random::<f64>(200, 150, 8);
    assert_eq!(method(&hard, Truncation::RelativeError(0.05)), SvdMethod::Exact);
    assert_eq!(method(&random(40, 30, 1), Truncation::Rank(2)), SvdMethod::Exact);
}

#[test]
fn auto_meets_every_truncation() {
    for (kind, values) in spectra(140) {
        let a = with_spectrum::<f64>(180, 140, &values, 31);
        let full = exact(a.as_ref()).unwrap();
        for truncation in [
            Truncation::Rank(30),
            Truncation::RelativeError(0.1),
            Truncation::Energy(0.9),
            Truncation::Parameters(320 * 25),
        ] {
            let svd = auto(a.as_ref(), &truncation, 2).unwrap().svd;
            let got = svd.low_rank(&truncation, SigmaPlacement::Left).unwrap().report;
            let best = full.low_rank(&truncation, SigmaPlacement::Left).unwrap().report;
            match truncation {
                Truncation::Rank(_) | Truncation::Parameters(_) => {
                    assert_eq!(got.rank, best.rank, "{kind}");
                    assert!(got.relative_error <= 1.01 * best.relative_error + 1e-13, "{kind}");
                }
                _ => assert!(got.rank <= best.rank + 1 + best.rank / 10, "{kind}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_small_matrix_obeys_the_laws(rows in 1..24_usize, cols in 1..24_usize, seed: u64, power in -20..20_i32) {
        let mut next = noise(seed);
        let scale = 10_f64.powi(power);
        // Rounded entries give exact zeros, ties and rank deficiency often.
        let a = Mat::from_fn(rows, cols, |_, _| (2.0 * next()).round() * scale);
        let svd = exact(a.as_ref()).unwrap();
        check_svd(a.as_ref(), &svd, "integers");
        check_eckart_young(a.as_ref(), &svd, "integers");
    }

    #[test]
    fn permutations_and_signs_keep_the_values(rows in 1..16_usize, cols in 1..16_usize, seed: u64) {
        let a = random::<f64>(rows, cols, seed);
        let moved = Mat::from_fn(rows, cols, |i, j| -a[(rows - 1 - i, cols - 1 - j)]);
        let (x, y) = (singular_values(a.as_ref()).unwrap(), singular_values(moved.as_ref()).unwrap());
        let slack = tolerance::<f64>(rows, cols) * x[0];
        prop_assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= slack));
    }
}
