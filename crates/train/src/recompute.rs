//! Training with recomputed layers (Chen et al. 2016, «Training Deep Nets with Sublinear Memory Cost»).

use burn::module::{AutodiffModule, ModuleDisplay, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_kernels::Kernels;
use lowrank_models::batch::Rows;
use lowrank_models::{
    Decoder, LanguageModel, PairBatch, ParamVisitor, Parameter, Part, Run, Seq2Seq, Stack, TokenBatch, Tokens,
};

use crate::error::{Result, TrainError};
use crate::language::{LearntTokens, Scored};
use crate::seq2seq::PairedTokens;
use crate::tuner::Tuned;

/// A language model as a sequence of layers, between which `N` tensors of hidden states pass.
pub(crate) trait Layered<B: Kernels, const N: usize>: LanguageModel<B> + ModuleDisplay {
    /// A batch on the host.
    type Tokens;
    /// The same on the device.
    type Batch;

    /// The tokens whose hidden states the head reads.
    fn learnt(tokens: &Self::Tokens) -> &LearntTokens;

    fn to_device(&self, tokens: &Self::Tokens, device: &B::Device) -> Result<Self::Batch>;

    fn n_layers(&self) -> usize;

    /// # Shapes
    /// - output: each `[tokens, d_model]`
    fn embed(&self, batch: &Self::Batch, run: Run<'_, B>) -> [Tensor<B, 2>; N];

    /// # Shapes
    /// - x, output: each `[tokens, d_model]`
    fn layer(
        &self,
        index: usize,
        x: [Tensor<B, 2>; N],
        batch: &Self::Batch,
        run: Run<'_, B>,
    ) -> [Tensor<B, 2>; N];

    /// What the head reads, from the output of the last layer.
    fn finish(&self, x: [Tensor<B, 2>; N], run: Run<'_, B>) -> Tensor<B, 2>;
}

impl<B: Kernels> Layered<B, 1> for Decoder<B> {
    type Tokens = LearntTokens;
    type Batch = TokenBatch<B>;

    fn learnt(tokens: &LearntTokens) -> &LearntTokens {
        tokens
    }

    fn to_device(&self, tokens: &LearntTokens, device: &B::Device) -> Result<TokenBatch<B>> {
        Ok(self.batch(Tokens::new(&tokens.ids, &tokens.lengths), device)?)
    }

    fn n_layers(&self) -> usize {
        Stack::n_layers(self)
    }

    fn embed(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> [Tensor<B, 2>; 1] {
        [Stack::embed(self, batch, run)]
    }

    fn layer(
        &self,
        index: usize,
        [x]: [Tensor<B, 2>; 1],
        batch: &TokenBatch<B>,
        run: Run<'_, B>,
    ) -> [Tensor<B, 2>; 1] {
        [Stack::layer(self, index, x, batch, Rows::All, run)]
    }

    fn finish(&self, [x]: [Tensor<B, 2>; 1], run: Run<'_, B>) -> Tensor<B, 2> {
        Stack::finish(self, x, run)
    }
}

impl<B: Kernels> Layered<B, 2> for Seq2Seq<B> {
    type Tokens = PairedTokens;
    type Batch = PairBatch<B>;

    fn learnt(tokens: &PairedTokens) -> &LearntTokens {
        &tokens.target
    }

    fn to_device(&self, tokens: &PairedTokens, device: &B::Device) -> Result<PairBatch<B>> {
        let PairedTokens { source, lengths, target } = tokens;
        let both = [Tokens::new(source, lengths), Tokens::new(&target.ids, &target.lengths)];
        Ok(self.pairs(both, device)?)
    }

    fn n_layers(&self) -> usize {
        Seq2Seq::n_layers(self)
    }

    fn embed(&self, batch: &PairBatch<B>, run: Run<'_, B>) -> [Tensor<B, 2>; 2] {
        Seq2Seq::embed(self, batch, run)
    }

    fn layer(
        &self,
        index: usize,
        x: [Tensor<B, 2>; 2],
        batch: &PairBatch<B>,
        run: Run<'_, B>,
    ) -> [Tensor<B, 2>; 2] {
        Seq2Seq::layer(self, index, x, batch, run)
    }

    fn finish(&self, [_, target]: [Tensor<B, 2>; 2], run: Run<'_, B>) -> Tensor<B, 2> {
        Seq2Seq::finish(self, target, run)
    }
}

/// The loss of a batch and its gradients, of which the backward pass recomputes each layer from its input. Random choices
/// are functions of the mode's seed, so the recomputed layer is identical to the original one.
pub(crate) fn layer_by_layer<B, M, T, const N: usize>(
    model: &Tuned<B, M>,
    tokens: &T,
    mode: Mode,
    loss: impl FnOnce(Scored<'_, B, M>) -> Tensor<B, 1>,
) -> Result<(Tensor<B::InnerBackend, 1>, GradientsParams)>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    M: Layered<B, N, Tokens = T> + AutodiffModule<B, InnerModule: Layered<B::InnerBackend, N, Tokens = T>>,
{
    let device = model.device()?;
    let (network, run) = (model.model(), Run::new(model.adapters(), mode));
    let mut inputs = Vec::with_capacity(network.n_layers());
    let frozen = model.valid();
    let last = {
        let (network, run) = (frozen.model(), Run::new(frozen.adapters(), mode));
        let batch = network.to_device(tokens, &device)?;
        (0..network.n_layers()).fold(network.embed(&batch, run), |x, index| {
            inputs.push(x.clone());
            network.layer(index, x, &batch, run)
        })
    };
    drop(frozen);
    let mut accumulator = GradientsAccumulator::new();
    // The gradients of the inputs `x`, `None` for those that the loss does not depend on.
    let mut note = |mut grads: B::Gradients, x: &[Tensor<B, 2>; N]| {
        let dx = std::array::from_fn(|i| x[i].grad_remove(&mut grads));
        accumulator.accumulate(model, GradientsParams::from_grads(grads, model));
        dx
    };
    let leaves = |x: [Tensor<B::InnerBackend, 2>; N]| x.map(|x| Tensor::from_inner(x).require_grad());
    let last = leaves(last);
    let hidden = network.finish(last.clone(), run);
    let loss = loss(Scored::of_hidden(network, run, hidden, M::learnt(tokens)));
    let mut dx = note(loss.backward(), &last);
    let batch = network.to_device(tokens, &device)?;
    for (index, input) in inputs.into_iter().enumerate().rev() {
        let input = leaves(input);
        let y = network.layer(index, input.clone(), &batch, run);
        let Some(sum) = along(y, dx) else {
            return Err(TrainError::Batch("the loss does not depend on the layers".into()));
        };
        dx = note(sum.backward(), &input);
    }
    if trains_embeddings(model)
        && let Some(sum) = along(network.embed(&batch, run), dx)
    {
        accumulator.accumulate(model, GradientsParams::from_grads(sum.backward(), model));
    }
    Ok((loss.inner(), accumulator.grads()))
}

/// `Σ y·dy` over those with a gradient, shape `[1]`: its gradients are those of the loss.
fn along<B: AutodiffBackend, const N: usize>(
    y: [Tensor<B, 2>; N],
    dy: [Option<Tensor<B::InnerBackend, 2>>; N],
) -> Option<Tensor<B, 1>> {
    let terms = y.into_iter().zip(dy).filter_map(|(y, dy)| Some((y * Tensor::from_inner(dy?)).sum()));
    terms.reduce(|sum, term| sum + term)
}

/// Whether a table, or an adapter of one, is trained.
fn trains_embeddings<B: Kernels, M: LanguageModel<B>>(model: &Tuned<B, M>) -> bool {
    let sites = model.model().sites();
    if model.adapters().slots().iter().any(|slot| sites[slot.site].embedding) {
        return true;
    }
    let mut tables = TrainedTables(false);
    model.model().clone().visit_params(&mut tables);
    tables.0
}

struct TrainedTables(bool);

impl<B: Backend> ParamVisitor<B> for TrainedTables {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        self.0 |= at.module.part == Part::Embeddings && param.is_require_grad();
    }
}
