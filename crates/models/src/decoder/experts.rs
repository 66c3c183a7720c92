//! A mixture of experts (Shazeer et al. 2017; Jiang et al. 2024): a router assigns every token a probability
//! for each expert, and the `k` most probable ones process it, weighted by their probabilities.
//!
//! Tokens are grouped by expert, so that an expert is one feed-forward layer over the tokens routed to it,
//! and an expert without tokens is not computed. The choice is made on the host. Gradients flow through the
//! weights of the chosen experts to the router, as in transformers; the choice itself has no gradient.

use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::{sigmoid, softmax};
use lowrank_adapters::PickedRows;
use lowrank_adapters::peft::host_values;
use lowrank_kernels::Kernels;

use crate::config::{DecoderConfig, ExpertNames, ExpertsConfig};
use crate::decoder::mlp::Mlp;
use crate::linear::{Linear, LinearSpec, SiteList};
use crate::run::Run;
use crate::visit::{Module as ModulePath, ParamVisitor};

/// The experts of a layer and their router.
#[derive(Module, Debug)]
pub(crate) struct Experts<B: Backend> {
    router: Linear<B>,
    experts: Vec<Mlp<B>>,
    shared: Option<Shared<B>>,
    /// Number of experts per token.
    top_k: usize,
    /// Whether the weights of a token's experts are normalized to sum to 1.
    normalizes: bool,
    #[module(skip)]
    names: ExpertNames,
}

/// A shared expert for all tokens, in addition to those chosen: `sigmoid(gate(x))·mlp(x)`.
#[derive(Module, Debug)]
struct Shared<B: Backend> {
    mlp: Mlp<B>,
    gate: Linear<B>,
}

impl<B: Backend> Experts<B> {
    /// Newly initialized weights of layer `index`.
    pub(crate) fn init(
        config: &DecoderConfig,
        experts: &ExpertsConfig,
        index: usize,
        sites: &mut SiteList,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let (d, names) = (config.d_model, *experts.names);
        let layer = config.names().in_layer(index, "");
        let map = |name: &str, width: usize, bias: bool, sites: &mut SiteList| {
            let path = &format!("{layer}{name}");
            let spec =
                LinearSpec { path, layer: Some(index), shape: [d, width], bias, head: false, conv1d: false };
            sites.linear(spec, seed, device)
        };
        let mlp = |at: &str, d_ff: usize, sites: &mut SiteList| {
            Mlp::init(config, names.maps, (at, index), d_ff, sites, seed, device)
        };
        Self {
            router: map(names.router, experts.count, experts.router_bias, sites),
            experts: (0..experts.count)
                .map(|i| mlp(&format!("{layer}{}.{i}.", names.experts), experts.d_ff, sites))
                .collect(),
            shared: names.shared.zip(experts.shared_d_ff).map(|(shared, d_ff)| Shared {
                mlp: mlp(&format!("{layer}{}.", shared.expert), d_ff, sites),
                gate: map(shared.gate, 1, false, sites),
            }),
            top_k: experts.top_k,
            normalizes: experts.normalizes,
            names,
        }
    }

    /// Visits every parameter; `layer` is the path of the layer with its final dot.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(
        &mut self,
        (layer, index): (&str, usize),
        visitor: &mut V,
    ) {
        let names = self.names;
        let path = |name: &str| format!("{layer}{name}");
        self.router.visit_params(ModulePath::in_layer(&path(names.router), index), visitor);
        for (i, expert) in self.experts.iter_mut().enumerate() {
            expert.visit_params((&format!("{layer}{}.{i}.", names.experts), index), visitor);
        }
        if let (Some(shared), Some(names)) = (&mut self.shared, names.shared) {
            shared.mlp.visit_params((&format!("{layer}{}.", names.expert), index), visitor);
            shared.gate.visit_params(ModulePath::in_layer(&path(names.gate), index), visitor);
        }
    }
}

impl<B: Kernels> Experts<B> {
    /// # Shapes
    /// - x, output: `[rows, d_model]`
    pub(crate) fn forward(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        let ([rows, d_model], k, device) = (x.dims(), self.top_k, x.device());
        let probabilities = softmax(self.router.forward(x.clone(), run), 1); // [rows, experts]
        let choice = Choice::of(&host_values(probabilities.clone()), self.experts.len(), k);
        let chosen = Tensor::from_data(TensorData::new(choice.chosen, [rows, k]), &device);
        let mut weights = probabilities.gather(1, chosen); // [rows, k]
        if self.normalizes {
            weights = weights.clone() / weights.sum_dim(1);
        }
        let parts = choice.rows.iter().zip(&self.experts).filter(|(taken, _)| !taken.is_empty());
        let parts = parts.map(|(taken, expert)| {
            let x = match taken.len() == rows {
                true => x.clone(),
                false => x.clone().select(0, indices(taken.clone(), &device)), // [taken, d_model]
            };
            expert.forward(x, run.on_rows(PickedRows { rows: taken, of: rows }))
        });
        let parts = Tensor::cat(parts.collect(), 0).select(0, indices(choice.places, &device));
        let parts = parts.reshape([rows, k, d_model]) * weights.reshape([rows, k, 1]);
        let routed = parts.sum_dim(1).reshape([rows, d_model]);
        match &self.shared {
            Some(shared) => {
                routed + sigmoid(shared.gate.forward(x.clone(), run)) * shared.mlp.forward(x, run)
            }
            None => routed,
        }
    }
}

/// Assignment of rows to experts.
#[derive(Debug, PartialEq)]
struct Choice {
    /// The experts of each row, the most probable first.
    chosen: Vec<i32>,
    /// The rows of each expert, in ascending order.
    rows: Vec<Vec<i32>>,
    /// Position of each entry of `chosen` in the concatenated rows of all experts.
    places: Vec<i32>,
}

impl Choice {
    /// Routes by `probabilities` `[rows, experts]`; ties go to the first expert.
    fn of(probabilities: &[f32], experts: usize, k: usize) -> Self {
        let mut chosen: Vec<i32> = Vec::with_capacity(probabilities.len() / experts * k);
        let mut order: Vec<i32> = Vec::with_capacity(experts);
        for row in probabilities.chunks_exact(experts) {
            order.clear();
            order.extend(0..experts as i32);
            let descending = |a: &i32, b: &i32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
            if k < experts {
                order.select_nth_unstable_by(k - 1, descending);
            }
            order[..k].sort_unstable_by(descending);
            chosen.extend(&order[..k]);
        }
        let mut rows = vec![Vec::new(); experts];
        for (row, taken) in chosen.chunks_exact(k).enumerate() {
            taken.iter().for_each(|&expert| rows[expert as usize].push(row as i32));
        }
        let mut next: Vec<i32> = rows
            .iter()
            .scan(0, |start, rows: &Vec<i32>| Some(std::mem::replace(start, *start + rows.len() as i32)))
            .collect();
        let place = |&expert: &i32| {
            let next = &mut next[expert as usize];
            std::mem::replace(next, *next + 1)
        };
        let places = chosen.iter().map(place).collect();
        Self { chosen, rows, places }
    }
}

fn indices<B: Backend>(rows: Vec<i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let n = rows.len();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_to_the_likeliest_experts() {
        let choice = Choice::of(&[0.1, 0.2, 0.7, 0.6, 0.1, 0.3, 0.4, 0.2, 0.4], 3, 2);
        assert_eq!(choice.chosen, [2, 1, 0, 2, 0, 2]);
        assert_eq!(choice.rows, [vec![1, 2], vec![0], vec![0, 1, 2]]);
        assert_eq!(choice.places, [3, 2, 0, 4, 1, 5]);
        let all = Choice::of(&[0.5, 0.5, f32::NAN, 0.1], 2, 2);
        assert_eq!(all.chosen, [0, 1, 0, 1]);
    }
}
