//! The amount to remove, and the resulting budget of the selected layers.

use std::str::FromStr;

use lowrank_factor::Truncation;

use crate::error::{CompressError, Result};

/// The quantity to which a ratio refers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Of {
    /// Parameters of the selected weights.
    #[default]
    Layers,
    /// Parameters of the whole model.
    Model,
    /// Bytes of the weight files.
    File,
}

impl FromStr for Of {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "layers" => Ok(Self::Layers),
            "model" => Ok(Self::Model),
            "file" => Ok(Self::File),
            _ => Err(format!("unknown reference '{name}' of a ratio; choose layers, model or file")),
        }
    }
}

/// Distribution of ranks under a ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// The ranks with the least total error within the budget. Each weight's error is measured by its effect
    /// on the output of its layer if the calibration provides it, otherwise relative to the weight's own
    /// norm.
    #[default]
    Budget,
    /// The same ratio for every weight.
    Uniform,
}

impl FromStr for Allocation {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "budget" => Ok(Self::Budget),
            "uniform" => Ok(Self::Uniform),
            _ => Err(format!("unknown allocation '{name}'; choose budget or uniform")),
        }
    }
}

/// The amount to remove.
///
/// | Variant | Purpose | Range |
/// |---|---|---|
/// | `Ratio` | fraction to remove | `(0, 1)` |
/// | `Ranks` | a rank for each name; only named weights are selected | ≥ 1, capped at the full rank |
/// | `Energy` | fraction of the squared norm that each weight keeps | `(0, 1)` |
/// | `Error` | largest relative error of each weight | `(0, 1)` |
/// | `Bytes` | bytes that the weight files may take; formats are chosen | ≥ 1 |
/// | `Stored` | the size given by the block format of the options | – |
///
/// Energy and error are in the method's own norm, weighted by activations if the method is.
#[derive(Clone, Debug, PartialEq)]
pub enum Amount {
    /// A fraction to remove.
    Ratio {
        /// The fraction.
        ratio: f64,
        /// The quantity to which it refers.
        of: Of,
    },
    /// Ranks by the names of modules (`q_proj`), path suffixes, `all-linear` or regular expressions.
    Ranks(Vec<(String, usize)>),
    /// Energy to keep, as a fraction.
    Energy(f64),
    /// Relative error to allow.
    Error(f64),
    /// Bytes of the weight files.
    Bytes(u64),
    /// The size given by the block format.
    Stored,
}

impl Amount {
    /// Checks the range of the value.
    ///
    /// # Errors
    /// [`CompressError::Option`].
    pub fn validate(&self) -> Result<()> {
        let (option, value) = match *self {
            Self::Ratio { ratio, .. } => ("ratio", ratio),
            Self::Energy(value) => ("energy", value),
            Self::Error(value) => ("error", value),
            Self::Stored => return Ok(()),
            Self::Bytes(bytes) => {
                let (option, value) = ("bytes", bytes.to_string());
                return if bytes > 0 {
                    Ok(())
                } else {
                    Err(CompressError::Option { option, value, expected: "at least 1".into() })
                };
            }
            Self::Ranks(ref ranks) => {
                return match ranks.iter().find(|(_, rank)| *rank == 0) {
                    _ if ranks.is_empty() => Err(CompressError::Input("no ranks given".into())),
                    Some((name, _)) => Err(CompressError::Option {
                        option: "ranks",
                        value: format!("{name}=0"),
                        expected: "ranks of at least 1".into(),
                    }),
                    None => Ok(()),
                };
            }
        };
        if value > 0.0 && value < 1.0 {
            return Ok(());
        }
        let expected = "more than 0 and less than 1".to_string();
        Err(CompressError::Option { option, value: value.to_string(), expected })
    }

    /// The truncation of each individual weight, if the amount is one.
    pub(crate) fn truncation(&self) -> Option<Truncation> {
        match *self {
            Self::Energy(energy) => Some(Truncation::Energy(energy)),
            Self::Error(error) => Some(Truncation::RelativeError(error)),
            Self::Ratio { .. } | Self::Ranks(_) | Self::Bytes(_) | Self::Stored => None,
        }
    }
}

/// Parses `q_proj=384,o_proj=384`.
///
/// # Errors
/// A one-line description of the malformed part.
pub fn parse_ranks(text: &str) -> std::result::Result<Vec<(String, usize)>, String> {
    let one = |part: &str| {
        let bad = || format!("'{part}' is not NAME=RANK, as q_proj=384");
        let (name, rank) = part.rsplit_once('=').ok_or_else(bad)?;
        let rank: usize = rank.trim().parse().map_err(|_| bad())?;
        if name.trim().is_empty() { Err(bad()) } else { Ok((name.trim().to_string(), rank)) }
    };
    let ranks: Vec<(String, usize)> =
        text.split(',').map(|part| one(part.trim())).collect::<std::result::Result<_, _>>()?;
    let is_twice = |(i, (name, _)): (usize, &(String, usize))| ranks[..i].iter().any(|(n, _)| n == name);
    match ranks.iter().enumerate().find(|entry| is_twice(*entry)) {
        Some((_, (name, _))) => Err(format!("'{name}' is given two ranks")),
        None => Ok(ranks),
    }
}

/// Sizes that turn a ratio into a number of parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    /// Parameters of the selected weights.
    pub(crate) touched: u64,
    /// Parameters of the model.
    pub(crate) model: u64,
    /// Bytes of the input files.
    pub(crate) file: u64,
    /// Output bytes other than the selected weights: other tensors, headers.
    pub(crate) other_bytes: u64,
    /// Output bytes per parameter of the selected weights; 1 if budgets count bytes.
    pub(crate) bytes_each: f64,
}

impl Sizes {
    /// Parameters (or bytes) that may remain in the selected weights.
    pub(crate) fn budget(&self, ratio: f64, of: Of) -> i64 {
        let left = match of {
            Of::Layers => self.touched as f64 * (1.0 - ratio),
            Of::Model => self.touched as f64 - ratio * self.model as f64,
            Of::File => (self.file as f64 * (1.0 - ratio) - self.other_bytes as f64) / self.bytes_each,
        };
        // Rounding must not cost a parameter if the exact product is an integer.
        (left + 1e-6).floor() as i64
    }

    /// Refuses a budget below the least cost of the selected weights.
    pub(crate) fn check(&self, ratio: f64, budget: i64, minimum: u64, in_bytes: bool) -> Result<()> {
        if budget >= 0 && minimum <= budget as u64 {
            return Ok(());
        }
        if in_bytes {
            return self.check_file(ratio, minimum + self.other_bytes);
        }
        Err(CompressError::Budget { ratio, budget, minimum, total: self.touched })
    }

    /// Refuses files of more bytes than a ratio of the input's allows.
    pub(crate) fn check_file(&self, ratio: f64, needed: u64) -> Result<()> {
        let allowed = (self.file as f64 * (1.0 - ratio) + 1e-6).floor() as u64;
        if needed <= allowed {
            return Ok(());
        }
        let possible = (1000.0 * (1.0 - needed as f64 / self.file as f64)).floor() / 1000.0;
        Err(CompressError::FileBudget { ratio, allowed, needed, possible: possible.max(0.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn ranks_are_read_by_name() {
        let ranks = parse_ranks("q_proj=384, self_attn.o_proj = 12").unwrap();
        assert_eq!(ranks, [("q_proj".to_string(), 384), ("self_attn.o_proj".to_string(), 12)]);
        for bad in ["", "q_proj", "q_proj=", "q_proj=-1", "=3", "q_proj=1,,k=2"] {
            assert!(parse_ranks(bad).is_err(), "{bad}");
        }
    }

    #[rstest]
    #[case(0.0)]
    #[case(1.0)]
    #[case(-0.2)]
    #[case(f64::NAN)]
    fn shares_lie_between_0_and_1(#[case] value: f64) {
        for amount in
            [Amount::Ratio { ratio: value, of: Of::Model }, Amount::Energy(value), Amount::Error(value)]
        {
            let error = amount.validate().unwrap_err().to_string();
            assert!(error.contains("out of range"), "{error}");
        }
        assert!(Amount::Ranks(vec![("q".into(), 0)]).validate().is_err());
    }

    #[test]
    fn a_ratio_counts_what_it_is_of() {
        let sizes = Sizes { touched: 100, model: 150, file: 700, other_bytes: 300, bytes_each: 4.0 };
        assert_eq!(sizes.budget(0.2, Of::Layers), 80);
        assert_eq!(sizes.budget(0.2, Of::Model), 70);
        assert_eq!(sizes.budget(0.2, Of::File), 65);
        assert_eq!(sizes.budget(0.9, Of::Model), -35);
    }
}
