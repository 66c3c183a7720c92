//! Fisher information of a model's weights, from the gradients of a task.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::AutodiffBackend;
use lowrank_adapters::AdapterSet;
use lowrank_adapters::peft::host_values;
use lowrank_kernels::Kernels;
use lowrank_models::batch::int_tensor;
use lowrank_models::params::{Choose, WeightType};
use lowrank_models::{
    Classifier, Decoder, LanguageModel, ParamVisitor, Parameter, Parameters, Role, Rows, Run, Seq2Seq, Stack,
};
use lowrank_spec::names::WeightPart;

use super::network::{Config, Network, Tokens};
use crate::error::{CompressError, Result};
use crate::statistics::{Weighting, Weightings};

/// The targets of the sequences of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Answers {
    /// A class for each sequence.
    Classes(Vec<u32>),
    /// A number for each sequence.
    Scores(Vec<f32>),
    /// The next tokens of each sequence: the task of a language model.
    NextTokens,
}

impl Answers {
    /// The targets of one sequence.
    pub(crate) fn nth(&self, index: usize) -> Self {
        match self {
            Self::Classes(classes) => Self::Classes(classes.get(index).copied().into_iter().collect()),
            Self::Scores(scores) => Self::Scores(scores.get(index).copied().into_iter().collect()),
            Self::NextTokens => Self::NextTokens,
        }
    }

    /// Appends those of further sequences of the same task.
    pub(crate) fn extend(&mut self, others: &Self) {
        match (self, others) {
            (Self::Classes(all), Self::Classes(others)) => all.extend(others),
            (Self::Scores(all), Self::Scores(others)) => all.extend(others),
            _ => {}
        }
    }
}

/// `√Σ_out (∂L/∂W)²` for each input channel of every linear map, summed over batches: the weights of
/// [`Method::Fwsvd`](crate::Method::Fwsvd). Small batches are closer to the Fisher information, which is
/// defined by single samples. The whole model is in memory.
///
/// # Errors
/// A folder without a model, a classifier without a trained head, targets that do not fit the model.
pub fn fisher<B: AutodiffBackend + Kernels>(
    folder: &Path,
    batches: &[(Tokens, Answers)],
    device: &B::Device,
) -> Result<Weightings> {
    if batches.is_empty() {
        return Err(CompressError::Input("no samples to compute gradients on".into()));
    }
    let mut network = load::<B>(folder, device)?;
    network.visit_params(&mut Choose(|at: &Parameter<'_>, _| is_matrix(at)));
    let mut sums: HashMap<String, Vec<f64>> = HashMap::new();
    for (tokens, answers) in batches {
        let loss = loss(&network, tokens, answers, device)?;
        let grads = loss.backward();
        let mut gather = Gather::<B> { grads: &grads, sums: &mut sums };
        network.visit_params(&mut gather);
    }
    let root = |sums: Vec<f64>| Weighting::Channels(sums.into_iter().map(|sum| sum.sqrt() as f32).collect());
    Ok(sums.into_iter().map(|(path, sums)| (path, root(sums))).collect())
}

fn load<B: AutodiffBackend + Kernels>(folder: &Path, device: &B::Device) -> Result<Network<B>> {
    Ok(match Config::read(folder)? {
        Config::Decoder(config) => {
            Network::Decoder(Box::new(Decoder::load(folder, *config, WeightType::F32, device)?))
        }
        Config::Classifier(config, last) => {
            let model = Classifier::load(folder, *config, 0, device)?;
            if !model.newly_initialized().is_empty() {
                return Err(CompressError::Input(format!(
                    "the model has no trained head ({}); fine-tune it on the task first",
                    model.newly_initialized().join(", ")
                )));
            }
            Network::Classifier(Box::new(model), last)
        }
        Config::Seq2Seq(config, _) => {
            Network::Seq2Seq(Box::new(Seq2Seq::load(folder, *config, WeightType::F32, device)?))
        }
    })
}

/// Mean loss of a batch.
fn loss<B: AutodiffBackend + Kernels>(
    network: &Network<B>,
    tokens: &Tokens,
    answers: &Answers,
    device: &B::Device,
) -> Result<Tensor<B, 1>> {
    let none = AdapterSet::empty();
    match (network, answers) {
        (Network::Decoder(model), Answers::NextTokens) => {
            let Tokens { ids, lengths, .. } = tokens;
            let batch = model.batch(lowrank_models::Tokens::new(ids, lengths), device)?;
            let logits = model.forward(&batch, Rows::All, Run::eval(&none));
            let (mut rows, mut next, mut start) = (Vec::new(), Vec::new(), 0);
            for &length in lengths {
                rows.extend((start..start + length - 1).map(|row| row as i32));
                next.extend(ids[start + 1..start + length].iter().copied());
                start += length;
            }
            if rows.is_empty() {
                return Err(CompressError::Input("a sample of one token has nothing to predict".into()));
            }
            Ok(cross_entropy(logits.select(0, int_tensor(rows, device)), &next, device))
        }
        (Network::Classifier(model, _), answers) => {
            let batch = model.batch(tokens.view(), device)?;
            let logits = model.forward(&batch, Run::eval(&none));
            let [rows, width] = logits.dims();
            match answers {
                Answers::Classes(classes)
                    if classes.len() == rows && classes.iter().all(|&c| (c as usize) < width) =>
                {
                    Ok(cross_entropy(logits, classes, device))
                }
                Answers::Scores(scores) if scores.len() == rows && width == 1 => {
                    Ok(squared_error(logits, scores, device))
                }
                _ => Err(CompressError::Input(format!(
                    "the task's labels do not fit the model's {width}; give the model that was tuned on the task"
                ))),
            }
        }
        (Network::Seq2Seq(model), Answers::NextTokens) => {
            let (batch, run) = (tokens.pairs(model, device)?, Run::eval(&none));
            let states = model.encode(&batch.source, run);
            let logits = model.logits(model.hidden_states(&states, &batch.target, Rows::All, run), run);
            Ok(cross_entropy(logits, &tokens.targets, device))
        }
        (Network::Decoder(_) | Network::Seq2Seq(_), _) => {
            Err(CompressError::Input("a language model's task is its own text; give --calibration".into()))
        }
    }
}

/// Mean squared error of logits `[rows, 1]`.
pub(crate) fn squared_error<B: Backend>(
    logits: Tensor<B, 2>,
    scores: &[f32],
    device: &B::Device,
) -> Tensor<B, 1> {
    let wanted = Tensor::<B, 1>::from_floats(scores, device).reshape([scores.len(), 1]);
    (logits - wanted).powf_scalar(2.0).mean()
}

/// Mean cross-entropy of logits `[rows, classes]`.
pub(crate) fn cross_entropy<B: Backend>(
    logits: Tensor<B, 2>,
    classes: &[u32],
    device: &B::Device,
) -> Tensor<B, 1> {
    let classes: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
    let rows = classes.len();
    let picked = log_softmax(logits, 1).gather(1, int_tensor(classes, device).reshape([rows, 1]));
    -picked.mean()
}

/// Whether a parameter is a weight, or a factor of one, whose input channels are weighted.
fn is_matrix(at: &Parameter<'_>) -> bool {
    matches!(at.role, Role::Weight(part) if !matches!(part, WeightPart::Core(_)))
}

/// Sums squared gradients by input channel.
struct Gather<'a, B: AutodiffBackend> {
    grads: &'a B::Gradients,
    /// By module; only experts that some token has reached so far.
    sums: &'a mut HashMap<String, Vec<f64>>,
}

impl<B: AutodiffBackend> ParamVisitor<B> for Gather<'_, B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        if !is_matrix(at) {
            return;
        }
        let Some(grad) = param.val().grad(self.grads) else { return };
        let [rows, columns] = [param.dims()[0], param.dims()[1]];
        let values = host_values(grad.reshape([rows, columns])); // [d_input, d_output]
        let squared = values.chunks_exact(columns).map(|row| row.iter().map(|&g| f64::from(g).powi(2)).sum());
        let key = at.key();
        let path = key.strip_suffix(".weight").unwrap_or(&key).to_string();
        let sums = self.sums.entry(path).or_insert_with(|| vec![0.0; rows]);
        sums.iter_mut().zip(squared).for_each(|(sum, square): (&mut f64, f64)| *sum += square);
    }
}
