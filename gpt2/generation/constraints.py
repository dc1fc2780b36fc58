"""Words that must come: how far a sequence has got with them.

A word is a tuple of alternatives, each a tuple of token ids; one of them must
come as it stands. Progress is immutable: ``after(token)`` gives a new one, so
that beams which part may share the state they have come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.errors import ArgumentError

Word = tuple[tuple[int, ...], ...]


def parse_words(force_words_ids: Sequence[Any]) -> tuple[Word, ...]:
    """The documented setting as words: each a list of ids, or a list of such alternatives.

    Raises ArgumentError where one alternative begins another: the longer one
    could never come.
    """
    words = []
    for given in force_words_ids:
        alternatives = given if isinstance(given[0], list | tuple) else [given]
        word = tuple(tuple(ids) for ids in alternatives)
        for i, ids in enumerate(word):
            for j, longer in enumerate(word):
                if i != j and longer[: len(ids)] == ids:
                    raise ArgumentError(
                        f"force_words_ids: {list(ids)} begins its alternative {list(longer)}; "
                        "leave out the longer one"
                    )
        words.append(word)
    return tuple(words)


@dataclass(frozen=True)
class Progress:
    """Which words are still ``pending``, how much of ``current`` has come, how many are done.

    A token that does not go on with the current word gives that word up: it is
    pending again, behind the others.
    """

    words: tuple[Word, ...]
    pending: tuple[Word, ...]
    current: Word | None = None
    come: tuple[int, ...] = ()
    done: int = 0

    @classmethod
    def start(cls, words: tuple[Word, ...], prompt: Iterable[int]) -> Progress:
        """Behind ``prompt``, whose tokens count, as in the reference."""
        progress = cls(words, words)
        for token in prompt:
            progress = progress.after(token)
        return progress

    @property
    def complete(self) -> bool:
        return self.done == len(self.words)

    def next_tokens(self) -> list[int]:
        """The tokens that go on with the current word, or begin one that is pending."""
        if self.current is not None:
            return _following(self.current, self.come)
        return [token for word in self.pending for token in _following(word, ())]

    def after(self, token: int) -> Progress:
        """The progress once ``token`` has come."""
        pending = self.pending
        if self.current is not None:
            if token not in _following(self.current, self.come):
                return Progress(self.words, (*pending, self.current), done=self.done)
            word, come = self.current, (*self.come, token)
        else:
            begun = next((w for w in pending if token in _following(w, ())), None)
            if begun is None:
                return self
            at = pending.index(begun)
            pending = pending[:at] + pending[at + 1 :]
            word, come = begun, (token,)
        if come in word:
            return Progress(self.words, pending, done=self.done + 1)
        return Progress(self.words, pending, word, come, self.done)

    def bank(self) -> int:
        """How far this is, in tokens, every word counted as long as the longest."""
        longest = max(_height(word) for word in self.words)
        begun = 0
        if self.current is not None:
            begun = longest - (_height(self.current) - len(self.come))
        return self.done * longest + begun

    def least_tokens(self) -> int:
        """How many tokens it takes at least until all words have come."""
        left = sum(min(map(len, word)) for word in self.pending)
        if self.current is not None:
            n = len(self.come)
            left += min(len(ids) - n for ids in self.current if ids[:n] == self.come)
        return left


def _following(word: Word, come: tuple[int, ...]) -> list[int]:
    """The tokens that may come behind ``come``, each once, in the order of the alternatives."""
    n = len(come)
    return list(dict.fromkeys(ids[n] for ids in word if len(ids) > n and ids[:n] == come))


def _height(word: Word) -> int:
    return max(map(len, word))
