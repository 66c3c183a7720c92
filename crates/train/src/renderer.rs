//! Progress on standard error: a bar on a terminal, otherwise plain lines.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use burn::train::LearnerSummary;
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};
use indicatif::{ProgressBar, ProgressStyle};

/// Minimum time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Renders steps with rate and time left, and evaluations as lines.
pub(crate) struct ProgressRenderer {
    bar: Option<ProgressBar>,
    names: std::collections::HashMap<burn::train::metric::MetricId, String>,
    last: Vec<(String, f64)>,
    begun: Instant,
    first_step: Option<usize>,
    last_line: Instant,
}

impl ProgressRenderer {
    /// A renderer for standard error, terminal or not.
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = "{bar:24} {pos}/{len} steps  {per_sec}  {eta} left  {msg}";
            bar.set_style(
                ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            names: std::collections::HashMap::new(),
            last: Vec::new(),
            begun: now,
            first_step: None,
            last_line: now,
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // Progress is not a result: a closed stderr does not stop the run.
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    fn note(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, value) = state
            && let Some(name) = self.names.get(&entry.metric_id)
        {
            match self.last.iter_mut().find(|(n, _)| n == name) {
                Some((_, old)) => *old = value.current(),
                None => self.last.push((name.clone(), value.current())),
            }
        }
    }

    fn take_message(&mut self) -> String {
        let parts: Vec<String> = self
            .last
            .drain(..)
            .map(
                |(name, v)| {
                    if name == "learning_rate" { format!("lr {v:.2e}") } else { format!("{name} {v:.4}") }
                },
            )
            .collect();
        parts.join("  ")
    }
}

impl MetricsRendererTraining for ProgressRenderer {
    fn update_train(&mut self, state: MetricState) {
        self.note(state);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.note(state);
    }

    fn render_train(&mut self, item: TrainingProgress, _indicators: Vec<ProgressType>) {
        let step = item.iteration.unwrap_or(0);
        let total = item.global_progress.items_total;
        let first = *self.first_step.get_or_insert(step);
        let message = self.take_message();
        if let Some(bar) = &self.bar {
            if step == first {
                bar.set_length(total as u64);
                // A resumed run did not make its earlier steps in this process.
                bar.set_position(first as u64 - 1);
                bar.reset_eta();
            }
            bar.set_position(step as u64);
            bar.set_message(message);
        } else if step == first || step == total || self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let done = step - first;
            let rate = done as f64 / self.begun.elapsed().as_secs_f64();
            let left =
                if done > 0 { format!("{:.0} s left", (total - step) as f64 / rate) } else { String::new() };
            self.line(&format!("step {step}/{total}  {rate:.1}/s  {left}  {message}"));
        }
    }

    fn render_valid(&mut self, item: TrainingProgress, _indicators: Vec<ProgressType>) {
        let message = self.take_message();
        self.line(&format!("evaluation at step {}  {message}", item.iteration.unwrap_or(0)));
    }

    fn on_train_end(&mut self, _summary: Option<LearnerSummary>) -> Result<(), Box<dyn core::error::Error>> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        Ok(())
    }
}

impl MetricsRendererEvaluation for ProgressRenderer {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}

    fn render_test(&mut self, _item: EvaluationProgress, _indicators: Vec<ProgressType>) {}
}

impl MetricsRenderer for ProgressRenderer {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }
}
