//! Accuracy, F1, and correlations.
//!
//! A correlation with a constant side is 0 by definition here (it is 0/0), so that constant predictions score 0
//! instead of failing the run.

use crate::error::{EvalError, Result};

fn same_length<A, B>(a: &[A], b: &[B]) -> Result<()> {
    if a.len() == b.len() && !a.is_empty() {
        Ok(())
    } else {
        Err(EvalError::Length { predictions: a.len(), labels: b.len() })
    }
}

/// Fraction of correct predictions.
///
/// # Errors
/// [`EvalError::Length`].
pub fn accuracy(predicted: &[u32], labels: &[u32]) -> Result<f64> {
    same_length(predicted, labels)?;
    let right = predicted.iter().zip(labels).filter(|(p, l)| p == l).count();
    Ok(right as f64 / labels.len() as f64)
}

/// F1 of class 1: the harmonic mean of precision and recall, 0 if both are 0.
///
/// # Errors
/// [`EvalError::Length`].
pub fn f1(predicted: &[u32], labels: &[u32]) -> Result<f64> {
    same_length(predicted, labels)?;
    let count = |p: bool, l: bool| {
        predicted.iter().zip(labels).filter(|(a, b)| (**a == 1) == p && (**b == 1) == l).count() as f64
    };
    let (hits, wrong) = (count(true, true), count(true, false) + count(false, true));
    Ok(if hits == 0.0 { 0.0 } else { 2.0 * hits / (2.0 * hits + wrong) })
}

/// F1 of each label, from the numbers of correct, predicted and labelled rows: over all labels together
/// (micro), and the mean over the labels (macro). A label that is neither predicted nor labelled has F1 0, as
/// in scikit-learn.
pub(crate) fn f1_of_labels(counts: &[[usize; 3]]) -> (f64, f64) {
    let f1 = |[right, predicted, labelled]: [usize; 3]| match predicted + labelled {
        0 => 0.0,
        all => 2.0 * right as f64 / all as f64,
    };
    let sum = counts.iter().fold([0; 3], |sum, count| [0, 1, 2].map(|i| sum[i] + count[i]));
    let mean = counts.iter().map(|count| f1(*count)).sum::<f64>() / counts.len().max(1) as f64;
    (f1(sum), mean)
}

/// Matthews' correlation coefficient over any number of classes (Gorodkin 2004), −1 to 1.
///
/// # Errors
/// [`EvalError::Length`].
pub fn matthews(predicted: &[u32], labels: &[u32]) -> Result<f64> {
    same_length(predicted, labels)?;
    let classes = predicted.iter().chain(labels).max().map_or(0, |&c| c as usize + 1);
    let (mut p, mut t) = (vec![0.0; classes], vec![0.0; classes]);
    let mut right = 0.0;
    for (&a, &b) in predicted.iter().zip(labels) {
        p[a as usize] += 1.0;
        t[b as usize] += 1.0;
        right += f64::from(a == b);
    }
    let n = labels.len() as f64;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let spread = (n * n - dot(&p, &p)) * (n * n - dot(&t, &t));
    Ok(if spread == 0.0 { 0.0 } else { (right * n - dot(&p, &t)) / spread.sqrt() })
}

/// Pearson's correlation, −1 to 1.
///
/// # Errors
/// [`EvalError::Length`].
pub fn pearson(a: &[f64], b: &[f64]) -> Result<f64> {
    same_length(a, b)?;
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    // Rounding in the mean must not make a constant side look variable.
    let constant = |v: &[f64]| v.iter().all(|x| *x == v[0]);
    if constant(a) || constant(b) || aa == 0.0 || bb == 0.0 {
        return Ok(0.0);
    }
    Ok((ab / (aa.sqrt() * bb.sqrt())).clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank.
///
/// # Errors
/// [`EvalError::Length`].
pub fn spearman(a: &[f64], b: &[f64]) -> Result<f64> {
    same_length(a, b)?;
    pearson(&ranks(a), &ranks(b))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let tied = order[start..].iter().take_while(|&&i| values[i] == values[order[start]]).count().max(1);
        let mean = start as f64 + (tied - 1) as f64 / 2.0 + 1.0;
        for &i in &order[start..start + tied] {
            ranks[i] = mean;
        }
        start += tied;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    // Confusion by hand: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    const PREDICTED: [u32; 10] = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
    const LABELS: [u32; 10] = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0];

    #[test]
    fn binary_metrics_by_hand() {
        assert_eq!(accuracy(&PREDICTED, &LABELS).unwrap(), 0.7);
        // 2·3 / (2·3 + 1 + 2)
        assert!((f1(&PREDICTED, &LABELS).unwrap() - 6.0 / 9.0).abs() < 1e-15);
        // (3·4 − 1·2) / √(4·5·5·6)
        assert!((matthews(&PREDICTED, &LABELS).unwrap() - 10.0 / 600f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn matthews_of_three_classes_by_hand() {
        // right 5 of 6, predicted (2, 3, 1), true (2, 2, 2): (5·6 − (4 + 6 + 2)) / √((36 − 14)·(36 − 12))
        let value = matthews(&[0, 0, 1, 1, 1, 2], &[0, 0, 1, 1, 2, 2]).unwrap();
        let hand = (5.0 * 6.0 - 12.0) / (22.0f64 * 24.0).sqrt();
        assert!((value - hand).abs() < 1e-15, "{value} {hand}");
    }

    #[test]
    fn correlations_by_hand() {
        // Deviations (−1.5, −0.5, 0.5, 1.5) and (−1.5, 0.5, −0.5, 1.5): 4 / 5.
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]);
        assert!((pearson(&a, &b).unwrap() - 0.8).abs() < 1e-15);
        assert!((spearman(&a, &b).unwrap() - 0.8).abs() < 1e-15);
        assert!((spearman(&a, &[1.0, 8.0, 27.0, 64.0]).unwrap() - 1.0).abs() < 1e-15);
        // Ties: ranks (1.5, 1.5, 3) against (1, 2, 3): 1.5 / √(1.5·2).
        let tied = spearman(&[5.0, 5.0, 9.0], &[1.0, 2.0, 3.0]).unwrap();
        assert!((tied - 1.5 / 3f64.sqrt()).abs() < 1e-15);
    }

    #[rstest]
    #[case(&[0; 10])]
    #[case(&[1; 10])]
    fn constant_predictions_score_no_correlation(#[case] constant: &[u32]) {
        assert_eq!(matthews(constant, &LABELS).unwrap(), 0.0);
        let numbers: Vec<f64> = LABELS.iter().map(|&l| f64::from(l)).collect();
        assert_eq!(pearson(&[0.1; 10], &numbers).unwrap(), 0.0);
        assert_eq!(spearman(&[0.1; 10], &numbers).unwrap(), 0.0);
    }

    #[test]
    fn constant_predictions_have_known_accuracy_and_f1() {
        assert_eq!(accuracy(&[1; 10], &LABELS).unwrap(), 0.5);
        assert!((f1(&[1; 10], &LABELS).unwrap() - 2.0 / 3.0).abs() < 1e-15);
        assert_eq!(f1(&[0; 10], &LABELS).unwrap(), 0.0);
    }

    #[test]
    fn lengths_must_agree() {
        assert_eq!(accuracy(&[], &[]), Err(EvalError::Length { predictions: 0, labels: 0 }));
        assert_eq!(pearson(&[1.0], &[]), Err(EvalError::Length { predictions: 1, labels: 0 }));
    }
}
