//! Presentation of a metric in a table.

/// A metric's name, with its properties in a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Metric(String);

impl Metric {
    /// The metric that runs call `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Whether larger values are better: not for losses and perplexities.
    pub fn higher_is_better(&self) -> bool {
        !self.is_loss()
    }

    /// Factor on the values shown: 100 for scores in the unit interval, as in the GLUE
    /// tables.
    pub fn scale(&self) -> f64 {
        if self.is_loss() { 1.0 } else { 100.0 }
    }

    fn is_loss(&self) -> bool {
        ["loss", "perplexity", "ppl", "nll", "error", "mse"].iter().any(|part| self.0.contains(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_rise_and_losses_fall() {
        assert!(Metric::new("matthews").higher_is_better());
        assert_eq!(Metric::new("accuracy").scale(), 100.0);
        assert!(!Metric::new("perplexity").higher_is_better());
        assert_eq!(Metric::new("eval_loss").scale(), 1.0);
    }
}
