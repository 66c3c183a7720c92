//! Adapter folders in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Keys are `base_model.model.<module path>.lora_A.weight` `(r, in)` and `.lora_B.weight` `(out, r)` in
//! PyTorch's layout; the task head is saved in full under its own path and named in `modules_to_save`.
//! LoTR uses the same layout with `peft_type: "LOTR"`: `<path>.lotr_core.weight` `(r, r)` for each slice and
//! the shared `lotr.left.weight` `(r, in)` and `lotr.right.weight` `(out, r)`, each the transpose of what the
//! forward pass multiplies by.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_checkpoint::{Checkpoint, FloatType, NamedTensor, write_atomic, write_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::scale;
use crate::error::{AdapterError, Result};
use crate::lora::Lora;
use crate::lotr::Lotr;
use crate::set::{Adapter, AdapterSet, Slot};
use crate::site::Site;
use crate::targets::{Pattern, has_suffix};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

/// The keys of `adapter_config.json` that we read and write; others are kept as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeftConfig {
    /// `LORA`, `LOTR`, or `HEAD` for a task head without adapters.
    pub peft_type: String,
    /// Inner width where no pattern says otherwise.
    pub r: usize,
    /// Strength where no pattern says otherwise.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Where the adapter sits.
    pub target_modules: Option<Pattern>,
    /// Scale by alpha/√r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Weight-decomposed LoRA.
    #[serde(default)]
    pub use_dora: bool,
    /// Which biases the adapter carries.
    #[serde(default = "none")]
    pub bias: String,
    /// Whether the base stores its weights as `[in, out]` (GPT-2's `Conv1D`).
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Rank by suffix of the module path.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alpha by suffix of the module path.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules trained and saved in full.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// PEFT's name of the task.
    #[serde(default)]
    pub task_type: Option<String>,
    /// The base model.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// True for an adapter that is to be used, not trained further.
    #[serde(default)]
    pub inference_mode: bool,
    /// Everything else in the file.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for PeftConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: None,
            use_rslora: false,
            use_dora: false,
            bias: none(),
            fan_in_fan_out: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: None,
            task_type: None,
            base_model_name_or_path: None,
            inference_mode: false,
            other: Map::new(),
        }
    }
}

fn none() -> String {
    "none".into()
}

impl PeftConfig {
    fn rank_of(&self, path: &str) -> usize {
        by_suffix(&self.rank_pattern, path).unwrap_or(self.r)
    }

    fn alpha_of(&self, path: &str) -> f64 {
        by_suffix(&self.alpha_pattern, path).unwrap_or(self.lora_alpha)
    }
}

/// The pattern's value for a module: its keys are regular expressions that match the end of the path.
fn by_suffix<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Option<T> {
    patterns.iter().find_map(|(key, &value)| {
        let regex = regex::Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).ok();
        let hit = regex.map_or_else(|| has_suffix(path, key), |r| r.is_match(path));
        hit.then_some(value)
    })
}

/// A tensor on the host, in PyTorch's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Key in the file, without PEFT's prefix.
    pub name: String,
    /// Shape as PyTorch has it.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

/// An adapter folder in memory.
#[derive(Clone, Debug)]
pub struct AdapterFolder {
    /// The config file.
    pub config: PeftConfig,
    /// All tensors, PEFT's prefix removed.
    pub tensors: BTreeMap<String, HostTensor>,
}

impl AdapterFolder {
    /// Reads a folder with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
    ///
    /// # Errors
    /// A config that is missing or not understood, tensor files that cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        let bad = |reason: String| AdapterError::Config { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|e| bad(format!("cannot be read: {e}")))?;
        let config: PeftConfig = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        if !["LORA", "LOTR", "HEAD"].contains(&config.peft_type.as_str()) {
            let reason =
                format!("peft_type '{}' is not supported; expected LORA, LOTR or HEAD", config.peft_type);
            return Err(bad(reason));
        }
        if config.use_dora {
            return Err(bad("use_dora is not supported".into()));
        }
        let file = Checkpoint::open(dir)?;
        let mut tensors = BTreeMap::new();
        for key in file.names() {
            let name = strip_prefix(key).to_string();
            let shape = file.info(key).map(|i| i.shape.clone()).unwrap_or_default();
            tensors.insert(name.clone(), HostTensor { name, shape, data: file.read_f32(key)? });
        }
        Ok(Self { config, tensors })
    }

    /// Writes the folder; each file appears whole or not at all.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(CONFIG);
        let io = |e: std::io::Error| AdapterError::Config { path: path.clone(), reason: e.to_string() };
        std::fs::create_dir_all(dir).map_err(io)?;
        let tensors = self
            .tensors
            .values()
            .map(|t| NamedTensor {
                name: format!("{PREFIX}{}", t.name),
                shape: t.shape.clone(),
                data: Cow::Borrowed(&t.data),
            })
            .collect();
        write_safetensors(dir.join(TENSORS), tensors, FloatType::F32, &BTreeMap::new())?;
        let json = serde_json::to_string_pretty(&self.config).map_err(|e| io(e.into()))?;
        write_atomic(&path, json.as_bytes())?;
        Ok(())
    }

    /// Writes a set and its head tensors as a folder.
    ///
    /// `config` gives what the set does not know (targets, alpha, base model); `head` is saved under
    /// `modules_to_save`.
    ///
    /// # Errors
    /// None beyond those of reading values back from the device.
    pub fn from_set<B: Backend>(set: &AdapterSet<B>, config: PeftConfig, head: Vec<HostTensor>) -> Self {
        let mut tensors: Vec<HostTensor> = Vec::new();
        for slot in set.slots() {
            match &set.adapters()[slot.adapter] {
                Adapter::Lora(lora) => {
                    tensors.push(transposed(format!("{}.lora_A.weight", slot.path), lora.a.val()));
                    tensors.push(transposed(format!("{}.lora_B.weight", slot.path), lora.b.val()));
                }
                Adapter::Lotr(lotr) => {
                    if slot.slice == 0 {
                        tensors.push(transposed("lotr.left.weight".into(), lotr.left.val()));
                        tensors.push(transposed("lotr.right.weight".into(), lotr.right.val()));
                    }
                    let core = lotr.cores[slot.slice].val();
                    tensors.push(transposed(format!("{}.lotr_core.weight", slot.path), core));
                }
            }
        }
        tensors.extend(head);
        Self { config, tensors: tensors.into_iter().map(|t| (t.name.clone(), t)).collect() }
    }

    /// The set of this folder over a model's sites, and the tensors that belong to no adapter (the head).
    ///
    /// # Errors
    /// [`AdapterError::Tensors`] listing keys that are missing, unexpected or of the wrong shape.
    pub fn into_set<B: Backend>(
        mut self,
        dir: &Path,
        sites: &[Site],
        device: &B::Device,
    ) -> Result<(AdapterSet<B>, Vec<HostTensor>)> {
        let mut problems = Vec::new();
        let (adapters, slots) = if self.config.peft_type == "LOTR" {
            self.take_lotr(sites, device, &mut problems)
        } else {
            self.take_lora(sites, device, &mut problems)
        };
        let saved = self.config.modules_to_save.clone().unwrap_or_default();
        let is_saved = |name: &str| {
            let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
            saved.iter().any(|s| module.split('.').any(|part| part == s) || has_suffix(module, s))
        };
        for name in self.tensors.keys().filter(|name| !is_saved(name)) {
            problems.push(format!("unexpected '{name}'"));
        }
        if slots.is_empty() && problems.is_empty() && self.config.peft_type != "HEAD" {
            problems.push("no adapter tensors at all".into());
        }
        if !problems.is_empty() {
            return Err(AdapterError::Tensors { path: dir.to_path_buf(), details: problems.join(", ") });
        }
        let set = AdapterSet::from_parts(adapters, slots, sites.len(), self.config.lora_dropout);
        Ok((set, self.tensors.into_values().collect()))
    }

    fn take_lora<B: Backend>(
        &mut self,
        sites: &[Site],
        device: &B::Device,
        problems: &mut Vec<String>,
    ) -> (Vec<Adapter<B>>, Vec<Slot>) {
        let paths: BTreeSet<String> = self
            .tensors
            .keys()
            .filter_map(|k| k.strip_suffix(".lora_A.weight").or(k.strip_suffix(".lora_B.weight")))
            .map(str::to_string)
            .collect();
        let mut found: Vec<(usize, Adapter<B>)> = Vec::new();
        for path in paths {
            let Some(index) = find_site(&path, sites) else {
                self.tensors.remove(&format!("{path}.lora_A.weight"));
                self.tensors.remove(&format!("{path}.lora_B.weight"));
                problems.push(format!("'{path}' is no linear layer of this model"));
                continue;
            };
            let (site, rank) = (&sites[index], self.config.rank_of(&path));
            let a = self.take(&format!("{path}.lora_A.weight"), [rank, site.d_input], problems);
            let b = self.take(&format!("{path}.lora_B.weight"), [site.d_output, rank], problems);
            if let (Some(a), Some(b)) = (a, b) {
                let scale = scale(self.config.alpha_of(&path), rank, self.config.use_rslora);
                let lora = Lora::from_factors(from_torch(a, device), from_torch(b, device), scale);
                found.push((index, Adapter::Lora(lora)));
            }
        }
        found.sort_by_key(|(index, _)| *index);
        let slots = found
            .iter()
            .enumerate()
            .map(|(adapter, (site, _))| Slot {
                site: *site,
                path: sites[*site].path.clone(),
                adapter,
                slice: 0,
            })
            .collect();
        (found.into_iter().map(|(_, adapter)| adapter).collect(), slots)
    }

    fn take_lotr<B: Backend>(
        &mut self,
        sites: &[Site],
        device: &B::Device,
        problems: &mut Vec<String>,
    ) -> (Vec<Adapter<B>>, Vec<Slot>) {
        let rank = self.config.r;
        let paths: Vec<String> = self
            .tensors
            .keys()
            .filter_map(|k| k.strip_suffix(".lotr_core.weight"))
            .map(str::to_string)
            .collect();
        let mut found: Vec<(usize, Tensor<B, 2>)> = Vec::new();
        for path in paths {
            let core = self.take(&format!("{path}.lotr_core.weight"), [rank, rank], problems);
            match find_site(&path, sites) {
                Some(index) => found.extend(core.map(|core| (index, from_torch(core, device)))),
                None => problems.push(format!("'{path}' is no linear layer of this model")),
            }
        }
        found.sort_by_key(|(index, _)| *index);
        let Some(&(first, _)) = found.first() else { return (Vec::new(), Vec::new()) };
        let left = self.take("lotr.left.weight", [rank, sites[first].d_input], problems);
        let right = self.take("lotr.right.weight", [sites[first].d_output, rank], problems);
        let (Some(left), Some(right)) = (left, right) else { return (Vec::new(), Vec::new()) };
        let slots = found
            .iter()
            .enumerate()
            .map(|(slice, (site, _))| Slot {
                site: *site,
                path: sites[*site].path.clone(),
                adapter: 0,
                slice,
            })
            .collect();
        let cores = found.into_iter().map(|(_, core)| core).collect();
        let scale = scale(self.config.lora_alpha, rank, self.config.use_rslora);
        let lotr = Lotr::from_factors(from_torch(left, device), from_torch(right, device), cores, scale);
        (vec![Adapter::Lotr(lotr)], slots)
    }

    fn take(&mut self, name: &str, shape: [usize; 2], problems: &mut Vec<String>) -> Option<HostTensor> {
        match self.tensors.remove(name) {
            None => {
                problems.push(format!("missing '{name}'"));
                None
            }
            Some(t) if t.shape != shape => {
                problems.push(format!("'{name}' has shape {:?}, expected {shape:?}", t.shape));
                None
            }
            Some(t) => Some(t),
        }
    }
}

/// Removes the prefixes that PEFT's versions put before the module path.
fn strip_prefix(key: &str) -> &str {
    key.strip_prefix(PREFIX).unwrap_or(key)
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

/// `[in, out]` on the device → `(out, in)` on the host.
fn transposed<B: Backend>(name: String, tensor: Tensor<B, 2>) -> HostTensor {
    let [rows, columns] = tensor.dims();
    let data = transpose(&host_values(tensor), rows, columns);
    HostTensor { name, shape: vec![columns, rows], data }
}

/// `(out, in)` on the host → `[in, out]` on the device.
fn from_torch<B: Backend>(tensor: HostTensor, device: &B::Device) -> Tensor<B, 2> {
    let [rows, columns] = [tensor.shape[0], tensor.shape[1]];
    Tensor::from_data(TensorData::new(transpose(&tensor.data, rows, columns), [columns, rows]), device)
}

/// Values of a tensor on the host, row-major, as f32.
pub fn host_values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Row-major `[rows, columns]` → row-major `[columns, rows]`.
pub fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
}
