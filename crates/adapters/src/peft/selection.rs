//! The modules that a config selects: PEFT's rules for paths, layers and what is saved in full.

use lowrank_spec::names::path_in_module;
use lowrank_spec::targets::Matcher;
use lowrank_spec::{Pattern, Site};
use serde_json::Value;

use super::config::{Layers, PeftConfig};

impl Layers {
    fn numbers(&self) -> &[usize] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// The modules that a config selects, with its expressions compiled.
#[derive(Debug)]
pub(super) struct Selection<'c> {
    config: &'c PeftConfig,
    targets: Option<Matcher>,
    exclusions: Option<Matcher>,
    layers: InLayers<'c>,
}

/// How `layers_to_transform` limits modules.
#[derive(Debug)]
enum InLayers<'c> {
    /// Not at all.
    All,
    /// By the first number of a path.
    First(&'c [usize]),
    /// By the number after one of `layers_pattern`.
    After(Vec<Matcher>),
}

impl<'c> Selection<'c> {
    /// The selection of a config. An expression that does not compile selects nothing; reading a config refuses it.
    pub(super) fn new(config: &'c PeftConfig) -> Self {
        let compiled =
            |pattern: &Option<Pattern>| pattern.as_ref().and_then(|pattern| pattern.matcher().ok());
        Self {
            config,
            targets: compiled(&config.target_modules),
            exclusions: compiled(&config.exclude_modules),
            layers: InLayers::new(config),
        }
    }

    /// Whether the config puts an adapter on a site; `outer` is the difference between the paths of the two models.
    pub(super) fn targets(&self, site: &Site, outer: &Outer) -> bool {
        // PEFT puts no adapter on what a name among the segments saves in full.
        let is_saved = self.config.modules_to_save.iter().flatten().any(|name| within(&site.path, name));
        !is_saved && self.selects(site, outer)
    }

    /// Whether the names, the exclusions and the layers of the config select a site.
    pub(super) fn selects(&self, site: &Site, outer: &Outer) -> bool {
        let sites = outer.shown(site);
        let hits = |matcher: &Option<Matcher>| {
            matcher.as_ref().is_some_and(|matcher| sites.iter().any(|site| matcher.takes(site)))
        };
        // PEFT limits neither whole paths nor expressions to layers.
        let is_limited = match &self.config.target_modules {
            Some(Pattern::Names(names)) => sites.iter().all(|site| !names.contains(&site.path)),
            Some(Pattern::Expression(_)) | None => false,
        };
        let in_layers = || sites.iter().any(|site| self.layers.contains(site));
        hits(&self.targets) && !hits(&self.exclusions) && (!is_limited || in_layers())
    }
}

impl<'c> InLayers<'c> {
    fn new(config: &'c PeftConfig) -> Self {
        let numbers = config.layers_to_transform.as_ref().map_or(&[][..], Layers::numbers);
        if numbers.is_empty() {
            return Self::All;
        }
        let names: Vec<&str> = match config.other.get("layers_pattern") {
            Some(Value::String(one)) if !one.is_empty() => vec![one],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if names.is_empty() {
            return Self::First(numbers);
        }
        let numbers = numbers.iter().map(usize::to_string).collect::<Vec<_>>().join("|");
        let expressions = names.into_iter().map(|name| format!(r"(?:.*?\.)?(?:{name})\.(?:{numbers})\..*"));
        Self::After(expressions.filter_map(|text| Pattern::Expression(text).matcher().ok()).collect())
    }

    fn contains(&self, site: &Site) -> bool {
        match self {
            Self::All => true,
            Self::First(layers) => {
                let own = path_in_module(&site.path);
                first_number(own.as_deref().unwrap_or(&site.path)).is_some_and(|n| layers.contains(&n))
            }
            Self::After(matchers) => matchers.iter().any(|matcher| matcher.takes(site)),
        }
    }
}

impl PeftConfig {
    /// Whether a module is saved in full: its path, or that of a module around it, ends in a name of `modules_to_save`.
    /// As in PEFT, the suffix may begin inside a segment.
    pub fn saves(&self, module: &str) -> bool {
        let is_saved = |module: &str| {
            let ends = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
            let paths: Vec<&str> = ends.map(|end| &module[..end]).collect();
            let mut saved = self.modules_to_save.iter().flatten().filter(|name| !name.is_empty());
            saved.any(|name| paths.iter().any(|path| path.ends_with(name.as_str())))
        };
        is_saved(module) || path_in_module(module).is_some_and(|module| is_saved(&module))
    }
}

/// The difference between the paths of a model and those of the model that an adapter was made for: one of them may be the
/// bare encoder or decoder, whose paths have no prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outer {
    /// They are the same.
    Same,
    /// The adapter's paths lack this prefix.
    Lacks(String),
    /// The adapter's paths begin with this additional prefix.
    Has(String),
    /// Not determined: a prefix is optional.
    Unknown,
}

impl Outer {
    /// From the path of a module in an adapter's file, and that of its site.
    pub(super) fn of(file: &str, site: &str) -> Self {
        if file == site {
            return Self::Same;
        }
        let before = |long: &str, short: &str| long.strip_suffix(short).map(str::to_string);
        match (before(site, file), before(file, site)) {
            (Some(prefix), _) => Self::Lacks(prefix),
            (_, Some(prefix)) => Self::Has(prefix),
            _ => Self::Unknown,
        }
    }

    /// A site as the adapter's model names it.
    fn shown(&self, site: &Site) -> Vec<Site> {
        let named = |path: &str| Site { path: path.to_string(), ..site.clone() };
        match self {
            Self::Same => vec![site.clone()],
            Self::Lacks(prefix) => vec![named(site.path.strip_prefix(prefix.as_str()).unwrap_or(&site.path))],
            Self::Has(prefix) => vec![named(&format!("{prefix}{}", site.path))],
            Self::Unknown => {
                let bare = site.path.split_once('.').map_or(site.path.as_str(), |(_, rest)| rest);
                vec![site.clone(), named(bare)]
            }
        }
    }
}

/// The first segment of a path that is a number, with two or more segments before it and one after, as PEFT finds a layer.
fn first_number(path: &str) -> Option<usize> {
    let segments: Vec<&str> = path.split('.').collect();
    let inner = segments.get(2..segments.len().checked_sub(1)?)?;
    let is_number = |s: &&&str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    inner.iter().find(is_number)?.parse().ok()
}

/// Whether `name` is a sequence of whole segments of `path`.
fn within(path: &str, name: &str) -> bool {
    format!(".{path}.").contains(&format!(".{name}."))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// PEFT's rules for paths, which its `check_target_module_exists` and `_set_trainable` give.
    #[rstest]
    #[case(r#""target_modules": ["query"]"#, "bert.layer.0.query", true)]
    #[case(r#""target_modules": ["query"], "layers_to_transform": [1]"#, "bert.layer.0.query", false)]
    #[case(r#""target_modules": ["query"], "layers_to_transform": []"#, "bert.layer.0.query", true)]
    // The first number, as in ALBERT's groups, and with a pattern the number after it.
    #[case(r#""target_modules": ["q"], "layers_to_transform": 1"#, "a.encoder.groups.1.layers.0.q", true)]
    #[case(r#""target_modules": ["q"], "layers_to_transform": 0"#, "a.encoder.groups.1.layers.0.q", false)]
    #[case(
        r#""target_modules": ["q"], "layers_to_transform": 0, "layers_pattern": "layers""#,
        "a.encoder.groups.1.layers.0.q",
        true
    )]
    #[case(r#""target_modules": ["q"], "layers_to_transform": 0"#, "h.0.q", false)]
    // Neither expressions nor whole paths are limited to layers.
    #[case(r#""target_modules": ".*q", "layers_to_transform": 3"#, "model.layers.0.q", true)]
    #[case(r#""target_modules": ["model.layers.0.q"], "layers_to_transform": 3"#, "model.layers.0.q", true)]
    // An expression is for the whole path.
    #[case(r#""target_modules": "layers\\.0\\.q""#, "model.layers.0.q", false)]
    #[case(r#""target_modules": ["q"], "exclude_modules": ".*0.*""#, "model.layers.0.q", false)]
    // What is saved in full is not adapted, by whole segments of its path.
    #[case(r#""target_modules": ["lm_head"], "modules_to_save": ["lm_head"]"#, "lm_head", false)]
    #[case(r#""target_modules": ["lm_head"], "modules_to_save": ["head"]"#, "lm_head", true)]
    fn targets_are_those_of_peft(#[case] keys: &str, #[case] path: &str, #[case] expect: bool) {
        let config = PeftConfig::parse(&format!(r#"{{"peft_type": "LORA", {keys}}}"#)).unwrap();
        let site = Site { path: path.into(), layer: Some(0), ..Site::default() };
        assert_eq!(Selection::new(&config).targets(&site, &Outer::Same), expect);
    }

    #[rstest]
    #[case("head", "lm_head", true)]
    #[case("tokens", "model.embed_tokens", true)]
    #[case("classifier", "classifier.dense", true)]
    #[case("layers.1", "model.layers.1.mlp", true)]
    #[case("layers.1", "model.layers.11.mlp", false)]
    #[case("dense", "classifier.out_proj", false)]
    fn a_saved_module_is_named_by_the_end_of_a_path(
        #[case] name: &str,
        #[case] module: &str,
        #[case] expect: bool,
    ) {
        let config = PeftConfig { modules_to_save: Some(vec![name.into()]), ..PeftConfig::default() };
        assert_eq!(config.saves(module), expect);
    }

    #[test]
    fn an_expression_is_for_the_paths_that_the_adapter_has() {
        let site = Site { path: "bert.encoder.layer.0.query".into(), ..Site::default() };
        let selects = |text: &str, outer: &Outer| {
            let target_modules = Some(Pattern::Expression(text.into()));
            Selection::new(&PeftConfig { target_modules, ..PeftConfig::default() }).selects(&site, outer)
        };
        let bare = Outer::of("encoder.layer.0.query", &site.path);
        assert_eq!(bare, Outer::Lacks("bert.".into()));
        assert!(selects(r"encoder\..*query", &bare));
        assert!(!selects(r"encoder\..*query", &Outer::Same));
        assert!(selects(r"m\.bert\..*query", &Outer::Has("m.".into())));
    }
}
