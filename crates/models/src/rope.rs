//! Angles of rotary positions on the device.

use burn::prelude::*;
use burn::tensor::TensorData;

use crate::config::RopeConfig;

/// Cosines and sines of the angles of positions; shapes `[tokens, rotary_dim / 2]`. Also the factors on the
/// queries, `[tokens, 1]`, if they grow with their position.
#[derive(Clone, Debug)]
pub(crate) struct Angles<B: Backend> {
    pub(crate) cos: Tensor<B, 2>,
    pub(crate) sin: Tensor<B, 2>,
    pub(crate) query_factors: Option<Tensor<B, 2>>,
}

/// One kind of rotary positions, ready to compute angles.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    config: RopeConfig,
    /// Those of sequences within the model's length.
    frequencies: Vec<f32>,
}

impl Rotary {
    pub(crate) fn new(config: &RopeConfig) -> Self {
        Self { frequencies: config.frequencies(0), config: config.clone() }
    }

    /// The angles of `positions`, of which `lengths[i]` belong to sequence `i`.
    pub(crate) fn angles<B: Backend>(
        &self,
        lengths: &[usize],
        positions: &[usize],
        device: &B::Device,
    ) -> Angles<B> {
        let shape = [positions.len(), self.frequencies.len()];
        let mut cos = Vec::with_capacity(shape[0] * shape[1]);
        let mut sin = Vec::with_capacity(shape[0] * shape[1]);
        let factor = self.config.attention_factor();
        let mut rest = positions;
        for &n in lengths {
            let (own, later) = rest.split_at(n);
            rest = later;
            // The result of a sequence does not depend on the others in the batch, nor do its frequencies.
            let length = own.last().map_or(0, |last| last + 1);
            let own_frequencies = self.config.depends_on_length().then(|| self.config.frequencies(length));
            let frequencies = own_frequencies.as_deref().unwrap_or(&self.frequencies);
            for &position in own {
                for &frequency in frequencies {
                    // The product in f32 is what the reference implementations round to.
                    let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                    cos.push((c * factor) as f32);
                    sin.push((s * factor) as f32);
                }
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, shape), device);
        let query_factors = self.config.query_growth.map(|growth| {
            let factors: Vec<f32> = positions.iter().map(|&position| growth.at(position)).collect();
            Tensor::from_data(TensorData::new(factors, [positions.len(), 1]), device)
        });
        Angles { cos: tensor(cos), sin: tensor(sin), query_factors }
    }
}
