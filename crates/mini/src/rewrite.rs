//! Changes of a sentence that keep its meaning, and changes that do not.

use crate::compose::Composer;
use crate::lexicon::{AdjectiveId, Lexicon, MannerId, NounId, TIMES, VerbId};
use crate::syntax::{Clause, Det, Head, Link, Np, Number, Predicate, Sentence};

/// A word of a sentence that can be exchanged.
pub(crate) enum Slot<'s> {
    Noun(&'s mut NounId),
    Verb(&'s mut VerbId),
    Adjective(&'s mut AdjectiveId),
    Manner(&'s mut MannerId),
    /// The preposition's wording and its index.
    Wording(&'s mut usize, usize),
    /// `every` and `each`.
    Det(&'s mut Det),
}

/// All words of a sentence that can be exchanged.
pub(crate) fn slots(sentence: &mut Sentence) -> Vec<Slot<'_>> {
    let mut all = Vec::new();
    for clause in clauses(sentence) {
        clause_slots(clause, &mut all);
    }
    all
}

/// The independent clauses of a sentence.
pub(crate) fn clauses(sentence: &mut Sentence) -> Vec<&mut Clause> {
    match sentence {
        Sentence::One(clause) => vec![clause],
        Sentence::Two { first, second, .. } => vec![first, second],
    }
}

fn clause_slots<'s>(clause: &'s mut Clause, all: &mut Vec<Slot<'s>>) {
    np_slots(&mut clause.subject, all);
    predicate_slots(&mut clause.predicate, all);
    if let Some(manner) = &mut clause.manner {
        all.push(Slot::Manner(manner));
    }
    if let Some(place) = &mut clause.place {
        all.push(Slot::Noun(&mut place.noun));
        all.push(Slot::Wording(&mut place.wording, place.preposition));
    }
}

fn predicate_slots<'s>(predicate: &'s mut Predicate, all: &mut Vec<Slot<'s>>) {
    match predicate {
        Predicate::Does { verb, object, .. } => {
            all.push(Slot::Verb(verb));
            if let Some(object) = object {
                np_slots(object, all);
            }
        }
        Predicate::Gives { verb, thing, to } => {
            all.push(Slot::Verb(verb));
            np_slots(thing, all);
            np_slots(to, all);
        }
        Predicate::Is { adjective } => all.push(Slot::Adjective(adjective)),
        Predicate::Thinks { clause, .. } => clause_slots(clause, all),
    }
}

fn np_slots<'s>(np: &'s mut Np, all: &mut Vec<Slot<'s>>) {
    match &mut np.head {
        Head::Noun { det, noun, .. } => {
            all.push(Slot::Det(det));
            all.push(Slot::Noun(noun));
        }
        Head::Both { first, second, .. } => {
            np_slots(first, all);
            np_slots(second, all);
        }
        Head::Name(_) | Head::Reflexive(_) => {}
    }
    if let Some(adjective) = &mut np.adjective {
        all.push(Slot::Adjective(adjective));
    }
    if let Some(place) = &mut np.place {
        all.push(Slot::Noun(&mut place.noun));
        all.push(Slot::Wording(&mut place.wording, place.preposition));
    }
    if let Some(predicate) = &mut np.relative {
        predicate_slots(predicate, all);
    }
}

impl Composer<'_> {
    /// Rewords with `count` changes of words or order; returns how many were possible.
    pub(crate) fn paraphrase(&mut self, sentence: &mut Sentence, count: usize) -> usize {
        let mut made = 0;
        for _ in 0..count * 4 {
            let done = if self.percent(55) { self.synonym(sentence) } else { self.reorder(sentence) };
            made += usize::from(done);
            if made == count {
                break;
            }
        }
        made
    }

    /// Exchanges one word for a synonym; false if the word drawn has none.
    pub(crate) fn synonym(&mut self, sentence: &mut Sentence) -> bool {
        let lexicon = self.lexicon;
        let mut all = slots(sentence);
        // Words without synonyms are excluded, or most draws would fail.
        all.retain(|slot| {
            choices(lexicon, slot).len() > 1 || matches!(slot, Slot::Det(Det::Every | Det::Each))
        });
        if all.is_empty() {
            return false;
        }
        let drawn = self.rng.index(all.len());
        let slot = all.swap_remove(drawn);
        let choices = choices(lexicon, &slot);
        match slot {
            Slot::Noun(id) | Slot::Verb(id) | Slot::Adjective(id) | Slot::Manner(id) => {
                let old = *id;
                let others: Vec<usize> = choices.into_iter().filter(|&other| other != old).collect();
                *id = self.pick(&others);
            }
            Slot::Wording(wording, _) => *wording += 1,
            Slot::Det(det) => *det = if *det == Det::Every { Det::Each } else { Det::Every },
        }
        true
    }

    /// Changes the order without changing the meaning; false if the draw does not apply.
    pub(crate) fn reorder(&mut self, sentence: &mut Sentence) -> bool {
        if let Sentence::Two { link, first, second, linked_first } = sentence
            && self.percent(60)
        {
            match link {
                // «A and B» is «B and A».
                Link::And | Link::Or | Link::While => std::mem::swap(first, second.as_mut()),
                Link::Before | Link::After if self.percent(50) => {
                    *link = if *link == Link::Before { Link::After } else { Link::Before };
                    std::mem::swap(first, second.as_mut());
                }
                Link::Because | Link::Although | Link::Before | Link::After => *linked_first = !*linked_first,
                Link::But => return false,
            }
            return true;
        }
        let mut all = clauses(sentence);
        let drawn = self.rng.index(all.len());
        let clause = all.swap_remove(drawn);
        match self.rng.below(3) {
            0 if can_be_passive(clause) => clause.passive = !clause.passive,
            1 if matches!(clause.predicate, Predicate::Gives { .. }) => clause.shifted = !clause.shifted,
            2 if clause.time.is_some() || clause.place.is_some() => clause.fronted = !clause.fronted,
            _ => return false,
        }
        true
    }

    /// Changes the meaning while keeping most words; false if the draw does not apply.
    pub(crate) fn falsify(&mut self, sentence: &mut Sentence) -> bool {
        match self.rng.below(100) {
            0..30 => self.swap_roles(sentence),
            30..50 => self.swap_adjectives(sentence),
            50..62 => self.swap_link(sentence),
            62..76 => self.oppose(sentence),
            76..86 => self.replace_noun(sentence),
            86..93 => self.recount(sentence),
            _ => self.move_in_time(sentence),
        }
    }

    /// Exchanges agent and patient.
    pub(crate) fn swap_roles(&mut self, sentence: &mut Sentence) -> bool {
        let lexicon = self.lexicon;
        if let Sentence::Two { first, second, .. } = sentence
            && self.percent(40)
            && root_of(lexicon, &first.subject) == root_of(lexicon, &second.subject)
            && first.subject != second.subject
        {
            std::mem::swap(&mut first.subject, &mut second.subject);
            return true;
        }
        let mut all = clauses(sentence);
        let drawn = self.rng.index(all.len());
        let clause = all.swap_remove(drawn);
        let (subject, other) = match &mut clause.predicate {
            Predicate::Does { object: Some(object), verb, .. } => {
                let root = root_of(lexicon, object);
                if !lexicon.verbs[*verb].subjects.contains(&root) || root_of(lexicon, &clause.subject) != root
                {
                    return false;
                }
                (&mut clause.subject, object)
            }
            Predicate::Gives { to, .. } => (&mut clause.subject, to),
            _ => return false,
        };
        if subject == other {
            return false;
        }
        std::mem::swap(subject, other);
        true
    }

    /// Exchanges the adjectives of subject and object: «the tall king met the shy clown».
    pub(crate) fn swap_adjectives(&mut self, sentence: &mut Sentence) -> bool {
        let lexicon = self.lexicon;
        let mut all = clauses(sentence);
        let drawn = self.rng.index(all.len());
        let clause = all.swap_remove(drawn);
        let (Predicate::Does { object: Some(other), .. } | Predicate::Gives { to: other, .. }) =
            &mut clause.predicate
        else {
            return false;
        };
        let (Some(a), Some(b)) = (clause.subject.noun(), other.noun()) else {
            return false;
        };
        let fits = |adjective: Option<AdjectiveId>, noun| {
            adjective.is_none_or(|adjective| lexicon.is_of(noun, &lexicon.adjectives[adjective].of))
        };
        let same = |one: Option<AdjectiveId>, other: Option<AdjectiveId>| match (one, other) {
            (Some(one), Some(other)) => lexicon.adjectives[one].synonyms.contains(&other),
            (one, other) => one == other,
        };
        if same(clause.subject.adjective, other.adjective)
            || !fits(clause.subject.adjective, b)
            || !fits(other.adjective, a)
        {
            return false;
        }
        std::mem::swap(&mut clause.subject.adjective, &mut other.adjective);
        true
    }

    /// Changes the link between the clauses, or their order if it matters.
    pub(crate) fn swap_link(&mut self, sentence: &mut Sentence) -> bool {
        let Sentence::Two { link, first, second, .. } = sentence else {
            return false;
        };
        match link {
            Link::And | Link::Or => *link = if *link == Link::And { Link::Or } else { Link::And },
            Link::Before | Link::After if self.percent(50) => {
                *link = if *link == Link::Before { Link::After } else { Link::Before };
            }
            Link::Because | Link::Although if self.percent(50) => {
                *link = if *link == Link::Because { Link::Although } else { Link::Because };
            }
            _ => std::mem::swap(first, second.as_mut()),
        }
        !matches!(link, Link::While | Link::But)
    }

    /// Replaces a verb, an adjective or a manner by its opposite, or negates the clause.
    pub(crate) fn oppose(&mut self, sentence: &mut Sentence) -> bool {
        let lexicon = self.lexicon;
        if self.percent(35) {
            let mut all = clauses(sentence);
            let drawn = self.rng.index(all.len());
            let clause = all.swap_remove(drawn);
            clause.negated = !clause.negated;
            return true;
        }
        let mut options: Vec<(Slot<'_>, Vec<usize>)> = slots(sentence)
            .into_iter()
            .filter_map(|slot| {
                let opposites = match &slot {
                    Slot::Verb(id) => &lexicon.verbs[**id].opposites,
                    Slot::Adjective(id) => &lexicon.adjectives[**id].opposites,
                    Slot::Manner(id) => &lexicon.manners[**id].opposites,
                    _ => return None,
                };
                (!opposites.is_empty()).then(|| (slot, opposites.clone()))
            })
            .collect();
        if options.is_empty() {
            return false;
        }
        let drawn = self.rng.index(options.len());
        let (slot, opposites) = options.swap_remove(drawn);
        match slot {
            Slot::Verb(id) | Slot::Adjective(id) | Slot::Manner(id) => *id = self.pick(&opposites),
            _ => return false,
        }
        true
    }

    /// Replaces a noun by another of its kind.
    pub(crate) fn replace_noun(&mut self, sentence: &mut Sentence) -> bool {
        let mut nouns: Vec<&mut NounId> = slots(sentence)
            .into_iter()
            .filter_map(|slot| if let Slot::Noun(id) = slot { Some(id) } else { None })
            .collect();
        if nouns.is_empty() {
            return false;
        }
        let drawn = self.rng.index(nouns.len());
        let noun = nouns.swap_remove(drawn);
        match self.sibling(*noun) {
            Some(other) => {
                *noun = other;
                true
            }
            None => false,
        }
    }

    /// Changes the number of things.
    pub(crate) fn recount(&mut self, sentence: &mut Sentence) -> bool {
        let mut all = clauses(sentence);
        let drawn = self.rng.index(all.len());
        let Head::Noun { det, number, .. } = &mut all.swap_remove(drawn).subject.head else {
            return false;
        };
        let others: &[Det] = match det {
            Det::Two => &[Det::Three, Det::Four, Det::Five],
            Det::Three | Det::Several => &[Det::Two, Det::Five],
            Det::Four | Det::Five => &[Det::Two, Det::Three],
            Det::Every | Det::Each => &[Det::No],
            Det::No => &[Det::Every],
            Det::Some | Det::All | Det::Few | Det::Many => &[Det::Two],
            Det::A => &[Det::No],
            _ => return false,
        };
        *det = self.pick(others);
        if let Some(needed) = det.number() {
            *number = needed;
        } else {
            *number = Number::Singular;
        }
        true
    }

    /// Changes the time.
    pub(crate) fn move_in_time(&mut self, sentence: &mut Sentence) -> bool {
        let mut all = clauses(sentence);
        let drawn = self.rng.index(all.len());
        match &mut all.swap_remove(drawn).time {
            Some(time) => {
                *time = (*time + 1 + self.rng.index(TIMES.len() - 1)) % TIMES.len();
                true
            }
            None => false,
        }
    }
}

/// Whether the clause is an action on something, which can be said in the passive.
pub(crate) fn can_be_passive(clause: &Clause) -> bool {
    match &clause.predicate {
        Predicate::Does { control: None, object: Some(object), .. } => {
            !matches!(object.head, Head::Reflexive(_))
        }
        _ => false,
    }
}

/// The root of the noun of a noun phrase.
pub(crate) fn root_of(lexicon: &Lexicon, np: &Np) -> &'static str {
    np.noun().map_or("person", |noun| lexicon.nouns[noun].root)
}

/// The words that fit a slot, including the current one.
fn choices(lexicon: &Lexicon, slot: &Slot<'_>) -> Vec<usize> {
    match slot {
        Slot::Noun(id) => lexicon.nouns[**id].synonyms.clone(),
        Slot::Verb(id) => lexicon.verbs[**id].synonyms.clone(),
        Slot::Adjective(id) => lexicon.adjectives[**id].synonyms.clone(),
        Slot::Manner(id) => lexicon.manners[**id].synonyms.clone(),
        Slot::Wording(_, preposition) => (0..lexicon.prepositions[*preposition].texts.len()).collect(),
        Slot::Det(_) => Vec::new(),
    }
}
