//! Results of compressed models: a record for every cell that scores one, in the format of a run's, so that
//! `lowrank report` makes the table and the figures from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{
    files::{make_folder, write_whole},
    plan::Cell,
    state::Grid,
};

/// Arguments of a compression that specify its input, not its method.
const NOT_TELLING: [&str; 4] = ["model", "task", "data", "calibration"];

/// The records of a grid's scores; other processes of the grid wait for the lifetime of this value.
pub(crate) struct Scores {
    /// Their folder.
    pub(crate) folder: PathBuf,
    _lock: File,
}

impl Scores {
    /// The folder, created if missing, once no other process writes to it.
    pub(crate) fn open(grid: &Grid) -> Result<Self> {
        let lock = grid.lock_scores()?;
        let folder = grid.root().join("scores");
        make_folder(&folder)?;
        Ok(Self { folder, _lock: lock })
    }
}

/// Writes `scores/<cell>/run.json` for every cell that has scored a model, and removes the records of others.
pub(crate) fn collect(grid: &Grid, cells: &[Cell]) -> Result<Scores> {
    let scores = Scores::open(grid)?;
    let mut kept = BTreeSet::new();
    let scored = cells.iter().filter(|cell| ["evaluate", "perplexity"].contains(&cell.args[0].as_str()));
    for cell in scored {
        let Some(score) = read_printed(grid, cell) else { continue };
        let path = scores.folder.join(&cell.id);
        make_folder(&path)?;
        let record = record(grid, cells, cell, &score);
        write_whole(&path.join("run.json"), &format!("{record:#}"))?;
        kept.insert(path);
    }
    prune(&scores.folder, &kept)?;
    Ok(scores)
}

/// Removes the records that are not in the list.
pub(crate) fn prune(folder: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !kept.contains(&path) {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// The standard output of a finished cell.
pub(crate) fn read_printed(grid: &Grid, cell: &Cell) -> Option<Value> {
    serde_json::from_slice(&fs::read(grid.printed(cell)).ok()?).ok()
}

fn record(grid: &Grid, cells: &[Cell], cell: &Cell, score: &Value) -> Value {
    let by_id: BTreeMap<&str, &Cell> = cells.iter().map(|cell| (cell.id.as_str(), cell)).collect();
    let of = |cell: &Cell| cell.needs.iter().filter_map(|id| by_id.get(id.as_str()).copied()).next();
    let factors = of(cell).filter(|need| need.args[0] == "compress");
    let report = factors.and_then(|factors| read_printed(grid, factors)).unwrap_or_default();
    let flags = factors.map(|factors| flags(&factors.args)).unwrap_or_default();
    let mut method = flags.get("method").and_then(Value::as_str).unwrap_or("dense").to_owned();
    if let Some(recovery) = flags.get("recover").and_then(Value::as_str) {
        method = format!("{method} + {recovery}");
    }
    let mut settings: Map<String, Value> = flags
        .into_iter()
        .filter(|(key, _)| !NOT_TELLING.contains(&key.as_str()) && key != "method" && key != "recover")
        .collect();
    // The dense model's size is the starting size of every compression of it.
    let size = |part: &str| match report[part]["after"].as_u64() {
        Some(after) => Some(after),
        None => cells
            .iter()
            .filter(|other| other.args[0] == "compress" && other.args[2] == cell.args[2])
            .find_map(|other| read_printed(grid, other)?[part]["before"].as_u64()),
    };
    let text = cells
        .iter()
        .filter(|other| other.args[0] == "generate" && other.args[2] == cell.args[2])
        .find_map(|other| read_printed(grid, other)?["text"].as_str().map(str::to_owned));
    // A compression derives from its input model, which may derive from a tuned one.
    let mut source = cell;
    while let Some(before) = of(source) {
        source = before;
    }
    // The seed of the fine-tuned model: a compression has no seed, or the same one.
    let seed = [Some(source), factors].into_iter().flatten().find_map(|cell| seed(&cell.args));
    if let Some(seed) = seed {
        settings.insert("seed".to_owned(), seed.into());
    }
    let is_perplexity = cell.args[0] == "perplexity";
    let (metric_name, metric) =
        if is_perplexity { ("perplexity", "perplexity") } else { ("metric_name", "metric") };
    let metric_name = score[metric_name].as_str().unwrap_or(metric_name);
    let task = self::flags(&cell.args).get("task").cloned().unwrap_or_else(|| "text".into());
    json!({
        "format": 1,
        "run_info": { "command": cell.args, "config": settings, "version": env!("CARGO_PKG_VERSION") },
        "train_info": {
            "status": "done",
            "metric_name": metric_name,
            "metric": score[metric],
            "total": size("model").unwrap_or(0),
            "tokens_per_second": score["tokens_per_second"],
            "peak_rss_mb": report["peak_rss_mb"],
            "wall_s": report["wall_s"],
            "adapter_bytes": size("file"),
            "text": text,
        },
        "meta_info": { "model": source.args[2], "task": task, "method": method },
    })
}

/// `--ratio 0.3` as `ratio: "0.3"`; a flag without a value is true.
fn flags(args: &[String]) -> Map<String, Value> {
    let mut flags = Map::new();
    for (index, arg) in args.iter().enumerate() {
        let Some(name) = arg.strip_prefix("--") else { continue };
        let value = args.get(index + 1).filter(|next| !next.starts_with("--"));
        flags.insert(name.replace('-', "_"), value.map_or(Value::Bool(true), |value| value.as_str().into()));
    }
    flags
}

/// The seed of a cell.
fn seed(args: &[String]) -> Option<u64> {
    flags(args).get("seed")?.as_str()?.parse().ok()
}

/// Whether a folder contains a language model, according to its config.
pub(crate) fn is_language_model(folder: &Path) -> bool {
    let config = fs::read(folder.join("config.json")).ok();
    let config: Value = config.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let writes = |name: &str| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel");
    match config["architectures"].as_array() {
        Some(names) => names.iter().filter_map(Value::as_str).any(writes),
        // Some configs omit it.
        None => !config["model_type"].as_str().unwrap_or("bert").contains("bert"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(id: &str, args: &[&str], needs: &[&str]) -> Cell {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Cell { id: id.into(), method: id.into(), task: String::new(), args: owned(args), needs: owned(needs) }
    }

    #[test]
    fn a_score_knows_its_model_its_compression_and_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let grid = Grid::new(dir.path());
        grid.create().unwrap();
        let cells = [
            cell("d", &["perplexity", "--model", "m", "--file", "t"], &[]),
            cell(
                "c",
                &["compress", "--model", "m", "--method", "svd", "--ratio", "0.3", "--sequential"],
                &[],
            ),
            cell("s", &["perplexity", "--model", "cells/c", "--file", "t"], &["c"]),
            cell("g", &["generate", "--model", "cells/c", "--prompt", "p"], &["c"]),
            cell("open", &["perplexity", "--model", "cells/x"], &["x"]),
        ];
        let outputs = [
            r#"{"perplexity": 3.5, "tokens_per_second": 10.0}"#,
            r#"{"model": {"before": 100, "after": 70}, "file": {"before": 9, "after": 7}, "wall_s": 2.0}"#,
            r#"{"perplexity": 4.5}"#,
            r#"{"text": "and so on"}"#,
        ];
        for (cell, output) in cells.iter().zip(outputs) {
            fs::write(grid.printed(cell), output).unwrap();
        }
        let folder = collect(&grid, &cells).unwrap().folder;
        let read = |id: &str| -> Value {
            serde_json::from_slice(&fs::read(folder.join(id).join("run.json")).unwrap()).unwrap()
        };
        let (dense, small) = (read("d"), read("s"));
        assert_eq!(dense["meta_info"], json!({"model": "m", "task": "text", "method": "dense"}));
        assert_eq!(dense["train_info"]["total"], 100);
        assert_eq!(dense["train_info"]["metric"], 3.5);
        assert_eq!(small["meta_info"], json!({"model": "m", "task": "text", "method": "svd"}));
        assert_eq!(small["run_info"]["config"], json!({"ratio": "0.3", "sequential": true}));
        assert_eq!(small["train_info"]["total"], 70);
        assert_eq!(small["train_info"]["text"], "and so on");
        assert!(!folder.join("open").exists() && !folder.join("c").exists());
    }

    /// A grid of a model tuned with two seeds, each compressed and scored.
    fn tuned(dir: &Path) -> (Grid, Vec<Cell>) {
        let grid = Grid::new(dir);
        grid.create().unwrap();
        let mut cells = Vec::new();
        for seed in ["0", "7"] {
            let [full, small, score] = ["f", "c", "s"].map(|name| format!("{name}{seed}"));
            cells.push(cell(&full, &["finetune", "--model", "m", "--task", "rte", "--seed", seed], &[]));
            cells.push(cell(&small, &["compress", "--model", "x", "--method", "svd"], &[&full]));
            cells.push(cell(&score, &["evaluate", "--model", "y", "--task", "rte"], &[&small]));
            fs::write(grid.printed(&cells[cells.len() - 1]), r#"{"metric_name": "accuracy", "metric": 0.5}"#)
                .unwrap();
        }
        (grid, cells)
    }

    #[test]
    fn a_score_has_the_seed_of_what_was_tuned() {
        let dir = tempfile::tempdir().unwrap();
        let (grid, cells) = tuned(dir.path());
        let scores = collect(&grid, &cells).unwrap();
        for (id, seed) in [("s0", 0), ("s7", 7)] {
            let text = fs::read(scores.folder.join(id).join("run.json")).unwrap();
            let record: Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(record["run_info"]["config"], json!({ "seed": seed }));
            assert_eq!(record["meta_info"]["model"], "m");
        }
    }

    #[test]
    fn processes_that_end_together_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let (grid, cells) = tuned(dir.path());
        let folder = grid.root().join("scores");
        fs::create_dir_all(folder.join("old")).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let scores = collect(&grid, &cells).unwrap();
                        let mut found: Vec<_> = fs::read_dir(&scores.folder)
                            .unwrap()
                            .map(|entry| entry.unwrap().file_name())
                            .collect();
                        found.sort();
                        assert_eq!(found, ["s0", "s7"]);
                        for id in found {
                            let text = fs::read(scores.folder.join(id).join("run.json")).unwrap();
                            serde_json::from_slice::<Value>(&text).unwrap();
                        }
                    }
                });
            }
        });
    }
}
