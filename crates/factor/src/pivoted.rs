//! A pair of factors in which some rows of the left one are the identity.
//!
//! `L·R` of rank `r` is not changed by `(L·G⁻¹)·(G·R)`. With `G = L[P, :]`, the rows of `L` at `r` pivots `P`, the left
//! factor is the identity at the pivots, which need not be stored: `r·(m + n − r)` numbers instead of `r·(m + n)`, fewer
//! than `m·n` at every rank below `min(m, n)`. (PIFA: Zhao, Zhang & Cannistraci, ICML 2025, arXiv:2501.19090.)

use faer::linalg::solvers::{PartialPivLu, SolveCore};
use faer::{Conj, Mat, MatRef};

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
/// coefficients; LU of these rows gives the coefficients.
///
/// # Errors
/// [`FactorError::ShapeMismatch`] unless `r ≤ m` and the factors meet; [`FactorError::NonFinite`] for non-finite entries
/// or a left factor of a rank below `r`.
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
    let mut pivots = qr.P().arrays().0[..rank].to_vec();
    pivots.sort_unstable();
    let mut is_pivot = vec![false; rows];
    pivots.iter().for_each(|&row| is_pivot[row] = true);
    let others: Vec<usize> = (0..rows).filter(|&row| !is_pivot[row]).collect();
    let kept = Mat::from_fn(rank, rank, |i, j| left[(pivots[i], j)]);
    // rest·kept = the other rows.
    let mut rest = Mat::from_fn(rank, others.len(), |i, j| left[(others[j], i)]);
    PartialPivLu::new(kept.transpose()).solve_in_place_with_conj(Conj::No, rest.as_mut());
    let right = &kept * wide(right);
    let narrow = |a: MatRef<'_, f64>| Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32);
    let found = Pivoted { pivots, rest: narrow(rest.transpose()), right: narrow(right.as_ref()) };
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
            let product = &left * &right;
            let (mut other, mut largest) = (0, 0f32);
            for row in 0..rows {
                let own = match found.pivots.iter().position(|&pivot| pivot == row) {
                    Some(k) => found.right.row(k).to_owned(),
                    None => {
                        other += 1;
                        let coefficients = found.rest.row(other - 1);
                        (0..rank).for_each(|j| largest = largest.max(coefficients[j].abs()));
                        coefficients * &found.right
                    }
                };
                for j in 0..columns {
                    assert!((own[j] - product[(row, j)]).abs() < 1e-4, "{rows} {rank} {row}");
                }
            }
            assert!(largest < 20.0, "{largest}");
        }
    }

    #[test]
    fn factors_that_do_not_fit_are_refused() {
        let (wide, right) = (matrix(3, 4, 1), matrix(4, 5, 1));
        assert!(pivoted(wide.as_ref(), right.as_ref()).is_err(), "more ranks than rows");
        assert!(pivoted(matrix(4, 2, 1).as_ref(), right.as_ref()).is_err());
        let flat = Mat::<f32>::zeros(5, 2);
        assert!(pivoted(flat.as_ref(), matrix(2, 5, 1).as_ref()).is_err(), "a left factor without rank");
    }
}
