//! Acceptability: sentences of the grammar, and sentences with one fault.

use crate::compose::Composer;
use crate::lexicon::Frame;
use crate::speech::{Tag, Word, say, text};
use crate::syntax::{Clause, Det, Head, Link, Np, Number, Predicate, Sentence, Tense};
use crate::tasks::Row;

/// Percentages of the classes «unacceptable» and «acceptable».
pub(crate) const SHARES: &[usize] = &[32, 68];

/// Determiners that forbid «ever», and those that allow it.
const POSITIVE: &[Det] = &[Det::The, Det::Every, Det::Some, Det::Many, Det::These, Det::Several];
const NEGATIVE: &[Det] = &[Det::No, Det::Few];

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The verb's number.
    Agreement,
    /// The noun's number.
    Number,
    /// The order of two words.
    Order,
    /// A missing determiner.
    Determiner,
    /// The form after an auxiliary.
    Form,
    /// An object too many or too few.
    Objects,
    /// A thing that does what only people can do.
    Sense,
    /// The reflexive's number or gender.
    Reflexive,
    /// «ever» in a positive sentence.
    Polarity,
}

/// A row of the class: 0 for a sentence with a fault, 1 for the same kind of sentence without it.
pub(crate) fn make(composer: &mut Composer<'_>, class: usize) -> Option<Row> {
    let fault = match composer.rng.below(100) {
        0..34 => Fault::Agreement,
        34..44 => Fault::Number,
        44..56 => Fault::Order,
        56..62 => Fault::Determiner,
        62..73 => Fault::Form,
        73..83 => Fault::Objects,
        83..88 => Fault::Sense,
        88..95 => Fault::Reflexive,
        _ => Fault::Polarity,
    };
    let is_good = class == 1;
    let sentence = base(composer, fault, is_good);
    let mut words = say(composer.lexicon, &sentence);
    if !is_good {
        spoil(composer, fault, &mut words)?;
    }
    (5..=16).contains(&words.len()).then(|| Row { texts: vec![text(&words)], label: class.to_string() })
}

/// A sentence in which the fault can be made; faults of meaning are already made here.
fn base(composer: &mut Composer<'_>, fault: Fault, is_good: bool) -> Sentence {
    let clause = match fault {
        Fault::Objects => objects(composer, is_good),
        Fault::Sense => sense(composer, is_good),
        Fault::Reflexive => reflexive(composer, is_good),
        Fault::Polarity => polarity(composer, is_good),
        Fault::Form if composer.percent(30) => control(composer),
        _ if composer.percent(15) => {
            let links = [Link::And, Link::But, Link::Because, Link::Although, Link::Before, Link::While];
            let mut sentence = composer.linked(&links);
            if let Sentence::Two { first, second, .. } = &mut sentence {
                let tense = composer.tense();
                (first.tense, second.tense) = (tense, tense);
                first.negated = composer.percent(25);
            }
            return sentence;
        }
        _ => {
            let mut clause = composer.statement();
            if composer.percent(if fault == Fault::Agreement { 60 } else { 15 }) {
                let mut subject = clause.subject.clone();
                composer.burden(&mut subject);
                clause.subject = subject;
            }
            if fault == Fault::Agreement && clause.tense == Tense::Past {
                clause.tense = composer.pick(&[Tense::Present, Tense::PastProgressive, Tense::Perfect]);
                clause.time = None;
            }
            clause
        }
    };
    if composer.percent(8) && !clause.fronted {
        let frame = composer.pick(&[Frame::Factive, Frame::Opinion]);
        return Sentence::One(composer.report(frame, clause));
    }
    Sentence::One(clause)
}

/// «The king sneezed» and «the king repaired the car», or «the king sneezed the car» and «the king repaired».
fn objects(composer: &mut Composer<'_>, is_good: bool) -> Clause {
    let (subject, root) = composer.subject();
    let has_object = composer.percent(50);
    let frame = if has_object == is_good { Frame::Transitive } else { Frame::Intransitive };
    let verb =
        composer.verb_where(|verb| verb.frame == frame && verb.is_strict && verb.subjects.contains(&root));
    let object = match (has_object, frame) {
        (false, _) => None,
        (true, Frame::Transitive) => composer.object(verb, 20),
        (true, _) => Some(composer.np(&["thing", "vehicle", "animal"], 20)),
    };
    let mut clause = Clause::does(subject, verb, object);
    clause.tense = composer.tense();
    composer.furnish(&mut clause, 15, 25, 15);
    clause
}

/// A person, or a thing, does what only a person can do.
fn sense(composer: &mut Composer<'_>, is_good: bool) -> Clause {
    let root = if is_good { "person" } else { "thing" };
    let subject = composer.being(&[root], 35);
    let frame = if composer.percent(50) { Frame::Transitive } else { Frame::Intransitive };
    // Things may frighten or bore people, but they never handle other things.
    let verb = composer.verb_where(|verb| {
        verb.frame == frame && verb.subjects.contains(&"person") && verb.objects.first() != Some(&"person")
    });
    let object = composer.object(verb, 20);
    let mut clause = Clause::does(subject, verb, object);
    clause.tense = composer.tense();
    composer.furnish(&mut clause, 10, 20, 10);
    clause
}

/// «The kings praised themselves», or with a pronoun that does not fit.
fn reflexive(composer: &mut Composer<'_>, is_good: bool) -> Clause {
    let mut subject = composer.being(&["person"], 25);
    if composer.percent(35) {
        subject = Np::name(composer.rng.index(composer.lexicon.names.len()));
    }
    let (right, wrong): (&[&'static str], &[&'static str]) = match &subject.head {
        Head::Name(name) if composer.lexicon.names[*name].is_woman => {
            (&["herself"], &["himself", "themselves"])
        }
        Head::Name(_) => (&["himself"], &["herself", "themselves"]),
        Head::Noun { number: Number::Plural, .. } => (&["themselves"], &["himself", "herself", "itself"]),
        _ => (&["himself", "herself"], &["themselves"]),
    };
    let pronoun = composer.pick(if is_good { right } else { wrong });
    if composer.percent(30) {
        composer.burden(&mut subject);
    }
    let verb = composer.verb_where(|verb| {
        verb.frame == Frame::Transitive
            && verb.subjects.contains(&"person")
            && verb.objects.contains(&"person")
    });
    let mut clause = Clause::does(subject, verb, Some(Np::reflexive(pronoun)));
    clause.tense = composer.tense();
    composer.furnish(&mut clause, 10, 20, 20);
    clause
}

/// «No king has ever sneezed», or «every king has ever sneezed».
fn polarity(composer: &mut Composer<'_>, is_good: bool) -> Clause {
    let mut clause = composer.action();
    clause.tense = Tense::Perfect;
    clause.ever = true;
    let noun = clause.subject.noun().unwrap_or_else(|| composer.noun(&["person"]));
    let (det, number) = composer.determined(if is_good { NEGATIVE } else { POSITIVE });
    clause.subject = Np { adjective: clause.subject.adjective, ..Np::of(det, noun, number) };
    clause
}

/// «The king managed to repair the car».
fn control(composer: &mut Composer<'_>) -> Clause {
    let mut clause = composer.brief_of_person(30);
    let frame = composer.pick(&[Frame::Managing, Frame::Failing, Frame::Trying]);
    let governing = composer.verb(frame, "person");
    if let Predicate::Does { control, .. } = &mut clause.predicate {
        *control = Some(governing);
    }
    composer.furnish(&mut clause, 10, 20, 20);
    clause
}

/// Makes the fault in the words, unless the tree already has it; `None` if the sentence does not admit it.
fn spoil(composer: &mut Composer<'_>, fault: Fault, words: &mut Vec<Word>) -> Option<()> {
    let places = |test: &dyn Fn(&[Word], usize) -> bool| -> Vec<usize> {
        (0..words.len()).filter(|&i| test(words, i)).collect()
    };
    let wrong_form = |tag: Tag| places(&move |w, i| w[i].tag == tag && w[i].wrong.is_some());
    let candidates = match fault {
        Fault::Agreement => wrong_form(Tag::Finite),
        Fault::Number => wrong_form(Tag::Noun),
        Fault::Form => wrong_form(Tag::Main),
        Fault::Order => places(&|w, i| {
            w.get(i + 1).is_some_and(|next| {
                matches!(
                    (w[i].tag, next.tag),
                    (Tag::Det, Tag::Noun | Tag::Adjective)
                        | (Tag::Adjective, Tag::Noun)
                        | (Tag::Preposition, Tag::Det)
                        | (Tag::Main | Tag::Finite, Tag::Det)
                )
            })
        }),
        // Without determiner, singular food nouns are mass nouns («she ate cabbage»), and «in church» is
        // correct.
        Fault::Determiner => places(&|w, i| {
            let is_object_or_subject = i == 0 || w[i - 1].tag != Tag::Preposition;
            w[i].tag == Tag::Det
                && is_object_or_subject
                && w[i + 1..].iter().find(|word| word.tag == Tag::Noun).is_some_and(|noun| {
                    composer.lexicon.nouns.iter().any(|n| n.singular == noun.text && n.root != "food")
                })
        }),
        Fault::Objects | Fault::Sense | Fault::Reflexive | Fault::Polarity => return Some(()),
    };
    if candidates.is_empty() {
        return None;
    }
    let place = composer.pick(&candidates);
    match fault {
        Fault::Order => words.swap(place, place + 1),
        Fault::Determiner => drop(words.remove(place)),
        _ => words[place].text = words[place].wrong.take()?,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexicon::Lexicon;

    #[test]
    fn one_fault_makes_the_difference() {
        let lexicon = Lexicon::new();
        let mut composer = Composer::new(&lexicon, 1, &[]);
        let king = |lexicon: &Lexicon| lexicon.nouns.iter().position(|n| n.singular == "king").unwrap();
        let sneeze = lexicon.verbs.iter().position(|v| v.forms.base == "sneeze").unwrap();
        let mut clause = Clause::does(Np::of(Det::The, king(&lexicon), Number::Plural), sneeze, None);
        clause.tense = Tense::Perfect;
        let good = say(&lexicon, &Sentence::One(clause));
        assert_eq!(text(&good), "The kings have sneezed.");
        let mut spoiled = |fault| {
            let mut words = good.clone();
            spoil(&mut composer, fault, &mut words).map(|()| text(&words))
        };
        assert_eq!(spoiled(Fault::Agreement).as_deref(), Some("The kings has sneezed."));
        assert_eq!(spoiled(Fault::Form).as_deref(), Some("The kings have sneeze."));
        assert_eq!(spoiled(Fault::Order).as_deref(), Some("Kings the have sneezed."));
        // «The» goes with both numbers, and a plural needs no determiner.
        assert_eq!(spoiled(Fault::Number), None);
        assert_eq!(spoiled(Fault::Determiner), None);
    }

    #[test]
    fn strict_verbs_decide_about_objects() {
        let lexicon = Lexicon::new();
        let mut composer = Composer::new(&lexicon, 2, &[]);
        for _ in 0..200 {
            for is_good in [true, false] {
                let clause = objects(&mut composer, is_good);
                let Predicate::Does { verb, object, .. } = &clause.predicate else { unreachable!() };
                assert!(lexicon.verbs[*verb].is_strict);
                assert_eq!((lexicon.verbs[*verb].frame == Frame::Transitive) == object.is_some(), is_good);
            }
        }
    }
}
