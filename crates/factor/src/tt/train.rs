//! The tensor-train format.

use super::core::{Core, flat_product};
use crate::error::{FactorError, Result};
use crate::matrix::{check_slice, ratio, sum_of_squares};
use crate::scalar::Scalar;

/// A tensor of shape `n_1 × … × n_d` as a chain of cores.
///
/// ```
/// use lowrank_factor::tt::{Core, TensorTrain};
/// // (1, 2) ⊗ (3, 4, 5): every rank is 1.
/// let cores = vec![Core::new([1, 2, 1], vec![1.0, 2.0])?, Core::new([1, 3, 1], vec![3.0, 4.0, 5.0])?];
/// let train = TensorTrain::new(cores)?;
/// assert_eq!(train.to_dense()?, [3.0, 4.0, 5.0, 6.0, 8.0, 10.0]);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TensorTrain<T: Scalar> {
    cores: Vec<Core<T>>,
}

impl<T: Scalar> TensorTrain<T> {
    /// Creates a train from its cores in order.
    ///
    /// # Errors
    /// [`FactorError::Empty`] without cores, [`FactorError::BoundaryRank`] unless the outer ranks are 1,
    /// [`FactorError::CoreRankMismatch`] if neighbours disagree.
    pub fn new(cores: Vec<Core<T>>) -> Result<Self> {
        let (Some(first), Some(last)) = (cores.first(), cores.last()) else {
            return Err(FactorError::Empty { what: "cores", rows: 0, cols: 0 });
        };
        let (first, last) = (first.shape()[0], last.shape()[2]);
        if first != 1 || last != 1 {
            return Err(FactorError::BoundaryRank { first, last });
        }
        for (i, pair) in cores.windows(2).enumerate() {
            let (right, left) = (pair[0].shape()[2], pair[1].shape()[0]);
            if left != right {
                return Err(FactorError::CoreRankMismatch { index: i + 1, left, right });
            }
        }
        Ok(Self { cores })
    }

    /// Cores known to match.
    pub(crate) fn from_parts(cores: Vec<Core<T>>) -> Self {
        Self { cores }
    }

    /// The cores in order.
    pub fn cores(&self) -> &[Core<T>] {
        &self.cores
    }

    /// Number of modes `d`.
    pub fn order(&self) -> usize {
        self.cores.len()
    }

    /// The modes `n_1, …, n_d`.
    pub fn modes(&self) -> Vec<usize> {
        self.cores.iter().map(|core| core.shape()[1]).collect()
    }

    /// The inner ranks `r_1, …, r_{d-1}`.
    pub fn ranks(&self) -> Vec<usize> {
        self.cores[1..].iter().map(|core| core.shape()[0]).collect()
    }

    /// Number of entries in all cores.
    pub fn parameters(&self) -> usize {
        self.cores.iter().map(Core::parameters).sum()
    }

    /// Number of elements of the tensor.
    ///
    /// # Errors
    /// [`FactorError::Overflow`] if it does not fit a `usize`.
    pub(crate) fn dense_len(&self) -> Result<usize> {
        let len = self.cores.iter().try_fold(1_usize, |len, core| len.checked_mul(core.shape()[1]));
        len.ok_or(FactorError::Overflow { what: "dense length" })
    }

    /// All elements, row-major: the first index varies slowest.
    ///
    /// # Errors
    /// [`FactorError::Overflow`] if the tensor has more elements than a `usize` can count.
    pub fn to_dense(&self) -> Result<Vec<T>> {
        self.dense_len()?;
        let mut dense = self.cores[0].data().to_vec(); // [n_1, r_1]
        for core in &self.cores[1..] {
            let rows = dense.len() / core.shape()[0];
            let left = faer::MatRef::from_row_major_slice(&dense, rows, core.shape()[0]);
            dense = flat_product(left, core.right_unfolding()); // [n_1·…·n_{k-1}, n_k·r_k]
        }
        Ok(dense)
    }

    /// `‖X − TT‖ / ‖X‖` against a dense tensor in row-major order.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`], [`FactorError::Empty`], [`FactorError::NonFinite`],
    /// [`FactorError::Overflow`].
    pub fn relative_error(&self, dense: &[T]) -> Result<f64> {
        check_slice(dense, "tensor")?;
        if dense.len() != self.dense_len()? {
            return Err(FactorError::ShapeMismatch {
                what: "tensor",
                expected: self.modes(),
                got: vec![dense.len()],
            });
        }
        let own = self.to_dense()?;
        let missed = own.iter().zip(dense).map(|(a, b)| (a.widen() - b.widen()).powi(2)).sum();
        Ok(ratio(missed, sum_of_squares(dense)))
    }
}
