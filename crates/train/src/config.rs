//! Hyper-parameters of training, validated once.

use lowrank_data::pack::{BatchPlan, BatchSize};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// Learning-rate schedule after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SchedulerKind {
    /// Linear decay to zero.
    #[default]
    Linear,
    /// Cosine decay to zero.
    Cosine,
    /// Constant learning rate.
    Constant,
}

/// Hyper-parameters of training.
///
/// | name | default | purpose | range |
/// |---|---|---|---|
/// | `lr` | 5e-4 | peak learning rate | finite, > 0 |
/// | `head_lr` | `lr` | peak learning rate of the task head | finite, > 0 |
/// | `lora_plus` | 1 | ratio of the learning rate of a LoRA's `B` to that of its `A` | finite, > 0 |
/// | `weight_decay` | 0 | decoupled decay of matrices, not of biases and norms | finite, ≥ 0 |
/// | `batch_size` | 32 | sequences per micro-batch | ≥ 1 |
/// | `batch_tokens` | none | tokens per micro-batch, in place of `batch_size` | ≥ 1 |
/// | `grad_accum` | 1 | micro-batches per step | ≥ 1 |
/// | `max_steps` | 500 | optimizer steps | ≥ 1 |
/// | `warmup_ratio` | 0.06 | fraction of the steps used for warm-up | 0 ..= 1 |
/// | `max_grad_norm` | 1 | maximum global gradient norm; 0 disables clipping | finite, ≥ 0 |
/// | `eval_every` | 100 | steps between evaluations | ≥ 1 |
/// | `save_every` | none | steps between checkpoints, a multiple of `eval_every` | ≥ 1 |
/// | `early_stopping` | none | evaluations without improvement after which to stop | ≥ 1 |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Peak learning rate of the task head.
    pub head_lr: Option<f64>,
    /// LoRA+ (Hayou et al. 2024): ratio of the learning rate of `B` to that of `A`.
    pub lora_plus: Option<f64>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Tokens per micro-batch, in place of `batch_size`.
    pub batch_tokens: Option<usize>,
    /// Micro-batches per step.
    pub grad_accum: usize,
    /// Optimizer steps.
    pub max_steps: usize,
    /// Fraction of the steps used for warm-up.
    pub warmup_ratio: f64,
    /// The schedule after the warm-up.
    pub scheduler: SchedulerKind,
    /// Maximum global gradient norm; 0 disables clipping.
    pub max_grad_norm: f64,
    /// Steps between evaluations.
    pub eval_every: usize,
    /// Steps between checkpoints.
    pub save_every: Option<usize>,
    /// Evaluations without improvement after which to stop.
    pub early_stopping: Option<usize>,
    /// Seed of shuffling and dropout.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            lr: 5e-4,
            head_lr: None,
            lora_plus: None,
            weight_decay: 0.0,
            batch_size: 32,
            batch_tokens: None,
            grad_accum: 1,
            max_steps: 500,
            warmup_ratio: 0.06,
            scheduler: SchedulerKind::Linear,
            max_grad_norm: 1.0,
            eval_every: 100,
            save_every: None,
            early_stopping: None,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// The size of a micro-batch.
    pub fn size(&self) -> BatchSize {
        self.batch_tokens.map_or(BatchSize::Rows(self.batch_size), BatchSize::Tokens)
    }

    /// The order of rows of these lengths.
    ///
    /// # Errors
    /// No rows, a batch size that they do not fit.
    pub fn plan(&self, lengths: impl IntoIterator<Item = usize>) -> Result<BatchPlan> {
        Ok(BatchPlan::new(lengths.into_iter().collect(), self.size(), self.grad_accum, self.seed)?)
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`TrainError::BadValue`] naming the first that is outside.
    pub fn validate(&self) -> Result<()> {
        let positive = |name, value: f64| {
            check(name, value, value.is_finite() && value > 0.0, "a finite number above 0")
        };
        let not_negative = |name, value: f64| {
            check(name, value, value.is_finite() && value >= 0.0, "a finite number, 0 or more")
        };
        let count = |name, value: usize| check(name, value, value >= 1, "1 or more");
        positive("lr", self.lr)?;
        positive("head-lr", self.head_lr.unwrap_or(self.lr))?;
        positive("lora-plus", self.lora_plus.unwrap_or(1.0))?;
        not_negative("weight-decay", self.weight_decay)?;
        not_negative("max-grad-norm", self.max_grad_norm)?;
        check("warmup-ratio", self.warmup_ratio, (0.0..=1.0).contains(&self.warmup_ratio), "0 to 1")?;
        count("batch-size", self.batch_size)?;
        count("batch-tokens", self.batch_tokens.unwrap_or(1))?;
        count("grad-accum", self.grad_accum)?;
        count("max-steps", self.max_steps)?;
        count("eval-every", self.eval_every)?;
        count("early-stopping", self.early_stopping.unwrap_or(1))?;
        let save = self.save_every.unwrap_or(self.eval_every);
        check(
            "save-every",
            save,
            save >= 1 && save.is_multiple_of(self.eval_every),
            "a multiple of eval-every",
        )
    }
}

fn check(name: &'static str, value: impl ToString, ok: bool, expected: &'static str) -> Result<()> {
    if ok { Ok(()) } else { Err(TrainError::BadValue { name, value: value.to_string(), expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn the_defaults_are_valid() {
        TrainConfig::default().validate().unwrap();
    }

    #[rstest]
    #[case(TrainConfig { lr: f64::NAN, ..Default::default() }, "lr = NaN")]
    #[case(TrainConfig { lr: 0.0, ..Default::default() }, "lr = 0")]
    #[case(TrainConfig { head_lr: Some(-1.0), ..Default::default() }, "head-lr = -1")]
    #[case(TrainConfig { weight_decay: f64::INFINITY, ..Default::default() }, "weight-decay = inf")]
    #[case(TrainConfig { warmup_ratio: 1.5, ..Default::default() }, "warmup-ratio = 1.5")]
    #[case(TrainConfig { batch_size: 0, ..Default::default() }, "batch-size = 0")]
    #[case(TrainConfig { max_steps: 0, ..Default::default() }, "max-steps = 0")]
    #[case(TrainConfig { save_every: Some(150), ..Default::default() }, "save-every = 150")]
    #[case(TrainConfig { early_stopping: Some(0), ..Default::default() }, "early-stopping = 0")]
    fn what_is_out_of_range_is_named(#[case] config: TrainConfig, #[case] start: &str) {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(start), "{error}");
    }
}
