//! Results of language models: one record for each of the two metrics of every cell, in the format of a
//! run's, so that `lowrank report` makes a column of each.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    files::{make_folder, write_whole},
    plan::Cell,
    scores::{Scores, prune, read_printed},
    state::Grid,
};

/// The columns of the table.
const METRICS: [&str; 2] = ["exact", "perplexity"];

/// Writes `scores/<cell>-<metric>/run.json` for every finished cell, and removes the records of others.
pub(crate) fn collect(grid: &Grid, cells: &[Cell]) -> Result<Scores> {
    let scores = Scores::open(grid)?;
    let mut kept = BTreeSet::new();
    let tuned: Vec<(&Cell, Value)> = cells
        .iter()
        .filter(|cell| cell.is_finetuning() && grid.is_done(cell))
        .filter_map(|cell| Some((cell, run_record(&grid.folder(cell))?)))
        .collect();
    let untouched = cells.iter().filter(|cell| cell.args[0] == "perplexity");
    let untouched = untouched.filter_map(|cell| {
        let like = tuned.iter().find(|(other, _)| other.args[2] == cell.args[2]).map(|(_, record)| record);
        Some((cell, untouched_record(cell, &read_printed(grid, cell)?, like)))
    });
    let records: Vec<(&Cell, Value)> = tuned.iter().cloned().chain(untouched).collect();
    for (cell, record) in &records {
        for metric in METRICS {
            let Some(record) = of_metric(record, metric) else { continue };
            let path = scores.folder.join(format!("{}-{metric}", cell.id));
            make_folder(&path)?;
            write_whole(&path.join("run.json"), &format!("{record:#}"))?;
            kept.insert(path);
        }
    }
    prune(&scores.folder, &kept)?;
    Ok(scores)
}

fn run_record(folder: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(folder.join("run.json")).ok()?).ok()
}

/// The record of an untuned model, scored on the rows and the machine of a tuned one.
fn untouched_record(cell: &Cell, printed: &Value, like: Option<&Value>) -> Value {
    let mut meta = like.map_or_else(|| json!({ "model": cell.args[2] }), |like| like["meta_info"].clone());
    meta["method"] = cell.method.as_str().into();
    json!({
        "format": 1,
        "run_info": { "command": cell.args, "config": {}, "version": env!("CARGO_PKG_VERSION") },
        "train_info": {
            "status": "done",
            "evals": [{ "step": 0, "loss": printed["loss"], "metrics": {
                "exact": printed["exact"], "perplexity": printed["perplexity"],
            } }],
            "peak_rss_mb": printed["peak_rss_mb"],
            "wall_s": printed["wall_s"],
        },
        "meta_info": meta,
    })
}

/// A record with a single metric: its value at the evaluation whose weights were saved.
fn of_metric(record: &Value, metric: &str) -> Option<Value> {
    let info = &record["train_info"];
    let best = |eval: &&Value| info["best_step"].is_null() || eval["step"] == info["best_step"];
    let kept = info["evals"].as_array()?.iter().rev().find(best)?;
    let value = kept["metrics"][metric].clone();
    if value.is_null() {
        return None;
    }
    let mut record = record.clone();
    record["meta_info"]["task"] = metric.into();
    let info = &mut record["train_info"];
    info["metric_name"] = metric.into();
    info["metric"] = value.clone();
    info["best_metric"] = value;
    // The event files are in the cell's own folder.
    info.as_object_mut()?.remove("event_files");
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(id: &str, args: &[&str]) -> Cell {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Cell { id: id.into(), method: id.into(), task: "instruct".into(), args, needs: Vec::new() }
    }

    #[test]
    fn a_cell_has_a_record_for_each_metric_of_the_weights_that_were_kept() {
        let dir = tempfile::tempdir().unwrap();
        let grid = Grid::new(dir.path());
        grid.create().unwrap();
        let cells = [
            cell("lora", &["finetune", "--model", "m"]),
            cell("untouched", &["perplexity", "--model", "m", "--rows", "dev.jsonl"]),
        ];
        let run = json!({
            "format": 1,
            "run_info": { "config": { "lr": 0.1, "seed": 0 } },
            "train_info": {
                "status": "done", "best_step": 4, "metric_name": "loss", "metric": 0.5, "trainable": 7,
                "event_files": ["x"],
                "evals": [
                    { "step": 4, "metrics": { "exact": 0.75, "perplexity": 1.6 } },
                    { "step": 8, "metrics": { "exact": 0.8, "perplexity": 1.7 } },
                ],
            },
            "meta_info": { "model": "m", "model_hash": "h", "data_hash": "d", "task": "train", "method": "lora" },
        });
        fs::create_dir_all(grid.folder(&cells[0])).unwrap();
        fs::write(grid.folder(&cells[0]).join("run.json"), run.to_string()).unwrap();
        fs::write(
            grid.printed(&cells[1]),
            r#"{"exact": 0.25, "perplexity": 9.5, "loss": 2.25, "wall_s": 1.0}"#,
        )
        .unwrap();
        let scores = collect(&grid, &cells).unwrap();
        let read = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(scores.folder.join(name).join("run.json")).unwrap()).unwrap()
        };
        let exact = read("lora-exact");
        assert_eq!(
            (&exact["train_info"]["metric"], &exact["train_info"]["trainable"]),
            (&json!(0.75), &json!(7))
        );
        assert_eq!(exact["meta_info"]["task"], "exact");
        assert!(exact["train_info"]["event_files"].is_null());
        assert_eq!(read("lora-perplexity")["train_info"]["metric"], 1.6);
        let untouched = read("untouched-perplexity");
        assert_eq!(untouched["train_info"]["metric"], 9.5);
        assert_eq!(
            untouched["meta_info"],
            json!({ "model": "m", "model_hash": "h", "data_hash": "d", "task": "perplexity", "method": "untouched" })
        );
        drop(scores);
        let fewer = collect(&grid, &cells[1..]).unwrap();
        assert!(!fewer.folder.join("lora-exact").exists() && fewer.folder.join("untouched-exact").exists());
    }
}
