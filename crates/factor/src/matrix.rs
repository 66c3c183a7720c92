//! Matrices at the boundary of the crate: views over slices, validation, norms and products.
//!
//! A matrix is a [`faer::MatRef`] of shape `m × n` with any strides; transposed and row-major views are
//! free. Validation happens once, in the public functions; inner code does not repeat it.

use faer::reborrow::ReborrowMut;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::{FactorError, Result};
use crate::scalar::Scalar;

/// View of a row-major slice (the layout of burn, PyTorch and safetensors) as a `rows × cols` matrix.
///
/// # Errors
/// [`FactorError::ShapeMismatch`] if the slice does not hold `rows · cols` elements.
///
/// ```
/// use lowrank_factor::matrix::from_row_major;
/// let a = from_row_major(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3)?;
/// assert_eq!(a[(1, 0)], 4.0);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
pub fn from_row_major<T: Scalar>(values: &[T], rows: usize, cols: usize) -> Result<MatRef<'_, T>> {
    if rows.checked_mul(cols) != Some(values.len()) {
        return Err(FactorError::ShapeMismatch {
            what: "row-major slice",
            expected: vec![rows, cols],
            got: vec![values.len()],
        });
    }
    Ok(MatRef::from_row_major_slice(values, rows, cols))
}

/// Copies a matrix into a row-major vector.
pub fn to_row_major<T: Scalar>(a: MatRef<'_, T>) -> Vec<T> {
    let mut out = Vec::with_capacity(a.nrows() * a.ncols());
    match a.try_as_row_major() {
        Some(a) => (0..a.nrows()).for_each(|i| out.extend_from_slice(a.row(i).transpose().as_slice())),
        None => (0..a.nrows()).for_each(|i| out.extend((0..a.ncols()).map(|j| a[(i, j)]))),
    }
    out
}

/// Frobenius norm, summed in `f64`.
///
/// # Errors
/// [`FactorError::Empty`], [`FactorError::NonFinite`].
pub fn frobenius_norm<T: Scalar>(a: MatRef<'_, T>) -> Result<f64> {
    let balanced = Balanced::new(a, "matrix")?;
    Ok(norm_squared(balanced.view()).sqrt() / balanced.scale)
}

/// `‖A − B‖ / ‖A‖` in the Frobenius norm; 0 if both are zero.
///
/// # Errors
/// [`FactorError::ShapeMismatch`], [`FactorError::Empty`], [`FactorError::NonFinite`].
pub fn relative_error<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Result<f64> {
    check_shape("approximation", b, a.shape())?;
    let scale = balance(check(a, "matrix")?.max(check(b, "approximation")?), T::SAFE);
    let difference = Mat::from_fn(a.nrows(), a.ncols(), |i, j| {
        T::of(a[(i, j)].widen() * scale - b[(i, j)].widen() * scale)
    });
    let norm = scaled_copy(a, scale);
    Ok(ratio(norm_squared(difference.as_ref()), norm_squared(norm.as_ref())))
}

/// `√(part / whole)` for squared norms, 0 if the whole is zero.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part.max(0.0) / whole).sqrt() } else { 0.0 }
}

/// A validated matrix, rescaled by a power of two if its magnitude would endanger sums of squares.
pub(crate) struct Balanced<'a, T: Scalar> {
    view: MatRef<'a, T>,
    rescaled: Option<Mat<T>>,
    /// Factor by which the original was multiplied.
    pub(crate) scale: f64,
}

impl<'a, T: Scalar> Balanced<'a, T> {
    pub(crate) fn new(view: MatRef<'a, T>, what: &'static str) -> Result<Self> {
        let scale = balance(check(view, what)?, T::SAFE);
        let rescaled = (scale != 1.0).then(|| scaled_copy(view, scale));
        Ok(Self { view, rescaled, scale })
    }

    pub(crate) fn view(&self) -> MatRef<'_, T> {
        self.rescaled.as_ref().map_or(self.view, Mat::as_ref)
    }

    /// Undoes the scaling of a list of singular values.
    pub(crate) fn restore(&self, values: &mut [T]) -> Result<()> {
        unscale(values, self.scale)
    }
}

/// Divides by the scale of [`Balanced`]; an error if a value then leaves the element type.
pub(crate) fn unscale<T: Scalar>(values: &mut [T], scale: f64) -> Result<()> {
    if scale != 1.0 {
        for value in values.iter_mut() {
            *value = T::of(value.widen() / scale);
            if !value.widen().is_finite() {
                return Err(FactorError::Overflow { what: "singular value" });
            }
        }
    }
    Ok(())
}

fn scaled_copy<T: Scalar>(a: MatRef<'_, T>, scale: f64) -> Mat<T> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| T::of(a[(i, j)].widen() * scale))
}

/// Power of two that brings `max_abs` near 1 when it lies outside `[1 / safe, safe]`, else 1.
pub(crate) fn balance(max_abs: f64, safe: f64) -> f64 {
    if max_abs == 0.0 || (max_abs <= safe && max_abs >= safe.recip()) {
        return 1.0;
    }
    // The clamp keeps 2^-e finite for a subnormal maximum.
    let exponent = max_abs.log2().floor().clamp(-1021.0, 1023.0);
    (-exponent).exp2()
}

/// Refuses an empty or non-finite matrix and returns the largest magnitude in it.
pub(crate) fn check<T: Scalar>(a: MatRef<'_, T>, what: &'static str) -> Result<f64> {
    if a.nrows() == 0 || a.ncols() == 0 {
        return Err(FactorError::Empty { what, rows: a.nrows(), cols: a.ncols() });
    }
    let zero = T::default();
    let (mut max, mut finite) = (zero, true);
    for_each_lane(a, |lane| {
        for &value in lane {
            let magnitude = value.magnitude();
            // NaN and ±Inf are the only values with x·0 ≠ 0.
            finite &= value * zero == zero;
            max = if magnitude > max { magnitude } else { max };
        }
    });
    if finite {
        return Ok(max.widen());
    }
    for row in 0..a.nrows() {
        for col in 0..a.ncols() {
            if !a[(row, col)].widen().is_finite() {
                return Err(FactorError::NonFinite { what, row, col });
            }
        }
    }
    Ok(max.widen())
}

/// Refuses a list with an element that is NaN or infinite.
pub(crate) fn check_slice<T: Scalar>(values: &[T], what: &'static str) -> Result<()> {
    if values.is_empty() {
        return Err(FactorError::Empty { what, rows: 0, cols: 1 });
    }
    match values.iter().position(|value| !value.widen().is_finite()) {
        Some(row) => Err(FactorError::NonFinite { what, row, col: 0 }),
        None => Ok(()),
    }
}

pub(crate) fn check_shape<T: Scalar>(
    what: &'static str,
    a: MatRef<'_, T>,
    (rows, cols): (usize, usize),
) -> Result<()> {
    if a.shape() == (rows, cols) {
        return Ok(());
    }
    Err(FactorError::ShapeMismatch { what, expected: vec![rows, cols], got: vec![a.nrows(), a.ncols()] })
}

/// Refuses a negative or undefined tolerance.
pub(crate) fn check_tolerance(value: f64) -> Result<()> {
    if value >= 0.0 {
        return Ok(());
    }
    Err(FactorError::InvalidOption { option: "tolerance", rule: "at least 0", value })
}

/// Refuses rank 0 and ranks above `max`.
pub(crate) fn check_rank(rank: usize, max: usize) -> Result<()> {
    if rank == 0 || rank > max { Err(FactorError::RankOutOfRange { rank, max }) } else { Ok(()) }
}

/// Visits the matrix as contiguous slices: its columns, or its rows if those are contiguous.
pub(crate) fn for_each_lane<T: Scalar>(a: MatRef<'_, T>, mut visit: impl FnMut(&[T])) {
    let a = if a.row_stride() != 1 && a.col_stride() == 1 { a.transpose() } else { a };
    if let Some(a) = a.try_as_col_major() {
        (0..a.ncols()).for_each(|j| visit(a.col(j).as_slice()));
    } else {
        let mut lane = vec![T::default(); a.nrows()];
        for j in 0..a.ncols() {
            lane.iter_mut().enumerate().for_each(|(i, x)| *x = a[(i, j)]);
            visit(&lane);
        }
    }
}

/// Squared Frobenius norm in `f64`.
pub(crate) fn norm_squared<T: Scalar>(a: MatRef<'_, T>) -> f64 {
    let mut total = 0.0;
    for_each_lane(a, |lane| total += sum_of_squares(lane));
    total
}

/// Sum of squares in `f64` with eight independent accumulators.
pub(crate) fn sum_of_squares<T: Scalar>(values: &[T]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0_f64; 8];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += value.widen() * value.widen();
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|value| value.widen() * value.widen()).sum::<f64>()
}

/// Lower triangle of `AᵀA`, shape `n × n`; the strict upper triangle is zero.
pub fn gram<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
    T::gram(a, parallelism(a.nrows() * a.ncols() * a.ncols()))
}

/// All threads of the current rayon pool for large work, only the caller's for small work.
pub(crate) fn parallelism(multiply_adds: usize) -> Par {
    // Below this size, waking a thread costs more than it saves.
    if multiply_adds < 1 << 23 { Par::Seq } else { Par::rayon(0) }
}

/// `A·B`.
pub(crate) fn product<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    product_into(out.as_mut(), Accum::Replace, a, b, T::of(1.0));
    out
}

/// `C ← α·A·B` or `C ← C + α·A·B`.
pub(crate) fn product_into<T: Scalar>(
    out: MatMut<'_, T>,
    accumulate: Accum,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    alpha: T,
) {
    let par = parallelism(a.nrows() * a.ncols() * b.ncols());
    T::gemm(out, accumulate, a, b, alpha, par);
}

/// Multiplies column `j` by `factors[j]`.
pub(crate) fn scale_columns<T: Scalar>(mut a: MatMut<'_, T>, factors: &[T]) {
    for (j, &factor) in factors.iter().enumerate() {
        a.rb_mut().col_mut(j).iter_mut().for_each(|value| *value *= factor);
    }
}

/// Concatenates matrices of equal width vertically.
pub(crate) fn stack_rows<T: Scalar>(parts: &[MatRef<'_, T>], cols: usize) -> Mat<T> {
    let mut out = Mat::zeros(parts.iter().map(|part| part.nrows()).sum(), cols);
    let mut start = 0;
    for part in parts {
        out.as_mut().subrows_mut(start, part.nrows()).copy_from(part);
        start += part.nrows();
    }
    out
}

/// Concatenates matrices of equal height horizontally.
pub(crate) fn stack_cols<T: Scalar>(parts: &[MatRef<'_, T>], rows: usize) -> Mat<T> {
    let mut out = Mat::zeros(rows, parts.iter().map(|part| part.ncols()).sum());
    let mut start = 0;
    for part in parts {
        out.as_mut().subcols_mut(start, part.ncols()).copy_from(part);
        start += part.ncols();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_major_round_trip() {
        let values = [1.0_f64, 2.0, 3.0, 4.0, 5.0, 6.0];
        let a = from_row_major(&values, 2, 3).unwrap();
        assert_eq!(to_row_major(a), values);
        assert_eq!(to_row_major(a.transpose()), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(matches!(from_row_major(&values, 2, 2), Err(FactorError::ShapeMismatch { .. })));
        assert!(matches!(from_row_major(&values, usize::MAX, 3), Err(FactorError::ShapeMismatch { .. })));
    }

    #[test]
    fn the_first_bad_element_is_named() {
        let values = [1.0_f32, 2.0, f32::NAN, 4.0, f32::INFINITY, 6.0];
        let a = from_row_major(&values, 2, 3).unwrap();
        let expected = FactorError::NonFinite { what: "matrix", row: 0, col: 2 };
        assert_eq!(check(a, "matrix"), Err(expected));
        assert_eq!(
            check(a.transpose(), "matrix"),
            Err(FactorError::NonFinite { what: "matrix", row: 1, col: 1 })
        );
        assert_eq!(
            check(a.submatrix(0, 0, 0, 3), "matrix"),
            Err(FactorError::Empty { what: "matrix", rows: 0, cols: 3 })
        );
    }

    #[test]
    fn strided_views_have_the_norm_of_their_elements() {
        let values: Vec<f64> = (0..60).map(f64::from).collect();
        let a = from_row_major(&values, 6, 10).unwrap();
        let view = a.submatrix(0, 1, 6, 2);
        let expected: f64 = (0..6).map(|i| (10 * i + 1) as f64).map(|x| x * x + (x + 1.0) * (x + 1.0)).sum();
        assert_eq!(norm_squared(view), expected);
        assert_eq!(norm_squared(view.reverse_cols().transpose()), expected);
    }

    #[test]
    fn norms_survive_extreme_magnitudes() {
        let large = Mat::from_fn(3, 3, |_, _| 1e300_f64);
        assert!((frobenius_norm(large.as_ref()).unwrap() / 3e300 - 1.0).abs() < 1e-15);
        let small = Mat::from_fn(3, 3, |_, _| 1e-40_f32);
        // 1e-40 is subnormal: it carries about 16 bits.
        assert!((frobenius_norm(small.as_ref()).unwrap() / 3e-40 - 1.0).abs() < 2e-5);
        assert_eq!(relative_error(large.as_ref(), large.as_ref()).unwrap(), 0.0);
    }
}
