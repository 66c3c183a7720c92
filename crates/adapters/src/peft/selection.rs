//! Which modules a config selects, by PEFT's rules for paths, layers and modules saved in full.

use lowrank_spec::names::path_in_module;
use lowrank_spec::targets::{LayerPatterns, Matcher};
use lowrank_spec::{Pattern, Site};

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
    /// `layers_to_transform`, if it limits modules to layers.
    layers: Option<InLayers<'c>>,
}

/// The selected layers, and how the layer of a path is found.
#[derive(Debug)]
struct InLayers<'c> {
    numbers: &'c [usize],
    patterns: Option<LayerPatterns>,
}

impl<'c> Selection<'c> {
    /// Compiles the expressions of a config. An invalid one selects nothing; a config with one is rejected when it is read.
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

    /// Whether the config puts an adapter on a site. `outer` tells how the paths of the adapter's model differ.
    pub(super) fn targets(&self, site: &Site, outer: &Outer) -> bool {
        // PEFT does not adapt modules that are saved in full, or modules inside them.
        let is_saved =
            |site: &Site| self.config.modules_to_save.iter().flatten().any(|name| within(&site.path, name));
        self.selects(site, outer) && !outer.shown(site).iter().any(is_saved)
    }

    /// Whether a site matches `target_modules`, is not excluded, and is in one of the selected layers.
    pub(super) fn selects(&self, site: &Site, outer: &Outer) -> bool {
        let shown = outer.shown(site);
        let hits = |matcher: &Option<Matcher>| {
            matcher.as_ref().is_some_and(|matcher| shown.iter().any(|site| matcher.takes(site)))
        };
        // In PEFT, `layers_to_transform` applies neither to expressions nor to full paths.
        let is_limited = || match &self.config.target_modules {
            Some(Pattern::Names(names)) => shown.iter().all(|site| !names.contains(&site.path)),
            Some(Pattern::Expression(_)) | None => false,
        };
        let in_layers = |layers: &InLayers| shown.iter().any(|site| layers.contains(&site.path));
        hits(&self.targets)
            && !hits(&self.exclusions)
            && self.layers.as_ref().is_none_or(|layers| in_layers(layers) || !is_limited())
    }
}

impl<'c> InLayers<'c> {
    fn new(config: &'c PeftConfig) -> Option<Self> {
        let numbers = config.layers_to_transform.as_ref().map_or(&[][..], Layers::numbers);
        let patterns = || LayerPatterns::new(&config.layers_pattern()).ok();
        (!numbers.is_empty()).then(|| Self { numbers, patterns: patterns() })
    }

    fn contains(&self, path: &str) -> bool {
        let layer = self.patterns.as_ref().and_then(|patterns| patterns.layer(path));
        layer.is_some_and(|layer| self.numbers.contains(&layer))
    }
}

impl PeftConfig {
    /// Whether a module is saved in full: its path, or that of an enclosing module, ends with a name in `modules_to_save`.
    /// As in PEFT, the match may start within a segment.
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

/// How the paths of the model that an adapter was trained on differ from this model's: either may be the bare encoder or
/// decoder, whose paths lack the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outer {
    /// Not at all.
    Same,
    /// The adapter's paths lack this prefix.
    Lacks(String),
    /// The adapter's paths start with this additional prefix.
    Has(String),
    /// Unknown: paths are tried with and without the first segment.
    Unknown,
}

impl Outer {
    /// Compares the path of a module in an adapter's file with the path of its site.
    pub(super) fn of(file: &str, site: &str) -> Self {
        let between = |site: &str| {
            if file == site {
                return Some(Self::Same);
            }
            let lacks = site.strip_suffix(file).map(|prefix| Self::Lacks(prefix.to_string()));
            lacks.or_else(|| Some(Self::Has(file.strip_suffix(site)?.to_string())))
        };
        let in_module = || between(&path_in_module(site)?);
        between(site).or_else(in_module).unwrap_or(Self::Unknown)
    }

    /// The site under every path that it may have in the adapter's model: as in files and as in transformers 5.
    fn shown(&self, site: &Site) -> Vec<Site> {
        let paths = [Some(site.path.clone()), path_in_module(&site.path)].into_iter().flatten();
        let shown = paths.flat_map(|path| match self {
            Self::Same => vec![path],
            Self::Lacks(prefix) => vec![path.strip_prefix(prefix.as_str()).unwrap_or(&path).to_string()],
            Self::Has(prefix) => vec![format!("{prefix}{path}")],
            Self::Unknown => {
                let bare = path.split_once('.').map(|(_, rest)| rest.to_string());
                [Some(path), bare].into_iter().flatten().collect()
            }
        });
        shown.map(|path| Site { path, ..site.clone() }).collect()
    }
}

/// Whether `name` is a sequence of whole segments of `path`.
fn within(path: &str, name: &str) -> bool {
    format!(".{path}.").contains(&format!(".{name}."))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// As PEFT's `check_target_module_exists` and `_set_trainable`.
    #[rstest]
    #[case(r#""target_modules": ["query"]"#, "bert.layer.0.query", true)]
    #[case(r#""target_modules": ["query"], "layers_to_transform": [1]"#, "bert.layer.0.query", false)]
    #[case(r#""target_modules": ["query"], "layers_to_transform": []"#, "bert.layer.0.query", true)]
    // The layer is the first number, as in ALBERT's groups, or the number after a match of the pattern.
    #[case(r#""target_modules": ["q"], "layers_to_transform": 1"#, "a.encoder.groups.1.layers.0.q", true)]
    #[case(r#""target_modules": ["q"], "layers_to_transform": 0"#, "a.encoder.groups.1.layers.0.q", false)]
    #[case(
        r#""target_modules": ["q"], "layers_to_transform": 0, "layers_pattern": "layers""#,
        "a.encoder.groups.1.layers.0.q",
        true
    )]
    #[case(
        r#""target_modules": ["q"], "layers_to_transform": 0, "layers_pattern": "layers""#,
        "a.layers.3.layers.0.q",
        false
    )]
    #[case(
        r#""target_modules": ["q"], "layers_to_transform": 1, "layers_pattern": ["layers", "groups"]"#,
        "a.encoder.groups.1.layers.0.q",
        false
    )]
    #[case(r#""target_modules": ["q"], "layers_to_transform": 0, "layers_pattern": []"#, "a.h.0.q", true)]
    #[case(r#""target_modules": ["q"], "layers_to_transform": 0"#, "h.0.q", false)]
    // `layers_to_transform` applies neither to expressions nor to full paths.
    #[case(r#""target_modules": ".*q", "layers_to_transform": 3"#, "model.layers.0.q", true)]
    #[case(r#""target_modules": ["model.layers.0.q"], "layers_to_transform": 3"#, "model.layers.0.q", true)]
    // An expression must match the full path.
    #[case(r#""target_modules": "layers\\.0\\.q""#, "model.layers.0.q", false)]
    #[case(r#""target_modules": ["q"], "exclude_modules": ".*0.*""#, "model.layers.0.q", false)]
    // Modules saved in full are not adapted; names must match whole segments.
    #[case(r#""target_modules": ["lm_head"], "modules_to_save": ["lm_head"]"#, "lm_head", false)]
    #[case(r#""target_modules": ["lm_head"], "modules_to_save": ["head"]"#, "lm_head", true)]
    fn targets_are_those_of_peft(#[case] keys: &str, #[case] path: &str, #[case] expect: bool) {
        let config = PeftConfig::parse(&format!(r#"{{"peft_type": "LORA", {keys}}}"#)).unwrap();
        let site = Site { path: path.into(), layer: Some(0), ..Site::default() };
        assert_eq!(Selection::new(&config).targets(&site, &Outer::Same), expect);
    }

    /// A config may use the path in model files or the path in transformers 5.
    #[rstest]
    #[case(r#""target_modules": ["lm_head"]"#, "embed_out", true)]
    #[case(r#""target_modules": ["lm_head"], "modules_to_save": ["lm_head"]"#, "embed_out", false)]
    #[case(r#""target_modules": ["lm_head"], "modules_to_save": ["embed_out"]"#, "embed_out", false)]
    #[case(r#""target_modules": ["lm_head"], "exclude_modules": ["embed_out"]"#, "embed_out", false)]
    // A full path is exempt from `layers_to_transform`.
    #[case(r#""target_modules": ["vit.layers.1.mlp.fc1"], "layers_to_transform": 7"#, FC1, true)]
    #[case(
        r#""target_modules": ["vit.encoder.layer.1.intermediate.dense"], "layers_to_transform": 7"#,
        FC1,
        true
    )]
    #[case(r#""target_modules": ["fc1"], "layers_to_transform": 1"#, FC1, true)]
    #[case(r#""target_modules": ["fc1"], "layers_to_transform": 1, "layers_pattern": "layer""#, FC1, true)]
    #[case(r#""target_modules": ["fc1"], "layers_to_transform": 1, "layers_pattern": "layers""#, FC1, true)]
    #[case(r#""target_modules": ["fc1"], "layers_to_transform": 1, "layers_pattern": "blocks""#, FC1, false)]
    #[case(r#""target_modules": ["fc1"], "modules_to_save": ["mlp"]"#, FC1, false)]
    fn both_paths_of_a_site_count(#[case] keys: &str, #[case] path: &str, #[case] expect: bool) {
        let config = PeftConfig::parse(&format!(r#"{{"peft_type": "LORA", {keys}}}"#)).unwrap();
        let site = Site { path: path.into(), ..Site::default() };
        assert_eq!(Selection::new(&config).targets(&site, &Outer::Same), expect);
    }

    const FC1: &str = "vit.encoder.layer.1.intermediate.dense";

    /// The paths of the bare ViT lack the prefix.
    #[test]
    fn an_expression_matches_paths_of_the_bare_model() {
        let outer = Outer::of("layers.1.mlp.fc1", FC1);
        assert_eq!(outer, Outer::Lacks("vit.".into()));
        let site = Site { path: FC1.into(), ..Site::default() };
        let selects = |text: &str| {
            let target_modules = Some(Pattern::Expression(text.into()));
            Selection::new(&PeftConfig { target_modules, ..PeftConfig::default() }).selects(&site, &outer)
        };
        assert!(selects(r"layers\.1\..*fc1") && selects(r"encoder\..*dense"));
        assert!(!selects(r"vit\..*fc1") && !selects(r"layers\.0\..*fc1"));
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
