//! Training with recomputed layers (Chen et al. 2016, «Training Deep Nets with Sublinear Memory Cost»).

use burn::module::Param;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_kernels::Kernels;
use lowrank_models::batch::Rows;
use lowrank_models::{ParamVisitor, Parameter, Parameters, Part, Run, Stack, Tokens};

use crate::error::{Result, TrainError};
use crate::language::{LearntTokens, Scored, TunedDecoder};

/// The loss of a batch and its gradients, of which the backward pass recomputes each layer from its input. Random choices
/// are functions of the mode's seed, so the recomputed layer is identical to the original one.
pub(crate) fn layer_by_layer<B>(
    model: &TunedDecoder<B>,
    batch: &LearntTokens,
    mode: Mode,
    loss: impl FnOnce(Scored<'_, B>) -> Tensor<B, 1>,
) -> Result<(Tensor<B::InnerBackend, 1>, GradientsParams)>
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    let device = model.device()?;
    let (decoder, run) = (model.model(), Run::new(model.adapters(), mode));
    let tokens = Tokens::new(&batch.ids, &batch.lengths);
    let mut inputs = Vec::with_capacity(decoder.n_layers());
    let frozen = burn::module::AutodiffModule::valid(model);
    let last = {
        let (decoder, run) = (frozen.model(), Run::new(frozen.adapters(), mode));
        let packed = decoder.batch(tokens, &device)?;
        (0..decoder.n_layers()).fold(decoder.embed(&packed, run), |x, index| {
            inputs.push(x.clone());
            decoder.layer(index, x, &packed, Rows::All, run)
        })
    };
    drop(frozen);
    let mut accumulator = GradientsAccumulator::new();
    let mut note = |mut grads: B::Gradients, x: Option<&Tensor<B, 2>>| {
        let dx = x.and_then(|x| x.grad_remove(&mut grads));
        accumulator.accumulate(model, GradientsParams::from_grads(grads, model));
        dx
    };
    let leaf = |x: Tensor<B::InnerBackend, 2>| Tensor::<B, 2>::from_inner(x).require_grad();
    let last = leaf(last);
    let loss = loss(Scored::of_hidden(decoder, run, decoder.finish(last.clone(), run), batch));
    let mut dx = note(loss.backward(), Some(&last));
    let packed = decoder.batch(tokens, &device)?;
    for (index, input) in inputs.into_iter().enumerate().rev() {
        let Some(dy) = dx else {
            return Err(TrainError::Batch("the loss does not depend on the layers".into()));
        };
        let input = leaf(input);
        let y = decoder.layer(index, input.clone(), &packed, Rows::All, run);
        dx = note((y * Tensor::from_inner(dy)).sum().backward(), Some(&input));
    }
    if let (Some(dy), true) = (dx, trains_embeddings(model)) {
        note((decoder.embed(&packed, run) * Tensor::from_inner(dy)).sum().backward(), None);
    }
    Ok((loss.inner(), accumulator.grads()))
}

/// Whether a table, or an adapter of one, is trained.
fn trains_embeddings<B: Kernels>(model: &TunedDecoder<B>) -> bool {
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
