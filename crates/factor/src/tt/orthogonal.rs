//! Orthogonalization and rounding.

use faer::Mat;

use super::core::{Core, flat_product};
use super::decompose::ranks_within;
use super::train::TensorTrain;
use crate::error::{FactorError, Result};
use crate::matrix::{check_rank, product, ratio, scale_columns, sum_of_squares, to_row_major};
use crate::qr;
use crate::scalar::Scalar;
use crate::svd;
use crate::truncation::{Approximation, Truncation, TruncationReport, tails};

impl<T: Scalar> TensorTrain<T> {
    /// The same tensor with every core left of `center` left-orthogonal and every core right of it
    /// right-orthogonal. The norm of the tensor is then that of the core at `center`, and ranks
    /// above the limit of their neighbours are reduced.
    ///
    /// # Errors
    /// [`FactorError::IndexOutOfRange`].
    ///
    /// # Complexity
    /// `O(Σ n_k·r³)`.
    pub fn orthogonalize(&self, center: usize) -> Result<Self> {
        let len = self.order();
        if center >= len {
            return Err(FactorError::IndexOutOfRange { index: center, len });
        }
        let mut cores = self.cores().to_vec();
        for k in 0..center {
            let [left, mode, _] = cores[k].shape();
            let (q, r) = qr::factor(cores[k].left_unfolding());
            let [_, next_mode, next_right] = cores[k + 1].shape();
            let next = flat_product(r.as_ref(), cores[k + 1].right_unfolding());
            cores[k] = Core::from_parts([left, mode, q.ncols()], to_row_major(q.as_ref()));
            cores[k + 1] = Core::from_parts([q.ncols(), next_mode, next_right], next);
        }
        for k in (center + 1..len).rev() {
            let [_, mode, right] = cores[k].shape();
            let (q, r) = qr::factor(cores[k].right_unfolding().transpose());
            let [before_left, before_mode, _] = cores[k - 1].shape();
            let before = flat_product(cores[k - 1].left_unfolding(), r.transpose());
            cores[k] = Core::from_parts([q.ncols(), mode, right], to_row_major(q.transpose()));
            cores[k - 1] = Core::from_parts([before_left, before_mode, q.ncols()], before);
        }
        Ok(Self::from_parts(cores))
    }

    /// Frobenius norm, from an orthogonalized copy: accurate even for the difference of two nearly equal
    /// trains.
    pub fn norm(&self) -> f64 {
        match self.orthogonalize(0) {
            Ok(train) => sum_of_squares(train.cores()[0].data()).sqrt(),
            // Position 0 exists in every train.
            Err(_) => f64::NAN,
        }
    }

    /// The train of smallest ranks under a truncation.
    ///
    /// # Algorithm
    /// TT-rounding (Oseledets 2011, algorithm 2): orthogonalization from the right, then truncated SVDs
    /// from the left.
    ///
    /// # Error bound
    /// As [`tt_svd`](super::tt_svd), with the train in place of the dense tensor.
    ///
    /// # Errors
    /// Those of the [`Truncation`]. `Rank(r)` may exceed the current ranks.
    ///
    /// # Complexity
    /// `O(Σ n_k·r³)`.
    ///
    /// ```
    /// use lowrank_factor::{Truncation, tt};
    /// let x: Vec<f64> = (0..60).map(|i| (i as f64).sqrt()).collect();
    /// let train = tt::tt_svd(&x, &[3, 4, 5], &Truncation::RelativeError(0.0))?.factors;
    /// let twice = train.add(&train)?; // ranks double, the tensor does not need them
    /// let rounded = twice.round(&Truncation::RelativeError(1e-12))?;
    /// assert_eq!(rounded.factors.ranks(), train.ranks());
    /// # Ok::<(), lowrank_factor::FactorError>(())
    /// ```
    pub fn round(&self, truncation: &Truncation) -> Result<Approximation<Self>> {
        truncation.validate()?;
        let start = self.orthogonalize(0)?;
        let total = sum_of_squares(start.cores()[0].data());
        let bonds = self.order() - 1;
        let allowed = truncation.allowed(total) / bonds.max(1) as f64;
        let ranks = match *truncation {
            Truncation::Rank(rank) => {
                check_rank(rank, usize::MAX)?;
                Some(vec![rank; bonds])
            }
            Truncation::Parameters(budget) => {
                let spectra = start.bond_tails()?;
                Some(ranks_within(&spectra, &self.modes(), budget)?)
            }
            Truncation::RelativeError(_) | Truncation::Energy(_) => None,
        };
        let (factors, dropped) = start.truncate(|k, tails| match &ranks {
            Some(ranks) => ranks[k].min(tails.len() - 1),
            None => tails.iter().position(|&tail| tail <= allowed).unwrap_or(tails.len() - 1).max(1),
        })?;
        let report = TruncationReport {
            rank: factors.ranks().into_iter().max().unwrap_or(1),
            relative_error: ratio(dropped, total),
            parameters_before: self.parameters(),
            parameters_after: factors.parameters(),
        };
        Ok(Approximation { factors, report })
    }

    /// Squared tails of the singular values at every bond of a right-orthogonal train.
    fn bond_tails(&self) -> Result<Vec<Vec<f64>>> {
        let mut spectra = Vec::with_capacity(self.order() - 1);
        self.truncate(|_, tails| {
            spectra.push(tails.to_vec());
            tails.len() - 1
        })?;
        Ok(spectra)
    }

    /// Truncating sweep from the left over a right-orthogonal train; `keep(bond, tails)` is the rank.
    /// Returns the squared norm dropped.
    fn truncate(&self, mut keep: impl FnMut(usize, &[f64]) -> usize) -> Result<(Self, f64)> {
        let mut cores = self.cores().to_vec();
        let mut dropped = 0.0;
        for k in 0..cores.len() - 1 {
            let [left, mode, _] = cores[k].shape();
            let (u, s, mut v) = svd::thin(cores[k].left_unfolding());
            let squared: Vec<f64> = s.iter().map(|s| s.widen().powi(2)).collect();
            let tails = tails(&squared, 0.0);
            let rank = keep(k, &tails);
            dropped += tails[rank];
            scale_columns(v.as_mut().subcols_mut(0, rank), &s[..rank]);
            let carry: Mat<T> = product(v.subcols(0, rank).transpose(), cores[k + 1].right_unfolding());
            let [_, next_mode, next_right] = cores[k + 1].shape();
            cores[k] = Core::from_parts([left, mode, rank], to_row_major(u.subcols(0, rank)));
            cores[k + 1] = Core::from_parts([rank, next_mode, next_right], to_row_major(carry.as_ref()));
        }
        Ok((Self::from_parts(cores), dropped))
    }
}
