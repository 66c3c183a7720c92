//! Exercises that transform one sentence into another.

use super::{Task, task};
use crate::compose::Composer;
use crate::lexicon::Frame;
use crate::rewrite::can_be_passive;
use crate::speech::{phrase, say, text};
use crate::syntax::{Clause, Det, Link, Np, Number, Predicate, Sentence, Tense};

pub(super) const TASKS: &[Task] = &[
    task("negate", "negate this sentence.", |composer| {
        let clause = plain(composer);
        let negated = Clause { negated: true, ..clause.clone() };
        Some((line(composer, &clause), line(composer, &negated)))
    }),
    task("affirm", "take the negation out of this sentence.", |composer| {
        let clause = plain(composer);
        let negated = Clause { negated: true, ..clause.clone() };
        Some((line(composer, &negated), line(composer, &clause)))
    }),
    task("present", "put this sentence into the present tense.", |composer| {
        let clause = plain(composer);
        let present = Clause { tense: Tense::Present, ..clause.clone() };
        Some((line(composer, &clause), line(composer, &present)))
    }),
    task("past sentence", "put this sentence into the past tense.", |composer| {
        let clause = plain(composer);
        let present = Clause { tense: Tense::Present, ..clause.clone() };
        Some((line(composer, &present), line(composer, &clause)))
    }),
    task("perfect", "say this sentence with has or have.", |composer| {
        let clause = plain(composer);
        let perfect = Clause { tense: Tense::Perfect, ..clause.clone() };
        Some((line(composer, &clause), line(composer, &perfect)))
    }),
    task("passive", "put this sentence into the passive.", |composer| {
        let clause = composer.encounter();
        let passive = Clause { passive: true, ..clause.clone() };
        can_be_passive(&clause).then(|| (line(composer, &clause), line(composer, &passive)))
    }),
    task("active", "put this sentence into the active.", |composer| {
        let clause = composer.encounter();
        let passive = Clause { passive: true, ..clause.clone() };
        can_be_passive(&clause).then(|| (line(composer, &passive), line(composer, &clause)))
    }),
    task("question", "turn this sentence into a question.", |composer| {
        let lexicon = composer.lexicon;
        let clause = plain(composer);
        let Predicate::Does { control: None, verb, object } = &clause.predicate else { return None };
        let subject = phrase(lexicon, &clause.subject).to_lowercase();
        let base = &lexicon.verbs[*verb].forms.base;
        let object = object.as_ref().map(|np| format!(" {}", phrase(lexicon, np).to_lowercase()));
        let question = format!("did {subject} {base}{}?", object.unwrap_or_default());
        Some((line(composer, &clause), question))
    }),
    task("gift", "say this sentence without the word to.", |composer| {
        let (plain, shifted) = gift(composer);
        Some((line(composer, &plain), line(composer, &shifted)))
    }),
    task("gift with to", "say this sentence with the word to.", |composer| {
        let (plain, shifted) = gift(composer);
        Some((line(composer, &shifted), line(composer, &plain)))
    }),
    task("time first", "put the time at the beginning of this sentence.", |composer| {
        let mut clause = plain(composer);
        composer.furnish(&mut clause, 0, 0, 100);
        let fronted = Clause { fronted: true, ..clause.clone() };
        Some((line(composer, &clause), line(composer, &fronted)))
    }),
    task("place first", "put the place at the beginning of this sentence.", |composer| {
        let mut clause = plain(composer);
        composer.furnish(&mut clause, 0, 100, 0);
        let fronted = Clause { fronted: true, ..clause.clone() };
        Some((line(composer, &clause), line(composer, &fronted)))
    }),
    task("drop the adjective", "take the adjective out of this sentence.", |composer| {
        let mut clause = plain(composer);
        let adjective = composer.adjective(clause.subject.noun()?)?;
        let without = clause.clone();
        clause.subject.adjective = Some(adjective);
        Some((line(composer, &clause), line(composer, &without)))
    }),
    task("exchange", "let the two in this sentence change places.", |composer| {
        let clause = composer.encounter();
        let mut swapped = clause.clone();
        let Predicate::Does { object: Some(object), .. } = &mut swapped.predicate else { return None };
        std::mem::swap(&mut swapped.subject, object);
        (swapped != clause).then(|| (line(composer, &clause), line(composer, &swapped)))
    }),
    task("join", "join these two sentences with the word and.", |composer| {
        let (first, second) = (composer.brief(), composer.brief());
        let both = [line(composer, &first), line(composer, &second)].join(" ");
        Some((both, lower(composer, &joined(first, second))))
    }),
    task("split", "make two sentences of this one.", |composer| {
        let (first, second) = (composer.brief(), composer.brief());
        let both = [line(composer, &first), line(composer, &second)].join(" ");
        Some((lower(composer, &joined(first, second)), both))
    }),
    task("one of them", "say this of one only, with the word a or an.", |composer| {
        let mut clause = plain(composer);
        let noun = clause.subject.noun()?;
        let one = Np::of(Det::A, noun, Number::Singular);
        let several = composer.pick(&[Det::Two, Det::Three, Det::Several]);
        clause.subject = Np::of(several, noun, Number::Plural);
        let single = Clause { subject: one, ..clause.clone() };
        Some((line(composer, &clause), line(composer, &single)))
    }),
    task("repeat", "repeat this sentence.", |composer| {
        let clause = plain(composer);
        let said = line(composer, &clause);
        Some((said.clone(), said))
    }),
];

/// A short action in the past, without further details.
pub(super) fn plain(composer: &mut Composer<'_>) -> Clause {
    composer.brief()
}

/// The sentence of a clause, in lower case.
pub(super) fn line(composer: &Composer<'_>, clause: &Clause) -> String {
    lower(composer, &Sentence::One(clause.clone()))
}

/// A sentence in lower case.
pub(super) fn lower(composer: &Composer<'_>, sentence: &Sentence) -> String {
    text(&say(composer.lexicon, sentence)).to_lowercase()
}

/// «gave a book to the nurse», and «gave the nurse a book».
fn gift(composer: &mut Composer<'_>) -> (Clause, Clause) {
    let verb = composer.verb(Frame::Giving, "person");
    let lexicon = composer.lexicon;
    let (subject, to) = (composer.being(&["person"], 0), composer.being(&["person"], 0));
    let thing = composer.np(&lexicon.verbs[verb].objects, 20);
    let plain = Clause::new(subject, Predicate::Gives { verb, thing, to });
    let shifted = Clause { shifted: true, ..plain.clone() };
    (plain, shifted)
}

fn joined(first: Clause, second: Clause) -> Sentence {
    Sentence::Two { link: Link::And, first, second: Box::new(second), linked_first: false }
}
