//! The training method and the options of adapters on the command line. Methods and their own options come
//! from the registry of `lowrank-adapters`.

use std::sync::LazyLock;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use lowrank_adapters::methods::{OptionKind, OptionSpec, Options, Sharing};
use lowrank_adapters::{AdapterConfig, Grouping, Init, Method as AdapterMethod, Pattern, SuffixMap, Targets};
use lowrank_models::config::{BodyConfig, ClassifierConfig, QkvNames};
use lowrank_models::{Parameter, Part};
use lowrank_spec::names::expert_of;
use serde_json::{Map, Value, json};

use crate::context::warn_unused;
use crate::usage::usage;

/// Which parameters are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Every weight.
    Full,
    /// The task head alone.
    Head,
    /// The biases and the head.
    Bitfit,
    /// An adapter.
    Adapter(AdapterMethod),
}

static METHODS: LazyLock<Vec<Method>> = LazyLock::new(|| {
    let own = [Method::Full, Method::Head, Method::Bitfit];
    own.into_iter().chain(AdapterMethod::all().map(Method::Adapter)).collect()
});

impl ValueEnum for Method {
    fn value_variants<'a>() -> &'a [Self] {
        &METHODS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Full => PossibleValue::new("full").help("Every weight"),
            Self::Head => PossibleValue::new("head").help("The task head only"),
            Self::Bitfit => PossibleValue::new("bitfit").help("The biases and the head"),
            Self::Adapter(method) => PossibleValue::new(method.name).help(method.about),
        })
    }
}

impl Method {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string())
    }

    /// The adapter that it trains, if any.
    pub(crate) const fn adapter(self) -> Option<AdapterMethod> {
        match self {
            Self::Full | Self::Head | Self::Bitfit => None,
            Self::Adapter(method) => Some(method),
        }
    }
}

/// Initialization of the factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InitName(Init);

impl ValueEnum for InitName {
    fn value_variants<'a>() -> &'a [Self] {
        static INITS: LazyLock<Vec<InitName>> =
            LazyLock::new(|| Init::ALL.iter().map(|(init, ..)| InitName(*init)).collect());
        &INITS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let about = Init::ALL.iter().find(|(init, ..)| *init == self.0).map(|(.., about)| *about);
        Some(PossibleValue::new(self.0.name()).help(about.unwrap_or_default()))
    }
}

/// Biases that are trained and saved with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BiasMode {
    /// No bias of the model
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

    /// Whether it names a bias of the model. Those of experts are none to PEFT, whose models hold them in one tensor.
    pub(crate) fn takes(self, at: &Parameter<'_>, is_adapted: impl Fn(&str) -> bool) -> bool {
        let is_bias = at.is_bias() && expert_of(at.module.path).is_none();
        match self {
            Self::None => false,
            Self::All => is_bias,
            Self::LoraOnly => is_bias && is_adapted(at.module.path),
        }
    }
}

/// Options of adapters.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct AdapterArgs {
    /// Rank of the adapters
    #[arg(long, default_value_t = 8)]
    pub(crate) rank: usize,
    /// Alpha of the adapters: their update is scaled by alpha/rank
    #[arg(long, default_value_t = 16.0)]
    pub(crate) alpha: f64,
    /// Scale by alpha/√rank instead
    #[arg(long)]
    pub(crate) rslora: bool,
    /// Dropout on the adapters' input [default: 0, or that of --init-from]
    #[arg(long)]
    pub(crate) dropout: Option<f64>,
    /// Layers to adapt: names, all-linear, or a regular expression over whole paths [default: query and value]
    #[arg(long)]
    pub(crate) targets: Option<String>,
    /// Layers to exclude
    #[arg(long)]
    pub(crate) exclude: Option<String>,
    /// Transformer layers to adapt, e.g. 0,1,4-7
    #[arg(long)]
    pub(crate) layers: Option<String>,
    /// Initialization of the factors [default: the method's own]
    #[arg(long, value_enum)]
    pub(crate) init: Option<InitName>,
    /// Ranks of individual layers, e.g. key=4,output.dense=16
    #[arg(long)]
    pub(crate) rank_pattern: Option<String>,
    /// Alphas of individual layers, in the same format
    #[arg(long)]
    pub(crate) alpha_pattern: Option<String>,
    /// Biases to train and save with the adapter
    #[arg(long, value_enum, default_value_t = BiasMode::None)]
    pub(crate) bias: BiasMode,
    /// For methods that share factors: group by layers of one kind instead of by all of one shape
    #[arg(long)]
    pub(crate) by_kind: bool,
    #[command(flatten)]
    pub(crate) own: MethodArgs,
}

impl AdapterArgs {
    /// Warns of options without effect under a method; `None` stands for a command without one.
    pub(crate) fn warn_unused(&self, method: Option<Method>) {
        let own: Vec<&str> = own_options().iter().map(|(option, _)| option.name).collect();
        let Some(adapter) = method.and_then(Method::adapter) else {
            let rule = if method.is_some() { "requires an adapter method" } else { "requires --method" };
            warn_unused(false, &Self::OPTIONS, rule);
            warn_unused(false, &own, rule);
            return;
        };
        let rule = format!("has no effect under {adapter}");
        let fields: Vec<String> = adapter.ignores.iter().map(|name| name.replace('-', "_")).collect();
        warn_unused(false, &fields.iter().map(String::as_str).collect::<Vec<_>>(), &rule);
        let shares = match adapter.sharing {
            Sharing::Shape => true,
            Sharing::ShapeIf(option) => self.own.0.get(option).is_some_and(|value| value != 0),
            // VeRA's factors fit every shape.
            Sharing::None | Sharing::All => false,
        };
        warn_unused(shares, &["by_kind"], &rule);
    }

    /// Warns of options that an adapter to start from decides.
    pub(crate) fn warn_unused_beside_start(&self, method: AdapterMethod) {
        let own: Vec<&str> = method.options.iter().map(|option| option.name).collect();
        let rule = "is given by the adapter of --init-from";
        warn_unused(false, &own, rule);
        warn_unused(false, &["by_kind"], rule);
    }

    /// Whether the layers to adapt are named.
    pub(crate) fn names_layers(&self) -> bool {
        self.targets.is_some() || self.exclude.is_some() || self.layers.is_some()
    }

    /// The fields that every adapter method has in common.
    const OPTIONS: [&'static str; 12] = [
        "rank",
        "alpha",
        "rslora",
        "dropout",
        "targets",
        "exclude",
        "layers",
        "init",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "by_kind",
    ];
}

/// Options of individual methods, as listed in the registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct MethodArgs(Options);

/// Every option of a method, with the names of the methods that have it.
fn own_options() -> Vec<(OptionSpec, Vec<&'static str>)> {
    let mut options: Vec<(OptionSpec, Vec<&'static str>)> = Vec::new();
    for method in AdapterMethod::all() {
        for option in method.options {
            match options.iter_mut().find(|(known, _)| known.name == option.name) {
                Some((_, methods)) => methods.push(method.name),
                None => options.push((*option, vec![method.name])),
            }
        }
    }
    options
}

impl clap::FromArgMatches for MethodArgs {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Options::default();
        for (option, _) in own_options() {
            let value = match option.kind {
                OptionKind::Flag => matches.get_flag(option.name).then_some(1),
                OptionKind::Number { .. } => matches.get_one::<usize>(option.name).copied(),
            };
            if let Some(value) = value {
                options = options.with(option.name, value);
            }
        }
        Ok(Self(options))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for MethodArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        own_options().into_iter().fold(command, |command, (option, methods)| {
            let mut about = format!("{}: {}", methods.join(", "), option.about);
            let arg = clap::Arg::new(option.name).long(option.name);
            command.arg(match option.kind {
                OptionKind::Flag => arg.action(clap::ArgAction::SetTrue).help(about),
                OptionKind::Number { default, .. } => {
                    if !about.contains("[default") {
                        about.push_str(&format!(" [default: {default}]"));
                    }
                    arg.value_name("N").value_parser(clap::value_parser!(usize)).help(about)
                }
            })
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl AdapterArgs {
    /// The config given by the options; `heads` is the model's number of attention heads.
    pub(crate) fn config(
        &self,
        method: AdapterMethod,
        heads: usize,
        seed: u64,
        default_targets: &str,
    ) -> Result<AdapterConfig> {
        let targets = Targets {
            include: Pattern::parse(self.targets.as_deref().unwrap_or(default_targets)),
            exclude: self.exclude.as_deref().map(Pattern::parse),
            layers: self.layers.as_deref().map(parse_layers).transpose()?,
        };
        let mut options = self.own.0.clone();
        // A mode over attention heads has the model's number of them, unless the option sets it.
        if method.options.iter().any(|option| option.name == "heads") && options.get("heads").is_none() {
            options = options.with("heads", heads);
        }
        Ok(AdapterConfig {
            rank: self.rank,
            alpha: self.alpha,
            rslora: self.rslora,
            dropout: self.dropout.unwrap_or(0.0),
            init: self.init().unwrap_or_default(),
            rank_pattern: parse_pattern("--rank-pattern", self.rank_pattern.as_deref())?,
            alpha_pattern: parse_pattern("--alpha-pattern", self.alpha_pattern.as_deref())?,
            grouping: if self.by_kind { Grouping::Kind } else { Grouping::Shape },
            options,
            seed,
            ..AdapterConfig::new(method, targets)
        })
    }

    /// The initialization, if it is given.
    pub(crate) fn init(&self) -> Option<Init> {
        self.init.map(|name| name.0)
    }

    /// Every option, for a run's record.
    pub(crate) fn settings(&self, map: &mut Map<String, Value>) {
        map.insert("rank".into(), json!(self.rank));
        map.insert("alpha".into(), json!(self.alpha));
        map.insert("rslora".into(), json!(self.rslora));
        map.insert("dropout".into(), json!(self.dropout.unwrap_or(0.0)));
        map.insert("targets".into(), json!(self.targets));
        map.insert("exclude".into(), json!(self.exclude));
        map.insert("layers".into(), json!(self.layers));
        map.insert("init".into(), json!(self.init().map(Init::name)));
        map.insert("rank_pattern".into(), json!(self.rank_pattern));
        map.insert("alpha_pattern".into(), json!(self.alpha_pattern));
        map.insert("bias".into(), json!(self.bias.peft_name()));
        map.insert("by_kind".into(), json!(self.by_kind));
        for (name, value) in self.own.0.iter() {
            map.insert(name.replace('-', "_"), json!(value));
        }
    }
}

/// `key=4,output.dense=16`.
fn parse_pattern<T: std::str::FromStr>(option: &str, text: Option<&str>) -> Result<SuffixMap<T>> {
    let parts = text.into_iter().flat_map(|text| text.split(','));
    let part = |part: &str| {
        let pair = part.rsplit_once('=').and_then(|(key, value)| Some((key, value.trim().parse().ok()?)));
        let (key, value) = pair.ok_or_else(|| usage(format!("{option} {part}: expected key=number")))?;
        Ok((key.trim().to_string(), value))
    };
    parts.map(part).collect()
}

/// More than any model has, and few enough to enumerate.
const MOST_LAYERS: usize = 100_000;

/// `0,1,4-7`.
pub(crate) fn parse_layers(text: &str) -> Result<Vec<usize>> {
    let number = |s: &str| {
        s.trim()
            .parse::<usize>()
            .map_err(|_| usage(format!("--layers {text}: expected numbers, e.g. 0,1,4-7")))
    };
    let mut layers = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (number(from)?, number(to)?);
        ensure_usage!(
            from <= to && to < MOST_LAYERS,
            "--layers {part}: expected a range from the lower to the higher layer, e.g. 4-7"
        );
        layers.extend(from..=to);
    }
    Ok(layers)
}

/// The maps to queries and values, the targets of adapters where none are named.
pub(crate) fn query_and_value(names: &QkvNames) -> String {
    match names {
        QkvNames::Separate([query, _, value]) => format!("{},{}", last(query), last(value)),
        QkvNames::Fused { name, .. } => last(name).to_string(),
    }
}

/// The default targets of a classifier's adapters: the maps to queries and values.
pub(crate) fn default_targets(config: &ClassifierConfig) -> String {
    match &config.body {
        BodyConfig::Encoder(config) => query_and_value(&config.architecture.names.qkv),
        BodyConfig::Decoder(config) => query_and_value(&config.architecture.names.qkv),
    }
}

/// Whether a method trains a parameter of a language model in full; `tied` are the table and the head that shares it.
pub(crate) fn generator_trains(
    method: Option<Method>,
    tied: Option<&[String; 2]>,
    at: &Parameter<'_>,
) -> bool {
    match method {
        Some(Method::Full) => true,
        // A tied head is the embedding table.
        Some(Method::Head) => tied.map_or(at.module.part == Part::Head, |[table, _]| at.module.path == table),
        Some(Method::Bitfit) => at.is_bias(),
        Some(Method::Adapter(_)) | None => false,
    }
}

/// The last segment of a module's path.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
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
        assert_eq!(pattern.get("layer.0.output.dense"), Some(16));
        assert!(parse_pattern::<usize>("--rank-pattern", Some("key=wide")).is_err());
        Ok(())
    }

    /// Every registered method and its options are on the command line.
    #[test]
    fn the_registry_is_the_command_line() {
        let names: Vec<String> = Method::value_variants().iter().map(|m| m.name()).collect();
        assert!(AdapterMethod::all().all(|method| names.contains(&method.name.to_string())), "{names:?}");
        let command = <MethodArgs as clap::Args>::augment_args(clap::Command::new("test"));
        let known: Vec<&str> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
        for method in AdapterMethod::all() {
            assert!(method.options.iter().all(|o| known.contains(&o.name)), "{}", method.name);
        }
    }
}
