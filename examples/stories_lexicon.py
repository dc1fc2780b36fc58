"""The words of the stories: who there is, what there is, and where things happen."""

from __future__ import annotations

from stories_world import Noun, Person, Place, Verb

_GIRLS = "Mia Ada Lily Rose Ella Nora Ruby Ivy Lena Zoe Anna Tess Kim Maya Sara Jill"
_BOYS = "Ben Tom Sam Leo Max Finn Noah Jack Otis Paul Hugo Theo Ravi Will Mark Robin"
GIRLS = tuple(Person(name, "girl", "she") for name in _GIRLS.split())
BOYS = tuple(Person(name, "boy", "he") for name in _BOYS.split())
ANIMALS = tuple(
    Person(name, kind, pronouns)
    for name, kind, pronouns in (
        ("Pip", "mouse", "he"), ("Otto", "bear", "he"), ("Bella", "bear", "she"),
        ("Fern", "rabbit", "she"), ("Hop", "rabbit", "he"), ("Rusty", "fox", "he"),
        ("Amber", "fox", "she"), ("Olive", "owl", "she"), ("Bruno", "badger", "he"),
        ("Daisy", "duck", "she"), ("Spike", "hedgehog", "he"), ("Hazel", "squirrel", "she"),
        ("Toby", "turtle", "he"), ("Luna", "cat", "she"), ("Wag", "dog", "he"),
        ("Gina", "goat", "she"),
    )
)  # fmt: skip
ELDERS = tuple(
    Person(name, "", pronouns)
    for name, pronouns in (
        ("Grandma", "she"), ("Grandpa", "he"), ("Aunt Vera", "she"), ("Uncle Joe", "he"),
        ("the baker", "he"), ("the farmer", "she"), ("the teacher", "she"), ("the miller", "he"),
    )
)  # fmt: skip

FLY = Verb("fly", "flew", "flying")
PLAY = Verb("play", "played", "playing")
PLAY_WITH = Verb("play", "played", "playing", "with")
READ = Verb("read", "read", "reading")
WEAR = Verb("wear", "wore", "wearing")
EAT = Verb("eat", "ate", "eating")
USE = Verb("use", "used", "using")
LOOK_AT = Verb("look", "looked", "looking", "at")
CARRY = Verb("carry", "carried", "carrying")
WALK_WITH = Verb("walk", "walked", "walking", "about with")

_COLOURS = ("red", "blue", "green", "yellow", "orange")
_TOY = ("new", "little", "wooden", "old")

NOUNS = (
    Noun("kite", "toy", (*_COLOURS, "paper"), FLY, "tore"),
    Noun("ball", "toy", (*_COLOURS, "new"), PLAY_WITH, "burst"),
    Noun("boat", "toy", ("toy", "paper", *_TOY), Verb("sail", "sailed", "sailing"), "broke"),
    Noun("train", "toy", ("toy", *_TOY), PLAY_WITH, "broke"),
    Noun("doll", "toy", ("rag", *_TOY), PLAY_WITH, "tore"),
    Noun("bear", "toy", ("toy", "brown", "soft"), PLAY_WITH, "tore"),
    Noun("duck", "toy", ("toy", "yellow", "wooden"), PLAY_WITH, "broke"),
    Noun("marbles", "toy", ("blue", "green", "shiny", "glass"), PLAY_WITH, "broke", plural=True),
    Noun("drum", "music", ("tin", "little", "red", "loud"), PLAY, "broke"),
    Noun("flute", "music", ("wooden", "silver", "old"), PLAY, "cracked"),
    Noun(
        "bell", "music", ("brass", "silver", "little"), Verb("ring", "rang", "ringing"), "cracked"
    ),
    Noun("violin", "music", ("old", "brown", "little"), PLAY, "cracked"),
    Noun("book", "book", ("thick", "old", "picture", "blue"), READ, "tore"),
    Noun("map", "book", ("old", "big", "paper"), READ, "tore"),
    Noun("hat", "wear", ("straw", "tall", *_COLOURS), WEAR, "tore"),
    Noun("scarf", "wear", ("long", "warm", *_COLOURS), WEAR, "tore"),
    Noun("boots", "wear", ("new", "warm", "brown", "red"), WEAR, "tore", plural=True),
    Noun("mittens", "wear", ("warm", "soft", "green"), WEAR, "tore", plural=True),
    Noun("umbrella", "wear", ("old", "big", "yellow", "striped"), WALK_WITH, "tore"),
    Noun("shell", "treasure", ("pink", "white", "shiny"), LOOK_AT, "cracked"),
    Noun("stone", "treasure", ("round", "green", "shiny"), LOOK_AT, "cracked"),
    Noun("feather", "treasure", ("white", "long", "blue"), LOOK_AT, "broke"),
    Noun("coin", "treasure", ("gold", "old", "silver"), LOOK_AT, "broke"),
    Noun("ring", "treasure", ("gold", "silver", "little"), WEAR, "broke"),
    Noun("basket", "tool", ("big", "old", "straw"), CARRY, "broke"),
    Noun("bucket", "tool", ("tin", "blue", "old"), CARRY, "cracked"),
    Noun("rope", "tool", ("long", "thick", "old"), USE, "broke"),
    Noun("net", "tool", ("long", "big", "green"), USE, "tore"),
    Noun("ladder", "tool", ("tall", "wooden", "old"), USE, "broke"),
    Noun("spade", "tool", ("little", "red", "new"), USE, "broke"),
    Noun("hammer", "tool", ("big", "old", "little"), USE, "broke"),
    Noun("lamp", "tool", ("bright", "old", "little"), USE, "broke"),
    Noun("cake", "food", ("round", "honey", "apple", "plum"), EAT, "broke"),
    Noun("pie", "food", ("apple", "plum", "cherry"), EAT, "broke"),
    Noun("cookies", "food", ("nut", "honey", "sweet"), EAT, "broke", plural=True),
    Noun("tarts", "food", ("plum", "sweet", "little"), EAT, "broke", plural=True),
)
KEEPSAKES = ("toy", "music", "book", "wear", "treasure")

# What is cooked, and what goes into it.
_GREENS = ("carrots", "onions", "beans", "peas", "mushrooms")
_SWEETS = ("apples", "plums", "nuts", "berries", "pears")
DISHES = {"soup": _GREENS, "stew": _GREENS, "porridge": _SWEETS, "pudding": _SWEETS}
INGREDIENTS = {
    word: Noun(word, "food", ("fresh", "good"), EAT, "burst", plural=True)
    for word in (*_GREENS, *_SWEETS)
}
BUILDINGS = ("tower", "den", "bridge", "hut", "raft", "wall")

PLACES = (
    Place("garden", "in", False,
          (("under", "bench"), ("behind", "roses"), ("beside", "well"), ("in", "bucket"))),
    Place("park", "in", False,
          (("under", "bench"), ("beside", "fountain"), ("behind", "oak"), ("under", "slide"))),
    Place("forest", "in", False,
          (("behind", "oak"), ("under", "log"), ("in", "ferns"), ("behind", "rock"))),
    Place("beach", "on", False,
          (("behind", "rock"), ("under", "boat"), ("beside", "net"), ("in", "bucket")), "water"),
    Place("river", "by", False,
          (("under", "bridge"), ("in", "reeds"), ("in", "boat"), ("behind", "willow")), "water"),
    Place("lake", "by", False,
          (("in", "reeds"), ("in", "boat"), ("beside", "stone"), ("behind", "willow")), "water"),
    Place("market", "at", False,
          (("under", "table"), ("behind", "cart"), ("behind", "barrels"), ("in", "basket"))),
    Place("farm", "on", False,
          (("behind", "haystack"), ("under", "cart"), ("beside", "gate"), ("in", "barrel"))),
    Place("hill", "on", False,
          (("behind", "rock"), ("beside", "gate"), ("under", "bush"), ("behind", "wall"))),
    Place("meadow", "in", False,
          (("behind", "haystack"), ("under", "bush"), ("beside", "fence"), ("in", "clover"))),
    Place("harbour", "at", False,
          (("under", "boat"), ("behind", "barrels"), ("beside", "ladder"), ("in", "net")), "water"),
    Place("kitchen", "in", True,
          (("under", "table"), ("in", "cupboard"), ("behind", "stove"), ("in", "basket"))),
    Place("attic", "in", True,
          (("in", "trunk"), ("behind", "curtain"), ("under", "bed"), ("in", "box"))),
    Place("library", "in", True,
          (("under", "table"), ("behind", "curtain"), ("behind", "shelf"), ("in", "box"))),
    Place("school", "at", True,
          (("under", "desk"), ("behind", "piano"), ("in", "cupboard"), ("in", "box"))),
    Place("barn", "in", True,
          (("under", "cart"), ("in", "hay"), ("behind", "barrels"), ("behind", "ladder"))),
    Place("mill", "at", True,
          (("behind", "sacks"), ("under", "stairs"), ("in", "basket"), ("behind", "door"))),
    Place("bakery", "at", True,
          (("behind", "oven"), ("under", "table"), ("behind", "sacks"), ("beside", "door"))),
)  # fmt: skip
OUTDOORS = tuple(place for place in PLACES if not place.indoors)
HOME = Place("home", "at", True, ())
SHOPS = tuple(place for place in PLACES if place.word in ("market", "harbour", "farm"))
KITCHENS = tuple(place for place in PLACES if place.word in ("kitchen", "bakery", "mill", "farm"))

WAYS = (
    Verb("walk", "walked", "walking"), Verb("run", "ran", "running"),
    Verb("hurry", "hurried", "hurrying"), Verb("skip", "skipped", "skipping"),
    Verb("wander", "wandered", "wandering"), Verb("race", "raced", "racing"),
    Verb("stroll", "strolled", "strolling"), Verb("go", "went", "going"),
)  # fmt: skip
WEATHER = ("windy", "rainy", "sunny", "cold", "warm", "foggy", "grey", "hot")
TIMES = ("morning", "afternoon", "evening", "day")

# Topics of a story: the tag and the words that bring each of them in. A toy duck is no
# animal and a boat that somebody hides under is no toy, so the tag decides.
TOPICS: dict[str, tuple[str, set[str]]] = {
    "animals": ("who", {person.kind for person in ANIMALS} | {"wolf", "bats"}),
    "toys": ("what", {noun.word for noun in NOUNS if noun.group == "toy"}),
    "music": ("what", {noun.word for noun in NOUNS if noun.group == "music"}),
    "clothes": ("what", {noun.word for noun in NOUNS if noun.group == "wear"}),
    "treasure": ("what", {noun.word for noun in NOUNS if noun.group == "treasure"}),
    "food": (
        "what",
        {noun.word for noun in (*NOUNS, *INGREDIENTS.values()) if noun.group == "food"}
        | set(DISHES),
    ),
    "tools": ("what", {noun.word for noun in NOUNS if noun.group == "tool"}),
    "water": ("where", {place.word for place in PLACES if place.topic == "water"} | {"water"}),
    "storm": ("other", {"rain", "thunder", "wind", "rainy", "windy"}),
}
