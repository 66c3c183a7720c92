//! A pair of factors in which some rows of the left one are the identity.
//!
//! `L·R` of rank `r` is not changed by `(L·G⁻¹)·(G·R)`. With `G = L[P, :]`, the rows of `L` at `r` pivots `P`, the left
//! factor is the identity at the pivots, which need not be stored: `r·(m + n − r)` numbers instead of `r·(m + n)`, fewer
//! than `m·n` at every rank below `min(m, n)`. (PIFA: Zhao, Zhang & Cannistraci, ICML 2025, arXiv:2501.19090.)

use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Mat, MatRef, get_global_parallelism};

use crate::error::{FactorError, Result};
use crate::matrix::check;

/// `L·R` `[m, n]` as `r` of its rows, and the coefficients that express the remaining rows in terms of these.
#[derive(Clone, Debug)]
pub struct Pivoted {
    /// The rows that are kept, ascending, `r` of them.
    pub pivots: Vec<usize>,
    /// Coefficients of the other rows, ascending, `[m − r, r]`.
    pub rest: Mat<f32>,
    /// The rows of the product at the pivots, `[r, n]`.
    pub right: Mat<f32>,
}

/// Pivots of `left` `[m, r]` and `right` `[r, n]`, in double precision.
///
/// # Algorithm
/// QR of `leftᵀ` with column pivoting (Golub 1965) chooses rows of which the others are combinations with small
/// coefficients, `R₁₁⁻¹·R₁₂`. If `left` has a rank below `r`, the rows chosen last are combinations of the first too, and
/// their coefficients are 0.
///
/// # Errors
/// [`FactorError::ShapeMismatch`] unless `r ≤ m` and the factors meet; [`FactorError::NonFinite`] for non-finite entries.
///
/// ```
/// use lowrank_factor::{Mat, pivoted::pivoted};
/// let (left, right) = (Mat::from_fn(4, 1, |i, _| i as f32), Mat::from_fn(1, 2, |_, j| 1.0 + j as f32));
/// let found = pivoted(left.as_ref(), right.as_ref())?;
/// assert_eq!(found.pivots, [3]);
/// assert_eq!(found.right[(0, 1)], 6.0);
/// assert!((found.rest[(1, 0)] - 1.0 / 3.0).abs() < 1e-6);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn pivoted(left: MatRef<'_, f32>, right: MatRef<'_, f32>) -> Result<Pivoted> {
    let (rows, rank) = left.shape();
    if rank == 0 || rank > rows || right.nrows() != rank {
        return Err(FactorError::ShapeMismatch {
            what: "factors of a pivoted pair",
            expected: vec![rank.clamp(1, rows.max(1)), right.ncols()],
            got: vec![right.nrows(), right.ncols()],
        });
    }
    check(left, "left factor")?;
    check(right, "right factor")?;
    let wide = |a: MatRef<'_, f32>| Mat::from_fn(a.nrows(), a.ncols(), |i, j| f64::from(a[(i, j)]));
    let left = wide(left);
    let qr = left.transpose().col_piv_qr();
    let (order, triangle) = (qr.P().arrays().0, qr.thin_R());
    // The diagonal decreases; what is left below the rounding of its first entry is noise.
    let noise = f64::EPSILON * rows as f64 * triangle[(0, 0)].abs();
    let found = (0..rank).take_while(|&k| triangle[(k, k)].abs() > noise).count();
    let mut coefficients = Mat::from_fn(found, rows - rank, |i, j| triangle[(i, rank + j)]);
    solve_upper_triangular_in_place(
        triangle.get(..found, ..found),
        coefficients.as_mut(),
        get_global_parallelism(),
    );
    // By row, in ascending order of the pivots and of the others.
    let ascending = |part: std::ops::Range<usize>| {
        let mut sorted: Vec<usize> = part.collect();
        sorted.sort_unstable_by_key(|&k| order[k]);
        sorted
    };
    let (chosen, others) = (ascending(0..rank), ascending(rank..rows));
    let pivots: Vec<usize> = chosen.iter().map(|&k| order[k]).collect();
    let kept = Mat::from_fn(rank, rank, |i, j| left[(pivots[i], j)]);
    let rest = Mat::from_fn(others.len(), rank, |i, j| match chosen[j] {
        k if k < found => coefficients[(k, others[i] - rank)],
        _ => 0.0,
    });
    let right = &kept * wide(right);
    let narrow = |a: MatRef<'_, f64>| Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32);
    let found = Pivoted { pivots, rest: narrow(rest.as_ref()), right: narrow(right.as_ref()) };
    if !others.is_empty() {
        check(found.rest.as_ref(), "coefficients of a pivoted pair")?;
    }
    check(found.right.as_ref(), "rows at the pivots")?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::NormalSource;

    fn matrix(rows: usize, columns: usize, seed: u64) -> Mat<f32> {
        NormalSource::new(seed).matrix(rows, columns)
    }

    /// The product of the pair.
    fn whole(found: &Pivoted) -> Mat<f32> {
        let Pivoted { pivots, rest, right } = found;
        let rows = rest * right;
        Mat::from_fn(pivots.len() + rest.nrows(), right.ncols(), |i, j| {
            let row = pivots.iter().position(|&pivot| pivot == i);
            let before = pivots.iter().filter(|&&pivot| pivot < i).count();
            row.map_or_else(|| rows[(i - before, j)], |k| right[(k, j)])
        })
    }

    #[test]
    fn the_product_is_the_same_and_coefficients_are_small() {
        for (rows, columns, rank) in [(40, 30, 12), (30, 40, 29), (9, 5, 1), (6, 6, 6)] {
            let (mut left, right) = (matrix(rows, rank, 3), matrix(rank, columns, 5));
            // Columns of very different size, as singular values are.
            for j in 0..rank {
                let scale = 10f32.powi(-((4 * j / rank) as i32));
                (0..rows).for_each(|i| left[(i, j)] *= scale);
            }
            let found = pivoted(left.as_ref(), right.as_ref()).unwrap();
            let error = (whole(&found) - &left * &right).norm_max();
            assert!(error < 1e-4, "{rows} {rank}: {error}");
            let largest = found.rest.norm_max();
            assert!(largest < 20.0, "{largest}");
        }
    }

    #[test]
    fn left_factors_of_a_lower_rank_keep_their_product() {
        let right = matrix(4, 6, 5);
        let (of_two, of_four) = (matrix(9, 2, 3), matrix(2, 4, 7));
        let mut row = Mat::<f32>::zeros(9, 4);
        (0..4).for_each(|j| row[(5, j)] = j as f32);
        for (name, left, rank) in
            [("zero", Mat::zeros(9, 4), 0), ("one row", row, 1), ("rank 2", &of_two * &of_four, 2)]
        {
            let found = pivoted(left.as_ref(), right.as_ref()).unwrap();
            assert_eq!((found.pivots.len(), found.rest.shape()), (4, (5, 4)), "{name}");
            let error = (whole(&found) - &left * &right).norm_max();
            assert!(error <= if rank == 0 { 0.0 } else { 1e-5 }, "{name}: {error}");
            assert!(found.rest.norm_max() < 20.0, "{name}");
        }
        let found = pivoted(Mat::zeros(4, 4).as_ref(), right.as_ref()).unwrap();
        assert_eq!((found.pivots, found.rest.nrows()), (vec![0, 1, 2, 3], 0), "no rows but the pivots");
    }

    #[test]
    fn factors_that_do_not_fit_are_refused() {
        let (wide, right) = (matrix(3, 4, 1), matrix(4, 5, 1));
        assert!(pivoted(wide.as_ref(), right.as_ref()).is_err(), "more ranks than rows");
        assert!(pivoted(matrix(4, 2, 1).as_ref(), right.as_ref()).is_err());
        let endless = Mat::<f32>::full(5, 2, f32::INFINITY);
        assert!(pivoted(endless.as_ref(), matrix(2, 5, 1).as_ref()).is_err());
    }
}
