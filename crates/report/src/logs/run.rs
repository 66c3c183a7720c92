//! The events of one run.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use super::{Duplicates, LogsOptions, tags::TagsSeen, tree::Files};
use crate::{Error, tfevents::read_scalars};

/// What a run has logged, in the order of the table.
#[derive(Debug, Default)]
pub(super) struct RunLog {
    /// By name.
    pub(super) tags: Vec<TagLog>,
    /// Event files.
    pub(super) files: u64,
    /// Bytes of them.
    pub(super) bytes: u64,
    /// Values that are no scalar.
    pub(super) no_scalars: u64,
    /// What became of its tags.
    pub(super) seen: TagsSeen,
    /// What a user should know.
    pub(super) warnings: Vec<String>,
}

/// The values of a tag.
#[derive(Debug, Default)]
pub(super) struct TagLog {
    pub(super) tag: String,
    /// By step; of the same step, in the order in which they were written.
    pub(super) points: Vec<(i64, f64)>,
}

impl RunLog {
    pub(super) fn rows(&self) -> usize {
        self.tags.iter().map(|tag| tag.points.len()).sum()
    }

    /// Reads the files of a run, one after the other.
    pub(super) fn read(files: &Files, options: &LogsOptions) -> Self {
        let mut log = Self::default();
        let mut tags = Tags::default();
        // Tags of values that are no scalar, with the first file that has one.
        let mut no_scalars: BTreeMap<String, &Path> = BTreeMap::new();
        for path in files {
            let mut file_scalars = 0;
            let read = read_scalars(path, |scalar| {
                if let Some(value) = scalar.value {
                    file_scalars += 1;
                    tags.add(scalar.tag, scalar.step, value, options);
                } else {
                    log.no_scalars += 1;
                    if !no_scalars.contains_key(scalar.tag) {
                        no_scalars.insert(scalar.tag.to_owned(), path);
                    }
                }
            });
            let warn = |text: String| format!("{}: {text}", path.display());
            match read {
                Ok(report) => {
                    log.files += 1;
                    log.bytes += report.bytes;
                    log.warnings.extend(report.warnings.into_iter().map(warn));
                    if report.records > 0 && file_scalars == 0 {
                        log.warnings.push(warn("holds no scalar".to_owned()));
                    }
                }
                Err(Error::Io { source, .. }) => log.warnings.push(warn(format!("cannot be read: {source}"))),
                Err(error) => log.warnings.push(error.to_string()),
            }
        }
        // A tag's scalars may be in an earlier file or a later one.
        for (tag, path) in no_scalars.iter().filter(|(tag, _)| tags.has(tag)) {
            let path = path.display();
            log.warnings
                .push(format!("{path}: {tag} is a scalar and something else; the scalars were taken"));
        }
        log.tags = tags.logs;
        log.seen = tags.seen;
        log.sort(files, options.duplicates);
        log
    }

    fn sort(&mut self, files: &Files, duplicates: Duplicates) {
        self.tags.retain(|tag| !tag.points.is_empty());
        self.tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        for TagLog { tag, points } in &mut self.tags {
            if !points.is_sorted_by_key(|(step, _)| *step) {
                points.sort_by_key(|(step, _)| *step);
            }
            let repeated = points.windows(2).filter(|pair| pair[0].0 == pair[1].0).count();
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
                    let same = later.0 == earlier.0;
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
    /// Where in `logs` a tag is; nowhere when it is not wanted.
    places: HashMap<String, Option<usize>>,
    /// The place after that of the tag before: writers log the same tags in turn.
    expected: usize,
    seen: TagsSeen,
}

impl Tags {
    fn add(&mut self, tag: &str, step: i64, value: f64, options: &LogsOptions) {
        if self.logs.get(self.expected).is_none_or(|log| log.tag != tag) {
            let Some(place) = self.place(tag, options) else { return };
            self.expected = place;
        }
        self.logs[self.expected].points.push((step, value));
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

    fn has(&self, tag: &str) -> bool {
        self.places.get(tag).is_some_and(Option::is_some)
    }
}
