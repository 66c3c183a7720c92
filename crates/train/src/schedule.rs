//! Warm-up and decay of the learning rate.

use crate::config::{SchedulerKind, TrainConfig};

/// Linear warm-up, then linear, cosine or no decay; as in transformers' `get_*_schedule_with_warmup`.
///
/// Steps count from 0: the first of `w` warm-up steps runs at rate 0, step `w` at the peak.
#[derive(Clone, Debug)]
pub struct Schedule {
    peak: f64,
    kind: SchedulerKind,
    warmup: usize,
    total: usize,
}

impl Schedule {
    /// The schedule of a config, its warm-up rounded up to whole steps.
    pub fn new(config: &TrainConfig) -> Self {
        let warmup = (config.warmup_ratio * config.max_steps as f64).ceil() as usize;
        Self { peak: config.lr, kind: config.scheduler, warmup, total: config.max_steps }
    }

    /// The rate of step `step`.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let decaying = self.total.saturating_sub(self.warmup).max(1);
        let progress = (step - self.warmup) as f64 / decaying as f64;
        let factor = match self.kind {
            SchedulerKind::Linear => (1.0 - progress).max(0.0),
            SchedulerKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
            SchedulerKind::Constant => 1.0,
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn schedule(scheduler: SchedulerKind) -> Schedule {
        Schedule::new(&TrainConfig {
            lr: 1.0,
            max_steps: 100,
            warmup_ratio: 0.1,
            scheduler,
            ..Default::default()
        })
    }

    #[rstest]
    #[case(SchedulerKind::Linear, 55, 0.5)]
    #[case(SchedulerKind::Linear, 100, 0.0)]
    #[case(SchedulerKind::Cosine, 55, 0.5)]
    #[case(SchedulerKind::Cosine, 100, 0.0)]
    #[case(SchedulerKind::Constant, 99, 1.0)]
    fn decays(#[case] kind: SchedulerKind, #[case] step: usize, #[case] expect: f64) {
        assert!((schedule(kind).at(step) - expect).abs() < 1e-12);
    }

    #[test]
    fn warms_up_from_zero_to_the_peak() {
        let s = schedule(SchedulerKind::Linear);
        assert_eq!([s.at(0), s.at(5), s.at(10)], [0.0, 0.5, 1.0]);
    }

    #[test]
    fn without_warm_up_the_first_step_is_at_the_peak() {
        let config = TrainConfig { warmup_ratio: 0.0, lr: 0.3, ..Default::default() };
        let s = Schedule::new(&config);
        assert_eq!(s.at(0), 0.3);
        assert!(s.at(1) < 0.3);
    }
}
