//! Verbs of the grammar.
//!
//! A verb is `base` or `base:past:participle`; a final `+` doubles its last letter before `-ed` and `-ing`. The verbs of
//! a cell are synonyms.

/// A line is one meaning of a verb without object: roots of its subjects, synonyms, opposites.
pub(super) const INTRANSITIVE: &[(&str, &str, &str)] = &[
    ("person animal", "sleep:slept:slept doze slumber", ""),
    ("person animal", "vanish disappear", "appear emerge"),
    ("person animal", "arrive", "depart"),
    ("person animal", "shiver tremble", ""),
    ("person animal", "wander roam", ""),
    ("person animal", "collapse tumble", "rise:rose:risen"),
    ("person animal", "perish die", "survive"),
    ("person animal", "hesitate", ""),
    ("person animal", "escape flee:fled:fled", "stay remain"),
    ("person animal", "run:ran:run sprint dash", "walk stroll"),
    ("person animal", "swim+:swam:swum", "sink:sank:sunk"),
    ("person animal", "yawn", ""),
    ("person animal", "rest relax", ""),
    ("person animal", "jump leap", ""),
    ("animal", "growl snarl", ""),
    ("person", "laugh giggle chuckle", "weep:wept:wept cry sob+"),
    ("person", "smile grin+", "frown scowl"),
    ("person", "shout yell scream", "whisper murmur"),
    ("person", "sneeze", ""),
    ("person", "cough", ""),
    ("person", "snore", ""),
    ("person", "dance", ""),
    ("person", "kneel:knelt:knelt", ""),
    ("person", "apologize", ""),
    ("person", "complain grumble", ""),
    ("person", "boast brag+", ""),
    ("person", "succeed prevail", "fail"),
    ("person", "resign", ""),
    ("person", "pray", ""),
    ("person", "faint", ""),
    ("person", "toil work", "idle"),
    ("person", "agree", "disagree"),
    ("person", "chat+ gossip", ""),
    ("person", "blush", ""),
    ("person", "travel journey", ""),
];

/// A line is one meaning of a verb with an object: roots of its subjects, roots or kinds of its objects, synonyms,
/// opposites.
pub(super) const TRANSITIVE: &[(&str, &str, &str, &str)] = &[
    ("person animal", "food", "devour consume", ""),
    ("person", "food", "cook prepare", ""),
    ("person", "food", "taste sample", ""),
    ("person", "thing vehicle food", "buy:bought:bought purchase acquire", "sell:sold:sold"),
    ("person", "thing vehicle", "repair fix mend", "break:broke:broken smash damage"),
    ("person", "thing vehicle", "find:found:found discover locate", "lose:lost:lost misplace"),
    ("person", "thing food", "hide:hid:hidden conceal", "reveal expose display"),
    ("person", "thing", "lift raise hoist", "drop+ lower"),
    ("person", "thing food", "throw:threw:thrown toss hurl", "catch:caught:caught"),
    ("person", "thing vehicle", "push shove", "pull drag+"),
    ("person", "thing vehicle place", "clean wash scrub+", "soil"),
    ("person", "place vehicle", "build:built:built construct", "destroy demolish"),
    ("person", "thing vehicle food", "steal:stole:stolen snatch", "return"),
    ("person", "thing vehicle", "borrow", ""),
    ("person", "thing vehicle plant", "examine inspect study", "overlook"),
    ("person", "thing", "polish", "scratch"),
    ("person", "thing place", "decorate adorn", ""),
    ("person", "thing food plant", "collect gather", "scatter"),
    ("person", "thing vehicle", "need require", ""),
    ("person", "thing vehicle animal", "own possess", ""),
    ("person", "thing vehicle animal place", "photograph", ""),
    ("person", "animal place plant", "draw:drew:drawn sketch", ""),
    ("person", "thing", "carry transport", ""),
    ("person", "container", "open", "close shut+:shut:shut"),
    ("person", "publication document", "read:read:read", ""),
    ("person", "publication document", "write:wrote:written compose", ""),
    ("person", "publication document", "publish print", "burn"),
    ("person", "publication document", "translate", ""),
    ("person", "instrument", "play", ""),
    ("person", "garment hat", "wear:wore:worn", "remove"),
    ("person", "garment", "sew:sewed:sewn stitch", "tear:tore:torn rip+"),
    ("person", "vehicle", "drive:drove:driven steer", ""),
    ("person", "vehicle place", "rent lease", ""),
    ("person", "plant", "water", ""),
    ("person", "plant", "prune trim+", ""),
    ("person", "person", "praise commend applaud", "criticize condemn blame"),
    ("person", "person animal", "love adore cherish", "hate detest loathe"),
    ("person", "person", "help assist aid", "hinder obstruct"),
    ("person", "person", "hire employ recruit", "fire dismiss"),
    ("person", "person", "greet welcome", "ignore snub+"),
    ("person", "person", "trust", "distrust suspect"),
    ("person", "person", "admire respect", "mock ridicule"),
    ("person", "person animal", "teach:taught:taught instruct train", ""),
    ("person", "person", "warn alert", ""),
    ("person", "person animal", "rescue save", "abandon desert"),
    ("person animal", "person animal", "attack assault", "defend protect guard"),
    ("person", "person animal", "capture seize", "release free"),
    ("person animal", "person animal", "chase pursue follow", "lead:led:led guide"),
    ("person", "person", "hug+ embrace", ""),
    ("person", "person", "thank", ""),
    ("person", "person", "forgive:forgave:forgiven pardon", "punish"),
    ("person", "person", "deceive fool trick", ""),
    ("person", "person", "amuse entertain", "bore weary"),
    ("person animal", "person animal", "frighten scare terrify", "calm soothe"),
    ("person", "person", "insult offend", "flatter compliment"),
    ("person", "person", "obey", "defy"),
    ("person", "person place", "visit", ""),
    ("person animal", "person animal vehicle", "see:saw:seen spot+ notice", ""),
    ("person animal", "person animal", "watch observe", ""),
    ("person", "person", "recognize identify", ""),
    ("person", "person", "remember recall", "forget+:forgot:forgotten"),
    ("person", "person", "interview question", ""),
    ("person", "person", "envy", "pity"),
    ("person", "animal", "feed:fed:fed nourish", "starve"),
    ("person", "animal", "hunt stalk", ""),
    ("animal", "person animal", "bite:bit:bitten", "lick"),
    ("person", "place", "enter", "leave:left:left exit"),
];

/// A line is one meaning of a verb with a thing given and someone who gets it: the things, synonyms.
pub(super) const GIVING: &[(&str, &str)] = &[
    ("thing food", "give:gave:given hand"),
    ("publication document container", "send:sent:sent mail"),
    ("thing vehicle", "lend:lent:lent loan"),
    ("thing food vehicle", "show:showed:shown"),
    ("thing food", "offer"),
    ("thing vehicle food", "sell:sold:sold"),
];

/// Verbs whose clause is true if the sentence is, negated or not.
pub(super) const FACTIVE: &str = "know:knew:known realize regret+ notice discover remember";
/// Verbs whose clause may be true or false.
pub(super) const OPINION: &str = "believe think:thought:thought claim hope suspect imagine";
/// Verbs with an infinitive that then happened.
pub(super) const MANAGING: &str = "manage remember happen";
/// Verbs with an infinitive that then did not happen.
pub(super) const FAILING: &str = "fail refuse forget+:forgot:forgotten decline";
/// Verbs with an infinitive that may have happened or not.
pub(super) const TRYING: &str = "try hope plan+ promise want";

/// Verbs that cannot take the form «the king … the box».
pub(super) const NEVER_WITH_OBJECT: &str = "sleep doze slumber vanish disappear appear emerge arrive shiver tremble die \
    hesitate yawn growl snarl laugh giggle chuckle weep cry sob smile grin frown scowl sneeze cough snore kneel apologize \
    complain grumble pray faint agree disagree chat gossip blush journey perish";

/// Verbs that cannot take the form «the king …» without further arguments.
pub(super) const NEVER_WITHOUT_OBJECT: &str = "devour repair fix mend purchase acquire discover locate lose misplace \
    conceal reveal expose lift raise hoist hurl demolish destroy construct snatch examine inspect overlook adorn need \
    require own possess photograph carry transport prune praise commend condemn blame adore cherish detest loathe employ \
    dismiss greet welcome ignore snub distrust admire respect ridicule alert rescue abandon assault protect capture seize \
    release embrace thank pardon punish deceive trick amuse frighten scare terrify soothe insult flatter compliment defy \
    recognize identify envy pity hinder obstruct nourish";
