//! Similarity: a score from 5 (the same) to 0 (nothing in common), by a scale of edits.
//!
//! Rewording costs nothing, a dropped or added detail little, another participant or action more, and the
//! result of exchanging everything scores 0 to 1.

use crate::compose::Composer;
use crate::rewrite::clauses;
use crate::syntax::{Clause, Det, Head, Np, Predicate, Sentence};
use crate::tasks::Row;
use crate::tasks::mrpc::said;

/// Rows per whole point of the score, uniformly: the class is the target score.
pub(crate) const SHARES: &[usize] = &[16, 16, 17, 17, 17, 17];

/// Cost of a detail (adjective, manner, place, time) dropped or added, in tenths of a point.
const DETAIL: u64 = 6;
/// Cost of a replaced detail.
const OTHER_DETAIL: u64 = 9;
/// Cost of a participant replaced by one of its kind.
const KIN: u64 = 11;
/// Cost of a participant replaced by any other.
const STRANGER: u64 = 18;
/// Cost of a negated or opposite action.
const OPPOSITE: u64 = 21;
/// Cost of another action.
const OTHER_ACTION: u64 = 22;
/// Cost of exchanged roles.
const ROLES: u64 = 20;

/// A row whose score is within half a point of the class.
pub(crate) fn make(composer: &mut Composer<'_>, class: usize) -> Option<Row> {
    let first = scene(composer);
    let aim = 10 * (5 - class.min(5)) as u64;
    let (second, cost) = if class == 0 { (scene(composer), 50) } else { edited(composer, &first, aim)? };
    if cost.abs_diff(aim) > 5 {
        return None;
    }
    let score = 50 - cost.min(50);
    let texts = vec![said(composer, &first), said(composer, &second)];
    let texts = if composer.percent(50) { texts } else { texts.into_iter().rev().collect() };
    (texts[0] != texts[1]).then(|| Row { texts, label: format!("{}.{}00", score / 10, score % 10) })
}

/// An action with details.
fn scene(composer: &mut Composer<'_>) -> Sentence {
    let mut clause = if composer.percent(50) { composer.encounter() } else { composer.action() };
    composer.furnish(&mut clause, 30, 45, 25);
    clause.shifted = composer.percent(50);
    Sentence::One(clause)
}

/// The scene with edits that cost about `aim`, and their cost.
fn edited(composer: &mut Composer<'_>, first: &Sentence, aim: u64) -> Option<(Sentence, u64)> {
    let mut second = first.clone();
    let mut cost = 0;
    for _ in 0..24 {
        if cost + 4 >= aim {
            break;
        }
        let Sentence::One(clause) = &mut second else { return None };
        cost += edit(composer, clause, first);
    }
    let changes = 1 + composer.rng.index(4);
    composer.paraphrase(&mut second, changes);
    Some((second, cost))
}

/// Makes one edit at a position where the clause is still unchanged; returns its cost, 0 if the draw does not
/// apply.
fn edit(composer: &mut Composer<'_>, clause: &mut Clause, first: &Sentence) -> u64 {
    let Sentence::One(before) = first else { return 0 };
    match composer.rng.below(8) {
        0 if clause.place == before.place => match &clause.place {
            Some(_) if composer.percent(50) => {
                clause.place = None;
                DETAIL
            }
            Some(_) => {
                clause.place = Some(composer.place());
                OTHER_DETAIL
            }
            None => {
                clause.place = Some(composer.place());
                DETAIL
            }
        },
        1 if clause.time == before.time && clause.time.is_some() => {
            clause.time = None;
            DETAIL
        }
        2 if clause.manner == before.manner && clause.manner.is_some() => {
            clause.manner = None;
            DETAIL
        }
        3 if clause.subject == before.subject => adjective(composer, &mut clause.subject),
        4 if clause.subject == before.subject => participant(composer, &mut clause.subject),
        5 if clause.predicate == before.predicate => match &mut clause.predicate {
            Predicate::Does { object: Some(object), .. } => participant(composer, object),
            Predicate::Gives { thing, to, .. } => {
                let other = if composer.percent(50) { thing } else { to };
                participant(composer, other)
            }
            _ => 0,
        },
        6 if clause.predicate == before.predicate && clause.negated == before.negated => {
            action(composer, clause)
        }
        7 if clause.predicate == before.predicate && clause.subject == before.subject => {
            let mut swapped = Sentence::One(clause.clone());
            if !composer.swap_roles(&mut swapped) {
                return 0;
            }
            for other in clauses(&mut swapped) {
                *clause = other.clone();
            }
            ROLES
        }
        _ => 0,
    }
}

/// Drops, adds or replaces an adjective.
fn adjective(composer: &mut Composer<'_>, np: &mut Np) -> u64 {
    let Some(noun) = np.noun() else { return 0 };
    match np.adjective {
        Some(_) if composer.percent(60) => {
            np.adjective = None;
            DETAIL
        }
        Some(old) => {
            let Some(new) = composer.adjective(noun) else { return 0 };
            if composer.lexicon.adjectives[old].synonyms.contains(&new) {
                return 0;
            }
            np.adjective = Some(new);
            OTHER_DETAIL
        }
        None => {
            np.adjective = composer.adjective(noun);
            if np.adjective.is_some() { DETAIL } else { 0 }
        }
    }
}

/// Replaces a participant by one of its kind or by any of its root.
fn participant(composer: &mut Composer<'_>, np: &mut Np) -> u64 {
    let lexicon = composer.lexicon;
    match &mut np.head {
        Head::Name(name) => {
            *name = composer.rng.index(lexicon.names.len());
            KIN
        }
        Head::Noun { noun, .. } if composer.percent(60) => match composer.sibling(*noun) {
            Some(other) => {
                *noun = other;
                KIN
            }
            None => 0,
        },
        Head::Noun { noun, number, .. } => {
            let root = lexicon.nouns[*noun].root;
            let other = composer.noun(&[root]);
            if lexicon.nouns[other].kind == lexicon.nouns[*noun].kind {
                return 0;
            }
            *np = Np::of(Det::The, other, *number);
            STRANGER
        }
        Head::Reflexive(_) | Head::Both { .. } => 0,
    }
}

/// Negates the action, or replaces it by its opposite or another suitable one.
fn action(composer: &mut Composer<'_>, clause: &mut Clause) -> u64 {
    if composer.percent(25) {
        clause.negated = !clause.negated;
        return OPPOSITE;
    }
    let lexicon = composer.lexicon;
    let Predicate::Does { verb, object, .. } = &mut clause.predicate else { return 0 };
    let old = &lexicon.verbs[*verb];
    if !old.opposites.is_empty() && composer.percent(50) {
        *verb = composer.pick(&old.opposites);
        return OPPOSITE;
    }
    let other = composer.verb(old.frame, old.subjects[0]);
    let new = &lexicon.verbs[other];
    let fits = object.as_ref().is_none_or(|object| match object.noun() {
        Some(noun) => lexicon.is_of(noun, &new.objects),
        None => new.objects.contains(&"person"),
    });
    if !fits || old.synonyms.contains(&other) || old.opposites.contains(&other) {
        return 0;
    }
    *verb = other;
    OTHER_ACTION
}
