"""The world of the stories: people, places and things, and the events that change them.

A plot calls the methods of :class:`World`. Each checks that the event can happen (one can
only give what one holds, to somebody who is there), changes the state, and writes the event
down. The text is rendered from the events (``stories_telling.py``) and every truth about a
story is read from the facts kept here, so that the two cannot disagree.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

MOODS = ("happy", "sad", "scared", "angry")


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody who can act: a child, an animal, or a grown-up such as ``the baker``."""

    name: str
    kind: str  # "girl", "boy", an animal, or "" for a grown-up
    pronouns: str  # "she" or "he"


@dataclass(frozen=True)
class Verb:
    """The forms of a verb; ``tail`` follows each of them (play *with*)."""

    base: str
    past: str
    ing: str
    tail: str = ""


@dataclass(frozen=True)
class Noun:
    """What a thing is: the word, the adjectives that suit it, what one does with it."""

    word: str
    group: str  # toy, music, book, wear, treasure, tool, food
    adjectives: tuple[str, ...]
    use: Verb
    broke: str  # how it breaks, in the past tense
    plural: bool = False


@dataclass(frozen=True, eq=False)
class Thing:
    """One particular thing: the red kite."""

    adjective: str
    noun: Noun


@dataclass(frozen=True, eq=False)
class Place:
    """Where people go; ``spots`` are the hiding places there, as (preposition, noun)."""

    word: str
    preposition: str
    indoors: bool
    spots: tuple[tuple[str, str], ...]
    topic: str = ""


@dataclass(frozen=True, eq=False)
class Spot:
    """A small place within a place: under the bench."""

    preposition: str
    word: str
    place: Place


@dataclass(frozen=True, eq=False)
class Phrase:
    """Words without a place in the world: ``windy morning``, ``tower``."""

    words: str
    tag: str = "other"


Entity = Person | Thing | Place | Spot | Phrase | Verb


@dataclass(frozen=True, eq=False)
class Event:
    """One thing that happened; ``kind`` chooses the sentence, ``roles`` fill it."""

    kind: str
    roles: dict[str, Entity]
    decisive: bool  # it settles a fact, so people are called by name in its sentence


@dataclass(frozen=True)
class Fact:
    """What holds now: ``subject`` is held by, or is at, ``value``, since event ``event``."""

    relation: str  # "holder" or "place"
    subject: Person | Thing
    value: Person | Place | Spot
    event: int


@dataclass(frozen=True)
class Deed:
    """Somebody did something with a thing: ``verb`` is find, make, buy or give."""

    verb: str
    who: Person
    what: Thing
    event: int
    to: Person | None = None


@dataclass
class World:
    """State and history of one story. Methods raise ValueError for what cannot happen."""

    rng: random.Random
    events: list[Event] = field(default_factory=list)
    facts: dict[tuple[str, Person | Thing], Fact] = field(default_factory=dict)
    deeds: list[Deed] = field(default_factory=list)
    feelings: dict[Person, str] = field(default_factory=dict)
    held: dict[Thing, list[Fact]] = field(default_factory=dict)  # every holder, in order

    # What holds now ------------------------------------------------------------------

    def holder(self, thing: Thing) -> Person | None:
        """Who has the thing, or None."""
        fact = self.facts.get(("holder", thing))
        return fact.value if fact and isinstance(fact.value, Person) else None

    def where(self, subject: Person | Thing) -> Place | Spot | None:
        """Where somebody or something is; a thing that is held is where its holder is."""
        owner = self.holder(subject) if isinstance(subject, Thing) else None
        fact = self.facts.get(("place", owner or subject))
        return fact.value if fact and not isinstance(fact.value, Person) else None

    def place(self, subject: Person | Thing) -> Place | None:
        """Like :meth:`where`, the spot widened to its place."""
        where = self.where(subject)
        return where.place if isinstance(where, Spot) else where

    def moved(self, who: Person) -> bool:
        """Whether they are elsewhere than where they came in."""
        fact = self.facts["place", who]
        return any(
            event.roles.get("a") is who or event.roles.get("b") is who
            for event in self.events[: fact.event]
            if event.decisive
        )

    # What happens --------------------------------------------------------------------

    def tell(self, kind: str, **roles: Entity) -> None:
        """Something that changes no fact."""
        self.events.append(Event(kind, roles, decisive=False))

    def arrive(self, kind: str, who: Person, place: Place, **roles: Entity) -> None:
        """``who`` enters the story at ``place``."""
        self._require(self.where(who) is None, f"{who.name} is in the story already")
        self._happen(kind, a=who, p=place, **roles)
        self._set("place", who, place)

    def go(self, kind: str, people: Iterable[Person], place: Place, **roles: Entity) -> None:
        """``people`` (one or two) go to ``place``, with what they hold."""
        going = list(people)
        for person in going:
            self._require(self.where(person) is not None, f"{person.name} is nowhere")
            self._require(self.where(person) is not place, f"{person.name} is there already")
        self._happen(kind, **dict(zip("ab", going, strict=False)), p=place, **roles)
        for person in going:
            self._set("place", person, place)

    def hide(self, kind: str, who: Person, spot: Spot, **roles: Entity) -> None:
        """``who`` slips into ``spot``, which is in the place where they are."""
        self._require(self.place(who) is spot.place, f"{who.name} is not near {spot.word}")
        self._happen(kind, a=who, s=spot, **roles)
        self._set("place", who, spot)

    def gain(
        self, kind: str, who: Person, thing: Thing, *, verb: str = "", **roles: Entity
    ) -> None:
        """``who`` comes to hold a thing that nobody holds, by ``verb`` (own, find, make, buy)."""
        self._require(self.holder(thing) is None, f"somebody has the {thing.noun.word}")
        here = self.place(thing)
        self._require(here in (None, self.place(who)), f"the {thing.noun.word} is elsewhere")
        where = self.where(thing)
        if isinstance(where, Spot):
            roles.setdefault("s", where)
        self._happen(kind, a=who, t=thing, **roles)
        self._hold(who, thing)
        if verb:
            self.deeds.append(Deed(verb, who, thing, len(self.events) - 1))

    def give(
        self, kind: str, giver: Person, taker: Person, thing: Thing, *, verb: str = "give",
        **roles: Entity,
    ) -> None:  # fmt: skip
        """The thing passes from ``giver`` to ``taker``; ``verb=""`` where it is not a gift."""
        self._require(self.holder(thing) is giver, f"{giver.name} has no {thing.noun.word}")
        self._require(self.place(giver) is self.place(taker), "they are not together")
        self._happen(kind, a=giver, b=taker, t=thing, **roles)
        self._hold(taker, thing)
        if verb:
            self.deeds.append(Deed(verb, giver, thing, len(self.events) - 1, to=taker))

    def swap(self, kind: str, a: Person, b: Person, t: Thing, u: Thing) -> None:
        """``a`` gives ``t`` for ``b``'s ``u``."""
        self._require(self.holder(t) is a and self.holder(u) is b, "they do not have that")
        self._require(self.place(a) is self.place(b), "they are not together")
        self._happen(kind, a=a, b=b, t=t, u=u)
        self._hold(b, t)
        self._hold(a, u)

    def put(self, kind: str, who: Person, thing: Thing, spot: Spot, **roles: Entity) -> None:
        """The thing leaves the hands of ``who`` (dropped, hidden, left) and is at ``spot``."""
        self._require(self.holder(thing) is who, f"{who.name} has no {thing.noun.word}")
        self._require(self.place(who) is spot.place, f"{who.name} is not near {spot.word}")
        self._happen(kind, a=who, t=thing, s=spot, **roles)
        del self.facts["holder", thing]
        self._set("place", thing, spot)

    def lay(self, kind: str, thing: Thing, spot: Spot, **roles: Entity) -> None:
        """A thing that nobody holds is at ``spot`` when the story comes to it."""
        self._require(self.holder(thing) is None, f"somebody has the {thing.noun.word}")
        self._happen(kind, t=thing, s=spot, **roles)
        self._set("place", thing, spot)

    def lose(self, kind: str, thing: Thing, **roles: Entity) -> None:
        """The thing is no more: eaten, used up, carried off."""
        self._happen(kind, t=thing, **roles)
        self.facts.pop(("holder", thing), None)
        self.facts.pop(("place", thing), None)

    def feel(self, kind: str, who: Person, mood: str, **roles: Entity) -> None:
        """An event that leaves ``who`` in ``mood``."""
        self._require(mood in MOODS, f"mood {mood!r} is none of {', '.join(MOODS)}")
        self._happen(kind, a=who, **roles)
        self.feelings[who] = mood

    # How it is written down ----------------------------------------------------------

    def _happen(self, kind: str, **roles: Entity) -> None:
        self.events.append(Event(kind, roles, decisive=True))

    def _set(self, relation: str, subject: Person | Thing, value: Person | Place | Spot) -> None:
        fact = Fact(relation, subject, value, len(self.events) - 1)
        self.facts[relation, subject] = fact

    def _hold(self, who: Person, thing: Thing) -> None:
        self.facts.pop(("place", thing), None)
        self._set("holder", thing, who)
        self.held.setdefault(thing, []).append(self.facts["holder", thing])

    def _require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise ValueError(f"impossible event after {len(self.events)} events: {problem}")
