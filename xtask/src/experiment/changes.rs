//! Changes made by fine-tunings: the largest difference of every tensor before and after, and whether only
//! the method's trained tensors changed.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{plan::Cell, state::Grid};

/// Kinds of tensors, in the order of the table.
const KINDS: [&str; 5] = ["embeddings", "weights", "biases", "norms", "head"];

/// A method on a task, with the largest change of each kind of tensor.
struct Row {
    name: String,
    largest: BTreeMap<&'static str, f64>,
    /// Tensors that differ though the method does not train them.
    wrong: Vec<String>,
}

/// Prints the table of the finished fine-tunings among `cells`, and writes `changes.csv` with every tensor.
///
/// # Errors
/// A tensor that a method should not have changed.
pub(crate) fn check(lowrank: &Path, grid: &Grid, cells: &[Cell]) -> Result<()> {
    let mut csv = String::from("cell,tensor,max_difference\n");
    let mut rows: Vec<Row> = Vec::new();
    for cell in cells.iter().filter(|cell| cell.is_finetuning() && grid.is_done(cell)) {
        let after = tuned(lowrank, grid, cell)?;
        let Some(before) = argument(cell, "--model") else { continue };
        let printed = run(lowrank, &["inspect", &after.to_string_lossy(), "--against", before, "--json"])?;
        let mut row = Row {
            name: format!("{} {}", cell.method, cell.task),
            largest: BTreeMap::new(),
            wrong: Vec::new(),
        };
        let trained = trained(argument(cell, "--method").unwrap_or_default());
        for tensor in printed["tensors"].as_array().into_iter().flatten() {
            let name = tensor["name"].as_str().unwrap_or_default();
            // A head of another width is another tensor; a non-finite value counts as the largest error.
            let difference = tensor["max_difference"].as_f64().unwrap_or(f64::INFINITY);
            // Writing to a string cannot fail.
            let quoted = name.replace('"', "\"\"");
            let _ = writeln!(csv, "{},\"{quoted}\",{difference:e}", cell.id);
            let kind = kind(name);
            let largest = row.largest.entry(kind).or_insert(0.0);
            *largest = largest.max(difference);
            if difference > 0.0 && !trained.contains(&kind) {
                row.wrong.push(name.to_owned());
            }
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Ok(());
    }
    let path = grid.root().join("changes.csv");
    fs::write(&path, csv).with_context(|| format!("cannot write {}", path.display()))?;
    print!("\n{}", table(&rows));
    println!("every tensor: {}", path.display());
    let wrong: Vec<String> =
        rows.iter().flat_map(|row| row.wrong.iter().map(|name| format!("{name} by {}", row.name))).collect();
    match wrong.first() {
        Some(first) => bail!("{} tensors changed that should not have, the first is {first}", wrong.len()),
        None => Ok(()),
    }
}

/// The model resulting from a cell's training, with its adapter merged.
fn tuned(lowrank: &Path, grid: &Grid, cell: &Cell) -> Result<PathBuf> {
    let model = grid.folder(cell).join("model");
    if model.is_dir() {
        return Ok(model);
    }
    let merged = grid.root().join("merged").join(&cell.id);
    if !merged.is_dir() {
        let (adapter, base) =
            (grid.folder(cell).join("adapter"), argument(cell, "--model").unwrap_or_default());
        let args = ["merge", "--model", base, "--adapter", &adapter.to_string_lossy()];
        run(lowrank, &[&args[..], &["-o", &merged.to_string_lossy(), "--json"]].concat())?;
    }
    Ok(merged)
}

fn run(lowrank: &Path, args: &[&str]) -> Result<Value> {
    let output = Command::new(lowrank).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {}", lowrank.display()))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("lowrank {} failed: {}", args.join(" "), error.trim().trim_start_matches("error: "));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("what lowrank {} printed", args[0]))
}

fn argument<'a>(cell: &'a Cell, flag: &str) -> Option<&'a str> {
    cell.args.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1].as_str())
}

/// The kinds that a method may change.
fn trained(method: &str) -> &'static [&'static str] {
    match method {
        "full" => &KINDS,
        "bitfit" => &["biases", "head"],
        "head" => &["head"],
        _ => &["weights", "head"],
    }
}

fn kind(name: &str) -> &'static str {
    let has = |parts: &[&str]| name.split('.').any(|segment| parts.contains(&segment));
    if has(&["pooler", "classifier", "pre_classifier"]) {
        "head"
    } else if name.contains("LayerNorm") || name.contains("layer_norm") {
        "norms"
    } else if has(&["embeddings"]) {
        "embeddings"
    } else if name.ends_with(".bias") {
        "biases"
    } else {
        "weights"
    }
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max("run".len());
    let mut out = format!("largest difference before and after\n{:width$}", "run");
    for kind in KINDS {
        let _ = write!(out, "  {kind:>10}");
    }
    out.push_str("  as it should\n");
    for row in rows {
        let _ = write!(out, "{:width$}", row.name);
        for kind in KINDS {
            let text = match row.largest.get(kind) {
                Some(0.0) => "0".to_owned(),
                Some(largest) if largest.is_finite() => format!("{largest:.1e}"),
                Some(_) => "new".to_owned(),
                None => "–".to_owned(),
            };
            let _ = write!(out, "  {text:>10}");
        }
        let _ = writeln!(out, "  {:>12}", if row.wrong.is_empty() { "yes" } else { "NO" });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_kinds() {
        for (name, expect) in [
            ("bert.embeddings.word_embeddings.weight", "embeddings"),
            ("bert.embeddings.LayerNorm.bias", "norms"),
            ("bert.encoder.layer.0.attention.self.query.weight", "weights"),
            ("bert.encoder.layer.0.attention.self.query.lowrank_a.weight", "weights"),
            ("bert.encoder.layer.0.attention.self.query.bias", "biases"),
            ("distilbert.transformer.layer.0.sa_layer_norm.weight", "norms"),
            ("bert.pooler.dense.bias", "head"),
            ("classifier.weight", "head"),
        ] {
            assert_eq!(kind(name), expect, "{name}");
        }
    }

    #[test]
    fn what_should_not_have_moved_is_found() {
        assert!(trained("head").contains(&"head") && !trained("head").contains(&"weights"));
        assert!(!trained("lora").contains(&"norms") && trained("full").contains(&"norms"));
        let row = |wrong: &[&str]| Row {
            name: "lora sst2".into(),
            largest: BTreeMap::from([("weights", 0.5), ("norms", 0.0), ("head", f64::INFINITY)]),
            wrong: wrong.iter().map(|name| (*name).to_owned()).collect(),
        };
        let text = table(&[row(&[]), row(&["a"])]);
        assert!(text.contains("yes") && text.contains("NO") && text.contains("new"), "{text}");
        assert!(text.contains("5.0e-1"), "{text}");
    }
}
