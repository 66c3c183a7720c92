//! Perplexity over any number of batches.

use crate::error::{EvalError, Result};

/// Sums negative log-likelihoods; every token has the same weight.
///
/// ```
/// use lowrank_eval::Perplexity;
/// let mut total = Perplexity::default();
/// total.add(2.0 * 4f64.ln(), 2)?;
/// total.add(0.0, 2)?;
/// assert!((total.perplexity()? - 2.0).abs() < 1e-12);
/// # Ok::<(), lowrank_eval::EvalError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Perplexity {
    sum_nll: f64,
    tokens: u64,
    rows: usize,
}

impl Perplexity {
    /// Adds a row: the sum of `−ln p` over its `tokens` predicted tokens.
    ///
    /// # Errors
    /// [`EvalError::NotFinite`] if the sum is NaN or infinite; nothing is added then.
    pub fn add(&mut self, sum_nll: f64, tokens: usize) -> Result<()> {
        if !sum_nll.is_finite() {
            return Err(EvalError::NotFinite { row: self.rows, value: sum_nll as f32 });
        }
        self.sum_nll += sum_nll;
        self.tokens += tokens as u64;
        self.rows += 1;
        Ok(())
    }

    /// The number of predicted tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean of `−ln p` over all tokens.
    ///
    /// # Errors
    /// [`EvalError::NoTokens`] if there are no tokens.
    pub fn mean_nll(&self) -> Result<f64> {
        if self.tokens == 0 { Err(EvalError::NoTokens) } else { Ok(self.sum_nll / self.tokens as f64) }
    }

    /// `exp` of [`Perplexity::mean_nll`].
    ///
    /// # Errors
    /// As [`Perplexity::mean_nll`].
    pub fn perplexity(&self) -> Result<f64> {
        self.mean_nll().map(f64::exp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_not_rows_are_weighed() {
        let mut total = Perplexity::default();
        total.add(3.0, 1).unwrap();
        total.add(1.0, 3).unwrap();
        assert_eq!(total.mean_nll().unwrap(), 1.0);
        assert_eq!(total.perplexity().unwrap(), 1f64.exp());
        assert_eq!(total.tokens(), 4);
    }

    #[test]
    fn no_tokens_and_no_numbers_are_errors() {
        let mut total = Perplexity::default();
        total.add(0.0, 0).unwrap();
        assert_eq!(total.perplexity().unwrap_err(), EvalError::NoTokens);
        let error = total.add(f64::NAN, 3).unwrap_err();
        assert!(matches!(error, EvalError::NotFinite { row: 1, .. }), "{error}");
        assert_eq!(total.tokens(), 0);
    }
}
