//! The sites that an adapter file speaks of, without a model: for algebra on adapters alone.

use std::path::Path;

use super::folder::AdapterFolder;
use super::read::group_key;
use crate::error::{AdapterError, Result};
use lowrank_spec::Site;
use lowrank_spec::targets::Pattern;

impl AdapterFolder {
    /// A site for each adapted module, its widths taken from the factors' shapes.
    ///
    /// # Errors
    /// [`AdapterError::Config`] for VeRA, whose files do not tell how wide a layer's input is;
    /// [`AdapterError::Tensors`] for factors of other than two dimensions.
    pub fn own_sites(&self, path: &Path) -> Result<Vec<Site>> {
        let bad = |reason: &str| AdapterError::Config { path: path.to_path_buf(), reason: reason.into() };
        let mut widths: Vec<(String, ([usize; 2], bool))> = Vec::new();
        match self.config.peft_type.as_str() {
            "LORA" => {
                for (names, embedding) in [
                    ([".lora_A.weight", ".lora_B.weight"], false),
                    ([".lora_embedding_A", ".lora_embedding_B"], true),
                ] {
                    for key in self.tensors.keys() {
                        let Some(module) = key.strip_suffix(names[0]) else { continue };
                        let d_input = self.side(key, 1).unwrap_or(0);
                        let d_output = self.side(&format!("{module}{}", names[1]), 0).unwrap_or(0);
                        widths.push((module.into(), ([d_input, d_output], embedding)));
                    }
                }
            }
            "LOTR" | "LORTA" => {
                for (index, group) in self.own_groups().into_iter().enumerate() {
                    let (d_input, d_output) = if self.config.peft_type == "LOTR" {
                        let key = group_key("lotr", index);
                        (
                            self.side(&format!("{key}.left.weight"), 1),
                            self.side(&format!("{key}.right.weight"), 0),
                        )
                    } else {
                        let key = group_key("lorta", index);
                        let heads = self.side(&format!("{key}.heads"), 1).unwrap_or(1);
                        (
                            self.side(&format!("{key}.a"), 0),
                            self.side(&format!("{key}.b"), 1).map(|w| w * heads),
                        )
                    };
                    for module in group {
                        widths.push((module, ([d_input.unwrap_or(0), d_output.unwrap_or(0)], false)));
                    }
                }
            }
            "LORETTA" | "TT_LORA" => {
                for (module, sides) in
                    self.config.other.get("widths").and_then(|w| w.as_object()).into_iter().flatten()
                {
                    let side = |at: usize| sides[at].as_u64().unwrap_or(0) as usize;
                    widths.push((module.clone(), ([side(0), side(1)], false)));
                }
            }
            "VERA" => {
                return Err(bad(
                    "VeRA's files do not hold the widths of the layers; give the model too (--model)",
                ));
            }
            _ => {}
        }
        if widths.is_empty() {
            return Err(bad("holds no factors: a head alone, or nothing"));
        }
        let site = |(path, ([d_input, d_output], embedding)): (String, ([usize; 2], bool))| Site {
            layer: path.split('.').find_map(|segment| segment.parse().ok()),
            path,
            d_input,
            d_output,
            head: false,
            embedding,
        };
        let mut sites: Vec<Site> = widths.into_iter().map(site).collect();
        // Layer 10 comes after layer 9. LoRTA's factors are in the order in which its config names the modules.
        if self.config.peft_type != "LORTA" {
            sites.sort_by_key(|site| site.layer);
        }
        Ok(sites)
    }

    /// The paths of each group.
    fn own_groups(&self) -> Vec<Vec<String>> {
        if !self.config.groups.is_empty() {
            return self.config.groups.clone();
        }
        let cores: Vec<String> = self
            .tensors
            .keys()
            .filter_map(|key| key.strip_suffix(".lotr_core.weight"))
            .map(str::to_string)
            .collect();
        match (&self.config.target_modules, cores.is_empty()) {
            (Some(Pattern::Names(names)), true) => vec![names.clone()],
            _ => vec![cores],
        }
    }

    /// A side of a matrix.
    fn side(&self, key: &str, at: usize) -> Option<usize> {
        self.tensors.get(key).filter(|t| t.shape.len() == 2).map(|t| t.shape[at])
    }
}
