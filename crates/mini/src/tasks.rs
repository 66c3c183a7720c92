//! The tasks: rows of text and label, made to order.

pub(crate) mod cola;
pub(crate) mod mrpc;
pub(crate) mod rte;
pub(crate) mod sst2;
pub(crate) mod stsb;

use std::collections::HashSet;

use crate::compose::Composer;

/// A row: its one or two texts, and its label as the official file writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) texts: Vec<String>,
    pub(crate) label: String,
}

/// Tries to make a row whose label is the given class; most tries succeed.
pub(crate) type Make = fn(&mut Composer<'_>, usize) -> Option<Row>;

/// Makes `count` different rows whose texts are not in `taken`, with the classes in the given shares of 100.
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
