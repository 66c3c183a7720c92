//! Judgements: which is better, what follows, which sentence is correct.

use super::rewriting::lower;
use super::{Task, task};
use crate::compose::Composer;
use crate::lexicon::reviews::{BLAME, PRAISE, WORKS};
use crate::morphology::article;
use crate::tasks::mrpc::{different, event, same};
use crate::tasks::{cola, rte, sst2};

pub(super) const TASKS: &[Task] = &[
    task("better", "which is better?", |composer| {
        let (good, bad) = (work(composer, PRAISE), work(composer, BLAME));
        let input =
            if composer.percent(50) { format!("{good} or {bad}") } else { format!("{bad} or {good}") };
        Some((input, good))
    }),
    task("worse", "which is worse?", |composer| {
        let (good, bad) = (work(composer, PRAISE), work(composer, BLAME));
        let input =
            if composer.percent(50) { format!("{good} or {bad}") } else { format!("{bad} or {good}") };
        Some((input, bad))
    }),
    task("verdict", "is this review good or bad?", |composer| {
        let is_good = composer.percent(50);
        let answer = if is_good { "good" } else { "bad" };
        Some((format!("{}.", sst2::review(composer, is_good)).replace(" ,", ","), answer.to_owned()))
    }),
    task("follows", "does the second sentence follow from the first?", |composer| {
        let follows = composer.percent(50);
        let (first, second) = rte::pair(composer, follows)?;
        let (first, second) = (lower(composer, &first), lower(composer, &second));
        (first != second).then(|| (format!("{first} {second}"), yes(follows)))
    }),
    task("same", "do these two sentences mean the same?", |composer| {
        let is_same = composer.percent(50);
        let first = event(composer);
        let second = if is_same { same(composer, &first)? } else { different(composer, &first)? };
        let (first, second) = (lower(composer, &first), lower(composer, &second));
        (first != second).then(|| (format!("{first} {second}"), yes(is_same)))
    }),
    task("right or wrong", "is this sentence right or wrong?", |composer| {
        let class = composer.rng.index(2);
        let text = cola::make(composer, class)?.texts.pop()?.to_lowercase();
        Some((text, if class == 1 { "right" } else { "wrong" }.to_owned()))
    }),
];

/// «a witty comedy».
fn work(composer: &mut Composer<'_>, list: &'static str) -> String {
    let word = composer.word(list);
    format!("{} {word} {}", article(word), composer.word(WORKS))
}

fn yes(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.to_owned()
}
