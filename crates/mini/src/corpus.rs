//! Text for pre-training: single sentences of the grammar, and pairs of related sentences.
//!
//! The text covers what the tasks test: agreement in single sentences; kinds, synonyms and opposites in
//! definitions; the polarity of judgements in statements about words and in reviews with a verdict; sameness
//! in repetitions and in pairs with «likewise» or «instead»; and entailment in pairs whose second sentence
//! begins with «so» or «perhaps».

use std::collections::HashSet;

use crate::compose::Composer;
use crate::lexicon::reviews::{
    BADLY, BLAME, DISLIKES, FLOPS, LIKES, MAKING, PRAISE, TRIUMPHS, VICES, VIRTUES, WELL,
};
use crate::lexicon::{Adjective, Lexicon, ROOTS, VerbId};
use crate::morphology::article;
use crate::speech::capitalized;
use crate::tasks::mrpc::{different, event, said, same};
use crate::tasks::{cola, rte, sst2};

/// A line of the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusLine {
    /// The first or only sentence.
    pub text: String,
    /// A second sentence that continues the first.
    pub pair: Option<String>,
}

/// Generates lines without the sentences in `taken`.
pub(crate) fn lines(composer: &mut Composer<'_>, count: usize, taken: &HashSet<String>) -> Vec<CorpusLine> {
    let mut lines = Vec::with_capacity(count);
    while lines.len() < count {
        let Some((text, pair, opening)) = line(composer) else { continue };
        if taken.contains(&text) || pair.as_ref().is_some_and(|pair| taken.contains(pair)) {
            continue;
        }
        let pair = pair.map(|pair| match opening {
            "" => pair,
            opening => format!("{}, {}", capitalized(opening), uncapitalized(composer.lexicon, &pair)),
        });
        lines.push(CorpusLine { text, pair });
    }
    lines
}

/// A sentence, possibly a second one, and the opening word of the second.
fn line(composer: &mut Composer<'_>) -> Option<(String, Option<String>, &'static str)> {
    match composer.rng.below(100) {
        0..12 => Some((cola::make(composer, 1)?.texts.pop()?, None, "")),
        12..20 => Some((definition(composer), None, "")),
        20..30 => Some((valuation(composer), None, "")),
        30..50 => {
            let is_good = composer.percent(50);
            let (first, second) = match composer.rng.below(8) {
                0 => (list(composer, is_good), list(composer, is_good)),
                1 => (list(composer, is_good), verdict(is_good)),
                _ => (sst2::review(composer, is_good), verdict(is_good)),
            };
            Some((format!("{first} ."), Some(format!("{second} .")), ""))
        }
        50..60 => {
            let first = match composer.rng.below(3) {
                0 => rte::pair(composer, true)?.0,
                _ => event(composer),
            };
            let said = said(composer, &first);
            Some((said.clone(), Some(said), "again"))
        }
        60..80 => {
            let first = event(composer);
            let (second, opening) = if composer.percent(55) {
                (same(composer, &first)?, "likewise")
            } else {
                (different(composer, &first)?, "instead")
            };
            Some((said(composer, &first), Some(said(composer, &second)), opening))
        }
        _ => {
            let follows = composer.percent(50);
            let (first, second) = rte::pair(composer, follows)?;
            let opening = if follows { "so" } else { "perhaps" };
            Some((said(composer, &first), Some(said(composer, &second)), opening))
        }
    }
}

/// Words of one polarity: «witty , superb and moving».
fn list(composer: &mut Composer<'_>, is_good: bool) -> String {
    let words: Vec<&str> = (0..4).map(|_| composer.word(if is_good { PRAISE } else { BLAME })).collect();
    format!("{} , {} , {} and {}", words[0], words[1], words[2], words[3])
}

/// The polarity of a judging word: «what is witty is good».
fn valuation(composer: &mut Composer<'_>) -> String {
    let is_good = composer.percent(50);
    let worth = if is_good { "good" } else { "bad" };
    match composer.rng.below(10) {
        0..6 => format!("What is {} is {worth}.", composer.word(if is_good { PRAISE } else { BLAME })),
        6 => {
            let how = composer.word(if is_good { WELL } else { BADLY });
            format!("What is {how} {} is {worth}.", composer.word(MAKING))
        }
        7 => {
            let having = composer.word(if is_good { VIRTUES } else { VICES });
            format!("What is full of {having} is {worth}.")
        }
        8 => {
            let verb = composer.word(if is_good { LIKES } else { DISLIKES });
            format!("What i {verb} is {worth}.")
        }
        _ => {
            let work = composer.word(if is_good { TRIUMPHS } else { FLOPS });
            format!("What is {} {work} is {worth}.", article(work))
        }
    }
}

/// The verdict of a review.
fn verdict(is_good: bool) -> String {
    format!("a {} film", if is_good { "good" } else { "bad" })
}

/// A sentence about words: kinds, synonyms, opposites, names.
fn definition(composer: &mut Composer<'_>) -> String {
    let lexicon = composer.lexicon;
    let adjectives = 0..lexicon.adjectives.len();
    let same_kind = match composer.rng.below(100) {
        0..22 => {
            let verb = composer.verb_where(|_| true);
            let (synonyms, opposites) = (&lexicon.verbs[verb].synonyms, &lexicon.verbs[verb].opposites);
            let base = |verb: VerbId| &lexicon.verbs[verb].forms.base;
            relation(composer, verb, synonyms, opposites)
                .map(|(other, is)| format!("To {} {is} to {}.", base(verb), base(other)))
        }
        22..40 => {
            let adjective = composer.rng.index(adjectives.len());
            let Adjective { synonyms, opposites, text, .. } = &lexicon.adjectives[adjective];
            relation(composer, adjective, synonyms, opposites)
                .map(|(other, is)| format!("What is {text} {is} {}.", lexicon.adjectives[other].text))
        }
        40..46 => {
            let noun = composer.rng.index(lexicon.nouns.len());
            relation(composer, noun, &lexicon.nouns[noun].synonyms, &[]).map(|(other, is)| {
                let (one, other) = (&lexicon.nouns[noun].singular, &lexicon.nouns[other].singular);
                capitalized(&format!("{} {one} {is} {} {other}.", article(one), article(other)))
            })
        }
        46..50 => {
            let name = &lexicon.names[composer.rng.index(lexicon.names.len())];
            let kind = if name.is_woman { "woman" } else { "man" };
            Some(format!("{} is a {kind}.", capitalized(name.text)))
        }
        _ => None,
    };
    same_kind.unwrap_or_else(|| kind(composer))
}

/// Another word of the same or the opposite meaning, and a statement about the two.
fn relation(
    composer: &mut Composer<'_>,
    word: usize,
    synonyms: &[usize],
    opposites: &[usize],
) -> Option<(usize, &'static str)> {
    if !opposites.is_empty() && composer.percent(40) {
        return Some((composer.pick(opposites), "is not"));
    }
    let others: Vec<usize> = synonyms.iter().copied().filter(|&other| other != word).collect();
    if others.is_empty() { None } else { Some((composer.pick(&others), "is")) }
}

/// «A beagle is a dog», «beagles and poodles are dogs».
fn kind(composer: &mut Composer<'_>) -> String {
    let lexicon = composer.lexicon;
    let root = composer.pick(&ROOTS);
    let noun = composer.noun(&[root]);
    let hypernyms = lexicon.hypernyms(noun);
    let above = &lexicon.nouns[composer.pick(&hypernyms)];
    let other = composer.sibling(noun);
    let noun = &lexicon.nouns[noun];
    let a_kind = format!("{} {}", article(&above.singular), above.singular);
    match (composer.rng.below(3), other) {
        (0, Some(other)) => {
            capitalized(&format!("{} and {} are {}.", noun.plural, lexicon.nouns[other].plural, above.plural))
        }
        (1, _) => format!("Every {} is {a_kind}.", noun.singular),
        _ => capitalized(&format!("{} {} is {a_kind}.", article(&noun.singular), noun.singular)),
    }
}

/// The text with its first letter in lower case, unless it is a name's.
fn uncapitalized(lexicon: &Lexicon, text: &str) -> String {
    let first = text.split([' ', ',', '.']).next().unwrap_or_default();
    let is_name = lexicon.names.iter().any(|name| name.text.eq_ignore_ascii_case(first));
    let mut letters = text.chars();
    match letters.next() {
        Some(letter) if !is_name => std::iter::once(letter.to_ascii_lowercase()).chain(letters).collect(),
        _ => text.to_owned(),
    }
}
