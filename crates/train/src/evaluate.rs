//! Predictions and metrics over a whole data set.

use std::sync::Arc;

use lowrank_adapters::Mode;
use lowrank_data::glue::{Label, Metric};
use lowrank_data::pack::{EncodedDataset, EvalBatches, restore_order};
use lowrank_data::questions::Asked;
use lowrank_eval::{AnswerOptions, answers, score_answers};
use lowrank_kernels::Kernels;
use lowrank_models::HeadLevel;
use lowrank_models::batch::int_tensor;

use crate::error::{Result, TrainError};
use crate::objective::EvalOutput;
use crate::tuner::{FineTuner, loss, weight};

/// A named part of the evaluation data; the suffix distinguishes a second dev set's metrics (`_mm`).
#[derive(Clone, Debug)]
pub struct DevSet {
    /// Appended to the metrics' names.
    pub suffix: String,
    /// The encoded rows, with labels.
    pub data: Arc<EncodedDataset>,
    /// If the rows are windows over the contexts of questions, these, and how they are answered.
    pub asked: Option<(Arc<Asked>, AnswerOptions)>,
}

impl DevSet {
    /// The only dev set.
    pub fn new(data: Arc<EncodedDataset>) -> Self {
        Self { suffix: String::new(), data, asked: None }
    }
}

/// Rows of logits of a data set, in its own order, and its mean loss if it is labelled. A head over tokens or spans
/// returns the logits of all tokens of a row, concatenated.
///
/// # Errors
/// Rows that do not fit the model.
pub fn predict<B: Kernels>(
    model: &FineTuner<B>,
    data: &Arc<EncodedDataset>,
    batch_size: usize,
) -> Result<(Vec<Vec<f32>>, Option<f64>)> {
    predict_in_order(model, data, None, batch_size)
}

fn predict_in_order<B: Kernels>(
    model: &FineTuner<B>,
    data: &Arc<EncodedDataset>,
    order: Option<&[usize]>,
    batch_size: usize,
) -> Result<(Vec<Vec<f32>>, Option<f64>)> {
    let labelled = data.labels().iter().all(Option::is_some) && !data.is_empty();
    let mut rows = Vec::with_capacity(data.len());
    let mut indices = Vec::with_capacity(data.len());
    let of_tokens = model.model().config().level != HeadLevel::Sequence;
    let (mut sum, mut count) = (0.0, 0.0);
    for batch in EvalBatches::new(data.clone(), batch_size, true)? {
        let batch = batch?;
        let mut logits = model.logits(&batch.batch, Mode::EVAL)?;
        if let Some(order) = order {
            let places = order.iter().map(|&place| place as i32).collect();
            let device = logits.device();
            logits = logits.select(1, int_tensor(places, &device));
        }
        let width = logits.dims()[1];
        if labelled {
            let labels = &batch.batch.labels;
            let mean = loss(logits.clone(), labels, None)?.into_data().iter::<f64>().next();
            sum += mean.unwrap_or(f64::NAN) * weight(labels, None);
            count += weight(labels, None);
        }
        let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let mut rest = values.as_slice();
        for length in &batch.batch.lengths {
            let (row, other) = rest.split_at(if of_tokens { length * width } else { width });
            rows.push(row.to_vec());
            rest = other;
        }
        indices.extend(batch.indices);
    }
    let rows = restore_order(&indices, rows)?;
    Ok((rows, labelled.then(|| sum / count)))
}

/// Loss and metrics over all dev sets; the loss is the first set's. `order` gives the model output of each
/// class, if the outputs are not in the order of the classes.
///
/// # Errors
/// Unlabelled rows, logits that are not finite.
pub fn evaluate<B: Kernels>(
    model: &FineTuner<B>,
    sets: &[DevSet],
    metrics: &[Metric],
    order: Option<&[usize]>,
    batch_size: usize,
) -> Result<EvalOutput> {
    let mut output = EvalOutput::default();
    let own = &model.model().config().labels;
    let names: Vec<String> = match order {
        Some(order) => order.iter().filter_map(|&place| own.get(place).cloned()).collect(),
        None => own.clone(),
    };
    for set in sets {
        let (rows, loss) = predict_in_order(model, &set.data, order, batch_size)?;
        let loss = loss.ok_or_else(|| TrainError::Batch("the evaluation data has no labels".into()))?;
        output.values.insert(format!("loss{}", set.suffix), loss);
        if let Some((asked, options)) = &set.asked {
            for (metric, value) in score_answers(asked, &answers(asked, &rows, *options)?) {
                output.values.insert(format!("{metric}{}", set.suffix), value);
            }
            continue;
        }
        let labels: Vec<Label> = set.data.labels().iter().flatten().cloned().collect();
        for (metric, value) in lowrank_eval::score(metrics, &rows, &labels, &names)? {
            output.values.insert(format!("{metric}{}", set.suffix), value);
        }
    }
    Ok(output)
}
