//! What kind of adapter to make, checked once before anything is allocated.

use serde::{Deserialize, Serialize};

use crate::error::{AdapterError, Result};
use crate::site::Site;
use crate::targets::Targets;

/// The adapter methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Low-rank adaptation (Hu et al. 2021): a pair of factors for each site.
    Lora,
    /// Low tensor rank (Bershatsky et al. 2024): factors shared by the sites, a core for each.
    Lotr,
}

/// Hyper-parameters of an adapter.
///
/// | name | default | purpose | range |
/// |---|---|---|---|
/// | `rank` | 8 | inner width of the update | 1 ..= min(d_input, d_output) |
/// | `alpha` | 16 | strength; the update is scaled by alpha/rank | finite, > 0 |
/// | `rslora` | false | scale by alpha/√rank instead (Kalajdzievski 2023) | |
/// | `dropout` | 0 | on the adapter's input, in training | 0 ..< 1 |
/// | `seed` | 0 | initial values | |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Which method.
    pub method: Method,
    /// Inner width of the update.
    pub rank: usize,
    /// Strength of the update.
    pub alpha: f64,
    /// Scale by alpha/√rank instead of alpha/rank.
    pub rslora: bool,
    /// Dropout on the adapter's input.
    pub dropout: f64,
    /// Where it sits.
    pub targets: Targets,
    /// Seed of the initial values.
    pub seed: u64,
}

impl AdapterConfig {
    /// A config with the defaults of the table above.
    pub fn new(method: Method, targets: Targets) -> Self {
        Self { method, rank: 8, alpha: 16.0, rslora: false, dropout: 0.0, targets, seed: 0 }
    }

    /// The factor on the update: alpha/rank, or alpha/√rank.
    pub fn scale(&self) -> f64 {
        scale(self.alpha, self.rank, self.rslora)
    }

    /// Checks the values against the sites that will be adapted.
    ///
    /// # Errors
    /// [`AdapterError::BadValue`], [`AdapterError::RankOutOfRange`].
    pub fn validate<'a>(&self, sites: impl IntoIterator<Item = &'a Site>) -> Result<()> {
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(AdapterError::BadValue {
                name: "alpha",
                value: self.alpha.to_string(),
                expected: "a finite number above 0",
            });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(AdapterError::BadValue {
                name: "dropout",
                value: self.dropout.to_string(),
                expected: "0 <= dropout < 1",
            });
        }
        // A classifier with two labels cannot use rank 8; it is capped there, as its own full rank says it
        // all. Everywhere else a rank above the layer's size is a mistake.
        let rank = self.rank;
        for site in sites {
            if rank == 0 || (rank > site.max_rank() && !site.head) {
                return Err(AdapterError::RankOutOfRange {
                    rank,
                    site: site.path.clone(),
                    d_input: site.d_input,
                    d_output: site.d_output,
                    max: site.max_rank(),
                });
            }
        }
        Ok(())
    }
}

/// alpha/rank, or alpha/√rank for rsLoRA.
pub fn scale(alpha: f64, rank: usize, rslora: bool) -> f64 {
    alpha / if rslora { (rank as f64).sqrt() } else { rank as f64 }
}
