//! Factors shared by a stack of matrices: Tucker2 and the one-sided basis.
//!
//! Tucker2 writes `S` matrices of one shape `m × n` as `A_s ≈ L·M_s·R` with `L` m × p and `R` q × n shared by
//! all of them and a small core `M_s` p × q for each (the form of LoTR). [`SharedBasis`] shares only one
//! side.

mod hooi;
mod shared;

use faer::{Mat, MatRef};

pub use self::hooi::{Tucker2Fit, Tucker2Options, tucker2, tucker2_with_ranks};
pub use self::shared::{SharedBasis, SharedSide, shared_basis};
use crate::error::{FactorError, Result};
use crate::matrix::{check, check_shape, norm_squared, product, ratio};
use crate::scalar::Scalar;

/// A stack of matrices `A_s = L·M_s·R` with shared outer factors.
#[derive(Debug, Clone, PartialEq)]
pub struct Tucker2<T: Scalar> {
    /// Shape `m × p`.
    left: Mat<T>,
    /// `S` cores of shape `p × q`.
    cores: Vec<Mat<T>>,
    /// Shape `q × n`.
    right: Mat<T>,
}

impl<T: Scalar> Tucker2<T> {
    /// Creates the stack from its factors.
    ///
    /// # Errors
    /// [`FactorError::Empty`] without cores, [`FactorError::ShapeMismatch`], [`FactorError::NonFinite`].
    pub fn new(left: Mat<T>, cores: Vec<Mat<T>>, right: Mat<T>) -> Result<Self> {
        check(left.as_ref(), "left factor")?;
        check(right.as_ref(), "right factor")?;
        if cores.is_empty() {
            return Err(FactorError::Empty { what: "cores", rows: 0, cols: 0 });
        }
        for core in &cores {
            check_shape("core", core.as_ref(), (left.ncols(), right.nrows()))?;
            check(core.as_ref(), "core")?;
        }
        Ok(Self { left, cores, right })
    }

    pub(crate) fn from_parts(left: Mat<T>, cores: Vec<Mat<T>>, right: Mat<T>) -> Self {
        Self { left, cores, right }
    }

    /// `L`, shape `m × p`.
    pub fn left(&self) -> MatRef<'_, T> {
        self.left.as_ref()
    }

    /// The cores `M_s`, each of shape `p × q`.
    pub fn cores(&self) -> &[Mat<T>] {
        &self.cores
    }

    /// `R`, shape `q × n`.
    pub fn right(&self) -> MatRef<'_, T> {
        self.right.as_ref()
    }

    /// `(L, cores, R)`.
    pub fn into_parts(self) -> (Mat<T>, Vec<Mat<T>>, Mat<T>) {
        (self.left, self.cores, self.right)
    }

    /// The ranks `(p, q)`.
    pub fn ranks(&self) -> (usize, usize) {
        (self.left.ncols(), self.right.nrows())
    }

    /// Number of entries in all factors, `m·p + S·p·q + q·n`.
    pub fn parameters(&self) -> usize {
        let (p, q) = self.ranks();
        parameters((self.left.nrows(), self.right.ncols()), self.cores.len(), (p, q))
    }

    /// `L·M_s·R` for one slice, shape `m × n`.
    ///
    /// # Errors
    /// [`FactorError::IndexOutOfRange`].
    pub fn reconstruct(&self, slice: usize) -> Result<Mat<T>> {
        let len = self.cores.len();
        let core = self.cores.get(slice).ok_or(FactorError::IndexOutOfRange { index: slice, len })?;
        Ok(product(product(self.left(), core.as_ref()).as_ref(), self.right()))
    }

    /// `√(Σ‖A_s − L·M_s·R‖² / Σ‖A_s‖²)`.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`], [`FactorError::Empty`], [`FactorError::NonFinite`].
    pub fn relative_error(&self, stack: &[MatRef<'_, T>]) -> Result<f64> {
        let shape = check_stack(stack)?;
        let own = (self.left.nrows(), self.right.ncols(), self.cores.len());
        if own != (shape.0, shape.1, stack.len()) {
            return Err(FactorError::ShapeMismatch {
                what: "stack",
                expected: vec![own.2, own.0, own.1],
                got: vec![stack.len(), shape.0, shape.1],
            });
        }
        self.error_of(stack)
    }

    /// [`Tucker2::relative_error`] of a validated stack.
    pub(crate) fn error_of(&self, stack: &[MatRef<'_, T>]) -> Result<f64> {
        let (mut missed, mut total) = (0.0, 0.0);
        for (s, a) in stack.iter().enumerate() {
            missed += norm_squared((self.reconstruct(s)? - a).as_ref());
            total += norm_squared(*a);
        }
        Ok(ratio(missed, total))
    }
}

/// `m·p + S·p·q + q·n`.
pub(crate) fn parameters((m, n): (usize, usize), slices: usize, (p, q): (usize, usize)) -> usize {
    m * p + slices * p * q + q * n
}

/// Checks that a stack is not empty, finite and of one shape, which is returned.
pub(crate) fn check_stack<T: Scalar>(stack: &[MatRef<'_, T>]) -> Result<(usize, usize)> {
    let first = stack.first().ok_or(FactorError::Empty { what: "stack", rows: 0, cols: 0 })?;
    for a in stack {
        check_shape("slice", *a, first.shape())?;
        check(*a, "slice")?;
    }
    Ok(first.shape())
}
