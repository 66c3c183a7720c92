//! A set of adapters as a folder.

use std::collections::{BTreeMap, BTreeSet};

use burn::prelude::*;
use lowrank_checkpoint::fuse_experts;
use lowrank_spec::names::expert_of;
use lowrank_spec::targets::has_suffix;
use lowrank_spec::{HostTensor, Pattern, Site, transpose};

use super::config::PeftConfig;
use super::folder::AdapterFolder;
use super::group_key;
use crate::error::{AdapterError, Result};
use crate::host::host_values;
use crate::methods::Adapter;
use crate::set::{AdapterSet, Slot};

impl AdapterFolder {
    /// A set, and the model weights trained with it, as a folder.
    ///
    /// `config` provides what the set does not know (the task, the base model, `modules_to_save`, whether
    /// rsLoRA is meant); type, ranks, alphas and targets are the set's own. `sites` is the model's list.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] for several members, or methods that cannot share a file.
    pub fn from_set<B: Backend>(
        set: &AdapterSet<B>,
        sites: &[Site],
        config: PeftConfig,
        saved: Vec<HostTensor<'static>>,
    ) -> Result<Self> {
        if set.members().len() > 1 {
            return Err(AdapterError::Incompatible(
                "a folder holds one adapter; detach the others first".into(),
            ));
        }
        // gpt-oss's experts, where their modules are saved in full; others are not complete in this form, and stay.
        let has_experts = saved.iter().any(|tensor| expert_of(&tensor.name).is_some());
        let fused = has_experts.then(|| fuse_experts(saved.clone()).ok()).flatten();
        let mut writer = Writer {
            config: config.renewed(),
            tensors: fused.unwrap_or(saved),
            strengths: Vec::new(),
            types: BTreeSet::new(),
            sites,
        };
        writer.config.target_modules = set.target_names();
        writer.config.lora_dropout = set.members().first().map_or(0.0, |m| m.dropout);
        writer.config.use_dora = set.adapters().iter().any(Adapter::depends_on_base);
        writer.config.lora_bias = false;
        for (index, adapter) in set.adapters().iter().enumerate() {
            let slots: Vec<&Slot> = set.slots().iter().filter(|slot| slot.adapter == index).collect();
            adapter.write(&slots, &mut writer)?;
        }
        writer.finish(set)
    }
}

/// A folder under construction: methods add their tensors to it.
#[derive(Debug)]
pub struct Writer<'a> {
    /// The config so far.
    pub config: PeftConfig,
    tensors: Vec<HostTensor<'static>>,
    /// Path, rank and scale of each slot.
    strengths: Vec<(String, usize, f64)>,
    types: BTreeSet<&'static str>,
    sites: &'a [Site],
}

impl Writer<'_> {
    /// The model's site of a slot.
    pub fn site(&self, slot: &Slot) -> &Site {
        &self.sites[slot.site]
    }

    /// Records the `peft_type`, rank and scale of a slot.
    pub fn note(&mut self, peft_type: &'static str, slot: &Slot, rank: usize, scale: f64) {
        self.types.insert(peft_type);
        self.strengths.push((slot.path.clone(), rank, scale));
    }

    /// Records a group's paths; returns the prefix of its keys.
    pub fn group(&mut self, name: &str, slots: &[&Slot]) -> String {
        self.config.groups.push(slots.iter().map(|slot| slot.path.clone()).collect());
        group_key(name, self.config.groups.len() - 1)
    }

    /// Adds a tensor unchanged.
    pub fn plain<B: Backend, const D: usize>(&mut self, name: String, tensor: Tensor<B, D>) {
        let shape = tensor.dims().to_vec();
        self.tensors.push(HostTensor::new(name, shape, host_values(tensor)));
    }

    /// Adds a matrix: `[in, out]` on the device, `(out, in)` in the file.
    pub fn transposed<B: Backend>(&mut self, name: String, tensor: Tensor<B, 2>) {
        let [rows, columns] = tensor.dims();
        let data = transpose(&host_values(tensor), rows, columns);
        self.tensors.push(HostTensor::new(name, [columns, rows], data));
    }

    /// Adds a LoRA pair of a slot.
    pub fn pair<B: Backend>(&mut self, slot: &Slot, a: Tensor<B, 2>, b: Tensor<B, 2>, scale: f64) {
        let (a_name, b_name) = if self.site(slot).embedding {
            ("lora_embedding_A", "lora_embedding_B")
        } else {
            ("lora_A.weight", "lora_B.weight")
        };
        self.note("LORA", slot, b.dims()[0], scale);
        let kernel = self.site(slot).kernel;
        for (name, factor) in [(a_name, a), (b_name, b)] {
            self.transposed(format!("{}.{name}", slot.path), factor);
        }
        // PEFT's factors of a convolution are convolutions, the second of size 1.
        if let (Some([channels, height, width]), [.., a, b]) = (kernel, &mut self.tensors[..]) {
            a.shape = vec![a.shape[0], channels, height, width];
            b.shape.extend([1, 1]);
        }
    }

    fn finish<B: Backend>(mut self, set: &AdapterSet<B>) -> Result<AdapterFolder> {
        let mut types = self.types.iter();
        self.config.peft_type = match (types.next(), types.next()) {
            (None, _) => "HEAD".into(),
            (Some(one), None) => (*one).into(),
            (Some(one), Some(other)) => {
                let text = format!("{one} and {other} adapters cannot share a file; convert one of them");
                return Err(AdapterError::Incompatible(text));
            }
        };
        let dora = set.adapters().iter().filter(|a| a.depends_on_base()).count();
        if dora > 0 && dora < set.adapters().len() {
            let text = "adapters with and without magnitudes cannot share a file";
            return Err(AdapterError::Incompatible(text.into()));
        }
        if self.config.groups.len() == 1 {
            self.config.groups.clear();
        }
        let fused = fused_maps(self.sites);
        let unread = |path: &str| unread(path, fused.is_some());
        if let Some((path, why)) = self.strengths.iter().find_map(|(path, ..)| Some((path, unread(path)?))) {
            tracing::warn!(
                "'{path}' is written as the files of models name it: {why}, and PEFT may leave it out"
            );
        }
        self.note_strengths();
        let paths: Vec<&str> = self.strengths.iter().map(|(path, ..)| path.as_str()).collect();
        if let Some((path, why)) = fused.and_then(|maps| misread(&paths, &self.config, maps)) {
            tracing::warn!("PEFT computes other values with the factors of '{path}': {why}");
        }
        if self.config.lora_bias {
            self.complete_biases();
        }
        let tensors: BTreeMap<_, _> = self.tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        let mut folder = AdapterFolder { config: self.config, tensors, alpha_is_assumed: false };
        if folder.config.ensure_weight_tying {
            folder.part_uses(self.sites);
        }
        Ok(folder)
    }

    /// PEFT has the bias of `lora_bias` at every adapted linear layer or at none.
    fn complete_biases(&mut self) {
        let has = |name: &str| self.tensors.iter().any(|t| t.name == name);
        let mut zeros = Vec::new();
        for (path, ..) in &self.strengths {
            let bias = format!("{path}.lora_B.bias");
            let weight = self.tensors.iter().find(|t| t.name == format!("{path}.lora_B.weight"));
            if let Some(weight) = weight.filter(|_| !has(&bias)) {
                zeros.push(HostTensor::new(bias, [weight.shape[0]], vec![0.0; weight.shape[0]]));
            }
        }
        self.tensors.extend(zeros);
    }

    /// The most common rank and alpha go into `r` and `lora_alpha`, the others into the patterns.
    fn note_strengths(&mut self) {
        let rslora = self.config.use_rslora;
        let alphas = self.strengths.iter().map(|(path, rank, scale)| {
            let alpha = scale * if rslora { (*rank as f64).sqrt() } else { *rank as f64 };
            (path.clone(), *rank, rounded(alpha))
        });
        let alphas: Vec<(String, usize, f64)> = alphas.collect();
        let Some(r) = commonest(alphas.iter().map(|a| a.1)) else { return };
        let alpha = commonest(alphas.iter().map(|a| a.2)).unwrap_or(1.0);
        (self.config.r, self.config.lora_alpha) = (r, alpha);
        let ranks = alphas.iter().filter(|a| a.1 != r).map(|a| (a.0.clone(), a.1));
        self.config.rank_pattern = ranks.collect();
        let others = alphas.iter().filter(|a| a.2 != alpha).map(|a| (a.0.clone(), a.2));
        self.config.alpha_pattern = others.collect();
        let names = alphas.into_iter().map(|a| a.0).collect();
        self.config.target_modules = Some(Pattern::Names(names));
    }
}

/// The names of the experts' maps (gate, up, down) in a model whose experts' factors PEFT converts to fused ones: Mixtral,
/// Qwen3-MoE and OLMoE.
fn fused_maps(sites: &[Site]) -> Option<[&'static str; 3]> {
    // gpt-oss and Qwen2-MoE have experts whose names are those of Qwen3-MoE's.
    let is_other = |path: &str| path.ends_with(".mlp.router") || path.contains(".shared_expert");
    if sites.iter().any(|site| is_other(&site.path)) {
        return None;
    }
    let mut experts = sites.iter().filter(|site| expert_of(&site.path).is_some());
    match experts.next()?.name() {
        "w1" | "w2" | "w3" => Some(["w1", "w3", "w2"]),
        "gate_proj" | "up_proj" | "down_proj" => Some(["gate_proj", "up_proj", "down_proj"]),
        _ => None,
    }
}

/// Why PEFT over transformers 5 has no module of this path; whether it converts the factors of this model's experts.
fn unread(path: &str, converts: bool) -> Option<&'static str> {
    if expert_of(path).is_some() && !converts {
        return Some("transformers 5 keeps the experts of a layer in one parameter");
    }
    if path.ends_with(".mlp.router") {
        return Some("PEFT adapts the router of gpt-oss by target_parameters alone");
    }
    let is_split = path.starts_with("nomic_bert.") || path.starts_with("gte.") || path.contains(".mixer.");
    is_split.then_some("transformers 5 gives the modules of this architecture other names")
}

/// The first adapted map that PEFT's conversion of experts, whose maps have these names, reads with another rank or scale, in
/// the place of another map, or not at all, and why.
fn misread<'p>(
    paths: &[&'p str],
    config: &PeftConfig,
    maps @ [gate, up, down]: [&str; 3],
) -> Option<(&'p str, String)> {
    let (experts, dense): (Vec<&'p str>, Vec<&'p str>) =
        paths.iter().partition(|path| expert_of(path).is_some());
    // Only Mixtral's names are those of its experts alone.
    if let Some(path) =
        dense.into_iter().find(|path| gate != "w1" && maps.iter().any(|map| has_suffix(path, map)))
    {
        return Some((
            path,
            "it takes the name for that of the experts' maps, and leaves dense layers out".into(),
        ));
    }
    let is_own =
        |path: &&&str| config.rank_pattern.get(path).is_some() || config.alpha_pattern.get(path).is_some();
    if let Some(path) = experts.iter().find(is_own) {
        return Some((path, "it gives all experts the config's r and lora_alpha".into()));
    }
    let of = |map: &str| experts.iter().copied().find(|path| has_suffix(path, map));
    let fused = of(gate).or_else(|| of(up))?;
    if [gate, up, down].into_iter().any(|map| of(map).is_none()) {
        return Some((
            fused,
            format!("it expects those of {gate}, {up} and {down} together; adapt all three"),
        ));
    }
    let why = format!("it doubles rank and alpha of {gate} and {up}, which changes the scale of rsLoRA");
    config.use_rslora.then_some((fused, why))
}

/// Twelve digits: the precision to which a quotient and its product with the divisor agree.
fn rounded(alpha: f64) -> f64 {
    if alpha == 0.0 {
        return 0.0;
    }
    let unit = 10f64.powi(11 - alpha.abs().log10().floor() as i32);
    let rounded = (alpha * unit).round() / unit;
    if rounded.is_finite() { rounded } else { alpha }
}

fn commonest<T: PartialEq + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let values: Vec<T> = values.collect();
    let count = |v: &T| values.iter().filter(|w| *w == v).count();
    // The first among equals.
    let mut best: Option<(usize, T)> = None;
    for value in &values {
        let n = count(value);
        if best.is_none_or(|(most, _)| n > most) {
            best = Some((n, *value));
        }
    }
    best.map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn what_peft_would_leave_out_is_known() {
        for path in [
            "model.layers.0.mlp.experts.3.up_proj",
            "nomic_bert.encoder.layers.0.attn.Wqkv",
            "gte.encoder.layer.0.attention.qkv_proj",
            "roberta.encoder.layers.0.mixer.Wqkv",
            "model.layers.0.mlp.router",
        ] {
            assert!(unread(path, false).is_some(), "{path}");
        }
        assert!(unread("model.layers.0.block_sparse_moe.experts.1.w2", true).is_none());
        for path in ["model.layers.0.mlp.up_proj", "lm_head"] {
            assert!(unread(path, false).is_none(), "{path}");
        }
    }

    #[rstest]
    #[case(&["mlp.experts.0.gate_proj", "mlp.experts.0.up_proj"], Some("gate_proj"))]
    #[case(&["block_sparse_moe.gate", "block_sparse_moe.experts.0.w1"], Some("w1"))]
    #[case(&["mlp.experts.0.gate_proj", "mlp.router"], None)]
    #[case(&["mlp.experts.0.gate_proj", "mlp.shared_expert.gate_proj"], None)]
    #[case(&["mlp.gate_proj"], None)]
    fn models_whose_experts_peft_converts_are_known(#[case] paths: &[&str], #[case] gate: Option<&str>) {
        let site = |path: &&str| Site { path: format!("model.layers.0.{path}"), ..Site::default() };
        let sites: Vec<Site> = paths.iter().map(site).collect();
        assert_eq!(fused_maps(&sites).map(|maps| maps[0]), gate);
    }

    /// As PEFT's `_convert_peft_config_moe`.
    #[rstest]
    #[case(&["w1", "w2", "w3"], "", None)]
    #[case(&["w2"], "", None)]
    #[case(&["w2"], r#""use_rslora": true"#, None)]
    #[case(&["w1", "w3"], "", Some("w1"))]
    #[case(&["w3", "w2"], "", Some("w3"))]
    #[case(&["w1", "w2", "w3"], r#""use_rslora": true"#, Some("w1"))]
    #[case(&["w1", "w2", "w3"], r#""alpha_pattern": {"w2": 30}"#, Some("w2"))]
    #[case(&["w1", "w2", "w3"], r#""rank_pattern": {"w3": 4}"#, Some("w3"))]
    #[case(&["w1", "w2", "w3"], r#""alpha_pattern": {"q_proj": 30}"#, None)]
    fn experts_that_peft_would_read_wrongly_are_known(
        #[case] maps: &[&str],
        #[case] keys: &str,
        #[case] expect: Option<&str>,
    ) {
        let comma = if keys.is_empty() { "" } else { "," };
        let of = |names: [&str; 3], list: &str, dense: &[&str]| {
            let rename = |text: &str| {
                let pairs = ["w1", "w3", "w2"].into_iter().zip(names);
                pairs.fold(text.to_owned(), |text, (old, new)| text.replace(old, new))
            };
            let config = format!(r#"{{"peft_type": "LORA"{comma} {}}}"#, rename(keys));
            let config = PeftConfig::parse(&config).unwrap();
            let maps = maps.iter().map(|map| format!("model.layers.0.{list}.experts.1.{}", rename(map)));
            let maps: Vec<String> = maps.collect();
            let attention = ["model.layers.0.self_attn.q_proj"];
            let paths = attention.iter().chain(dense).copied().chain(maps.iter().map(String::as_str));
            let paths: Vec<&str> = paths.collect();
            misread(&paths, &config, names).map(|(path, _)| path.rsplit('.').next().unwrap().to_owned())
        };
        let mixtral = ["w1", "w3", "w2"];
        assert_eq!(of(mixtral, "block_sparse_moe", &[]).as_deref(), expect);
        let qwen = ["gate_proj", "up_proj", "down_proj"];
        let renamed = expect.map(|name| qwen[mixtral.iter().position(|map| *map == name).unwrap()]);
        assert_eq!(of(qwen, "mlp", &[]).as_deref(), renamed);
        // A dense layer's map is taken for the experts'.
        assert_eq!(of(qwen, "mlp", &["model.layers.1.mlp.down_proj"]).as_deref(), Some("down_proj"));
    }

    #[test]
    fn alphas_are_rounded_to_what_a_quotient_keeps() {
        assert_eq!(rounded(7.5 / 3.0 * 3.0), 7.5);
        assert_eq!(rounded(0.0), 0.0);
        assert_eq!(rounded(-0.1), -0.1);
        assert_eq!(rounded(1e-300), 1e-300);
    }
}
