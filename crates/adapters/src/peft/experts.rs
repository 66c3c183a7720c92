//! Adapters on experts as PEFT writes them for transformers 5, which stores the maps of all experts of a layer
//! in one tensor. Their factors are fused too: `A` is `(experts·r, in)`, expert by expert, and `B` is
//! `(out, r·experts)` with the expert as the fastest index. They are split into factors for each expert's maps,
//! named as in the hub's files.
//!
//! | key below `<layer>.mlp.experts` | serves |
//! |---|---|
//! | `base_layer.lora_A.weight` | gate and up in one, or otherwise the down map, whichever has its shape |
//! | `lora_A.weight` | the other |
//!
//! The outputs of gate and up are concatenated, in gpt-oss interleaved.
//!
//! PEFT before 0.19.1 took a parameter's axes for the other way round, but for gpt-oss, whose own are (0.19.0 for gpt-oss alone):
//! `A` is `(experts·r, out)` and `B` is `(in, r·experts)` then, and an expert's update `Aᵀ·Bᵀ`.

use lowrank_spec::names::{expert_of, is_router};
use lowrank_spec::targets::has_suffix;
use lowrank_spec::{HostTensor, Site, SuffixMap};
use serde_json::Value;

use super::folder::AdapterFolder;

/// Suffixes of parameters that represent maps.
const PARAMETERS: [&str; 4] = ["gate_up_proj", "down_proj", "gate.weight", "router.weight"];

/// Whether a config's `target_parameters` are all maps of experts or routers.
pub(super) fn are_maps(parameters: &Value) -> bool {
    let is_map = |name: &str| PARAMETERS.iter().any(|end| has_suffix(name, end));
    parameters.as_array().is_some_and(|all| all.iter().all(|name| name.as_str().is_some_and(is_map)))
}

/// The name in transformers 5 of a router's own weight, which PEFT does not convert as it does factors.
pub(super) fn router_in_module(name: &str) -> Option<String> {
    let layer = name.strip_suffix(".block_sparse_moe.gate.weight")?;
    Some(format!("{layer}.mlp.gate.weight"))
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

    /// Renames a router's factors or weight to its name in the hub's files where transformers 5 uses another (Mixtral's
    /// `block_sparse_moe.gate` is `mlp.gate` there).
    pub(super) fn rename_routers(&mut self, sites: &[Site]) {
        self.rename_tensors(|key| {
            let parts = [".lora_A.weight", ".lora_B.weight", ".weight"];
            let (module, part) = parts.iter().find_map(|part| Some((key.strip_suffix(part)?, part)))?;
            if !is_router(module) || sites.iter().any(|site| site.path == module) {
                return None;
            }
            let (layer, last) = (layer_of(module), module.rsplit('.').next());
            let site = sites.iter().find(|site| site.layer == layer && last == Some(site.name()))?;
            Some(format!("{}{part}", site.path))
        });
    }

    /// Splits fused factors by expert.
    ///
    /// # Errors
    /// Factors whose shapes do not fit the model's experts, or whose rank differs from the config's.
    pub(super) fn unfuse<'s>(&mut self, sites: &'s [Site]) -> Result<(), String> {
        let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
        let version = self.config.other.get("peft_version").and_then(Value::as_str).map(str::to_owned);
        // Among the models with experts only gpt-oss calls its router so.
        let is_interleaved = sites.iter().any(|site| site.path.ends_with(".mlp.router"));
        for module in fused(self) {
            let layer = layer_of(&module);
            let experts = experts(sites, layer);
            let take = |folder: &mut Self, name: &str| {
                let key = format!("{module}.{name}.weight");
                let tensor = folder.tensors.remove(&key).filter(|tensor| tensor.shape.len() == 2);
                tensor.ok_or_else(|| format!("'{key}' is missing, or is not a matrix"))
            };
            let (mut a, mut b) = (take(self, "lora_A")?, take(self, "lora_B")?);
            let count = experts.len();
            let fits = |[d_input, d_output]: [usize; 2]| {
                experts.first().is_some_and(|maps| parts_of(maps, d_input, d_output).is_some())
            };
            if let [&[all, inner], &[outer, columns]] = [&a.shape[..], &b.shape[..]]
                && all == columns
                && count > 0
                && all.is_multiple_of(count)
                && fits([outer, inner])
                && (!fits([inner, outer]) || has_exchanged_axes(version.as_deref(), is_interleaved, &module)?)
            {
                (a, b) = exchanged(&a, &b, count);
            }
            let misfit = || {
                format!(
                    "'{module}' has factors {:?} and {:?}, which are not those of this model's experts",
                    a.shape, b.shape
                )
            };
            let [&[all, d_input], &[d_output, columns]] = [&a.shape[..], &b.shape[..]] else {
                return Err(misfit());
            };
            let parts_of = |maps: &Vec<&'s Site>| parts_of(maps, d_input, d_output);
            let Some((name, parts)) = experts.first().and_then(parts_of) else { return Err(misfit()) };
            if all != columns || all == 0 || !all.is_multiple_of(count) {
                return Err(misfit());
            }
            let rank = all / count;
            let target = format!("{}.{name}", module.trim_end_matches(".base_layer"));
            let given = self.config.rank_of(&target);
            if rank != given {
                let layer = layer.map_or_else(String::new, |layer| format!(" in layer {layer}"));
                return Err(format!(
                    "the factors of the experts' '{name}'{layer} have rank {rank}, and the config gives {given}"
                ));
            }
            let alpha = self.config.alpha_pattern.get(&target).unwrap_or(self.config.lora_alpha);
            ranks.extend(parts.iter().map(|site| (*site, rank)));
            alphas.extend(parts.iter().map(|site| (*site, alpha)));
            for (i, maps) in experts.iter().enumerate() {
                let Some((_, parts)) = parts_of(maps) else { return Err(misfit()) };
                let step = if is_interleaved { parts.len() } else { 1 };
                let mut row = 0;
                for site in parts {
                    let own_a = a.data[i * rank * d_input..(i + 1) * rank * d_input].to_vec();
                    let cells = (0..site.d_output)
                        .flat_map(|o| (0..rank).map(move |r| (row + o * step) * all + r * count + i));
                    let own_b = cells.map(|at| b.data[at]).collect();
                    row += if is_interleaved { 1 } else { site.d_output };
                    for (factor, shape, data) in
                        [("lora_A", vec![rank, d_input], own_a), ("lora_B", vec![site.d_output, rank], own_b)]
                    {
                        let key = format!("{}.{factor}.weight", site.path);
                        self.tensors.insert(key.clone(), HostTensor::new(key, shape, data));
                    }
                }
            }
        }
        let config = &mut self.config;
        config.rank_pattern = with_maps(&ranks, &config.rank_pattern);
        config.alpha_pattern = with_maps(&alphas, &config.alpha_pattern);
        config.other.remove("target_parameters");
        Ok(())
    }
}

/// Whether this version of PEFT takes a parameter's axes for the other way round, for factors that fit both.
fn has_exchanged_axes(version: Option<&str>, is_interleaved: bool, module: &str) -> Result<bool, String> {
    let version = version.ok_or_else(|| {
        format!(
            "the factors of '{module}' fit in two ways, by PEFT before and since 0.19.1, and the config lacks peft_version; \
             add it"
        )
    })?;
    let mut numbers = version.split(['.', '-', '+']).map_while(|number| number.parse::<u32>().ok());
    let number = [0; 3].map(|zero: u32| numbers.next().unwrap_or(zero));
    Ok(if is_interleaved { number == [0, 19, 0] } else { number < [0, 19, 1] })
}

/// Fused factors over exchanged axes as those of the maps: `A` `(experts·r, out)` and `B` `(in, r·experts)` as
/// `(experts·r, in)` and `(out, r·experts)`.
fn exchanged(
    a: &HostTensor<'_>,
    b: &HostTensor<'_>,
    count: usize,
) -> (HostTensor<'static>, HostTensor<'static>) {
    let ([all, d_output], d_input) = ([a.shape[0], a.shape[1]], b.shape[0]);
    let rank = all / count;
    let (mut new_a, mut new_b) = (vec![0.0; all * d_input], vec![0.0; d_output * all]);
    for expert in 0..count {
        for r in 0..rank {
            let (row, column) = (expert * rank + r, r * count + expert);
            for i in 0..d_input {
                new_a[row * d_input + i] = b.data[i * all + column];
            }
            for o in 0..d_output {
                new_b[o * all + column] = a.data[row * d_output + o];
            }
        }
    }
    (
        HostTensor::new(a.name.clone(), [all, d_input], new_a),
        HostTensor::new(b.name.clone(), [d_output, all], new_b),
    )
}

/// The layer of a path.
fn layer_of(path: &str) -> Option<usize> {
    path.split('.').find_map(|segment| segment.parse().ok())
}

/// The maps of each expert of a layer, in the model's order.
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

/// The parameter that factors of this shape adapt, and its maps: gate and up, or down.
fn parts_of<'s>(maps: &[&'s Site], d_input: usize, d_output: usize) -> Option<(&'static str, Vec<&'s Site>)> {
    let [gate, up, down] = maps else { return None };
    if [gate.d_input, gate.d_output + up.d_output] == [d_input, d_output] {
        return Some(("gate_up_proj", vec![gate, up]));
    }
    ([down.d_input, down.d_output] == [d_input, d_output]).then(|| ("down_proj", vec![*down]))
}

/// A pattern with the values of the experts' maps before its own entries: one key for all layers where they have the same
/// value, otherwise a key per layer.
fn with_maps<T: Copy + PartialEq>(maps: &[(&Site, T)], pattern: &SuffixMap<T>) -> SuffixMap<T> {
    let is_uniform = |(site, value): &(&Site, T)| {
        maps.iter().filter(|(other, _)| other.name() == site.name()).all(|(_, other)| other == value)
    };
    let mut entries: Vec<(String, T)> = Vec::new();
    for map in maps {
        let key = key_of(map.0, is_uniform(map));
        if entries.iter().all(|(other, _)| *other != key) {
            entries.push((key, map.1));
        }
    }
    let own = pattern.entries().map(|(key, value)| (key.to_string(), *value));
    entries.into_iter().chain(own).collect()
}

/// The expression that matches a map of all experts, in one layer or in all.
fn key_of(site: &Site, all_layers: bool) -> String {
    let list = expert_of(&site.path).and_then(|expert| expert.rsplit_once('.')).map_or("", |(list, _)| list);
    let list = if all_layers { list.rsplit('.').next().unwrap_or(list) } else { list };
    format!(r"{}\.\d+\.{}", list.replace('.', r"\."), site.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::PeftConfig;
    use rstest::rstest;

    const LAYERS: usize = 2;
    const EXPERTS: usize = 3;
    const WIDTHS: [usize; 2] = [4, 5];

    fn sites() -> Vec<Site> {
        let site = |layer: usize, expert: usize, map: &str| {
            let [d_input, d_output] = if map == "down_proj" { [WIDTHS[1], WIDTHS[0]] } else { WIDTHS };
            let path = format!("model.layers.{layer}.mlp.experts.{expert}.{map}");
            Site { path, layer: Some(layer), d_input, d_output, ..Site::default() }
        };
        let maps = |layer, expert| ["gate_proj", "up_proj", "down_proj"].map(|map| site(layer, expert, map));
        (0..LAYERS).flat_map(|layer| (0..EXPERTS).flat_map(move |expert| maps(layer, expert))).collect()
    }

    /// Factors of `down_proj` of all experts of each layer.
    fn folder(ranks: [usize; LAYERS], config: PeftConfig) -> AdapterFolder {
        let factors = |(layer, rank): (usize, usize)| {
            let all = rank * EXPERTS;
            [("lora_A", [all, WIDTHS[1]]), ("lora_B", [WIDTHS[0], all])].map(|(factor, shape)| {
                let key = format!("model.layers.{layer}.mlp.experts.{factor}.weight");
                (key.clone(), HostTensor::new(key, shape, vec![1.0; shape[0] * shape[1]]))
            })
        };
        let tensors = ranks.into_iter().enumerate().flat_map(factors).collect();
        AdapterFolder { config, tensors, alpha_is_assumed: false }
    }

    fn config(ranks: &[(&str, usize)], alphas: &[(&str, f64)]) -> PeftConfig {
        PeftConfig {
            r: 2,
            lora_alpha: 6.0,
            rank_pattern: ranks.iter().map(|(key, rank)| (key.to_string(), *rank)).collect(),
            alpha_pattern: alphas.iter().map(|(key, alpha)| (key.to_string(), *alpha)).collect(),
            ..PeftConfig::default()
        }
    }

    #[rstest]
    #[case([2, 2], config(&[], &[]), &[r"experts\.\d+\.down_proj"], &[r"experts\.\d+\.down_proj"])]
    #[case(
        [2, 1],
        config(&[("layers.1.mlp.experts.down_proj", 1)], &[]),
        &[
            r"model\.layers\.0\.mlp\.experts\.\d+\.down_proj",
            r"model\.layers\.1\.mlp\.experts\.\d+\.down_proj",
            "layers.1.mlp.experts.down_proj"
        ],
        &[r"experts\.\d+\.down_proj"]
    )]
    #[case(
        [2, 2],
        config(&[], &[("layers.0.mlp.experts.down_proj", 9.0)]),
        &[r"experts\.\d+\.down_proj"],
        &[
            r"model\.layers\.0\.mlp\.experts\.\d+\.down_proj",
            r"model\.layers\.1\.mlp\.experts\.\d+\.down_proj",
            "layers.0.mlp.experts.down_proj"
        ]
    )]
    fn a_key_is_for_all_layers_where_they_agree(
        #[case] ranks: [usize; LAYERS],
        #[case] config: PeftConfig,
        #[case] rank_keys: &[&str],
        #[case] alpha_keys: &[&str],
    ) {
        let mut folder = folder(ranks, config.clone());
        folder.unfuse(&sites()).unwrap();
        let PeftConfig { rank_pattern, alpha_pattern, .. } = &folder.config;
        assert_eq!(rank_pattern.entries().map(|(key, _)| key).collect::<Vec<_>>(), rank_keys);
        assert_eq!(alpha_pattern.entries().map(|(key, _)| key).collect::<Vec<_>>(), alpha_keys);
        for (layer, rank) in ranks.into_iter().enumerate() {
            let path = format!("model.layers.{layer}.mlp.experts.2.down_proj");
            assert_eq!(folder.tensors[&format!("{path}.lora_A.weight")].shape, [rank, WIDTHS[1]]);
            assert_eq!(folder.config.rank_of(&path), rank);
            let target = format!("model.layers.{layer}.mlp.experts.down_proj");
            assert_eq!(alpha_pattern.get(&path), Some(config.alpha_pattern.get(&target).unwrap_or(6.0)));
        }
    }

    /// What is added to the maps of an expert, `[in][out]` each.
    fn updates(folder: &AdapterFolder, sites: &[Site], expert: usize) -> Vec<Vec<f32>> {
        let of = |site: &Site| {
            let [a, b] =
                ["lora_A", "lora_B"].map(|part| &folder.tensors[&format!("{}.{part}.weight", site.path)]);
            let (rank, [d_input, d_output]) = (a.shape[0], [site.d_input, site.d_output]);
            let cell = |i: usize, o: usize| -> f32 {
                (0..rank).map(|r| b.data[o * rank + r] * a.data[r * d_input + i]).sum()
            };
            (0..d_input).flat_map(|i| (0..d_output).map(move |o| cell(i, o))).collect()
        };
        let path = format!("model.layers.0.mlp.experts.{expert}.");
        sites
            .iter()
            .filter(|site| site.path.starts_with(&path))
            .filter(|s| folder.tensors.contains_key(&format!("{}.lora_A.weight", s.path)))
            .map(of)
            .collect()
    }

    /// PEFT 0.18 over transformers 5: `ΔW[e, o, i] = Σ_r A[e·r, o]·B[i, r·e]`.
    #[rstest]
    #[case([4, 5], Some("0.18.1"), true)]
    #[case([4, 5], Some("0.21.0"), true)]
    #[case([4, 2], Some("0.18.1"), true)]
    #[case([4, 2], Some("0.19.0"), true)]
    #[case([4, 2], Some("0.19.1"), false)]
    #[case([4, 2], Some("0.20.0"), false)]
    fn factors_of_older_versions_have_exchanged_axes(
        #[case] widths: [usize; 2],
        #[case] version: Option<&str>,
        #[case] is_exchanged: bool,
    ) {
        let ([width, inner], rank, all) = (widths, 2, 2 * EXPERTS);
        let map = |(expert, name): (usize, &str)| {
            let path = format!("model.layers.0.mlp.experts.{expert}.{name}");
            let [d_input, d_output] = if name == "down_proj" { [inner, width] } else { [width, inner] };
            Site { path, layer: Some(0), d_input, d_output, ..Site::default() }
        };
        let names = ["gate_proj", "up_proj", "down_proj"];
        let sites: Vec<Site> =
            (0..EXPERTS).flat_map(|expert| names.map(|name| map((expert, name)))).collect();
        let values =
            |n: usize, seed: usize| (0..n).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect::<Vec<_>>();
        // gate and up in one, by the older rule: the columns of A are outputs.
        let (a, b) = (values(all * 2 * inner, 3), values(width * all, 1));
        let mut config = config(&[], &[]);
        config.other.extend(version.map(|version| ("peft_version".to_string(), Value::from(version))));
        let name = |part: &str| format!("model.layers.0.mlp.experts.{part}.weight");
        let tensors = [
            (name("lora_A"), HostTensor::new(name("lora_A"), [all, 2 * inner], a.clone())),
            (name("lora_B"), HostTensor::new(name("lora_B"), [width, all], b.clone())),
        ];
        let mut folder = AdapterFolder { config, tensors: tensors.into(), alpha_is_assumed: false };
        folder.unfuse(&sites).unwrap();
        for expert in 0..EXPERTS {
            let delta = |i: usize, o: usize| -> f32 {
                (0..rank)
                    .map(|r| match is_exchanged {
                        true => a[(expert * rank + r) * 2 * inner + o] * b[i * all + r * EXPERTS + expert],
                        false => a[(expert * rank + r) * width + i] * b[o * all + r * EXPERTS + expert],
                    })
                    .sum()
            };
            let part = |first: usize| {
                (0..width).flat_map(|i| (first..first + inner).map(move |o| delta(i, o))).collect::<Vec<_>>()
            };
            assert_eq!(updates(&folder, &sites, expert), [part(0), part(inner)], "expert {expert}");
        }
    }

    #[test]
    fn factors_that_fit_in_two_ways_need_a_version() {
        let error = has_exchanged_axes(None, false, "model.layers.0.mlp.experts").unwrap_err();
        assert!(error.contains("lacks peft_version"), "{error}");
        assert_eq!(has_exchanged_axes(Some("0.19.0"), true, ""), Ok(true), "gpt-oss");
        assert_eq!(has_exchanged_axes(Some("0.18.0"), true, ""), Ok(false), "gpt-oss");
        assert_eq!(has_exchanged_axes(Some("0.19.1.dev0"), false, ""), Ok(false));
    }

    #[test]
    fn a_saved_router_has_its_name_in_transformers() {
        let dir = tempfile::tempdir().unwrap();
        let router = "model.layers.0.block_sparse_moe.gate";
        let tensors = [".weight", ".lora_A.weight"].map(|part| {
            let key = format!("{}{part}", router.replace('0', if part == ".weight" { "0" } else { "1" }));
            (key.clone(), HostTensor::new(key, [1], vec![0.5]))
        });
        let config = PeftConfig { modules_to_save: Some(vec!["gate".into()]), ..PeftConfig::default() };
        let folder = AdapterFolder { config, tensors: tensors.into(), alpha_is_assumed: false };
        folder.write(dir.path()).unwrap();
        let mut read = AdapterFolder::read(dir.path()).unwrap();
        let keys: Vec<&str> = read.tensors.keys().map(String::as_str).collect();
        // Factors are converted by PEFT.
        assert_eq!(
            keys,
            ["model.layers.0.mlp.gate.weight", "model.layers.1.block_sparse_moe.gate.lora_A.weight"]
        );
        read.rename_routers(&[Site { path: router.into(), layer: Some(0), ..Site::default() }]);
        assert!(read.tensors.contains_key(&format!("{router}.weight")));
    }

    #[test]
    fn a_rank_that_is_not_the_configs_names_layer_and_map() {
        let error = folder([2, 1], config(&[], &[])).unfuse(&sites()).unwrap_err();
        assert_eq!(
            error,
            "the factors of the experts' 'down_proj' in layer 1 have rank 1, and the config gives 2"
        );
    }
}
