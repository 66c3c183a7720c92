//! A model and its adapters as one trainable burn module.

use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::log_sigmoid;
use lowrank_adapters::{AdapterSet, Mode};
use lowrank_data::pack::{Labels, PackedBatch, SpanLabel};
use lowrank_kernels::{Kernels, cross_entropy_sum};
use lowrank_models::batch::int_tensor;
use lowrank_models::{Classifier, Parameters, Run, Stack, TokenBatch, Tokens};

use crate::error::{Result, TrainError};
use crate::record::count;

/// A model with its adapters; parameters that require a gradient are trained, the others are the frozen base.
#[derive(Module, Debug)]
pub struct Tuned<B: Backend, M> {
    model: M,
    adapters: AdapterSet<B>,
}

/// A classifier with its adapters.
pub type FineTuner<B> = Tuned<B, Classifier<B>>;

impl<B: Backend, M> Tuned<B, M> {
    /// `model` with its trainable weights marked, and the adapters to train over it.
    pub fn new(model: M, adapters: AdapterSet<B>) -> Self {
        Self { model, adapters }
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The adapters.
    pub fn adapters(&self) -> &AdapterSet<B> {
        &self.adapters
    }

    /// Projects full-size corrections back to their rank; other methods are unchanged.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn project(mut self) -> Result<Self> {
        if self.adapters.needs_projection() {
            self.adapters = self.adapters.project()?;
        }
        Ok(self)
    }

    /// Splits the tuner into model and adapters.
    pub fn into_parts(self) -> (M, AdapterSet<B>) {
        (self.model, self.adapters)
    }
}

impl<B: Backend, M: Module<B> + Parameters<B>> Tuned<B, M> {
    /// Numbers of trained and of all parameters.
    pub fn count(&self) -> (usize, usize) {
        let (model, adapters) = (count::<B>(&self.model), count::<B>(&self.adapters));
        let in_blocks = self.model.blocks_where(|_| true);
        let frozen: usize = in_blocks.iter().map(|block| block.matrix.dims().iter().product::<usize>()).sum();
        (model.0 + adapters.0, model.1 + adapters.1 + frozen)
    }
}

impl<B: Backend, M: Module<B>> Tuned<B, M> {
    /// The device of the first parameter.
    ///
    /// # Errors
    /// A model without parameters.
    pub fn device(&self) -> Result<B::Device> {
        let device = self.model.devices().into_iter().next();
        device.ok_or_else(|| TrainError::Batch("the model has no parameters".into()))
    }
}

impl<B: Kernels> FineTuner<B> {
    /// Logits of a batch, shape `[sequences, labels]` or `[tokens, labels]`.
    ///
    /// # Errors
    /// A batch that does not fit the model.
    pub fn logits(&self, batch: &PackedBatch, mode: Mode) -> Result<Tensor<B, 2>> {
        let batch = to_device(&self.model, batch, &self.device()?)?;
        Ok(self.model.forward(&batch, Run::new(&self.adapters, mode)))
    }
}

/// The weight of a batch: its number of sequences, of labelled tokens, or the sum of their classes' weights.
pub fn weight(labels: &Labels, class_weights: Option<&[f32]>) -> f64 {
    let sum = |classes: &mut dyn Iterator<Item = u32>| match class_weights {
        None => classes.count() as f64,
        Some(weights) => classes.map(|class| f64::from(weights[class as usize])).sum(),
    };
    match labels {
        Labels::Classes(classes) => sum(&mut classes.iter().copied()),
        Labels::Tags(tags) => sum(&mut tags.iter().copied().flatten()),
        labels => labels.len() as f64,
    }
}

/// Mean loss of a batch over its [weight]. Shape `[1]`.
///
/// Cross-entropy of classes, squared error of scores, and for label sets the mean over the labels of the
/// binary cross-entropy of each, as in PyTorch's `BCEWithLogitsLoss`; for answers the mean of the cross-entropies of their
/// start and end among the tokens of their sequence. Class weights apply to each example, as
/// in PyTorch's `CrossEntropyLoss`: the sum of weighted losses over the sum of weights.
///
/// # Errors
/// A batch without labels.
pub fn loss<B: Kernels>(
    logits: Tensor<B, 2>,
    labels: &Labels,
    class_weights: Option<&[f32]>,
) -> Result<Tensor<B, 1>> {
    let device = logits.device();
    // A batch of weight 0 has a loss of 0.
    let mean = |sum: Tensor<B, 1>| match weight(labels, class_weights) {
        0.0 => sum,
        weight => sum.div_scalar(weight),
    };
    let weights_of = |weights: Vec<f32>| {
        let n = weights.len();
        Tensor::<B, 1>::from_data(TensorData::new(weights, [n]), &device)
    };
    let of_class = |class: u32| class_weights.map_or(1.0, |weights| weights[class as usize]);
    match labels {
        Labels::Classes(classes) => {
            let weights = class_weights.map(|_| weights_of(classes.iter().map(|&c| of_class(c)).collect()));
            let targets = int_tensor(classes.iter().map(|&c| c as i32).collect(), &device);
            Ok(mean(cross_entropy_sum(logits, targets, weights)))
        }
        Labels::Tags(tags) => {
            let weights = weights_of(tags.iter().map(|tag| tag.map_or(0.0, of_class)).collect());
            let targets = int_tensor(tags.iter().map(|tag| tag.map_or(0, |c| c as i32)).collect(), &device);
            Ok(mean(cross_entropy_sum(logits, targets, Some(weights))))
        }
        Labels::Scores(scores) => {
            let n = scores.len();
            let targets = Tensor::<B, 1>::from_data(TensorData::new(scores.clone(), [n]), &device);
            Ok((logits.reshape([n]) - targets).powi_scalar(2).mean())
        }
        Labels::Sets(sets) => {
            let [n, width] = logits.dims();
            let mut absent = vec![1.0_f32; n * width];
            for (row, set) in sets.iter().enumerate() {
                for &label in set {
                    absent[row * width + label as usize] = 0.0;
                }
            }
            // −y·ln σ(x) − (1 − y)·ln σ(−x), with ln σ(−x) = ln σ(x) − x.
            let absent = Tensor::<B, 2>::from_data(TensorData::new(absent, [n, width]), &device);
            Ok((logits.clone() * absent - log_sigmoid(logits)).mean())
        }
        Labels::Spans(spans) => Ok(mean(span_loss(logits, spans))),
        Labels::None => Err(TrainError::Batch("a batch without labels has no loss".into())),
    }
}

/// A logit that takes no part in a softmax.
const ABSENT: f32 = -1e30;

/// Sum over sequences of the mean of two cross-entropies, of the start and of the end among the tokens of each sequence.
///
/// # Shapes
/// - logits: `[tokens, 2]`, output: `[1]`
fn span_loss<B: Kernels>(logits: Tensor<B, 2>, spans: &[SpanLabel]) -> Tensor<B, 1> {
    let device = logits.device();
    let longest = spans.iter().map(|span| span.tokens as usize).max().unwrap_or(1);
    let n = 2 * spans.len();
    // A row for each start and each end, padded to the longest sequence.
    let (mut places, mut absent) = (vec![0_i32; n * longest], vec![ABSENT; n * longest]);
    let mut targets = Vec::with_capacity(n);
    let mut first = 0;
    for (row, span) in spans.iter().enumerate() {
        for (side, target) in [span.start, span.end].into_iter().enumerate() {
            let start = (2 * row + side) * longest;
            for token in 0..span.tokens as usize {
                places[start + token] = (2 * (first + token) + side) as i32;
                absent[start + token] = 0.0;
            }
            targets.push(target as i32);
        }
        first += span.tokens as usize;
    }
    let [tokens, width] = logits.dims();
    let rows = logits.reshape([tokens * width]).select(0, int_tensor(places, &device));
    let absent = Tensor::<B, 2>::from_data(TensorData::new(absent, [n, longest]), &device);
    let rows = rows.reshape([n, longest]) + absent;
    cross_entropy_sum(rows, int_tensor(targets, &device), None).div_scalar(2.0)
}

/// The packed batch on the device.
///
/// # Errors
/// Ids or lengths that the model does not accept.
pub fn to_device<B: Kernels>(
    model: &impl Stack<B>,
    batch: &PackedBatch,
    device: &B::Device,
) -> Result<TokenBatch<B>> {
    let tokens =
        Tokens { ids: &batch.ids, type_ids: &batch.type_ids, lengths: &batch.lengths, pixels: &batch.pixels };
    Ok(model.batch(tokens, device)?)
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn value(logits: &[f32], width: usize, labels: &Labels, weights: Option<&[f32]>) -> f64 {
        let data = TensorData::new(logits.to_vec(), [logits.len() / width, width]);
        let loss = loss::<Flex>(Tensor::from_data(data, &Default::default()), labels, weights).unwrap();
        loss.into_data().iter::<f64>().next().unwrap()
    }

    #[track_caller]
    fn check(got: f64, expect: f64) {
        assert!((got - expect).abs() < 1e-6, "{got}, by hand {expect}");
    }

    #[test]
    fn each_label_of_a_set_is_decided_by_itself() {
        // By hand: −ln σ(2) − ln(1 − σ(−1)) − ln(1 − σ(0)) − ln σ(3), over 4.
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        let expect = -(sigma(2.0).ln() + sigma(1.0).ln() + 0.5f64.ln() + sigma(3.0).ln()) / 4.0;
        let labels = Labels::Sets(vec![vec![0], vec![1]]);
        check(value(&[2.0, -1.0, 0.0, 3.0], 2, &labels, None), expect);
        assert_eq!(weight(&labels, None), 2.0);
        // Far from 0 it stays finite.
        check(value(&[-200.0, 200.0], 2, &Labels::Sets(vec![vec![0]]), None), 200.0);
    }

    #[test]
    fn starts_and_ends_compete_within_their_sequence() {
        let nll =
            |logits: &[f64], target: usize| logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[target];
        let span = |start, end, tokens| SpanLabel { start, end, tokens };
        let labels = Labels::Spans(vec![span(1, 1, 2), span(0, 2, 3)]);
        let starts = [0.5, -1.0, 2.0, 0.0, 1.0];
        let ends = [1.5, 0.25, -3.0, 40.0, 0.75];
        let logits: Vec<f32> = starts.iter().zip(ends).flat_map(|(s, e)| [*s as f32, e as f32]).collect();
        let expect = nll(&starts[..2], 1) + nll(&ends[..2], 1) + nll(&starts[2..], 0) + nll(&ends[2..], 2);
        let got = value(&logits, 2, &labels, None);
        assert!((got - expect / 4.0).abs() < 1e-5, "{got}, by hand {}", expect / 4.0);
        assert_eq!(weight(&labels, None), 2.0);
    }

    #[test]
    fn weighted_losses_are_divided_by_the_sum_of_weights() {
        let nll = |a: f64, b: f64| (1.0 + (b - a).exp()).ln();
        let weights = [3.0, 0.5];
        let expect = (3.0 * nll(1.0, 0.0) + 0.5 * nll(2.0, 1.0)) / 3.5;
        let labels = Labels::Classes(vec![0, 1]);
        check(value(&[1.0, 0.0, 1.0, 2.0], 2, &labels, Some(&weights)), expect);
        assert_eq!(weight(&labels, Some(&weights)), 3.5);
        // Tokens without a tag are ignored.
        let labels = Labels::Tags(vec![None, Some(0), Some(1), None]);
        let logits = [9.0, 0.0, 1.0, 0.0, 1.0, 2.0, 5.0, 5.0];
        check(value(&logits, 2, &labels, Some(&weights)), expect);
        check(value(&logits, 2, &labels, None), (nll(1.0, 0.0) + nll(2.0, 1.0)) / 2.0);
        check(value(&[1.0, 0.0], 2, &Labels::Tags(vec![None]), None), 0.0);
    }
}
