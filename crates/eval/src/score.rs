//! From rows of logits to a task's metrics.

use lowrank_data::glue::{Label, Metric};

use crate::entities::EntityCounts;
use crate::error::{EvalError, Result};
use crate::metrics::{accuracy, f1, f1_of_labels, matthews, pearson, spearman};

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

/// The labels of a multi-label row: those with a probability above 0.5, that is a logit above 0.
///
/// # Errors
/// [`EvalError::NotFinite`] for a NaN or infinity in the row.
pub fn predicted_set(row: usize, logits: &[f32]) -> Result<Vec<u32>> {
    argmax(row, logits)?;
    Ok((0..).zip(logits).filter(|(_, logit)| **logit > 0.0).map(|(label, _)| label).collect())
}

/// The values of `metrics` for rows of logits: `[rows, labels]`, `[rows, 1]` for regression, and for token
/// classification one row of `tokens · labels` per sentence. `names` are the label names, which define the
/// entities.
///
/// # Errors
/// Non-finite logits, different numbers of rows and labels, metrics that do not fit the kind of labels.
pub fn score(
    metrics: &[Metric],
    logits: &[Vec<f32>],
    labels: &[Label],
    names: &[String],
) -> Result<Vec<(Metric, f64)>> {
    if logits.len() != labels.len() || labels.is_empty() {
        return Err(EvalError::Length { predictions: logits.len(), labels: labels.len() });
    }
    let predictions = Predictions::new(logits, labels, names)?;
    metrics.iter().map(|&metric| Ok((metric, predictions.value(metric)?))).collect()
}

/// Predictions beside the labels.
enum Predictions {
    Classes { predicted: Vec<u32>, labels: Vec<u32> },
    Scores { predicted: Vec<f64>, labels: Vec<f64> },
    Sets { counts: Vec<[usize; 3]>, exact: usize, rows: usize },
    Tags { counts: Vec<[usize; 3]>, entities: EntityCounts, right: usize, tokens: usize },
}

impl Predictions {
    fn new(logits: &[Vec<f32>], labels: &[Label], names: &[String]) -> Result<Self> {
        let kind = |what| EvalError::Kind { metric: "of one kind of labels".into(), what };
        let rows = || logits.iter().enumerate().zip(labels);
        Ok(match labels[0] {
            Label::Class(_) => {
                let predicted = rows().map(|((i, row), _)| argmax(i, row)).collect::<Result<_>>()?;
                let class =
                    |label: &Label| if let Label::Class(c) = label { Ok(*c) } else { Err(kind("others")) };
                Self::Classes { predicted, labels: labels.iter().map(class).collect::<Result<_>>()? }
            }
            Label::Score(_) => {
                let value = |((i, row), _): ((usize, &Vec<f32>), &Label)| {
                    argmax(i, row)?;
                    Ok(row.first().map_or(f64::NAN, |v| f64::from(*v)))
                };
                let score = |label: &Label| match label {
                    Label::Score(score) => Ok(f64::from(*score)),
                    _ => Err(kind("others")),
                };
                let predicted = rows().map(value).collect::<Result<_>>()?;
                Self::Scores { predicted, labels: labels.iter().map(score).collect::<Result<_>>()? }
            }
            Label::Set(_) => {
                let mut counts = vec![[0; 3]; logits[0].len()];
                let mut exact = 0;
                for ((i, row), label) in rows() {
                    let Label::Set(label) = label else { return Err(kind("others")) };
                    let predicted = predicted_set(i, row)?;
                    exact += usize::from(predicted == *label);
                    count(&mut counts, &predicted, label);
                }
                Self::Sets { counts, exact, rows: logits.len() }
            }
            Label::Span { .. } => return Err(kind("answers to questions")),
            Label::Tags(_) => {
                let mut counts = vec![[0; 3]; names.len()];
                let (mut entities, mut right, mut tokens) = (EntityCounts::default(), 0, 0);
                for ((i, row), label) in rows() {
                    let Label::Tags(tags) = label else { return Err(kind("others")) };
                    let tagged = row
                        .chunks(names.len().max(1))
                        .zip(tags)
                        .filter_map(|(row, tag)| Some((row, (*tag)?)));
                    let (mut predicted, mut labelled) = (Vec::new(), Vec::new());
                    for (row, tag) in tagged {
                        let class = argmax(i, row)?;
                        count(&mut counts, &[class], &[tag]);
                        right += usize::from(class == tag);
                        let name = |class: u32| names.get(class as usize).map_or("", String::as_str);
                        predicted.push(name(class));
                        labelled.push(name(tag));
                    }
                    tokens += labelled.len();
                    entities.add(&labelled, &predicted);
                }
                Self::Tags { counts, entities, right, tokens }
            }
        })
    }

    fn value(&self, metric: Metric) -> Result<f64> {
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        let what = match (self, metric) {
            (Self::Classes { predicted, labels }, metric) => match metric {
                Metric::Accuracy => return accuracy(predicted, labels),
                Metric::F1 => return f1(predicted, labels),
                Metric::Matthews => return matthews(predicted, labels),
                _ => "classes",
            },
            (Self::Scores { predicted, labels }, metric) => match metric {
                Metric::Pearson => return pearson(predicted, labels),
                Metric::Spearman => return spearman(predicted, labels),
                _ => "scores",
            },
            (Self::Sets { counts, exact, rows }, metric) => match metric {
                Metric::F1Micro => return Ok(f1_of_labels(counts).0),
                Metric::F1Macro => return Ok(f1_of_labels(counts).1),
                Metric::Accuracy => return Ok(share(*exact, *rows)),
                _ => "sets of labels",
            },
            (Self::Tags { counts, entities, right, tokens }, metric) => match metric {
                Metric::F1 => return Ok(entities.f1()),
                Metric::Precision => return Ok(entities.precision()),
                Metric::Recall => return Ok(entities.recall()),
                Metric::Accuracy => return Ok(share(*right, *tokens)),
                // Classes that do not occur are excluded from the mean, as in scikit-learn.
                Metric::F1Macro => {
                    let occurs = counts.iter().filter(|[_, predicted, labelled]| predicted + labelled > 0);
                    return Ok(f1_of_labels(&occurs.copied().collect::<Vec<_>>()).1);
                }
                _ => "tags of words",
            },
        };
        Err(EvalError::Kind { metric: metric.to_string(), what })
    }
}

/// Adds a row to the numbers of correct, predicted and labelled rows of each label.
fn count(counts: &mut [[usize; 3]], predicted: &[u32], labels: &[u32]) {
    let right = predicted.iter().filter(|label| labels.contains(label));
    for (place, labels) in
        [(0, right.collect::<Vec<_>>()), (1, predicted.iter().collect()), (2, labels.iter().collect())]
    {
        for &label in labels {
            if let Some(count) = counts.get_mut(label as usize) {
                count[place] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_by_the_largest_logit() {
        let logits = vec![vec![0.1, 0.2], vec![2.0, -1.0], vec![0.5, 0.5]];
        let labels = [Label::Class(1), Label::Class(0), Label::Class(1)];
        let values = score(&[Metric::Accuracy, Metric::F1], &logits, &labels, &[]).unwrap();
        assert_eq!(values[0].1, 2.0 / 3.0);
        assert!((values[1].1 - 2.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn scores_are_read_as_they_are() {
        let logits = vec![vec![0.0], vec![1.0], vec![4.0]];
        let labels = [Label::Score(0.0), Label::Score(2.0), Label::Score(8.0)];
        let values = score(&[Metric::Pearson, Metric::Spearman], &logits, &labels, &[]).unwrap();
        assert!(values.iter().all(|(_, v)| (v - 1.0).abs() < 1e-15), "{values:?}");
    }

    #[test]
    fn nan_is_an_error_and_not_a_class() {
        let error = score(&[Metric::Accuracy], &[vec![0.0, f32::NAN]], &[Label::Class(0)], &[]).unwrap_err();
        assert!(matches!(error, EvalError::NotFinite { row: 0, .. }), "{error}");
    }

    #[test]
    fn kinds_must_agree() {
        assert!(score(&[Metric::Pearson], &[vec![0.0]], &[Label::Class(0)], &[]).is_err());
        assert!(score(&[Metric::Accuracy], &[vec![0.0]], &[Label::Score(0.0)], &[]).is_err());
    }

    #[test]
    fn sets_are_what_is_above_a_half() {
        // Labels 0 and 2 in the first row, none in the second: one correct, one wrong, one missed.
        let logits = vec![vec![0.1, -3.0, 0.2], vec![-0.1, 0.0, -1.0]];
        let labels = [Label::Set(vec![0]), Label::Set(vec![1])];
        let values =
            score(&[Metric::F1Micro, Metric::F1Macro, Metric::Accuracy], &logits, &labels, &[]).unwrap();
        let values: Vec<f64> = values.into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, [0.5, 1.0 / 3.0, 0.0]);
        assert!(score(&[Metric::F1], &logits, &labels, &[]).is_err());
        let nan = score(&[Metric::F1Micro], &[vec![f32::NAN]], &labels[..1], &[]).unwrap_err();
        assert!(matches!(nan, EvalError::NotFinite { .. }), "{nan}");
    }

    /// Entities as seqeval counts them, from the logits of tokens; tokens without a tag are ignored.
    #[test]
    fn entities_equal_seqeval() {
        let text = include_str!("../../../tests/fixtures/seqeval.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        let names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"].map(String::from);
        let class = |tag: &serde_json::Value| names.iter().position(|name| tag == name).unwrap();
        let metrics = [Metric::F1, Metric::Precision, Metric::Recall];
        for case in golden["cases"].as_array().unwrap() {
            let rows = |key: &str| case[key].as_array().unwrap().iter().map(|row| row.as_array().unwrap());
            let one_hot = |class: usize| (0..5).map(move |i| if i == class { 2.0 } else { -1.0 });
            // One token before the words and one after each of them, whose logits have no meaning.
            let logits: Vec<Vec<f32>> = rows("predicted")
                .map(|row| {
                    one_hot(1)
                        .chain(row.iter().flat_map(|tag| one_hot(class(tag)).chain(one_hot(3))))
                        .collect()
                })
                .collect();
            let labels: Vec<Label> = rows("true")
                .map(|row| {
                    let tags = row.iter().flat_map(|tag| [Some(class(tag) as u32), None]);
                    Label::Tags([None].into_iter().chain(tags).collect())
                })
                .collect();
            for (metric, value) in score(&metrics, &logits, &labels, &names).unwrap() {
                let expect = case["default"][metric.name()].as_f64().unwrap();
                assert!(
                    (value - expect).abs() < 1e-8,
                    "{} {metric}: {value}, seqeval {expect}",
                    case["name"]
                );
            }
        }
    }
}
