//! Instructions with one correct answer each: rewriting, questions about a sentence, words, judgements.
//!
//! The rows are in Alpaca format (`instruction`, `input`, `output`), in lower case for the small models. A
//! hash of the exercise's text assigns it to a set, so that no exercise of the dev set is in the training
//! set.

mod judgements;
mod questions;
mod rewriting;
mod words;

use std::collections::HashSet;

use lowrank_spec::rng::split_mix;
use serde_json::json;

use crate::File;
use crate::compose::Composer;
use crate::lexicon::Lexicon;

/// One exercise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exercise {
    /// Name of its task, e.g. `plural`.
    pub(crate) task: &'static str,
    /// The instruction.
    pub(crate) instruction: &'static str,
    /// Its input.
    pub(crate) input: String,
    /// The only correct answer.
    pub(crate) output: String,
}

/// Input and answer of an exercise; `None` if the draw does not suit the task.
type Draw = fn(&mut Composer<'_>) -> Option<(String, String)>;

/// A kind of exercise.
struct Task {
    name: &'static str,
    instruction: &'static str,
    draw: Draw,
}

const fn task(name: &'static str, instruction: &'static str, draw: Draw) -> Task {
    Task { name, instruction, draw }
}

/// The tasks, grouped by skill.
const TASKS: [&[Task]; 4] = [words::TASKS, rewriting::TASKS, questions::TASKS, judgements::TASKS];

/// Rows of each task in the two sets, fewer if the words of the grammar are exhausted.
const ROWS: [usize; 2] = [160, 16];
/// Number of draws for a row before a task counts as exhausted.
const PATIENCE: usize = 400;
/// One in this many exercises belongs to the dev set.
const DEV_SHARE: u64 = 8;
/// The first key of the random numbers of the exercises.
const KEY: u64 = 2_000;

/// The training and the dev set of a seed, with mixed tasks.
fn exercises(seed: u64) -> [Vec<Exercise>; 2] {
    let lexicon = Lexicon::new();
    let mut sets = [Vec::new(), Vec::new()];
    for (number, task) in TASKS.into_iter().flatten().enumerate() {
        let mut composer = Composer::new(&lexicon, seed, &[KEY, number as u64]);
        fill(&mut composer, task, &mut sets);
    }
    for (set, rows) in sets.iter_mut().enumerate() {
        Composer::new(&lexicon, seed, &[KEY, u64::MAX, set as u64]).rng.shuffle(rows);
    }
    sets
}

/// Draws exercises of a task until both sets are complete.
fn fill(composer: &mut Composer<'_>, task: &Task, sets: &mut [Vec<Exercise>; 2]) {
    let mut seen = HashSet::new();
    let mut counts = [0; 2];
    let mut failures = 0;
    while counts != ROWS && failures < PATIENCE {
        failures += 1;
        let Some((input, output)) = (task.draw)(composer) else { continue };
        let set = usize::from(is_dev(task.name, &input));
        if counts[set] == ROWS[set] || !seen.insert(input.clone()) {
            continue;
        }
        counts[set] += 1;
        failures = 0;
        sets[set].push(Exercise { task: task.name, instruction: task.instruction, input, output });
    }
}

/// Whether an exercise belongs to the dev set, by a hash of its text.
fn is_dev(name: &str, input: &str) -> bool {
    let bytes = name.bytes().chain(input.bytes());
    bytes.fold(0, |hash, byte| split_mix(hash ^ u64::from(byte))) % DEV_SHARE == 0
}

/// A drawn exercise of the kinds used in pre-training, every second one; never one of the dev set, nor one
/// with a sentence in `taken`.
pub(crate) fn practice(composer: &mut Composer<'_>, taken: &HashSet<String>) -> Exercise {
    let known: Vec<&Task> = TASKS.into_iter().flatten().step_by(2).collect();
    let task = known[composer.rng.index(known.len())];
    loop {
        let Some((input, output)) = (task.draw)(composer) else { continue };
        let is_taken = || input.split_inclusive(['.', '?']).any(|sentence| taken.contains(sentence.trim()));
        if !is_dev(task.name, &input) && !is_taken() {
            return Exercise { task: task.name, instruction: task.instruction, input, output };
        }
    }
}

/// An exercise as a line of JSON.
pub(crate) fn line(e: &Exercise) -> String {
    format!(
        "{}\n",
        json!({ "task": e.task, "instruction": e.instruction, "input": e.input, "output": e.output })
    )
}

/// The files of the set: name and content, one line of JSON per exercise.
pub fn files(seed: u64) -> [File; 2] {
    let [train, dev] = exercises(seed).map(|rows| rows.iter().map(line).collect());
    [("train.jsonl".to_owned(), train), ("dev.jsonl".to_owned(), dev)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn an_input_of_a_task_has_one_answer_and_is_in_one_set() {
        let [train, dev] = exercises(1);
        let mut answers = BTreeMap::new();
        for exercise in train.iter().chain(&dev) {
            let before = answers.insert((exercise.task, &exercise.input), &exercise.output);
            assert_eq!(before, None, "{exercise:?}");
        }
        assert_eq!(exercises(1), [train.clone(), dev.clone()]);
        assert_ne!(exercises(2)[0], train);
    }

    #[test]
    fn every_task_has_rows_in_both_sets() {
        let [train, dev] = exercises(1);
        let names: Vec<&str> = TASKS.into_iter().flatten().map(|task| task.name).collect();
        assert!(names.len() >= 36, "{}", names.len());
        for name in names {
            let count = |rows: &[Exercise]| rows.iter().filter(|row| row.task == name).count();
            assert!(count(&train) >= 20 && count(&dev) >= 3, "{name}: {}, {}", count(&train), count(&dev));
        }
    }

    #[test]
    fn rows_are_lower_case_text() {
        for row in exercises(3).iter().flatten() {
            for text in [row.instruction, row.input.as_str(), row.output.as_str()] {
                assert!(!text.is_empty() && text == text.to_lowercase() && text == text.trim(), "{row:?}");
            }
        }
    }

    /// The answer of the first row whose input is as given.
    #[track_caller]
    fn check(name: &str, accept: impl Fn(&str, &str) -> bool) {
        let [train, dev] = exercises(5);
        for row in train.iter().chain(&dev).filter(|row| row.task == name) {
            assert!(accept(&row.input, &row.output), "{row:?}");
        }
    }

    #[test]
    fn answers_stand_in_the_relation_that_the_task_names() {
        check("negate", |input, output| output.contains(" did not ") && !input.contains(" not "));
        check("affirm", |input, output| input.contains(" did not ") && !output.contains(" not "));
        check("question", |_, output| output.starts_with("did ") && output.ends_with('?'));
        check("passive", |input, output| !input.contains(" by ") && output.contains(" by "));
        check("active", |input, output| input.contains(" by ") && !output.contains(" by "));
        check("who", |input, output| input.contains(output));
        check("article", |input, output| output.ends_with(input) && output.starts_with('a'));
        check("repeat", |input, output| input == output);
        check("reverse", |input, output| {
            input.split(' ').rev().eq(output.split(' ')) && input.split(' ').count() > 1
        });
    }
}
