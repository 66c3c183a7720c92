//! A folder's tensors as adapters over a model's sites, strictly: everything that is missing, unexpected or
//! misshaped is listed.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_spec::names::{expert_of, is_router, path_in_module};
use lowrank_spec::targets::has_suffix;
use lowrank_spec::{HostTensor, Pattern, Site, transpose};
use serde_json::Value;

use super::config::PeftConfig;
use super::experts::router_in_module;
use super::folder::AdapterFolder;
use super::group_key;
use super::saved::Saved;
use super::selection::{Outer, Selection};
use crate::build::{BaseWeights, check_refused};
use crate::error::{AdapterError, Result};
use crate::methods::{Adapter, MethodSpec};
use crate::set::{AdapterSet, Slot};

/// Maximum number of problems listed in an error.
const SHOWN: usize = 12;

impl AdapterFolder {
    /// The set of this folder over a model's sites, and the tensors that are the model's own (heads, biases).
    ///
    /// `base` provides the weights that DoRA, PiSSA and OLoRA need.
    ///
    /// # Errors
    /// [`AdapterError::Tensors`] listing keys that are missing, unexpected or of the wrong shape, or sites of
    /// the config without factors in the file; factors of sites that `base` refuses; [`AdapterError::NoWeight`].
    pub fn into_set<B: Backend>(
        self,
        dir: &Path,
        sites: &[Site],
        base: &dyn BaseWeights<B>,
        device: &B::Device,
    ) -> Result<(AdapterSet<B>, Saved)> {
        let mut folder = self;
        let parameters = folder.config.other.get("target_parameters").and_then(Value::as_array);
        let parameters =
            parameters.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        folder.rename_routers(sites);
        if folder.is_fused() {
            let fault = |details| AdapterError::Tensors { path: dir.to_path_buf(), details };
            folder.unfuse(sites).map_err(fault)?;
        }
        let mut reader = Reader {
            folder,
            sites,
            base,
            device,
            parameters,
            problems: Vec::new(),
            adapters: Vec::new(),
            slots: Vec::new(),
        };
        Adapter::read(&mut reader)?;
        let Reader { folder, mut problems, adapters, mut slots, .. } = reader;
        check_refused(base, sites, slots.iter().map(|slot| slot.site))?;
        let adapted = slots.iter().map(|slot| slot.path.clone()).collect();
        let saved = Saved::new(folder.tensors.into_values().collect(), folder.config.clone(), adapted, sites);
        problems.extend(
            saved
                .tensors
                .iter()
                .filter(|t| !saved.allows(&t.name))
                .map(|t| format!("unexpected '{}'", t.name)),
        );
        problems.extend(
            saved
                .missing_rows()
                .iter()
                .map(|table| format!("missing rows of '{table}', which trainable_token_indices names")),
        );
        if slots.is_empty() && problems.is_empty() && folder.config.peft_type != "HEAD" {
            problems.push("no adapter tensors at all".into());
        }
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(SHOWN);
            problems.truncate(SHOWN);
            if more > 0 {
                problems.push(format!("and {more} more"));
            }
            return Err(AdapterError::Tensors { path: dir.to_path_buf(), details: problems.join(", ") });
        }
        slots.sort_by_key(|slot| slot.site);
        let mut set = AdapterSet::from_parts(adapters, slots, sites.len(), folder.config.lora_dropout);
        set.members.iter_mut().for_each(|member| member.carried = Some(Arc::new(saved.carried())));
        Ok((set, saved))
    }
}

/// A folder being read: methods take their tensors from it, and the remaining ones are the model's.
pub struct Reader<'a, B: Backend> {
    folder: AdapterFolder,
    sites: &'a [Site],
    base: &'a dyn BaseWeights<B>,
    device: &'a B::Device,
    /// The parameters that the config targets: experts and routers.
    parameters: Vec<String>,
    problems: Vec<String>,
    adapters: Vec<Adapter<B>>,
    slots: Vec<Slot>,
}

/// A module of the file and its site.
#[derive(Clone, Debug)]
pub struct Found {
    /// Path in the file.
    pub path: String,
    /// Index of the site.
    pub site: usize,
}

impl<B: Backend> std::fmt::Debug for Reader<'_, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("folder", &self.folder).field("problems", &self.problems).finish()
    }
}

impl<'a, B: Backend> Reader<'a, B> {
    /// Whether the file is of one of these methods.
    pub(crate) fn is_of(&self, specs: &[&MethodSpec]) -> bool {
        specs.iter().any(|spec| spec.peft_type == self.folder.config.peft_type)
    }

    /// The config.
    pub fn config(&self) -> &PeftConfig {
        &self.folder.config
    }

    /// The folder, with the tensors that have not been taken.
    pub fn folder(&self) -> &AdapterFolder {
        &self.folder
    }

    /// The path against which PEFT matches the patterns of rank and alpha: a router that is adapted as a parameter is matched
    /// with that parameter's name.
    pub(crate) fn matched_path<'p>(&self, path: &'p str) -> Cow<'p, str> {
        if !is_router(path) {
            return path.into();
        }
        let weight = format!("{path}.weight");
        let weight = router_in_module(&weight).unwrap_or(weight);
        match self.parameters.iter().any(|name| has_suffix(&weight, name)) {
            true => weight.into(),
            false => path.into(),
        }
    }

    /// Device of the tensors.
    pub fn device(&self) -> &'a B::Device {
        self.device
    }

    /// The model's site of a module.
    pub fn site(&self, found: &Found) -> &'a Site {
        &self.sites[found.site]
    }

    /// The base's weight of a site, `[d_input, d_output]`.
    ///
    /// # Errors
    /// [`AdapterError::NoWeight`] with `what` as the method that needs it.
    pub fn weight(&self, found: &Found, what: &str) -> Result<Tensor<B, 2>> {
        self.base.weight(found.site).ok_or_else(|| AdapterError::NoWeight {
            site: self.site(found).path.clone(),
            method: what.into(),
        })
    }

    /// Records a problem.
    pub fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    /// Adds an adapter that serves these modules, one slice each.
    pub fn push(&mut self, adapter: Adapter<B>, modules: &[&Found]) {
        let index = self.adapters.len();
        self.adapters.push(adapter);
        self.slots.extend(modules.iter().enumerate().map(|(slice, module)| Slot {
            site: module.site,
            path: self.sites[module.site].path.clone(),
            adapter: index,
            slice,
        }));
    }

    /// The modules that have a tensor of one of these names in the file, in the model's order.
    pub fn modules(&mut self, names: &[&str]) -> Vec<Found> {
        let keys = self.folder.tensors.keys();
        let paths: BTreeSet<String> = keys
            .filter_map(|key| names.iter().find_map(|name| key.strip_suffix(name)))
            .map(str::to_string)
            .collect();
        self.located(paths.into_iter().collect())
    }

    /// The modules that the config names, for methods without a tensor for each module.
    pub fn listed(&mut self) -> Vec<Found> {
        let config = &self.folder.config;
        let paths = match &config.target_modules {
            Some(Pattern::Names(names)) => names.clone(),
            _ => config.groups.concat(),
        };
        self.located(paths)
    }

    fn located(&mut self, paths: Vec<String>) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        for path in paths {
            match find_site(&path, self.sites) {
                Some(site) if found.iter().all(|f| f.site != site) => found.push(Found { path, site }),
                Some(_) => self.problems.push(format!("'{path}' appears twice")),
                None => {
                    let prefix = format!("{path}.");
                    self.folder.tensors.retain(|name, _| !name.starts_with(&prefix));
                    self.problems.push(format!("'{path}' is not a layer of this model"));
                }
            }
        }
        found.sort_by_key(|f| f.site);
        self.check_targets(&found);
        found
    }

    /// A layer that the config names must have its factors: otherwise it would silently stay unchanged. Factors of a layer that
    /// it does not name are those that PEFT leaves out.
    fn check_targets(&mut self, found: &[Found]) {
        let config = &self.folder.config;
        let selection = Selection::new(config);
        let difference = |f: &Found| Outer::of(&f.path, &self.sites[f.site].path);
        let differences: Vec<Outer> = found.iter().map(difference).filter(|o| *o != Outer::Same).collect();
        let outer = differences.first().unwrap_or(&Outer::Same);
        // transformers 5 keeps the experts of a layer in one parameter, which names of modules do not select.
        let expert_layers: BTreeSet<Option<usize>> = found
            .iter()
            .map(|f| &self.sites[f.site])
            .filter(|site| expert_of(&site.path).is_some())
            .map(|site| site.layer)
            .collect();
        for (index, site) in self.sites.iter().enumerate() {
            let is_found = found.iter().any(|f| f.site == index);
            let may_lack = expert_of(&site.path).is_some() && !expert_layers.contains(&site.layer);
            if !is_found && !site.head && !may_lack && selection.targets(site, outer) {
                self.problems.push(format!("missing factors of '{}'", site.path));
            }
        }
        let by_parameter = !self.parameters.is_empty();
        let is_parameter = |path: &str| by_parameter && (expert_of(path).is_some() || is_router(path));
        let modules: Vec<(&str, &Site)> = found
            .iter()
            .map(|f| (f.path.as_str(), &self.sites[f.site]))
            .filter(|(_, site)| !is_parameter(&site.path))
            // The other use of a tied table has the adapter of the one that is named.
            .filter(|(_, site)| !(config.ensure_weight_tying && (site.head || site.embedding)))
            .collect();
        if config.target_modules.is_some() {
            let left_out =
                modules.iter().filter(|(path, site)| !selection.selects(site, &Outer::of(path, &site.path)));
            self.problems.extend(left_out.map(|(path, _)| {
                format!("factors of '{path}', which target_modules, exclude_modules or layers_to_transform leave out")
            }));
        } else if config.groups.is_empty() && !is_default(modules.iter().map(|(_, site)| site.name())) {
            self.problems
                .push("no target_modules in the config; expected the names of the adapted layers".into());
        }
    }

    /// Splits the modules into the config's groups and reads each with its key prefix.
    pub fn grouped(
        &mut self,
        found: &[Found],
        name: &str,
        read: impl Fn(&mut Self, &[&Found], &str) -> Option<Adapter<B>>,
    ) {
        let listed = self.folder.config.groups.clone();
        let groups: Vec<Vec<&Found>> = if listed.is_empty() {
            vec![found.iter().collect()]
        } else {
            // A module has one name in files of models and another in transformers 5, but one site.
            let sites_of = |paths: &Vec<String>| {
                paths.iter().map(|path| find_site(path, self.sites)).collect::<Vec<_>>()
            };
            let sites: Vec<Vec<Option<usize>>> = listed.iter().map(sites_of).collect();
            for module in found {
                let n = sites.iter().flatten().filter(|site| **site == Some(module.site)).count();
                if n != 1 {
                    self.problems
                        .push(format!("'{}' is in {n} groups of the config, expected 1", module.path));
                }
            }
            let of_group = |sites: &Vec<Option<usize>>| {
                found.iter().filter(|f| sites.contains(&Some(f.site))).collect::<Vec<_>>()
            };
            sites.iter().map(of_group).collect()
        };
        for (index, group) in groups.iter().enumerate() {
            let key = group_key(name, index);
            let Some(first) = group.first() else { continue };
            let shape = |f: &Found| (self.sites[f.site].d_input, self.sites[f.site].d_output);
            if let Some(other) = group.iter().find(|f| shape(f) != shape(first)) {
                self.problems.push(format!("'{}' is not of the shape of its group", other.path));
            } else if let Some(adapter) = read(self, group, &key) {
                self.push(adapter, group);
            }
        }
    }

    /// Takes a tensor with a given shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Option<HostTensor<'static>> {
        match self.take_any(name) {
            None => {
                self.problems.push(format!("missing '{name}'"));
                None
            }
            Some(t) if t.shape != shape => {
                self.problems.push(format!("'{name}' has shape {:?}, expected {shape:?}", t.shape));
                None
            }
            Some(t) => Some(t),
        }
    }

    /// Takes a tensor of any shape, if it exists.
    pub(crate) fn take_any(&mut self, name: &str) -> Option<HostTensor<'static>> {
        self.folder.tensors.remove(name)
    }

    /// Brings a tensor of one shape into another, of as many elements; other shapes are left for the reader to refuse.
    pub(crate) fn reshape(&mut self, name: &str, from: &[usize], to: &[usize]) {
        if let Some(tensor) = self.folder.tensors.get_mut(name).filter(|tensor| tensor.shape == from) {
            tensor.shape = to.to_vec();
        }
    }

    /// Takes a tensor unchanged from the file.
    pub fn plain<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Option<Tensor<B, D>> {
        let tensor = self.take(name, &shape)?;
        Some(Tensor::from_data(TensorData::new(tensor.data.into_owned(), shape), self.device))
    }

    /// Takes a matrix: `shape` as in the file, the transpose on the device.
    pub fn transposed(&mut self, name: &str, shape: [usize; 2]) -> Option<Tensor<B, 2>> {
        let tensor = self.take(name, &shape)?;
        let [rows, columns] = shape;
        let values = transpose(&tensor.data, rows, columns);
        Some(Tensor::from_data(TensorData::new(values, [columns, rows]), self.device))
    }
}

/// PEFT's targets for models of known types, where a config names none.
const DEFAULT_TARGETS: [&[&str]; 9] = [
    &["q", "v"],
    &["q_proj", "v_proj"],
    &["q_proj", "v_proj", "fc1", "fc2"],
    &["query", "value"],
    &["query_proj", "value_proj"],
    &["query_key_value"],
    &["c_attn"],
    &["in_proj"],
    &["Wqkv"],
];

/// Whether modules of these names are those that PEFT adapts by default.
fn is_default<'n>(names: impl Iterator<Item = &'n str>) -> bool {
    let names: BTreeSet<&str> = names.collect();
    names.is_empty() || DEFAULT_TARGETS.iter().any(|set| names == set.iter().copied().collect())
}

/// The site at a path, even if only one side has the model's prefix (`bert.`).
fn find_site(path: &str, sites: &[Site]) -> Option<usize> {
    sites.iter().position(|s| s.path == path).or_else(|| {
        let mut hits = sites
            .iter()
            .enumerate()
            .filter(|(_, s)| {
                let other = path_in_module(&s.path);
                let other = other.as_deref().is_some_and(|other| has_suffix(other, path));
                has_suffix(&s.path, path) || has_suffix(path, &s.path) || other
            })
            .map(|(index, _)| index);
        hits.next().filter(|_| hits.next().is_none())
    })
}
