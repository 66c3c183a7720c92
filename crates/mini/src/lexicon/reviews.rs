//! Words of the sentiment task: what is judged, and words of praise and blame.

/// What a review speaks of, as a subject.
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

/// What a work may have, to its credit.
pub(crate) const VIRTUES: &str = "charm wit energy warmth grace wisdom tension suspense emotion imagination style \
    intelligence originality sincerity magic depth";

/// What a work may have, to its harm.
pub(crate) const VICES: &str = "cliches flaws holes stereotypes platitudes gimmicks contrivances pretensions \
    absurdities";

/// How well something is done.
pub(crate) const WELL: &str =
    "beautifully brilliantly superbly wonderfully skillfully elegantly perfectly masterfully";

/// How badly something is done.
pub(crate) const BADLY: &str = "poorly badly clumsily terribly sloppily ineptly crudely dreadfully";

/// What is done in making a work.
pub(crate) const MAKING: &str = "acted directed written filmed edited paced staged cast";

/// Verbs of a pleased viewer.
pub(crate) const LIKES: &str = "loved enjoyed adored admired savored applauded";

/// Verbs of a displeased viewer.
pub(crate) const DISLIKES: &str = "hated disliked loathed detested despised endured";

/// What a good work is.
pub(crate) const TRIUMPHS: &str = "triumph masterpiece delight treat joy gem";

/// What a bad work is.
pub(crate) const FLOPS: &str = "disaster failure mess bore flop chore";

/// Degrees that keep a judgement.
pub(crate) const DEGREES: &str = "very truly really extremely remarkably quite rather utterly";

/// All lists of this file.
pub(super) const ALL: &[&str] = &[
    ASPECTS, WORKS, PRAISE, BLAME, VIRTUES, VICES, WELL, BADLY, MAKING, LIKES, DISLIKES, TRIUMPHS, FLOPS,
    DEGREES,
];
