//! Paraphrase: the same meaning in other words, or another meaning in nearly the same words.

use crate::compose::Composer;
use crate::speech::{say, text};
use crate::syntax::{Clause, Link, Predicate, Sentence, Tense};
use crate::tasks::Row;

/// Percentages of the classes «not_equivalent» and «equivalent».
pub(crate) const SHARES: &[usize] = &[48, 52];

/// A row of the class: 0 for another meaning, 1 for the same.
pub(crate) fn make(composer: &mut Composer<'_>, class: usize) -> Option<Row> {
    let first = event(composer);
    let second = if class == 1 { same(composer, &first)? } else { different(composer, &first)? };
    let texts = vec![said(composer, &first), said(composer, &second)];
    // The original order of the two must not reveal the label.
    let texts = if composer.percent(50) { texts } else { texts.into_iter().rev().collect() };
    (texts[0] != texts[1]).then(|| Row { texts, label: class.to_string() })
}

/// The text of a sentence.
pub(crate) fn said(composer: &Composer<'_>, sentence: &Sentence) -> String {
    text(&say(composer.lexicon, sentence))
}

/// A sentence that can be reworded in many ways.
pub(crate) fn event(composer: &mut Composer<'_>) -> Sentence {
    if composer.percent(30) {
        let links = [Link::And, Link::Or, Link::Because, Link::Although, Link::Before, Link::After];
        return composer.linked(&links);
    }
    let mut clause: Clause = if composer.percent(60) { composer.encounter() } else { composer.action() };
    if composer.percent(20) {
        clause.tense = composer.pick(&[Tense::PresentProgressive, Tense::Perfect]);
    }
    composer.furnish(&mut clause, 15, 35, 30);
    clause.negated = composer.percent(8);
    clause.passive = matches!(clause.predicate, Predicate::Does { .. }) && composer.percent(25);
    clause.shifted = composer.percent(50);
    clause.fronted = composer.percent(25);
    Sentence::One(clause)
}

/// A paraphrase.
pub(crate) fn same(composer: &mut Composer<'_>, first: &Sentence) -> Option<Sentence> {
    let mut second = first.clone();
    let changes = 1 + composer.rng.index(3);
    (composer.paraphrase(&mut second, changes) == changes).then_some(second)
}

/// One change of meaning, usually with rewording.
pub(crate) fn different(composer: &mut Composer<'_>, first: &Sentence) -> Option<Sentence> {
    let mut second = first.clone();
    if !composer.falsify(&mut second) {
        return None;
    }
    let changes = composer.rng.index(3);
    (composer.paraphrase(&mut second, changes) == changes).then_some(second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexicon::Lexicon;
    use crate::syntax::{Det, Np, Number};

    #[test]
    fn voice_keeps_the_meaning_and_roles_change_it() {
        let lexicon = Lexicon::new();
        let mut composer = Composer::new(&lexicon, 1, &[]);
        let noun = |text: &str| lexicon.nouns.iter().position(|n| n.singular == text).unwrap();
        let verb = lexicon.verbs.iter().position(|v| v.forms.base == "praise").unwrap();
        let np = |text: &str, det, number| Np::of(det, noun(text), number);
        let clause = Clause::does(
            np("king", Det::The, Number::Singular),
            verb,
            Some(np("owl", Det::A, Number::Singular)),
        );
        let mut sentence = Sentence::One(clause);
        assert_eq!(said(&composer, &sentence), "The king praised an owl.");
        // Here only kings praise animals: the roots differ, so the roles cannot be exchanged.
        assert!(!composer.swap_roles(&mut sentence));
        if let Sentence::One(clause) = &mut sentence {
            clause.passive = true;
        }
        assert_eq!(said(&composer, &sentence), "An owl was praised by the king.");
        let poets = np("poet", Det::Two, Number::Plural);
        let mut sentence =
            Sentence::One(Clause::does(np("king", Det::The, Number::Singular), verb, Some(poets)));
        assert!(composer.swap_roles(&mut sentence));
        assert_eq!(said(&composer, &sentence), "Two poets praised the king.");
    }
}
