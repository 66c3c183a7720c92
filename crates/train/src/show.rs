//! Steps and evaluations on one of burn-train's renderers: a progress bar, or its dashboard.

use std::collections::BTreeSet;
use std::sync::Arc;

use burn::data::dataloader::Progress;
use burn::train::Interrupter;
use burn::train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry,
    SerializedEntry,
};
use burn::train::renderer::{MetricState, MetricsRenderer, ProgressType, TrainingProgress};

use crate::error::Result;
use crate::objective::EvalOutput;
use crate::renderer::ProgressRenderer;
use crate::watch::{StepReport, Watch};

/// Shows the progress of training; the dashboard can also stop it.
pub struct ShowWatch {
    renderer: Box<dyn MetricsRenderer>,
    interrupter: Interrupter,
    known: BTreeSet<String>,
    /// Whether lines may be written beside the display.
    writes_lines: bool,
}

impl Default for ShowWatch {
    fn default() -> Self {
        Self::bar()
    }
}

impl ShowWatch {
    /// A bar on standard error, or lines if that is not a terminal.
    pub fn bar() -> Self {
        Self::new(Box::new(ProgressRenderer::new()), Interrupter::new(), true)
    }

    /// burn-train's dashboard on standard output, which must be a terminal.
    #[cfg(feature = "tui")]
    pub fn dashboard() -> Self {
        let interrupter = Interrupter::new();
        let renderer = burn::train::renderer::tui::TuiMetricsRendererWrapper::new(interrupter.clone(), None);
        Self::new(Box::new(renderer), interrupter, false)
    }

    fn new(renderer: Box<dyn MetricsRenderer>, interrupter: Interrupter, writes_lines: bool) -> Self {
        Self { renderer, interrupter, known: BTreeSet::new(), writes_lines }
    }

    fn state(&mut self, name: &str, value: f64) -> MetricState {
        let id = MetricId::new(Arc::new(name.to_string()));
        if self.known.insert(name.to_string()) {
            let higher_is_better = !["loss", "perplexity"].iter().any(|part| name.contains(part));
            self.renderer.register_metric(MetricDefinition {
                metric_id: id.clone(),
                name: name.to_string(),
                description: None,
                attributes: MetricAttributes::Numeric(NumericAttributes { unit: None, higher_is_better }),
            });
        }
        let entry = SerializedEntry::new(format!("{value:.4}"), value.to_string());
        MetricState::Numeric(MetricEntry::new(id, entry), NumericEntry::Value(value))
    }
}

fn progress(step: usize, of: usize) -> (TrainingProgress, Vec<ProgressType>) {
    let progress = Progress::new(step, of);
    let indicators = vec![ProgressType::Detailed { tag: "Step".into(), progress: progress.clone() }];
    (TrainingProgress { progress: None, global_progress: progress, iteration: Some(step) }, indicators)
}

impl Watch for ShowWatch {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        for (name, value) in [("loss", report.loss), ("learning_rate", report.lr), ("epoch", report.epoch)] {
            let state = self.state(name, value);
            self.renderer.update_train(state);
        }
        let (progress, indicators) = progress(report.step, report.of);
        self.renderer.render_train(progress, indicators);
        Ok(())
    }

    fn evaluation(&mut self, step: usize, of: usize, result: &EvalOutput) -> Result<()> {
        for (name, value) in &result.values {
            let state = self.state(name, *value);
            self.renderer.update_valid(state);
        }
        let (progress, indicators) = progress(step, of);
        self.renderer.render_valid(progress, indicators);
        if self.writes_lines {
            result.samples.iter().for_each(|sample| eprintln!("sample at step {step}: {sample}"));
        }
        Ok(())
    }

    fn should_stop(&self) -> bool {
        self.interrupter.should_stop()
    }

    fn end(&mut self) {
        if let Err(error) = self.renderer.on_train_end(None) {
            tracing::warn!("the progress display failed to close: {error}");
        }
    }
}
