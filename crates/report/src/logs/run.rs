//! The events of one run.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use super::{Duplicates, LogsOptions, tags::TagsSeen, walk::Files};
use crate::{
    Error,
    tfevents::{Logged, read_events},
};

/// The values of a run, in the order of the table.
#[derive(Debug, Default)]
pub(super) struct RunLog {
    /// By name.
    pub(super) tags: Vec<TagLog>,
    /// Event files.
    pub(super) files: u64,
    /// Their total bytes.
    pub(super) bytes: u64,
    /// Number of values that are not scalars.
    pub(super) no_scalars: u64,
    /// Files with neither scalars nor hyper-parameters.
    pub(super) without_scalars: Vec<PathBuf>,
    /// State of its tags.
    pub(super) seen: TagsSeen,
    /// Warnings.
    pub(super) warnings: Vec<String>,
}

/// The values of a tag.
#[derive(Debug, Default)]
pub(super) struct TagLog {
    pub(super) tag: String,
    /// By step; within a step, in the order of writing.
    pub(super) points: Vec<Point>,
}

/// A value of a tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) step: i64,
    pub(super) value: f64,
    /// Seconds since 1970.
    pub(super) wall_time: f64,
}

impl RunLog {
    pub(super) fn rows(&self) -> usize {
        self.tags.iter().map(|tag| tag.points.len()).sum()
    }

    /// Reads the files of a run in sequence.
    pub(super) fn read(files: &Files, options: &LogsOptions) -> Self {
        let mut log = Self::default();
        let mut tags = Tags::default();
        // Tags of values that are not scalars, with the first file that has one.
        let mut no_scalars: BTreeMap<String, &Path> = BTreeMap::new();
        let mut voided = Voided::default();
        for path in files {
            let mut is_told = false;
            let read = read_events(path, |logged| {
                match logged {
                    Logged::Scalar(scalar) => {
                        if let Some(value) = scalar.value {
                            is_told = true;
                            let point = Point { step: scalar.step, value, wall_time: scalar.wall_time };
                            tags.add(scalar.tag, point, options);
                        } else {
                            log.no_scalars += 1;
                            if !no_scalars.contains_key(scalar.tag) {
                                no_scalars.insert(scalar.tag.to_owned(), path);
                            }
                        }
                    }
                    Logged::Restart { step } => voided.note(tags.void(step), step, path),
                    Logged::Session(_) => is_told = true,
                }
                ControlFlow::Continue(())
            });
            let warn = |text: String| format!("{}: {text}", path.display());
            match read {
                Ok(report) => {
                    log.files += 1;
                    log.bytes += report.bytes;
                    log.warnings.extend(report.warnings.into_iter().map(warn));
                    if report.records > 0 && !is_told {
                        log.without_scalars.push(path.clone());
                    }
                }
                Err(Error::Io { source, .. }) => log.warnings.push(warn(format!("cannot be read: {source}"))),
                Err(error) => log.warnings.push(error.to_string()),
            }
        }
        // A tag's scalars may be in an earlier file or a later one.
        for (tag, path) in no_scalars.iter().filter(|(tag, _)| tags.has(tag)) {
            let path = path.display();
            log.warnings.push(format!("{path}: {tag} is a scalar and something else; using the scalars"));
        }
        log.warnings.extend(voided.warning());
        log.tags = tags.logs;
        log.seen = tags.seen;
        log.sort(files, options.duplicates);
        log
    }

    fn sort(&mut self, files: &Files, duplicates: Duplicates) {
        self.tags.retain(|tag| !tag.points.is_empty());
        self.tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        for TagLog { tag, points } in &mut self.tags {
            if !points.is_sorted_by_key(|point| point.step) {
                points.sort_by_key(|point| point.step);
            }
            let repeated = points.windows(2).filter(|pair| pair[0].step == pair[1].step).count();
            if repeated == 0 {
                continue;
            }
            let files = files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
            let kept = match duplicates {
                Duplicates::Keep => "all are kept",
                Duplicates::Last => "the last is kept",
            };
            self.warnings.push(format!("{files}: {tag} has {repeated} steps more than once; {kept}"));
            if duplicates == Duplicates::Last {
                points.dedup_by(|later, earlier| {
                    let same = later.step == earlier.step;
                    if same {
                        *earlier = *later;
                    }
                    same
                });
            }
        }
    }
}

/// The tags that have occurred.
#[derive(Default)]
struct Tags {
    logs: Vec<TagLog>,
    /// Index of a tag in `logs`; `None` if it is not selected.
    places: HashMap<String, Option<usize>>,
    /// The index after that of the previous tag: writers log the same tags in turn.
    expected: usize,
    seen: TagsSeen,
}

impl Tags {
    fn add(&mut self, tag: &str, point: Point, options: &LogsOptions) {
        if self.logs.get(self.expected).is_none_or(|log| log.tag != tag) {
            let Some(place) = self.place(tag, options) else { return };
            self.expected = place;
        }
        self.logs[self.expected].points.push(point);
        self.expected += 1;
        if self.expected == self.logs.len() {
            self.expected = 0;
        }
    }

    fn place(&mut self, tag: &str, options: &LogsOptions) -> Option<usize> {
        if let Some(place) = self.places.get(tag) {
            return *place;
        }
        let place = self.seen.note(tag, &options.tags).then(|| {
            self.logs.push(TagLog { tag: tag.to_owned(), points: Vec::new() });
            self.logs.len() - 1
        });
        self.places.insert(tag.to_owned(), place);
        place
    }

    /// Voids the values of `step` and later ones; returns their number.
    fn void(&mut self, step: i64) -> usize {
        let void = |log: &mut TagLog| {
            let before = log.points.len();
            log.points.retain(|point| point.step < step);
            before - log.points.len()
        };
        self.logs.iter_mut().map(void).sum()
    }

    fn has(&self, tag: &str) -> bool {
        self.places.get(tag).is_some_and(Option::is_some)
    }
}

/// Number of values voided by restarts.
#[derive(Default)]
struct Voided<'a> {
    values: usize,
    /// The file and the step of each restart that voided values.
    restarts: Vec<(&'a Path, i64)>,
}

impl<'a> Voided<'a> {
    fn note(&mut self, values: usize, step: i64, path: &'a Path) {
        if values > 0 {
            self.values += values;
            self.restarts.push((path, step));
        }
    }

    fn warning(&self) -> Option<String> {
        let ((path, step), others) = self.restarts.split_first()?;
        let (path, values) = (path.display(), self.values);
        Some(match others.len() {
            0 => format!(
                "{path}: its restart at step {step} voids {values} earlier values, which are left out"
            ),
            more => {
                format!(
                    "{path}: {} restarts, the first at step {step}, void {values} values, which are left out",
                    more + 1
                )
            }
        })
    }
}
