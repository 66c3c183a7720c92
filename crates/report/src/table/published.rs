//! Numbers that others published, to stand beside ours.

use super::{Cell, Column, Cost, GridTable, Row};
use crate::Summary;

/// What a source reports of a method: scores × 100 by task.
struct Published {
    model: &'static str,
    method: &'static str,
    rank: Option<u64>,
    trainable: u64,
    scores: &'static [(&'static str, f64)],
}

/// Where the rows come from, for the notes.
const SOURCES: &str = "† published by others, with metrics as the source has them: roberta-base from the code \
                       repository of the LoTR paper; bert-base-uncased (1000 steps, learning rate 5e-5) from the \
                       study that the experiment `study` repeats";

/// RoBERTa-base on GLUE from the code repository of the LoTR paper; BERT-base on SST-2 from the study of LoRA and
/// of weights replaced by their factors.
const PUBLISHED: [Published; 9] = [
    Published {
        model: "roberta-base",
        method: "lora",
        rank: Some(1),
        trainable: 38_400,
        scores: &[
            ("cola", 53.4),
            ("mrpc", 87.7),
            ("qnli", 87.8),
            ("rte", 66.1),
            ("sst2", 93.9),
            ("stsb", 90.0),
        ],
    },
    Published {
        model: "roberta-base",
        method: "lotr",
        rank: Some(1),
        trainable: 3_096,
        scores: &[
            ("cola", 25.5),
            ("mrpc", 76.3),
            ("qnli", 82.6),
            ("rte", 59.0),
            ("sst2", 88.4),
            ("stsb", 61.3),
        ],
    },
    Published {
        model: "roberta-base",
        method: "lotr",
        rank: Some(8),
        trainable: 15_360,
        scores: &[
            ("cola", 43.3),
            ("mrpc", 81.7),
            ("qnli", 87.2),
            ("rte", 59.8),
            ("sst2", 91.9),
            ("stsb", 84.3),
        ],
    },
    Published {
        model: "roberta-base",
        method: "lotr",
        rank: Some(32),
        trainable: 75_264,
        scores: &[
            ("cola", 52.6),
            ("mrpc", 87.9),
            ("qnli", 90.0),
            ("rte", 66.8),
            ("sst2", 93.3),
            ("stsb", 88.6),
        ],
    },
    study("full", None, 109_483_778, &[("sst2", 92.0)]),
    study("lora, all linear, zero head", Some(1), 0, &[("sst2", 88.2)]),
    study("head", None, 0, &[("sst2", 52.3)]),
    study("SVD weights", Some(1), 0, &[("sst2", 50.9)]),
    study("SVD weights", Some(128), 0, &[("sst2", 82.2)]),
];

/// A row of the BERT study; 0 where it does not count the trained parameters.
const fn study(
    method: &'static str,
    rank: Option<u64>,
    trainable: u64,
    scores: &'static [(&'static str, f64)],
) -> Published {
    Published { model: "bert-base-uncased", method, rank, trainable, scores }
}

/// Adds the published rows that have a score for one of the table's tasks.
pub(super) fn add(table: &mut GridTable) {
    let rows: Vec<Row> = PUBLISHED.iter().filter_map(|published| row(published, &table.columns)).collect();
    if !rows.is_empty() {
        table.rows.extend(rows);
        table.notes.push(SOURCES.to_owned());
    }
}

fn row(published: &Published, columns: &[Column]) -> Option<Row> {
    let cell = |column: &Column| {
        let (_, score) = published.scores.iter().find(|(task, _)| *task == column.task)?;
        let score = Summary { mean: *score, std: None, count: 1 };
        column.metric.higher_is_better().then_some(Cell { score, lr: None, best: false, runs: Vec::new() })
    };
    let cells: Vec<Option<Cell>> = columns.iter().map(cell).collect();
    if cells.iter().all(Option::is_none) {
        return None;
    }
    Some(Row {
        model: published.model.to_owned(),
        method: published.method.to_owned(),
        rank: published.rank,
        settings: String::new(),
        average: super::build::average(&cells, columns),
        cells,
        best_average: false,
        cost: Cost { trainable: published.trainable, ..Cost::default() },
        published: true,
    })
}
