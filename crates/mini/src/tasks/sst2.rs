//! Sentiment: reviews whose polarity is composed of words, negations and contrasts.

use crate::compose::Composer;
use crate::lexicon::reviews::{
    ASPECTS, BADLY, BLAME, DEGREES, DISLIKES, FLOPS, LIKES, MAKING, PRAISE, TRIUMPHS, VICES, VIRTUES, WELL,
    WORKS,
};
use crate::morphology::article;
use crate::tasks::Row;

/// Percentages of the classes «negative» and «positive».
pub(crate) const SHARES: &[usize] = &[49, 51];

/// A row of the class: 0 for blame, 1 for praise.
pub(crate) fn make(composer: &mut Composer<'_>, class: usize) -> Option<Row> {
    let text = review(composer, class == 1);
    Some(Row { texts: vec![format!("{text} .")], label: class.to_string() })
}

/// A review, in the lower-case tokens of the official files, without the final point.
pub(crate) fn review(composer: &mut Composer<'_>, is_good: bool) -> String {
    let (judgement, aside) = (judgement(composer, is_good), self::judgement(composer, !is_good));
    match composer.rng.below(100) {
        0..54 => judgement,
        54..70 => format!("{judgement} and {}", self::judgement(composer, is_good)),
        70..80 => format!("{aside} , but {judgement}"),
        80..88 => format!("although {aside} , {judgement}"),
        88..94 => format!("{judgement} , even though {aside}"),
        _ => {
            let (adjective, aspect) = (opinion(composer, !is_good), composer.word(ASPECTS));
            format!("despite its {adjective} {aspect} , {judgement}")
        }
    }
}

/// One clause of praise or blame; a third of them reverse the polarity of their words.
fn judgement(composer: &mut Composer<'_>, is_good: bool) -> String {
    let aspect = composer.word(ASPECTS);
    match composer.rng.below(100) {
        0..20 => format!("the {aspect} is {}", opinion(composer, is_good)),
        20..28 => {
            let degree = composer.word(DEGREES);
            format!("the {aspect} is {degree} {}", opinion(composer, is_good))
        }
        28..39 => {
            let (one, two) = (opinion(composer, is_good), opinion(composer, is_good));
            format!("{} {one} and {two} {}", article(one), composer.word(WORKS))
        }
        39..46 => {
            let how = composer.word(if is_good { WELL } else { BADLY });
            format!("the {aspect} is {how} {}", composer.word(MAKING))
        }
        46..53 => {
            let verb = composer.word(if is_good { LIKES } else { DISLIKES });
            format!("i {verb} the {aspect}")
        }
        53..61 => {
            let verdict = composer.word(if is_good { TRIUMPHS } else { FLOPS });
            format!("this {} is {} {verdict}", composer.word(WORKS), article(verdict))
        }
        61..68 => {
            let having = composer.word(if is_good { VIRTUES } else { VICES });
            format!("the {aspect} is full of {having}")
        }
        // From here on the words have the opposite polarity.
        68..76 => {
            let turn = composer.pick(&["not", "never", "hardly", "far from", "anything but", "by no means"]);
            format!("the {aspect} is {turn} {}", opinion(composer, !is_good))
        }
        76..81 => {
            let turn = composer.pick(&["nobody could call", "it is hard to call", "you would not call"]);
            format!("{turn} the {aspect} {}", opinion(composer, !is_good))
        }
        81..86 if is_good => {
            let turn = composer.pick(&["avoids being", "never becomes", "manages not to be"]);
            format!("the {aspect} {turn} {}", opinion(composer, false))
        }
        81..86 => {
            let turn = composer.pick(&["fails to be", "never becomes", "pretends to be"]);
            format!("the {aspect} {turn} {}", opinion(composer, true))
        }
        86..92 => {
            let turn = composer.pick(&["lacks any", "is free of", "is without"]);
            let lacking = composer.word(if is_good { VICES } else { VIRTUES });
            format!("the {aspect} {turn} {lacking}")
        }
        92..96 => {
            let verb = composer.word(if is_good { DISLIKES } else { LIKES });
            let turn = composer.pick(&["nobody", "no viewer", "hardly anyone"]);
            format!("{turn} {verb} the {aspect}")
        }
        _ => {
            let verdict = composer.word(if is_good { FLOPS } else { TRIUMPHS });
            let turn = composer.pick(&["is not", "is far from being", "is hardly"]);
            format!("this {} {turn} {} {verdict}", composer.word(WORKS), article(verdict))
        }
    }
}

fn opinion(composer: &mut Composer<'_>, is_good: bool) -> &'static str {
    composer.word(if is_good { PRAISE } else { BLAME })
}
