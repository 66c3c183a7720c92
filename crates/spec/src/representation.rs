//! The `lowrank` section of `config.json`: the factored modules of a compressed model, and their shapes.
//!
//! ```json
//! "lowrank": {"version": 1, "method": "whitened", "source": "<hash>", "modules": {
//!   "model.layers.0.self_attn.q_proj": {"kind": "low_rank", "ranks": [12], "error": 0.03},
//!   "model.layers.1.self_attn.q_proj": {"kind": "low_rank", "ranks": [12], "a_of": "model.layers.0.self_attn.q_proj"},
//!   "model.embed_tokens": {"kind": "tensor_train", "cores": [[1, 16, 8, 9], [9, 32, 8, 1]]}}}
//! ```
//!
//! Modules that are not listed are dense floats. A module has its name in the checkpoint, without `.weight`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Result, SpecError};
use crate::names::path_in_old_files;

/// The version of the section that this crate writes, and the latest that it reads.
///
/// Version 2 added [`Representation::Sum`] and [`ModuleEntry::formats`], version 3 the pivots of
/// [`Representation::LowRank`]; a section is written as the first version that has what it uses.
pub const VERSION: u32 = 3;

/// Largest number accepted for a rank or a side of a core.
const MAX_SIDE: usize = 1 << 24;
/// Maximum number of cores of a tensor train.
const MAX_CORES: usize = 16;

/// How the weight `W` `[d_input, d_output]` of a module is stored (for an embedding, `d_input` is the vocabulary).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Representation {
    /// One matrix under `<module>.weight`.
    #[default]
    Dense,
    /// `W = A·B`, or with two ranks `W = A·C·B`, under `<module>.lowrank_a.weight` `(r, in)`,
    /// `<module>.lowrank_c.weight` `(r_b, r_a)` and `<module>.lowrank_b.weight` `(out, r)`.
    LowRank {
        /// The inner dimension, or the widths of `A` and `B` with a core between them.
        ranks: Vec<usize>,
        /// The module whose `A` this one shares.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        a_of: Option<String>,
        /// The module whose `B` this one shares.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        b_of: Option<String>,
        /// `B` is stored without its rows at `r` pivots, which are those of the identity: the file has
        /// `<module>.lowrank_b.weight` `(out − r, r)` and `<module>.lowrank_pivots`, one bit for each output, the lowest of a
        /// byte first.
        #[serde(default, skip_serializing_if = "is_false")]
        pivots: bool,
    },
    /// `W = M + A·B`: one matrix under `<module>.weight`, usually quantized, and the two factors of
    /// [`LowRank`](Self::LowRank) that correct it.
    Sum {
        /// The inner dimension of `A·B`.
        rank: usize,
    },
    /// `W[(i_1 … i_d), (j_1 … j_d)] = G_1[i_1, j_1]·…·G_d[i_d, j_d]`, digits most significant first, under
    /// `<module>.tt_cores.<k>`. Rows and columns past `d_input` and `d_output` are padding.
    TensorTrain {
        /// Shape `[r_{k-1}, m_k, n_k, r_k]` of every core; the `m_k` split `d_input`, the `n_k` `d_output`.
        cores: Vec<[usize; 4]>,
    },
}

impl Representation {
    /// `W = A·B` with an inner dimension.
    pub fn low_rank(rank: usize) -> Self {
        Self::LowRank { ranks: vec![rank], a_of: None, b_of: None, pivots: false }
    }

    /// Whether `B` is stored without the identity at its pivots.
    pub fn is_pivoted(&self) -> bool {
        matches!(self, Self::LowRank { pivots: true, .. })
    }

    /// The same with `B` stored whole.
    pub fn forget_pivots(&mut self) {
        if let Self::LowRank { pivots, .. } = self {
            *pivots = false;
        }
    }

    /// Number of stored entries for a weight `[d_input, d_output]`; a shared factor counts at its owner.
    pub fn parameters(&self, [d_input, d_output]: [usize; 2]) -> usize {
        match self {
            Self::Dense => d_input * d_output,
            Self::LowRank { ranks, a_of, b_of, pivots } => {
                let (first, last) = (ranks.first().copied().unwrap_or(0), ranks.last().copied().unwrap_or(0));
                let d_output = if *pivots { d_output.saturating_sub(last) } else { d_output };
                let a = if a_of.is_none() { d_input * first } else { 0 };
                let b = if b_of.is_none() { last * d_output } else { 0 };
                let core = if ranks.len() == 2 { first * last } else { 0 };
                a + core + b
            }
            Self::Sum { rank } => d_input * d_output + rank * (d_input + d_output),
            Self::TensorTrain { cores } => cores.iter().map(|c| c.iter().product::<usize>()).sum(),
        }
    }

    /// Checks ranks and cores against each other and against the shape `[d_input, d_output]`.
    ///
    /// # Errors
    /// [`SpecError::Representation`] naming the mismatch.
    pub fn check(&self, [d_input, d_output]: [usize; 2]) -> Result<()> {
        let side = |n: usize| (1..=MAX_SIDE).contains(&n);
        let fault = |reason: String| Err(SpecError::Representation(reason));
        match self {
            Self::Dense => Ok(()),
            Self::LowRank { ranks, a_of, b_of, pivots: true }
                if ranks.len() != 1 || ranks[0] >= d_output || a_of.is_some() || b_of.is_some() =>
            {
                fault(format!(
                    "ranks {ranks:?} with pivots; expected one below {d_output}, and no shared factors"
                ))
            }
            Self::LowRank { ranks, .. } => {
                if matches!(ranks.len(), 1 | 2) && ranks.iter().all(|&r| side(r)) {
                    return Ok(());
                }
                fault(format!("ranks {ranks:?}; expected one or two of at least 1"))
            }
            Self::Sum { rank } if side(*rank) => Ok(()),
            Self::Sum { rank } => fault(format!("rank {rank} of a sum; expected at least 1")),
            Self::TensorTrain { cores } => {
                if cores.is_empty() || cores.len() > MAX_CORES || !cores.iter().flatten().all(|&n| side(n)) {
                    return fault(format!(
                        "{} cores; expected 1..={MAX_CORES} of sides at least 1",
                        cores.len()
                    ));
                }
                let outer = [cores[0][0], cores[cores.len() - 1][3]];
                if outer != [1, 1] || cores.windows(2).any(|pair| pair[0][3] != pair[1][0]) {
                    return fault("core ranks do not meet; outer ones must be 1 and neighbours equal".into());
                }
                for (what, axis, d) in [("rows", 1, d_input), ("columns", 2, d_output)] {
                    let padded = cores.iter().try_fold(1usize, |all, core| all.checked_mul(core[axis]));
                    // More padding than this is not a sensible split, and would cost memory in every product.
                    if !padded.is_some_and(|padded| (d..=4 * d).contains(&padded)) {
                        return fault(format!("the cores have {padded:?} {what} for a weight of {d}"));
                    }
                }
                Ok(())
            }
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Entry of one module in the section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleEntry {
    /// Storage of the weight.
    #[serde(flatten)]
    pub representation: Representation,
    /// Relative error of the representation, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// Block formats by the [names](crate::names::WeightPart::name) of the quantized parts, such as
    /// `{"weight": "Q4_K"}`. Parts that are not listed are floats.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub formats: BTreeMap<String, String>,
}

impl ModuleEntry {
    /// An entry of an unquantized representation, without a known error.
    pub fn new(representation: Representation) -> Self {
        Self { representation, ..Self::default() }
    }
}

/// The whole section; empty for a model that was never compressed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LowrankSection {
    /// At most [`VERSION`]. [`write`](Self::write) writes the first version that supports what the modules
    /// use.
    pub version: u32,
    /// Name of the method.
    #[serde(default)]
    pub method: String,
    /// Content hash of the checkpoint that was compressed.
    #[serde(default)]
    pub source: String,
    /// By module path.
    #[serde(default)]
    pub modules: BTreeMap<String, ModuleEntry>,
    /// All other keys.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Key of the section in `config.json`.
pub const SECTION: &str = "lowrank";

impl LowrankSection {
    /// Reads the section of a config; empty if the config has none.
    ///
    /// # Errors
    /// [`SpecError::Section`] if it is malformed or of a later version.
    pub fn of_config(raw: &Map<String, Value>) -> Result<Self> {
        let Some(value) = raw.get(SECTION) else { return Ok(Self::default()) };
        let section: Self =
            serde_json::from_value(value.clone()).map_err(|e| SpecError::Section(e.to_string()))?;
        if section.version > VERSION {
            return Err(SpecError::Section(format!(
                "version {} is later than {VERSION}; read this model with a newer lowrank",
                section.version
            )));
        }
        Ok(section)
    }

    /// Writes the section into a config; an empty one is left out.
    ///
    /// # Errors
    /// None for values that JSON can represent.
    pub fn write(&self, raw: &mut Map<String, Value>) -> Result<()> {
        if self.modules.is_empty() {
            raw.remove(SECTION);
            return Ok(());
        }
        let is_later = |entry: &ModuleEntry| {
            !entry.formats.is_empty() || matches!(entry.representation, Representation::Sum { .. })
        };
        let version = match () {
            () if self.modules.values().any(|entry| entry.representation.is_pivoted()) => 3,
            () if self.modules.values().any(is_later) => 2,
            () => 1,
        };
        let value = serde_json::to_value(Self { version, ..self.clone() })
            .map_err(|e| SpecError::Section(e.to_string()))?;
        raw.insert(SECTION.into(), value);
        Ok(())
    }

    /// The entry of a module, even if the section omits the model's prefix (`bert.`, `model.`) or has an older one.
    pub fn find(&self, path: &str) -> Option<(&str, &ModuleEntry)> {
        let bare = path.split_once('.').map(|(_, rest)| rest);
        let old = path_in_old_files(path);
        [Some(path), bare, old.as_deref()]
            .into_iter()
            .flatten()
            .find_map(|name| self.modules.get_key_value(name).map(|(k, v)| (k.as_str(), v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn section(value: Value) -> Result<LowrankSection> {
        LowrankSection::of_config(json!({ "lowrank": value }).as_object().expect("an object"))
    }

    #[test]
    fn written_and_read_again_it_is_the_same() {
        let entries = [
            ("a", Representation::low_rank(3)),
            (
                "b",
                Representation::LowRank {
                    ranks: vec![3, 4],
                    a_of: Some("a".into()),
                    b_of: None,
                    pivots: false,
                },
            ),
            ("c", Representation::TensorTrain { cores: vec![[1, 2, 3, 2], [2, 2, 2, 1]] }),
        ];
        let modules = entries
            .into_iter()
            .map(|(k, representation)| {
                (k.to_string(), ModuleEntry { error: Some(0.5), ..ModuleEntry::new(representation) })
            })
            .collect();
        let section = LowrankSection { version: 1, modules, ..Default::default() };
        let mut raw = Map::new();
        section.write(&mut raw).unwrap();
        assert_eq!(raw["lowrank"]["modules"]["a"], json!({"kind": "low_rank", "ranks": [3], "error": 0.5}));
        assert_eq!(LowrankSection::of_config(&raw).unwrap(), section);
        assert_eq!(section.find("model.c").map(|(name, _)| name), Some("c"));
        assert!(section.find("d").is_none());
    }

    #[test]
    fn blocks_and_sums_are_of_version_2() {
        let formats = [("weight".to_string(), "Q4_K".to_string())].into();
        let blocks = ModuleEntry { formats, ..ModuleEntry::default() };
        for (entry, kind) in [(blocks, "dense"), (ModuleEntry::new(Representation::Sum { rank: 4 }), "sum")] {
            let modules = [("a".to_string(), entry)].into();
            let mut raw = Map::new();
            LowrankSection { version: 1, modules, ..Default::default() }.write(&mut raw).unwrap();
            assert_eq!(raw["lowrank"]["version"], 2);
            assert_eq!(raw["lowrank"]["modules"]["a"]["kind"], kind);
            assert_eq!(LowrankSection::of_config(&raw).unwrap().version, 2);
        }
        assert_eq!(Representation::Sum { rank: 3 }.parameters([10, 20]), 290);
        assert!(Representation::Sum { rank: 0 }.check([4, 4]).is_err());
    }

    #[test]
    fn pivots_save_the_square_of_the_rank() {
        let pivoted =
            |rank| Representation::LowRank { ranks: vec![rank], a_of: None, b_of: None, pivots: true };
        assert_eq!(pivoted(3).parameters([10, 20]), 3 * (10 + 20 - 3));
        assert!(pivoted(3).check([10, 20]).is_ok() && pivoted(20).check([30, 20]).is_err());
        let modules = [("a".to_string(), ModuleEntry::new(pivoted(3)))].into();
        let mut raw = Map::new();
        LowrankSection { modules, ..Default::default() }.write(&mut raw).unwrap();
        assert_eq!(raw["lowrank"]["version"], 3);
        assert_eq!(raw["lowrank"]["modules"]["a"], json!({"kind": "low_rank", "ranks": [3], "pivots": true}));
        assert!(LowrankSection::of_config(&raw).unwrap().modules["a"].representation.is_pivoted());
    }

    #[test]
    fn what_is_shared_counts_once() {
        let own = Representation::low_rank(3);
        let shared =
            Representation::LowRank { ranks: vec![3, 4], a_of: Some("x".into()), b_of: None, pivots: false };
        assert_eq!(own.parameters([10, 20]), 90);
        assert_eq!(shared.parameters([10, 20]), 12 + 80);
        assert_eq!(
            Representation::TensorTrain { cores: vec![[1, 2, 5, 2], [2, 5, 4, 1]] }.parameters([10, 20]),
            60
        );
    }

    #[rstest]
    #[case(json!({"version": 4}), "version 4 is later")]
    #[case(json!({"version": 1, "modules": {"a": {"kind": "magic"}}}), "magic")]
    #[case(json!({"version": 1, "modules": {"a": {"kind": "low_rank", "ranks": [-1]}}}), "-1")]
    #[case(json!(3), "lowrank")]
    fn malformed_sections_are_refused(#[case] value: Value, #[case] part: &str) {
        let error = section(value).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[rstest]
    #[case(Representation::LowRank { ranks: vec![], a_of: None, b_of: None, pivots: false }, "expected one or two")]
    #[case(Representation::low_rank(0), "expected one or two")]
    #[case(Representation::TensorTrain { cores: vec![] }, "0 cores")]
    #[case(Representation::TensorTrain { cores: vec![[1, 6, 8, 2]] }, "do not meet")]
    #[case(Representation::TensorTrain { cores: vec![[1, 2, 4, 2], [3, 3, 2, 1]] }, "do not meet")]
    #[case(Representation::TensorTrain { cores: vec![[1, 2, 8, 1]] }, "rows")]
    #[case(Representation::TensorTrain { cores: vec![[1, 6, 1 << 20, 1]] }, "columns")]
    #[case(Representation::TensorTrain { cores: vec![[1, 1 << 23, 1 << 23, 1]; 4] }, "rows")]
    fn shapes_that_do_not_fit_are_refused(#[case] representation: Representation, #[case] part: &str) {
        let error = representation.check([6, 8]).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
