//! Adapters on experts as written by PEFT for transformers 5, which stores the maps of all experts of a layer
//! in one tensor. Their factors are stored in one tensor too, `A` `(experts·r, in)` expert by expert and `B`
//! `(out, r·experts)` with the expert as the last index. They are split into factors of each expert's maps,
//! under the names of the hub's files.
//!
//! | key below `<layer>.mlp.experts` | serves |
//! |---|---|
//! | `base_layer.lora_A.weight` | gate and up in one, or otherwise the down map, whichever has its shape |
//! | `lora_A.weight` | the other |

use std::collections::BTreeMap;

use lowrank_spec::names::{expert_of, is_router};
use lowrank_spec::targets::has_suffix;
use lowrank_spec::{HostTensor, Site};
use serde_json::Value;

use super::folder::AdapterFolder;

/// Suffixes of parameters that represent maps.
const PARAMETERS: [&str; 3] = ["gate_up_proj", "down_proj", "gate.weight"];

/// Whether the parameters that a config targets are those of experts and routers, which are treated as maps.
pub(super) fn are_maps(parameters: &Value) -> bool {
    let is_map = |name: &str| PARAMETERS.iter().any(|end| has_suffix(name, end));
    parameters.as_array().is_some_and(|all| all.iter().all(|name| name.as_str().is_some_and(is_map)))
}

/// The modules of a folder with factors of all experts of a layer.
fn fused(folder: &AdapterFolder) -> Vec<String> {
    let modules = folder.tensors.keys().filter_map(|key| key.strip_suffix(".lora_A.weight"));
    let is_fused = |module: &&str| module.ends_with(".experts") || module.ends_with(".experts.base_layer");
    modules.filter(is_fused).map(str::to_string).collect()
}

impl AdapterFolder {
    /// Whether factors of all experts are in one tensor, which can be split only with their model.
    pub(super) fn is_fused(&self) -> bool {
        !fused(self).is_empty()
    }

    /// Moves factors or the weight of a router to its name in the hub's files, if transformers 5 uses another (Mixtral's
    /// `block_sparse_moe.gate` is `mlp.gate` there).
    pub(super) fn rename_routers(&mut self, sites: &[Site]) {
        for factor in [".lora_A.weight", ".lora_B.weight", ".weight"] {
            let named = |key: &String| Some(key.strip_suffix(factor)?.to_string());
            for module in
                self.tensors.keys().filter_map(named).filter(|path| is_router(path)).collect::<Vec<_>>()
            {
                let last = module.rsplit('.').next();
                let is_it = |site: &&Site| site.layer == layer_of(&module) && last == Some(site.name());
                let found =
                    sites.iter().find(|site| site.path == module).or_else(|| sites.iter().find(is_it));
                let Some(site) = found.filter(|site| site.path != module && is_router(&site.path)) else {
                    continue;
                };
                if let Some(tensor) = self.tensors.remove(&format!("{module}{factor}")) {
                    let key = format!("{}{factor}", site.path);
                    self.tensors.insert(key.clone(), HostTensor { name: key, ..tensor });
                }
            }
        }
    }

    /// Splits the factors by expert.
    ///
    /// # Errors
    /// Factors whose shapes do not match the model's experts.
    pub(super) fn unfuse(&mut self, sites: &[Site]) -> Result<(), String> {
        let modules = fused(self);
        let (mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new());
        for module in modules {
            let experts = experts(sites, layer_of(&module));
            let take = |folder: &mut Self, name: &str| {
                let key = format!("{module}.{name}.weight");
                let tensor = folder.tensors.remove(&key).filter(|tensor| tensor.shape.len() == 2);
                tensor.ok_or_else(|| format!("'{key}' is missing, or is not a matrix"))
            };
            let (a, b) = (take(self, "lora_A")?, take(self, "lora_B")?);
            let misfit = || {
                format!(
                    "'{module}' has factors {:?} and {:?}, which are not those of this model's experts",
                    a.shape, b.shape
                )
            };
            let [&[all, d_input], &[d_output, columns]] = [&a.shape[..], &b.shape[..]] else {
                return Err(misfit());
            };
            if experts.is_empty() || all != columns || all == 0 || !all.is_multiple_of(experts.len()) {
                return Err(misfit());
            }
            let (count, rank) = (experts.len(), all / experts.len());
            for (i, maps) in experts.iter().enumerate() {
                let Some((name, parts)) = parts_of(maps, d_input, d_output) else { return Err(misfit()) };
                let target = format!("{}.{name}", module.trim_end_matches(".base_layer"));
                let mut row = 0;
                for site in parts {
                    ranks.insert(pattern(site), (self.config.rank_of(&target), rank));
                    let alpha = self.config.alpha_pattern.get(&target).unwrap_or(self.config.lora_alpha);
                    alphas.insert(pattern(site), alpha);
                    let own_a = a.data[i * rank * d_input..(i + 1) * rank * d_input].to_vec();
                    let cells = (row..row + site.d_output)
                        .flat_map(|o| (0..rank).map(move |r| o * all + r * count + i));
                    let own_b = cells.map(|at| b.data[at]).collect();
                    row += site.d_output;
                    for (factor, shape, data) in
                        [("lora_A", vec![rank, d_input], own_a), ("lora_B", vec![site.d_output, rank], own_b)]
                    {
                        let key = format!("{}.{factor}.weight", site.path);
                        self.tensors.insert(key.clone(), HostTensor::new(key, shape, data));
                    }
                }
            }
        }
        if let Some((maps, (said, found))) = ranks.iter().find(|(_, (said, found))| said != found) {
            return Err(format!("the factors of '{maps}' have rank {found}, and the config gives {said}"));
        }
        let config = &mut self.config;
        let ranks = ranks.into_iter().map(|(maps, (rank, _))| (maps, rank));
        config.rank_pattern = ranks.chain(config.rank_pattern.entries()).collect();
        config.alpha_pattern = alphas.into_iter().chain(config.alpha_pattern.entries()).collect();
        config.other.remove("target_parameters");
        Ok(())
    }
}

/// The layer of a path.
fn layer_of(path: &str) -> Option<usize> {
    path.split('.').find_map(|segment| segment.parse().ok())
}

/// The maps of each expert of a layer, in their order.
fn experts(sites: &[Site], layer: Option<usize>) -> Vec<Vec<&Site>> {
    let mut experts: Vec<(&str, Vec<&Site>)> = Vec::new();
    for site in sites.iter().filter(|site| site.layer == layer) {
        let Some(expert) = expert_of(&site.path) else { continue };
        match experts.last_mut() {
            Some((last, maps)) if *last == expert => maps.push(site),
            _ => experts.push((expert, vec![site])),
        }
    }
    experts.into_iter().map(|(_, maps)| maps).collect()
}

/// The parameter that factors of this shape adapt, and the maps that it represents: gate and up in one, or
/// the down map.
fn parts_of<'s>(maps: &[&'s Site], d_input: usize, d_output: usize) -> Option<(&'static str, Vec<&'s Site>)> {
    let [gate, up, down] = maps else { return None };
    if [gate.d_input, gate.d_output + up.d_output] == [d_input, d_output] {
        return Some(("gate_up_proj", vec![gate, up]));
    }
    ([down.d_input, down.d_output] == [d_input, d_output]).then(|| ("down_proj", vec![*down]))
}

/// The expression for this map of all experts of a layer.
fn pattern(site: &Site) -> String {
    let list = expert_of(&site.path).and_then(|expert| expert.rsplit_once('.')).map_or("", |(list, _)| list);
    format!(r"{}\.\d+\.{}", list.replace('.', r"\."), site.name())
}
