//! A seeded grammar of English that generates small data sets: mini-GLUE, instructions, pre-training text.
#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

mod compose;
mod corpus;
pub mod instruct;
mod language;
mod lexicon;
mod morphology;
mod rewrite;
mod speech;
mod syntax;
mod tasks;
mod vocabulary;

use std::collections::HashSet;

use compose::Composer;
use lexicon::Lexicon;
use tasks::{Make, Row, cola, mrpc, rte, sst2, stsb};

pub use corpus::CorpusLine;
pub use language::language_files;
pub use vocabulary::tokenizer_files;

/// The seed of the committed files.
pub const DEFAULT_SEED: u64 = 1;

/// A file: its path below a folder, with `/` between names, and its content.
pub type File = (String, String);

/// Rows of the dev set of each task.
const DEV_ROWS: usize = 500;

/// The first key of the random numbers of the corpus.
const CORPUS_KEY: u64 = 1_000;

/// Generation and file format of a task.
struct Recipe {
    /// Name of the folder.
    folder: &'static str,
    /// The first key of its random numbers.
    key: u64,
    make: Make,
    /// Fraction of rows per class, in percent.
    shares: &'static [usize],
    train_rows: usize,
    /// The first line of the files; empty for CoLA.
    header: &'static str,
    /// Formats a row and its number as a line.
    line: fn(usize, &Row) -> String,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        folder: "CoLA",
        key: 1,
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
        folder: "SST-2",
        key: 0,
        make: sst2::make,
        shares: sst2::SHARES,
        train_rows: 4_000,
        header: "sentence\tlabel",
        line: |_, row| format!("{} \t{}", row.texts[0], row.label),
    },
    Recipe {
        folder: "MRPC",
        key: 2,
        make: mrpc::make,
        shares: mrpc::SHARES,
        train_rows: 3_000,
        header: "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        line: |i, row| format!("{}\t{}\t{}\t{}\t{}", row.label, 2 * i, 2 * i + 1, row.texts[0], row.texts[1]),
    },
    Recipe {
        folder: "STS-B",
        key: 3,
        make: stsb::make,
        shares: stsb::SHARES,
        train_rows: 3_000,
        header: "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        line: |i, row| {
            format!("{i}\tmini\tmini\t0\t{i}\tnone\tnone\t{}\t{}\t{}", row.texts[0], row.texts[1], row.label)
        },
    },
    Recipe {
        folder: "RTE",
        key: 7,
        make: rte::make,
        shares: rte::SHARES,
        train_rows: 3_500,
        header: "index\tsentence1\tsentence2\tlabel",
        line: |i, row| format!("{i}\t{}\t{}\t{}", row.texts[0], row.texts[1], row.label),
    },
];

/// The folders of mini-GLUE's tasks, named as GLUE names them.
pub const TASKS: [&str; 5] = ["CoLA", "SST-2", "MRPC", "STS-B", "RTE"];

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
                let mut composer = Composer::new(lexicon, seed, &[recipe.key, 0]);
                tasks::rows(&mut composer, recipe.make, DEV_ROWS, recipe.shares, &HashSet::new())
            })
            .collect();
        let sentences = rows.iter().flatten().flat_map(|row| row.texts.iter().cloned()).collect();
        Self { rows, sentences }
    }
}

/// The files of mini-GLUE: `SST-2/train.tsv`, `SST-2/dev.tsv` and so on, and a README.
///
/// No sentence of a train file, first or second of a pair, is in a dev file of any task.
pub fn files(seed: u64) -> Vec<File> {
    let lexicon = Lexicon::new();
    let dev = DevSets::new(&lexicon, seed);
    let mut files = vec![("README.md".to_owned(), include_str!("mini-glue.md").to_owned())];
    for (recipe, dev_rows) in RECIPES.iter().zip(&dev.rows) {
        let mut composer = Composer::new(&lexicon, seed, &[recipe.key, 1]);
        let train_rows =
            tasks::rows(&mut composer, recipe.make, recipe.train_rows, recipe.shares, &dev.sentences);
        for (name, rows) in [("train.tsv", &train_rows), ("dev.tsv", dev_rows)] {
            let mut content = String::new();
            let lines = rows.iter().enumerate().map(|(i, row)| (recipe.line)(i, row));
            for line in Some(recipe.header.to_owned()).filter(|h| !h.is_empty()).into_iter().chain(lines) {
                content.push_str(&line);
                content.push('\n');
            }
            files.push((format!("{}/{name}", recipe.folder), content));
        }
    }
    files
}

/// Pre-training text of the grammar, without any sentence of the dev sets.
///
/// The second sentence of a pair belongs after the first: the two segments of one BERT input.
pub fn corpus(seed: u64, lines: usize) -> Vec<CorpusLine> {
    let lexicon = Lexicon::new();
    let dev = DevSets::new(&lexicon, seed);
    let mut composer = Composer::new(&lexicon, seed, &[CORPUS_KEY]);
    corpus::lines(&mut composer, lines, &dev.sentences)
}
