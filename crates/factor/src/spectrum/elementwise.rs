//! Mean and maximum elementwise error for every rank, from one SVD.

use faer::MatRef;
use rayon::prelude::*;

use crate::error::Result;
use crate::matrix::{check, check_shape};
use crate::scalar::Scalar;
use crate::svd::Svd;

/// Elementwise error of an approximation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ElementwiseError {
    /// Mean of `|A − Â|` over all elements.
    pub mean: f64,
    /// Largest `|A − Â|`.
    pub max: f64,
}

/// Elementwise errors of the approximations of rank `r = 0 ..= k` by the leading triplets of a
/// decomposition of `a` (length `k + 1`).
///
/// # Algorithm
/// The residual of a column is updated triplet by triplet while it stays in cache; columns
/// run in parallel.
///
/// # Errors
/// [`FactorError::ShapeMismatch`](crate::FactorError::ShapeMismatch) if the decomposition has another
/// shape, [`FactorError::Empty`](crate::FactorError::Empty),
/// [`FactorError::NonFinite`](crate::FactorError::NonFinite).
///
/// # Complexity
/// `O(m·n·k)` time and `O(k)` memory per thread.
///
/// ```
/// use lowrank_factor::{Mat, elementwise_errors, svd};
/// let a = Mat::from_fn(2, 2, |i, j| if i == j { 3.0 - i as f64 } else { 0.0 });
/// let errors = elementwise_errors(a.as_ref(), &svd::exact(a.as_ref())?)?;
/// assert_eq!((errors[0].mean, errors[0].max), (1.25, 3.0));
/// assert!((errors[1].mean - 0.5).abs() < 1e-15 && errors[2].max < 1e-15);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn elementwise_errors<T: Scalar>(a: MatRef<'_, T>, svd: &Svd<T>) -> Result<Vec<ElementwiseError>> {
    check(a, "matrix")?;
    check_shape("matrix", a, svd.shape())?;
    let (m, n) = a.shape();
    let chunk = n.div_ceil(4 * rayon::current_num_threads());
    let starts: Vec<usize> = (0..n).step_by(chunk).collect();
    let partial: Vec<Vec<ElementwiseError>> =
        starts.par_iter().map(|&start| columns(a.subcols(start, chunk.min(n - start)), svd, start)).collect();
    let mut total = vec![ElementwiseError::default(); svd.rank() + 1];
    for part in &partial {
        for (all, one) in total.iter_mut().zip(part) {
            all.mean += one.mean / (m * n) as f64;
            all.max = all.max.max(one.max);
        }
    }
    Ok(total)
}

/// Sums (in `mean`) and maxima over the columns `start ..` of the matrix.
fn columns<T: Scalar>(a: MatRef<'_, T>, svd: &Svd<T>, start: usize) -> Vec<ElementwiseError> {
    let mut out = vec![ElementwiseError::default(); svd.rank() + 1];
    let mut residual = vec![T::default(); a.nrows()];
    for j in 0..a.ncols() {
        residual.iter_mut().enumerate().for_each(|(i, x)| *x = a[(i, j)]);
        out[0].record(&residual);
        for (k, &s) in svd.s().iter().enumerate() {
            let factor = s * svd.v()[(start + j, k)];
            for (x, &u) in residual.iter_mut().zip(svd.u().col(k).iter()) {
                *x -= u * factor;
            }
            out[k + 1].record(&residual);
        }
    }
    out
}

impl ElementwiseError {
    fn record<T: Scalar>(&mut self, residual: &[T]) {
        let (chunks, rest) = residual.as_chunks::<16>();
        let (mut sums, mut maxima) = ([T::default(); 16], [T::default(); 16]);
        for chunk in chunks {
            for ((sum, max), x) in sums.iter_mut().zip(&mut maxima).zip(chunk) {
                let magnitude = x.magnitude();
                *sum += magnitude;
                *max = if magnitude > *max { magnitude } else { *max };
            }
        }
        let tail = rest.iter().map(|x| x.magnitude());
        self.mean += sums.into_iter().chain(tail.clone()).map(Scalar::widen).sum::<f64>();
        self.max = maxima.into_iter().chain(tail).map(Scalar::widen).fold(self.max, f64::max);
    }
}
