//! Published numbers, for comparison with ours.

use super::{Cell, Column, Cost, GridTable, Row};
use crate::Summary;

/// The results of a source for a method: scores by task, × 100 unless they are perplexities.
struct Published {
    source: &'static str,
    model: &'static str,
    method: &'static str,
    rank: Option<u64>,
    settings: &'static str,
    trainable: u64,
    is_perplexity: bool,
    scores: Scores,
}

type Scores = &'static [(&'static str, f64)];

/// Sources of the rows, for the notes.
const LOTR: &str = "roberta-base from the code repository of the LoTR paper";
const STUDY: &str =
    "bert-base-uncased (1000 steps, learning rate 5e-5) from the study that the experiment `study` repeats";
const SVD_LLM: &str = "llama-7b (ratio of the parameters taken away) from the SVD-LLM paper";
const PEFT: &str = "all-MiniLM-L6-v2 (α 16 on query and value, 500 steps, learning rate 5e-4) measured with PyTorch 2.15 \
                    and PEFT 0.21";

/// RoBERTa-base on GLUE from the code repository of the LoTR paper; BERT-base on SST-2 from the study of LoRA and
/// of weights replaced by their factors; LLaMA-7B compressed without further training; LoRA by PEFT.
const PUBLISHED: [Published; 18] = [
    lotr(
        "lora",
        1,
        38_400,
        &[("cola", 53.4), ("mrpc", 87.7), ("qnli", 87.8), ("rte", 66.1), ("sst2", 93.9), ("stsb", 90.0)],
    ),
    lotr(
        "lotr",
        1,
        3_096,
        &[("cola", 25.5), ("mrpc", 76.3), ("qnli", 82.6), ("rte", 59.0), ("sst2", 88.4), ("stsb", 61.3)],
    ),
    lotr(
        "lotr",
        8,
        15_360,
        &[("cola", 43.3), ("mrpc", 81.7), ("qnli", 87.2), ("rte", 59.8), ("sst2", 91.9), ("stsb", 84.3)],
    ),
    lotr(
        "lotr",
        32,
        75_264,
        &[("cola", 52.6), ("mrpc", 87.9), ("qnli", 90.0), ("rte", 66.8), ("sst2", 93.3), ("stsb", 88.6)],
    ),
    study("full", None, 109_483_778, &[("sst2", 92.0)]),
    study("lora, all linear, zero head", Some(1), 0, &[("sst2", 88.2)]),
    study("lora, over the tuned head", Some(1), 0, &[("sst2", 87.2)]),
    study("head", None, 0, &[("sst2", 52.3)]),
    study("SVD weights", Some(1), 0, &[("sst2", 50.9)]),
    study("SVD weights", Some(128), 0, &[("sst2", 82.2)]),
    llama("dense", "", &[("wikitext2", 5.68)]),
    llama("svd", "ratio=0.2", &[("wikitext2", 20_061.0)]),
    llama("svd", "ratio=0.4", &[("wikitext2", 52_489.0)]),
    llama("asvd", "ratio=0.2", &[("wikitext2", 11.14)]),
    llama("asvd", "ratio=0.4", &[("wikitext2", 1407.0)]),
    llama("whitened", "ratio=0.2", &[("wikitext2", 7.94)]),
    llama("whitened", "ratio=0.4", &[("wikitext2", 13.73)]),
    Published {
        source: PEFT,
        model: "all-MiniLM-L6-v2",
        method: "lora, PyTorch + PEFT",
        rank: Some(8),
        settings: "",
        trainable: 0,
        is_perplexity: false,
        scores: &[("sst2", 82.7)],
    },
];

const fn lotr(method: &'static str, rank: u64, trainable: u64, scores: Scores) -> Published {
    Published {
        source: LOTR,
        model: "roberta-base",
        method,
        rank: Some(rank),
        settings: "",
        trainable,
        is_perplexity: false,
        scores,
    }
}

const fn llama(method: &'static str, settings: &'static str, scores: Scores) -> Published {
    Published {
        source: SVD_LLM,
        model: "llama-7b",
        method,
        rank: None,
        settings,
        trainable: 0,
        is_perplexity: true,
        scores,
    }
}

/// A row of the BERT study; 0 if it does not report the trained parameters.
const fn study(method: &'static str, rank: Option<u64>, trainable: u64, scores: Scores) -> Published {
    Published {
        source: STUDY,
        model: "bert-base-uncased",
        method,
        rank,
        settings: "",
        trainable,
        is_perplexity: false,
        scores,
    }
}

/// Adds the published rows that have a score for one of the table's tasks.
pub(super) fn add(table: &mut GridTable) {
    let mut sources: Vec<&str> = Vec::new();
    for published in &PUBLISHED {
        let Some(row) = row(published, &table.columns) else { continue };
        table.rows.push(row);
        if !sources.contains(&published.source) {
            sources.push(published.source);
        }
    }
    if !sources.is_empty() {
        let list = sources.join("; ");
        table.notes.push(format!("† published by others, with metrics as the source has them: {list}"));
    }
}

fn row(published: &Published, columns: &[Column]) -> Option<Row> {
    let cell = |column: &Column| {
        let (_, score) = published.scores.iter().find(|(task, _)| *task == column.task)?;
        let score = Summary { mean: *score, std: None, count: 1 };
        let is_alike = match published.is_perplexity {
            true => column.metric.name() == "perplexity",
            false => column.metric.higher_is_better(),
        };
        is_alike.then_some(Cell { score, lr: None, best: false, runs: Vec::new() })
    };
    let cells: Vec<Option<Cell>> = columns.iter().map(cell).collect();
    if cells.iter().all(Option::is_none) {
        return None;
    }
    Some(Row {
        model: published.model.to_owned(),
        method: published.method.to_owned(),
        rank: published.rank,
        settings: published.settings.to_owned(),
        average: super::build::average(&cells, columns),
        cells,
        best_average: false,
        cost: Cost { trainable: published.trainable, ..Cost::default() },
        published: true,
    })
}
