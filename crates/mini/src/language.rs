//! Pre-training rows of a small language model: text of the grammar, and half of the kinds of instructions.
//!
//! The other kinds are reserved for fine-tuning, and so is every exercise of a dev set.

use std::collections::HashSet;

use serde_json::json;

use crate::compose::Composer;
use crate::lexicon::Lexicon;
use crate::{DevSets, File, corpus, instruct};

/// The first key of the random numbers of the rows.
const KEY: u64 = 3_000;
/// Fraction of instructions among the rows, in percent.
const INSTRUCTIONS: u64 = 60;
/// Rows of the dev set.
const DEV_ROWS: usize = 500;

/// `train.jsonl` and `dev.jsonl` with rows in the `text` and Alpaca formats, in lower case.
///
/// They contain no sentence of mini-GLUE's dev sets and no exercise of the instructions' dev set.
pub fn language_files(seed: u64, train_rows: usize) -> [File; 2] {
    let lexicon = Lexicon::new();
    let taken = DevSets::new(&lexicon, seed).sentences;
    let lower: HashSet<String> = taken.iter().map(|sentence| sentence.to_lowercase()).collect();
    [("dev.jsonl", DEV_ROWS), ("train.jsonl", train_rows)].map(|(name, count)| {
        let mut composer = Composer::new(&lexicon, seed, &[KEY, count as u64]);
        let rows = (0..count).map(|_| {
            if composer.rng.chance(INSTRUCTIONS, 100) {
                let exercise = instruct::practice(&mut composer, &lower);
                return instruct::line(&exercise);
            }
            let line = corpus::lines(&mut composer, 1, &taken).remove(0);
            let text = [Some(line.text), line.pair].into_iter().flatten().collect::<Vec<_>>().join(" ");
            format!("{}\n", json!({ "text": text.to_lowercase() }))
        });
        (name.to_owned(), rows.collect())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn rows_are_pinned_by_the_seed_and_hold_no_exercise_of_a_dev_set() {
        let [(_, dev), (_, train)] = language_files(1, 3_000);
        assert_eq!(language_files(1, 3_000)[1].1, train);
        let [_, (_, exercises)] = instruct::files(1);
        let key = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            (row["instruction"].as_str().map(str::to_owned), row["input"].as_str().map(str::to_owned))
        };
        let exercises: HashSet<_> = exercises.lines().map(key).collect();
        let rows: Vec<_> = train.lines().chain(dev.lines()).map(key).collect();
        assert_eq!(rows.len(), 3_500);
        assert!(rows.iter().all(|row| row.0.is_none() || !exercises.contains(row)));
        let kinds: HashSet<_> = rows.iter().filter_map(|row| row.0.as_ref()).collect();
        let all: HashSet<_> = exercises.iter().filter_map(|row| row.0.as_ref()).collect();
        assert!(
            kinds.is_subset(&all) && kinds.len() * 2 <= all.len() + 1,
            "{} of {}",
            kinds.len(),
            all.len()
        );
        let texts = rows.iter().filter(|row| row.0.is_none()).count();
        assert!((1_200..1_600).contains(&texts), "{texts}");
    }
}
