//! Entities marked by the tags of words, counted as seqeval counts them (Nakayama, «seqeval», 2018; after the `conlleval`
//! of the CoNLL shared tasks): an entity is right where kind, first and last word all are.

use std::collections::BTreeSet;

/// An entity: its kind, first and last word.
pub type Entity<'a> = (&'a str, usize, usize);

/// Numbers of entities over all sentences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntityCounts {
    /// Those that are there.
    pub labelled: usize,
    /// Those that were found.
    pub predicted: usize,
    /// Those that were found and are there.
    pub right: usize,
}

impl EntityCounts {
    /// Adds a sentence by the tags of its words, as labelled and as predicted.
    pub fn add(&mut self, labelled: &[&str], predicted: &[&str]) {
        let (labelled, predicted) = (set(labelled), set(predicted));
        self.labelled += labelled.len();
        self.predicted += predicted.len();
        self.right += labelled.intersection(&predicted).count();
    }

    /// The share of the found entities that are there; 0 if none was found.
    pub fn precision(&self) -> f64 {
        share(self.right, self.predicted)
    }

    /// The share of the entities that was found; 0 without entities.
    pub fn recall(&self) -> f64 {
        share(self.right, self.labelled)
    }

    /// The harmonic mean of the two, 0 where both are.
    pub fn f1(&self) -> f64 {
        share(2 * self.right, self.predicted + self.labelled)
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn set<'a>(tags: &[&'a str]) -> BTreeSet<Entity<'a>> {
    entities(tags).into_iter().collect()
}

/// The entities of a sentence: tags `B-`, `I-`, `E-` or `S-` with a kind, and `O`. Read as leniently as seqeval's default:
/// an entity may begin with `I-`, and ends where the kind changes.
pub fn entities<'a>(tags: &[&'a str]) -> Vec<Entity<'a>> {
    let mut found = Vec::new();
    let (mut last, mut begin) = (("O", ""), 0);
    for (place, tag) in tags.iter().copied().chain(["O"]).enumerate() {
        let next = parts(tag);
        if ends(last, next) {
            found.push((last.1, begin, place - 1));
        }
        if begins(last, next) {
            begin = place;
        }
        last = next;
    }
    found
}

/// The letter of a tag and its kind; `_` where it names none.
fn parts(tag: &str) -> (&str, &str) {
    let first = tag.chars().next().map_or(0, char::len_utf8);
    let (letter, rest) = tag.split_at(first);
    // BILOU's last and unit-length words are IOBES's ends and singles.
    let letter = match letter {
        "L" => "E",
        "U" => "S",
        other => other,
    };
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (letter, if kind.is_empty() { "_" } else { kind })
}

fn ends(last: (&str, &str), next: (&str, &str)) -> bool {
    match last.0 {
        "E" | "S" => true,
        "B" | "I" if ["B", "S", "O"].contains(&next.0) => true,
        "O" | "." => false,
        _ => last.1 != next.1,
    }
}

fn begins(last: (&str, &str), next: (&str, &str)) -> bool {
    match next.0 {
        "B" | "S" => true,
        "E" | "I" if ["E", "S", "O"].contains(&last.0) => true,
        "O" | "." => false,
        _ => last.1 != next.1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_with_ends_and_single_words() {
        assert_eq!(
            entities(&["S-PER", "B-LOC", "I-LOC", "E-LOC", "E-LOC"]),
            [("PER", 0, 0), ("LOC", 1, 3), ("LOC", 4, 4)]
        );
        let bilou = ["U-PER", "U-PER", "B-PER", "L-PER", "B-PER", "I-PER", "L-PER"];
        assert_eq!(entities(&bilou), [("PER", 0, 0), ("PER", 1, 1), ("PER", 2, 3), ("PER", 4, 6)]);
        assert_eq!(entities(&["B-a-b", "I-a-b", "O"]), [("a-b", 0, 1)]);
        assert_eq!(entities(&[]), []);
        assert_eq!(EntityCounts::default().f1(), 0.0);
    }
}
