//! Location of a run's events in a log tree.

use std::path::{Path, PathBuf};

/// The settings that distinguish the runs of a log tree, in the order of the path's segments.
#[derive(Clone, Debug, PartialEq)]
pub struct LogKey<'a> {
    /// The model, a folder or a hub name; its last component names the segment.
    pub model: &'a str,
    /// The method, or the label that replaces it.
    pub method: &'a str,
    /// The task.
    pub task: &'a str,
    /// The learning rate.
    pub lr: f64,
    /// The rank; 0 for a method without one.
    pub rank: u64,
    /// The seed.
    pub seed: u64,
}

/// `<root>/<model>/<method>/<task>/<lr>/<rank>/<seed>`, the learning rate in scientific notation (`5e-4`).
///
/// Runs that differ in another setting share a folder; the hyper-parameters in their event files distinguish
/// them, and [`event_files`](crate::run::TrainInfo::event_files) names the files of each.
///
/// ```
/// use lowrank_report::{LogKey, log_path};
///
/// let key = LogKey { model: "models/mini-bert", method: "lora", task: "sst2", lr: 5e-4, rank: 8, seed: 0 };
/// assert_eq!(log_path("logs", &key).to_str(), Some("logs/mini-bert/lora/sst2/5e-4/8/0"));
/// ```
pub fn log_path(root: impl AsRef<Path>, key: &LogKey) -> PathBuf {
    let mut path = root.as_ref().to_owned();
    path.push(segment(model_name(key.model)));
    path.push(segment(key.method));
    path.push(segment(key.task));
    path.push(format!("{:e}", key.lr));
    path.push(key.rank.to_string());
    path.push(key.seed.to_string());
    path
}

/// The short name of a model: the last component of its folder or hub name.
pub fn model_name(model: &str) -> &str {
    let mut parts = model.rsplit(['/', '\\']).filter(|part| !matches!(*part, "" | "." | ".."));
    parts.next().unwrap_or("model")
}

/// `text` as one valid path segment on any system.
fn segment(text: &str) -> String {
    let keep =
        |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '=') { c } else { '-' };
    match text.chars().map(keep).collect::<String>() {
        name if name.trim_start_matches('.').is_empty() => "-".to_owned(),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(model: &str, method: &str, lr: f64, expect: &str) {
        let key = LogKey { model, method, task: "cola", lr, rank: 1, seed: 7 };
        assert_eq!(log_path("r", &key), PathBuf::from(expect));
    }

    #[test]
    fn segments() {
        check("a/mini-bert/", "full", 5e-5, "r/mini-bert/full/cola/5e-5/1/7");
        check("org/Mini.LM", "lora", 1.5e-4, "r/Mini.LM/lora/cola/1.5e-4/1/7");
        check(".", "lora + head", 1.0, "r/model/lora-+-head/cola/1e0/1/7");
    }

    #[test]
    fn no_name_leaves_the_tree() {
        check("x/..", "..", 1e-3, "r/x/-/cola/1e-3/1/7");
        check("", "a/b", 1e-3, "r/model/a-b/cola/1e-3/1/7");
    }
}
