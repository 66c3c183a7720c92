//! What kind of adapter to make, checked once before anything is allocated.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{AdapterError, Result};
use lowrank_spec::Site;
use lowrank_spec::targets::{Targets, by_suffix};

/// The adapter methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Low-rank adaptation (Hu et al. 2021): a pair of factors for each site.
    Lora,
    /// Weight-decomposed LoRA (Liu et al. 2024): a pair, and a magnitude for each column of the weight.
    Dora,
    /// LoRA with `A` frozen (Zhang et al. 2023).
    LoraFa,
    /// Low tensor rank (Bershatsky et al. 2024): factors shared by the sites, a core for each.
    Lotr,
    /// Vector-based random adaptation (Kopiczko et al. 2023): frozen random factors shared by all sites, two
    /// trained vectors for each.
    Vera,
    /// LoRETTA (Yang et al. 2024): the two factors of a LoRA, each as a tensor train.
    Loretta,
    /// TT-LoRA (Anjum et al. 2024): the whole update as one tensor train.
    TtLora,
    /// LoRTA (Hounie et al. 2024): the updates of all layers as one tensor in CP form.
    Lorta,
    /// A full-size correction that is projected onto matrices of low rank after every step.
    #[serde(rename = "lowrank")]
    LowRank,
}

impl Method {
    /// Whether sites share factors, so that they are taken in groups of one shape.
    pub const fn is_shared(self) -> bool {
        matches!(self, Self::Lotr | Self::Lorta)
    }

    /// Whether it can sit on an embedding.
    pub const fn takes_embeddings(self) -> bool {
        matches!(self, Self::Lora | Self::Dora | Self::LoraFa)
    }
}

/// How the factors start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// The method's own: Kaiming for a pair, trivial for LoTR.
    #[default]
    Default,
    /// LoRA: `A` Kaiming-uniform (a = √5), `B` zero.
    Kaiming,
    /// LoRA: `A` normal with standard deviation 1/rank, `B` zero.
    Gaussian,
    /// LoRA: leading singular triplets of the weight (PiSSA, Meng et al. 2024).
    Pissa,
    /// The same by randomized SVD.
    PissaRandomized,
    /// LoRA: leading part of the weight's QR decomposition (OLoRA, Büyükakyüz 2024).
    Olora,
    /// LoTR: `L` and `R` normal, cores zero.
    Trivial,
    /// LoTR: `L` normal, cores the identity, `R` zero.
    Neutral,
    /// LoTR: `L`, cores and `R` normal.
    Normal,
    /// LoTR: Tucker2 of the stacked weights.
    Svd,
}

impl Init {
    const PAIRS: [Self; 5] = [Self::Kaiming, Self::Gaussian, Self::Pissa, Self::PissaRandomized, Self::Olora];
    const LOTR: [Self; 4] = [Self::Trivial, Self::Neutral, Self::Normal, Self::Svd];

    /// Whether a method knows it.
    fn suits(self, method: Method) -> bool {
        match method {
            _ if self == Self::Default => true,
            Method::Lora | Method::LoraFa => Self::PAIRS.contains(&self),
            Method::Dora => matches!(self, Self::Kaiming | Self::Gaussian),
            Method::Lotr => Self::LOTR.contains(&self),
            _ => false,
        }
    }
}

/// Which sites share factors, among those of one shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// All of them, whatever their kind: query and value of every layer in one group.
    #[default]
    Shape,
    /// Those of one kind: query of every layer, value of every layer.
    Kind,
}

/// Hyper-parameters of an adapter.
///
/// | name | default | purpose | range |
/// |---|---|---|---|
/// | `rank` | 8 | inner width of the update | 1 ..= min(d_input, d_output) |
/// | `alpha` | 16 | strength; the update is scaled by alpha/rank | finite, > 0 |
/// | `rslora` | false | scale by alpha/√rank instead (Kalajdzievski 2023) | |
/// | `dropout` | 0 | on the adapter's input, in training | 0 ..< 1 |
/// | `init` | the method's | initial values | those of the method |
/// | `rank_pattern`, `alpha_pattern` | none | rank and alpha of some modules, by the end of their path | as above |
/// | `grouping` | shape | which sites share factors (LoTR, LoRTA, lowrank over a stack) | |
/// | `stack` | false | lowrank: project groups of sites together, by Tucker2 | |
/// | `tt_rank` | 4 | ranks inside the tensor trains of LoRETTA | ≥ 1 |
/// | `tt_order` | 3 | factors into which a tensor train splits a width | 1 ..= 16 |
/// | `heads` | 1 | LoRTA's mode over attention heads | divides d_output |
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
    /// How the factors start.
    pub init: Init,
    /// Rank of the modules whose path ends in a key, itself a regular expression.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alpha of the modules whose path ends in a key, itself a regular expression.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Which sites share factors.
    pub grouping: Grouping,
    /// Low-rank optimisation: project the sites of a group together.
    pub stack: bool,
    /// Ranks inside the tensor trains of LoRETTA.
    pub tt_rank: usize,
    /// Factors into which a tensor train splits a width.
    pub tt_order: usize,
    /// Size of LoRTA's mode over attention heads.
    pub heads: usize,
    /// Where it sits.
    pub targets: Targets,
    /// Seed of the initial values.
    pub seed: u64,
}

impl AdapterConfig {
    /// A config with the defaults of the table above.
    pub fn new(method: Method, targets: Targets) -> Self {
        Self {
            method,
            rank: 8,
            alpha: 16.0,
            rslora: false,
            dropout: 0.0,
            init: Init::Default,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            grouping: Grouping::Shape,
            stack: false,
            tt_rank: 4,
            tt_order: 3,
            heads: 1,
            targets,
            seed: 0,
        }
    }

    /// The rank at a site. A head narrower than the rank (a classifier with two labels) is adapted at its own
    /// full rank; everywhere else a rank above the layer's size is a mistake, which `validate` reports.
    pub fn rank_of(&self, site: &Site) -> usize {
        let rank = by_suffix(&self.rank_pattern, &site.path).unwrap_or(self.rank);
        if site.head { rank.min(site.max_rank()) } else { rank }
    }

    /// The factor on a site's update: alpha/rank, or alpha/√rank.
    pub fn scale_of(&self, site: &Site) -> f64 {
        let alpha = by_suffix(&self.alpha_pattern, &site.path).unwrap_or(self.alpha);
        scale(alpha, self.rank_of(site), self.rslora)
    }

    /// Checks the values against the sites that will be adapted.
    ///
    /// # Errors
    /// [`AdapterError::BadValue`], [`AdapterError::RankOutOfRange`].
    pub fn validate<'a>(&self, sites: impl IntoIterator<Item = &'a Site>) -> Result<()> {
        let bad = |name, value: String, expected| Err(AdapterError::BadValue { name, value, expected });
        let alphas = self.alpha_pattern.values().chain([&self.alpha]);
        for alpha in alphas {
            if !(alpha.is_finite() && *alpha > 0.0) {
                return bad("alpha", alpha.to_string(), "a finite number above 0");
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", self.dropout.to_string(), "0 <= dropout < 1");
        }
        if !self.init.suits(self.method) {
            return bad(
                "init",
                name_of(&self.init),
                "kaiming, gaussian, pissa, pissa-randomized or olora for lora; kaiming or gaussian for dora; \
                 trivial, neutral, normal or svd for lotr",
            );
        }
        if self.tt_rank == 0 {
            return bad("tt-rank", self.tt_rank.to_string(), "1 or more");
        }
        if !(1..=16).contains(&self.tt_order) {
            return bad("tt-order", self.tt_order.to_string(), "1..=16");
        }
        let patterned = !(self.rank_pattern.is_empty() && self.alpha_pattern.is_empty());
        if patterned && (self.method.is_shared() || self.method == Method::Vera) {
            return bad(
                "rank-pattern",
                name_of(&self.method),
                "a method that gives each layer factors of its own",
            );
        }
        for site in sites {
            if site.embedding && !self.method.takes_embeddings() {
                return bad(
                    "targets",
                    site.path.clone(),
                    "linear layers; of the methods, lora and dora take embeddings",
                );
            }
            let rank = self.rank_of(site);
            // The random factors of VeRA may be wider than the layer.
            let max = if self.method == Method::Vera { usize::MAX } else { site.max_rank() };
            if rank == 0 || rank > max {
                return Err(AdapterError::RankOutOfRange {
                    rank,
                    site: site.path.clone(),
                    d_input: site.d_input,
                    d_output: site.d_output,
                    max: site.max_rank(),
                });
            }
            let by_heads = self.method == Method::Lorta;
            if by_heads && (self.heads == 0 || !site.d_output.is_multiple_of(self.heads)) {
                return bad("heads", self.heads.to_string(), "a divisor of the width of every adapted layer");
            }
        }
        Ok(())
    }
}

/// The name under which a value is serialized.
pub(crate) fn name_of<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
}

/// alpha/rank, or alpha/√rank for rsLoRA.
pub fn scale(alpha: f64, rank: usize, rslora: bool) -> f64 {
    alpha / if rslora { (rank as f64).sqrt() } else { rank as f64 }
}
