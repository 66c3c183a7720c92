//! What is trained, and the options of adapters, as the command line has them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use lowrank_adapters::{AdapterConfig, Grouping, Init, Method as AdapterMethod, Pattern, Targets};
use serde_json::{Map, Value, json};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Every weight
    Full,
    /// The task head alone
    Head,
    /// The biases and the head
    Bitfit,
    /// Low-rank adapters, a pair for each layer
    Lora,
    /// LoRA with a trained magnitude for each column of a weight
    Dora,
    /// LoRA with its first factor frozen
    LoraFa,
    /// Low tensor rank adapters, factors shared by the layers
    Lotr,
    /// Two vectors for each layer over frozen random factors
    Vera,
    /// LoRA with both factors as tensor trains
    Loretta,
    /// The update as one tensor train
    TtLora,
    /// The updates of all layers as one tensor in CP form
    Lorta,
    /// A full-size correction, brought back to low rank after every step
    Lowrank,
}

impl Method {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string())
    }

    /// The adapter that it trains, if it trains one.
    pub(crate) const fn adapter(self) -> Option<AdapterMethod> {
        Some(match self {
            Self::Full | Self::Head | Self::Bitfit => return None,
            Self::Lora => AdapterMethod::Lora,
            Self::Dora => AdapterMethod::Dora,
            Self::LoraFa => AdapterMethod::LoraFa,
            Self::Lotr => AdapterMethod::Lotr,
            Self::Vera => AdapterMethod::Vera,
            Self::Loretta => AdapterMethod::Loretta,
            Self::TtLora => AdapterMethod::TtLora,
            Self::Lorta => AdapterMethod::Lorta,
            Self::Lowrank => AdapterMethod::LowRank,
        })
    }
}

/// How the factors start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InitName {
    /// LoRA's own: A Kaiming-uniform, B zero
    Kaiming,
    /// A normal, B zero
    Gaussian,
    /// Leading singular triplets of the weight
    Pissa,
    /// The same by randomized SVD
    PissaRandomized,
    /// Leading part of the weight's QR decomposition
    Olora,
    /// LoTR's own: outer factors normal, cores zero
    Trivial,
    /// Cores the identity, one outer factor zero
    Neutral,
    /// All factors normal
    Normal,
    /// Tucker2 of the stacked weights
    Svd,
}

impl InitName {
    const fn init(self) -> Init {
        match self {
            Self::Kaiming => Init::Kaiming,
            Self::Gaussian => Init::Gaussian,
            Self::Pissa => Init::Pissa,
            Self::PissaRandomized => Init::PissaRandomized,
            Self::Olora => Init::Olora,
            Self::Trivial => Init::Trivial,
            Self::Neutral => Init::Neutral,
            Self::Normal => Init::Normal,
            Self::Svd => Init::Svd,
        }
    }
}

/// Which biases are trained and saved with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BiasMode {
    /// None of the model's own
    None,
    /// All of them
    All,
    /// Those of the adapted layers
    LoraOnly,
}

impl BiasMode {
    /// Its name in PEFT's config.
    pub(crate) const fn peft_name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        }
    }

    /// Whether it names a bias of the model.
    pub(crate) fn takes(self, key: &str, is_adapted: impl Fn(&str) -> bool) -> bool {
        let Some(module) = key.strip_suffix(".bias") else { return false };
        match self {
            Self::None => false,
            Self::All => true,
            Self::LoraOnly => is_adapted(module),
        }
    }
}

/// Options of adapters.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct AdapterArgs {
    /// Rank of the adapters
    #[arg(long, default_value_t = 8)]
    pub(crate) rank: usize,
    /// Strength of the adapters: their update is scaled by alpha/rank
    #[arg(long, default_value_t = 16.0)]
    pub(crate) alpha: f64,
    /// Scale by alpha/√rank instead
    #[arg(long)]
    pub(crate) rslora: bool,
    /// Dropout on the adapters' input
    #[arg(long, default_value_t = 0.0)]
    pub(crate) dropout: f64,
    /// Layers to adapt: names, all-linear, or a regular expression over whole paths
    #[arg(long, default_value = "query,value")]
    pub(crate) targets: String,
    /// Layers to leave out of them
    #[arg(long)]
    pub(crate) exclude: Option<String>,
    /// Transformer layers to adapt, as 0,1,4-7
    #[arg(long)]
    pub(crate) layers: Option<String>,
    /// How the factors start [default: the method's own]
    #[arg(long, value_enum)]
    pub(crate) init: Option<InitName>,
    /// Ranks of some layers, as key=4,output.dense=16
    #[arg(long)]
    pub(crate) rank_pattern: Option<String>,
    /// Strengths of some layers, likewise
    #[arg(long)]
    pub(crate) alpha_pattern: Option<String>,
    /// Biases that are trained and saved with the adapter
    #[arg(long, value_enum, default_value_t = BiasMode::None)]
    pub(crate) bias: BiasMode,
    /// lotr, lorta, lowrank --stack: factors shared by layers of one kind, not by all of one shape
    #[arg(long)]
    pub(crate) by_kind: bool,
    /// lowrank: bring the layers of one shape to a common Tucker2 rank, not each to a rank of its own
    #[arg(long)]
    pub(crate) stack: bool,
    /// loretta: ranks inside the tensor trains
    #[arg(long, default_value_t = 4)]
    pub(crate) tt_rank: usize,
    /// loretta, tt-lora: factors into which a width is split
    #[arg(long, default_value_t = 3)]
    pub(crate) tt_order: usize,
    /// lorta: size of the mode over attention heads [default: the model's]
    #[arg(long, value_name = "N")]
    pub(crate) heads: Option<usize>,
}

impl AdapterArgs {
    /// The config that they make; `heads` are the model's attention heads.
    pub(crate) fn config(&self, method: AdapterMethod, heads: usize, seed: u64) -> Result<AdapterConfig> {
        let targets = Targets {
            include: Pattern::parse(&self.targets),
            exclude: self.exclude.as_deref().map(Pattern::parse),
            layers: self.layers.as_deref().map(parse_layers).transpose()?,
        };
        Ok(AdapterConfig {
            rank: self.rank,
            alpha: self.alpha,
            rslora: self.rslora,
            dropout: self.dropout,
            init: self.init.map_or(Init::Default, InitName::init),
            rank_pattern: parse_pattern("--rank-pattern", self.rank_pattern.as_deref())?,
            alpha_pattern: parse_pattern("--alpha-pattern", self.alpha_pattern.as_deref())?,
            grouping: if self.by_kind { Grouping::Kind } else { Grouping::Shape },
            stack: self.stack,
            tt_rank: self.tt_rank,
            tt_order: self.tt_order,
            heads: self.heads.unwrap_or(heads),
            seed,
            ..AdapterConfig::new(method, targets)
        })
    }

    /// Every option, for a run's record.
    pub(crate) fn settings(&self, map: &mut Map<String, Value>) {
        map.insert("rank".into(), json!(self.rank));
        map.insert("alpha".into(), json!(self.alpha));
        map.insert("rslora".into(), json!(self.rslora));
        map.insert("dropout".into(), json!(self.dropout));
        map.insert("targets".into(), json!(self.targets));
        map.insert("exclude".into(), json!(self.exclude));
        map.insert("layers".into(), json!(self.layers));
        let init = self.init.and_then(|i| i.to_possible_value()).map(|v| v.get_name().to_string());
        map.insert("init".into(), json!(init));
        map.insert("rank_pattern".into(), json!(self.rank_pattern));
        map.insert("alpha_pattern".into(), json!(self.alpha_pattern));
        map.insert("bias".into(), json!(self.bias.peft_name()));
        map.insert("by_kind".into(), json!(self.by_kind));
        map.insert("stack".into(), json!(self.stack));
        map.insert("tt_rank".into(), json!(self.tt_rank));
        map.insert("tt_order".into(), json!(self.tt_order));
        map.insert("heads".into(), json!(self.heads));
    }
}

/// `key=4,output.dense=16`.
fn parse_pattern<T: std::str::FromStr>(option: &str, text: Option<&str>) -> Result<BTreeMap<String, T>> {
    let parts = text.into_iter().flat_map(|text| text.split(','));
    let part = |part: &str| {
        let pair = part.rsplit_once('=').and_then(|(key, value)| Some((key, value.trim().parse().ok()?)));
        let (key, value) = pair.with_context(|| format!("{option} {part}: expected key=number"))?;
        Ok((key.trim().to_string(), value))
    };
    parts.map(part).collect()
}

/// More than any model has, and few enough to list.
const MOST_LAYERS: usize = 100_000;

/// `0,1,4-7`.
pub(crate) fn parse_layers(text: &str) -> Result<Vec<usize>> {
    let number = |s: &str| {
        s.trim().parse::<usize>().with_context(|| format!("--layers {text}: expected numbers as 0,1,4-7"))
    };
    let mut layers = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (number(from)?, number(to)?);
        ensure!(
            from <= to && to < MOST_LAYERS,
            "--layers {part}: expected a range from the lower to the higher layer, as 4-7"
        );
        layers.extend(from..=to);
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_numbers_and_ranges() {
        assert_eq!(parse_layers("0,2-4, 7").ok(), Some(vec![0, 2, 3, 4, 7]));
        for bad in ["first", "5-1", "0-999999999999", "", "-1"] {
            assert!(parse_layers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_are_keys_with_numbers() -> Result<()> {
        let pattern = parse_pattern::<usize>("--rank-pattern", Some("key=4, output.dense=16"))?;
        assert_eq!(pattern.get("output.dense"), Some(&16));
        assert!(parse_pattern::<usize>("--rank-pattern", Some("key=wide")).is_err());
        Ok(())
    }
}
