"""From events to words: forms of the entities, sentence templates, pronouns, tags, mentions.

A template is an English sentence with fields. ``{a}`` names whoever plays role ``a``;
``{A}`` does the same for the subject of a sentence, and becomes ``she`` or ``he`` where that is
clear; ``{t.was}`` asks for a form (see the ``_FORMS`` tables). ``tree~where`` tags a literal
word. Each word carries its tag: who, what, where or other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from stories_world import Entity, Event, Person, Phrase, Place, Spot, Thing, Verb

WHO, WHAT, WHERE, OTHER = TAGS = ("who", "what", "where", "other")
Words = tuple[tuple[str, str], ...]


def article(word: str) -> str:
    """``a`` or ``an`` before ``word``, by its first letter (the lexicon has no exceptions)."""
    return "an" if word[0] in "aeiou" else "a"


def _plain(text: str) -> Words:
    return tuple((word, OTHER) for word in text.split())


# Forms -------------------------------------------------------------------------------


def _name(person: Person) -> Words:
    # "the baker": the article names nobody.
    return tuple((word, OTHER if word == "the" else WHO) for word in person.name.split())


def _species(person: Person) -> Words:
    return (("the", OTHER), (person.kind, WHO)) if person.kind else _name(person)


def _new(person: Person) -> Words:
    if not person.kind:
        return _name(person)
    return ((article(person.kind), OTHER), (person.kind, WHO), ("named", OTHER), *_name(person))


def _possessive(person: Person) -> Words:
    *head, (last, tag) = _name(person)
    return (*head, (last + "'s", tag))


def _pronoun(she: str, he: str) -> Callable[[Person], Words]:
    return lambda person: ((she if person.pronouns == "she" else he, WHO),)


def _bare(thing: Thing) -> Words:
    return ((thing.adjective, WHAT), (thing.noun.word, WHAT))


def _some(thing: Thing) -> Words:
    first = "some" if thing.noun.plural else article(thing.adjective)
    return ((first, OTHER), *_bare(thing))


def _agree(one: str, many: str, tag: str = OTHER) -> Callable[[Thing], Words]:
    return lambda thing: ((many if thing.noun.plural else one, tag),)


def _use(form: str) -> Callable[[Thing], Words]:
    """The verb for using a thing, then its object: ``flew it``, ``playing with them``."""

    def words(thing: Thing) -> Words:
        verb = thing.noun.use
        text = f"{getattr(verb, form)} {verb.tail}"
        return (*_plain(text), ("them" if thing.noun.plural else "it", WHAT))

    return words


def _the_place(place: Place) -> Words:
    return ((place.word, WHERE),) if place.word == "home" else _the(place.word, WHERE)


def _the(word: str, tag: str) -> Words:
    return (("the", OTHER), (word, tag))


_PERSON: dict[str, Callable[[Person], Words]] = {
    "name": _name, "kind": _species, "new": _new, "s": _possessive,
    "he": _pronoun("she", "he"), "him": _pronoun("her", "him"), "his": _pronoun("her", "his"),
}  # fmt: skip
_THING: dict[str, Callable[[Thing], Words]] = {
    "": lambda thing: (("the", OTHER), *_bare(thing)),
    "bare": _bare,
    "a": _some,
    "short": lambda thing: (("the", OTHER), (thing.noun.word, WHAT)),
    "noun": lambda thing: ((thing.noun.word, WHAT),),
    "adj": lambda thing: ((thing.adjective, WHAT),),
    "it": _agree("it", "them", WHAT), "they": _agree("it", "they", WHAT),
    "was": _agree("was", "were"), "is": _agree("is", "are"),
    "this": lambda thing: (("these" if thing.noun.plural else "this", OTHER), *_bare(thing)),
    "use": _use("base"), "used": _use("past"), "using": _use("ing"),
    "broke": lambda thing: _plain(thing.noun.broke),
}  # fmt: skip
_PLACE: dict[str, Callable[[Place], Words]] = {
    "": _the_place,
    "in": lambda place: ((place.preposition, OTHER), *_the_place(place)),
    "to": lambda place: _the_place(place) if place.word == "home"
    else (("to", OTHER), *_the_place(place)),
}  # fmt: skip
_SPOT: dict[str, Callable[[Spot], Words]] = {
    "": lambda spot: _the(spot.word, WHERE),
    "in": lambda spot: ((spot.preposition, OTHER), *_the(spot.word, WHERE)),
}
_VERB: dict[str, Callable[[Verb], Words]] = {
    "past": lambda verb: _plain(verb.past),
}
_PHRASE: dict[str, Callable[[Phrase], Words]] = {
    "": lambda phrase: tuple((word, phrase.tag) for word in phrase.words.split()),
    "a": lambda phrase: ((article(phrase.words), OTHER), *_PHRASE[""](phrase)),
}
_FORMS: dict[type, Mapping[str, Callable[..., Words]]] = {
    Person: _PERSON, Thing: _THING, Place: _PLACE, Spot: _SPOT, Verb: _VERB, Phrase: _PHRASE,
}  # fmt: skip

# Forms that say which entity is meant, so that they can answer a question.
_NAMING = {"name", "", "a", "short", "bare", "new", "in", "to", "this"}


def say(entity: Entity, form: str = "") -> Words:
    """The tagged words of one form of an entity; KeyError where it has no such form."""
    return _FORMS[type(entity)][form](entity)


# Templates ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A literal word (``role`` empty, its text in ``before``), or a field and what touches it."""

    before: str
    tag: str = OTHER
    role: str = ""
    form: str = ""
    after: str = ""


@cache
def parse(template: str) -> tuple[Piece, ...]:
    """Split a template at its spaces into pieces."""
    pieces = []
    for chunk in template.split():
        before, brace, rest = chunk.partition("{")
        if brace:
            inside, _, after = rest.partition("}")
            role, _, form = inside.partition(".")
            pieces.append(Piece(before, OTHER, role, form, after))
        else:
            word, _, rest = chunk.partition("~")
            tag = rest.rstrip(".,:!?\"';")
            pieces.append(Piece(word + rest[len(tag) :], tag or OTHER))
    return tuple(pieces)


@dataclass(frozen=True)
class Mention:
    """Words ``start:end`` of the story name ``entity`` in the sentence of event ``event``."""

    entity: Entity
    event: int
    start: int
    end: int


@dataclass
class Telling:
    """The words so far, and who is in focus. ``sentences`` maps a kind to its templates."""

    rng: random.Random
    sentences: Mapping[str, tuple[str, ...]]
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)
    _focus: Person | None = None
    _known: set[Entity] = field(default_factory=set)  # introduced in full
    _used: list[str] = field(default_factory=list)

    def tell(self, number: int, event: Event, template: str = "") -> None:
        """Append the sentences of event ``number``; a template at random where none is given."""
        named: list[Person] = []
        capital = True
        for piece in parse(template or self._choose(event.kind)):
            if piece.role == "then":
                words = _plain(self.rng.choice(CONNECTIVES))
            elif piece.role:
                words = self._fill(piece, number, event, named)
            else:
                words = ((piece.before, piece.tag),)
            if words:
                self._add(words, piece.before if piece.role else "", piece.after, capital)
                capital = self.words[-1].endswith((".", "!", "?", '."'))
        self._move_focus(named)

    def _choose(self, kind: str) -> str:
        """A template that this story has not used, and that does not begin like the last one."""
        templates = self.sentences[kind]
        fresh = [template for template in templates if template not in self._used] or templates
        if self._used:
            last = self._used[-1].split()[0]
            fresh = [template for template in fresh if template.split()[0] != last] or fresh
        chosen = self.rng.choice(fresh)
        self._used.append(chosen)
        return chosen

    def _fill(self, piece: Piece, number: int, event: Event, named: list[Person]) -> Words:
        """The words of a field; notes who is named, and which words mention what."""
        entity = event.roles[piece.role.lower()]
        form = piece.form
        if isinstance(entity, Person):
            form = form or self._refer(entity, piece, event, named)
            if entity not in named and (form in ("name", "new", "kind", "s") or not piece.form):
                named.append(entity)
        elif isinstance(entity, Thing) and not form and entity in self._known:
            form = "short" if self.rng.random() < 0.6 else ""
        words = say(entity, form)
        if form in ("new", "a", ""):
            self._known.add(entity)
        if form in _NAMING:
            # The mention in "to the garden" is "the garden", in "a fox named Pip" it is "Pip".
            kept = words
            if form == "to" and isinstance(entity, Place):
                kept = _the_place(entity)
            elif form == "new" and isinstance(entity, Person):
                kept = _name(entity)
            end = len(self.words) + len(words)
            self.mentions.append(Mention(entity, number, end - len(kept), end))
        return words

    def _refer(self, person: Person, piece: Piece, event: Event, named: list[Person]) -> str:
        """The pronoun for a subject in focus, else the name, or at times ``the fox``."""
        if piece.role.isupper() and person is self._focus and person not in named:
            return "he" if self.rng.random() < 0.7 else "name"
        if person.kind in ("girl", "boy", "") or event.decisive:
            return "name"
        return "kind" if person in self._known and self.rng.random() < 0.25 else "name"

    def _move_focus(self, named: list[Person]) -> None:
        """A pronoun is clear after a sentence about one person, or one who is the only she."""
        if named:
            first, *others = named
            rivals = [person for person in others if person.pronouns == first.pronouns]
            self._focus = None if rivals else first

    def _add(self, words: Words, before: str, after: str, capital: bool) -> None:
        for index, (word, tag) in enumerate(words):
            text = word
            if index == 0:
                if capital or before.endswith('"'):
                    text = text[0].upper() + text[1:]
                text = before + text
            if index == len(words) - 1:
                text += after
            self.words.append(text)
            self.tags.append(tag)


# What ``{then}`` may say, often nothing.
CONNECTIVES = ("", "", "then", "soon", "after that,", "a little later,", "so")
