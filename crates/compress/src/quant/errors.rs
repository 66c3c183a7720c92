//! The weight of an error in each element of a matrix.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use lowrank_factor::{Feedback, Mat};

use crate::statistics::{InputStatistics, Weighting};
use crate::weights::{Role, Weight};

/// Weights of squared errors of a matrix `[rows, columns]` whose rows are cut into blocks: inputs face the columns of a
/// linear map, and tokens are the rows of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct ErrorWeights {
    /// Mean square of the input of each column; empty if unknown.
    pub(crate) columns: Vec<f32>,
    /// Mean square of the gradient of each row's output, or how often a row is looked up; empty if unknown.
    pub(crate) rows: Vec<f32>,
    /// Sums of products of inputs.
    pub(crate) gram: Option<Gram>,
    is_in_loss: bool,
}

/// Second moments of inputs, in the precision of the sums and in that of errors. A clone shares what is computed of them.
#[derive(Clone, Debug)]
pub(crate) struct Gram {
    pub(crate) statistics: Arc<InputStatistics>,
    narrow: Arc<OnceLock<Mat<f32>>>,
    feedback: Arc<OnceLock<Option<Feedback>>>,
}

/// The Gram matrices of a layer: maps with the same input share one.
#[derive(Debug, Default)]
pub(crate) struct Grams(HashMap<*const InputStatistics, Gram>);

impl Grams {
    fn of(&mut self, statistics: &Arc<InputStatistics>) -> Gram {
        self.0.entry(Arc::as_ptr(statistics)).or_insert_with(|| Gram::new(statistics)).clone()
    }
}

/// Addition to the diagonal of a Gram matrix, as a fraction of its mean; the value of GPTQ.
const DAMPING: f64 = 0.01;

impl Gram {
    fn new(statistics: &Arc<InputStatistics>) -> Self {
        Self { statistics: statistics.clone(), narrow: Arc::default(), feedback: Arc::default() }
    }

    /// In the precision of errors.
    pub(crate) fn narrow(&self) -> &Mat<f32> {
        self.narrow.get_or_init(|| {
            let gram = &self.statistics.gram;
            Mat::from_fn(gram.nrows(), gram.ncols(), |i, j| gram[(i, j)] as f32)
        })
    }

    /// The factors by which errors are fed back; `None` if no input was seen.
    pub(crate) fn feedback(&self) -> Option<&Feedback> {
        let made = self.feedback.get_or_init(|| Feedback::new(self.statistics.gram.as_ref(), DAMPING).ok());
        made.as_ref()
    }
}

impl ErrorWeights {
    pub(crate) fn new(weight: &Weight, weighting: &Weighting, grams: &mut Grams) -> Self {
        match weighting {
            Weighting::None => Self::default(),
            Weighting::Channels(factors) => {
                let squares: Vec<f32> = factors.iter().map(|factor| factor * factor).collect();
                if weight.role == Role::Embedding {
                    Self { rows: squares, ..Self::default() }
                } else {
                    Self { columns: squares, ..Self::default() }
                }
            }
            Weighting::Inputs(inputs) => {
                Self { columns: means(inputs), gram: Some(grams.of(inputs)), ..Self::default() }
            }
            Weighting::Both { sums, share, .. } => Self {
                columns: means(&sums.inputs),
                rows: means(&sums.outputs).into_iter().map(|mean| mean * *share as f32).collect(),
                gram: Some(grams.of(&sums.inputs)),
                is_in_loss: true,
            },
        }
    }

    /// Whether losses are in units of the model's loss.
    pub(crate) fn is_in_loss(&self) -> bool {
        self.is_in_loss
    }

    /// The weights without the Gram matrix.
    pub(crate) fn without_gram(&self) -> Self {
        Self { gram: None, ..self.clone() }
    }

    /// Of every `step`-th row, without the Gram matrix.
    pub(crate) fn of_rows(&self, step: usize) -> Self {
        Self { rows: self.rows.iter().step_by(step).copied().collect(), ..self.without_gram() }
    }

    pub(crate) fn row(&self, row: usize) -> f64 {
        self.rows.get(row).map_or(1.0, |&weight| weight.into())
    }

    pub(crate) fn column(&self, column: usize) -> f64 {
        self.columns.get(column).map_or(1.0, |&weight| weight.into())
    }
}

/// Mean squares. A channel that was never active counts a little: other texts may use it.
fn means(statistics: &InputStatistics) -> Vec<f32> {
    let (n, rows) = (statistics.gram.nrows(), statistics.rows.max(1) as f64);
    let mean = (0..n).map(|i| statistics.gram[(i, i)]).sum::<f64>() / n.max(1) as f64;
    (0..n).map(|i| ((statistics.gram[(i, i)] + 1e-4 * mean) / rows) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_one_input_share_its_factors() {
        let statistics = |x: f64| {
            let gram = Mat::from_fn(2, 2, |i, j| if i == j { 2.0 * x } else { x });
            Arc::new(InputStatistics { gram, magnitude: vec![x; 2], rows: 1 })
        };
        let (one, other) = (statistics(1.0), statistics(1.0));
        let mut grams = Grams::default();
        let [query, key, up] = [&one, &one, &other].map(|inputs| grams.of(inputs));
        assert!(std::ptr::eq(query.feedback().unwrap(), key.feedback().unwrap()));
        assert!(std::ptr::eq(query.narrow(), key.narrow()));
        assert!(!std::ptr::eq(query.feedback().unwrap(), up.feedback().unwrap()));
    }
}
