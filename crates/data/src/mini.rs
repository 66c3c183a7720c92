//! Mini-GLUE: five tasks in the official file formats and text to pre-train on, written by a small grammar of English.
//!
//! Everything is a function of a seed, computed in integers: the same bytes on every platform. The tasks are made so that
//! a constant answer scores low, the words alone do not solve them, and an encoder that knows the grammar does.

mod compose;
mod corpus;
pub mod instruct;
mod lexicon;
mod morphology;
mod rewrite;
mod speech;
mod syntax;
mod tasks;
mod vocabulary;

use std::collections::HashSet;
use std::path::Path;

use crate::error::Result;
use crate::glue::Task;
use crate::io::write_atomic;
use compose::Composer;
use lexicon::Lexicon;
use tasks::{Make, Row, cola, mrpc, rte, sst2, stsb};

pub use corpus::CorpusLine;
pub use vocabulary::tokenizer_json;

/// The seed of the committed files.
pub const DEFAULT_SEED: u64 = 1;

/// Rows of the dev set of each task.
const DEV_ROWS: usize = 500;

/// The first key of the random numbers of the corpus; those of tasks follow [`Task::ALL`].
const CORPUS_KEY: u64 = 1_000;

/// How a task is made and written.
struct Recipe {
    task: Task,
    make: Make,
    /// Share of rows per class, in percent.
    shares: &'static [usize],
    train_rows: usize,
    /// The first line of the files, empty for CoLA.
    header: &'static str,
    /// Writes row number and row as a line.
    line: fn(usize, &Row) -> String,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        task: Task::Cola,
        make: cola::make,
        shares: cola::SHARES,
        train_rows: 4_000,
        header: "",
        line: |_, row| {
            let star = if row.label == "0" { "*" } else { "" };
            format!("mini\t{}\t{star}\t{}", row.label, row.texts[0])
        },
    },
    Recipe {
        task: Task::Sst2,
        make: sst2::make,
        shares: sst2::SHARES,
        train_rows: 4_000,
        header: "sentence\tlabel",
        line: |_, row| format!("{} \t{}", row.texts[0], row.label),
    },
    Recipe {
        task: Task::Mrpc,
        make: mrpc::make,
        shares: mrpc::SHARES,
        train_rows: 3_000,
        header: "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        line: |i, row| format!("{}\t{}\t{}\t{}\t{}", row.label, 2 * i, 2 * i + 1, row.texts[0], row.texts[1]),
    },
    Recipe {
        task: Task::Stsb,
        make: stsb::make,
        shares: stsb::SHARES,
        train_rows: 3_000,
        header: "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        line: |i, row| {
            format!("{i}\tmini\tmini\t0\t{i}\tnone\tnone\t{}\t{}\t{}", row.texts[0], row.texts[1], row.label)
        },
    },
    Recipe {
        task: Task::Rte,
        make: rte::make,
        shares: rte::SHARES,
        train_rows: 3_500,
        header: "index\tsentence1\tsentence2\tlabel",
        line: |i, row| format!("{i}\t{}\t{}\t{}", row.texts[0], row.texts[1], row.label),
    },
];

/// The tasks of mini-GLUE.
pub const TASKS: [Task; 5] = [Task::Cola, Task::Sst2, Task::Mrpc, Task::Stsb, Task::Rte];

/// The dev rows of every task, and all their sentences.
struct DevSets {
    rows: Vec<Vec<Row>>,
    sentences: HashSet<String>,
}

impl DevSets {
    fn new(lexicon: &Lexicon, seed: u64) -> Self {
        let rows: Vec<Vec<Row>> = RECIPES
            .iter()
            .map(|recipe| {
                let mut composer = Composer::new(lexicon, seed, &[recipe.task as u64, 0]);
                tasks::rows(&mut composer, recipe.make, DEV_ROWS, recipe.shares, &HashSet::new())
            })
            .collect();
        let sentences = rows.iter().flatten().flat_map(|row| row.texts.iter().cloned()).collect();
        Self { rows, sentences }
    }
}

/// Writes the tasks below `folder` as `SST-2/train.tsv`, `SST-2/dev.tsv` and so on, with a README.
///
/// No sentence of a train file, first or second of a pair, is in a dev file of any task.
///
/// # Errors
/// [`crate::DataError::Io`] when a folder or file cannot be written.
pub fn write(folder: &Path, seed: u64) -> Result<()> {
    for (name, content) in files(seed) {
        write_atomic(&folder.join(name), content.as_bytes())?;
    }
    Ok(())
}

/// The files of mini-GLUE: path below the folder, with `/`, and content.
pub fn files(seed: u64) -> Vec<(String, String)> {
    let lexicon = Lexicon::new();
    let dev = DevSets::new(&lexicon, seed);
    let mut files = vec![("README.md".to_owned(), include_str!("mini/README.md").to_owned())];
    for (recipe, dev_rows) in RECIPES.iter().zip(&dev.rows) {
        let mut composer = Composer::new(&lexicon, seed, &[recipe.task as u64, 1]);
        let train_rows =
            tasks::rows(&mut composer, recipe.make, recipe.train_rows, recipe.shares, &dev.sentences);
        for (name, rows) in [("train.tsv", &train_rows), ("dev.tsv", dev_rows)] {
            let mut content = String::new();
            let lines = rows.iter().enumerate().map(|(i, row)| (recipe.line)(i, row));
            for line in Some(recipe.header.to_owned()).filter(|h| !h.is_empty()).into_iter().chain(lines) {
                content.push_str(&line);
                content.push('\n');
            }
            files.push((format!("{}/{name}", recipe.task.folder()), content));
        }
    }
    files
}

/// Text of the grammar to pre-train a model on, without any sentence of the dev sets.
///
/// The second sentence of a pair belongs after the first: for BERT, the two segments of one input.
pub fn corpus(seed: u64, lines: usize) -> Vec<CorpusLine> {
    let lexicon = Lexicon::new();
    let dev = DevSets::new(&lexicon, seed);
    let mut composer = Composer::new(&lexicon, seed, &[CORPUS_KEY]);
    corpus::lines(&mut composer, lines, &dev.sentences)
}

/// Writes `tokenizer.json` and `tokenizer_config.json` of the small model.
///
/// # Errors
/// [`crate::DataError::Io`] when a file cannot be written.
pub fn write_tokenizer(folder: &Path, max_length: usize) -> Result<()> {
    let config = serde_json::json!({
        "tokenizer_class": "BertTokenizer",
        "model_max_length": max_length,
        "do_lower_case": true,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    });
    write_atomic(&folder.join("tokenizer.json"), tokenizer_json()?.as_bytes())?;
    write_atomic(&folder.join("tokenizer_config.json"), format!("{config:#}\n").as_bytes())
}
