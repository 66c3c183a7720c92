//! Progress bars for long work on many weights.

use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lowrank_compress::Progress;

/// Progress bars on standard error, if that is a terminal.
pub(crate) struct Bars {
    bar: Mutex<Option<ProgressBar>>,
}

impl Bars {
    /// No bar until a stage begins.
    pub(crate) fn new() -> Self {
        Self { bar: Mutex::new(None) }
    }

    /// Clears the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn stage(&self, name: &str, units: u64) {
        self.finish();
        let bar = ProgressBar::with_draw_target(Some(units), ProgressDrawTarget::stderr());
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3} % {eta} left  {msg}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name.to_string());
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn done(&self, module: &str, error: Option<f64>, units: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            let error = error.map(|error| format!(" error {error:.4}")).unwrap_or_default();
            bar.set_message(format!("{module}{error}"));
            bar.inc(units);
        }
    }
}
