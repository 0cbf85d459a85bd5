"""List the words of the demo world: heroes, their traits, homes and things.

Everything here is data of our own making. The gold rule reads the same tables as the story
generator, so a word that an instruction may ask for is a word that the rule can look for.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Species:
    """A species (or boy, girl): noun, home, way of moving, limb, and pronouns."""

    noun: str
    home: str
    went: str
    limb: str
    pronouns: tuple[str, ...] = ("he", "she")


@dataclass(frozen=True)
class Place:
    """A setting: its noun, its prepositions, and spots where things can lie."""

    noun: str
    at: str
    to: str
    spots: tuple[str, ...]


@dataclass(frozen=True)
class Thing:
    """An object: its noun, number ("one", "many", "mass"), roles and adjectives."""

    noun: str
    number: str
    roles: tuple[str, ...]
    adjectives: tuple[str, ...]


NAMES = {
    "he": tuple(
        "Tom Ben Finn Oscar Leo Max Sam Hugo Toby Jasper Milo Rufus Otto Gus Ned Barney Felix "
        "Alfie Monty Theo Wilf "
        "Bruno Archie Jack Pip Dexter Basil Ivo Rory Kit".split()
    ),
    "she": tuple(
        "Mia Lucy Rosie Nell Ella Ruby Daisy Poppy Lily Hazel Ivy Clara Molly Tilly Bella Nora "
        "Wendy Anna Zoe Greta "
        "Tess Mabel Flora Edith Suki Bonnie June Kate Sally Meg".split()
    ),
}

SPECIES = (
    Species("fox", "den", "trotted", "paw"),
    Species("rabbit", "burrow", "hopped", "paw"),
    Species("bear", "den", "lumbered", "paw"),
    Species("mouse", "hole", "scurried", "paw"),
    Species("squirrel", "nest", "scampered", "paw"),
    Species("frog", "nook", "hopped", "foot"),
    Species("duck", "nest", "waddled", "wing"),
    Species("cat", "cottage", "padded", "paw"),
    Species("dog", "kennel", "ran", "paw"),
    Species("hedgehog", "burrow", "shuffled", "paw"),
    Species("badger", "den", "marched", "paw"),
    Species("wolf", "den", "loped", "paw"),
    Species("deer", "thicket", "stepped", "hoof"),
    Species("turtle", "hollow", "crawled", "foot"),
    Species("goat", "shed", "skipped", "hoof"),
    Species("pig", "sty", "trotted", "foot"),
    Species("hen", "coop", "strutted", "wing", ("she",)),
    Species("otter", "den", "slid", "paw"),
    Species("beaver", "lodge", "paddled", "paw"),
    Species("mole", "tunnel", "shuffled", "paw"),
    Species("lamb", "barn", "skipped", "hoof"),
    Species("donkey", "stable", "plodded", "hoof"),
    Species("boy", "house", "walked", "hand", ("he",)),
    Species("girl", "house", "walked", "hand", ("she",)),
)

ELDERS = ("owl", "tortoise", "heron", "toad", "ox", "goose", "crane", "stork")
RELATIVES = ("mother", "father", "grandmother", "grandfather", "aunt", "uncle")

PLACES = (
    Place(
        "forest", "in", "into", ("under a tall pine", "behind a mossy log", "beside a hollow oak")
    ),
    Place(
        "river",
        "by",
        "down to",
        ("among the reeds", "under the willow", "near the stepping stones"),
    ),
    Place(
        "hill", "on", "up", ("behind a round rock", "under a thorn bush", "beside the stone wall")
    ),
    Place(
        "beach", "at", "to", ("beside a rock pool", "under an upturned boat", "behind the dunes")
    ),
    Place(
        "farm", "on", "to", ("behind the barn", "next to the haystack", "beside the water trough")
    ),
    Place(
        "garden",
        "in",
        "into",
        ("between the bean rows", "beside the rose bush", "behind the green shed"),
    ),
    Place("village", "in", "to", ("beside the well", "outside the bakery", "under the old clock")),
    Place(
        "meadow", "in", "across", ("among the daisies", "beside a molehill", "in the long grass")
    ),
    Place("lake", "by", "to", ("near the jetty", "beside a rotten stump", "among the bulrushes")),
    Place(
        "mountain", "on", "up", ("beside a cold stream", "under a ledge", "behind a heap of stones")
    ),
    Place(
        "cave",
        "near",
        "to",
        ("beside the entrance", "under a flat rock", "behind a curtain of ivy"),
    ),
    Place(
        "market", "at", "to", ("behind the fruit stall", "under a table", "beside the flower cart")
    ),
    Place("park", "in", "to", ("under a bench", "by the fountain", "beside the iron gate")),
    Place("pond", "by", "to", ("among the lilies", "beside a muddy bank", "under a bent birch")),
    Place(
        "island",
        "on",
        "across",
        ("under a palm tree", "beside the old lighthouse", "behind a sandbank"),
    ),
    Place(
        "valley",
        "in",
        "down into",
        ("beside the footpath", "under an elm", "near the wooden fence"),
    ),
    Place(
        "castle",
        "near",
        "to",
        ("beside the great gate", "under the drawbridge", "behind a broken wall"),
    ),
    Place("harbor", "at", "to", ("behind a pile of nets", "beside a barrel", "under the pier")),
    Place(
        "school", "at", "to", ("behind the playground", "under the stairs", "beside the big window")
    ),
    Place(
        "orchard", "in", "to", ("under a crooked tree", "beside a ladder", "behind the beehives")
    ),
    Place(
        "mill",
        "near",
        "to",
        ("beside the water wheel", "behind the flour sacks", "under the footbridge"),
    ),
    Place("swamp", "near", "to", ("on a dry mound", "beside a twisted root", "under a dead tree")),
)

_BRIGHT = ("red", "blue", "yellow", "green", "striped", "little", "new", "wooden")
_RICH = ("golden", "silver", "shiny", "tiny", "pretty", "precious")
_WARM = ("red", "woolly", "blue", "soft", "warm", "green")
_USEFUL = ("old", "big", "strong", "heavy", "small", "sturdy")
_TASTY = ("sweet", "fresh", "big", "tasty", "warm")
_RIPE = ("ripe", "juicy", "sweet", "fresh")
_FINE = ("fine", "old", "painted", "white", "blue", "lovely")
_MUSIC = ("little", "old", "wooden", "brass", "new")
_GROWN = ("huge", "round", "fine", "big")

THINGS = (
    Thing("kite", "one", ("toy", "gift"), _BRIGHT),
    Thing("ball", "one", ("toy", "gift"), _BRIGHT),
    Thing("puppet", "one", ("toy", "gift"), _BRIGHT),
    Thing("marbles", "many", ("toy", "gift"), ("red", "blue", "green", "shiny", "new")),
    Thing("book", "one", ("toy", "gift"), ("old", "thick", "little", "new", "blue")),
    Thing("balloon", "one", ("toy",), ("red", "blue", "yellow", "green", "big", "striped")),
    Thing("ring", "one", ("toy", "treasure"), _RICH),
    Thing("coins", "many", ("treasure",), _RICH),
    Thing("key", "one", ("toy", "treasure"), _RICH),
    Thing("shell", "one", ("toy", "treasure"), ("pink", "white", "shiny", "tiny", "pretty")),
    Thing("feather", "one", ("toy",), ("white", "blue", "long", "pretty", "golden")),
    Thing("bell", "one", ("toy", "treasure"), _RICH),
    Thing("necklace", "one", ("treasure",), _RICH),
    Thing("purse", "one", ("treasure",), ("heavy", "velvet", "leather", "small")),
    Thing("hat", "one", ("toy", "wear", "gift"), _WARM),
    Thing("scarf", "one", ("toy", "wear", "gift"), _WARM),
    Thing("mittens", "many", ("toy", "wear", "gift"), _WARM),
    Thing("lantern", "one", ("tool", "light"), ("old", "small", "bright", "brass")),
    Thing("candle", "one", ("light",), ("small", "white", "tall", "thin")),
    Thing("torch", "one", ("light",), ("small", "bright", "old", "little")),
    Thing("rope", "one", ("tool",), ("long", "strong", "thick", "old")),
    Thing("ladder", "one", ("tool",), _USEFUL),
    Thing("net", "one", ("tool",), ("big", "strong", "long", "old")),
    Thing("pole", "one", ("tool",), ("long", "strong", "thin", "wooden")),
    Thing("blanket", "one", ("comfort", "gift"), _WARM),
    Thing("pillow", "one", ("comfort",), ("soft", "white", "big", "new")),
    Thing("pie", "one", ("food", "gift", "prize"), _TASTY),
    Thing("cake", "one", ("food", "gift", "prize"), _TASTY),
    Thing("bread", "mass", ("food", "gift"), ("fresh", "warm", "brown", "tasty")),
    Thing("honey", "mass", ("food", "gift", "comfort"), ("sweet", "golden", "dark")),
    Thing("cheese", "mass", ("food", "gift"), ("yellow", "tasty", "soft")),
    Thing("berries", "many", ("food", "gift"), _RIPE),
    Thing("plums", "many", ("food", "gift"), _RIPE),
    Thing("nuts", "many", ("food", "gift"), ("brown", "crunchy", "tasty", "fresh")),
    Thing("cookies", "many", ("food", "gift"), _TASTY),
    Thing("soup", "mass", ("comfort",), ("hot", "thick", "tasty")),
    Thing("tea", "mass", ("comfort",), ("hot", "sweet", "mint")),
    Thing("cup", "one", ("prize", "fragile"), ("golden", "silver", "shiny", "tall")),
    Thing("medal", "one", ("prize",), ("golden", "silver", "shiny", "round")),
    Thing("crown", "one", ("prize", "treasure"), ("golden", "paper", "shiny", "leafy")),
    Thing("ribbon", "one", ("prize",), ("red", "blue", "purple", "long")),
    Thing("drum", "one", ("music",), _MUSIC),
    Thing("flute", "one", ("music",), _MUSIC),
    Thing("fiddle", "one", ("music",), ("little", "old", "wooden", "new")),
    Thing("horn", "one", ("music",), _MUSIC),
    Thing("harp", "one", ("music",), ("little", "old", "golden", "wooden")),
    Thing("pumpkin", "one", ("plant",), ("huge", "round", "orange", "fine")),
    Thing("melon", "one", ("plant",), _GROWN),
    Thing("sunflower", "one", ("plant",), ("tall", "golden", "fine", "bright")),
    Thing("turnip", "one", ("plant",), _GROWN),
    Thing("cabbage", "one", ("plant",), _GROWN),
    Thing("rose", "one", ("plant",), ("red", "white", "yellow", "lovely")),
    Thing("raft", "one", ("build",), ("big", "strong", "wide", "little")),
    Thing("hut", "one", ("build",), ("small", "snug", "strong", "little")),
    Thing("swing", "one", ("build",), ("high", "strong", "long", "red")),
    Thing("boat", "one", ("build",), ("small", "fast", "strong", "little")),
    Thing("sled", "one", ("build",), ("fast", "long", "strong", "red")),
    Thing("cart", "one", ("build",), ("big", "strong", "red", "little")),
    Thing("tower", "one", ("build",), ("tall", "high", "strong", "narrow")),
    Thing("vase", "one", ("fragile",), _FINE),
    Thing("plate", "one", ("fragile",), _FINE),
    Thing("lamp", "one", ("fragile",), ("fine", "old", "painted", "tall", "lovely")),
    Thing("clock", "one", ("fragile",), ("fine", "old", "painted", "tall")),
    Thing("teapot", "one", ("fragile",), _FINE),
    Thing("mirror", "one", ("fragile",), ("fine", "old", "round", "tall", "lovely")),
)

# How the trait bends a plot: a "good" trait helps, a "fault" must be put right, "tender" ones can
# go either way.
TRAITS = {
    "brave": "good",
    "kind": "good",
    "clever": "good",
    "patient": "good",
    "honest": "good",
    "shy": "tender",
    "curious": "tender",
    "greedy": "fault",
    "lazy": "fault",
    "proud": "fault",
    "careless": "fault",
    "grumpy": "fault",
}

ENDINGS = ("happy", "sad")
