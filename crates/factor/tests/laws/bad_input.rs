//! Bad matrices and bad truncations, over every function that takes them: an error, never a panic.

use lowrank_factor::low_rank::AlternatingOptions;
use lowrank_factor::svd::{RandomizedOptions, auto, exact, randomized, singular_values};
use lowrank_factor::tt::{TtMatrix, TtShape, tt_svd};
use lowrank_factor::tucker::{SharedSide, shared_basis, tucker2};
use lowrank_factor::{
    ErrorCurve, FactorError, HostMatrix, LowRank, Mat, SigmaPlacement, Spectrum, Truncation,
    elementwise_errors, matrix, qr, whitened,
};
use rstest::rstest;

use crate::common::random;

type Outcome = Result<(), FactorError>;

/// A function under test, with its name.
type EntryPoint = (&'static str, fn(&Mat<f64>) -> Outcome);

/// Every entry point that takes one matrix, with a good truncation.
fn entry_points() -> Vec<EntryPoint> {
    const ONE: Truncation = Truncation::Rank(1);
    vec![
        ("exact", |a| exact(a.as_ref()).map(drop)),
        ("singular_values", |a| singular_values(a.as_ref()).map(drop)),
        ("host", |a| HostMatrix::new(a.as_ref()).map(drop)),
        ("auto", |a| auto(a.as_ref(), &ONE, 0).map(drop)),
        ("qr", |a| qr::thin_qr(a.as_ref()).map(drop)),
        ("norm", |a| matrix::frobenius_norm(a.as_ref()).map(drop)),
        ("relative_error", |a| matrix::relative_error(a.as_ref(), a.as_ref()).map(drop)),
        ("spectrum", |a| Spectrum::of(a.as_ref()).map(drop)),
        ("curve", |a| ErrorCurve::of(a.as_ref()).map(drop)),
        ("factors", |a| LowRank::new(a.clone(), Mat::ones(a.ncols(), 2)).map(drop)),
        ("by_diagonal", |a| whitened::by_diagonal(a.as_ref(), &vec![1.0; a.ncols()]).map(drop)),
        ("by_gram", |a| {
            whitened::by_gram(a.as_ref(), Mat::<f64>::identity(a.ncols(), a.ncols()).as_ref()).map(drop)
        }),
        ("tucker2", |a| tucker2(&[a.as_ref()], &ONE, &Default::default()).map(drop)),
        ("shared", |a| shared_basis(&[a.as_ref()], SharedSide::Left, &ONE).map(drop)),
        ("tt_svd", |a| tt_svd(&matrix::to_row_major(a.as_ref()), &[a.nrows(), a.ncols()], &ONE).map(drop)),
        ("tt_matrix", |a| {
            let shape = TtShape::balanced(a.nrows().max(1), a.ncols().max(1), 2)?;
            TtMatrix::from_dense(a.as_ref(), &shape, &ONE).map(drop)
        }),
        ("refit", |a| {
            let fit = LowRank::new(Mat::ones(a.nrows().max(1), 1), Mat::ones(1, a.ncols().max(1)))?;
            fit.refit_right(a.as_ref()).map(drop)
        }),
        ("alternate", |a| {
            let fit = LowRank::new(Mat::ones(a.nrows().max(1), 1), Mat::ones(1, a.ncols().max(1)))?;
            fit.alternate(a.as_ref(), &AlternatingOptions::default()).map(drop)
        }),
        ("elementwise", |a| {
            let svd = exact(random::<f64>(a.nrows().max(1), a.ncols().max(1), 1).as_ref())?;
            elementwise_errors(a.as_ref(), &svd).map(drop)
        }),
    ]
}

#[rstest]
fn not_a_number_and_infinity_are_named(
    #[values(f64::NAN, f64::INFINITY, f64::NEG_INFINITY)] bad: f64,
    #[values((1, 1), (1, 5), (5, 1), (6, 4), (150, 140))] shape: (usize, usize),
) {
    let mut a = random::<f64>(shape.0, shape.1, 1);
    a[(shape.0 / 2, shape.1 / 2)] = bad;
    for (name, run) in entry_points() {
        let got = run(&a);
        assert!(matches!(got, Err(FactorError::NonFinite { .. })), "{name}: {got:?}");
    }
}

#[rstest]
fn empty_matrices_are_named(#[values((0, 0), (0, 3), (3, 0))] shape: (usize, usize)) {
    let a = Mat::<f64>::zeros(shape.0, shape.1);
    for (name, run) in entry_points() {
        let got = run(&a);
        let named = matches!(got, Err(FactorError::Empty { .. } | FactorError::ShapeMismatch { .. }));
        assert!(named, "{name}: {got:?}");
    }
}

#[rstest]
fn vectors_zeros_and_rank_one_work(
    #[values((1, 1), (1, 7), (7, 1), (6, 4))] shape: (usize, usize),
    #[values(0.0, 1.0)] value: f64,
) {
    let a = Mat::from_fn(shape.0, shape.1, |_, _| value);
    for (name, run) in entry_points() {
        assert_eq!(run(&a), Ok(()), "{name}");
    }
}

#[rstest]
#[case(Truncation::Rank(0))]
#[case(Truncation::RelativeError(-1.0))]
#[case(Truncation::RelativeError(1.0))]
#[case(Truncation::RelativeError(f64::NAN))]
#[case(Truncation::Energy(0.0))]
#[case(Truncation::Energy(f64::INFINITY))]
#[case(Truncation::Energy(f64::NAN))]
#[case(Truncation::Parameters(0))]
fn truncations_outside_their_range(#[case] bad: Truncation) {
    for (rows, cols) in [(6, 5), (150, 140)] {
        let a = random::<f64>(rows, cols, 1);
        let shape = TtShape::balanced(rows, cols, 2).unwrap();
        let weighted = whitened::by_diagonal(a.as_ref(), &vec![1.0; cols]).unwrap();
        let fit = exact(a.as_ref()).unwrap();
        let train = TtMatrix::from_dense(a.as_ref(), &shape, &Truncation::Rank(2)).unwrap().factors;
        let outcomes = [
            ("low_rank", fit.low_rank(&bad, SigmaPlacement::Left).map(drop)),
            (
                "auto",
                auto(a.as_ref(), &bad, 0).and_then(|f| f.svd.low_rank(&bad, SigmaPlacement::Left).map(drop)),
            ),
            ("whitened", weighted.low_rank(&bad).map(drop)),
            ("tucker2", tucker2(&[a.as_ref()], &bad, &Default::default()).map(drop)),
            ("shared", shared_basis(&[a.as_ref()], SharedSide::Right, &bad).map(drop)),
            ("tt", TtMatrix::from_dense(a.as_ref(), &shape, &bad).map(drop)),
            ("round", train.round(&bad).map(drop)),
        ];
        for (name, got) in outcomes {
            let named = match bad {
                Truncation::Rank(_) => matches!(got, Err(FactorError::RankOutOfRange { rank: 0, .. })),
                Truncation::RelativeError(_) => matches!(got, Err(FactorError::ErrorOutOfRange { .. })),
                Truncation::Energy(_) => matches!(got, Err(FactorError::EnergyOutOfRange { .. })),
                Truncation::Parameters(_) => {
                    matches!(got, Err(FactorError::BudgetTooSmall { budget: 0, .. }))
                }
            };
            assert!(named, "{name} at {bad:?}: {got:?}");
        }
    }
}

#[test]
fn ranks_above_the_shape() {
    let a = random::<f64>(6, 4, 1);
    let five = Truncation::Rank(5);
    let out = |got: Outcome| assert_eq!(got, Err(FactorError::RankOutOfRange { rank: 5, max: 4 }));
    let svd = exact(a.as_ref()).unwrap();
    out(svd.low_rank(&five, SigmaPlacement::Left).map(drop));
    out(svd.leading(5).map(drop));
    let host = HostMatrix::new(a.as_ref()).unwrap();
    out(randomized(&host, 5, &RandomizedOptions::default()).map(drop));
    out(whitened::by_diagonal(a.as_ref(), &[1.0; 4]).unwrap().low_rank(&five).map(drop));
    out(shared_basis(&[a.as_ref()], SharedSide::Right, &five).map(drop));
    assert_eq!(
        randomized(&host, 0, &RandomizedOptions::default()).map(drop),
        Err(FactorError::RankOutOfRange { rank: 0, max: 4 })
    );
    let long = LowRank::new(Mat::<f64>::ones(6, 5), Mat::ones(5, 4)).unwrap();
    out(long.alternate(a.as_ref(), &AlternatingOptions::default()).map(drop));
}

#[test]
fn shapes_that_do_not_fit() {
    let (a, b) = (random::<f64>(6, 4, 1), random::<f64>(4, 6, 2));
    let mismatch = |got: Outcome| assert!(matches!(got, Err(FactorError::ShapeMismatch { .. })), "{got:?}");
    mismatch(LowRank::new(a.clone(), a.clone()).map(drop));
    mismatch(matrix::relative_error(a.as_ref(), b.as_ref()).map(drop));
    let low = LowRank::new(a.clone(), b.clone()).unwrap();
    mismatch(low.refit_right(a.as_ref()).map(drop));
    mismatch(low.refit_left(a.as_ref()).map(drop));
    mismatch(low.relative_error(a.as_ref()).map(drop));
    mismatch(low.alternate(a.as_ref(), &AlternatingOptions::default()).map(drop));
}

#[test]
fn messages_are_lower_case_and_say_what() {
    let errors = [
        FactorError::NonFinite { what: "matrix", row: 1, col: 2 },
        FactorError::RankOutOfRange { rank: 9, max: 4 },
        FactorError::BudgetTooSmall { budget: 1, minimum: 2 },
        FactorError::BoundaryRank { first: 2, last: 1 },
    ];
    let messages = errors.map(|error| error.to_string());
    assert_eq!(messages[0], "matrix is not finite at row 1, column 2");
    assert_eq!(messages[1], "rank 9 is out of range 1..=4");
    assert!(messages.iter().all(|m| !m.ends_with('.') && m.chars().next().is_some_and(char::is_lowercase)));
}
