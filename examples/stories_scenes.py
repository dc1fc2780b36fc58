"""What plots are made of: the cast of a story, and the scenes that many of them share."""

from __future__ import annotations

import random
from dataclasses import dataclass

from stories_lexicon import (
    ANIMALS,
    BOYS,
    ELDERS,
    GIRLS,
    HOME,
    KEEPSAKES,
    NOUNS,
    OUTDOORS,
    PLACES,
    TIMES,
    WAYS,
    WEATHER,
)
from stories_world import Noun, Person, Phrase, Place, Spot, Thing, Verb, World


@dataclass(frozen=True)
class Cast:
    """Who and what a story may use: hero, friend, a third; two keepsakes; three places."""

    a: Person
    b: Person
    c: Person
    t: Thing
    u: Thing
    p: Place
    q: Place
    r: Place


def new_cast(rng: random.Random, *, elders: bool = True) -> Cast:
    """Three people, different things, different places; ``elders`` lets the third be grown up."""
    children = [*GIRLS, *BOYS]
    style = rng.random()
    if style < 0.45:
        people = rng.sample(children, 3)
    elif style < 0.7:
        people = _animals(rng, 3)
    else:
        first, third = rng.sample(children, 2)
        people = [first, *_animals(rng, 1), third]
        if rng.random() < 0.5:
            people[0], people[1] = people[1], people[0]
    if elders and rng.random() < 0.3:
        people[2] = rng.choice(ELDERS)
    nouns = rng.sample([noun for noun in NOUNS if noun.group in KEEPSAKES], 2)
    a, b, c = people
    t, u = (thing(rng, noun) for noun in nouns)
    p, q, r = rng.sample(PLACES, 3)
    return Cast(a, b, c, t, u, p, q, r)


def _animals(rng: random.Random, count: int) -> list[Person]:
    """Animals of different kinds, so that ``the fox`` is one of them."""
    by_kind: dict[str, list[Person]] = {}
    for animal in ANIMALS:
        by_kind.setdefault(animal.kind, []).append(animal)
    return [rng.choice(by_kind[kind]) for kind in rng.sample(sorted(by_kind), count)]


def thing(rng: random.Random, noun: Noun) -> Thing:
    """A thing of this kind with an adjective that suits it."""
    return Thing(rng.choice(noun.adjectives), noun)


def tool(rng: random.Random, *words: str) -> Thing:
    """One of the tools called ``words``."""
    return thing(rng, rng.choice([noun for noun in NOUNS if noun.word in words]))


def spot(rng: random.Random, place: Place, *avoid: Thing) -> Spot:
    """A spot of ``place`` whose word names none of the things."""
    taken = {thing.noun.word for thing in avoid}
    preposition, word = rng.choice([s for s in place.spots if s[1] not in taken])
    return Spot(preposition, word, place)


def outdoors(w: World, k: Cast) -> Place:
    """The first place if it is under the sky, else another that is (never the second)."""
    if not k.p.indoors:
        return k.p
    return w.rng.choice([place for place in OUTDOORS if place is not k.q])


# Scenes that plots share -----------------------------------------------------------------


def way(w: World) -> Verb:
    return w.rng.choice(WAYS)


def maybe(w: World, chance: float = 0.5) -> bool:
    return w.rng.random() < chance


def begin(w: World, a: Person, p: Place) -> None:
    """The first sentence: who, where, when."""
    weather, time = w.rng.choice(WEATHER), w.rng.choice(TIMES)
    w.arrive("open", a, p, when=Phrase(f"{weather} {time}"))
    if maybe(w, 0.2):
        w.tell("about", a=a)


def meet(w: World, newcomer: Person, hero: Person) -> None:
    """``newcomer`` turns up where the hero is."""
    place = w.place(hero)
    if place is None:
        raise ValueError(f"{hero.name} is nowhere")
    w.arrive("meet" if newcomer.kind else "meet.elder", newcomer, place, b=hero)


def walk(w: World, who: Person, place: Place, kind: str = "go") -> None:
    w.go(kind, [who], place, v=way(w))


def walk_together(w: World, a: Person, b: Person, place: Place) -> None:
    w.go("go.two", [a, b], place, v=way(w))


def borrow(w: World, a: Person, owner: Person, t: Thing, far: Place, chance: float) -> None:
    """``owner`` comes by and lends ``t`` to ``a``, or has to be visited at ``far``."""
    here = w.place(a)
    fetched = here is not None and maybe(w, chance)
    if fetched:
        walk(w, a, far, "go.errand")
    meet(w, owner, a)
    w.gain("own.tool", owner, t)
    w.give("lend", owner, a, t)
    if fetched and here is not None:
        walk(w, a, here, "go.back")


def beat(w: World, a: Person, b: Person | None = None, chance: float = 0.3) -> None:
    """A small thing on the way that stirs a feeling and passes."""
    if not maybe(w, chance):
        return
    kinds = ["scare", "hurt", "joy", "gloom", "scene"] + (["quarrel", "laugh"] if b else [])
    kind = w.rng.choice(kinds)
    w.tell(f"beat.{kind}", a=a, b=b or a)


def threat(w: World, a: Person, *, flee: bool | None = None) -> None:
    """Something frightening, and what it does to the hero."""
    place = w.place(a)
    if place is None:
        raise ValueError(f"{a.name} is nowhere")
    w.tell("threat.in" if place.indoors else "threat.out", a=a, p=place)
    finish(w, a, "scared", home=flee)


def drop_in_fright(w: World, a: Person, t: Thing) -> None:
    """The hero lets go of what they carry."""
    place = w.place(a)
    if place is None or w.holder(t) is not a:
        raise ValueError(f"{a.name} does not hold the {t.noun.word}")
    w.put("drop", a, t, spot(w.rng, place, t))


def finish(
    w: World, a: Person, mood: str, culprit: Person | None = None, *, home: bool | None = None
) -> None:
    """The hero's last feeling, shown where they are or on the way home."""
    goes = maybe(w, 0.35) if home is None else home
    if goes and w.place(a) is not HOME:
        w.go("home." + mood, [a], HOME)
        w.feelings[a] = mood
    elif culprit and maybe(w):
        w.feel(f"feel.{mood}.at", a, mood, b=culprit)
    else:
        w.feel("feel." + mood, a, mood)
