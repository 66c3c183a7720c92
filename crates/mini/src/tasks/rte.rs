//! Entailment: whether the second sentence follows from the first.
//!
//! Each inference pattern has a similar-looking invalid counterpart, so that neither the shared words nor the
//! second sentence alone reveal the label.

use crate::compose::Composer;
use crate::lexicon::{Frame, NounId};
use crate::rewrite::root_of;
use crate::syntax::{Clause, Det, Head, Joint, Link, Np, Number, Predicate, Sentence};
use crate::tasks::Row;
use crate::tasks::mrpc::{different, event, said, same};

/// Percentages of the classes «entailment» and «not_entailment».
pub(crate) const SHARES: &[usize] = &[50, 50];

/// A row of the class: 0 if the second sentence follows, 1 if it does not.
pub(crate) fn make(composer: &mut Composer<'_>, class: usize) -> Option<Row> {
    let (premise, hypothesis) = pair(composer, class == 0)?;
    let texts = vec![said(composer, &premise), said(composer, &hypothesis)];
    let label = if class == 0 { "entailment" } else { "not_entailment" };
    (texts[0] != texts[1]).then(|| Row { texts, label: label.to_owned() })
}

/// A premise and a hypothesis that follows from it, or does not.
pub(crate) fn pair(composer: &mut Composer<'_>, follows: bool) -> Option<(Sentence, Sentence)> {
    let (premise, mut hypothesis) = match composer.rng.below(100) {
        // Some invalid pairs are spoiled valid ones: otherwise short hypotheses would always seem to follow.
        0..12 if !follows => {
            let (premise, mut hypothesis) =
                if composer.percent(50) { details(composer, true)? } else { kinds(composer, true)? };
            let is_spoiled = if composer.percent(50) {
                composer.oppose(&mut hypothesis)
            } else {
                composer.replace_noun(&mut hypothesis)
            };
            if !is_spoiled {
                return None;
            }
            (premise, hypothesis)
        }
        0..17 => kinds(composer, follows)?,
        17..29 => quantifiers(composer, follows)?,
        29..40 => details(composer, follows)?,
        40..52 => joined(composer, follows)?,
        52..64 => infinitives(composer, follows),
        64..74 => reports(composer, follows),
        _ => {
            // Premises of the other patterns too, so that no verb by itself indicates «does not follow».
            let either = composer.percent(50);
            let first = match composer.rng.below(10) {
                0..3 => infinitives(composer, either).0,
                3..6 => reports(composer, either).0,
                _ => event(composer),
            };
            let second = if follows { same(composer, &first)? } else { different(composer, &first)? };
            return Some((first, second));
        }
    };
    if composer.percent(35) {
        composer.paraphrase(&mut hypothesis, 1);
    }
    Some((premise, hypothesis))
}

/// A noun and one above it: of the words for a leaf, its kind and its root, two.
fn steps(composer: &mut Composer<'_>, leaf: NounId) -> Option<(NounId, NounId)> {
    let above = composer.lexicon.hypernyms(leaf);
    match *above.as_slice() {
        [kind, root] => Some(composer.pick(&[(leaf, kind), (leaf, root), (kind, root)])),
        [kind] => Some((leaf, kind)),
        _ => None,
    }
}

/// «A beagle slept» and «a dog slept»; the other way round it does not follow, nor does «a poodle slept».
fn kinds(composer: &mut Composer<'_>, follows: bool) -> Option<(Sentence, Sentence)> {
    let mut special = composer.action();
    composer.furnish(&mut special, 10, 25, 15);
    special.shifted = composer.percent(50);
    let mut general = special.clone();
    let of_object = composer.percent(45);
    let Head::Noun { noun, number, .. } = participant(&mut special, of_object).head else { return None };
    // «the» and «this» would refer to one and the same thing; «a» and «some» leave only the kinds.
    let det = match number {
        Number::Singular => Det::A,
        Number::Plural => composer.pick(&[Det::Some, Det::Two, Det::Three]),
    };
    let (low, high) = steps(composer, noun)?;
    let adjective = participant(&mut special, of_object).adjective.filter(|_| follows);
    *participant(&mut special, of_object) = Np { adjective, ..Np::of(det, low, number) };
    if !follows && composer.percent(50) {
        let other = composer.sibling(noun)?;
        *participant(&mut special, of_object) = Np::of(det, noun, number);
        *participant(&mut general, of_object) = Np::of(det, other, number);
        return Some((Sentence::One(special), Sentence::One(general)));
    }
    *participant(&mut general, of_object) = Np::of(det, high, number);
    let (special, general) = (Sentence::One(special), Sentence::One(general));
    Some(if follows { (special, general) } else { (general, special) })
}

/// The object of a clause, or the thing given, if requested and present; otherwise the subject.
fn participant(clause: &mut Clause, of_object: bool) -> &mut Np {
    match &mut clause.predicate {
        Predicate::Does { object: Some(object), .. } if of_object => object,
        Predicate::Gives { thing, .. } if of_object => thing,
        _ => &mut clause.subject,
    }
}

/// «Every dog slept» and «every beagle slept», «some beagles slept» and «some dogs slept», and the reverse.
fn quantifiers(composer: &mut Composer<'_>, follows: bool) -> Option<(Sentence, Sentence)> {
    let root = if composer.percent(60) { "person" } else { "animal" };
    let leaf = composer.noun(&[root]);
    let (below, above) = steps(composer, leaf)?;
    let frame = if composer.percent(50) { Frame::Transitive } else { Frame::Intransitive };
    let verb = composer.verb(frame, root);
    let object = composer.object(verb, 20);
    let say = |det: Det, noun: NounId| {
        let number = det.number().unwrap_or(Number::Singular);
        Sentence::One(Clause::does(Np::of(det, noun, number), verb, object.clone()))
    };
    // Whether the determiner allows a lower kind; otherwise a higher one.
    let (det, goes_down) = composer.pick(&[
        (Det::Every, true),
        (Det::No, true),
        (Det::All, true),
        (Det::Each, true),
        (Det::Some, false),
        (Det::Two, false),
        (Det::Many, false),
        (Det::Several, false),
    ]);
    Some(match composer.rng.below(8) {
        // «all dogs» makes «some dogs» true, not the reverse.
        0 => {
            let (strong, weak) = (composer.pick(&[Det::All, Det::Every]), Det::Some);
            if follows {
                (say(strong, below), say(weak, below))
            } else {
                (say(weak, below), say(strong, below))
            }
        }
        _ if goes_down == follows => (say(det, above), say(det, below)),
        _ => (say(det, below), say(det, above)),
    })
}

/// A detail dropped, or added.
fn details(composer: &mut Composer<'_>, follows: bool) -> Option<(Sentence, Sentence)> {
    let mut full = composer.action();
    composer.furnish(&mut full, 25, 35, 30);
    full.shifted = composer.percent(50);
    let mut plain = full.clone();
    let burdened = composer.percent(35);
    if burdened && full.subject.noun().is_some() {
        composer.burden(&mut full.subject);
    } else {
        match composer.rng.below(4) {
            0 if full.place.is_some() => plain.place = None,
            1 if full.time.is_some() => plain.time = None,
            2 if full.manner.is_some() => plain.manner = None,
            3 if full.subject.adjective.is_some() => plain.subject.adjective = None,
            _ => return None,
        }
    }
    let (full, plain) = (Sentence::One(full), Sentence::One(plain));
    Some(if follows { (full, plain) } else { (plain, full) })
}

/// «A and B» implies B, «A or B» does not; B implies «A or B», but not «A and B». The same for subjects.
fn joined(composer: &mut Composer<'_>, follows: bool) -> Option<(Sentence, Sentence)> {
    let (takes_part, of_first) = (composer.percent(55), composer.percent(50));
    // Half of the invalid pairs have the form of valid ones, with something else as the part.
    let is_spoiled = !follows && composer.percent(50);
    let is_and = takes_part == (follows || is_spoiled);
    let (first, second) = (composer.brief(), composer.brief());
    let (whole, part) = if composer.percent(50) {
        let part = if of_first { first.clone() } else { second.clone() };
        let link = match is_and {
            true => composer.pick(&[Link::And, Link::And, Link::But, Link::Because, Link::While]),
            false => Link::Or,
        };
        (Sentence::Two { link, first, second: Box::new(second), linked_first: false }, part)
    } else {
        let root = root_of(composer.lexicon, &first.subject);
        let other = composer.being(&[root], 0);
        let subject = if of_first { first.subject.clone() } else { other.clone() };
        let part = Clause { subject, ..first.clone() };
        let joint = if is_and { Joint::And } else { Joint::Or };
        let head = Head::Both { first: Box::new(first.subject.clone()), joint, second: Box::new(other) };
        let subject = Np { head, adjective: None, place: None, relative: None };
        (Sentence::One(Clause { subject, ..first }), part)
    };
    let mut part = Sentence::One(part);
    if is_spoiled && !composer.oppose(&mut part) {
        return None;
    }
    if follows && composer.percent(25) {
        let mut same = whole.clone();
        return (composer.reorder(&mut same) && composer.synonym(&mut same)).then_some((whole, same));
    }
    Some(if takes_part { (whole, part) } else { (part, whole) })
}

/// «The king managed to dance» and «the king danced», «failed to dance» and «did not dance», «hoped to dance» and
/// neither.
fn infinitives(composer: &mut Composer<'_>, follows: bool) -> (Sentence, Sentence) {
    let mut action = composer.brief_of_person(20);
    composer.furnish(&mut action, 0, 25, 20);
    let frame = composer.pick(&[Frame::Managing, Frame::Failing, Frame::Trying]);
    let (frame, negated) = match (frame, follows) {
        // A mere attempt implies nothing, so a valid pair uses one of the others.
        (Frame::Trying, true) => {
            let frame = composer.pick(&[Frame::Managing, Frame::Failing]);
            (frame, frame == Frame::Failing)
        }
        (Frame::Trying, false) => (frame, composer.percent(50)),
        (frame, follows) => (frame, (frame == Frame::Failing) == follows),
    };
    let governing = composer.verb(frame, "person");
    let mut premise = action.clone();
    if let Predicate::Does { control, .. } = &mut premise.predicate {
        *control = Some(governing);
    }
    action.negated = negated;
    (Sentence::One(premise), Sentence::One(action))
}

/// «The king knew that the boy slept» and «the boy slept», which «believed» does not allow; negated as well.
fn reports(composer: &mut Composer<'_>, follows: bool) -> (Sentence, Sentence) {
    let mut fact = composer.brief();
    fact.negated = composer.percent(25);
    let is_false = !follows && composer.percent(35);
    let frame = if follows || is_false { Frame::Factive } else { Frame::Opinion };
    let mut premise = composer.report(frame, fact.clone());
    premise.negated = composer.percent(25);
    fact.negated ^= is_false;
    (Sentence::One(premise), Sentence::One(fact))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexicon::Lexicon;

    /// The determiner and noun of a subject.
    fn subject(sentence: &Sentence) -> (Det, NounId) {
        match sentence {
            Sentence::One(Clause { subject: Np { head: Head::Noun { det, noun, .. }, .. }, .. }) => {
                (*det, *noun)
            }
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn quantifiers_follow_monotonicity() {
        let lexicon = Lexicon::new();
        let mut composer = Composer::new(&lexicon, 3, &[]);
        let is_above = |high, low| lexicon.hypernyms(low).contains(&high);
        for follows in [true, false] {
            for _ in 0..300 {
                let Some((premise, hypothesis)) = quantifiers(&mut composer, follows) else { continue };
                let ((det, one), (other_det, other)) = (subject(&premise), subject(&hypothesis));
                let down = matches!(det, Det::Every | Det::Each | Det::All | Det::No);
                let truth = if det != other_det {
                    down
                } else if down {
                    is_above(one, other)
                } else {
                    is_above(other, one)
                };
                assert_eq!(truth, follows, "{} {}", said(&composer, &premise), said(&composer, &hypothesis));
            }
        }
    }

    #[test]
    fn infinitives_follow_their_governing_verb() {
        let lexicon = Lexicon::new();
        let mut composer = Composer::new(&lexicon, 4, &[]);
        for follows in [true, false] {
            for _ in 0..300 {
                let (premise, hypothesis) = infinitives(&mut composer, follows);
                let (Sentence::One(premise), Sentence::One(hypothesis)) = (premise, hypothesis) else {
                    unreachable!()
                };
                let Predicate::Does { control: Some(control), .. } = premise.predicate else {
                    unreachable!()
                };
                let truth = match lexicon.verbs[control].frame {
                    Frame::Managing => !hypothesis.negated,
                    Frame::Failing => hypothesis.negated,
                    _ => false,
                };
                assert_eq!(truth, follows);
            }
        }
    }
}
