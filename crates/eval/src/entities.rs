//! Entities marked by the tags of words, counted as seqeval counts them (Nakayama, «seqeval», 2018; after the `conlleval`
//! of the CoNLL shared tasks): an entity is correct if its kind, first word and last word are.

use std::collections::BTreeSet;

/// An entity: its kind, first and last word.
pub type Entity<'a> = (&'a str, usize, usize);

/// Entity counts over all sentences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntityCounts {
    /// Labelled entities.
    pub labelled: usize,
    /// Predicted entities.
    pub predicted: usize,
    /// Entities that are both predicted and labelled.
    pub right: usize,
}

impl EntityCounts {
    /// Adds a sentence, given the labelled and the predicted tags of its words.
    pub fn add(&mut self, labelled: &[&str], predicted: &[&str]) {
        let (labelled, predicted) = (set(labelled), set(predicted));
        self.labelled += labelled.len();
        self.predicted += predicted.len();
        self.right += labelled.intersection(&predicted).count();
    }

    /// Precision: the fraction of the predicted entities that are labelled; 0 if none is predicted.
    pub fn precision(&self) -> f64 {
        share(self.right, self.predicted)
    }

    /// Recall: the fraction of the labelled entities that are predicted; 0 without entities.
    pub fn recall(&self) -> f64 {
        share(self.right, self.labelled)
    }

    /// F1: the harmonic mean of precision and recall, 0 if both are 0.
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

/// The entities of a sentence: tags `B-`, `I-`, `E-` or `S-` with a kind, and `O`. Parsed as leniently as in
/// seqeval's default mode: an entity may begin with `I-`, and ends where the kind changes.
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

/// The prefix of a tag and its kind; `_` if it has no kind.
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
