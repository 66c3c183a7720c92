//! Sentences as words: inflection, agreement, order.

use crate::lexicon::{Lexicon, TIMES};
use crate::morphology::{VerbForms, article};
use crate::syntax::{
    Clause, Det, Head, Joint, Link, Np, Number, Place, Predicate, Sentence, Tense, number_of,
};

/// The role of a word, for making ungrammatical sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    Det,
    Adjective,
    Noun,
    Name,
    /// The verb or auxiliary that agrees with the subject.
    Finite,
    /// A verb form that an auxiliary governs.
    Main,
    Preposition,
    Other,
}

/// A word of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) tag: Tag,
    /// The form that would be incorrect here: the other number, or another tense.
    pub(crate) wrong: Option<String>,
}

/// The forms of `be`: past, present, each singular and plural.
const BE: [[&str; 2]; 2] = [["was", "were"], ["is", "are"]];

/// Realizes sentences as words.
pub(crate) struct Speaker<'a> {
    lexicon: &'a Lexicon,
    words: Vec<Word>,
}

/// The words of a sentence, without the final point.
pub(crate) fn say(lexicon: &Lexicon, sentence: &Sentence) -> Vec<Word> {
    let mut speaker = Speaker { lexicon, words: Vec::new() };
    match sentence {
        Sentence::One(clause) => speaker.clause(clause),
        Sentence::Two { link, first, second, linked_first: false } => {
            speaker.clause(first);
            if matches!(link, Link::But) {
                speaker.other(",");
            }
            speaker.other(link.text());
            speaker.clause(second);
        }
        Sentence::Two { link, first, second, linked_first: true } => {
            speaker.other(link.text());
            speaker.clause(second);
            speaker.other(",");
            speaker.clause(first);
        }
    }
    speaker.words
}

/// A noun phrase as text.
pub(crate) fn phrase(lexicon: &Lexicon, np: &Np) -> String {
    let mut speaker = Speaker { lexicon, words: Vec::new() };
    speaker.np(np);
    joined(&speaker.words)
}

/// A place as text: «near the lake».
pub(crate) fn place(lexicon: &Lexicon, place: &Place) -> String {
    let mut speaker = Speaker { lexicon, words: Vec::new() };
    speaker.place(place);
    joined(&speaker.words)
}

/// The words as a sentence: articles, capitals, commas, final point.
pub(crate) fn text(words: &[Word]) -> String {
    capitalized(&joined(words)) + "."
}

/// The words as text: articles, capitals of names, commas.
fn joined(words: &[Word]) -> String {
    let mut out = String::new();
    for (i, word) in words.iter().enumerate() {
        if i > 0 && word.text != "," {
            out.push(' ');
        }
        let is_article = word.tag == Tag::Det && word.text == "a";
        let said = match words.get(i + 1) {
            Some(next) if is_article => article(&next.text),
            _ => &word.text,
        };
        if word.tag == Tag::Name { out.push_str(&capitalized(said)) } else { out.push_str(said) }
    }
    out
}

/// The text with its first letter in upper case.
pub(crate) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

impl Speaker<'_> {
    fn push(&mut self, text: &str, tag: Tag, wrong: Option<&str>) {
        let wrong = wrong.filter(|wrong| *wrong != text).map(str::to_owned);
        self.words.push(Word { text: text.to_owned(), tag, wrong });
    }

    fn other(&mut self, text: &str) {
        for word in text.split_whitespace() {
            self.push(word, Tag::Other, None);
        }
    }

    /// Pushes the form that agrees with `number`; the other of the two would be incorrect.
    fn finite(&mut self, [singular, plural]: [&str; 2], number: Number) {
        match number {
            Number::Singular => self.push(singular, Tag::Finite, Some(plural)),
            Number::Plural => self.push(plural, Tag::Finite, Some(singular)),
        }
    }

    fn np(&mut self, np: &Np) {
        match &np.head {
            Head::Name(name) => {
                let text = self.lexicon.names[*name].text;
                self.push(text, Tag::Name, None);
            }
            Head::Reflexive(text) => self.other(text),
            Head::Both { first, joint, second } => {
                self.np(first);
                self.other(match joint {
                    Joint::And => "and",
                    Joint::Or => "or",
                });
                self.np(second);
            }
            Head::Noun { det, noun, number } => {
                if *det != Det::Bare {
                    self.push(det.text(), Tag::Det, None);
                }
                if let Some(adjective) = np.adjective {
                    self.push(self.lexicon.adjectives[adjective].text, Tag::Adjective, None);
                }
                let noun = &self.lexicon.nouns[*noun];
                let (right, wrong) = match number {
                    Number::Singular => (&noun.singular, &noun.plural),
                    Number::Plural => (&noun.plural, &noun.singular),
                };
                // The other number is incorrect only if the determiner requires this one.
                let wrong = det.number().filter(|_| *det != Det::Bare).map(|_| wrong.as_str());
                self.push(right, Tag::Noun, wrong);
            }
        }
        if let Some(place) = &np.place {
            self.place(place);
        }
        if let Some(predicate) = &np.relative {
            let is_person = match &np.head {
                Head::Noun { noun, .. } => self.lexicon.nouns[*noun].root == "person",
                _ => true,
            };
            self.other(if is_person { "who" } else { "that" });
            self.predicate(predicate, Tense::Past, false, false, number_of(np), false);
        }
    }

    fn place(&mut self, place: &Place) {
        let texts = &self.lexicon.prepositions[place.preposition].texts;
        for word in texts[place.wording % texts.len()].split_whitespace() {
            self.push(word, Tag::Preposition, None);
        }
        self.push("the", Tag::Det, None);
        self.push(&self.lexicon.nouns[place.noun].singular, Tag::Noun, None);
    }

    fn clause(&mut self, clause: &Clause) {
        let front_place = clause.fronted && clause.time.is_none();
        if clause.fronted {
            match (clause.time, &clause.place) {
                (Some(time), _) => self.time(time),
                (None, Some(place)) => self.place(place),
                (None, None) => {}
            }
            if clause.time.is_some() || clause.place.is_some() {
                self.other(",");
            }
        }
        match &clause.predicate {
            Predicate::Does { control: None, verb, object: Some(object) } if clause.passive => {
                self.np(object);
                let forms = &self.lexicon.verbs[*verb].forms;
                self.passive(forms, clause.tense, clause.negated, number_of(object));
                self.push("by", Tag::Preposition, None);
                self.np(&clause.subject);
            }
            predicate => {
                self.np(&clause.subject);
                let number = number_of(&clause.subject);
                self.predicate_shifted(predicate, clause, number);
            }
        }
        if let Some(manner) = clause.manner {
            self.other(self.lexicon.manners[manner].text);
        }
        if let Some(place) = clause.place.as_ref().filter(|_| !front_place) {
            self.place(place);
        }
        if let Some(time) = clause.time.filter(|_| !clause.fronted) {
            self.time(time);
        }
    }

    fn time(&mut self, time: usize) {
        self.other(TIMES[time % TIMES.len()]);
    }

    fn predicate_shifted(&mut self, predicate: &Predicate, clause: &Clause, number: Number) {
        if let Predicate::Gives { verb, thing, to } = predicate
            && clause.shifted
        {
            self.active(&self.lexicon.verbs[*verb].forms, clause.tense, clause.negated, clause.ever, number);
            self.np(to);
            self.np(thing);
        } else {
            self.predicate(predicate, clause.tense, clause.negated, clause.ever, number, true);
        }
    }

    /// Realizes a predicate in the order verb, object, others; `objects` of relative clauses stay short.
    fn predicate(
        &mut self,
        predicate: &Predicate,
        tense: Tense,
        negated: bool,
        ever: bool,
        number: Number,
        is_main: bool,
    ) {
        let lexicon = self.lexicon;
        match predicate {
            Predicate::Does { control, verb, object } => {
                let forms = &lexicon.verbs[*verb].forms;
                if let Some(control) = control {
                    self.active(&lexicon.verbs[*control].forms, tense, negated, ever, number);
                    self.other("to");
                    self.push(&forms.base, Tag::Main, Some(&forms.past));
                } else {
                    self.active(forms, tense, negated, ever, number);
                }
                if let Some(object) = object {
                    self.np(object);
                }
            }
            Predicate::Gives { verb, thing, to } => {
                self.active(&lexicon.verbs[*verb].forms, tense, negated, ever, number);
                self.np(thing);
                self.push("to", Tag::Preposition, None);
                self.np(to);
            }
            Predicate::Is { adjective } => {
                self.be(tense, negated, number);
                self.push(lexicon.adjectives[*adjective].text, Tag::Adjective, None);
            }
            Predicate::Thinks { verb, clause } => {
                self.active(&lexicon.verbs[*verb].forms, tense, negated, ever, number);
                if is_main {
                    self.other("that");
                }
                self.clause(clause);
            }
        }
    }

    fn be(&mut self, tense: Tense, negated: bool, number: Number) {
        let row = if matches!(tense, Tense::Past | Tense::PastProgressive) { BE[0] } else { BE[1] };
        self.finite(row, number);
        if negated {
            self.other("not");
        }
    }

    /// Realizes a verb in the active voice.
    fn active(&mut self, forms: &VerbForms, tense: Tense, negated: bool, ever: bool, number: Number) {
        let VerbForms { base, third, past, participle, progressive } = forms;
        match tense {
            Tense::Past if negated => {
                self.push("did", Tag::Finite, None);
                self.other("not");
                self.push(base, Tag::Main, Some(past));
            }
            Tense::Past => self.push(past, Tag::Finite, None),
            Tense::Present if negated => {
                self.finite(["does", "do"], number);
                self.other("not");
                self.push(base, Tag::Main, Some(past));
            }
            Tense::Present => self.finite([third, base], number),
            Tense::PastProgressive | Tense::PresentProgressive => {
                self.be(tense, negated, number);
                self.push(progressive, Tag::Main, Some(base));
            }
            Tense::Perfect => {
                self.finite(["has", "have"], number);
                if negated {
                    self.other("not");
                }
                if ever {
                    self.other("ever");
                }
                self.push(participle, Tag::Main, Some(base));
            }
        }
    }

    /// Realizes a verb in the passive voice.
    fn passive(&mut self, forms: &VerbForms, tense: Tense, negated: bool, number: Number) {
        if tense == Tense::Perfect {
            self.finite(["has", "have"], number);
            if negated {
                self.other("not");
            }
            self.other("been");
        } else {
            self.be(tense, negated, number);
            if matches!(tense, Tense::PastProgressive | Tense::PresentProgressive) {
                self.other("being");
            }
        }
        self.push(&forms.participle, Tag::Main, Some(&forms.base));
    }
}
