//! Sentences as trees.

use crate::lexicon::{AdjectiveId, MannerId, NounId, VerbId};

/// One or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    Singular,
    Plural,
}

/// A determiner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Det {
    A,
    The,
    This,
    These,
    Every,
    Each,
    No,
    Some,
    All,
    Many,
    Several,
    Few,
    Two,
    Three,
    Four,
    Five,
    /// Plural nouns without determiner.
    Bare,
}

impl Det {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::The => "the",
            Self::This => "this",
            Self::These => "these",
            Self::Every => "every",
            Self::Each => "each",
            Self::No => "no",
            Self::Some => "some",
            Self::All => "all",
            Self::Many => "many",
            Self::Several => "several",
            Self::Few => "few",
            Self::Two => "two",
            Self::Three => "three",
            Self::Four => "four",
            Self::Five => "five",
            Self::Bare => "",
        }
    }

    /// The number required by the determiner, if any.
    pub(crate) fn number(self) -> Option<Number> {
        match self {
            Self::A | Self::This | Self::Every | Self::Each => Some(Number::Singular),
            Self::The | Self::No => None,
            _ => Some(Number::Plural),
        }
    }
}

/// A noun phrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Np {
    pub(crate) head: Head,
    pub(crate) adjective: Option<AdjectiveId>,
    pub(crate) place: Option<Place>,
    /// «who praised the nurse»: what the head did, in the past.
    pub(crate) relative: Option<Box<Predicate>>,
}

/// The head of a noun phrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Head {
    /// An index into the names.
    Name(usize),
    Noun {
        det: Det,
        noun: NounId,
        number: Number,
    },
    /// `himself`, `themselves`, …
    Reflexive(&'static str),
    Both {
        first: Box<Np>,
        joint: Joint,
        second: Box<Np>,
    },
}

/// Conjunction of two noun phrases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joint {
    And,
    Or,
}

/// «near the lake»: indices of the preposition, of its wording, and of the noun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) preposition: usize,
    pub(crate) wording: usize,
    pub(crate) noun: NounId,
}

/// The form of the verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tense {
    Past,
    Present,
    PastProgressive,
    PresentProgressive,
    Perfect,
}

/// The predicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Predicate {
    /// An action, with the infinitive's governing verb («managed to») if there is one.
    Does {
        control: Option<VerbId>,
        verb: VerbId,
        object: Option<Np>,
    },
    Gives {
        verb: VerbId,
        thing: Np,
        to: Np,
    },
    Is {
        adjective: AdjectiveId,
    },
    Thinks {
        verb: VerbId,
        clause: Box<Clause>,
    },
}

/// A clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clause {
    pub(crate) subject: Np,
    pub(crate) predicate: Predicate,
    pub(crate) tense: Tense,
    pub(crate) negated: bool,
    /// «has ever …», which requires a negative subject.
    pub(crate) ever: bool,
    pub(crate) manner: Option<MannerId>,
    pub(crate) place: Option<Place>,
    /// An index into the times.
    pub(crate) time: Option<usize>,
    /// Passive voice, with the object first: «the car was sold by the king».
    pub(crate) passive: bool,
    /// «gave the nurse a book» for «gave a book to the nurse».
    pub(crate) shifted: bool,
    /// Whether the time, or otherwise the place, is at the beginning.
    pub(crate) fronted: bool,
}

/// Conjunction of two clauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    And,
    Or,
    But,
    Because,
    Although,
    Before,
    After,
    While,
}

impl Link {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::And => "and",
            Self::Or => "or",
            Self::But => "but",
            Self::Because => "because",
            Self::Although => "although",
            Self::Before => "before",
            Self::After => "after",
            Self::While => "while",
        }
    }
}

/// A sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a few live at a time, and none is moved often")]
pub(crate) enum Sentence {
    One(Clause),
    /// `first link second`, or `link second, first` if the linked clause comes first.
    Two {
        link: Link,
        first: Clause,
        second: Box<Clause>,
        linked_first: bool,
    },
}

/// The number of a noun phrase as a subject.
pub(crate) fn number_of(np: &Np) -> Number {
    match &np.head {
        Head::Noun { number, .. } => *number,
        Head::Both { joint: Joint::And, .. } => Number::Plural,
        Head::Both { second, .. } => number_of(second),
        Head::Name(_) | Head::Reflexive(_) => Number::Singular,
    }
}

impl Np {
    /// A bare noun phrase.
    pub(crate) fn of(det: Det, noun: NounId, number: Number) -> Self {
        Self { head: Head::Noun { det, noun, number }, adjective: None, place: None, relative: None }
    }

    /// A name.
    pub(crate) fn name(name: usize) -> Self {
        Self { head: Head::Name(name), adjective: None, place: None, relative: None }
    }

    /// `himself` and similar pronouns.
    pub(crate) fn reflexive(text: &'static str) -> Self {
        Self { head: Head::Reflexive(text), adjective: None, place: None, relative: None }
    }

    /// The noun, if the head is one.
    pub(crate) fn noun(&self) -> Option<NounId> {
        match &self.head {
            Head::Noun { noun, .. } => Some(*noun),
            _ => None,
        }
    }
}

impl Clause {
    /// A plain statement in the past.
    pub(crate) fn new(subject: Np, predicate: Predicate) -> Self {
        Self {
            subject,
            predicate,
            tense: Tense::Past,
            negated: false,
            ever: false,
            manner: None,
            place: None,
            time: None,
            passive: false,
            shifted: false,
            fronted: false,
        }
    }

    /// An action without governing verb.
    pub(crate) fn does(subject: Np, verb: VerbId, object: Option<Np>) -> Self {
        Self::new(subject, Predicate::Does { control: None, verb, object })
    }
}
