//! Selection of sites for an adapter: names, suffixes, a regular expression or every linear layer.

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Result, SpecError};
use crate::names::{is_router, path_in_module};
use crate::site::Site;

/// Selection of sites, like PEFT's `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Pattern {
    /// Names or path suffixes (`query`, `attention.self.query`), or `all-linear` among them.
    Names(Vec<String>),
    /// `all-linear`, or a regular expression that must match the whole path.
    Expression(String),
}

/// The word that selects every linear layer but the head, convolutions and the [routers](is_router) of experts, which must
/// be named.
pub const ALL_LINEAR: &str = "all-linear";

impl Pattern {
    /// Parses the command line's form: `all-linear`, a comma-separated list of names, or otherwise a regular
    /// expression over whole paths.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let is_name = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
        let names: Vec<String> = text.split(',').map(|s| s.trim().to_string()).collect();
        if text != ALL_LINEAR && names.iter().all(|n| is_name(n)) {
            Self::Names(names)
        } else {
            Self::Expression(text.to_string())
        }
    }

    /// Whether it selects a site; an expression that does not compile selects none. For many sites, take a
    /// [`matcher`](Pattern::matcher).
    pub fn takes(&self, site: &Site) -> bool {
        self.matcher().is_ok_and(|matcher| matcher.takes(site))
    }

    /// Checks that an expression compiles.
    ///
    /// # Errors
    /// [`SpecError::BadRegex`].
    pub fn check(&self) -> Result<()> {
        self.matcher().map(|_| ())
    }

    /// The pattern with its expression compiled.
    ///
    /// # Errors
    /// [`SpecError::BadRegex`].
    pub fn matcher(&self) -> Result<Matcher> {
        Ok(Matcher(match self {
            Self::Names(names) => Compiled::Names(names.clone()),
            Self::Expression(text) if text == ALL_LINEAR => Compiled::Names(vec![text.clone()]),
            Self::Expression(text) => Compiled::Expression(compile(&format!("^(?:{text})$"), text)?),
        }))
    }
}

/// A [`Pattern`] with its expression compiled.
#[derive(Clone, Debug)]
pub struct Matcher(Compiled);

#[derive(Clone, Debug)]
enum Compiled {
    Names(Vec<String>),
    Expression(Regex),
}

impl Matcher {
    /// Whether it selects a site.
    pub fn takes(&self, site: &Site) -> bool {
        match &self.0 {
            Compiled::Names(names) => names.iter().any(|name| is_named(site, name)),
            Compiled::Expression(regex) => {
                let is_match = |path: &str| regex.is_match(path).unwrap_or(false);
                is_match(&site.path) || path_in_module(&site.path).is_some_and(|path| is_match(&path))
            }
        }
    }
}

/// Compiled expressions for the layer of a module, like PEFT's `layers_pattern`.
#[derive(Clone, Debug)]
pub struct LayerPatterns(Vec<Regex>);

impl LayerPatterns {
    /// Compiles names of the list of layers (`layers`, `h`), or expressions for them. Without any, the layer is the first
    /// number with at least two segments before it.
    ///
    /// # Errors
    /// [`SpecError::BadRegex`].
    pub fn new(patterns: &[&str]) -> Result<Self> {
        if patterns.is_empty() {
            let any = r"^.*?\.[^.]*\.(?P<layer>\d+)\.";
            return Ok(Self(vec![compile(any, any)?]));
        }
        // PEFT puts the pattern into the expression without a group: an alternative may match without a number.
        let compiled = |text: &&str| compile(&format!(r"^(?:(?:^|.*?\.){text}\.(?P<layer>\d+)\.)"), text);
        Ok(Self(patterns.iter().map(compiled).collect::<Result<_>>()?))
    }

    /// The layer of a path: the first number after the first pattern that matches.
    ///
    /// ```
    /// use lowrank_spec::targets::LayerPatterns;
    /// let path = "albert.groups.1.layers.0.query";
    /// assert_eq!(LayerPatterns::new(&[])?.layer(path), Some(1));
    /// assert_eq!(LayerPatterns::new(&["layers", "groups"])?.layer(path), Some(0));
    /// assert_eq!(LayerPatterns::new(&["h"])?.layer(path), None);
    /// # Ok::<(), lowrank_spec::SpecError>(())
    /// ```
    pub fn layer(&self, path: &str) -> Option<usize> {
        let found = self.0.iter().find_map(|regex| regex.captures(path).ok().flatten())?;
        found.name("layer")?.as_str().parse().ok()
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Names(names) => f.write_str(&names.join(",")),
            Self::Expression(text) => f.write_str(text),
        }
    }
}

/// Whether a name in a list selects a site, by its path in files or in transformers 5; `all-linear` is allowed in a list
/// too.
fn is_named(site: &Site, name: &str) -> bool {
    match name {
        ALL_LINEAR => !site.head && !site.embedding && site.kernel.is_none() && !is_router(&site.path),
        name => {
            has_suffix(&site.path, name)
                || path_in_module(&site.path).is_some_and(|path| has_suffix(&path, name))
        }
    }
}

/// Whether `path` is `name` or ends in `.name`.
pub fn has_suffix(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Compiles an expression in Python's syntax, look-around included; errors name `shown`.
pub(crate) fn compile(expression: &str, shown: &str) -> Result<Regex> {
    Regex::new(expression).map_err(|error| {
        let text = error.to_string();
        let line = text.lines().last().unwrap_or(&text).trim();
        let reason = line.trim_start_matches("error: ").to_string();
        SpecError::BadRegex { pattern: shown.to_string(), reason }
    })
}

/// The sites to adapt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// The sites to select.
    pub include: Pattern,
    /// The sites to exclude.
    pub exclude: Option<Pattern>,
    /// Transformer layers to select; all by default.
    pub layers: Option<Vec<usize>>,
}

impl Targets {
    /// Everything that `include` matches.
    pub fn new(include: Pattern) -> Self {
        Self { include, exclude: None, layers: None }
    }

    /// Indices of the selected sites, in the model's order.
    ///
    /// # Errors
    /// [`SpecError::NoMatch`] with the nearest modules if a name or expression matches nothing,
    /// [`SpecError::NoLayer`], [`SpecError::NothingLeft`] and [`SpecError::BadRegex`].
    pub fn select(&self, sites: &[Site]) -> Result<Vec<usize>> {
        let include = self.include.matcher()?;
        let exclude = self.exclude.as_ref().map(Pattern::matcher).transpose()?;
        let in_layers = |site: &Site| match (&self.layers, site.layer) {
            (Some(layers), Some(layer)) => layers.contains(&layer),
            (Some(_), None) => false,
            (None, _) => true,
        };
        let is_idle = |name: &&String| !sites.iter().any(|site| is_named(site, name));
        // Each name must match something: a misspelt one among several would go unnoticed.
        if let Pattern::Names(names) = &self.include
            && let Some(name) = names.iter().find(is_idle)
        {
            return Err(no_match(name, sites));
        }
        // A customary exclusion (`lm_head`) need not exist, but may be misspelt.
        if let Some(Pattern::Names(names)) = &self.exclude {
            names
                .iter()
                .filter(is_idle)
                .for_each(|name| tracing::warn!("excluded: {}", no_match(name, sites)));
        }
        let last = sites.iter().filter_map(|site| site.layer).max();
        if let Some(&layer) = self.layers.iter().flatten().find(|&&layer| Some(layer) > last) {
            return Err(SpecError::NoLayer { layer, n_layers: last.map_or(0, |last| last + 1) });
        }
        let taken: Vec<usize> = sites
            .iter()
            .enumerate()
            .filter(|(_, s)| {
                include.takes(s) && in_layers(s) && !exclude.as_ref().is_some_and(|e| e.takes(s))
            })
            .map(|(index, _)| index)
            .collect();
        if !taken.is_empty() {
            return Ok(taken);
        }
        if sites.iter().any(|site| include.takes(site)) {
            return Err(SpecError::NothingLeft { pattern: self.include.to_string() });
        }
        Err(no_match(&self.include.to_string(), sites))
    }
}

/// The error that names the three nearest module names.
fn no_match(pattern: &str, sites: &[Site]) -> SpecError {
    let mut names: Vec<(String, usize)> = Vec::new();
    for site in sites {
        match names.iter_mut().find(|(name, _)| name == site.name()) {
            Some((_, count)) => *count += 1,
            None => names.push((site.name().to_string(), 1)),
        }
    }
    let wanted = pattern.rsplit('.').next().unwrap_or(pattern);
    names.sort_by_key(|(name, _)| edit_distance(name, wanted));
    let nearest: Vec<String> = names
        .iter()
        .take(3)
        .map(|(name, n)| format!("'{name}' ({n} {})", if *n == 1 { "layer" } else { "layers" }))
        .collect();
    SpecError::NoMatch { pattern: pattern.to_string(), nearest: nearest.join(", ") }
}

/// Levenshtein distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn sites() -> Vec<Site> {
        let mut sites: Vec<Site> = (0..3)
            .flat_map(|layer| {
                ["attention.self.query", "attention.self.key", "output.dense"].map(|kind| Site {
                    path: format!("bert.encoder.layer.{layer}.{kind}"),
                    layer: Some(layer),
                    d_input: 8,
                    d_output: 8,
                    head: false,
                    ..Site::default()
                })
            })
            .collect();
        sites.push(Site {
            path: "classifier".into(),
            layer: None,
            d_input: 8,
            d_output: 2,
            head: true,
            ..Site::default()
        });
        sites
    }

    #[rstest]
    #[case("query", &[0, 3, 6])]
    #[case("query,key", &[0, 1, 3, 4, 6, 7])]
    #[case("self.key", &[1, 4, 7])]
    #[case("all-linear", &[0, 1, 2, 3, 4, 5, 6, 7, 8])]
    #[case(r".*layer\.[01]\..*query", &[0, 3])]
    #[case("classifier", &[9])]
    #[case(r".*layer\.(?!1\.)\d+\..*query", &[0, 6])]
    fn selects(#[case] pattern: &str, #[case] expect: &[usize]) {
        assert_eq!(Targets::new(Pattern::parse(pattern)).select(&sites()).unwrap(), expect);
    }

    #[test]
    fn a_router_is_taken_by_its_name_alone() {
        let mut sites = sites();
        sites[0].path = "bert.encoder.layer.0.mlp.gate".into();
        let select = |pattern: &str| Targets::new(Pattern::parse(pattern)).select(&sites).unwrap();
        assert_eq!(select("all-linear"), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(select("gate"), [0]);
        assert_eq!(select("all-linear,gate"), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_regex_must_match_the_whole_path() {
        assert!(Targets::new(Pattern::parse("quer(y)")).select(&sites()).is_err());
    }

    #[test]
    fn exclusion_and_layers_narrow() {
        let targets = Targets {
            include: Pattern::parse("all-linear"),
            exclude: Some(Pattern::parse("dense")),
            layers: Some(vec![1]),
        };
        assert_eq!(targets.select(&sites()).unwrap(), [3, 4]);
    }

    #[rstest]
    #[case("qurey", "no layer matches 'qurey'; nearest: 'query' (3 layers)")]
    #[case("query,denes", "no layer matches 'denes'; nearest: 'dense' (3 layers)")]
    fn a_misspelt_name_is_an_error_that_names_the_nearest(#[case] pattern: &str, #[case] start: &str) {
        let error = Targets::new(Pattern::parse(pattern)).select(&sites()).unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }

    #[rstest]
    #[case("query", Some("query"), None, "no match of 'query' is left")]
    #[case("classifier", None, Some(vec![1]), "no match of 'classifier' is left")]
    #[case("query", None, Some(vec![1, 9]), "layer 9 does not exist: the model has 3 layers, counted from 0")]
    fn what_leaves_nothing_is_blamed(
        #[case] include: &str,
        #[case] exclude: Option<&str>,
        #[case] layers: Option<Vec<usize>>,
        #[case] start: &str,
    ) {
        let targets =
            Targets { include: Pattern::parse(include), exclude: exclude.map(Pattern::parse), layers };
        let error = targets.select(&sites()).unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }

    #[test]
    fn what_is_excluded_need_not_be_there() {
        let targets = Targets {
            exclude: Some(Pattern::parse("lm_head,query")),
            ..Targets::new(Pattern::parse("all-linear"))
        };
        assert_eq!(targets.select(&sites()).unwrap(), [1, 2, 4, 5, 7, 8]);
    }

    /// The layers that the expressions of PEFT's `check_target_module_exists` find.
    #[rstest]
    #[case(&[], "model.layers.3.mlp.experts.7.up", Some(3))]
    #[case(&[], "h.3.q", None)]
    #[case(&[], "model.layers.3", None)]
    #[case(&["layers"], "layers.3.q", Some(3))]
    // The first occurrence, and a whole segment.
    #[case(&["layers"], "a.layers.3.layers.0.q", Some(3))]
    #[case(&["layers"], "a.sublayers.3.layers.0.q", Some(0))]
    // The first pattern that matches, wherever the second does.
    #[case(&["layers", "groups"], "a.groups.1.layers.0.q", Some(0))]
    #[case(&["h", "groups"], "a.groups.1.layers.0.q", Some(1))]
    #[case(&["(?:layers|h)"], "a.h.2.q", Some(2))]
    #[case(&["(layers|h)"], "a.h.2.q", Some(2))]
    // Alternatives outside a group are those of the whole expression.
    #[case(&["layers|h"], "a.layers.2.q", None)]
    #[case(&["layers|h"], "h.2.q", Some(2))]
    fn a_layer_is_the_number_after_a_pattern(
        #[case] patterns: &[&str],
        #[case] path: &str,
        #[case] expect: Option<usize>,
    ) {
        assert_eq!(LayerPatterns::new(patterns).unwrap().layer(path), expect);
    }

    #[test]
    fn a_broken_regex_is_an_error() {
        let error = LayerPatterns::new(&["layers", "(h"]).unwrap_err().to_string();
        assert!(error.starts_with("'(h'") && error.lines().count() == 1, "{error}");
        let error = Targets::new(Pattern::parse("(query")).select(&sites()).unwrap_err();
        assert!(matches!(error, SpecError::BadRegex { .. }), "{error}");
    }
}
