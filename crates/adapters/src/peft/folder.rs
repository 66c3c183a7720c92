//! An adapter folder in memory, and its files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowrank_checkpoint::{Checkpoint, FloatType, has_file, write_atomic, write_safetensors};
use lowrank_spec::names::{NEOX_HEAD, path_in_module};
use lowrank_spec::{HostTensor, Site};

use super::config::PeftConfig;
use super::experts::router_in_module;
use super::names::{PREFIX, normalize};
use super::saved::TOKEN_ROWS;
use crate::error::{AdapterError, Result};
use crate::methods::Method;

/// Name of the config in a folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensor file in a folder that we write.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";
/// The alpha of loralib's published adapters, which their files do not store.
pub const LORALIB_ALPHA: f64 = 16.0;

/// An adapter folder in memory.
#[derive(Clone, Debug)]
pub struct AdapterFolder {
    /// The config file.
    pub config: PeftConfig,
    /// All tensors by their key, PEFT's prefix removed.
    pub tensors: BTreeMap<String, HostTensor<'static>>,
    /// Whether alpha is assumed to be [`LORALIB_ALPHA`]: a loralib file does not store it, and the caller gave none.
    pub alpha_is_assumed: bool,
}

/// Whether a path is an adapter: a folder with `adapter_config.json`, or loralib's tensors as a file or alone in a folder.
pub fn is_adapter(path: &Path) -> bool {
    has_file(path.join(CONFIG_FILE)) || loralib_file(path).is_some()
}

/// The tensor file of a loralib adapter.
fn loralib_file(path: &Path) -> Option<PathBuf> {
    let is_tensors = |p: &Path| {
        let extension = p.extension().and_then(|e| e.to_str());
        p.is_file() && matches!(extension, Some("bin" | "pt" | "safetensors"))
    };
    let file = if path.is_dir() {
        if path.join("config.json").is_file() {
            return None;
        }
        let mut files = path.read_dir().ok()?.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_tensors(p));
        let file = files.next()?;
        files.next().is_none().then_some(file)?
    } else {
        Some(path.to_path_buf()).filter(|p| is_tensors(p))?
    };
    let checkpoint = Checkpoint::open(&file).ok()?;
    checkpoint.names().any(|name| name.contains("lora_A")).then_some(file)
}

impl AdapterFolder {
    /// Reads a folder with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`), or loralib's tensors.
    ///
    /// # Errors
    /// A config that is missing or invalid, tensor files that cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_with_alpha(path, None)
    }

    /// The same with an alpha for files that do not contain one.
    ///
    /// # Errors
    /// As [`AdapterFolder::read`].
    pub fn read_with_alpha(path: &Path, alpha: Option<f64>) -> Result<Self> {
        let config_path = path.join(CONFIG_FILE);
        let bad = |reason: String| AdapterError::Config { path: config_path.clone(), reason };
        if let Some(alpha) = alpha.filter(|alpha| !(*alpha > 0.0 && alpha.is_finite())) {
            return Err(bad(format!("alpha {alpha} is out of range; expected a number above 0")));
        }
        if alpha.is_some() && has_file(&config_path) {
            return Err(bad("the adapter has its own alpha; leave --alpha out".into()));
        }
        if !has_file(&config_path)
            && let Some(file) = loralib_file(path)
        {
            return Self::read_loralib(&file, alpha);
        }
        let text = lowrank_checkpoint::read_file(&config_path)
            .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
            .map_err(|e| bad(format!("cannot be read: {e}")))?;
        let config = PeftConfig::parse(&text).map_err(bad)?;
        let file = tensor_file(path);
        if file == path && path.join("config.json").is_file() {
            return Err(bad(format!("no {TENSOR_FILE} or adapter_model.bin beside it")));
        }
        let tensors = read_tensors(&file)?;
        let mut folder = Self { config, tensors, alpha_is_assumed: false };
        // The authors of some methods save them under the name of another.
        if let Some(method) = Method::all().find(|method| (method.adopts)(&folder)) {
            folder.config.peft_type = method.peft_type.into();
        }
        Ok(folder)
    }

    /// Tensors of loralib: `<path>.lora_A`, `<path>.lora_B`, and any others that were trained.
    fn read_loralib(file: &Path, alpha: Option<f64>) -> Result<Self> {
        let tensors = read_tensors(file)?;
        let ranks: BTreeMap<&str, usize> = tensors
            .values()
            .filter_map(|t| Some((t.name.strip_suffix(".lora_A.weight")?, *t.shape.first()?)))
            .collect();
        let r = ranks.values().copied().max().unwrap_or(0);
        let bad = |reason: &str| AdapterError::Config { path: file.to_path_buf(), reason: reason.into() };
        if r == 0 {
            return Err(bad("a factor of rank 0"));
        }
        let others = ranks.iter().filter(|(_, rank)| **rank != r);
        let targets =
            lowrank_spec::targets::Pattern::Names(ranks.keys().map(|path| path.to_string()).collect());
        let mut saved: Vec<String> = Vec::new();
        for name in tensors.keys().filter(|name| !name.contains(".lora_")) {
            let module = name.rsplit_once('.').map_or(name.as_str(), |(module, _)| module);
            // PEFT saves a head as one module.
            let module = if module.starts_with("classifier.") { "classifier" } else { module };
            if !saved.iter().any(|s| s == module) {
                saved.push(module.to_string());
            }
        }
        let config = PeftConfig {
            r,
            lora_alpha: alpha.unwrap_or(LORALIB_ALPHA),
            rank_pattern: others.map(|(path, rank)| (path.to_string(), *rank)).collect(),
            target_modules: Some(targets),
            task_type: saved.iter().any(|s| s == "classifier").then(|| "SEQ_CLS".into()),
            modules_to_save: (!saved.is_empty()).then_some(saved),
            inference_mode: true,
            ..PeftConfig::default()
        };
        Ok(Self { config, tensors, alpha_is_assumed: alpha.is_none() })
    }

    /// Writes the folder; each file is written completely or not at all.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(CONFIG_FILE);
        let io = |e: std::io::Error| AdapterError::Config { path: path.clone(), reason: e.to_string() };
        std::fs::create_dir_all(dir).map_err(io)?;
        let tensors = self
            .tensors
            .values()
            .map(|t| HostTensor {
                name: self.key(&t.name),
                shape: t.shape.clone(),
                data: Cow::Borrowed(&t.data),
            })
            .collect();
        write_safetensors(dir.join(TENSOR_FILE), tensors, FloatType::F32, &BTreeMap::new())?;
        let json = self.config.in_modules().to_json().map_err(|e| io(e.into()))?;
        write_atomic(&path, json.as_bytes())?;
        Ok(())
    }

    /// Renames tensors of GPT-NeoX's head from its name in transformers 5 to that in model files.
    pub fn rename_head(&mut self, sites: &[Site]) {
        let [file, module] = NEOX_HEAD;
        if !sites.iter().any(|site| site.path == file || site.path.starts_with("gpt_neox.")) {
            return;
        }
        self.rename_tensors(|key| {
            let rest = key.strip_prefix(module).filter(|rest| rest.starts_with('.'))?;
            Some(format!("{file}{rest}"))
        });
    }

    /// Renames every tensor for whose key `renamed` returns another.
    pub(super) fn rename_tensors(&mut self, renamed: impl Fn(&str) -> Option<String>) {
        let keys: Vec<(String, String)> =
            self.tensors.keys().filter_map(|key| Some((key.clone(), renamed(key)?))).collect();
        for (from, to) in keys {
            if let Some(tensor) = self.tensors.remove(&from) {
                self.tensors.insert(to.clone(), HostTensor { name: to, ..tensor });
            }
        }
    }

    /// The key of a tensor in the file.
    fn key(&self, name: &str) -> String {
        let module = path_in_module(name).or_else(|| router_in_module(name));
        self.key_of(name, module.as_deref().unwrap_or(name))
    }

    /// The key in the file of the tensor `name`, whose path in transformers 5 is `shown`.
    fn key_of(&self, name: &str, shown: &str) -> String {
        match name {
            // PEFT stores VeRA's shared factors beside the model, not in it.
            "vera_A" | "vera_B" => format!("base_model.{name}"),
            _ => match (name.rsplit_once('.'), shown.rsplit_once('.')) {
                // PEFT wraps an adapted module.
                (Some((module, leaf @ ("weight" | "bias"))), Some((shown, _))) if self.is_wrapped(module) => {
                    format!("{PREFIX}{shown}.base_layer.{leaf}")
                }
                (Some((module, "weight")), Some((shown, _))) if self.has_token_rows(module) => {
                    format!("{PREFIX}{shown}.token_adapter.base_layer.weight")
                }
                _ => format!("{PREFIX}{shown}"),
            },
        }
    }

    /// Whether PEFT wraps a module.
    fn is_wrapped(&self, module: &str) -> bool {
        let factors = [".lora_A.weight", ".lora_embedding_A", ".vera_lambda_d"];
        factors.iter().any(|factor| self.tensors.contains_key(&format!("{module}{factor}")))
    }

    /// Whether the adapter changes a module: by factors, by trained rows, or by a full copy (`modules_to_save`). The base's own
    /// weight in the file (`save_embedding_layers`) does not count.
    pub fn changes(&self, module: &str) -> bool {
        let is_own = |key: &String| {
            let rest = key.strip_prefix(module).filter(|rest| rest.starts_with('.'));
            rest.is_some_and(|rest| ![".weight", ".base_layer.weight"].contains(&rest))
        };
        self.tensors.keys().any(is_own) || self.config.saves(module)
    }

    /// Whether the adapter has trained rows of a table.
    pub fn has_token_rows(&self, table: &str) -> bool {
        self.tensors.contains_key(&format!("{table}{TOKEN_ROWS}"))
    }

    /// Number of values in all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|t| t.data.len()).sum()
    }
}

/// The adapter's tensor file in a folder that may also contain the base's `model.safetensors`.
fn tensor_file(path: &Path) -> PathBuf {
    let names = [TENSOR_FILE, "adapter_model.bin"];
    names.iter().map(|name| path.join(name)).find(|file| has_file(file)).unwrap_or_else(|| path.to_path_buf())
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, HostTensor<'static>>> {
    let file = Checkpoint::open(path)?;
    let mut tensors = BTreeMap::new();
    for key in file.names() {
        let Some(name) = normalize(key) else { continue };
        let shape = file.info(key).map(|i| i.shape.clone()).unwrap_or_default();
        let tensor = HostTensor::new(name.clone(), shape, file.read_f32(key)?);
        // PEFT writes the biases of a saved module twice, with equal values.
        if tensors.get(&name).is_some_and(|before: &HostTensor| before.data != tensor.data) {
            let details = format!("'{key}' appears twice, with different values");
            return Err(AdapterError::Tensors { path: path.to_path_buf(), details });
        }
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn folder(peft_type: &str, names: &[&str]) -> AdapterFolder {
        let tensor = |name: &&str| (name.to_string(), HostTensor::new(*name, [1], vec![0.5]));
        AdapterFolder {
            config: PeftConfig { peft_type: peft_type.into(), ..PeftConfig::default() },
            tensors: names.iter().map(tensor).collect(),
            alpha_is_assumed: false,
        }
    }

    /// A module's own parameters are in `base_layer` where PEFT wraps it.
    #[rstest]
    #[case("LORA", "q_proj.lora_A.weight")]
    #[case("LORA", "q_proj.lora_embedding_A")]
    #[case("VERA", "q_proj.vera_lambda_d")]
    fn parameters_of_adapted_modules_are_those_of_the_base_layer(
        #[case] peft_type: &str,
        #[case] factor: &str,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(peft_type, &[factor, "q_proj.weight", "q_proj.bias", "k_proj.bias"]);
        folder.write(dir.path()).unwrap();
        let file = Checkpoint::open(dir.path().join(TENSOR_FILE)).unwrap();
        let keys: Vec<&str> = file.names().collect();
        for key in ["q_proj.base_layer.weight", "q_proj.base_layer.bias", "k_proj.bias"] {
            assert!(keys.contains(&format!("{PREFIX}{key}").as_str()), "{key} in {keys:?}");
        }
        let read = AdapterFolder::read(dir.path()).unwrap();
        assert_eq!(read.tensors.keys().collect::<Vec<_>>(), folder.tensors.keys().collect::<Vec<_>>());
    }

    /// Files of earlier versions name the biases under VeRA without `base_layer`.
    #[test]
    fn biases_are_read_under_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["q_proj.vera_lambda_d", "q_proj.bias"];
        folder("VERA", &names).write(dir.path()).unwrap();
        let tensors = names.map(|name| HostTensor::new(format!("{PREFIX}{name}"), [1], vec![0.5]));
        write_safetensors(dir.path().join(TENSOR_FILE), tensors.into(), FloatType::F32, &BTreeMap::new())
            .unwrap();
        let read = AdapterFolder::read(dir.path()).unwrap();
        assert!(names.iter().all(|name| read.tensors.contains_key(*name)));
    }
}
