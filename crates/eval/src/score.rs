//! From rows of logits to a task's metrics.

use lowrank_data::glue::{Label, Metric};

use crate::error::{EvalError, Result};
use crate::metrics::{accuracy, f1, matthews, pearson, spearman};

/// Index of the largest logit, the first of equal ones.
///
/// # Errors
/// [`EvalError::NotFinite`] for a NaN or infinity in the row.
pub fn argmax(row: usize, logits: &[f32]) -> Result<u32> {
    if let Some(&value) = logits.iter().find(|v| !v.is_finite()) {
        return Err(EvalError::NotFinite { row, value });
    }
    let mut best = 0;
    for (i, v) in logits.iter().enumerate() {
        if *v > logits[best] {
            best = i;
        }
    }
    Ok(best as u32)
}

/// The values of `metrics` for rows of logits, `[rows, labels]` (`[rows, 1]` for scores).
///
/// # Errors
/// Non-finite logits, different numbers of rows and labels, metrics that do not fit the kind of labels.
pub fn score(metrics: &[Metric], logits: &[Vec<f32>], labels: &[Label]) -> Result<Vec<(Metric, f64)>> {
    if logits.len() != labels.len() || labels.is_empty() {
        return Err(EvalError::Length { predictions: logits.len(), labels: labels.len() });
    }
    let classes: Option<Vec<u32>> =
        labels.iter().map(|l| if let Label::Class(c) = l { Some(*c) } else { None }).collect();
    let scores: Option<Vec<f64>> =
        labels.iter().map(|l| if let Label::Score(s) = l { Some(f64::from(*s)) } else { None }).collect();
    let predicted: Vec<u32> =
        logits.iter().enumerate().map(|(i, row)| argmax(i, row)).collect::<Result<_>>()?;
    let values: Vec<f64> = logits.iter().map(|row| row.first().map_or(f64::NAN, |v| f64::from(*v))).collect();
    metrics
        .iter()
        .map(|&metric| {
            let of_classes = |f: fn(&[u32], &[u32]) -> Result<f64>| match &classes {
                Some(classes) => f(&predicted, classes),
                None => Err(EvalError::Kind { metric: metric.to_string(), what: "scores" }),
            };
            let of_scores = |f: fn(&[f64], &[f64]) -> Result<f64>| match &scores {
                Some(scores) => f(&values, scores),
                None => Err(EvalError::Kind { metric: metric.to_string(), what: "classes" }),
            };
            let value = match metric {
                Metric::Accuracy => of_classes(accuracy),
                Metric::F1 => of_classes(f1),
                Metric::Matthews => of_classes(matthews),
                Metric::Pearson => of_scores(pearson),
                Metric::Spearman => of_scores(spearman),
            }?;
            Ok((metric, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_by_the_largest_logit() {
        let logits = vec![vec![0.1, 0.2], vec![2.0, -1.0], vec![0.5, 0.5]];
        let labels = [Label::Class(1), Label::Class(0), Label::Class(1)];
        let values = score(&[Metric::Accuracy, Metric::F1], &logits, &labels).unwrap();
        assert_eq!(values[0].1, 2.0 / 3.0);
        assert!((values[1].1 - 2.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn scores_are_read_as_they_are() {
        let logits = vec![vec![0.0], vec![1.0], vec![4.0]];
        let labels = [Label::Score(0.0), Label::Score(2.0), Label::Score(8.0)];
        let values = score(&[Metric::Pearson, Metric::Spearman], &logits, &labels).unwrap();
        assert!(values.iter().all(|(_, v)| (v - 1.0).abs() < 1e-15), "{values:?}");
    }

    #[test]
    fn nan_is_an_error_and_not_a_class() {
        let error = score(&[Metric::Accuracy], &[vec![0.0, f32::NAN]], &[Label::Class(0)]).unwrap_err();
        assert!(matches!(error, EvalError::NotFinite { row: 0, .. }), "{error}");
    }

    #[test]
    fn kinds_must_agree() {
        assert!(score(&[Metric::Pearson], &[vec![0.0]], &[Label::Class(0)]).is_err());
        assert!(score(&[Metric::Accuracy], &[vec![0.0]], &[Label::Score(0.0)]).is_err());
    }
}
