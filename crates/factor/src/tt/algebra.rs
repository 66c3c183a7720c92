//! Sums and products of tensor trains.

use super::core::{Core, flat_product};
use super::train::TensorTrain;
use crate::error::{FactorError, Result};
use crate::scalar::Scalar;

impl<T: Scalar> TensorTrain<T> {
    /// Elementwise sum; the ranks add up. [`TensorTrain::round`] reduces them again.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`] if the modes differ.
    pub fn add(&self, other: &Self) -> Result<Self> {
        self.check_modes(other)?;
        let last = self.order() - 1;
        let pairs = self.cores().iter().zip(other.cores()).enumerate();
        let cores = pairs.map(|(k, (a, b))| direct_sum(a, b, k == 0, k == last)).collect();
        Ok(Self::from_parts(cores))
    }

    /// Elementwise (Hadamard) product; the ranks multiply.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`] if the modes differ.
    pub fn hadamard(&self, other: &Self) -> Result<Self> {
        self.check_modes(other)?;
        let cores = self.cores().iter().zip(other.cores()).map(|(a, b)| kronecker(a, b)).collect();
        Ok(Self::from_parts(cores))
    }

    /// Scalar product `Σ X[i]·Y[i]`, without forming either tensor.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`] if the modes differ.
    ///
    /// # Complexity
    /// `O(Σ n_k·r³)`.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        self.check_modes(other)?;
        let mut edge = vec![T::of(1.0)]; // [r_a, r_b]
        for (a, b) in self.cores().iter().zip(other.cores()) {
            let [a_left, mode, a_right] = a.shape();
            let [b_left, _, b_right] = b.shape();
            let view = faer::MatRef::from_row_major_slice(&edge, a_left, b_left);
            let half = flat_product(view.transpose(), a.right_unfolding()); // [b_left·mode, a_right]
            let half = faer::MatRef::from_row_major_slice(&half, b_left * mode, a_right);
            edge = flat_product(half.transpose(), b.left_unfolding());
            debug_assert_eq!(edge.len(), a_right * b_right);
        }
        Ok(edge[0].widen())
    }

    /// `factor · X`; the first core takes the factor.
    ///
    /// # Errors
    /// [`FactorError::NonFinite`] if the factor, or a product with it, is not finite.
    pub fn scale(&self, factor: T) -> Result<Self> {
        let mut cores = self.cores().to_vec();
        let data = cores[0].data().iter().map(|&x| x * factor).collect();
        cores[0] = Core::new(cores[0].shape(), data)?;
        Ok(Self::from_parts(cores))
    }

    fn check_modes(&self, other: &Self) -> Result<()> {
        let (expected, got) = (self.modes(), other.modes());
        if expected == got {
            return Ok(());
        }
        Err(FactorError::ShapeMismatch { what: "modes", expected, got })
    }
}

/// Block-diagonal core; in the first core the blocks share their row, in the last one their column.
fn direct_sum<T: Scalar>(a: &Core<T>, b: &Core<T>, first: bool, last: bool) -> Core<T> {
    let ([a_left, mode, a_right], [b_left, _, b_right]) = (a.shape(), b.shape());
    let left = if first { 1 } else { a_left + b_left };
    let right = if last { 1 } else { a_right + b_right };
    let mut data = vec![T::default(); left * mode * right];
    let mut place = |core: &Core<T>, row: usize, column: usize| {
        let [core_left, _, core_right] = core.shape();
        for l in 0..core_left {
            for i in 0..mode {
                let from = (l * mode + i) * core_right;
                let to = ((row + l) * mode + i) * right + column;
                for (target, &value) in data[to..].iter_mut().zip(&core.data()[from..from + core_right]) {
                    *target += value;
                }
            }
        }
    };
    place(a, 0, 0);
    place(b, if first { 0 } else { a_left }, if last { 0 } else { a_right });
    Core::from_parts([left, mode, right], data)
}

/// Kronecker product of the slices of two cores.
fn kronecker<T: Scalar>(a: &Core<T>, b: &Core<T>) -> Core<T> {
    let ([a_left, mode, a_right], [b_left, _, b_right]) = (a.shape(), b.shape());
    let mut data = Vec::with_capacity(a_left * b_left * mode * a_right * b_right);
    for la in 0..a_left {
        for lb in 0..b_left {
            for i in 0..mode {
                let row_a = &a.data()[(la * mode + i) * a_right..][..a_right];
                let row_b = &b.data()[(lb * mode + i) * b_right..][..b_right];
                data.extend(row_a.iter().flat_map(|&x| row_b.iter().map(move |&y| x * y)));
            }
        }
    }
    Core::from_parts([a_left * b_left, mode, a_right * b_right], data)
}
