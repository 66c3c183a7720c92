//! Mixtures of experts: their number and the routing of tokens.

use crate::config::decoder::DecoderConfig;
use crate::config::file::MAX_DIM;
use crate::config::keys::Keys;
use crate::config::names::ExpertNames;

/// Maximum number of experts per layer.
const MAX_EXPERTS: usize = 1024;

/// The experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// Names of their tensors.
    pub names: &'static ExpertNames,
    /// Number of experts.
    pub count: usize,
    /// Number of experts per token.
    pub top_k: usize,
    /// Inner width of an expert.
    pub d_ff: usize,
    /// Inner width of the shared expert, if there is one.
    pub shared_d_ff: Option<usize>,
    /// Whether the weights of a token's experts are normalized to sum to 1.
    pub normalizes: bool,
    /// Whether the router has a bias.
    pub router_bias: bool,
}

impl ExpertsConfig {
    /// Experts with their inner width under the key `d_ff`, and their number under the first of the keys `counts` that the
    /// config has; both numbers have defaults: of experts, and per token.
    pub(crate) fn read(
        keys: &Keys<'_>,
        names: &'static ExpertNames,
        d_ff: &str,
        counts: &[&str],
        defaults: [usize; 2],
    ) -> Result<Self, String> {
        let count = counts.iter().find(|key| keys.get(key).is_some());
        let count =
            count.map_or(Ok(None), |key| keys.optional_size(key, MAX_EXPERTS))?.unwrap_or(defaults[0]);
        let top_k = keys.size_or("num_experts_per_tok", defaults[1])?;
        if top_k > count {
            return Err(format!(
                "num_experts_per_tok = {top_k} is out of range; expected 1..={count}, the number of experts"
            ));
        }
        Ok(Self {
            names,
            count,
            top_k,
            d_ff: keys.size(d_ff)?,
            shared_d_ff: None,
            normalizes: true,
            router_bias: false,
        })
    }
}

impl DecoderConfig {
    /// Whether files store the experts of a layer in one tensor per map.
    pub fn fuses_experts(&self) -> bool {
        self.experts.is_some_and(|experts| experts.names.is_fused)
    }

    /// Gives every layer experts.
    pub(crate) fn with_experts(mut self, experts: ExpertsConfig) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.experts = true);
        Self { experts: Some(experts), ..self }
    }

    /// Gives experts to every `decoder_sparse_step`-th layer but those in `mlp_only_layers`.
    pub(crate) fn with_sparse_layers(self, keys: &Keys<'_>, experts: ExpertsConfig) -> Result<Self, String> {
        let step = keys.optional_size("decoder_sparse_step", MAX_DIM)?.unwrap_or(1);
        let dense = keys.numbers("mlp_only_layers")?.unwrap_or_default();
        let mut config = self.with_experts(experts);
        for (index, layer) in config.layers.iter_mut().enumerate() {
            layer.experts = (index + 1).is_multiple_of(step) && !dense.contains(&(index as f64));
        }
        Ok(config)
    }
}
