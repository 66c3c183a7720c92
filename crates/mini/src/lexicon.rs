//! The words of the grammar with their meaning: kinds, synonyms, opposites, selectional restrictions.

mod modifiers;
mod nouns;
pub(crate) mod reviews;
mod verbs;

use std::collections::{BTreeMap, BTreeSet};

use crate::morphology::{VerbForms, noun_forms};

pub(crate) use modifiers::TIMES;

/// An index into [`Lexicon::nouns`].
pub(crate) type NounId = usize;
/// An index into [`Lexicon::verbs`].
pub(crate) type VerbId = usize;
/// An index into [`Lexicon::adjectives`].
pub(crate) type AdjectiveId = usize;
/// An index into [`Lexicon::manners`].
pub(crate) type MannerId = usize;

/// The root categories of nouns.
pub(crate) const ROOTS: [&str; 7] = ["person", "animal", "food", "vehicle", "thing", "plant", "place"];

/// A noun.
#[derive(Debug, Clone)]
pub(crate) struct Noun {
    pub(crate) singular: String,
    pub(crate) plural: String,
    /// `person`, `animal`, …
    pub(crate) root: &'static str,
    /// The kind it belongs to, named by the kind's first noun: `dog` for `beagle`; empty for the nouns of roots.
    pub(crate) kind: &'static str,
    /// The noun one step up: `dog` for `beagle`, `animal` for `dog`.
    pub(crate) hypernym: Option<NounId>,
    /// Whether the noun is a leaf, not a hypernym of others.
    pub(crate) is_leaf: bool,
    /// Nouns of the same meaning, including itself.
    pub(crate) synonyms: Vec<NounId>,
}

/// The arguments of a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Only a subject.
    Intransitive,
    /// A subject and an object.
    Transitive,
    /// A subject, a thing and a recipient.
    Giving,
    /// A subject and a clause that is true.
    Factive,
    /// A subject and a clause that may be false.
    Opinion,
    /// A subject and an infinitive that happened.
    Managing,
    /// A subject and an infinitive that did not happen.
    Failing,
    /// A subject and an infinitive that may have happened.
    Trying,
}

/// A verb.
#[derive(Debug, Clone)]
pub(crate) struct Verb {
    pub(crate) forms: VerbForms,
    pub(crate) frame: Frame,
    /// Roots of its subjects.
    pub(crate) subjects: Vec<&'static str>,
    /// Roots or kinds of its objects.
    pub(crate) objects: Vec<&'static str>,
    /// Whether an object is obligatory or, for a verb without one, impossible.
    pub(crate) is_strict: bool,
    pub(crate) synonyms: Vec<VerbId>,
    pub(crate) opposites: Vec<VerbId>,
}

/// An adjective.
#[derive(Debug, Clone)]
pub(crate) struct Adjective {
    pub(crate) text: &'static str,
    /// Roots or kinds of the nouns that it describes.
    pub(crate) of: Vec<&'static str>,
    pub(crate) synonyms: Vec<AdjectiveId>,
    pub(crate) opposites: Vec<AdjectiveId>,
}

/// An adverb of manner.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    pub(crate) text: &'static str,
    pub(crate) synonyms: Vec<MannerId>,
    pub(crate) opposites: Vec<MannerId>,
}

/// A preposition of place, with synonymous phrases.
#[derive(Debug, Clone)]
pub(crate) struct Preposition {
    pub(crate) texts: Vec<&'static str>,
    /// Whether it applies to buildings, shops and rooms only.
    pub(crate) needs_inside: bool,
}

/// A name.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    pub(crate) text: &'static str,
    pub(crate) is_woman: bool,
}

/// All words.
#[derive(Debug, Clone)]
pub(crate) struct Lexicon {
    pub(crate) nouns: Vec<Noun>,
    pub(crate) verbs: Vec<Verb>,
    pub(crate) adjectives: Vec<Adjective>,
    pub(crate) manners: Vec<Manner>,
    pub(crate) prepositions: Vec<Preposition>,
    pub(crate) names: Vec<Name>,
    /// The leaf nouns of each root and kind.
    leaves: BTreeMap<&'static str, Vec<NounId>>,
    /// The adjectives of each noun.
    described: Vec<Vec<AdjectiveId>>,
}

impl Lexicon {
    /// Builds all words from the tables.
    pub(crate) fn new() -> Self {
        let mut lexicon = Self {
            nouns: nouns(),
            verbs: Vec::new(),
            adjectives: Vec::new(),
            manners: Vec::new(),
            prepositions: modifiers::PREPOSITIONS
                .iter()
                .map(|&(texts, needs_inside)| Preposition { texts: texts.split('|').collect(), needs_inside })
                .collect(),
            names: Vec::new(),
            leaves: BTreeMap::new(),
            described: Vec::new(),
        };
        lexicon.add_verbs();
        for &(of, one, other) in modifiers::ADJECTIVES {
            let (one, other) = (words(one), words(other));
            let start = lexicon.adjectives.len();
            for (place, text) in one.iter().chain(&other).enumerate() {
                let (synonyms, opposites) = sides(start, one.len(), other.len(), place);
                lexicon.adjectives.push(Adjective { text, of: words(of), synonyms, opposites });
            }
        }
        for &(one, other) in modifiers::MANNERS {
            let (one, other) = (words(one), words(other));
            let start = lexicon.manners.len();
            for (place, text) in one.iter().chain(&other).enumerate() {
                let (synonyms, opposites) = sides(start, one.len(), other.len(), place);
                lexicon.manners.push(Manner { text, synonyms, opposites });
            }
        }
        let named =
            |list: &'static str, is_woman| words(list).into_iter().map(move |text| Name { text, is_woman });
        lexicon.names = named(nouns::WOMEN, true).chain(named(nouns::MEN, false)).collect();
        for (id, noun) in lexicon.nouns.iter().enumerate().filter(|(_, noun)| noun.is_leaf) {
            for category in [noun.root, noun.kind] {
                lexicon.leaves.entry(category).or_default().push(id);
            }
        }
        let fits = |noun, a: &Adjective| lexicon.is_of(noun, &a.of);
        let described =
            |noun| (0..lexicon.adjectives.len()).filter(|&a| fits(noun, &lexicon.adjectives[a])).collect();
        lexicon.described = (0..lexicon.nouns.len()).map(described).collect();
        lexicon
    }

    /// The leaf nouns of a root or kind.
    pub(crate) fn leaves(&self, category: &str) -> &[NounId] {
        self.leaves.get(category).map_or(&[], Vec::as_slice)
    }

    /// The adjectives applicable to a noun.
    pub(crate) fn adjectives_of(&self, noun: NounId) -> &[AdjectiveId] {
        &self.described[noun]
    }

    fn add_verbs(&mut self) {
        for &(subjects, one, other) in verbs::INTRANSITIVE {
            self.add_scale(Frame::Intransitive, subjects, "", one, other);
        }
        for &(subjects, objects, one, other) in verbs::TRANSITIVE {
            self.add_scale(Frame::Transitive, subjects, objects, one, other);
        }
        for &(objects, one) in verbs::GIVING {
            self.add_scale(Frame::Giving, "person", objects, one, "");
        }
        for (frame, list) in [
            (Frame::Factive, verbs::FACTIVE),
            (Frame::Opinion, verbs::OPINION),
            (Frame::Managing, verbs::MANAGING),
            (Frame::Failing, verbs::FAILING),
            (Frame::Trying, verbs::TRYING),
        ] {
            for verb in words(list) {
                self.add_scale(frame, "person", "", verb, "");
            }
        }
    }

    fn add_scale(
        &mut self,
        frame: Frame,
        subjects: &'static str,
        objects: &'static str,
        one: &'static str,
        other: &'static str,
    ) {
        let strict = words(match frame {
            Frame::Intransitive => verbs::NEVER_WITH_OBJECT,
            _ => verbs::NEVER_WITHOUT_OBJECT,
        });
        let (one, other) = (words(one), words(other));
        let start = self.verbs.len();
        for (place, entry) in one.iter().chain(&other).enumerate() {
            let (synonyms, opposites) = sides(start, one.len(), other.len(), place);
            let forms = VerbForms::parse(entry);
            self.verbs.push(Verb {
                is_strict: strict.contains(&forms.base.as_str()),
                forms,
                frame,
                subjects: words(subjects),
                objects: words(objects),
                synonyms,
                opposites,
            });
        }
    }

    /// Whether a noun is of one of the roots or kinds.
    pub(crate) fn is_of(&self, noun: NounId, categories: &[&str]) -> bool {
        let Noun { root, kind, .. } = &self.nouns[noun];
        categories.iter().any(|c| c == root || c == kind)
    }

    /// All nouns above a noun, the nearest first.
    pub(crate) fn hypernyms(&self, noun: NounId) -> Vec<NounId> {
        let above = |&n: &NounId| self.nouns[n].hypernym;
        std::iter::successors(above(&noun), above).collect()
    }

    /// Every word form of the grammar, in lower case, without punctuation.
    pub(crate) fn words(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut add = |text: &str| all.extend(text.split_whitespace().map(str::to_lowercase));
        for noun in &self.nouns {
            add(&noun.singular);
            add(&noun.plural);
        }
        for VerbForms { base, third, past, participle, progressive } in self.verbs.iter().map(|v| &v.forms) {
            for form in [base, third, past, participle, progressive] {
                add(form);
            }
        }
        self.adjectives.iter().for_each(|a| add(a.text));
        self.manners.iter().for_each(|m| add(m.text));
        self.prepositions.iter().flat_map(|p| &p.texts).for_each(|text| add(text));
        self.names.iter().for_each(|n| add(n.text));
        TIMES.iter().for_each(|time| add(time));
        reviews::ALL.iter().for_each(|list| add(list));
        all
    }
}

/// Builds the nouns: those of the roots, then each kind's own and its members.
fn nouns() -> Vec<Noun> {
    let mut all: Vec<Noun> = Vec::new();
    let mut add = |entry: &'static str, root, kind, hypernym, is_leaf| -> NounId {
        let start = all.len();
        let entries: Vec<&str> = entry.split('|').collect();
        let synonyms: Vec<NounId> = (start..start + entries.len()).collect();
        for entry in entries {
            let (singular, plural) = noun_forms(entry);
            all.push(Noun { singular, plural, root, kind, hypernym, is_leaf, synonyms: synonyms.clone() });
        }
        start
    };
    let mut roots = Vec::new();
    for &(root, entry) in nouns::ROOT_NOUNS {
        roots.push((root, add(entry, root, "", None, false)));
    }
    for &(root, entry, members) in nouns::KINDS {
        let kind = entry.split(['|', ':']).next().unwrap_or_default();
        let above = roots.iter().find(|(name, _)| *name == root).map(|(_, noun)| *noun);
        let own = add(entry, root, kind, above, false);
        for member in words(members) {
            add(member, root, kind, Some(own), true);
        }
    }
    all
}

fn words(list: &'static str) -> Vec<&'static str> {
    list.split_whitespace().collect()
}

/// The synonyms and opposites of the word at `place` of a scale that starts at `start`.
fn sides(start: usize, one: usize, other: usize, place: usize) -> (Vec<usize>, Vec<usize>) {
    let first: Vec<usize> = (start..start + one).collect();
    let second: Vec<usize> = (start + one..start + one + other).collect();
    if place < one { (first, second) } else { (second, first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_thousand_words() {
        let words = Lexicon::new().words();
        assert!((2_000..5_000).contains(&words.len()), "{}", words.len());
        assert!(words.iter().all(|w| w.bytes().all(|b| b.is_ascii_lowercase())));
    }

    #[test]
    fn kinds_form_chains() {
        let lexicon = Lexicon::new();
        let noun = |text: &str| lexicon.nouns.iter().position(|n| n.singular == text).unwrap();
        let above: Vec<&str> =
            lexicon.hypernyms(noun("beagle")).iter().map(|&n| lexicon.nouns[n].singular.as_str()).collect();
        assert_eq!(above, ["dog", "animal"]);
        assert!(lexicon.is_of(noun("beagle"), &["animal"]) && lexicon.is_of(noun("beagle"), &["dog"]));
        assert!(!lexicon.is_of(noun("beagle"), &["person", "cat"]));
        assert_eq!(lexicon.nouns[noun("car")].synonyms, [noun("car"), noun("automobile")]);
    }

    #[test]
    fn everything_a_verb_or_adjective_asks_for_exists() {
        let lexicon = Lexicon::new();
        let known = |category: &&str| {
            ROOTS.contains(category) || lexicon.nouns.iter().any(|noun| noun.kind == *category)
        };
        assert!(lexicon.verbs.iter().flat_map(|v| v.subjects.iter().chain(&v.objects)).all(&known));
        assert!(lexicon.adjectives.iter().flat_map(|a| &a.of).all(known));
        for (list, frame) in [
            (verbs::NEVER_WITH_OBJECT, Frame::Intransitive),
            (verbs::NEVER_WITHOUT_OBJECT, Frame::Transitive),
        ] {
            let strict = lexicon.verbs.iter().filter(|v| v.frame == frame && v.is_strict).count();
            assert_eq!(strict, words(list).len(), "a verb of the list is unknown or listed twice");
        }
        for verb in &lexicon.verbs {
            assert!(verb.opposites.iter().all(|&o| lexicon.verbs[o].opposites.len() == verb.synonyms.len()));
        }
    }
}
