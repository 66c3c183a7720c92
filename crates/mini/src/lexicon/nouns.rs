//! Nouns and names of the grammar.
//!
//! A noun is `singular` or `singular:plural` if the plural is irregular; synonyms are joined by `|`. No noun
//! begins with a letter that is misleading for `a` and `an`.

/// A line is one kind: root, the kind's own noun (a hypernym of all its members), the members.
pub(super) const KINDS: &[(&str, &str, &str)] = &[
    ("person", "scientist", "chemist physicist biologist botanist astronomer geologist zoologist geneticist"),
    ("person", "artist", "painter sculptor illustrator engraver potter cartoonist"),
    ("person", "musician", "violinist pianist drummer guitarist cellist flutist trumpeter singer|vocalist"),
    ("person", "athlete", "swimmer boxer gymnast cyclist wrestler sprinter goalkeeper skier golfer"),
    ("person", "builder", "carpenter plumber welder electrician mason|bricklayer roofer"),
    ("person", "soldier", "sergeant captain colonel lieutenant corporal general archer"),
    ("person", "writer|author", "poet novelist journalist|reporter playwright columnist biographer"),
    ("person", "doctor|physician", "surgeon dentist pediatrician cardiologist psychiatrist dermatologist"),
    ("person", "teacher", "professor tutor lecturer instructor|trainer"),
    ("person", "politician", "mayor senator governor minister president ambassador"),
    ("person", "relative", "uncle aunt cousin nephew niece brother sister grandmother grandfather"),
    ("person", "merchant|trader", "grocer baker butcher florist jeweler tailor"),
    ("person", "criminal", "thief:thieves|burglar pirate smuggler forger kidnapper"),
    ("person", "servant", "butler maid gardener chauffeur"),
    ("person", "child:children|kid", "boy girl toddler orphan"),
    ("person", "student|pupil", "freshman:freshmen graduate apprentice trainee"),
    ("person", "ruler", "king|monarch queen emperor prince princess duke sultan"),
    ("person", "cleric", "priest bishop monk nun rabbi"),
    ("person", "performer", "juggler magician dancer acrobat clown comedian"),
    ("person", "worker|laborer", "farmer miner fisherman:fishermen janitor clerk waiter courier mechanic"),
    ("animal", "dog", "beagle poodle terrier spaniel collie mastiff greyhound dachshund"),
    (
        "animal",
        "bird",
        "sparrow robin eagle hawk|falcon owl crow|raven pigeon|dove swan parrot heron penguin",
    ),
    ("animal", "insect|bug", "ant bee wasp beetle moth cricket mosquito:mosquitoes grasshopper dragonfly"),
    ("animal", "reptile", "snake|serpent lizard turtle|tortoise crocodile gecko iguana"),
    ("animal", "rodent", "rat hamster squirrel beaver gerbil chipmunk porcupine"),
    ("animal", "feline", "cat lion tiger leopard panther cheetah jaguar"),
    ("animal", "horse", "pony stallion mare mustang|bronco"),
    ("animal", "monkey", "baboon macaque mandrill capuchin"),
    ("animal", "fish:fishes", "shark eel sardine minnow piranha guppy barracuda"),
    (
        "food",
        "fruit",
        "apple pear plum peach:peaches cherry mango:mangoes lemon melon apricot banana orange fig",
    ),
    ("food", "vegetable", "carrot onion potato:potatoes turnip cabbage cucumber radish pepper beet eggplant"),
    ("food", "dessert|sweet", "cookie|biscuit muffin doughnut pie tart brownie cupcake pudding"),
    ("food", "meal|dish", "stew soup salad omelet casserole sandwich burger curry pizza"),
    ("vehicle", "car|automobile", "sedan convertible limousine taxi|cab hatchback"),
    ("vehicle", "truck|lorry", "tanker pickup dumper"),
    ("vehicle", "boat", "canoe kayak yacht ferry raft schooner tugboat gondola"),
    ("vehicle", "cycle", "bicycle|bike motorcycle|motorbike tricycle scooter"),
    ("vehicle", "plane|airplane", "jet glider bomber biplane"),
    ("vehicle", "wagon|cart", "carriage buggy chariot"),
    ("thing", "tool", "hammer wrench chisel saw drill shovel|spade rake axe screwdriver crowbar"),
    ("thing", "seat", "chair sofa|couch stool bench armchair throne"),
    ("thing", "cabinet", "cupboard dresser wardrobe bookcase"),
    (
        "thing",
        "garment",
        "shirt jacket|coat sweater|pullover skirt dress scarf:scarves blouse vest glove sock robe",
    ),
    ("thing", "hat", "cap bonnet helmet beret fedora"),
    ("thing", "instrument", "violin|fiddle guitar piano drum flute trumpet cello harp banjo clarinet"),
    ("thing", "weapon", "sword rifle pistol|revolver dagger spear cannon musket"),
    ("thing", "container", "box basket bucket|pail barrel|cask jar crate bottle suitcase bag|sack"),
    ("thing", "publication", "book novel magazine newspaper pamphlet|brochure journal textbook catalog"),
    ("thing", "document", "letter memo contract receipt invoice certificate passport"),
    ("thing", "device|gadget", "phone|telephone computer camera television printer laptop calculator"),
    ("thing", "toy|plaything", "doll puppet kite marble balloon"),
    ("thing", "jewel|gem", "ruby diamond emerald pearl sapphire"),
    ("thing", "ornament", "necklace bracelet brooch earring pendant"),
    ("thing", "implement", "spoon fork ladle whisk spatula knife:knives"),
    ("thing", "vessel", "bowl cup|mug kettle pot pan pitcher"),
    ("thing", "lamp", "lantern torch candle flashlight"),
    ("thing", "picture", "portrait poster photograph|photo mural"),
    ("plant", "flower|blossom", "rose tulip daisy lily orchid violet poppy sunflower"),
    ("plant", "tree", "oak maple pine birch willow elm cedar"),
    (
        "place",
        "building",
        "house cottage|cabin castle barn church school hospital hotel|inn museum library theater factory",
    ),
    ("place", "shop|store", "bakery pharmacy bookstore|bookshop boutique"),
    ("place", "room", "kitchen bedroom attic cellar|basement parlor hallway|corridor"),
    (
        "place",
        "site",
        "park garden forest|wood field|meadow beach|shore valley hill river lake|pond island road|street bridge",
    ),
];

/// The nouns of the roots that have one: a hypernym of everything below.
pub(super) const ROOT_NOUNS: &[(&str, &str)] = &[
    ("person", "person:people"),
    ("animal", "animal"),
    ("vehicle", "vehicle"),
    ("thing", "object"),
    ("plant", "plant"),
    ("place", "place"),
];

/// Names of women.
pub(super) const WOMEN: &str = "alice anna barbara beatrice betty carol caroline catherine charlotte clara diana dorothy \
    edith eleanor elizabeth ellen emily emma esther eva fiona florence frances grace hannah harriet helen ingrid irene \
    isabel jane janet joan josephine julia karen laura linda lucy margaret maria martha mary matilda monica nancy nora \
    olivia pamela patricia rachel rebecca rosa ruth sarah sophia susan sylvia theresa ursula vera victoria wendy";

/// Names of men.
pub(super) const MEN: &str = "adam albert alfred andrew anthony arthur benjamin bernard charles christopher daniel david \
    dennis edgar edward eric ernest felix francis frank frederick george gerald gilbert gregory harold harry henry hugo \
    ivan jack jacob james jerome john joseph julian kenneth lawrence leonard louis marcus martin matthew michael nathan \
    neil nicholas oliver oscar patrick paul peter philip ralph raymond richard robert roger samuel simon stephen thomas \
    victor vincent walter william";
