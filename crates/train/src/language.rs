//! Next-token prediction as an objective: plain text, completions and conversations.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_data::pack::{BatchPlan, Shard};
use lowrank_data::rows::{SourceTarget, TokenRow};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_kernels::Kernels;
use lowrank_models::batch::{Rows, int_tensor};
use lowrank_models::decoder::{Generated, GenerationOptions};
use lowrank_models::{Decoder, LanguageModel, Run, Stack, Tokens};

use crate::config::TrainConfig;
use crate::error::Result;
use crate::groups::Groups;
use crate::objective::{EvalOutput, MicroBatch, Objective, Selection, StepBatches, backward, scalar};
use crate::recompute::layer_by_layer;
use crate::tuner::Tuned;

/// A language model with its adapters.
pub type TunedDecoder<B> = Tuned<B, Decoder<B>>;

/// Packed sequences of a language model: each token's successor, and whether it is a target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearntTokens {
    /// Token ids, all sequences concatenated, shape `[tokens]`.
    pub ids: Vec<u32>,
    /// Length of each sequence.
    pub lengths: Vec<usize>,
    /// The next token of each, shape `[tokens]`; arbitrary if the weight is 0.
    pub targets: Vec<i32>,
    /// 1 if the next token is a target, else 0; shape `[tokens]`.
    pub weights: Vec<f32>,
}

impl LearntTokens {
    /// Concatenates rows, which do not attend to each other.
    pub fn pack<'a>(rows: impl IntoIterator<Item = &'a TokenRow>) -> Self {
        let mut batch = Self::default();
        for row in rows {
            let next = row.ids.iter().copied().zip(row.is_learnt.iter().copied()).skip(1);
            batch.push(&row.ids, next.chain([(0, false)]));
        }
        batch
    }

    /// Adds a sequence, with the next token of each of its tokens and whether that is a target.
    pub(crate) fn push(&mut self, ids: &[u32], next: impl IntoIterator<Item = (u32, bool)>) {
        self.ids.extend(ids);
        self.lengths.push(ids.len());
        for (id, is_learnt) in next {
            self.targets.push(id as i32);
            self.weights.push(f32::from(u8::from(is_learnt)));
        }
    }

    /// Number of target tokens.
    pub fn n_learnt(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// Targets and weights on a device.
    fn labels<B: Backend>(&self, device: &B::Device) -> (Tensor<B, 1, Int>, Tensor<B, 1>) {
        let n = self.weights.len();
        let weights = Tensor::from_data(TensorData::new(self.weights.clone(), [n]), device);
        (int_tensor(self.targets.clone(), device), weights)
    }
}

/// A batch that has passed through a model, up to its head.
pub(crate) struct Scored<'a, B: Kernels, M = Decoder<B>> {
    model: &'a M,
    run: Run<'a, B>,
    /// Shape `[tokens, d_model]`.
    hidden: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    weights: Tensor<B, 1>,
}

impl<'a, B: Kernels> Scored<'a, B> {
    pub(crate) fn new(
        model: &'a Decoder<B>,
        adapters: &'a AdapterSet<B>,
        batch: &LearntTokens,
        mode: Mode,
        device: &B::Device,
    ) -> Result<Self> {
        let run = Run::new(adapters, mode);
        let tokens = model.batch(Tokens::new(&batch.ids, &batch.lengths), device)?;
        let hidden = model.hidden_states(&tokens, Rows::All, run);
        Ok(Self::of_hidden(model, run, hidden, batch))
    }
}

impl<'a, B: Kernels, M: LanguageModel<B>> Scored<'a, B, M> {
    /// Of the hidden states of a batch, shape `[tokens, d_model]`.
    pub(crate) fn of_hidden(
        model: &'a M,
        run: Run<'a, B>,
        hidden: Tensor<B, 2>,
        batch: &LearntTokens,
    ) -> Self {
        let (targets, weights) = batch.labels(&hidden.device());
        Self { model, run, hidden, targets, weights }
    }

    /// `Σ −ln p` of the target tokens, shape `[1]`.
    pub(crate) fn nll_sum(&self) -> Tensor<B, 1> {
        self.model.nll_sum(self.hidden.clone(), self.targets.clone(), self.weights.clone(), self.run)
    }

    /// `Σ ln p` of the target tokens of each sequence, shape `[sequences]`.
    pub(crate) fn log_probabilities(&self, lengths: &[usize]) -> Tensor<B, 1> {
        let mut start = 0;
        let sequences = lengths.iter().map(|&n| {
            let at = start;
            start += n;
            let part = |tensor: &Tensor<B, 1>| tensor.clone().narrow(0, at, n);
            let (hidden, targets) =
                (self.hidden.clone().narrow(0, at, n), self.targets.clone().narrow(0, at, n));
            self.model.nll_sum(hidden, targets, part(&self.weights), self.run).neg()
        });
        Tensor::cat(sequences.collect(), 0)
    }

    /// Whether the most probable token is the target, for each of these rows of the batch.
    fn hits(&self, batch: &LearntTokens, rows: &[usize]) -> Vec<bool> {
        let device = self.hidden.device();
        rows.chunks(HEAD_ROWS)
            .flat_map(|rows| {
                let places = int_tensor(rows.iter().map(|&row| row as i32).collect(), &device);
                let logits = self.model.logits(self.hidden.clone().select(0, places), self.run);
                let best: Vec<i64> = logits.argmax(1).into_data().iter::<i64>().collect();
                rows.iter()
                    .zip(best)
                    .map(|(&row, id)| id == i64::from(batch.targets[row]))
                    .collect::<Vec<bool>>()
            })
            .collect()
    }
}

/// Rows of logits that exist at a time: a vocabulary of 128,000 takes 64 MB.
const HEAD_ROWS: usize = 128;

/// `Σ −ln p` of the target tokens of a batch, shape `[1]`.
///
/// # Errors
/// Tokens that the model does not accept.
pub fn nll_sum<B: Kernels>(
    model: &Decoder<B>,
    adapters: &AdapterSet<B>,
    batch: &LearntTokens,
    mode: Mode,
    device: &B::Device,
) -> Result<Tensor<B, 1>> {
    Ok(Scored::new(model, adapters, batch, mode, device)?.nll_sum())
}

/// `loss` (mean `−ln p` of the target tokens) and `perplexity` of rows; for rows that begin with a prompt
/// also `exact`, the fraction whose answer greedy decoding would reproduce token for token.
///
/// # Errors
/// No target tokens, tokens that the model does not accept.
pub fn evaluate_rows<B: Kernels>(
    model: &TunedDecoder<B>,
    rows: &[TokenRow],
    batch_size: usize,
) -> Result<EvalOutput> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    let device = model.device()?;
    let mut tally = Tally::default();
    for part in eval_order(&lengths).chunks(batch_size.max(1)) {
        let batch = LearntTokens::pack(part.iter().map(|&row| &rows[row]));
        let scored = Scored::new(model.model(), model.adapters(), &batch, Mode::EVAL, &device)?;
        tally.add(&scored, &batch, part.iter().map(|&row| rows[row].has_prompt()));
    }
    Ok(tally.output())
}

/// Sums over batches of an evaluation.
#[derive(Default)]
pub(crate) struct Tally {
    /// `Σ −ln p` of the target tokens.
    sum: f64,
    learnt: f64,
    /// Rows that begin with a prompt.
    asked: usize,
    /// Those of them whose answer is right.
    exact: usize,
}

impl Tally {
    /// Adds a batch; `has_prompt` for each of its rows.
    pub(crate) fn add<B: Kernels, M: LanguageModel<B>>(
        &mut self,
        scored: &Scored<'_, B, M>,
        batch: &LearntTokens,
        has_prompt: impl Iterator<Item = bool>,
    ) {
        self.sum += scalar(scored.nll_sum());
        self.learnt += batch.n_learnt();
        let (mut answers, mut start) = (Vec::new(), 0);
        for (&length, has_prompt) in batch.lengths.iter().zip(has_prompt) {
            if has_prompt {
                let places = start..start + length;
                answers.push(places.filter(|&place| batch.weights[place] > 0.0).collect::<Vec<usize>>());
            }
            start += length;
        }
        let mut hits = scored.hits(batch, &answers.concat()).into_iter();
        for answer in &answers {
            // Every correct token of the answer counts, even after an incorrect one.
            self.exact += usize::from(hits.by_ref().take(answer.len()).filter(|hit| !hit).count() == 0);
        }
        self.asked += answers.len();
    }

    /// `loss`, `perplexity` and, if any row begins with a prompt, `exact`.
    pub(crate) fn output(self) -> EvalOutput {
        let loss = self.sum / self.learnt;
        let mut output = EvalOutput::default();
        output.values.insert("loss".into(), loss);
        output.values.insert("perplexity".into(), loss.exp());
        if self.asked > 0 {
            output.values.insert("exact".into(), self.exact as f64 / self.asked as f64);
        }
        output
    }
}

/// Texts that a model generates at each evaluation.
#[derive(Debug)]
pub struct Samples {
    prompts: Vec<Vec<u32>>,
    tokenizer: TextTokenizer,
    max_new_tokens: usize,
}

impl Samples {
    /// The first `n` rows as prompts, up to their first target token; for rows without a prompt, the first
    /// half.
    pub fn new(rows: &[TokenRow], n: usize, max_new_tokens: usize, tokenizer: TextTokenizer) -> Self {
        let prompt = |row: &TokenRow| {
            let end = if row.has_prompt() {
                row.is_learnt.iter().position(|&learnt| learnt).unwrap_or(row.ids.len())
            } else {
                row.ids.len().div_ceil(2).min(SAMPLE_PROMPT)
            };
            row.ids[..end].to_vec()
        };
        Self { prompts: rows.iter().take(n).map(prompt).collect(), tokenizer, max_new_tokens }
    }

    /// Source texts as prompts.
    pub fn of_sources(
        rows: &[SourceTarget],
        n: usize,
        max_new_tokens: usize,
        tokenizer: TextTokenizer,
    ) -> Self {
        Self {
            prompts: rows.iter().take(n).map(|row| row.source.clone()).collect(),
            tokenizer,
            max_new_tokens,
        }
    }

    /// The prompts with the greedy answers.
    ///
    /// # Errors
    /// Prompts that the model does not accept, logits that are not finite.
    pub(crate) fn write<B: Kernels, M: LanguageModel<B> + Module<B>>(
        &self,
        model: &Tuned<B, M>,
    ) -> Result<Vec<String>> {
        let options = GenerationOptions { max_new_tokens: self.max_new_tokens, ..Default::default() };
        let device = model.device()?;
        let written =
            model.model().generate(&self.prompts, &options, model.adapters(), &device, |_, _| true)?;
        let shown = |(prompt, new): (&Vec<u32>, Generated)| {
            let text = |ids: &[u32]| self.tokenizer.decode(ids, true).map(|text| printable(&text));
            Ok(format!("{} ⟦{}⟧", text(prompt)?, text(&new.ids)?))
        };
        self.prompts.iter().zip(written).map(shown).collect()
    }
}

/// A text without control characters: an untrained model may write them, and a terminal would obey.
fn printable(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() && c != '\n' { '·' } else { c }).collect()
}

/// Maximum number of tokens with which a sample of a text without a prompt begins.
const SAMPLE_PROMPT: usize = 32;

/// Cross-entropy of the target tokens; a batch is weighted by their number.
#[derive(Debug)]
pub struct NextToken {
    plan: BatchPlan,
    train: Vec<TokenRow>,
    dev: Vec<TokenRow>,
    eval_batch: usize,
    recompute: bool,
    samples: Option<Samples>,
}

impl NextToken {
    /// Training and evaluation rows; `recompute` keeps only the input of each layer for the backward pass.
    ///
    /// # Errors
    /// No rows, a batch size that the rows do not fit.
    pub fn new(
        train: Vec<TokenRow>,
        dev: Vec<TokenRow>,
        config: &TrainConfig,
        recompute: bool,
    ) -> Result<Self> {
        let plan = config.plan(train.iter().map(|row| row.ids.len()))?;
        Ok(Self { plan, train, dev, eval_batch: config.batch_size, recompute, samples: None })
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

/// Evaluation rows in batches of similar length.
pub(crate) fn eval_order(lengths: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    order
}

impl<B> Objective<B> for NextToken
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Model = TunedDecoder<B>;
    type Batch = LearntTokens;

    fn batches(&self, step: usize, shard: Shard) -> Result<StepBatches<LearntTokens>> {
        let rows = self.plan.shard_of_step(step, shard);
        let micro = rows.micro.iter().map(|rows| {
            let data = LearntTokens::pack(rows.iter().map(|&row| &self.train[row]));
            MicroBatch { weight: data.n_learnt(), tokens: data.ids.len(), data }
        });
        Ok(StepBatches { micro: micro.collect(), epoch: rows.epoch })
    }

    fn loss(&self, model: &TunedDecoder<B>, batch: &LearntTokens, mode: Mode) -> Result<Tensor<B, 1>> {
        let sum = nll_sum(model.model(), model.adapters(), batch, mode, &model.device()?)?;
        Ok(sum / batch.n_learnt())
    }

    fn gradients(
        &self,
        model: &TunedDecoder<B>,
        batch: &LearntTokens,
        mode: Mode,
        share: f64,
    ) -> Result<(Tensor<B::InnerBackend, 1>, GradientsParams)> {
        if self.recompute {
            let scale = share / batch.n_learnt();
            return layer_by_layer(model, batch, mode, |scored| scored.nll_sum() * scale);
        }
        backward(self.loss(model, batch, mode)? * share, model)
    }

    fn selection(&self) -> Option<Selection> {
        Some(Selection::lowest_loss())
    }

    fn evaluate(&self, model: &TunedDecoder<B::InnerBackend>) -> Result<EvalOutput> {
        let mut output = evaluate_rows(model, &self.dev, self.eval_batch)?;
        if let Some(samples) = &self.samples {
            output.samples = samples.write(model)?;
        }
        Ok(output)
    }

    fn groups(&self, model: &TunedDecoder<B>) -> Groups {
        language_groups(model)
    }

    fn constrain(&self, model: TunedDecoder<B>) -> Result<TunedDecoder<B>> {
        model.project()
    }
}

/// Groups of a language model: its head has the head's rate if it is not tied.
pub(crate) fn language_groups<B: Kernels, M: LanguageModel<B>>(model: &Tuned<B, M>) -> Groups {
    Groups::default().with_adapters(model.adapters()).with_model(model.model())
}
