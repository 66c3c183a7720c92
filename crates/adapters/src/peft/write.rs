//! A set of adapters as a folder.

use std::collections::{BTreeMap, BTreeSet};

use burn::prelude::*;

use super::config::PeftConfig;
use super::folder::AdapterFolder;
use super::read::group_key;
use crate::error::{AdapterError, Result};
use crate::host::host_values;
use crate::set::{Adapter, AdapterSet, Slot};
use crate::tt::Chain;
use crate::vera::D_INITIAL;
use lowrank_spec::{HostTensor, Pattern, Site, transpose};

impl AdapterFolder {
    /// A set, and weights of the model that were trained with it, as a folder.
    ///
    /// `config` gives what the set does not know (the task, the base model, `modules_to_save`, whether rsLoRA is meant);
    /// type, ranks, strengths and targets are the set's own. `sites` is the model's list.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] for several members, or methods that no one file holds.
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
        let mut writer = Writer { config, tensors: saved, strengths: Vec::new(), types: BTreeSet::new() };
        writer.config.target_modules = set.target_names();
        writer.config.lora_dropout = set.members().first().map_or(0.0, |m| m.dropout);
        writer.config.use_dora = set.adapters().iter().any(Adapter::is_dora);
        for (index, adapter) in set.adapters().iter().enumerate() {
            let slots: Vec<&Slot> = set.slots().iter().filter(|slot| slot.adapter == index).collect();
            writer.adapter(adapter, &slots, sites)?;
        }
        writer.finish(set)
    }
}

struct Writer {
    config: PeftConfig,
    tensors: Vec<HostTensor<'static>>,
    /// Path, rank and scale of each slot.
    strengths: Vec<(String, usize, f64)>,
    types: BTreeSet<&'static str>,
}

impl Writer {
    fn adapter<B: Backend>(&mut self, adapter: &Adapter<B>, slots: &[&Slot], sites: &[Site]) -> Result<()> {
        match adapter {
            Adapter::Lora(lora) => {
                let (slot, (a, b)) = (slots[0], lora.factors());
                self.pair(slot, &sites[slot.site], a, b, lora.scale);
                if let Some(magnitude) = &lora.magnitude {
                    self.plain(format!("{}.lora_magnitude_vector", slot.path), magnitude.value.val());
                }
            }
            Adapter::Correction(correction) => {
                for slot in slots {
                    let (a, b) = correction.factors(slot.slice)?;
                    self.pair(slot, &sites[slot.site], a, b, 1.0);
                }
            }
            Adapter::Lotr(lotr) => {
                let lotr = lotr.without_start();
                let key = self.group("lotr", slots);
                self.types.insert("LOTR");
                self.transposed(format!("{key}.left.weight"), lotr.left.val());
                self.transposed(format!("{key}.right.weight"), lotr.right.val());
                for slot in slots {
                    let core = lotr.cores[slot.slice].val();
                    self.transposed(format!("{}.lotr_core.weight", slot.path), core);
                    self.strengths.push((slot.path.clone(), lotr.rank(), lotr.scale));
                }
            }
            Adapter::Lorta(lorta) => {
                let key = self.group("lorta", slots);
                self.types.insert("LORTA");
                for (name, factor) in [
                    ("a", &lorta.a),
                    ("b", &lorta.b),
                    ("heads", &lorta.heads),
                    ("layers", &lorta.layers),
                    ("kinds", &lorta.kinds),
                ] {
                    self.plain(format!("{key}.{name}"), factor.val());
                }
                let strength = |slot: &&Slot| (slot.path.clone(), lorta.rank(), lorta.scale);
                self.strengths.extend(slots.iter().map(strength));
            }
            Adapter::Vera(vera) => {
                self.types.insert("VERA");
                self.transposed("vera_A".into(), vera.a.clone());
                self.transposed("vera_B".into(), vera.b.clone());
                for slot in slots {
                    let vectors = &vera.vectors[slot.slice];
                    self.plain(format!("{}.vera_lambda_d", slot.path), vectors.inner.val());
                    self.plain(format!("{}.vera_lambda_b", slot.path), vectors.output.val());
                    self.strengths.push((slot.path.clone(), vera.rank(), 1.0));
                }
                self.config.other.entry("d_initial").or_insert(f64::from(D_INITIAL).into());
            }
            Adapter::Tt(tt) => {
                let slot = slots[0];
                // Where the rank has a core of its own, the train is LoRETTA's.
                let mode = tt.left.cores.last().map_or(0, |core| core.dims()[1]);
                self.types.insert(if mode == 1 { "LORETTA" } else { "TT_LORA" });
                // The modes may be padded: the file says how wide the layer is.
                let widths = self.config.other.entry("widths").or_insert_with(|| serde_json::json!({}));
                widths[slot.path.as_str()] = serde_json::json!([tt.left.rows, tt.right.rows]);
                self.chain(&format!("{}.tt_left", slot.path), &tt.left);
                self.chain(&format!("{}.tt_right", slot.path), &tt.right);
                let rank = tt.left.cores.last().map_or(0, |core| core.dims()[2]);
                self.strengths.push((slot.path.clone(), rank, tt.scale));
            }
        }
        Ok(())
    }

    fn pair<B: Backend>(&mut self, slot: &Slot, site: &Site, a: Tensor<B, 2>, b: Tensor<B, 2>, scale: f64) {
        self.types.insert("LORA");
        let (a_name, b_name) = if site.embedding {
            ("lora_embedding_A", "lora_embedding_B")
        } else {
            ("lora_A.weight", "lora_B.weight")
        };
        self.strengths.push((slot.path.clone(), b.dims()[0], scale));
        self.transposed(format!("{}.{a_name}", slot.path), a);
        self.transposed(format!("{}.{b_name}", slot.path), b);
    }

    fn chain<B: Backend>(&mut self, key: &str, chain: &Chain<B>) {
        for (k, core) in chain.cores.iter().enumerate() {
            self.plain(format!("{key}.{k}"), core.val());
        }
    }

    /// Notes a group's paths; the head of its keys.
    fn group(&mut self, name: &str, slots: &[&Slot]) -> String {
        self.config.groups.push(slots.iter().map(|slot| slot.path.clone()).collect());
        group_key(name, self.config.groups.len() - 1)
    }

    fn plain<B: Backend, const D: usize>(&mut self, name: String, tensor: Tensor<B, D>) {
        let shape = tensor.dims().to_vec();
        self.tensors.push(HostTensor::new(name, shape, host_values(tensor)));
    }

    /// `[in, out]` on the device → `(out, in)` on the host.
    fn transposed<B: Backend>(&mut self, name: String, tensor: Tensor<B, 2>) {
        let [rows, columns] = tensor.dims();
        let data = transpose(&host_values(tensor), rows, columns);
        self.tensors.push(HostTensor::new(name, [columns, rows], data));
    }

    fn finish<B: Backend>(mut self, set: &AdapterSet<B>) -> Result<AdapterFolder> {
        let mut types = self.types.iter();
        self.config.peft_type = match (types.next(), types.next()) {
            (None, _) => "HEAD".into(),
            (Some(one), None) => (*one).into(),
            (Some(one), Some(other)) => {
                let text = format!("{one} and {other} adapters do not go into one file; convert one of them");
                return Err(AdapterError::Incompatible(text));
            }
        };
        let dora = set.adapters().iter().filter(|a| a.is_dora()).count();
        if dora > 0 && dora < set.adapters().len() {
            let text = "adapters with magnitudes and without do not go into one file";
            return Err(AdapterError::Incompatible(text.into()));
        }
        if self.config.groups.len() == 1 {
            self.config.groups.clear();
        }
        self.note_strengths();
        let tensors: BTreeMap<_, _> = self.tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        Ok(AdapterFolder { config: self.config, tensors, alpha_is_assumed: false })
    }

    /// The commonest rank and alpha go into `r` and `lora_alpha`, the others into the patterns.
    fn note_strengths(&mut self) {
        let rslora = self.config.use_rslora;
        let alphas = self.strengths.iter().map(|(path, rank, scale)| {
            let alpha = scale * if rslora { (*rank as f64).sqrt() } else { *rank as f64 };
            // Twelve digits: what a quotient and its product with the divisor agree on.
            let unit = 10f64.powi(11 - alpha.abs().log10().floor() as i32);
            (path.clone(), *rank, (alpha * unit).round() / unit)
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
