"""Short stories, and the truth about them: a small world that every GPT-2 head can learn.

    python examples/stories.py --count 3 --seed 1

prints three stories and what is known about each: the mood, the topics, a question with its
answer, a right and a wrong ending, and which words say who, what and where. The stories are
made up by rules: a plot acts on a world of people, places and things
(``stories_plots.py``, ``stories_world.py``), its events are told in English
(``stories_telling.py``, ``stories_phrases.py``, ``stories_lexicon.py``), and the truth is read
from the same world. Only the standard library is used.

Baselines to beat: mood 25 % (four, equally likely; 36 % for the best rule about one word), ending
50 % (65 % for "whoever is mentioned last"), tags 73 % (``other``). A story's entropy, counted as
the cost of the random choices that made it, is about 80 nats: 0.7 per word.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from stories_feelings import ENDINGS
from stories_lexicon import TOPICS
from stories_phrases import SENTENCES
from stories_plots import PLOTS
from stories_scenes import new_cast
from stories_telling import TAGS, Mention, Telling, say
from stories_world import MOODS, Entity, Event, Fact, Person, Place, Spot, Thing, World

__all__ = ["MOODS", "TOPICS", "Story", "generate_story", "held_out_stories", "stories",
           "training_stories"]  # fmt: skip

MIN_WORDS, MAX_WORDS = 40, 130
_HELD_OUT = 1_000_000  # seeds from here on are for held-out sets only


@dataclass(frozen=True)
class Story:
    """A story and the truth about it.

    ``" ".join(words) == text``, one tag per word: who, what, where or other (punctuation
    belongs to its word). ``text[answer_start:answer_end] == answer``: where the story says
    what settles the question. ``context`` is the story without its last sentence where that
    is ``right_ending``, else the whole of it; ``wrong_ending`` is the same sentence with
    another person or place of the story in it. ``mood`` is how ``hero`` feels in the end.
    """

    text: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    plot: str
    hero: str
    mood: str
    topics: tuple[str, ...]
    question: str
    answer: str
    answer_start: int
    answer_end: int
    context: str
    right_ending: str
    wrong_ending: str


def generate_story(rng: random.Random) -> Story:
    """The next story of ``rng``: mood and plot equally likely, 40 to 130 words."""
    mood = rng.choice(MOODS)
    plot = rng.choice(PLOTS)
    while True:
        roles = new_cast(rng, elders=mood != "angry")
        world = World(rng)
        plot(world, roles, mood)
        story = _write(world, roles.a, plot.__name__)
        if story is not None:
            return story


def stories(seed: int, count: int | None = None) -> Iterator[Story]:
    """The stories of ``seed``, ``count`` of them or without end; the same ones every time."""
    numbers = itertools.count() if count is None else range(count)
    return (generate_story(random.Random(f"story {seed}/{number}")) for number in numbers)


def training_stories(count: int | None = None, seed: int = 0) -> Iterator[Story]:
    """Stories to train on: ``seed`` from 0 to 999 999, never one of a held-out set."""
    if not 0 <= seed < _HELD_OUT:
        raise ValueError(f"seed must be from 0 to {_HELD_OUT - 1} for training, not {seed}")
    return stories(seed, count)


def held_out_stories(count: int | None = None, seed: int = 0) -> Iterator[Story]:
    """Stories to measure on: ``seed`` from 0 to 999 999, never one of a training set."""
    if not 0 <= seed < _HELD_OUT:
        raise ValueError(f"seed must be from 0 to {_HELD_OUT - 1}, not {seed}")
    return stories(_HELD_OUT + seed, count)


# From the world to a Story -----------------------------------------------------------


def _write(world: World, hero: Person, plot: str) -> Story | None:
    """Tell the world's events and read the truth off it; None if it does not fit the frame."""
    rng = world.rng
    telling = Telling(rng, SENTENCES)
    for number, event in enumerate(world.events):
        telling.tell(number, event)
    if not MIN_WORDS <= len(telling.words) <= MAX_WORDS:
        return None
    ending = _choose_ending(world, telling)
    if ending is None:
        return None
    fact, right, wrong = ending
    context = " ".join(telling.words)
    # The ending is part of every other story, if it fits.
    if rng.random() < 0.5 and len(telling.words) + len(right[0]) <= MAX_WORDS:
        telling.words += right[0]
        telling.tags += right[1]
        told = fact
    else:
        told = None
    answer = _choose_question(world, telling, told)
    if answer is None:
        return None
    question, mention = answer
    start, end = _span(telling.words, mention)
    text = " ".join(telling.words)
    return Story(
        text=text,
        words=tuple(telling.words),
        tags=tuple(telling.tags),
        plot=plot,
        hero=hero.name,
        mood=world.feelings[hero],
        topics=_topics(telling),
        question=question,
        answer=text[start:end],
        answer_start=start,
        answer_end=end,
        context=context,
        right_ending=" ".join(right[0]),
        wrong_ending=" ".join(wrong[0]),
    )


def _topics(telling: Telling) -> tuple[str, ...]:
    """The topics whose words occur with the right tag."""
    seen = {
        (tag, _bare(word).lower()) for word, tag in zip(telling.words, telling.tags, strict=True)
    }
    return tuple(
        topic
        for topic, (tag, words) in TOPICS.items()
        if any((tag, word) in seen for word in words)
    )


def _bare(word: str) -> str:
    """A word without its punctuation and ``'s``."""
    return word.strip('.,!?";:').removesuffix("'s")


def _span(words: list[str], mention: Mention) -> tuple[int, int]:
    """Character offsets of a mention in the text, without punctuation around it."""
    start = sum(len(word) + 1 for word in words[: mention.start])
    end = start + len(" ".join(words[mention.start : mention.end]))
    first, last = words[mention.start], words[mention.end - 1]
    lead = len(first) - len(first.lstrip('"'))
    tail = len(last) - len(last.rstrip('.,!?";:'))
    return start + lead, end - tail


# The ending --------------------------------------------------------------------------

Sentence = tuple[list[str], list[str]]  # words and tags


def _choose_ending(world: World, telling: Telling) -> tuple[Fact, Sentence, Sentence] | None:
    """A fact that holds at the end, told right, and told wrong with the same words."""
    facts = [fact for fact in world.facts.values() if _rivals(fact, world, telling)]
    of_things = [fact for fact in facts if isinstance(fact.subject, Thing)]
    if not facts:
        return None
    if of_things and world.rng.random() < 0.8:
        facts = of_things
    fact = world.rng.choice(facts)
    other = world.rng.choice(_rivals(fact, world, telling))
    kind = "holder" if fact.relation == "holder" else "spot"
    if isinstance(fact.subject, Person):
        kind = "place"
    template = world.rng.choice(ENDINGS[kind])
    seed = world.rng.random()  # the same choice of words for both
    right = _sentence(random.Random(seed), template, fact)
    wrong = _sentence(random.Random(seed), template, replace(fact, value=other))
    return fact, right, wrong


def _rivals(fact: Fact, world: World, telling: Telling) -> list[Person | Place | Spot]:
    """What the story mentions that could stand in the place of the fact's value, wrongly."""
    mentioned = dict.fromkeys(mention.entity for mention in telling.mentions)
    value = fact.value
    if isinstance(value, Person):
        people: list[Person | Place | Spot] = [
            one for one in mentioned if isinstance(one, Person) and one is not value
        ]
        earlier = {past.value for past in world.held.get(cast(Thing, fact.subject), [])}
        return [one for one in people if one in earlier] or people
    places: list[Person | Place | Spot] = [
        one for one in mentioned if isinstance(one, Place | Spot) and one is not value
    ]
    if isinstance(value, Spot):
        return [one for one in places if one is not value.place]
    return [one for one in places if not (isinstance(one, Spot) and one.place is value)]


def _sentence(rng: random.Random, template: str, fact: Fact) -> Sentence:
    """The template with the fact's subject and value in it."""
    roles: dict[str, Entity] = {"a": fact.subject, "s": fact.value, "p": fact.value}
    if isinstance(fact.subject, Thing):
        roles |= {"t": fact.subject, "a": fact.value}
    telling = Telling(rng, {}, _known={fact.subject})
    telling.tell(0, Event("ending", roles, decisive=True), template)
    return telling.words, telling.tags


# The question ------------------------------------------------------------------------


def _choose_question(
    world: World, telling: Telling, told: Fact | None
) -> tuple[str, Mention] | None:
    """A question that the story answers, not the one that the ending (``told``) answers."""
    by_kind: dict[str, list[tuple[str, Mention]]] = {}

    def ask(kind: str, entity: Entity | None, event: int, *words: str | Entity) -> None:
        mention = _evidence(telling, entity, event)
        if mention is not None:
            by_kind.setdefault(kind, []).append((_question(*words), mention))

    for fact in world.facts.values():
        if fact is told:
            continue
        subject, value, event = fact.subject, fact.value, fact.event
        if fact.relation == "holder":
            if len(world.held[cast(Thing, subject)]) > 1:
                ask("who has", value, event, "Who has", subject, "now?")
        elif isinstance(subject, Thing):
            ask("where is it", value, event, "Where", _be(subject), subject, "now?")
        elif world.moved(subject):
            ask("where is", value, event, "Where is", subject, "now?")
    for thing, held in world.held.items():
        if held[0].value is not held[-1].value:
            ask("who had", held[0].value, held[0].event, "Who had", thing, "first?")
    for deed in world.deeds:
        if deed.verb == "give":
            to = cast(Person, deed.to)
            ask("what", deed.what, deed.event, "What did", deed.who, "give to", to, "?")
        else:
            ask("who did", deed.who, deed.event, "Who", _PAST[deed.verb], deed.what, "?")
            if deed.verb == "find":
                where = world.events[deed.event].roles.get("s")
                ask("where", where, deed.event, "Where", _be(deed.what, "was"), deed.what, "found?")
    if not by_kind:
        return None
    return world.rng.choice(by_kind[world.rng.choice(sorted(by_kind))])


_PAST = {"find": "found", "make": "made", "buy": "bought"}


def _be(thing: Thing, form: str = "is") -> str:
    return say(thing, form)[0][0]


def _question(*parts: str | Entity) -> str:
    texts = [
        part if isinstance(part, str) else " ".join(word for word, _ in _name_of(part))
        for part in parts
    ]
    return " ".join(texts).replace(" ?", "?")


def _name_of(entity: Entity) -> tuple[tuple[str, str], ...]:
    return say(entity, "name" if isinstance(entity, Person) else "")


def _evidence(telling: Telling, entity: Entity | None, event: int) -> Mention | None:
    """The mention in the sentence that settles it, or (after a pronoun) the last one before."""
    mentions = [m for m in telling.mentions if m.entity is entity and m.event <= event]
    return mentions[-1] if mentions else None


# The command line --------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Print stories and their truth."""
    parser = argparse.ArgumentParser(description="Print made-up stories and the truth about them.")
    parser.add_argument("--count", type=int, default=3, help="how many stories (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="which stories (default 0)")
    parser.add_argument("--text-only", action="store_true", help="print no truth")
    options = parser.parse_args(argv)
    if options.count < 1:
        parser.error(f"--count must be at least 1, not {options.count}")
    for story in stories(options.seed, options.count):
        print(textwrap.fill(story.text, 96))
        if not options.text_only:
            print(describe(story))
        print()
    return 0


def describe(story: Story) -> str:
    """The truth about a story, one line each."""
    tagged = {tag: [_bare(w) for w, t in zip(story.words, story.tags, strict=True) if t == tag]
              for tag in TAGS[:3]}  # fmt: skip
    lines = [
        f"mood      {story.hero} is {story.mood} in the end",
        f"topics    {', '.join(story.topics) or 'none'}",
        f"question  {story.question}  {story.answer} "
        f"(characters {story.answer_start} to {story.answer_end})",
        f"right     {story.right_ending}",
        f"wrong     {story.wrong_ending}",
        *(f"{tag:<9} {', '.join(dict.fromkeys(words))}" for tag, words in tagged.items()),
    ]
    return "\n".join("  " + line for line in lines)


if __name__ == "__main__":
    sys.exit(main())
