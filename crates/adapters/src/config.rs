//! The configuration of adapters, validated before anything is allocated.

use std::fmt;
use std::str::FromStr;

use lowrank_spec::{Site, SuffixMap, Targets};
use serde::{Deserialize, Serialize};

use crate::error::{AdapterError, Result};
use crate::methods::{Method, OptionKind, Options, Sharing};

/// Initialization of the factors.
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
    /// LoRA over a quantized base: leading singular triplets of the quantization residual (LoftQ, Li et al. 2023).
    Loftq,
    /// The same in the norm of the weight's inputs (QERA, Zhang et al. 2024).
    Qera,
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
    /// Every named initialization: value, name, and a line for the help.
    pub const ALL: [(Self, &'static str, &'static str); 11] = [
        (Self::Kaiming, "kaiming", "LoRA's own: A Kaiming-uniform, B zero"),
        (Self::Gaussian, "gaussian", "A normal, B zero"),
        (Self::Pissa, "pissa", "Leading singular triplets of the weight"),
        (Self::PissaRandomized, "pissa-randomized", "The same by randomized SVD"),
        (Self::Olora, "olora", "Leading part of the weight's QR decomposition"),
        (Self::Loftq, "loftq", "Leading singular triplets of the quantization residual of --base-bits"),
        (Self::Qera, "qera", "The same in the norm of the training rows' inputs"),
        (Self::Trivial, "trivial", "LoTR's own: outer factors normal, cores zero"),
        (Self::Neutral, "neutral", "Cores the identity, one outer factor zero"),
        (Self::Normal, "normal", "All factors normal"),
        (Self::Svd, "svd", "Tucker2 of the stacked weights"),
    ];

    /// Whether it starts from the quantization residual of the base.
    pub const fn needs_residual(self) -> bool {
        matches!(self, Self::Loftq | Self::Qera)
    }

    /// Its name in configs and on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(init, ..)| *init == self).map_or("default", |(_, name, _)| name)
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Init {
    type Err = AdapterError;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(init, ..)| *init);
        found.ok_or_else(|| AdapterError::BadOption {
            name: "init".into(),
            value: name.to_string(),
            expected: Self::ALL.map(|(_, name, _)| name).join(", "),
        })
    }
}

/// Grouping of the sites of one shape that share factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grouping {
    /// All of them, of every kind: query and value of every layer in one group.
    #[default]
    Shape,
    /// Those of one kind: the queries of all layers, the values of all layers.
    Kind,
}

/// Hyper-parameters of an adapter.
///
/// | name | default | purpose | range |
/// |---|---|---|---|
/// | `rank` | 8 | inner dimension of the update | 1 ..= min(d_input, d_output) |
/// | `alpha` | 16 | the update is scaled by alpha/rank | finite, > 0 |
/// | `rslora` | false | scale by alpha/√rank instead (Kalajdzievski 2023) | |
/// | `dropout` | 0 | on the adapter's input, in training only | 0 ..< 1 |
/// | `init` | the method's | initial values | those of the method |
/// | `rank_pattern`, `alpha_pattern` | none | rank and alpha of some modules, by path suffix | as above |
/// | `grouping` | shape | grouping of the sites that share factors, for methods that share them | |
/// | `options` | the method's | options of this method only ([`OptionSpec`](crate::methods::OptionSpec)) | those of the method |
/// | `seed` | 0 | initial values | |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// The method.
    pub method: Method,
    /// Inner dimension of the update.
    pub rank: usize,
    /// The update is scaled by alpha/rank.
    pub alpha: f64,
    /// Scale by alpha/√rank instead of alpha/rank.
    pub rslora: bool,
    /// Dropout on the adapter's input.
    pub dropout: f64,
    /// Initialization of the factors.
    pub init: Init,
    /// Rank of the modules whose path ends in a key, itself a regular expression.
    pub rank_pattern: SuffixMap<usize>,
    /// Alpha of the modules whose path ends in a key, itself a regular expression.
    pub alpha_pattern: SuffixMap<f64>,
    /// Grouping of the sites that share factors.
    pub grouping: Grouping,
    /// Options of this method only.
    pub options: Options,
    /// The sites to adapt.
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
            rank_pattern: SuffixMap::default(),
            alpha_pattern: SuffixMap::default(),
            grouping: Grouping::Shape,
            options: Options::default(),
            targets,
            seed: 0,
        }
    }

    /// The rank at a site. A head narrower than the rank (a classifier with two labels) is adapted at its own
    /// full rank; everywhere else a rank above the layer's size is a mistake, which `validate` reports.
    pub fn rank_of(&self, site: &Site) -> usize {
        let rank = self.rank_pattern.get(&site.path).unwrap_or(self.rank);
        if site.head { rank.min(site.max_rank()) } else { rank }
    }

    /// The scale of a site's update: alpha/rank, or alpha/√rank.
    pub(crate) fn scale_of(&self, site: &Site) -> f64 {
        let alpha = self.alpha_pattern.get(&site.path).unwrap_or(self.alpha);
        scale(alpha, self.rank_of(site), self.rslora)
    }

    /// The value of an option of the method; 0 for one that the method does not have.
    pub fn option(&self, name: &str) -> usize {
        let default = self.method.options.iter().find(|option| option.name == name).map(|o| o.kind);
        let default = match default {
            Some(OptionKind::Number { default, .. }) => default,
            Some(OptionKind::Flag) | None => 0,
        };
        self.options.get(name).unwrap_or(default)
    }

    /// Checks the values against the sites to adapt.
    ///
    /// # Errors
    /// [`AdapterError::BadValue`], [`AdapterError::BadOption`], [`AdapterError::RankOutOfRange`], keys of patterns that
    /// are not regular expressions.
    pub fn validate<'a>(&self, sites: impl IntoIterator<Item = &'a Site>) -> Result<()> {
        let bad = |name, value: String, expected| Err(AdapterError::BadValue { name, value, expected });
        for alpha in self.alpha_pattern.values().chain([&self.alpha]) {
            if !(alpha.is_finite() && *alpha > 0.0) {
                return bad("alpha", alpha.to_string(), "a finite number above 0");
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", self.dropout.to_string(), "0 <= dropout < 1");
        }
        self.rank_pattern.check()?;
        self.alpha_pattern.check()?;
        if self.init != Init::Default && !self.method.inits.contains(&self.init) {
            let known: Vec<String> = self.method.inits.iter().map(Init::to_string).collect();
            let expected = match &known[..] {
                [] => format!("no --init: the initial values of {} are fixed", self.method),
                known => format!("{} for {}", known.join(", "), self.method),
            };
            return Err(AdapterError::BadOption {
                name: "init".into(),
                value: self.init.to_string(),
                expected,
            });
        }
        self.check_options()?;
        let patterned = !(self.rank_pattern.is_empty() && self.alpha_pattern.is_empty());
        if patterned && matches!(self.method.sharing, Sharing::Shape | Sharing::All) {
            return bad(
                if self.rank_pattern.is_empty() { "alpha-pattern" } else { "rank-pattern" },
                self.method.to_string(),
                "a method with separate factors for each layer",
            );
        }
        for site in sites {
            self.check_site(site)?;
        }
        Ok(())
    }

    fn check_options(&self) -> Result<()> {
        for (name, value) in self.options.iter() {
            let bad = |expected: String| AdapterError::BadOption {
                name: name.to_string(),
                value: value.to_string(),
                expected,
            };
            let Some(option) = self.method.options.iter().find(|option| option.name == name) else {
                return Err(bad(format!("a method that has it, not {}", self.method)));
            };
            let (min, max) = match option.kind {
                OptionKind::Flag => (0, 1),
                OptionKind::Number { min, max, .. } => (min, max),
            };
            if !(min..=max).contains(&value) {
                let range =
                    if max == usize::MAX { format!("{min} or more") } else { format!("{min}..={max}") };
                return Err(bad(range));
            }
        }
        Ok(())
    }

    fn check_site(&self, site: &Site) -> Result<()> {
        if site.embedding && !self.method.takes_embeddings {
            let takers = Method::all().filter(|method| method.takes_embeddings).map(|method| method.name);
            return Err(AdapterError::BadOption {
                name: "targets".into(),
                value: site.path.clone(),
                expected: format!(
                    "linear layers for {}; embeddings are supported by {}",
                    self.method,
                    takers.collect::<Vec<_>>().join(", ")
                ),
            });
        }
        let rank = self.rank_of(site);
        let max = if self.method.any_rank { usize::MAX } else { site.max_rank() };
        if rank == 0 || rank > max {
            return Err(AdapterError::RankOutOfRange {
                rank,
                site: site.path.clone(),
                d_input: site.d_input,
                d_output: site.d_output,
                max: site.max_rank(),
            });
        }
        (self.method.check)(self, site)
    }
}

/// alpha/rank, or alpha/√rank for rsLoRA.
pub(crate) fn scale(alpha: f64, rank: usize, rslora: bool) -> f64 {
    alpha / if rslora { (rank as f64).sqrt() } else { rank as f64 }
}
