//! Tensors that an adapter folder carries beside its factors: heads, other modules saved in full, biases.

use std::collections::BTreeSet;

use super::config::PeftConfig;
use lowrank_spec::HostTensor;

/// Weights of the model that were trained and saved with an adapter, by the model's own keys.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// In PyTorch's layout.
    pub tensors: Vec<HostTensor<'static>>,
    config: PeftConfig,
    /// Paths of the adapted modules.
    adapted: BTreeSet<String>,
}

impl Saved {
    pub(super) fn new(
        tensors: Vec<HostTensor<'static>>,
        config: PeftConfig,
        adapted: BTreeSet<String>,
    ) -> Self {
        Self { tensors, config, adapted }
    }

    /// Whether there is nothing to load.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether a parameter of the model must be among the tensors: its module is saved in full, or it is a bias of the
    /// kind that is trained.
    pub fn expects(&self, key: &str) -> bool {
        let (module, name) = key.rsplit_once('.').unwrap_or(("", key));
        let bias = name == "bias"
            && match self.config.bias.as_str() {
                "all" => true,
                "lora_only" | "vera_only" => self.adapted.contains(module),
                _ => false,
            };
        bias || self.config.saves(module)
    }

    /// Whether a tensor of the file may be there. PEFT takes a module that has a saved one's name anywhere in its own.
    pub(super) fn allows(&self, name: &str) -> bool {
        let names = self.config.modules_to_save.iter().flatten();
        let by_name = names.into_iter().any(|saved| name.contains(saved.as_str()));
        by_name || (name.ends_with(".bias") && self.config.bias != "none")
    }
}
