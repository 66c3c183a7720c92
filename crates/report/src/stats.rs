//! Statistics over seeds.

/// Mean and spread of a few values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (n − 1); absent below two values.
    pub std: Option<f64>,
    /// How many values there are.
    pub count: usize,
}

/// Mean and standard deviation of `values`; `None` for an empty slice or a value that is not finite.
pub fn summarize(values: &[f64]) -> Option<Summary> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let count = values.len();
    let mean = values.iter().sum::<f64>() / count as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let std = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
    Some(Summary { mean, std, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(summarize(&[3.0]), Some(Summary { mean: 3.0, std: None, count: 1 }));
        let three = summarize(&[1.0, 2.0, 6.0]).unwrap();
        assert_eq!((three.mean, three.count), (3.0, 3));
        // Squares 4 + 1 + 9 = 14 over n − 1 = 2.
        assert_eq!(three.std, Some(7.0_f64.sqrt()));
        assert_eq!(summarize(&[5.0, 5.0]).unwrap().std, Some(0.0));
    }

    #[test]
    fn nothing_and_not_a_number_have_no_mean() {
        assert_eq!(summarize(&[]), None);
        assert_eq!(summarize(&[1.0, f64::NAN]), None);
        assert_eq!(summarize(&[f64::INFINITY]), None);
    }
}
