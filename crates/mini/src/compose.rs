//! Random meaningful sentences: verbs with suitable subjects and objects.

use crate::lexicon::{AdjectiveId, Frame, Lexicon, NounId, TIMES, Verb, VerbId};
use crate::syntax::{Clause, Det, Head, Link, Np, Number, Place, Predicate, Sentence, Tense};
use lowrank_spec::rng::SplitMix64;

/// Determiners of subjects and objects whose meaning does not depend on their position in the sentence.
const PLAIN: &[Det] = &[
    Det::A,
    Det::A,
    Det::A,
    Det::The,
    Det::The,
    Det::The,
    Det::The,
    Det::The,
    Det::This,
    Det::These,
    Det::Several,
    Det::Two,
    Det::Three,
];
/// Determiners of subjects in general.
const QUANTIFIED: &[Det] =
    &[Det::Every, Det::Each, Det::No, Det::Some, Det::All, Det::Many, Det::Few, Det::Four, Det::Five];

/// Composes sentences at random.
#[derive(Debug, Clone)]
pub(crate) struct Composer<'a> {
    pub(crate) lexicon: &'a Lexicon,
    pub(crate) rng: SplitMix64,
}

impl<'a> Composer<'a> {
    /// A composer whose sentences depend only on the seed and keys.
    pub(crate) fn new(lexicon: &'a Lexicon, seed: u64, keys: &[u64]) -> Self {
        Self { lexicon, rng: SplitMix64::keyed(seed, keys) }
    }

    /// One of `items`, which is not empty.
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.rng.index(items.len())]
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.rng.chance(percent, 100)
    }

    /// A word of a space-separated list.
    pub(crate) fn word(&mut self, list: &'static str) -> &'static str {
        let words: Vec<&str> = list.split_whitespace().collect();
        self.pick(&words)
    }

    /// A leaf noun of one of the roots or kinds, all nouns with equal probability.
    pub(crate) fn noun(&mut self, categories: &[&str]) -> NounId {
        let lexicon = self.lexicon;
        let total = categories.iter().map(|c| lexicon.leaves(c).len()).sum();
        let mut drawn = self.rng.index(total);
        for category in categories {
            let leaves = lexicon.leaves(category);
            match leaves.get(drawn) {
                Some(&noun) => return noun,
                None => drawn -= leaves.len(),
            }
        }
        0
    }

    /// Another leaf noun of the same kind that is not a synonym.
    pub(crate) fn sibling(&mut self, noun: NounId) -> Option<NounId> {
        let old = &self.lexicon.nouns[noun];
        let mut fits = self.lexicon.leaves(old.kind).to_vec();
        fits.retain(|other| !old.synonyms.contains(other));
        if fits.is_empty() || !old.is_leaf { None } else { Some(self.pick(&fits)) }
    }

    /// A verb of a frame that allows a subject of this root.
    pub(crate) fn verb(&mut self, frame: Frame, subject: &str) -> VerbId {
        self.verb_where(|verb| verb.frame == frame && verb.subjects.contains(&subject))
    }

    /// A verb that passes the test; at least one must.
    pub(crate) fn verb_where(&mut self, test: impl Fn(&Verb) -> bool) -> VerbId {
        let verbs = &self.lexicon.verbs;
        let fits: Vec<VerbId> = (0..verbs.len()).filter(|&v| test(&verbs[v])).collect();
        self.pick(&fits)
    }

    /// An adjective for a noun, if there is one.
    pub(crate) fn adjective(&mut self, noun: NounId) -> Option<AdjectiveId> {
        let fits = self.lexicon.adjectives_of(noun);
        if fits.is_empty() { None } else { Some(self.pick(fits)) }
    }

    /// A determiner of the list, and the number of its noun.
    pub(crate) fn determined(&mut self, list: &[Det]) -> (Det, Number) {
        let det = self.pick(list);
        let number =
            det.number().unwrap_or_else(|| if self.percent(50) { Number::Singular } else { Number::Plural });
        (det, number)
    }

    /// A noun phrase with a plain determiner and perhaps an adjective.
    pub(crate) fn np(&mut self, categories: &[&str], adjectives: u64) -> Np {
        let noun = self.noun(categories);
        let (det, number) = self.determined(PLAIN);
        let adjective = if self.percent(adjectives) { self.adjective(noun) } else { None };
        Np { adjective, ..Np::of(det, noun, number) }
    }

    /// A person or animal as a subject or object, sometimes by name.
    pub(crate) fn being(&mut self, categories: &[&str], adjectives: u64) -> Np {
        if categories.contains(&"person") && self.percent(18) {
            return Np::name(self.rng.index(self.lexicon.names.len()));
        }
        self.np(categories, adjectives)
    }

    /// A place with a suitable preposition.
    pub(crate) fn place(&mut self) -> Place {
        let noun = self.noun(&["place"]);
        let is_inside = self.lexicon.is_of(noun, &["building", "shop", "room"]);
        let fits: Vec<usize> = (0..self.lexicon.prepositions.len())
            .filter(|&p| is_inside || !self.lexicon.prepositions[p].needs_inside)
            .collect();
        Place { preposition: self.pick(&fits), wording: self.rng.index(2), noun }
    }

    /// The object of a verb, if it has one.
    pub(crate) fn object(&mut self, verb: VerbId, adjectives: u64) -> Option<Np> {
        let lexicon = self.lexicon;
        let objects = &lexicon.verbs[verb].objects;
        if objects.is_empty() { None } else { Some(self.being(objects, adjectives)) }
    }

    /// A subject for verbs of people, or of people and animals.
    pub(crate) fn subject(&mut self) -> (Np, &'static str) {
        let root = if self.percent(75) { "person" } else { "animal" };
        (self.being(&[root], 35), root)
    }

    /// An action: subject, verb, and the object or the thing given.
    pub(crate) fn action(&mut self) -> Clause {
        let (subject, root) = self.subject();
        let draw = self.rng.below(100);
        if draw < 12 && root == "person" {
            let verb = self.verb(Frame::Giving, root);
            let lexicon = self.lexicon;
            let thing = self.np(&lexicon.verbs[verb].objects, 35);
            let to = self.being(&["person"], 20);
            return Clause::new(subject, Predicate::Gives { verb, thing, to });
        }
        let frame = if draw < 65 { Frame::Transitive } else { Frame::Intransitive };
        let verb = self.verb(frame, root);
        let object = self.object(verb, 35);
        Clause::does(subject, verb, object)
    }

    /// An action of people or animals on people or animals, whose roles can be exchanged.
    pub(crate) fn encounter(&mut self) -> Clause {
        let root = if self.percent(80) { "person" } else { "animal" };
        let verb = self.verb_where(|verb| {
            verb.frame == Frame::Transitive && verb.subjects.contains(&root) && verb.objects.contains(&root)
        });
        let (subject, object) = (self.being(&[root], 45), self.being(&[root], 45));
        Clause::does(subject, verb, Some(object))
    }

    /// «the lake is distant»: a quality of something.
    pub(crate) fn quality(&mut self) -> Clause {
        let root = self.pick(&["person", "person", "animal", "vehicle", "thing", "food", "place"]);
        let subject = self.being(&[root], 0);
        let noun = subject.noun().unwrap_or_else(|| self.noun(&["person"]));
        match self.adjective(noun) {
            Some(adjective) => Clause::new(subject, Predicate::Is { adjective }),
            None => self.action(),
        }
    }

    /// Adds manner, place and time to an action, each with some probability.
    pub(crate) fn furnish(&mut self, clause: &mut Clause, manner: u64, place: u64, time: u64) {
        if self.percent(manner) && !matches!(clause.predicate, Predicate::Is { .. }) {
            clause.manner = Some(self.rng.index(self.lexicon.manners.len()));
        }
        if self.percent(place) {
            clause.place = Some(self.place());
        }
        if self.percent(time) && clause.tense == Tense::Past {
            clause.time = Some(self.rng.index(TIMES.len()));
        }
    }

    /// Any clause with one subject, and its tense.
    pub(crate) fn statement(&mut self) -> Clause {
        let mut clause = match self.rng.below(100) {
            0..15 => self.quality(),
            15..40 => self.encounter(),
            _ => self.action(),
        };
        clause.tense = self.tense();
        self.furnish(&mut clause, 12, 22, 15);
        clause.negated = self.percent(10);
        clause.passive = clause.tense != Tense::PastProgressive && self.percent(12);
        clause.shifted = self.percent(40);
        clause.fronted = self.percent(25);
        if self.percent(18)
            && let Head::Noun { noun, .. } = clause.subject.head
        {
            let (det, number) = self.determined(QUANTIFIED);
            clause.subject.head = Head::Noun { det, noun, number };
        }
        clause
    }

    /// A tense, usually the past.
    pub(crate) fn tense(&mut self) -> Tense {
        match self.rng.below(100) {
            0..45 => Tense::Past,
            45..65 => Tense::Present,
            65..75 => Tense::PastProgressive,
            75..85 => Tense::PresentProgressive,
            _ => Tense::Perfect,
        }
    }

    /// Lets the subject carry a place or a relative clause, so that another noun stands between it and its verb.
    pub(crate) fn burden(&mut self, np: &mut Np) {
        let Head::Noun { noun, .. } = np.head else {
            return;
        };
        let root = self.lexicon.nouns[noun].root;
        if self.percent(50) || !["person", "animal"].contains(&root) {
            np.place = Some(self.place());
        } else {
            let verb = self.verb(Frame::Transitive, root);
            let object = self.object(verb, 0);
            np.relative = Some(Box::new(Predicate::Does { control: None, verb, object }));
        }
    }

    /// «the mayor knew that …».
    pub(crate) fn report(&mut self, frame: Frame, clause: Clause) -> Clause {
        let subject = self.being(&["person"], 20);
        let verb = self.verb(frame, "person");
        Clause::new(subject, Predicate::Thinks { verb, clause: Box::new(clause) })
    }

    /// Two short actions with a link.
    pub(crate) fn linked(&mut self, links: &[Link]) -> Sentence {
        let link = self.pick(links);
        let (first, second) = (self.brief(), Box::new(self.brief()));
        let can_lead = !matches!(link, Link::And | Link::Or | Link::But);
        Sentence::Two { link, first, second, linked_first: can_lead && self.percent(40) }
    }

    /// A short action in the past.
    pub(crate) fn brief(&mut self) -> Clause {
        let (subject, root) = self.subject();
        self.brief_of(Np { adjective: None, ..subject }, root)
    }

    /// A short action of a person in the past.
    pub(crate) fn brief_of_person(&mut self, adjectives: u64) -> Clause {
        let subject = self.being(&["person"], adjectives);
        self.brief_of(subject, "person")
    }

    fn brief_of(&mut self, subject: Np, root: &str) -> Clause {
        let frame = if self.percent(55) { Frame::Transitive } else { Frame::Intransitive };
        let verb = self.verb(frame, root);
        let object = self.object(verb, 0);
        Clause::does(subject, verb, object)
    }
}
