//! Splitting dimensions into balanced factors, with padding for primes.

use crate::error::{FactorError, Result};

/// A dimension written as a product of factors, padded if need be.
///
/// The entries past [`DimFactors::len`] are zeros that are never part of a result, so padding adds no
/// error, only a few parameters.
///
/// ```
/// use lowrank_factor::tt::DimFactors;
/// assert_eq!(DimFactors::balanced(768, 3)?.factors(), [8, 8, 12]);
/// let vocabulary = DimFactors::balanced(50257, 3)?; // 29 · 1733
/// assert_eq!((vocabulary.len(), vocabulary.factors().iter().product::<usize>()), (50257, vocabulary.padded()));
/// assert!(vocabulary.padding() < 50);
/// # Ok::<(), lowrank_factor::FactorError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DimFactors {
    len: usize,
    factors: Vec<usize>,
}

/// Ratio to the ideal `len^(1/order)` up to which a factor is preferred over padding.
const SLACK: f64 = 2.0;

impl DimFactors {
    /// Splits `len` into `order` factors in nondecreasing order, as even as possible: the fewest padded
    /// entries such that no factor exceeds twice `len^(1/order)`, and then the smallest largest factor.
    ///
    /// # Errors
    /// [`FactorError::Empty`] for length 0, [`FactorError::InvalidOption`] unless `order` is in `1 ..= 16`
    /// and the padded length fits.
    pub fn balanced(len: usize, order: usize) -> Result<Self> {
        if len == 0 {
            return Err(FactorError::Empty { what: "dimension", rows: 0, cols: 1 });
        }
        if !(1..=16).contains(&order) {
            let value = order as f64;
            return Err(FactorError::InvalidOption { option: "order", rule: "in 1..=16", value });
        }
        let ideal = (len as f64).powf(1.0 / order as f64);
        let cap = (SLACK * ideal).max(1.0) as usize;
        // ⌈ideal⌉^order is a perfectly even split, so the search ends there at the latest.
        let last = (ideal.ceil() as usize).checked_pow(order as u32).filter(|&last| last < usize::MAX / 2);
        let last = last.ok_or(FactorError::Overflow { what: "padded dimension" })?.max(len);
        let factors = (len..=last).find_map(|padded| split(padded, order, cap));
        // A single factor is the dimension itself, and rounding of `ideal` must not lose it.
        let factors = factors.unwrap_or_else(|| vec![len]);
        Ok(Self { len, factors })
    }

    /// Creates the split from factors whose product is at least `len`.
    ///
    /// # Errors
    /// [`FactorError::Empty`] for length 0 or no factors, [`FactorError::ShapeMismatch`] if the product is
    /// smaller than `len` or a factor is 0.
    pub fn new(len: usize, factors: Vec<usize>) -> Result<Self> {
        if len == 0 || factors.is_empty() {
            return Err(FactorError::Empty { what: "dimension", rows: len, cols: factors.len() });
        }
        let padded = factors.iter().try_fold(1_usize, |all, &factor| all.checked_mul(factor));
        match padded {
            None => Err(FactorError::Overflow { what: "padded dimension" }),
            Some(padded) if padded < len => Err(FactorError::ShapeMismatch {
                what: "factors of a dimension",
                expected: vec![len],
                got: factors,
            }),
            Some(_) => Ok(Self { len, factors }),
        }
    }

    /// The dimension itself.
    #[allow(clippy::len_without_is_empty, reason = "a dimension is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The factors.
    pub fn factors(&self) -> &[usize] {
        &self.factors
    }

    /// Product of the factors, at least [`DimFactors::len`].
    pub fn padded(&self) -> usize {
        self.factors.iter().product()
    }

    /// Number of padding entries.
    pub fn padding(&self) -> usize {
        self.padded() - self.len
    }

    /// The same dimension with the factors in the opposite order.
    pub fn reversed(mut self) -> Self {
        self.factors.reverse();
        self
    }

    /// Digits of an index, most significant first.
    pub(crate) fn digits(&self, mut index: usize, out: &mut Vec<usize>) {
        out.clear();
        out.resize(self.factors.len(), 0);
        for (digit, &factor) in out.iter_mut().zip(&self.factors).rev() {
            *digit = index % factor;
            index /= factor;
        }
    }
}

/// `order` factors of `n`, none above `cap`, with the smallest possible largest one; nondecreasing.
fn split(n: usize, order: usize, cap: usize) -> Option<Vec<usize>> {
    if order == 1 {
        return (n <= cap).then(|| vec![n]);
    }
    let root = (n as f64).powf(1.0 / order as f64);
    // One below the rounded root, because the root of a perfect power may be rounded up.
    let start = (root.floor() as usize).saturating_sub(1).max(1);
    (start..=cap.min(n)).filter(|largest| n.is_multiple_of(*largest)).find_map(|largest| {
        let mut rest = split(n / largest, order - 1, largest)?;
        rest.push(largest);
        Some(rest)
    })
}

/// Both sides of a matrix split into equally many factors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TtShape {
    rows: DimFactors,
    cols: DimFactors,
}

impl TtShape {
    /// Pairs the factors of the two sides.
    ///
    /// # Errors
    /// [`FactorError::ShapeMismatch`] if the numbers of factors differ.
    pub fn new(rows: DimFactors, cols: DimFactors) -> Result<Self> {
        if rows.factors.len() != cols.factors.len() {
            return Err(FactorError::ShapeMismatch {
                what: "column factors",
                expected: vec![rows.factors.len()],
                got: vec![cols.factors.len()],
            });
        }
        Ok(Self { rows, cols })
    }

    /// Balanced factors of an `m × n` matrix, large row factors paired with small column factors so that
    /// the modes `m_k·n_k` are even.
    ///
    /// # Errors
    /// As [`DimFactors::balanced`].
    pub fn balanced(rows: usize, cols: usize, order: usize) -> Result<Self> {
        Self::new(DimFactors::balanced(rows, order)?, DimFactors::balanced(cols, order)?.reversed())
    }

    /// Factors of the rows.
    pub fn rows(&self) -> &DimFactors {
        &self.rows
    }

    /// Factors of the columns.
    pub fn cols(&self) -> &DimFactors {
        &self.cols
    }

    /// Number of cores.
    pub fn order(&self) -> usize {
        self.rows.factors.len()
    }

    /// The paired modes `m_k·n_k`.
    pub(crate) fn modes(&self) -> Vec<usize> {
        self.rows.factors.iter().zip(&self.cols.factors).map(|(m, n)| m * n).collect()
    }

    /// Offsets of every row and of every column in the tensor of paired modes: element `(i, j)` of the
    /// matrix is at `rows[i] + cols[j]`.
    pub(crate) fn offsets(&self) -> (Vec<usize>, Vec<usize>) {
        let mut stride = 1;
        let (mut rows, mut cols) = (vec![0; self.order()], vec![0; self.order()]);
        for k in (0..self.order()).rev() {
            cols[k] = stride;
            rows[k] = stride * self.cols.factors[k];
            stride *= self.rows.factors[k] * self.cols.factors[k];
        }
        let walk = |dim: &DimFactors, weights: &[usize]| {
            let mut digits = Vec::new();
            let offset = |index| {
                dim.digits(index, &mut digits);
                digits.iter().zip(weights).map(|(digit, weight)| digit * weight).sum()
            };
            (0..dim.len).map(offset).collect()
        };
        (walk(&self.rows, &rows), walk(&self.cols, &cols))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(768, 2, &[24, 32])]
    #[case(768, 3, &[8, 8, 12])]
    #[case(768, 4, &[4, 4, 6, 8])]
    #[case(4096, 3, &[16, 16, 16])]
    #[case(1000, 3, &[10, 10, 10])]
    #[case(1, 3, &[1, 1, 1])]
    #[case(7, 1, &[7])]
    #[case(7, 2, &[2, 4])]
    #[case(13, 3, &[2, 2, 4])]
    #[case(6912, 3, &[16, 18, 24])]
    fn known_splits(#[case] len: usize, #[case] order: usize, #[case] expected: &[usize]) {
        let mut got = DimFactors::balanced(len, order).unwrap();
        // Any of the splits with the same largest factor is as good.
        got.factors.sort_unstable();
        assert_eq!(got.factors.last(), expected.last());
        assert_eq!(got.padded(), expected.iter().product::<usize>());
    }

    #[test]
    fn every_dimension_splits_evenly_with_little_padding() {
        for len in 1..3000_usize {
            for order in 1..=4 {
                let dim = DimFactors::balanced(len, order).unwrap();
                assert_eq!(dim.factors.len(), order);
                assert!(dim.padded() >= len);
                let ideal = (len as f64).powf(1.0 / order as f64);
                assert!(dim.factors.iter().all(|&f| f as f64 <= 2.0 * ideal), "{len} {dim:?}");
                // There is always an even enough number between n and n·(1 + 2/√n).
                assert!(dim.padding() as f64 <= 2.0 * (len as f64).sqrt() + 2.0, "{len} {dim:?}");
            }
        }
    }

    #[test]
    fn bad_dimensions_are_refused() {
        assert!(matches!(DimFactors::balanced(0, 2), Err(FactorError::Empty { .. })));
        assert!(matches!(DimFactors::balanced(8, 0), Err(FactorError::InvalidOption { .. })));
        assert!(matches!(DimFactors::new(9, vec![2, 4]), Err(FactorError::ShapeMismatch { .. })));
        assert!(matches!(DimFactors::new(9, vec![]), Err(FactorError::Empty { .. })));
        assert!(matches!(DimFactors::new(9, vec![usize::MAX, 2]), Err(FactorError::Overflow { .. })));
        let (two, three) = (DimFactors::balanced(8, 2).unwrap(), DimFactors::balanced(8, 3).unwrap());
        assert!(matches!(TtShape::new(two, three), Err(FactorError::ShapeMismatch { .. })));
    }

    #[test]
    fn offsets_enumerate_the_tensor() {
        let shape = TtShape::balanced(12, 10, 2).unwrap();
        let (rows, cols) = shape.offsets();
        let mut all: Vec<usize> = rows.iter().flat_map(|r| cols.iter().map(move |c| r + c)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..120).collect::<Vec<_>>());
    }
}
