//! The record of one run: `run.json`.
//!
//! Written by the run itself, again after every evaluation, under a temporary name that is then renamed: a
//! reader sees a whole record or none.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result, files::write_atomic, model_name};

/// The version of the format that this build writes and reads.
pub const FORMAT: u32 = 1;

/// The file's name within a run's folder.
pub const FILE_NAME: &str = "run.json";

/// A run: what was asked for, what came of it, and on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this layout, [`FORMAT`].
    pub format: u32,
    /// What was asked for.
    #[serde(default)]
    pub run_info: RunInfo,
    /// What came of it.
    #[serde(default)]
    pub train_info: TrainInfo,
    /// On what it was done.
    #[serde(default)]
    pub meta_info: MetaInfo,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// The command line.
    pub command: Vec<String>,
    /// Every setting of the run, defaults included: model, task, method, rank, alpha, lr, seed, targets, ….
    pub config: Map<String, Value>,
    /// Version of the program.
    pub version: String,
    /// Commit of the sources, where it is known.
    pub commit: Option<String>,
    /// The backend of the build: flex, ndarray, cuda.
    pub backend: String,
    /// When it began, RFC 3339 in UTC.
    pub started: String,
    /// When it ended; absent while it runs.
    pub finished: Option<String>,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It runs, or was killed.
    #[default]
    Running,
    /// It ended as it should.
    Done,
    /// It ended with an error.
    Failed,
}

/// What came of a run. A number that is not finite is `null` in the file and absent here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainInfo {
    /// How far it has come.
    pub status: Status,
    /// The error that ended it.
    pub error: Option<String>,
    /// Optimiser steps made.
    pub steps: u64,
    /// Its evaluations, in order.
    pub evals: Vec<Evaluation>,
    /// The task's primary metric.
    pub metric_name: String,
    /// The primary metric of what the run left behind.
    pub metric: Option<f64>,
    /// The best that the primary metric was at any evaluation.
    pub best_metric: Option<f64>,
    /// The step of that evaluation.
    pub best_step: Option<u64>,
    /// Parameters that were trained.
    pub trainable: u64,
    /// All parameters, trained or frozen.
    pub total: u64,
    /// Median duration of a step in milliseconds.
    pub ms_per_step_median: Option<f64>,
    /// Real tokens per second of training, padding not counted.
    pub tokens_per_second: Option<f64>,
    /// Peak resident memory in MB (10⁶ bytes).
    pub peak_rss_mb: Option<f64>,
    /// Duration of the whole run in seconds.
    pub wall_s: Option<f64>,
    /// Bytes of the file that it saved: an adapter's, or a compressed model's weights.
    pub adapter_bytes: Option<u64>,
    /// What a language model wrote after it.
    pub text: Option<String>,
    /// Names of the event files that it wrote: runs that differ in another setting than those of a log path share
    /// its folder. Empty where they are not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub event_files: Vec<String>,
}

/// One evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluation {
    /// After how many steps.
    pub step: u64,
    /// Every metric of the task; one that is not finite is absent.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// Mean loss.
    pub loss: Option<f64>,
    /// Texts that a language model wrote: prompts with their continuations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<String>,
}

/// On what a run was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetaInfo {
    /// The model as it was named.
    pub model: String,
    /// Hash of its weights.
    pub model_hash: String,
    /// Hash of the task's files.
    pub data_hash: String,
    /// The task.
    pub task: String,
    /// The method.
    pub method: String,
    /// The machine.
    pub hardware: Hardware,
    /// Versions of what the numbers depend on.
    pub versions: BTreeMap<String, String>,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// The processor's name.
    pub cpu: String,
    /// Its cores.
    pub cores: u64,
    /// Its memory in MB (10⁶ bytes).
    pub memory_mb: u64,
}

impl RunRecord {
    /// A record of a run that begins.
    pub fn new(run_info: RunInfo, meta_info: MetaInfo) -> Self {
        Self { format: FORMAT, run_info, train_info: TrainInfo::default(), meta_info }
    }

    /// Reads a record; keys that this build does not know are passed over.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Record`] for a file that is not a record, [`Error::Format`] for another version.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let not_a_record = |source| Error::Record { path: path.to_owned(), source };
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(not_a_record)?;
        // Looked at first: a later format's shape would be reported as nonsense.
        match value.get("format") {
            Some(found) if found.as_u64() != Some(u64::from(FORMAT)) => {
                Err(Error::Format { path: path.to_owned(), found: found.to_string(), expected: FORMAT })
            }
            _ => serde_json::from_value(value).map_err(not_a_record),
        }
    }

    /// Writes the record under a temporary name in the same folder and renames it to `path`.
    ///
    /// # Errors
    /// [`Error::Io`]; the file that was there before stays as it was.
    pub fn write_atomic(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|source| Error::Record { path: path.to_owned(), source })?;
        bytes.push(b'\n');
        write_atomic(path, &bytes)
    }

    /// The name under which the run is shown: its label where it has one, `untrained` for a head on an
    /// encoder of random weights, else the method.
    pub fn label(&self) -> &str {
        let config = &self.run_info.config;
        if let Some(label) = config.get("label").and_then(Value::as_str) {
            return label;
        }
        if self.is_random() && self.meta_info.method == "head" { "untrained" } else { &self.meta_info.method }
    }

    /// Whether it began with random weights in place of the model's.
    pub(crate) fn is_random(&self) -> bool {
        self.run_info.config.get("random_init").and_then(Value::as_bool).unwrap_or(false)
    }

    /// The short name of its model.
    pub fn model(&self) -> &str {
        model_name(&self.meta_info.model)
    }

    /// Its rank, where the method has one.
    pub fn rank(&self) -> Option<u64> {
        self.run_info.config.get("rank").and_then(Value::as_u64).filter(|rank| *rank > 0)
    }

    /// Its learning rate.
    pub fn lr(&self) -> Option<f64> {
        self.run_info.config.get("lr").and_then(Value::as_f64)
    }

    /// Its seed.
    pub fn seed(&self) -> Option<u64> {
        self.run_info.config.get("seed").and_then(Value::as_u64)
    }
}

/// A record and the folder that it lies in.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedRun {
    /// The run's folder.
    pub folder: PathBuf,
    /// Its record.
    pub record: RunRecord,
}

/// Every record in `root` and the folders below it, in the order of their paths, and what could not be read.
///
/// Folders inside a run's folder, and links to folders, are not looked into.
///
/// # Errors
/// [`Error::Io`] when `root` itself cannot be read. A record below it that cannot be read is in the second
/// list.
pub fn load_runs(root: impl AsRef<Path>) -> Result<(Vec<LoadedRun>, Vec<Error>)> {
    let root = root.as_ref();
    fs::read_dir(root).map_err(Error::io("read", root))?;
    let (mut runs, mut errors) = (Vec::new(), Vec::new());
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let file = folder.join(FILE_NAME);
        if file.is_file() {
            match RunRecord::read(&file) {
                Ok(record) => runs.push(LoadedRun { folder, record }),
                Err(error) => errors.push(error),
            }
            continue;
        }
        match sub_folders(&folder) {
            Ok(found) => folders.extend(found),
            Err(error) => errors.push(error),
        }
    }
    runs.sort_by(|a, b| a.folder.cmp(&b.folder));
    Ok((runs, errors))
}

fn sub_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RunRecord {
        let mut record = RunRecord::new(
            RunInfo { command: vec!["lowrank".into()], backend: "flex".into(), ..RunInfo::default() },
            MetaInfo { model: "models/mini-bert".into(), method: "lora".into(), ..MetaInfo::default() },
        );
        record.run_info.config.insert("rank".into(), 8.into());
        record.run_info.config.insert("lr".into(), 5e-4.into());
        record.train_info.evals.push(Evaluation {
            step: 10,
            metrics: BTreeMap::from([("accuracy".into(), Some(0.1 + 0.2)), ("f1".into(), None)]),
            loss: Some(0.7),
            ..Evaluation::default()
        });
        record
    }

    #[test]
    fn written_and_read_are_equal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        record().write_atomic(&path).unwrap();
        assert_eq!(RunRecord::read(&path).unwrap(), record());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left behind");
    }

    #[test]
    fn a_number_that_is_not_finite_is_read_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut written = record();
        written.train_info.metric = Some(f64::NAN);
        written.train_info.evals[0].metrics.insert("f1".into(), Some(f64::INFINITY));
        written.write_atomic(&path).unwrap();
        let read = RunRecord::read(&path).unwrap();
        assert_eq!(read.train_info.metric, None);
        assert_eq!(read.train_info.evals[0].metrics["f1"], None);
    }

    #[test]
    fn unknown_keys_are_passed_over_and_absent_ones_filled_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, r#"{"format":1,"later":[1],"train_info":{"status":"done","steps":3,"new":{}}}"#)
            .unwrap();
        let read = RunRecord::read(&path).unwrap();
        assert_eq!((read.train_info.status, read.train_info.steps), (Status::Done, 3));
        assert_eq!(read.run_info, RunInfo::default());
    }

    #[track_caller]
    fn check_refused(text: &str, expect: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::write(&path, text).unwrap();
        let error = RunRecord::read(&path).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
        assert!(error.contains(FILE_NAME), "{error}");
    }

    #[test]
    fn what_is_no_record_is_refused_with_its_name() {
        check_refused("", "EOF");
        check_refused("{}", "missing field `format`");
        check_refused(r#"{"format":2,"run_info":7}"#, "has format 2, this build reads format 1");
        check_refused(r#"{"format":"1"}"#, r#"has format "1""#);
        check_refused(r#"{"format":1,"train_info":{"status":"lost"}}"#, "unknown variant `lost`");
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        fs::create_dir_all(path.join("inside")).unwrap();
        assert!(matches!(record().write_atomic(&path), Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn runs_are_found_below_a_folder_and_bad_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a/deep", "a/deep/inner", "broken"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        for name in ["b", "a/deep", "a/deep/inner"] {
            record().write_atomic(dir.path().join(name).join(FILE_NAME)).unwrap();
        }
        fs::write(dir.path().join("broken").join(FILE_NAME), "{").unwrap();
        let (runs, errors) = load_runs(dir.path()).unwrap();
        let folders: Vec<_> = runs.iter().map(|run| run.folder.strip_prefix(dir.path()).unwrap()).collect();
        assert_eq!(folders, [Path::new("a/deep"), Path::new("b")]);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().contains("broken"));
        assert!(load_runs(dir.path().join("absent")).is_err());
    }

    #[test]
    fn labels() {
        let mut run = record();
        assert_eq!(
            (run.label(), run.model(), run.rank(), run.lr()),
            ("lora", "mini-bert", Some(8), Some(5e-4))
        );
        run.run_info.config.insert("random_init".into(), true.into());
        assert_eq!(run.label(), "lora");
        run.meta_info.method = "head".into();
        assert_eq!(run.label(), "untrained");
        run.run_info.config.insert("label".into(), "mine".into());
        assert_eq!(run.label(), "mine");
    }
}
