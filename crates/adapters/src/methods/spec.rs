//! Properties of a method other than its arithmetic: name, options and limits.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use burn::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::build::BaseWeights;
use crate::config::{AdapterConfig, Init};
use crate::error::{AdapterError, Result};
use crate::peft::{AdapterFolder, PeftConfig};
use lowrank_spec::Site;

/// A named method of configs, files and the command line.
#[derive(Debug)]
pub struct MethodSpec {
    /// Name in configs and on the command line.
    pub name: &'static str,
    /// One line for the help.
    pub about: &'static str,
    /// `peft_type` of its files.
    pub peft_type: &'static str,
    /// Selectable initial values besides [`Init::Default`].
    pub inits: &'static [Init],
    /// The sites that share an adapter.
    pub sharing: Sharing,
    /// Whether it can adapt an embedding.
    pub takes_embeddings: bool,
    /// Whether the rank may exceed the smaller side of a layer.
    pub any_rank: bool,
    /// Options of this method only.
    pub options: &'static [OptionSpec],
    /// Hyper-parameters of other methods that have no effect on this one, by their names on the command line.
    pub ignores: &'static [&'static str],
    /// Suffix after a module's path in the keys of its files; a module with one of these is adapted.
    pub keys: &'static [&'static str],
    /// Whether a config of the same `peft_type` means this method.
    pub is_of: fn(&PeftConfig) -> bool,
    /// Whether a folder of another `peft_type` holds this method.
    pub adopts: fn(&AdapterFolder) -> bool,
    /// Checks the config at a site, beyond what every method needs.
    pub check: fn(&AdapterConfig, &Site) -> Result<()>,
}

impl MethodSpec {
    /// A method with a pair of factors for each linear layer and without options, the basis of the others by
    /// functional update.
    pub const fn new(name: &'static str, peft_type: &'static str, about: &'static str) -> Self {
        Self {
            name,
            about,
            peft_type,
            inits: &[],
            sharing: Sharing::None,
            takes_embeddings: false,
            any_rank: false,
            options: &[],
            ignores: &[],
            keys: &[],
            is_of: |_| true,
            adopts: |_| false,
            check: |_, _| Ok(()),
        }
    }
}

/// The sites that share an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each site has a separate adapter.
    None,
    /// Sites of one shape share, subject to [`Grouping`](crate::Grouping).
    Shape,
    /// Like [`Sharing::Shape`] if the option of this name is set.
    ShapeIf(&'static str),
    /// All sites share one.
    All,
}

/// An option of one method.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Name in configs and, after `--`, on the command line.
    pub name: &'static str,
    /// One line for the help.
    pub about: &'static str,
    /// Its values.
    pub kind: OptionKind,
}

/// The values of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// On (1) or off (0, the default).
    Flag,
    /// A number.
    Number {
        /// Default value.
        default: usize,
        /// Smallest value.
        min: usize,
        /// Largest value.
        max: usize,
    },
}

/// Values of the options of a method, by name; absent ones have their default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(BTreeMap<String, usize>);

impl Options {
    /// The same with one more value.
    pub fn with(mut self, name: &str, value: usize) -> Self {
        self.0.insert(name.to_string(), value);
        self
    }

    /// The value given to an option.
    pub fn get(&self, name: &str) -> Option<usize> {
        self.0.get(name).copied()
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

/// A registered method.
#[derive(Clone, Copy)]
pub struct Method(pub(super) &'static MethodSpec);

impl Method {
    /// The method with a name.
    pub fn find(name: &str) -> Option<Self> {
        Self::all().find(|method| method.name == name)
    }

    /// The method that a folder was made with; `None` if the files do not determine it (LoRA-FA is a LoRA on
    /// disk), or for a head without adapters.
    pub fn of(config: &PeftConfig) -> Option<Self> {
        Self::all().find(|method| method.peft_type == config.peft_type && (method.is_of)(config))
    }

    pub(crate) fn is_one_of(self, specs: &[&'static MethodSpec]) -> bool {
        specs.iter().any(|spec| spec.name == self.name)
    }

    pub(crate) fn unregistered(self) -> AdapterError {
        AdapterError::UnknownMethod { name: self.name.to_string(), known: Self::names() }
    }

    /// The names of all methods, for messages.
    pub fn names() -> String {
        Self::all().map(|method| method.name).collect::<Vec<_>>().join(", ")
    }
}

impl std::ops::Deref for Method {
    type Target = MethodSpec;

    fn deref(&self) -> &MethodSpec {
        self.0
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Method {}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({})", self.name)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for Method {
    type Err = AdapterError;

    fn from_str(name: &str) -> Result<Self> {
        Self::find(name)
            .ok_or_else(|| AdapterError::UnknownMethod { name: name.to_string(), known: Self::names() })
    }
}

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// Inputs of newly initialized factors: the config and the sites that one adapter serves.
pub struct Fresh<'a, B: Backend> {
    /// The config.
    pub config: &'a AdapterConfig,
    /// Sites of the adapter, one slice each.
    pub sites: Vec<&'a Site>,
    /// The device of the factors.
    pub device: &'a B::Device,
    /// Indices of the sites in the model's list.
    pub(crate) indices: &'a [usize],
    /// Number of the adapter in its set.
    pub(crate) index: usize,
    pub(crate) base: &'a dyn BaseWeights<B>,
}

impl<B: Backend> fmt::Debug for Fresh<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fresh").field("config", &self.config).field("sites", &self.sites).finish()
    }
}

impl<B: Backend> Fresh<'_, B> {
    /// The first site, whose shape all others of a group have.
    pub fn site(&self) -> &Site {
        self.sites[0]
    }

    /// The rank at the first site.
    pub fn rank(&self) -> usize {
        self.config.rank_of(self.site())
    }

    /// The scale at the first site.
    pub fn scale(&self) -> f64 {
        self.config.scale_of(self.site())
    }

    /// The key of a random tensor of a group: values of the first group are those of a set with that group
    /// only.
    pub fn key(&self, name: &str) -> String {
        if self.index == 0 { name.to_string() } else { format!("{name}.{}", self.index) }
    }

    /// The base's weight of a slice, shape `[d_input, d_output]`.
    ///
    /// # Errors
    /// [`AdapterError::NoWeight`] with `what` as the method that needs it.
    pub fn weight(&self, slice: usize, what: &str) -> Result<Tensor<B, 2>> {
        self.base.weight(self.indices[slice]).ok_or_else(|| AdapterError::NoWeight {
            site: self.sites[slice].path.clone(),
            method: what.to_string(),
        })
    }

    /// A low-rank approximation of the quantization residual of a slice: [`BaseWeights::residual`].
    ///
    /// # Errors
    /// A base without the weights before quantization.
    pub fn residual(&self, slice: usize) -> Result<Option<[Tensor<B, 2>; 2]>> {
        self.base.residual(self.indices[slice], self.rank())
    }
}
