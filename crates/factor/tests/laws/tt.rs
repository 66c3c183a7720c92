//! Laws of tensor trains and TT-matrices.

use lowrank_factor::tt::{
    Core, DimFactors, TensorTrain, TtMatrix, TtShape, tt_svd, tt_svd_vector, tt_svd_with_ranks,
};
use lowrank_factor::{FactorError, Mat, Scalar, SigmaPlacement, Truncation, svd};
use proptest::prelude::*;
use rstest::rstest;

use crate::common::{check_orthonormal, distance, noise, norm, random, tolerance, with_spectrum};

fn numbers<T: Scalar>(len: usize, seed: u64) -> Vec<T> {
    let mut next = noise(seed);
    (0..len).map(|_| T::of(next())).collect()
}

/// Train with the given ranks and random cores.
fn random_train(modes: &[usize], ranks: &[usize], seed: u64) -> TensorTrain<f64> {
    let at = |k: usize| if k == 0 || k == modes.len() { 1 } else { ranks[k - 1] };
    let core = |k: usize| {
        let shape = [at(k), modes[k], at(k + 1)];
        Core::new(shape, numbers(shape.iter().product(), seed + k as u64)).unwrap()
    };
    TensorTrain::new((0..modes.len()).map(core).collect()).unwrap()
}

fn len(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn gap(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// Every law of a TT-SVD at a relative error.
#[track_caller]
fn check_tt<T: Scalar>(values: &[T], modes: &[usize], epsilon: f64) {
    let fit = tt_svd(values, modes, &Truncation::RelativeError(epsilon)).unwrap();
    let floor = tolerance::<T>(values.len(), 1);
    assert_eq!(fit.factors.modes(), modes);
    let off = fit.factors.relative_error(values).unwrap();
    assert!(off <= epsilon + floor, "{modes:?} at {epsilon}: {off:e}");
    assert!((fit.report.relative_error - off).abs() <= floor.max(1e-6 * off), "{modes:?} at {epsilon}");
    assert_eq!(fit.report.parameters_after, fit.factors.parameters());
    assert_eq!(fit.report.rank, fit.factors.ranks().into_iter().max().unwrap_or(1));
    let mut left = 1;
    for (k, rank) in fit.factors.ranks().into_iter().enumerate() {
        left *= modes[k];
        assert!(rank <= left.min(values.len() / left), "{modes:?}: rank {rank} of bond {k}");
    }
    // All cores but the last are left-orthogonal.
    for core in &fit.factors.cores()[..modes.len() - 1] {
        let [r, n, s] = core.shape();
        let unfolding = lowrank_factor::matrix::from_row_major(core.data(), r * n, s).unwrap();
        check_orthonormal(unfolding, "core");
    }
}

#[rstest]
fn tt_svd_laws(
    #[values(&[7][..], &[1, 6], &[6, 1], &[5, 8], &[4, 3, 5], &[2, 3, 2, 3, 2], &[8, 1, 9])]
    modes: &[usize],
    #[values(0.0, 1e-3, 0.2, 0.7)] epsilon: f64,
) {
    let size = modes.iter().product();
    check_tt::<f64>(&numbers(size, 1), modes, epsilon);
    check_tt::<f32>(&numbers(size, 2), modes, epsilon);
    check_tt::<f64>(&vec![0.0; size], modes, epsilon);
    check_tt::<f64>(&vec![1.0; size], modes, epsilon);
    let smooth: Vec<f64> = (0..size).map(|i| (0.1 * i as f64).sin() + 1.0 / (1.0 + i as f64)).collect();
    check_tt(&smooth, modes, epsilon);
}

#[test]
fn all_ones_have_rank_one() {
    let fit = tt_svd(&[1.0_f32; 360], &[3, 4, 5, 6], &Truncation::RelativeError(1e-5)).unwrap();
    assert_eq!(fit.factors.ranks(), [1, 1, 1]);
    assert!(fit.factors.relative_error(&[1.0; 360]).unwrap() < tolerance::<f32>(360, 1));
    let zeros = tt_svd(&[0.0_f64; 60], &[3, 4, 5], &Truncation::RelativeError(0.0)).unwrap();
    assert_eq!((zeros.factors.ranks(), zeros.report.relative_error), (vec![1, 1], 0.0));
}

#[test]
fn true_ranks_recover_exactly() {
    let modes = [4, 5, 6, 3];
    let train = random_train(&modes, &[3, 4, 2], 5);
    let dense = train.to_dense().unwrap();
    let by_ranks = tt_svd_with_ranks(&dense, &modes, &[3, 4, 2]).unwrap();
    assert!(by_ranks.factors.relative_error(&dense).unwrap() < tolerance::<f64>(360, 1));
    let by_error = tt_svd(&dense, &modes, &Truncation::RelativeError(1e-12)).unwrap();
    assert_eq!(by_error.factors.ranks(), [3, 4, 2]);
    let lower = tt_svd(&dense, &modes, &Truncation::Rank(2)).unwrap();
    assert_eq!(lower.factors.ranks(), [2, 2, 2]);
}

#[test]
fn two_cores_are_the_svd() {
    let a = random::<f64>(9, 14, 3);
    let values: Vec<f64> = (0..126).map(|i| a[(i / 14, i % 14)]).collect();
    let full = svd::exact(a.as_ref()).unwrap();
    for rank in 1..=9 {
        let train = tt_svd(&values, &[9, 14], &Truncation::Rank(rank)).unwrap();
        let best = full.low_rank(&Truncation::Rank(rank), SigmaPlacement::Right).unwrap();
        assert!((train.report.relative_error - best.report.relative_error).abs() < 1e-13);
        let dense = train.factors.to_dense().unwrap();
        let product = best.factors.reconstruct();
        assert!((0..126).all(|i| (dense[i] - product[(i / 14, i % 14)]).abs() < 1e-12), "rank {rank}");
    }
}

#[test]
fn a_budget_is_spent_but_not_exceeded() {
    let modes = [6, 7, 8];
    let values: Vec<f64> = numbers(336, 8);
    let minimum = 6 + 7 + 8;
    let mut last = f64::INFINITY;
    for budget in [minimum, 50, 100, 200, 336, 5000] {
        let fit = tt_svd(&values, &modes, &Truncation::Parameters(budget)).unwrap();
        assert!(fit.report.parameters_after <= budget);
        assert!(fit.report.relative_error <= last + 1e-14);
        last = fit.report.relative_error;
        let again = fit.factors.round(&Truncation::Parameters(budget)).unwrap();
        assert!(again.report.relative_error < 1e-12, "rounding to the same budget changes nothing");
    }
    assert!(last < 1e-14, "a large budget keeps everything");
    let small = tt_svd(&values, &modes, &Truncation::Parameters(minimum - 1));
    assert_eq!(small, Err(FactorError::BudgetTooSmall { budget: 20, minimum: 21 }));
}

#[test]
fn vectors_of_prime_length_are_padded_without_error() {
    let factors = DimFactors::balanced(97, 3).unwrap();
    assert!(factors.padding() > 0);
    let values: Vec<f64> = (0..97).map(|i| f64::from(i).sqrt()).collect();
    let fit = tt_svd_vector(&values, &factors, &Truncation::RelativeError(0.0)).unwrap();
    let dense = fit.factors.to_dense().unwrap();
    assert!(gap(&dense[..97], &values) < 1e-12 * len(&values));
    assert!(len(&dense[97..]) < 1e-12 * len(&values));
    assert_eq!(fit.report.parameters_before, 97);
    assert!(matches!(
        tt_svd_vector(&values[..96], &factors, &Truncation::Rank(1)),
        Err(FactorError::ShapeMismatch { .. })
    ));
}

#[test]
fn algebra_matches_the_dense_tensors() {
    let modes = [3, 4, 2, 5];
    let (x, y) = (random_train(&modes, &[2, 3, 2], 1), random_train(&modes, &[3, 1, 4], 2));
    let (dx, dy) = (x.to_dense().unwrap(), y.to_dense().unwrap());
    let sum = x.add(&y).unwrap();
    assert_eq!(sum.ranks(), [5, 4, 6]);
    let expected: Vec<f64> = dx.iter().zip(&dy).map(|(a, b)| a + b).collect();
    assert!(gap(&sum.to_dense().unwrap(), &expected) < 1e-13 * len(&expected));
    let product = x.hadamard(&y).unwrap();
    assert_eq!(product.ranks(), [6, 3, 8]);
    let expected: Vec<f64> = dx.iter().zip(&dy).map(|(a, b)| a * b).collect();
    assert!(gap(&product.to_dense().unwrap(), &expected) < 1e-13 * len(&expected));
    let dot: f64 = dx.iter().zip(&dy).map(|(a, b)| a * b).sum();
    assert!((x.dot(&y).unwrap() - dot).abs() < 1e-12 * len(&dx) * len(&dy));
    assert!((x.norm() - len(&dx)).abs() < 1e-13 * len(&dx));
    let scaled = x.scale(-2.5).unwrap().to_dense().unwrap();
    assert!(scaled.iter().zip(&dx).all(|(a, b)| (a + 2.5 * b).abs() < 1e-13));
    let other = random_train(&[3, 4, 10], &[2, 2], 3);
    assert!(matches!(x.add(&other), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(x.dot(&other), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(x.hadamard(&other), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(x.scale(f64::NAN), Err(FactorError::NonFinite { .. })));
}

#[test]
fn one_core_is_a_vector() {
    let x = random_train(&[6], &[], 1);
    let sum = x.add(&x).unwrap();
    assert!(sum.ranks().is_empty());
    assert!(gap(&sum.to_dense().unwrap(), x.scale(2.0).unwrap().cores()[0].data()) < 1e-15);
    assert!(
        gap(&x.round(&Truncation::Rank(1)).unwrap().factors.to_dense().unwrap(), x.cores()[0].data()) < 1e-15
    );
}

#[test]
fn the_norm_of_a_difference_keeps_its_digits() {
    let x = random_train(&[4, 5, 6], &[3, 3], 4);
    let nudge = random_train(&[4, 5, 6], &[1, 1], 5).scale(1e-10).unwrap();
    let moved = x.add(&nudge).unwrap();
    let difference = moved.add(&x.scale(-1.0).unwrap()).unwrap();
    // √(⟨d, d⟩) would drown: ε·‖x‖² = 1e-16·‖x‖² against 1e-20.
    let relative = difference.norm() / nudge.norm();
    assert!((relative - 1.0).abs() < 1e-4, "{relative}");
}

#[rstest]
fn orthogonalisation_keeps_the_tensor(#[values(0, 1, 2, 3)] center: usize) {
    let x = random_train(&[3, 4, 5, 2], &[3, 6, 2], 6);
    let y = x.orthogonalize(center).unwrap();
    let (dx, dy) = (x.to_dense().unwrap(), y.to_dense().unwrap());
    assert!(gap(&dx, &dy) < 1e-13 * len(&dx));
    assert!((len(y.cores()[center].data()) - len(&dx)).abs() < 1e-13 * len(&dx));
    for (k, core) in y.cores().iter().enumerate() {
        let [r, n, s] = core.shape();
        if k < center {
            check_orthonormal(lowrank_factor::matrix::from_row_major(core.data(), r * n, s).unwrap(), "left");
        } else if k > center {
            let rows = lowrank_factor::matrix::from_row_major(core.data(), r, n * s).unwrap();
            check_orthonormal(rows.transpose(), "right");
        }
    }
    assert_eq!(x.orthogonalize(4), Err(FactorError::IndexOutOfRange { index: 4, len: 4 }));
}

#[test]
fn rounding_meets_its_error_and_finds_the_ranks() {
    let modes = [4, 5, 6, 3];
    let x = random_train(&modes, &[2, 3, 2], 7);
    let redundant = x.add(&x.scale(0.5).unwrap()).unwrap();
    let rounded = redundant.round(&Truncation::RelativeError(1e-12)).unwrap();
    assert_eq!(rounded.factors.ranks(), [2, 3, 2]);
    assert!(gap(&rounded.factors.to_dense().unwrap(), &redundant.to_dense().unwrap()) < 1e-12 * x.norm());
    assert_eq!(rounded.report.parameters_before, redundant.parameters());
    let full = tt_svd(&numbers::<f64>(360, 1), &modes, &Truncation::RelativeError(0.0)).unwrap().factors;
    let dense = full.to_dense().unwrap();
    for epsilon in [0.05, 0.3, 0.6] {
        let cut = full.round(&Truncation::RelativeError(epsilon)).unwrap();
        let off = gap(&cut.factors.to_dense().unwrap(), &dense) / len(&dense);
        assert!(off <= epsilon && (off - cut.report.relative_error).abs() < 1e-13);
        // Rounding a train is TT-SVD of its tensor.
        assert_eq!(
            cut.factors.ranks(),
            tt_svd(&dense, &modes, &Truncation::RelativeError(epsilon)).unwrap().factors.ranks()
        );
    }
    let capped = full.round(&Truncation::Rank(2)).unwrap();
    assert_eq!(capped.factors.ranks(), [2, 2, 2]);
    assert_eq!(full.round(&Truncation::Rank(1000)).unwrap().factors.ranks(), full.ranks());
}

#[test]
fn cores_that_do_not_fit_are_refused() {
    let core = |shape: [usize; 3]| Core::new(shape, vec![1.0; shape.iter().product()]).unwrap();
    let train = |cores: Vec<Core<f64>>| TensorTrain::new(cores).map(|_| ());
    assert!(matches!(train(vec![]), Err(FactorError::Empty { .. })));
    assert_eq!(train(vec![core([2, 3, 1])]), Err(FactorError::BoundaryRank { first: 2, last: 1 }));
    assert_eq!(train(vec![core([1, 3, 2])]), Err(FactorError::BoundaryRank { first: 1, last: 2 }));
    assert_eq!(
        train(vec![core([1, 3, 2]), core([3, 3, 1])]),
        Err(FactorError::CoreRankMismatch { index: 1, left: 3, right: 2 })
    );
    assert_eq!(
        train(vec![core([1, 3, 2]), core([3, 3, 1])]).unwrap_err().to_string(),
        "core 1 has left rank 3, but core 0 has right rank 2"
    );
    assert!(matches!(Core::new([1, 2, 2], vec![1.0; 3]), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(Core::new([1, 0, 2], Vec::<f64>::new()), Err(FactorError::Empty { .. })));
    assert!(matches!(Core::new([1, 2, 1], vec![1.0, f64::NAN]), Err(FactorError::NonFinite { .. })));
    assert!(matches!(Core::new([usize::MAX, 2, 1], vec![1.0]), Err(FactorError::ShapeMismatch { .. })));
    let rank = Truncation::Rank(1);
    assert!(matches!(tt_svd(&[1.0; 6], &[2, 2], &rank), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(tt_svd(&[1.0; 6], &[], &rank), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(tt_svd::<f64>(&[], &[0], &rank), Err(FactorError::Empty { .. })));
    assert!(matches!(
        tt_svd(&[1.0; 6], &[2, 3], &Truncation::Rank(3)),
        Err(FactorError::RankOutOfRange { rank: 3, max: 2 })
    ));
    assert!(matches!(tt_svd_with_ranks(&[1.0; 6], &[2, 3], &[1, 1]), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(tt_svd_with_ranks(&[1.0; 6], &[2, 3], &[0]), Err(FactorError::RankOutOfRange { .. })));
    let shape = TtShape::balanced(6, 6, 2).unwrap();
    let short = TensorTrain::new(vec![core([1, 36, 1])]).unwrap();
    assert!(matches!(TtMatrix::new(shape, short), Err(FactorError::ShapeMismatch { .. })));
}

/// Every law of a TT-matrix that stands for a dense one.
#[track_caller]
fn check_matrix<T: Scalar>(dense: &Mat<T>, tt: &TtMatrix<T>, batch: usize) {
    let (m, n) = (dense.nrows(), dense.ncols());
    let slack = 4.0 * tolerance::<T>(m.max(n) * m.min(n), 1) * norm(dense.as_ref());
    assert_eq!((tt.nrows(), tt.ncols()), (m, n));
    assert!(distance(tt.to_dense().unwrap().as_ref(), dense.as_ref()) <= slack);
    let size = (batch as f64).sqrt() * ((m.max(n)) as f64).sqrt();
    let x = random::<T>(batch, m, 5);
    let y = tt.multiply_batch(x.as_ref()).unwrap();
    assert!(distance(y.as_ref(), (&x * dense).as_ref()) <= slack * size, "{m}x{n}, batch {batch}");
    // A row-major batch gives the same.
    let rows = x.transpose().to_owned();
    assert_eq!(tt.multiply_batch(rows.transpose()).unwrap(), y);
    let x = random::<T>(batch, n, 6);
    let y = tt.multiply_batch_transposed(x.as_ref()).unwrap();
    assert!(distance(y.as_ref(), (&x * dense.transpose()).as_ref()) <= slack * size, "{m}x{n} transposed");
    assert!(distance(tt.transpose().to_dense().unwrap().as_ref(), dense.transpose()) <= slack);
    assert!(
        distance(tt.transpose().multiply_batch(x.as_ref()).unwrap().as_ref(), y.as_ref()) <= slack * size
    );
    let picked: Vec<usize> = (0..2 * m).map(|i| (i * 7) % m).collect();
    let rows = tt.gather_rows(&picked).unwrap();
    for (k, &i) in picked.iter().enumerate() {
        assert!((0..n).all(|j| (rows[(k, j)].widen() - dense[(i, j)].widen()).abs() <= slack), "row {i}");
    }
}

#[rstest]
fn matrices_of_any_size_round_trip(
    #[values((1, 1), (1, 12), (12, 1), (8, 8), (7, 13), (30, 24), (24, 31), (64, 27), (97, 101))] shape: (
        usize,
        usize,
    ),
    #[values(1, 2, 3, 4)] order: usize,
) {
    let (m, n) = shape;
    let split = TtShape::balanced(m, n, order).unwrap();
    let a = random::<f64>(m, n, 9);
    let fit = TtMatrix::from_dense(a.as_ref(), &split, &Truncation::RelativeError(0.0)).unwrap();
    assert_eq!(fit.report.parameters_before, m * n);
    check_matrix(&a, &fit.factors, 3);
    let a = random::<f32>(m, n, 9);
    let fit = TtMatrix::from_dense(a.as_ref(), &split, &Truncation::RelativeError(0.0)).unwrap();
    check_matrix(&a, &fit.factors, 1);
}

#[rstest]
#[case(&[4, 6, 5], &[3, 2, 8], &[3, 4], 32)]
#[case(&[4, 6, 5], &[3, 2, 8], &[9, 2], 1)]
#[case(&[2, 50, 2], &[2, 1, 2], &[2, 2], 8)] // starts in the middle
#[case(&[2, 2, 60], &[3, 3, 1], &[2, 2], 8)] // starts on the right
#[case(&[64, 2, 2], &[1, 3, 3], &[2, 2], 8)] // starts on the left
#[case(&[3, 3, 3, 3], &[2, 4, 2, 4], &[2, 7, 2], 17)]
#[case(&[16, 16], &[16, 16], &[5], 700)] // large enough for threads
fn products_follow_any_plan(
    #[case] rows: &[usize],
    #[case] cols: &[usize],
    #[case] ranks: &[usize],
    #[case] batch: usize,
) {
    let dim = |f: &[usize]| DimFactors::new(f.iter().product(), f.to_vec()).unwrap();
    let shape = TtShape::new(dim(rows), dim(cols)).unwrap();
    let modes: Vec<usize> = rows.iter().zip(cols).map(|(m, n)| m * n).collect();
    let tt = TtMatrix::new(shape, random_train(&modes, ranks, 3)).unwrap();
    check_matrix(&tt.to_dense().unwrap(), &tt, batch);
    let shapes: Vec<usize> = tt.core_shapes().iter().map(|s| s.iter().product::<usize>()).collect();
    assert_eq!(shapes.iter().sum::<usize>(), tt.parameters());
    assert_eq!(tt.plan(batch).steps().len(), rows.len());
}

#[test]
fn a_low_rank_train_is_found() {
    // A Kronecker product has TT-rank 1 in matching factors.
    let (a, b) = (random::<f64>(4, 5, 1), random::<f64>(6, 3, 2));
    let kron = Mat::from_fn(24, 15, |i, j| a[(i / 6, j / 3)] * b[(i % 6, j % 3)]);
    let dim = |f: &[usize]| DimFactors::new(f.iter().product(), f.to_vec()).unwrap();
    let shape = TtShape::new(dim(&[4, 6]), dim(&[5, 3])).unwrap();
    let fit = TtMatrix::from_dense(kron.as_ref(), &shape, &Truncation::RelativeError(1e-12)).unwrap();
    assert_eq!((fit.factors.ranks(), fit.report.parameters_after), (vec![1], 20 + 18));
    assert!(fit.report.pays());
    check_matrix(&kron, &fit.factors, 4);
    let by_ranks = TtMatrix::from_dense_with_ranks(kron.as_ref(), &shape, &[1]).unwrap();
    check_matrix(&kron, &by_ranks.factors, 2);
    let none = TtMatrix::from_dense_with_ranks(kron.as_ref(), &shape, &[]);
    assert!(matches!(none, Err(FactorError::ShapeMismatch { .. })));
}

#[test]
fn matrix_algebra_matches_the_dense_matrices() {
    let shape = TtShape::balanced(20, 18, 2).unwrap();
    let exactly = |a: &Mat<f64>| {
        TtMatrix::from_dense(a.as_ref(), &shape, &Truncation::RelativeError(0.0)).unwrap().factors
    };
    let (a, b) = (random::<f64>(20, 18, 1), random::<f64>(20, 18, 2));
    let (x, y) = (exactly(&a), exactly(&b));
    let sum = x.add(&y).unwrap();
    assert!(distance(sum.to_dense().unwrap().as_ref(), (&a + &b).as_ref()) < 1e-12);
    let product = Mat::from_fn(20, 18, |i, j| a[(i, j)] * b[(i, j)]);
    assert!(distance(x.hadamard(&y).unwrap().to_dense().unwrap().as_ref(), product.as_ref()) < 1e-12);
    let rounded = sum.round(&Truncation::RelativeError(0.3)).unwrap();
    let off = distance(rounded.factors.to_dense().unwrap().as_ref(), (&a + &b).as_ref());
    assert!(off <= 0.3 * norm((&a + &b).as_ref()));
    let other =
        TtMatrix::from_dense(a.as_ref(), &TtShape::balanced(20, 18, 3).unwrap(), &Truncation::Rank(1));
    assert!(matches!(x.add(&other.unwrap().factors), Err(FactorError::ShapeMismatch { .. })));
}

#[test]
fn bad_batches_are_refused() {
    let shape = TtShape::balanced(12, 10, 2).unwrap();
    let a = random::<f64>(12, 10, 1);
    let tt = TtMatrix::from_dense(a.as_ref(), &shape, &Truncation::Rank(3)).unwrap().factors;
    assert!(matches!(tt.multiply_batch(a.as_ref()), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(tt.multiply_batch_transposed(a.transpose()), Err(FactorError::ShapeMismatch { .. })));
    assert!(matches!(tt.multiply_batch(Mat::zeros(0, 12).as_ref()), Err(FactorError::Empty { .. })));
    assert_eq!(tt.gather_rows(&[3, 12]), Err(FactorError::IndexOutOfRange { index: 12, len: 12 }));
    assert!(matches!(tt.gather_rows(&[]), Err(FactorError::Empty { .. })));
    let wrong = TtMatrix::from_dense(a.transpose(), &shape, &Truncation::Rank(3));
    assert!(matches!(wrong, Err(FactorError::ShapeMismatch { .. })));
}

#[test]
fn extreme_magnitudes_survive() {
    let values: Vec<f32> = numbers::<f32>(60, 1).iter().map(|x| x * 1e30).collect();
    let fit = tt_svd(&values, &[3, 4, 5], &Truncation::RelativeError(0.0)).unwrap();
    let dense = fit.factors.to_dense().unwrap();
    assert!(dense.iter().zip(&values).all(|(x, y)| (x - y).abs() <= 1e25));
    let a = with_spectrum::<f32>(9, 8, &[1.0, 0.5], 1);
    let shape = TtShape::balanced(9, 8, 2).unwrap();
    let tiny = Mat::from_fn(9, 8, |i, j| a[(i, j)] * 1e-30);
    let fit = TtMatrix::from_dense(tiny.as_ref(), &shape, &Truncation::RelativeError(1e-5)).unwrap();
    assert!(fit.report.relative_error <= 1e-5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_tensor_meets_any_error(modes in prop::collection::vec(1..6_usize, 1..5), epsilon in 0.0..0.9_f64, seed: u64) {
        let values: Vec<f64> = numbers(modes.iter().product(), seed);
        check_tt(&values, &modes, epsilon);
    }

    #[test]
    fn any_matrix_multiplies_like_its_dense_form(
        m in 1..40_usize, n in 1..40_usize, order in 1..4_usize, rank in 1..6_usize, batch in 1..5_usize, seed: u64,
    ) {
        let shape = TtShape::balanced(m, n, order).unwrap();
        let modes: Vec<usize> = shape.rows().factors().iter().zip(shape.cols().factors()).map(|(m, n)| m * n).collect();
        let train = random_train(&modes, &vec![rank; order.saturating_sub(1)], seed >> 8);
        let tt = TtMatrix::new(shape, train).unwrap();
        check_matrix(&tt.to_dense().unwrap(), &tt, batch);
    }
}
