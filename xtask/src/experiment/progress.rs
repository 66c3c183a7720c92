//! Progress bars on a terminal, otherwise plain lines.

use std::{collections::BTreeSet, sync::Mutex, time::Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::plan::Cell;

/// The progress of a grid on standard error.
pub(crate) struct Progress {
    bars: MultiProgress,
    total: ProgressBar,
    started: Instant,
    /// Cells reported as running elsewhere.
    elsewhere: Mutex<BTreeSet<String>>,
}

impl Progress {
    /// Progress over `cells`, some of which may be done already.
    pub(crate) fn new(cells: usize, skipped: usize) -> Self {
        let bars = MultiProgress::new();
        let total = bars.add(ProgressBar::new((cells - skipped) as u64));
        total.set_style(style("{bar:30} {pos}/{len} cells  {elapsed} elapsed, {eta} left"));
        let progress = Self { bars, total, started: Instant::now(), elsewhere: Mutex::default() };
        if skipped > 0 {
            progress.line(&format!("{skipped} of {cells} cells are done already"));
        }
        progress.total.tick();
        progress
    }

    /// A cell's own bar, gone when it is dropped.
    pub(crate) fn start(&self, cell: &Cell) -> CellBar {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {prefix}  {wide_msg}"));
        bar.set_prefix(cell.id.clone());
        CellBar(bar)
    }

    pub(crate) fn done(&self, cell: &Cell) {
        self.total.inc(1);
        self.settled(&format!("done    {}", cell.id));
    }

    pub(crate) fn failed(&self, cell: &Cell, why: &str) {
        self.total.inc(1);
        self.settled(&format!("FAILED  {}: {why}", cell.id));
    }

    /// Reports once that another process runs a cell.
    pub(crate) fn waits(&self, cell: &Cell) {
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(|broken| broken.into_inner());
        if elsewhere.insert(cell.id.clone()) {
            self.settled(&format!("waiting {}: another process runs it", cell.id));
        }
    }

    pub(crate) fn finish(&self) {
        self.total.finish_and_clear();
    }

    fn settled(&self, text: &str) {
        let (at, of) = (self.total.position(), self.total.length().unwrap_or(0));
        self.line(&format!("[{at}/{of} {:>5.0}s] {text}", self.started.elapsed().as_secs_f64()));
    }

    /// A line above the bars, or a plain line without bars.
    fn line(&self, text: &str) {
        if self.total.is_hidden() {
            eprintln!("{text}");
        } else {
            // A closed terminal does not stop the run.
            let _ = self.bars.println(text);
        }
    }
}

/// The bar of a running cell.
pub(crate) struct CellBar(ProgressBar);

impl CellBar {
    /// Shows a cell's latest line.
    pub(crate) fn show(&self, line: Option<String>) {
        if !self.0.is_hidden() {
            self.0.tick();
            self.0.set_message(line.unwrap_or_default());
        }
    }
}

impl Drop for CellBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
