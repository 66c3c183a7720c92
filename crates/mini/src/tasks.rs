//! The tasks: generated rows of text and label.

pub(crate) mod cola;
pub(crate) mod mrpc;
pub(crate) mod rte;
pub(crate) mod sst2;
pub(crate) mod stsb;

use std::collections::HashSet;

use crate::compose::Composer;

/// A row: its one or two texts, and its label as in the official file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) texts: Vec<String>,
    pub(crate) label: String,
}

/// Tries to generate a row with the given class; most attempts succeed.
pub(crate) type Make = fn(&mut Composer<'_>, usize) -> Option<Row>;

/// Generates `count` different rows whose texts are not in `taken`, with the classes in the given
/// percentages.
pub(crate) fn rows(
    composer: &mut Composer<'_>,
    make: Make,
    count: usize,
    shares: &[usize],
    taken: &HashSet<String>,
) -> Vec<Row> {
    let mut classes: Vec<usize> = Vec::with_capacity(count);
    for (class, share) in shares.iter().enumerate() {
        let end = if class + 1 == shares.len() { count } else { classes.len() + count * share / 100 };
        classes.resize(end, class);
    }
    composer.rng.shuffle(&mut classes);
    let mut seen: HashSet<Vec<String>> = HashSet::new();
    let mut rows = Vec::with_capacity(count);
    for class in classes {
        let row = loop {
            let Some(row) = make(composer, class) else { continue };
            let is_new = !row.texts.iter().any(|text| taken.contains(text)) && seen.insert(row.texts.clone());
            if is_new {
                break row;
            }
        };
        rows.push(row);
    }
    rows
}
