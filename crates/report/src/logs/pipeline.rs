//! Runs are read by several threads, ahead of the table, and written in its order.

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

use super::{
    LogsOptions, LogsProgress, LogsSummary, Table, run::RunLog, tags::TagsSeen, tree::Tree, walk::together,
};
use crate::Result;

/// Rows that may wait to be written before readers pause; runs being read meanwhile are added to them.
const AHEAD: usize = 1 << 20;

/// State shared by the readers and the writer.
#[derive(Default)]
struct Shared {
    /// The next run to read.
    next: usize,
    /// The next run to write.
    wanted: usize,
    /// Runs that wait to be written.
    read: BTreeMap<usize, RunLog>,
    /// Rows of them.
    rows: usize,
    /// Whether the readers must stop: the writer has failed, or is done.
    stop: bool,
}

/// Reads every run of the tree and passes it to the table; returns the state of the tags.
pub(super) fn run(
    tree: &Tree,
    options: &LogsOptions,
    table: &mut dyn Table,
    summary: &mut LogsSummary,
    progress: &mut impl FnMut(LogsProgress),
) -> Result<TagsSeen> {
    let shared = Mutex::new(Shared::default());
    let changed = Condvar::new();
    thread::scope(|scope| {
        for _ in 0..options.threads().min(tree.runs.len()) {
            scope.spawn(|| read(tree, options, &shared, &changed));
        }
        let written = write(tree, table, summary, progress, &shared, &changed);
        lock(&shared).stop = true;
        changed.notify_all();
        written
    })
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|broken| broken.into_inner())
}

fn wait<'a>(changed: &Condvar, guard: MutexGuard<'a, Shared>) -> MutexGuard<'a, Shared> {
    changed.wait(guard).unwrap_or_else(|broken| broken.into_inner())
}

/// The loop of a reader.
fn read(tree: &Tree, options: &LogsOptions, shared: &Mutex<Shared>, changed: &Condvar) {
    loop {
        let mut guard = lock(shared);
        // The run that the writer waits for is always read, so that readers and writer never wait for each
        // other.
        while !guard.stop && guard.rows > AHEAD && guard.next != guard.wanted {
            guard = wait(changed, guard);
        }
        if guard.stop || guard.next == tree.runs.len() {
            return;
        }
        let index = guard.next;
        guard.next += 1;
        drop(guard);
        let run = RunLog::read(&tree.runs[index], options);
        let mut guard = lock(shared);
        guard.rows += run.rows();
        guard.read.insert(index, run);
        changed.notify_all();
    }
}

fn write(
    tree: &Tree,
    table: &mut dyn Table,
    summary: &mut LogsSummary,
    progress: &mut impl FnMut(LogsProgress),
    shared: &Mutex<Shared>,
    changed: &Condvar,
) -> Result<TagsSeen> {
    let mut seen = TagsSeen::default();
    let mut without_scalars = Vec::new();
    for index in 0..tree.runs.len() {
        let mut guard = lock(shared);
        let run = loop {
            if let Some(run) = guard.read.remove(&index) {
                break run;
            }
            guard = wait(changed, guard);
        };
        guard.rows -= run.rows();
        guard.wanted = index + 1;
        drop(guard);
        changed.notify_all();
        table.add(index, &run)?;
        summary.runs += 1;
        summary.files += run.files;
        summary.bytes += run.bytes;
        summary.rows += run.rows() as u64;
        summary.no_scalars += run.no_scalars;
        summary.warnings.extend(run.warnings);
        without_scalars.extend(run.without_scalars);
        seen.add(run.seen);
        progress(LogsProgress { runs: summary.runs, of: tree.runs.len() as u64, bytes: summary.bytes });
    }
    summary.warnings.extend(together(without_scalars, "holds no scalar", "hold no scalars"));
    Ok(seen)
}
