//! Matrices in tensor-train form.

use std::sync::OnceLock;

use faer::{Mat, MatRef};

use super::contract::{self, ContractionPlan, Operand, all_ranks};
use super::core::Core;
use super::decompose::{tt_svd, tt_svd_with_ranks};
use super::shape::TtShape;
use super::train::TensorTrain;
use crate::error::{FactorError, Result};
use crate::matrix::{check, check_shape};
use crate::scalar::Scalar;
use crate::truncation::{Approximation, Truncation};

/// A matrix of shape `m × n` as a tensor train with cores `[r_{k-1}, m_k, n_k, r_k]`.
///
/// Rows and columns past `m` and `n` (padding, needed for prime sides) are never part of a result.
///
/// ```
/// use lowrank_factor::{Mat, Truncation, tt::{TtMatrix, TtShape}};
/// let a = Mat::from_fn(12, 10, |i, j| 1.0 / (i + j + 1) as f64);
/// let shape = TtShape::balanced(12, 10, 2)?;
/// let fit = TtMatrix::from_dense(a.as_ref(), &shape, &Truncation::RelativeError(1e-6))?;
/// assert!(fit.factors.parameters() < 120);
/// let x = Mat::from_fn(3, 12, |i, j| (i + j) as f64);
/// let y = fit.factors.multiply_batch(x.as_ref())?; // x·A without forming A
/// assert!((y - &x * &a).norm_max() < 1e-4);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TtMatrix<T: Scalar> {
    shape: TtShape,
    train: TensorTrain<T>,
    /// Cores as `[r_{k-1}, n_k, m_k, r_k]`, computed when a product first needs them.
    swapped: OnceLock<Vec<Vec<T>>>,
}

impl<T: Scalar> PartialEq for TtMatrix<T> {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.train == other.train
    }
}

impl<T: Scalar> TtMatrix<T> {
    /// Interprets a train whose modes are the pairs `m_k·n_k` of a shape.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`] if the modes are not those of the shape.
    pub fn new(shape: TtShape, train: TensorTrain<T>) -> Result<Self> {
        let (expected, got) = (shape.modes(), train.modes());
        if expected != got {
            return Err(FactorError::ShapeMismatch { what: "modes of a TT-matrix", expected, got });
        }
        Ok(Self { shape, train, swapped: OnceLock::new() })
    }

    /// TT-SVD of a dense matrix of shape `m × n`.
    ///
    /// The report counts `m·n` entries before. Its error is that of the padded tensor, which bounds that
    /// of the matrix.
    ///
    /// # Errors
    /// As [`tt_svd`]; [`FactorError::ShapeMismatch`] if the matrix is not of the shape's size.
    pub fn from_dense(
        a: MatRef<'_, T>,
        shape: &TtShape,
        truncation: &Truncation,
    ) -> Result<Approximation<Self>> {
        let tensor = paired_digits(a, shape)?;
        Self::from_fit(a, shape, tt_svd(&tensor, &shape.modes(), truncation)?)
    }

    /// Squared singular values of every unfolding, nonincreasing: the loss of each inner rank by itself. With
    /// two cores the single spectrum determines the error, as in an SVD.
    ///
    /// # Errors
    /// As [`tt_svd`]; [`FactorError::ShapeMismatch`] if the matrix is not of the shape's size.
    pub fn unfolding_spectra(a: MatRef<'_, T>, shape: &TtShape) -> Result<Vec<Vec<f64>>> {
        let tensor = paired_digits(a, shape)?;
        let modes = shape.modes();
        let mut rows = 1;
        let mut spectra = Vec::with_capacity(modes.len());
        for mode in &modes[..modes.len() - 1] {
            rows *= mode;
            let unfolding = crate::matrix::from_row_major(&tensor, rows, tensor.len() / rows)?;
            spectra.push(crate::subspace::leading(unfolding)?.squared().to_vec());
        }
        Ok(spectra)
    }

    /// [`TtMatrix::from_dense`] with all inner ranks given.
    ///
    /// # Errors
    /// As [`tt_svd_with_ranks`]; [`FactorError::ShapeMismatch`] if the matrix is not of the shape's size.
    pub fn from_dense_with_ranks(
        a: MatRef<'_, T>,
        shape: &TtShape,
        ranks: &[usize],
    ) -> Result<Approximation<Self>> {
        let tensor = paired_digits(a, shape)?;
        Self::from_fit(a, shape, tt_svd_with_ranks(&tensor, &shape.modes(), ranks)?)
    }

    fn from_fit(
        a: MatRef<'_, T>,
        shape: &TtShape,
        fit: Approximation<TensorTrain<T>>,
    ) -> Result<Approximation<Self>> {
        let mut report = fit.report;
        report.parameters_before = a.nrows() * a.ncols();
        Ok(Approximation { factors: Self::new(shape.clone(), fit.factors)?, report })
    }

    /// The dense matrix, shape `m × n`.
    ///
    /// # Errors
    /// [`FactorError::Overflow`] if the padded matrix has more elements than a `usize` can count.
    pub fn to_dense(&self) -> Result<Mat<T>> {
        let tensor = self.train.to_dense()?;
        let (rows, cols) = self.shape.offsets();
        Ok(Mat::from_fn(self.nrows(), self.ncols(), |i, j| tensor[rows[i] + cols[j]]))
    }

    /// Number of rows `m`.
    pub fn nrows(&self) -> usize {
        self.shape.rows().len()
    }

    /// Number of columns `n`.
    pub fn ncols(&self) -> usize {
        self.shape.cols().len()
    }

    /// Factors of both sides.
    pub fn shape(&self) -> &TtShape {
        &self.shape
    }

    /// The underlying train, for its algebra: modes `m_k·n_k`.
    pub fn train(&self) -> &TensorTrain<T> {
        &self.train
    }

    /// The inner ranks.
    pub fn ranks(&self) -> Vec<usize> {
        self.train.ranks()
    }

    /// Number of entries in all cores.
    pub fn parameters(&self) -> usize {
        self.train.parameters()
    }

    /// Shape `[r_{k-1}, m_k, n_k, r_k]` of every core.
    pub fn core_shapes(&self) -> Vec<[usize; 4]> {
        let (rows, cols) = (self.shape.rows().factors(), self.shape.cols().factors());
        let cores = self.train.cores().iter().zip(rows.iter().zip(cols));
        cores.map(|(core, (&m, &n))| [core.shape()[0], m, n, core.shape()[2]]).collect()
    }

    /// The transposed matrix.
    pub fn transpose(&self) -> Self {
        let shape = TtShape::new(self.shape.cols().clone(), self.shape.rows().clone());
        let cores = self.train.cores().iter().zip(self.swapped());
        let cores = cores.map(|(core, data)| Core::from_parts(core.shape(), data.clone())).collect();
        Self {
            // Both sides have as many factors as they had before.
            shape: shape.unwrap_or_else(|_| self.shape.clone()),
            train: TensorTrain::from_parts(cores),
            swapped: OnceLock::new(),
        }
    }

    /// The matrix of smallest ranks under a truncation; see [`TensorTrain::round`].
    ///
    /// # Errors
    /// As [`TensorTrain::round`].
    pub fn round(&self, truncation: &Truncation) -> Result<Approximation<Self>> {
        let fit = self.train.round(truncation)?;
        Ok(Approximation { factors: Self::new(self.shape.clone(), fit.factors)?, report: fit.report })
    }

    /// Sum of two matrices of one shape; the ranks add up.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`].
    pub fn add(&self, other: &Self) -> Result<Self> {
        self.check_split(other)?;
        Self::new(self.shape.clone(), self.train.add(&other.train)?)
    }

    /// Elementwise product of two matrices of one shape; the ranks multiply.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`].
    pub fn hadamard(&self, other: &Self) -> Result<Self> {
        self.check_split(other)?;
        Self::new(self.shape.clone(), self.train.hadamard(&other.train)?)
    }

    fn check_split(&self, other: &Self) -> Result<()> {
        if self.shape == other.shape {
            return Ok(());
        }
        let sides = |a: &Self| [a.shape.rows().factors(), a.shape.cols().factors()].concat();
        Err(FactorError::ShapeMismatch {
            what: "split of a TT-matrix",
            expected: sides(self),
            got: sides(other),
        })
    }

    /// The order in which [`TtMatrix::multiply_batch`] takes the cores for a batch of this size.
    pub fn plan(&self, batch: usize) -> ContractionPlan {
        let (rows, cols) = (self.shape.rows().factors(), self.shape.cols().factors());
        ContractionPlan::cheapest(&all_ranks(self.train.cores()), rows, cols, batch)
    }

    /// `X·A` without forming `A`.
    ///
    /// # Shapes
    /// `x` batch × m, result batch × n.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`], [`FactorError::Empty`].
    ///
    /// # Complexity
    /// [`ContractionPlan::multiply_adds`] of [`TtMatrix::plan`].
    pub fn multiply_batch(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        self.apply(x, false)
    }

    /// `X·Aᵀ` without forming `A`.
    ///
    /// # Shapes
    /// `x` batch × n, result batch × m.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`], [`FactorError::Empty`].
    pub fn multiply_batch_transposed(&self, x: MatRef<'_, T>) -> Result<Mat<T>> {
        self.apply(x, true)
    }

    fn apply(&self, x: MatRef<'_, T>, transposed: bool) -> Result<Mat<T>> {
        let batch = x.nrows();
        let (mut from, mut to) = (self.shape.rows(), self.shape.cols());
        if transposed {
            (from, to) = (to, from);
        }
        check_shape("batch", x, (batch, from.len()))?;
        if batch == 0 {
            return Err(FactorError::Empty { what: "batch", rows: 0, cols: from.len() });
        }
        let ranks = all_ranks(self.train.cores());
        let plan = ContractionPlan::cheapest(&ranks, from.factors(), to.factors(), batch);
        let pairs = self.train.cores().iter().map(Core::data).zip(self.swapped());
        let operands: Vec<Operand<'_, T>> = pairs
            .map(|(natural, swapped)| match transposed {
                false => Operand { input_first: natural, output_first: swapped },
                true => Operand { input_first: swapped, output_first: natural },
            })
            .collect();
        let sides = (&ranks[..], from.factors(), to.factors());
        let state = contract::run(&plan, &operands, sides, batch, digits_first(x, from.padded()));
        let result = MatRef::from_column_major_slice(&state[..batch * to.len()], batch, to.len());
        Ok(result.to_owned())
    }

    fn swapped(&self) -> &[Vec<T>] {
        self.swapped.get_or_init(|| {
            let (rows, cols) = (self.shape.rows().factors(), self.shape.cols().factors());
            let cores = self.train.cores().iter().zip(rows.iter().zip(cols));
            cores.map(|(core, (&m, &n))| core.swapped(m, n)).collect()
        })
    }
}

/// A matrix as the row-major tensor `[(i_1, j_1), …, (i_d, j_d)]`, with zeros for the padding.
fn paired_digits<T: Scalar>(a: MatRef<'_, T>, shape: &TtShape) -> Result<Vec<T>> {
    check(a, "matrix")?;
    check_shape("matrix", a, (shape.rows().len(), shape.cols().len()))?;
    let (rows, cols) = shape.offsets();
    let mut tensor = vec![T::default(); shape.rows().padded() * shape.cols().padded()];
    for (j, col) in cols.iter().enumerate() {
        for (i, row) in rows.iter().enumerate() {
            tensor[row + col] = a[(i, j)];
        }
    }
    Ok(tensor)
}

/// A batch as the row-major tensor `[i_1, …, i_d, batch]`, with zeros for the padding.
fn digits_first<T: Scalar>(x: MatRef<'_, T>, padded: usize) -> Vec<T> {
    let (batch, width) = x.shape();
    let mut state = Vec::with_capacity(padded * batch);
    match x.try_as_col_major() {
        Some(x) => (0..width).for_each(|j| state.extend_from_slice(x.col(j).as_slice())),
        None => (0..width).for_each(|j| state.extend((0..batch).map(|i| x[(i, j)]))),
    }
    state.resize(padded * batch, T::default());
    state
}
