//! Where an adapter can sit: the linear maps and embeddings of a model.

/// One linear map (or embedding) of a model that can carry an adapter.
///
/// Row-vector convention: `y = x·W + b` with `W` of shape `[d_input, d_output]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Hugging Face module path, e.g. `bert.encoder.layer.0.attention.self.query`.
    pub path: String,
    /// Index of the transformer layer, `None` outside the layers (pooler, classifier).
    pub layer: Option<usize>,
    /// Width of the input.
    pub d_input: usize,
    /// Width of the output.
    pub d_output: usize,
    /// Whether the map belongs to the task head, which `all-linear` leaves out.
    pub head: bool,
    /// Whether it is an embedding: `d_input` rows that token ids pick, each of width `d_output`.
    pub embedding: bool,
}

impl Site {
    /// Largest rank at which a factored update still says something new.
    pub fn max_rank(&self) -> usize {
        self.d_input.min(self.d_output)
    }

    /// Last segment of the path, the name users know (`query`, `q_proj`).
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// The path relative to its layer (`attention.self.query`): equal for the same map of every layer.
    pub fn kind(&self) -> String {
        match self.layer {
            Some(layer) => {
                let marker = format!(".{layer}.");
                self.path.split_once(&marker).map_or(self.path.as_str(), |(_, rest)| rest).to_string()
            }
            None => self.path.clone(),
        }
    }
}

/// How a forward pass runs: evaluation, or training with a seed for every random choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mode {
    seed: Option<u64>,
}

impl Mode {
    /// Evaluation: no dropout.
    pub const EVAL: Self = Self { seed: None };

    /// Training; `seed` is different for every step.
    pub const fn train(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }

    /// Whether dropout is applied.
    pub const fn is_train(self) -> bool {
        self.seed.is_some()
    }

    /// The dropout of one place in the model, `None` in evaluation or at `p = 0`.
    ///
    /// `stream` tells the places apart; the same seed and stream give the same mask on every backend.
    pub fn dropout(self, p: f64, stream: u64) -> Option<lowrank_kernels::Dropout> {
        let seed = self.seed?;
        (p > 0.0).then(|| lowrank_kernels::Dropout { p: p as f32, seed: crate::init::mix(seed, stream) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_the_path_below_the_layer() {
        let site = Site {
            path: "bert.encoder.layer.11.attention.self.query".into(),
            layer: Some(11),
            d_input: 4,
            d_output: 6,
            head: false,
            embedding: false,
        };
        assert_eq!(site.kind(), "attention.self.query");
        assert_eq!(site.name(), "query");
        assert_eq!(site.max_rank(), 4);
    }

    #[test]
    fn evaluation_drops_nothing_and_streams_differ() {
        assert!(Mode::EVAL.dropout(0.5, 1).is_none());
        assert!(Mode::train(3).dropout(0.0, 1).is_none());
        let (a, b) = (Mode::train(3).dropout(0.5, 1), Mode::train(3).dropout(0.5, 2));
        assert_ne!(a, b);
        assert_eq!(a, Mode::train(3).dropout(0.5, 1));
    }
}
