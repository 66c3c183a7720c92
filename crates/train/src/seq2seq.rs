//! Sequence-to-sequence training of encoder-decoders: summaries, translations, answers.

use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_data::pack::{BatchPlan, Shard};
use lowrank_data::rows::SourceTarget;
use lowrank_kernels::Kernels;
use lowrank_models::batch::Rows;
use lowrank_models::{Run, Seq2Seq, Seq2SeqConfig};

use crate::config::TrainConfig;
use crate::error::Result;
use crate::groups::Groups;
use crate::language::{LearntTokens, Samples, Scored, Tally, eval_order, language_groups};
use crate::objective::{EvalOutput, MicroBatch, Objective, Selection, StepBatches, backward};
use crate::recompute::{Layered, layer_by_layer};
use crate::tuner::Tuned;

/// An encoder-decoder with its adapters.
pub type TunedSeq2Seq<B> = Tuned<B, Seq2Seq<B>>;

/// Packed sources and their targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairedTokens {
    /// Token ids of the sources, all concatenated, shape `[tokens]`.
    pub source: Vec<u32>,
    /// Length of each source.
    pub lengths: Vec<usize>,
    /// What the decoder reads, and the tokens of the targets, all of which are learnt.
    pub target: LearntTokens,
}

impl PairedTokens {
    /// Concatenates rows, which do not attend to each other.
    ///
    /// # Errors
    /// As [`Seq2SeqConfig::decoder_inputs`].
    pub fn pack<'a>(
        rows: impl IntoIterator<Item = &'a SourceTarget>,
        config: &Seq2SeqConfig,
    ) -> Result<Self> {
        let mut batch = Self::default();
        for row in rows {
            batch.source.extend(&row.source);
            batch.lengths.push(row.source.len());
            let targets = row.target.iter().map(|&id| (id, true));
            batch.target.push(&config.decoder_inputs(&row.target)?, targets);
        }
        Ok(batch)
    }
}

/// Cross-entropy of the target tokens; a batch is weighted by their number.
#[derive(Debug)]
pub struct SequencePairs {
    plan: BatchPlan,
    train: Vec<SourceTarget>,
    dev: Vec<SourceTarget>,
    model: Seq2SeqConfig,
    eval_batch: usize,
    recompute: bool,
    samples: Option<Samples>,
}

impl SequencePairs {
    /// Training and evaluation rows for a model of this config; `recompute` keeps only the input of each layer for the
    /// backward pass.
    ///
    /// # Errors
    /// No rows, a batch size that the rows do not fit, a model without a first token.
    pub fn new(
        train: Vec<SourceTarget>,
        dev: Vec<SourceTarget>,
        model: Seq2SeqConfig,
        config: &TrainConfig,
        recompute: bool,
    ) -> Result<Self> {
        let plan = config.plan(train.iter().map(SourceTarget::n_tokens))?;
        PairedTokens::pack(train.iter().take(1), &model)?;
        Ok(Self { plan, train, dev, model, eval_batch: config.batch_size, recompute, samples: None })
    }

    /// Generates texts at each evaluation.
    pub fn with_samples(self, samples: Samples) -> Self {
        Self { samples: Some(samples), ..self }
    }

    /// The order of the training rows.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }
}

/// The batch through the model, up to its head.
fn score<'a, B: Kernels>(
    model: &'a TunedSeq2Seq<B>,
    batch: &PairedTokens,
    mode: Mode,
) -> Result<Scored<'a, B, Seq2Seq<B>>> {
    let device = model.device()?;
    let (model, run) = (model.model(), Run::new(model.adapters(), mode));
    let pairs = model.to_device(batch, &device)?;
    let hidden = model.hidden_states(&model.encode(&pairs.source, run), &pairs.target, Rows::All, run);
    Ok(Scored::of_hidden(model, run, hidden, &batch.target))
}

/// `loss` (mean `−ln p` of the target tokens) and `perplexity` of rows, and `exact`, the fraction whose target greedy
/// decoding would reproduce token for token.
///
/// # Errors
/// Rows that the model does not accept.
pub fn evaluate_pairs<B: Kernels>(
    model: &TunedSeq2Seq<B>,
    rows: &[SourceTarget],
    batch_size: usize,
) -> Result<EvalOutput> {
    let lengths: Vec<usize> = rows.iter().map(SourceTarget::n_tokens).collect();
    let mut tally = Tally::default();
    for part in eval_order(&lengths).chunks(batch_size.max(1)) {
        let batch = PairedTokens::pack(part.iter().map(|&row| &rows[row]), model.model().config())?;
        let scored = score(model, &batch, Mode::EVAL)?;
        tally.add(&scored, &batch.target, std::iter::repeat_n(true, part.len()));
    }
    Ok(tally.output())
}

impl<B> Objective<B> for SequencePairs
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Model = TunedSeq2Seq<B>;
    type Batch = PairedTokens;

    fn batches(&self, step: usize, shard: Shard) -> Result<StepBatches<PairedTokens>> {
        let rows = self.plan.shard_of_step(step, shard);
        let micro = rows.micro.iter().map(|rows| {
            let data = PairedTokens::pack(rows.iter().map(|&row| &self.train[row]), &self.model)?;
            let tokens = data.source.len() + data.target.ids.len();
            Ok(MicroBatch { weight: data.target.n_learnt(), tokens, data })
        });
        Ok(StepBatches { micro: micro.collect::<Result<_>>()?, epoch: rows.epoch })
    }

    fn loss(&self, model: &TunedSeq2Seq<B>, batch: &PairedTokens, mode: Mode) -> Result<Tensor<B, 1>> {
        Ok(score(model, batch, mode)?.nll_sum() / batch.target.n_learnt())
    }

    fn gradients(
        &self,
        model: &TunedSeq2Seq<B>,
        batch: &PairedTokens,
        mode: Mode,
        share: f64,
    ) -> Result<(Tensor<B::InnerBackend, 1>, GradientsParams)> {
        if self.recompute {
            let scale = share / batch.target.n_learnt();
            return layer_by_layer(model, batch, mode, |scored| scored.nll_sum() * scale);
        }
        backward(self.loss(model, batch, mode)? * share, model)
    }

    fn selection(&self) -> Option<Selection> {
        Some(Selection::lowest_loss())
    }

    fn evaluate(&self, model: &TunedSeq2Seq<B::InnerBackend>) -> Result<EvalOutput> {
        let mut output = evaluate_pairs(model, &self.dev, self.eval_batch)?;
        if let Some(samples) = &self.samples {
            output.samples = samples.write(model)?;
        }
        Ok(output)
    }

    fn groups(&self, model: &TunedSeq2Seq<B>) -> Groups {
        language_groups(model)
    }

    fn constrain(&self, model: TunedSeq2Seq<B>) -> Result<TunedSeq2Seq<B>> {
        model.project()
    }
}
