//! A folder's tensors as adapters over a model's sites, strictly: everything that is missing, unexpected or
//! misshaped is listed.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;

use super::folder::AdapterFolder;
use super::saved::Saved;
use crate::build::BaseWeights;
use crate::error::{AdapterError, Result};
use crate::lora::{Lora, Magnitude};
use crate::lorta::{Lorta, places};
use crate::lotr::Lotr;
use crate::set::{Adapter, AdapterSet, Slot};
use crate::tt::{Chain, TtPair};
use crate::vera::{Vera, VeraVectors};
use lowrank_spec::targets::has_suffix;
use lowrank_spec::{HostTensor, Site, transpose};

/// How many problems an error lists.
const SHOWN: usize = 12;

/// Names of factors, by the `peft_type` whose they are: what follows a module's path in a key.
const PER_MODULE: [(&str, &[&str]); 6] = [
    (
        "LORA",
        &[
            ".lora_A.weight",
            ".lora_B.weight",
            ".lora_embedding_A",
            ".lora_embedding_B",
            ".lora_magnitude_vector",
        ],
    ),
    ("LOTR", &[".lotr_core.weight"]),
    ("VERA", &[".vera_lambda_b", ".vera_lambda_d"]),
    ("LORETTA", &[".tt_left.0", ".tt_right.0"]),
    ("TT_LORA", &[".tt_left.0", ".tt_right.0"]),
    ("LORTA", &[]),
];

impl AdapterFolder {
    /// The set of this folder over a model's sites, and the tensors that are the model's own (heads, biases).
    ///
    /// `base` gives the weights that DoRA needs.
    ///
    /// # Errors
    /// [`AdapterError::Tensors`] listing keys that are missing, unexpected or of the wrong shape, or sites that the
    /// config names and the file has no factors for; [`AdapterError::NoWeight`].
    pub fn into_set<B: Backend>(
        self,
        dir: &Path,
        sites: &[Site],
        base: &dyn BaseWeights<B>,
        device: &B::Device,
    ) -> Result<(AdapterSet<B>, Saved)> {
        let mut reader = Reader {
            folder: self,
            sites,
            base,
            device,
            problems: Vec::new(),
            adapters: Vec::new(),
            slots: Vec::new(),
        };
        reader.read()?;
        let Reader { folder, mut problems, adapters, mut slots, .. } = reader;
        let adapted = slots.iter().map(|slot| slot.path.clone()).collect();
        let saved = Saved::new(folder.tensors.into_values().collect(), folder.config.clone(), adapted);
        problems.extend(
            saved
                .tensors
                .iter()
                .filter(|t| !saved.allows(&t.name))
                .map(|t| format!("unexpected '{}'", t.name)),
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
        let set = AdapterSet::from_parts(adapters, slots, sites.len(), folder.config.lora_dropout);
        Ok((set, saved))
    }
}

struct Reader<'a, B: Backend> {
    folder: AdapterFolder,
    sites: &'a [Site],
    base: &'a dyn BaseWeights<B>,
    device: &'a B::Device,
    problems: Vec<String>,
    adapters: Vec<Adapter<B>>,
    slots: Vec<Slot>,
}

/// A module of the file and the site that it is.
struct Found {
    path: String,
    site: usize,
}

impl<B: Backend> Reader<'_, B> {
    fn read(&mut self) -> Result<()> {
        let peft_type = self.folder.config.peft_type.clone();
        if peft_type == "HEAD" {
            return Ok(());
        }
        let found = if peft_type == "LORTA" { self.listed() } else { self.modules(&peft_type) };
        self.check_targets(&found);
        match peft_type.as_str() {
            "LORA" => {
                for module in &found {
                    if let Some(lora) = self.lora(module)? {
                        self.push(Adapter::Lora(lora), &[module]);
                    }
                }
            }
            "LOTR" => self.grouped(&found, "lotr", Self::lotr),
            "LORTA" => self.grouped(&found, "lorta", Self::lorta),
            "VERA" => self.vera(&found),
            _ => {
                for module in &found {
                    if let Some(tt) = self.tt(module) {
                        self.push(Adapter::Tt(tt), &[module]);
                    }
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, adapter: Adapter<B>, modules: &[&Found]) {
        let index = self.adapters.len();
        self.adapters.push(adapter);
        self.slots.extend(modules.iter().enumerate().map(|(slice, module)| Slot {
            site: module.site,
            path: self.sites[module.site].path.clone(),
            adapter: index,
            slice,
        }));
    }

    /// The modules that have factors in the file, in the model's order.
    fn modules(&mut self, peft_type: &str) -> Vec<Found> {
        let names = PER_MODULE.iter().find(|(t, _)| *t == peft_type).map_or(&[][..], |(_, names)| names);
        let keys = self.folder.tensors.keys();
        let paths: BTreeSet<String> = keys
            .filter_map(|key| names.iter().find_map(|name| key.strip_suffix(name)))
            .map(str::to_string)
            .collect();
        self.located(paths.into_iter().collect())
    }

    /// The modules that the config names (LoRTA has no tensor of a single module).
    fn listed(&mut self) -> Vec<Found> {
        let config = &self.folder.config;
        let paths = match &config.target_modules {
            Some(lowrank_spec::targets::Pattern::Names(names)) => names.clone(),
            _ => config.groups.concat(),
        };
        self.located(paths)
    }

    fn located(&mut self, paths: Vec<String>) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        for path in paths {
            match find_site(&path, self.sites) {
                Some(site) if found.iter().all(|f| f.site != site) => found.push(Found { path, site }),
                Some(_) => self.problems.push(format!("'{path}' is there twice")),
                None => {
                    let prefix = format!("{path}.");
                    self.folder.tensors.retain(|name, _| !name.starts_with(&prefix));
                    self.problems.push(format!("'{path}' is no layer of this model"));
                }
            }
        }
        found.sort_by_key(|f| f.site);
        found
    }

    /// A layer that the config names must have its factors: else it would silently stay as it was.
    fn check_targets(&mut self, found: &[Found]) {
        for (index, site) in self.sites.iter().enumerate() {
            let is_there = found.iter().any(|f| f.site == index);
            if !is_there && !site.head && self.folder.config.targets(site) {
                self.problems.push(format!("missing factors of '{}'", site.path));
            }
        }
    }

    fn lora(&mut self, module: &Found) -> Result<Option<Lora<B>>> {
        let site = &self.sites[module.site];
        let config = &self.folder.config;
        let (rank, scale) = (config.rank_of(&module.path), config.scale_of(&module.path));
        let dora = config.use_dora;
        let key = |name: &str| format!("{}.{name}", module.path);
        let (a_name, b_name) = if site.embedding {
            ("lora_embedding_A", "lora_embedding_B")
        } else {
            ("lora_A.weight", "lora_B.weight")
        };
        let a = self.take(&key(a_name), &[rank, site.d_input]);
        let b = self.take(&key(b_name), &[site.d_output, rank]);
        let magnitude = dora.then(|| self.take(&key("lora_magnitude_vector"), &[site.d_output]));
        let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
        let lora = Lora::from_factors(self.transposed(a), self.transposed(b), scale);
        let magnitude = match magnitude {
            None => None,
            Some(None) => return Ok(None),
            Some(Some(value)) => {
                let weight = self.base.weight(module.site).ok_or_else(|| AdapterError::NoWeight {
                    site: site.path.clone(),
                    method: "dora".into(),
                })?;
                let value = Param::from_tensor(self.plain(value));
                Some(Magnitude { value, ..Magnitude::of_weight(weight) })
            }
        };
        Ok(Some(Lora { magnitude, ..lora }))
    }

    /// Splits the modules into the config's groups and reads each.
    fn grouped(
        &mut self,
        found: &[Found],
        name: &str,
        read: impl Fn(&mut Self, &[&Found], &str) -> Option<Adapter<B>>,
    ) {
        let listed = self.folder.config.groups.clone();
        let groups: Vec<Vec<&Found>> = if listed.is_empty() {
            vec![found.iter().collect()]
        } else {
            let of_group = |paths: &Vec<String>| found.iter().filter(|f| paths.contains(&f.path)).collect();
            listed.iter().map(of_group).collect()
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

    fn lotr(&mut self, group: &[&Found], key: &str) -> Option<Adapter<B>> {
        let rank = self.folder.config.r;
        let Site { d_input, d_output, .. } = self.sites[group[0].site];
        let cores: Vec<_> =
            group.iter().map(|f| self.take(&format!("{}.lotr_core.weight", f.path), &[rank, rank])).collect();
        let left = self.take(&format!("{key}.left.weight"), &[rank, d_input]);
        let right = self.take(&format!("{key}.right.weight"), &[d_output, rank]);
        let cores = cores.into_iter().map(|c| Some(self.transposed(c?))).collect::<Option<_>>()?;
        let scale = self.folder.config.scale_of(&group[0].path);
        Some(Adapter::Lotr(Lotr::from_factors(self.transposed(left?), self.transposed(right?), cores, scale)))
    }

    fn lorta(&mut self, group: &[&Found], key: &str) -> Option<Adapter<B>> {
        let rank = self.folder.config.r;
        let sites: Vec<&Site> = group.iter().map(|f| &self.sites[f.site]).collect();
        let (places, [n_layers, n_kinds]) = places(&sites);
        let (d_input, d_output) = (sites[0].d_input, sites[0].d_output);
        let heads_key = format!("{key}.heads");
        let heads = self.folder.tensors.get(&heads_key).and_then(|t| t.shape.get(1).copied()).unwrap_or(1);
        let width = if heads > 0 && d_output.is_multiple_of(heads) { d_output / heads } else { 0 };
        let mut factor = |name: &str, shape: [usize; 2]| {
            let tensor = self.take(&format!("{key}.{name}"), &shape)?;
            Some(Param::from_tensor(Tensor::from_data(
                TensorData::new(tensor.data.into_owned(), shape),
                self.device,
            )))
        };
        let a = factor("a", [d_input, rank]);
        let b = factor("b", [rank, width]);
        let heads = factor("heads", [rank, heads]);
        let layers = factor("layers", [n_layers, rank]);
        let kinds = factor("kinds", [n_kinds, rank]);
        let scale = self.folder.config.scale_of(&group[0].path);
        Some(Adapter::Lorta(Lorta {
            a: a?,
            b: b?,
            heads: heads?,
            layers: layers?,
            kinds: kinds?,
            places,
            scale,
        }))
    }

    fn vera(&mut self, found: &[Found]) {
        let rank = self.folder.config.r;
        let widest = |width: fn(&Site) -> usize| found.iter().map(|f| width(&self.sites[f.site])).max();
        let (Some(d_input), Some(d_output)) = (widest(|s| s.d_input), widest(|s| s.d_output)) else { return };
        if !self.folder.tensors.contains_key("vera_A") {
            self.problems.push("missing 'vera_A' and 'vera_B': save the adapter with save_projection".into());
            return;
        }
        let a = self.take("vera_A", &[rank, d_input]);
        let b = self.take("vera_B", &[d_output, rank]);
        let mut vectors = Vec::new();
        for module in found {
            let Site { d_input, d_output, .. } = self.sites[module.site];
            let inner = self.take(&format!("{}.vera_lambda_d", module.path), &[rank]);
            let output = self.take(&format!("{}.vera_lambda_b", module.path), &[d_output]);
            if let (Some(inner), Some(output)) = (inner, output) {
                let [inner, output] = [inner, output].map(|t| Param::from_tensor(self.plain(t)));
                vectors.push(VeraVectors { inner, output, d_input });
            }
        }
        if let (Some(a), Some(b), true) = (a, b, vectors.len() == found.len()) {
            let vera = Vera { a: self.transposed(a), b: self.transposed(b), vectors };
            self.push(Adapter::Vera(vera), &found.iter().collect::<Vec<_>>());
        }
    }

    fn tt(&mut self, module: &Found) -> Option<TtPair<B>> {
        let Site { d_input, d_output, .. } = self.sites[module.site];
        let rank = self.folder.config.rank_of(&module.path);
        let scale = self.folder.config.scale_of(&module.path);
        let left = self.chain(&format!("{}.tt_left", module.path), d_input, rank);
        let right = self.chain(&format!("{}.tt_right", module.path), d_output, rank);
        Some(TtPair { left: left?, right: right?, scale })
    }

    /// The cores `<key>.0`, `<key>.1`, … of a train that is open at its end.
    fn chain(&mut self, key: &str, rows: usize, rank: usize) -> Option<Chain<B>> {
        let mut cores = Vec::new();
        let (mut left, mut modes) = (1, 1usize);
        while let Some(tensor) = self.folder.tensors.remove(&format!("{key}.{}", cores.len())) {
            let [l, mode, right] = tensor.shape[..] else {
                self.problems.push(format!(
                    "'{}' has shape {:?}, expected a core of three",
                    tensor.name, tensor.shape
                ));
                return None;
            };
            if l != left || mode == 0 {
                let text = format!("'{}' has shape {:?}, expected [{left}, n, r]", tensor.name, tensor.shape);
                self.problems.push(text);
                return None;
            }
            (left, modes) = (right, modes.saturating_mul(mode));
            cores.push(Tensor::from_data(
                TensorData::new(tensor.data.into_owned(), [l, mode, right]),
                self.device,
            ));
        }
        if left != rank || modes < rows {
            let text =
                format!("'{key}' is a train of {modes} rows and rank {left}, expected {rows} and {rank}");
            self.problems.push(text);
            return None;
        }
        Some(Chain::from_cores(cores, rows))
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Option<HostTensor<'static>> {
        match self.folder.tensors.remove(name) {
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

    fn plain(&self, tensor: HostTensor<'_>) -> Tensor<B, 1> {
        let n = tensor.data.len();
        Tensor::from_data(TensorData::new(tensor.data.into_owned(), [n]), self.device)
    }

    /// `(out, in)` on the host → `[in, out]` on the device.
    fn transposed(&self, tensor: HostTensor<'_>) -> Tensor<B, 2> {
        let [rows, columns] = [tensor.shape[0], tensor.shape[1]];
        let values = transpose(&tensor.data, rows, columns);
        Tensor::from_data(TensorData::new(values, [columns, rows]), self.device)
    }
}

/// Head of the keys of a group's shared factors.
pub(super) fn group_key(name: &str, index: usize) -> String {
    if index == 0 { name.to_string() } else { format!("{name}.{index}") }
}

/// The site at a path, also where one side carries the model's prefix (`bert.`) and the other does not.
fn find_site(path: &str, sites: &[Site]) -> Option<usize> {
    sites.iter().position(|s| s.path == path).or_else(|| {
        let mut hits = sites
            .iter()
            .enumerate()
            .filter(|(_, s)| has_suffix(&s.path, path) || has_suffix(path, &s.path))
            .map(|(index, _)| index);
        hits.next().filter(|_| hits.next().is_none())
    })
}
