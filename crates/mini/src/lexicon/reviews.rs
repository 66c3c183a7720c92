//! Words of the sentiment task: the objects of judgement, and words of praise and blame.

/// Subjects of a review.
pub(crate) const ASPECTS: &str = "acting story plot script dialogue film movie direction cast ending pacing soundtrack \
    photography editing humor premise screenplay performance scenery narration choreography sequel finale lead villain \
    romance heroine hero production satire";

/// Works, as «a … comedy».
pub(crate) const WORKS: &str = "comedy drama thriller documentary romance western musical farce fable tale biography \
    mystery adventure tragedy parody melodrama epic cartoon";

/// Words of praise.
pub(crate) const PRAISE: &str = "wonderful superb brilliant delightful charming gripping moving hilarious witty \
    inventive original engaging touching beautiful elegant stunning captivating dazzling enchanting excellent \
    exhilarating fascinating flawless gorgeous graceful heartfelt imaginative impressive inspired intriguing insightful \
    joyous luminous magical magnificent majestic marvelous masterful memorable poignant profound radiant refreshing \
    riveting satisfying sensitive sharp splendid stirring stylish sublime subtle terrific thoughtful thrilling \
    triumphant unforgettable uplifting vibrant vivid warm absorbing amusing compelling convincing coherent";

/// Words of blame.
pub(crate) const BLAME: &str = "dull boring tedious bland awful terrible dreadful lifeless shallow predictable \
    tiresome muddled pointless annoying atrocious banal bloated chaotic cliched confusing contrived crude derivative \
    dismal disappointing disjointed dreary embarrassing empty flat forgettable grating hackneyed hollow horrible \
    implausible inane incoherent insipid irritating lame laughable lazy leaden lousy mediocre mindless monotonous \
    obnoxious overlong painful pathetic plodding pretentious preposterous ridiculous shoddy sloppy soulless stilted \
    sterile superficial trite ugly unbearable uninspired vapid wooden";

/// Positive attributes of a work.
pub(crate) const VIRTUES: &str = "charm wit energy warmth grace wisdom tension suspense emotion imagination style \
    intelligence originality sincerity magic depth";

/// Negative attributes of a work.
pub(crate) const VICES: &str = "cliches flaws holes stereotypes platitudes gimmicks contrivances pretensions \
    absurdities";

/// Adverbs of praise.
pub(crate) const WELL: &str =
    "beautifully brilliantly superbly wonderfully skillfully elegantly perfectly masterfully";

/// Adverbs of blame.
pub(crate) const BADLY: &str = "poorly badly clumsily terribly sloppily ineptly crudely dreadfully";

/// Participles of making a work.
pub(crate) const MAKING: &str = "acted directed written filmed edited paced staged cast";

/// Verbs of a pleased viewer.
pub(crate) const LIKES: &str = "loved enjoyed adored admired savored applauded";

/// Verbs of a displeased viewer.
pub(crate) const DISLIKES: &str = "hated disliked loathed detested despised endured";

/// Nouns for a good work.
pub(crate) const TRIUMPHS: &str = "triumph masterpiece delight treat joy gem";

/// Nouns for a bad work.
pub(crate) const FLOPS: &str = "disaster failure mess bore flop chore";

/// Degree words that keep the polarity.
pub(crate) const DEGREES: &str = "very truly really extremely remarkably quite rather utterly";

/// All lists of this file.
pub(super) const ALL: &[&str] = &[
    ASPECTS, WORKS, PRAISE, BLAME, VIRTUES, VICES, WELL, BADLY, MAKING, LIKES, DISLIKES, TRIUMPHS, FLOPS,
    DEGREES,
];
