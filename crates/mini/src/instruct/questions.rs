//! Questions about a sentence, answered by a part of it.

use super::rewriting::{line, plain};
use super::{Task, task};
use crate::compose::Composer;
use crate::lexicon::TIMES;
use crate::speech::{phrase, place};
use crate::syntax::{Clause, Det, Np, Number, Predicate};

pub(super) const TASKS: &[Task] = &[
    task("who", "who did this?", |composer| {
        let clause = composer.encounter();
        let clause = Clause { passive: composer.percent(40), ..clause };
        let who = named(composer, &clause.subject);
        Some((line(composer, &clause), who))
    }),
    task("to whom", "to whom was this done?", |composer| {
        let clause = composer.encounter();
        let clause = Clause { passive: composer.percent(40), ..clause };
        let Predicate::Does { object: Some(object), .. } = &clause.predicate else { return None };
        let whom = named(composer, object);
        Some((line(composer, &clause), whom))
    }),
    task("what", "what did they do? answer with the base form of the verb.", |composer| {
        let clause = composer.encounter();
        let Predicate::Does { verb, .. } = clause.predicate else { return None };
        let base = composer.lexicon.verbs[verb].forms.base.clone();
        Some((line(composer, &clause), base))
    }),
    task("where", "where did this happen?", |composer| {
        let mut clause = plain(composer);
        composer.furnish(&mut clause, 0, 100, 50);
        let answer = place(composer.lexicon, clause.place.as_ref()?);
        Some((line(composer, &clause), answer))
    }),
    task("when", "when did this happen?", |composer| {
        let mut clause = plain(composer);
        composer.furnish(&mut clause, 0, 50, 100);
        clause.fronted = composer.percent(40);
        let answer = TIMES[clause.time?].to_lowercase();
        Some((line(composer, &clause), answer))
    }),
    task("how", "how was this done?", |composer| {
        let mut clause = plain(composer);
        composer.furnish(&mut clause, 100, 40, 0);
        let answer = composer.lexicon.manners[clause.manner?].text.to_lowercase();
        Some((line(composer, &clause), answer))
    }),
    task("how many", "how many were they?", |composer| {
        let mut clause = plain(composer);
        let det = composer.pick(&[Det::Two, Det::Three, Det::Four, Det::Five]);
        clause.subject = Np::of(det, clause.subject.noun()?, Number::Plural);
        Some((line(composer, &clause), det.text().to_owned()))
    }),
    task("which adjective", "which word describes the one who did this?", |composer| {
        let mut clause = plain(composer);
        let adjective = composer.adjective(clause.subject.noun()?)?;
        clause.subject.adjective = Some(adjective);
        Some((line(composer, &clause), composer.lexicon.adjectives[adjective].text.to_owned()))
    }),
    task("first sentence", "who did the first thing?", |composer| {
        let (first, second) = (plain(composer), plain(composer));
        let who = named(composer, &first.subject);
        (first.subject != second.subject)
            .then(|| ([line(composer, &first), line(composer, &second)].join(" "), who))
    }),
    task("second sentence", "who did the second thing?", |composer| {
        let (first, second) = (plain(composer), plain(composer));
        let who = named(composer, &second.subject);
        (first.subject != second.subject)
            .then(|| ([line(composer, &first), line(composer, &second)].join(" "), who))
    }),
];

/// A noun phrase in lower case.
fn named(composer: &Composer<'_>, np: &Np) -> String {
    phrase(composer.lexicon, np).to_lowercase()
}
