//! Texts written from other texts as an objective of encoder-decoders: summaries, translations, answers.

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::Mode;
use lowrank_data::pack::{BatchPlan, Shard};
use lowrank_data::rows::SourceTarget;
use lowrank_kernels::Kernels;
use lowrank_models::batch::Rows;
use lowrank_models::{Run, Seq2Seq, Tokens};

use crate::config::TrainConfig;
use crate::error::Result;
use crate::groups::Groups;
use crate::language::{LearntTokens, Samples, Scored, Tally, eval_order, language_groups};
use crate::objective::{EvalOutput, MicroBatch, Objective, Selection, StepBatches};
use crate::tuner::Tuned;

/// An encoder-decoder with its adapters.
pub type TunedSeq2Seq<B> = Tuned<B, Seq2Seq<B>>;

/// Packed sources, and the tokens of their targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairedTokens {
    /// Token ids of the sources, all concatenated, shape `[tokens]`.
    pub source: Vec<u32>,
    /// Length of each source.
    pub lengths: Vec<usize>,
    /// Token ids of the targets, all concatenated, shape `[tokens]`.
    pub target: Vec<u32>,
    /// Length of each target.
    pub target_lengths: Vec<usize>,
}

impl PairedTokens {
    /// Concatenates rows, which do not attend to each other.
    pub fn pack<'a>(rows: impl IntoIterator<Item = &'a SourceTarget>) -> Self {
        let mut batch = Self::default();
        for row in rows {
            batch.source.extend(&row.source);
            batch.lengths.push(row.source.len());
            batch.target.extend(&row.target);
            batch.target_lengths.push(row.target.len());
        }
        batch
    }

    /// What the decoder reads, and the tokens that it is to predict: all of the target.
    fn learnt<B: Backend>(&self, model: &Seq2Seq<B>) -> Result<LearntTokens> {
        let mut ids = Vec::with_capacity(self.target.len());
        let mut rest = self.target.as_slice();
        for &length in &self.target_lengths {
            let (target, others) = rest.split_at(length);
            ids.extend(model.decoder_inputs(target)?);
            rest = others;
        }
        Ok(LearntTokens {
            ids,
            lengths: self.target_lengths.clone(),
            targets: self.target.iter().map(|&id| id as i32).collect(),
            weights: vec![1.0; self.target.len()],
        })
    }
}

/// Cross-entropy of the target tokens; a batch is weighted by their number.
#[derive(Debug)]
pub struct SequencePairs {
    plan: BatchPlan,
    train: Vec<SourceTarget>,
    dev: Vec<SourceTarget>,
    eval_batch: usize,
    samples: Option<Samples>,
}

impl SequencePairs {
    /// Training and evaluation rows.
    ///
    /// # Errors
    /// No rows, a batch size that the rows do not fit.
    pub fn new(train: Vec<SourceTarget>, dev: Vec<SourceTarget>, config: &TrainConfig) -> Result<Self> {
        let plan = config.plan(train.iter().map(SourceTarget::n_tokens))?;
        Ok(Self { plan, train, dev, eval_batch: config.batch_size, samples: None })
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
    learnt: &LearntTokens,
    mode: Mode,
) -> Result<Scored<'a, B, Seq2Seq<B>>> {
    let device = model.device()?;
    let (model, run) = (model.model(), Run::new(model.adapters(), mode));
    let source = model.source(Tokens::new(&batch.source, &batch.lengths), &device)?;
    let target = model.target(Tokens::new(&learnt.ids, &learnt.lengths), &device)?;
    let hidden = model.hidden_states(&model.encode(&source, run), &target, Rows::All, run);
    Ok(Scored::of_hidden(model, run, hidden, learnt))
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
        let batch = PairedTokens::pack(part.iter().map(|&row| &rows[row]));
        let learnt = batch.learnt(model.model())?;
        let scored = score(model, &batch, &learnt, Mode::EVAL)?;
        tally.add(&scored, &learnt, std::iter::repeat_n(true, part.len()));
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
            let data = PairedTokens::pack(rows.iter().map(|&row| &self.train[row]));
            MicroBatch {
                weight: data.target.len() as f64,
                tokens: data.source.len() + data.target.len(),
                data,
            }
        });
        Ok(StepBatches { micro: micro.collect(), epoch: rows.epoch })
    }

    fn loss(&self, model: &TunedSeq2Seq<B>, batch: &PairedTokens, mode: Mode) -> Result<Tensor<B, 1>> {
        let learnt = batch.learnt(model.model())?;
        Ok(score(model, batch, &learnt, mode)?.nll_sum() / learnt.n_learnt())
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
