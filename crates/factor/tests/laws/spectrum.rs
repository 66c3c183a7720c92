//! Spectra and error curves: hand-computed values, and the study of one weight.

use lowrank_factor::svd::exact;
use lowrank_factor::{
    ErrorCurve, FactorError, Mat, SigmaPlacement, Spectrum, Truncation, elementwise_errors,
};
use rstest::rstest;

use crate::common::{distance, norm, random, tolerance, with_spectrum};

#[test]
fn summaries_by_hand() {
    let spectrum = Spectrum::new(&[4.0, 2.0, 2.0, 1.0], 4, 6).unwrap();
    assert_eq!(spectrum.stable_rank(), 25.0 / 16.0);
    assert_eq!(spectrum.condition_number(), 4.0);
    assert_eq!(spectrum.frobenius_norm(), 5.0);
    assert_eq!(spectrum.spectral_norm(), 4.0);
    assert_eq!(spectrum.numerical_rank(), 4);
    assert_eq!(spectrum.rank_above(0.4), 3);
    let energies: Vec<f64> = [0.0, 16.0, 20.0, 24.0, 25.0].iter().map(|x| x / 25.0).collect();
    assert!(spectrum.energy_curve().iter().zip(&energies).all(|(x, y)| (x - y).abs() < 1e-15));
    let errors: Vec<f64> = [25.0, 9.0, 5.0, 1.0, 0.0].iter().map(|x: &f64| (x / 25.0).sqrt()).collect();
    assert!(spectrum.error_curve().iter().zip(&errors).all(|(x, y)| (x - y).abs() < 1e-15));
    // Equal values: every kind of rank is their number.
    let flat = Spectrum::new(&[3.0; 5], 5, 5).unwrap();
    assert!((flat.effective_rank() - 5.0).abs() < 1e-13 && (flat.stable_rank() - 5.0).abs() < 1e-13);
}

#[test]
fn zeros_have_rank_zero() {
    let spectrum = Spectrum::of(Mat::<f32>::zeros(6, 4).as_ref()).unwrap();
    assert_eq!((spectrum.numerical_rank(), spectrum.stable_rank(), spectrum.effective_rank()), (0, 0.0, 0.0));
    assert_eq!(spectrum.condition_number(), f64::INFINITY);
    assert_eq!(spectrum.error_curve(), [0.0; 5]);
    assert_eq!(spectrum.energy_curve(), [1.0; 5]);
}

#[rstest]
#[case(60, 40, 7)]
#[case(40, 60, 40)]
#[case(1, 12, 1)]
fn numerical_rank_is_the_rank(#[case] m: usize, #[case] n: usize, #[case] rank: usize) {
    let values: Vec<f64> = (0..rank).map(|i| 1.0 / (1.0 + i as f64)).collect();
    assert_eq!(Spectrum::of(with_spectrum::<f64>(m, n, &values, 1).as_ref()).unwrap().numerical_rank(), rank);
    assert_eq!(Spectrum::of(with_spectrum::<f32>(m, n, &values, 1).as_ref()).unwrap().numerical_rank(), rank);
}

#[test]
fn spectra_that_are_none_are_refused() {
    assert_eq!(Spectrum::new(&[1.0, 2.0], 2, 2), Err(FactorError::NotSorted { index: 1 }));
    assert!(matches!(Spectrum::new(&[1.0, -2.0], 2, 2), Err(FactorError::Negative { index: 1, .. })));
    assert!(matches!(Spectrum::new(&[1.0, f64::NAN], 2, 2), Err(FactorError::NonFinite { .. })));
    assert!(matches!(Spectrum::new(&[1.0], 2, 2), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(Spectrum::new::<f64>(&[], 0, 2), Err(FactorError::Empty { .. })));
}

#[test]
fn elementwise_errors_match_each_reconstruction() {
    let a = random::<f64>(23, 37, 4);
    let svd = exact(a.as_ref()).unwrap();
    let errors = elementwise_errors(a.as_ref(), &svd).unwrap();
    assert_eq!(errors.len(), 24);
    for (rank, error) in errors.iter().enumerate() {
        let fit = match rank {
            0 => Mat::zeros(23, 37),
            _ => svd.low_rank(&Truncation::Rank(rank), SigmaPlacement::Left).unwrap().factors.reconstruct(),
        };
        let off = &a - fit;
        let sum: f64 = (0..37).flat_map(|j| (0..23).map(move |i| (i, j))).map(|at| off[at].abs()).sum();
        assert!((error.mean - sum / (23.0 * 37.0)).abs() < 1e-14, "rank {rank}");
        assert!((error.max - off.norm_max()).abs() < 1e-13, "rank {rank}");
    }
    let other = exact(random::<f64>(23, 36, 4).as_ref()).unwrap();
    assert!(matches!(elementwise_errors(a.as_ref(), &other), Err(FactorError::ShapeMismatch { .. })));
}

/// The study of the mission: a 768 × 768 weight, its rank, its errors, and a refit that changes nothing.
#[test]
fn study_of_one_weight() {
    let side = 768;
    // A dense weight: noise with a few strong directions, of full numerical rank.
    let noise = random::<f32>(side, side, 1);
    let strong = with_spectrum::<f32>(side, side, &[120.0, 60.0, 30.0, 15.0], 2);
    let a = noise + strong;
    let curve = ErrorCurve::of(a.as_ref()).unwrap();
    assert_eq!(curve.spectrum().numerical_rank(), side);
    let points = curve.points();
    assert_eq!((points.len(), points[0].relative_error), (side + 1, 1.0));
    assert!(points.windows(2).all(|p| p[1].relative_error <= p[0].relative_error));
    let floor = tolerance::<f32>(side, side);
    assert!(points[side].relative_error == 0.0 && points[side].elementwise.max < floor * 120.0);
    // The Frobenius error bounds the mean, and the maximum bounds both.
    let size = norm(a.as_ref());
    for p in points {
        let root_mean_square = p.relative_error * size / side as f64;
        assert!(p.elementwise.mean <= root_mean_square * (1.0 + 1e-3) + 1e-5);
        assert!(root_mean_square <= p.elementwise.max * (1.0 + 1e-3) + 1e-5);
    }
    let svd = exact(a.as_ref()).unwrap();
    let fit = svd.low_rank(&Truncation::Rank(128), SigmaPlacement::Split).unwrap();
    let refit = fit.factors.refit_right(a.as_ref()).unwrap();
    let moved = distance(refit.right(), fit.factors.right()) / norm(fit.factors.right());
    // The factors carry √σ, so rounding is amplified by √(σ₁ / σ₁₂₈) at most.
    assert!(moved <= 4.0 * floor, "{moved:e}");
    assert!((fit.report.relative_error - points[128].relative_error).abs() < 1e-7);
    let csv = curve.to_csv();
    assert_eq!(csv.lines().count(), side + 2);
    assert!(csv.lines().nth(1).unwrap().starts_with("0,0e0,0e0,1e0,"));
}

#[test]
fn the_plot_is_well_formed() {
    let curve = ErrorCurve::of(random::<f64>(10, 6, 1).as_ref()).unwrap();
    let svg = curve.to_svg("a<b>&c");
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("a&lt;b&gt;&amp;c (10 × 6)"));
    assert_eq!(svg.matches("<polyline").count(), 3);
    assert_eq!(svg.matches("NaN").count() + svg.matches("inf").count(), 0);
    let zeros = ErrorCurve::of(Mat::<f64>::zeros(3, 1).as_ref()).unwrap().to_svg("zeros");
    assert_eq!(zeros.matches("NaN").count(), 0);
}
