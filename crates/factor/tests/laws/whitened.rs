//! Laws of the activation-aware approximations.

use lowrank_factor::svd::exact;
use lowrank_factor::{FactorError, LowRank, Mat, SigmaPlacement, Truncation, whitened};
use proptest::prelude::*;
use rstest::rstest;

use crate::common::{check_orthonormal, distance, norm, random};

/// Inputs with a strongly uneven spectrum, as activations have: shape samples × channels.
fn activations(samples: usize, channels: usize) -> Mat<f64> {
    let x = random::<f64>(samples, channels, 77);
    Mat::from_fn(samples, channels, |i, j| x[(i, j)] * 10_f64.powf(-3.0 * j as f64 / channels as f64))
}

fn gram(x: &Mat<f64>) -> Mat<f64> {
    x.transpose() * x
}

/// `‖X·(A − Â)ᵀ‖`, the error that the layer's outputs see.
fn output_error(x: &Mat<f64>, a: &Mat<f64>, fit: &LowRank<f64>) -> f64 {
    norm((x * (a - fit.reconstruct()).transpose()).as_ref())
}

#[rstest]
#[case::wide(12, 30, 50)]
#[case::tall(30, 12, 50)]
#[case::square(20, 20, 50)]
#[case::fewer_samples_than_channels(24, 30, 10)]
#[case::one_sample(8, 8, 1)]
fn the_loss_is_the_sum_of_the_dropped_eigenvalues(
    #[case] m: usize,
    #[case] n: usize,
    #[case] samples: usize,
) {
    let (a, x) = (random::<f64>(m, n, 1), activations(samples, n));
    let gram = gram(&x);
    let fit = whitened::by_gram(a.as_ref(), gram.as_ref()).unwrap();
    check_orthonormal(fit.basis(), "basis");
    assert_eq!(fit.squared().len(), m.min(n));
    assert!(fit.squared().windows(2).all(|pair| pair[0] >= pair[1]));
    let whole = norm((&x * a.transpose()).as_ref());
    let plain = exact(a.as_ref()).unwrap();
    for rank in 1..=m.min(n) {
        let cut = fit.low_rank(&Truncation::Rank(rank)).unwrap();
        let off = output_error(&x, &a, &cut.factors);
        let dropped = fit.squared()[rank..].iter().sum::<f64>().sqrt();
        // Eigenvalues of a Gram matrix carry √ε of the norm.
        assert!((off - dropped).abs() <= 1e-7 * whole, "rank {rank}: {off} against {dropped}");
        assert!((cut.report.relative_error * whole - off).abs() <= 1e-7 * whole);
        let unaware = plain.low_rank(&Truncation::Rank(rank), SigmaPlacement::Left).unwrap().factors;
        assert!(off <= output_error(&x, &a, &unaware) + 1e-7 * whole, "rank {rank} loses to the plain SVD");
    }
}

#[test]
fn no_other_factors_do_better() {
    let (a, x) = (random::<f64>(10, 14, 1), activations(40, 14));
    let fit = whitened::by_gram(a.as_ref(), gram(&x).as_ref()).unwrap();
    let best = output_error(&x, &a, &fit.low_rank(&Truncation::Rank(4)).unwrap().factors);
    for seed in 0..20 {
        // A random output space with the best right factor for it, which does not depend on the weights.
        let q = lowrank_factor::qr::thin_qr(random::<f64>(10, 4, seed).as_ref()).unwrap().0;
        let right = q.transpose() * &a;
        assert!(output_error(&x, &a, &LowRank::new(q, right).unwrap()) >= best);
    }
}

#[test]
fn an_identity_gram_matrix_is_the_plain_svd() {
    for (m, n) in [(9, 15), (15, 9)] {
        let a = random::<f32>(m, n, 3);
        let fit = whitened::by_gram(a.as_ref(), Mat::<f32>::identity(n, n).as_ref()).unwrap();
        let plain = exact(a.as_ref()).unwrap();
        let low = fit.low_rank(&Truncation::Rank(5)).unwrap().factors.reconstruct();
        let reference =
            plain.low_rank(&Truncation::Rank(5), SigmaPlacement::Left).unwrap().factors.reconstruct();
        assert!(distance(low.as_ref(), reference.as_ref()) < 1e-5);
        let ones = whitened::by_diagonal(a.as_ref(), &vec![1.0; n]).unwrap();
        assert!(ones.squared().iter().zip(plain.s()).all(|(x, s)| (x.sqrt() - f64::from(*s)).abs() < 1e-5));
    }
}

#[test]
fn a_diagonal_is_a_diagonal_gram_matrix() {
    let a = random::<f64>(11, 17, 5);
    let weights: Vec<f64> = (0..17).map(|j| if j % 5 == 0 { 0.0 } else { 0.5 + j as f64 }).collect();
    let gram = Mat::from_fn(17, 17, |i, j| if i == j { weights[i] * weights[i] } else { 0.0 });
    let by_weights = whitened::by_diagonal(a.as_ref(), &weights).unwrap();
    let by_gram = whitened::by_gram(a.as_ref(), gram.as_ref()).unwrap();
    let top = by_gram.squared()[0];
    assert!(by_weights.squared().iter().zip(by_gram.squared()).all(|(x, y)| (x - y).abs() < 1e-12 * top));
    let target = Truncation::Energy(0.9);
    let (x, y) = (by_weights.low_rank(&target).unwrap(), by_gram.low_rank(&target).unwrap());
    assert_eq!(x.report.rank, y.report.rank);
    assert!(distance(x.factors.reconstruct().as_ref(), y.factors.reconstruct().as_ref()) < 1e-9);
}

#[test]
fn dead_inputs_cost_nothing() {
    let a = random::<f64>(6, 6, 5);
    let fit = whitened::by_diagonal(a.as_ref(), &[0.0; 6]).unwrap();
    assert_eq!(fit.low_rank(&Truncation::RelativeError(0.0)).unwrap().report.rank, 1);
    let zero = Mat::<f64>::zeros(6, 6);
    let fit = whitened::by_gram(a.as_ref(), zero.as_ref()).unwrap();
    assert_eq!(fit.low_rank(&Truncation::RelativeError(0.0)).unwrap().report.relative_error, 0.0);
}

#[test]
fn an_f32_gram_matrix_with_rounding_is_accepted() {
    // Singular, summed in f32: its smallest eigenvalues come out slightly negative.
    let x = activations(10, 40);
    let narrow = Mat::from_fn(10, 40, |i, j| x[(i, j)] as f32);
    let gram = narrow.transpose() * &narrow;
    for rows in [30, 60] {
        let a = random::<f32>(rows, 40, 2);
        let fit = whitened::by_gram(a.as_ref(), gram.as_ref()).unwrap();
        let cut = fit.low_rank(&Truncation::Rank(10)).unwrap();
        // Ten samples span ten directions: rank 10 leaves only rounding.
        assert!(cut.report.relative_error < 1e-3, "{}", cut.report.relative_error);
    }
}

/// Errors far below one are those of the dropped values, not differences of large sums; a Gram matrix summed in `f64` holds
/// them down to √ε.
#[rstest]
#[case::wide(24, 40)]
#[case::tall(40, 24)]
fn small_errors_of_nearly_low_rank_matrices_are_reported(#[case] m: usize, #[case] n: usize) {
    let (rank, x) = (4, activations(200, n));
    let (left, right, rest) = (random::<f64>(m, rank, 1), random::<f64>(rank, n, 2), random::<f64>(m, n, 3));
    let low = &left * &right;
    for size in [1e-4, 1e-5, 3e-6] {
        let narrow = Mat::from_fn(m, n, |i, j| (low[(i, j)] + size * rest[(i, j)]) as f32);
        let a = Mat::from_fn(m, n, |i, j| f64::from(narrow[(i, j)]));
        let fit = whitened::by_gram(narrow.as_ref(), gram(&x).as_ref()).unwrap();
        let report = fit.low_rank(&Truncation::Rank(rank)).unwrap().report;
        // The best factors of the same matrix in f64, whose rounding is below any of these errors.
        let wide = whitened::by_gram(a.as_ref(), gram(&x).as_ref()).unwrap();
        let factors = wide.low_rank(&Truncation::Rank(rank)).unwrap().factors;
        let exact = output_error(&x, &a, &factors) / norm((&x * a.transpose()).as_ref());
        assert!(
            exact < size && (report.relative_error / exact - 1.0).abs() < 1e-2,
            "{size}: {report:?} for {exact}"
        );
    }
}

#[test]
fn bad_weights_are_refused() {
    let a = random::<f64>(4, 3, 1);
    let by_diagonal = |weights: &[f64]| whitened::by_diagonal(a.as_ref(), weights).map(|_| ());
    assert!(matches!(by_diagonal(&[1.0, 2.0]), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(by_diagonal(&[1.0, -2.0, 1.0]), Err(FactorError::Negative { index: 1, .. })));
    assert!(matches!(by_diagonal(&[1.0, f64::NAN, 1.0]), Err(FactorError::NonFinite { .. })));
    let by_gram = |gram: Mat<f64>| whitened::by_gram(a.as_ref(), gram.as_ref()).map(|_| ());
    assert!(matches!(by_gram(Mat::identity(4, 4)), Err(FactorError::ShapeMismatch { .. })));
    let skew = Mat::from_fn(3, 3, |i, j| if i <= j { 1.0 } else { 0.5 });
    assert!(matches!(by_gram(skew), Err(FactorError::NotSymmetric { .. })));
    let negative = Mat::from_fn(3, 3, |i, j| if i == j { i as f64 - 1.0 } else { 0.0 });
    assert!(matches!(by_gram(negative), Err(FactorError::Negative { .. })));
    // Symmetric with a positive diagonal, but indefinite: eigenvalues 3 and -1.
    let indefinite = Mat::from_fn(3, 3, |i, j| if i == j { 1.0 } else { 2.0 });
    assert!(matches!(by_gram(indefinite), Err(FactorError::Negative { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn both_routes_agree(m in 1..14_usize, n in 1..14_usize, samples in 1..20_usize, seed: u64) {
        // The transposed problem of a symmetric Gram matrix takes the other branch of the algorithm.
        let a = random::<f64>(m, n, seed);
        let x = random::<f64>(samples, n, seed ^ 9);
        let fit = whitened::by_gram(a.as_ref(), gram(&x).as_ref()).unwrap();
        let direct = exact((&a * x.transpose()).as_ref()).unwrap();
        let top = direct.s()[0];
        for (squared, s) in fit.squared().iter().zip(direct.s().iter().chain(core::iter::repeat(&0.0))) {
            prop_assert!((squared - s * s).abs() <= 1e-12 * top * top);
        }
    }
}
