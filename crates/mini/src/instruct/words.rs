//! Exercises about single words: forms, opposites, kinds.

use super::{Task, task};
use crate::compose::Composer;
use crate::lexicon::{Frame, Lexicon, Verb};
use crate::morphology::article;

pub(super) const TASKS: &[Task] = &[
    task("plural", "give the plural of this noun.", |composer| {
        let lexicon = composer.lexicon;
        let noun = &lexicon.nouns[composer.rng.index(lexicon.nouns.len())];
        Some((noun.singular.clone(), noun.plural.clone()))
    }),
    task("singular", "give the singular of this noun.", |composer| {
        let lexicon = composer.lexicon;
        let noun = &lexicon.nouns[composer.rng.index(lexicon.nouns.len())];
        Some((noun.plural.clone(), noun.singular.clone()))
    }),
    task("article", "put a or an before this noun.", |composer| {
        let lexicon = composer.lexicon;
        let noun = &lexicon.nouns[composer.rng.index(lexicon.nouns.len())].singular;
        Some((noun.clone(), format!("{} {noun}", article(noun))))
    }),
    task("past", "give the past tense of this verb.", |composer| {
        let verb = verb(composer);
        Some((verb.forms.base.clone(), verb.forms.past.clone()))
    }),
    task("progressive", "give the form of this verb that ends in ing.", |composer| {
        let verb = verb(composer);
        Some((verb.forms.base.clone(), verb.forms.progressive.clone()))
    }),
    task("third person", "give the form of this verb that goes with she.", |composer| {
        let verb = verb(composer);
        Some((verb.forms.base.clone(), verb.forms.third.clone()))
    }),
    task("base form", "give the base form of this verb.", |composer| {
        let lexicon = composer.lexicon;
        let forms = &verb(composer).forms;
        // A past form that two verbs share has two answers.
        let is_unique =
            lexicon.verbs.iter().all(|v| v.forms.past != forms.past || v.forms.base == forms.base);
        is_unique.then(|| (forms.past.clone(), forms.base.clone()))
    }),
    task("opposite", "give the opposite of this word.", |composer| {
        let lexicon = composer.lexicon;
        let word = composer.rng.index(lexicon.adjectives.len());
        let only = only(&lexicon.adjectives[word].opposites)?;
        let texts = |id: usize| lexicon.adjectives[id].text;
        let is_unique = lexicon.adjectives.iter().filter(|a| a.text == texts(word)).count() == 1;
        is_unique.then(|| (texts(word).to_owned(), texts(only).to_owned()))
    }),
    task("opposite verb", "give the verb that means the opposite of this verb.", |composer| {
        let lexicon = composer.lexicon;
        let word = composer.rng.index(lexicon.verbs.len());
        let only = only(&lexicon.verbs[word].opposites)?;
        unique_pair(lexicon, word, only)
    }),
    task("synonym verb", "give another verb that means the same.", |composer| {
        let lexicon = composer.lexicon;
        let word = composer.rng.index(lexicon.verbs.len());
        let others: Vec<usize> =
            lexicon.verbs[word].synonyms.iter().copied().filter(|&other| other != word).collect();
        unique_pair(lexicon, word, only(&others)?)
    }),
    task("kind", "what kind of thing is this?", |composer| {
        let lexicon = composer.lexicon;
        let noun = &lexicon.nouns[composer.rng.index(lexicon.nouns.len())];
        let above = &lexicon.nouns[noun.hypernym?];
        let answer = format!("{} {}", article(&above.singular), above.singular);
        let is_unique = above.synonyms.len() == 1
            && lexicon.nouns.iter().filter(|other| other.singular == noun.singular).count() == 1;
        is_unique.then(|| (format!("{} {}", article(&noun.singular), noun.singular), answer))
    }),
    task("man or woman", "is this the name of a man or of a woman?", |composer| {
        let lexicon = composer.lexicon;
        let name = &lexicon.names[composer.rng.index(lexicon.names.len())];
        let answer = if name.is_woman { "a woman" } else { "a man" };
        Some((name.text.to_lowercase(), answer.to_owned()))
    }),
    task("first word", "give the first of these words.", |composer| {
        let list = list(composer, 4);
        Some((list.join(" "), list[0].clone()))
    }),
    task("last word", "give the last of these words.", |composer| {
        let list = list(composer, 4);
        Some((list.join(" "), list[3].clone()))
    }),
    task("reverse", "give these words in the reverse order.", |composer| {
        let list = list(composer, 3);
        let reversed: Vec<&str> = list.iter().rev().map(String::as_str).collect();
        Some((list.join(" "), reversed.join(" ")))
    }),
];

/// A verb that is conjugated like any other.
fn verb<'l>(composer: &mut Composer<'l>) -> &'l Verb {
    let lexicon = composer.lexicon;
    let verb = composer.verb_where(|verb| matches!(verb.frame, Frame::Intransitive | Frame::Transitive));
    &lexicon.verbs[verb]
}

/// The element of a list of one.
fn only(list: &[usize]) -> Option<usize> {
    match list {
        [one] => Some(*one),
        _ => None,
    }
}

/// The base forms of a verb and its answer, unless the verb has several meanings.
fn unique_pair(lexicon: &Lexicon, word: usize, answer: usize) -> Option<(String, String)> {
    let base = |id: usize| &lexicon.verbs[id].forms.base;
    let is_unique = lexicon.verbs.iter().filter(|verb| verb.forms.base == *base(word)).count() == 1;
    is_unique.then(|| (base(word).clone(), base(answer).clone()))
}

/// Different nouns.
fn list(composer: &mut Composer<'_>, count: usize) -> Vec<String> {
    let lexicon = composer.lexicon;
    let mut list: Vec<String> = Vec::with_capacity(count);
    while list.len() < count {
        let noun = &lexicon.nouns[composer.noun(&["person", "animal", "food", "thing"])].singular;
        if !list.contains(noun) {
            list.push(noun.clone());
        }
    }
    list
}
