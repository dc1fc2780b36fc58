"""Tokens that are kept whole in text: the special ones, and those added to a vocabulary later."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2.tokenization import unicode_classes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WHITE_SPACE = frozenset(
    chr(code_point)
    for first, last in unicode_classes.ranges(unicode_classes.WHITE_SPACE)
    for code_point in range(first, last + 1)
)


@dataclass(frozen=True)
class AddedToken:
    """One token that is looked for in text before anything else.

    Attributes:
        content: its text.
        single_word: only where no word character stands beside it.
        lstrip: takes the white space to its left along.
        rstrip: takes the white space to its right along.
        normalized: looked for after the tokens without this mark, so that those win.
        special: left out by ``decode(…, skip_special_tokens=True)``.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class AddedTokens:
    """Finds added tokens in text; from the left, the longest of those that start at one place.

    Args:
        tokens: id -> token.
    """

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self._by_content = {token.content: (id_, token) for id_, token in tokens.items()}
        contents = sorted(self._by_content, key=len, reverse=True)
        # Two passes, as tokenizers makes them: the second sees only what the first left.
        self._passes = [
            re.compile("|".join(map(re.escape, chosen)))
            for normalized in (False, True)
            if (chosen := [c for c in contents if self._by_content[c][1].normalized is normalized])
        ]
        self._contents = contents

    def split(self, text: str) -> list[str | int]:
        """The text in pieces: an id where an added token stood, else the (non-empty) text between.

        >>> AddedTokens({50256: AddedToken("<|endoftext|>")}).split("one<|endoftext|>two")
        ['one', 50256, 'two']
        """
        if not self._may_be_in(text):
            return [text] if text else []
        return [text[start:end] if id_ is None else id_ for start, end, id_ in self.spans(text)]

    def spans(self, text: str) -> list[tuple[int, int, int | None]]:
        """Where the pieces of `split` stand: (start, end, id or None for text), in characters.

        The white space that a token takes along belongs to its span.
        """
        if not text:
            return []
        spans: list[tuple[int, int, int | None]] = [(0, len(text), None)]
        if self._may_be_in(text):
            for pattern in self._passes:
                spans = [
                    part
                    for start, end, id_ in spans
                    for part in (
                        self._cut(text[start:end], start, pattern)
                        if id_ is None
                        else ((start, end, id_),)
                    )
                ]
        return spans

    def _may_be_in(self, text: str) -> bool:
        # Searching for fixed text is several times faster than for a pattern, and mostly in vain.
        return any(map(text.__contains__, self._contents))

    def _cut(
        self, text: str, at: int, pattern: re.Pattern[str]
    ) -> Iterator[tuple[int, int, int | None]]:
        """The spans of a piece that stands at the place ``at`` of the whole text."""
        done = 0  # the text before this place has been handed out
        for found in pattern.finditer(text):
            id_, token = self._by_content[found.group()]
            start, end = found.span()
            beside = text[start - 1 : start], text[end : end + 1]
            if token.single_word and any(map(_is_word, beside)):
                continue
            while token.lstrip and start > done and text[start - 1] in _WHITE_SPACE:
                start -= 1
            while token.rstrip and end < len(text) and text[end] in _WHITE_SPACE:
                end += 1
            if done < start:
                yield at + done, at + start, None
            yield at + start, at + end, id_
            done = end
        if done < len(text):
            yield at + done, at + len(text), None


def _is_word(character: str) -> bool:
    r"""Whether a character (or none, ``""``) is one of ``\w`` as Unicode's UTS 18 has it."""
    if not character:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or character in "\u200c\u200d"
