//! Rotary positions (Su et al. 2021): frequencies of a config, and angles of positions.

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::decoder::keys::Keys;

/// Rotary positions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Width of the part of a head that is rotated, from its start; even.
    pub rotary_dim: usize,
    /// How frequencies are changed for longer texts than the model was first trained on.
    pub scaling: RopeScaling,
}

/// How frequencies are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// Divisor of the low ones.
        factor: f64,
        /// Wavelengths above the first length divided by this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below the first length divided by this are high frequencies.
        high_freq_factor: f64,
        /// The length the model was first trained on.
        original_length: f64,
    },
}

impl RopeConfig {
    /// From `rope_theta`, `rope_scaling` and the key of the rotated part, or from `rope_parameters`, which
    /// holds them all in newer configs.
    pub(crate) fn read(
        keys: &Keys<'_>,
        head_dim: usize,
        partial_key: &str,
        partial_default: f64,
    ) -> Result<Self, String> {
        Self::read_with(keys, head_dim, partial_key, partial_default, "rope_theta")
    }

    /// As [`read`](Self::read), with another name for the base.
    pub(crate) fn read_with(
        keys: &Keys<'_>,
        head_dim: usize,
        partial_key: &str,
        partial_default: f64,
        theta_key: &str,
    ) -> Result<Self, String> {
        let new = keys.object("rope_parameters")?;
        let old = keys.object("rope_scaling")?;
        let in_new = |key: &str| new.map_or(Ok(None), |new| new.number(key));
        let theta = match in_new("rope_theta")? {
            Some(theta) => theta,
            None => keys.number_or(theta_key, 10_000.0)?,
        };
        if theta <= 0.0 {
            return Err(format!("rope_theta = {theta} is out of range"));
        }
        let part = match in_new("partial_rotary_factor")? {
            Some(part) => part,
            None => keys.number_or(partial_key, partial_default)?,
        };
        if !(0.0..=1.0).contains(&part) {
            return Err(format!("{partial_key} = {part} is out of range; expected 0..=1"));
        }
        let rotary_dim = (head_dim as f64 * part) as usize;
        if !rotary_dim.is_multiple_of(2) {
            return Err(format!("rotary positions over {rotary_dim} elements; expected an even number"));
        }
        let scaling = new.or(old).map_or(Ok(RopeScaling::None), |keys| RopeScaling::read(&keys))?;
        Ok(Self { theta, rotary_dim, scaling })
    }

    /// Angle of each pair of elements at position 1; shape `[rotary_dim / 2]`.
    pub fn frequencies(&self) -> Vec<f32> {
        let dim = self.rotary_dim as f64;
        (0..self.rotary_dim / 2)
            .map(|i| self.scaling.apply(self.theta.powf(-2.0 * i as f64 / dim)) as f32)
            .collect()
    }
}

impl RopeScaling {
    fn read(keys: &Keys<'_>) -> Result<Self, String> {
        let kind = keys.text("rope_type")?.or(keys.text("type")?).unwrap_or("default");
        let positive = |key: &str| -> Result<f64, String> {
            let value = keys.number(key)?.ok_or_else(|| format!("rope scaling '{kind}' has no {key}"))?;
            if value > 0.0 {
                Ok(value)
            } else {
                Err(format!("rope scaling: {key} = {value} is out of range"))
            }
        };
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: positive("factor")? }),
            "llama3" => {
                let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
                if low >= high {
                    return Err(format!(
                        "rope scaling: low_freq_factor {low} is not below high_freq_factor {high}"
                    ));
                }
                Ok(Self::Llama3 {
                    factor: positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_length: positive("original_max_position_embeddings")?,
                })
            }
            other => {
                Err(format!("rope scaling '{other}' is not supported; expected default, linear or llama3"))
            }
        }
    }

    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_length } => {
                // How many turns the pair makes over the first length.
                let turns = original_length * frequency / std::f64::consts::TAU;
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (keep + (1.0 - keep) / factor)
            }
        }
    }
}

/// Cosines and sines of the angles of positions; shapes `[tokens, rotary_dim / 2]`.
#[derive(Clone, Debug)]
pub struct Angles<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B, 2>,
    /// Sines.
    pub sin: Tensor<B, 2>,
}

impl<B: Backend> Angles<B> {
    /// The angles of these positions.
    pub fn new(frequencies: &[f32], positions: &[usize], device: &B::Device) -> Self {
        let shape = [positions.len(), frequencies.len()];
        let mut cos = Vec::with_capacity(shape[0] * shape[1]);
        let mut sin = Vec::with_capacity(shape[0] * shape[1]);
        for &position in positions {
            for &frequency in frequencies {
                // The product in f32 is what the reference implementations round to.
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<RopeConfig, String> {
        RopeConfig::read(&Keys::new(value.as_object().unwrap()), 8, "partial_rotary_factor", 1.0)
    }

    #[test]
    fn old_and_new_configs_say_the_same() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        let mut new = scaling.as_object().unwrap().clone();
        new.insert("rope_theta".into(), json!(500.0));
        let old = read(json!({"rope_theta": 500.0, "rope_scaling": scaling})).unwrap();
        assert_eq!(read(json!({"rope_parameters": new})).unwrap(), old);
        assert_eq!(read(json!({"rope_scaling": null})).unwrap().theta, 10_000.0);
        assert_eq!(read(json!({"partial_rotary_factor": 0.25})).unwrap().rotary_dim, 2);
    }

    #[test]
    fn llama3_divides_low_frequencies_and_keeps_high_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_length: 64.0,
        };
        let turns = |n: f64| std::f64::consts::TAU * n / 64.0;
        assert_eq!(scaling.apply(turns(5.0)), turns(5.0));
        assert_eq!(scaling.apply(turns(0.5)), turns(0.5) / 8.0);
        // In the middle of the ramp: half kept, half divided.
        assert!((scaling.apply(turns(2.5)) / turns(2.5) - (0.5 + 0.5 / 8.0)).abs() < 1e-12);
    }

    #[rstest]
    #[case(json!({"rope_scaling": {"type": "yarn"}}), "'yarn' is not supported")]
    #[case(json!({"rope_scaling": {"type": "linear"}}), "has no factor")]
    #[case(json!({"rope_scaling": {"type": "linear", "factor": 0}}), "out of range")]
    #[case(json!({"rope_theta": -1.0}), "rope_theta")]
    #[case(json!({"partial_rotary_factor": 0.4}), "even")]
    #[case(json!({"partial_rotary_factor": 2.0}), "0..=1")]
    #[case(json!({"rope_scaling": 3}), "expected an object")]
    fn what_is_not_understood_is_refused(#[case] value: Value, #[case] part: &str) {
        let error = read(value).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
