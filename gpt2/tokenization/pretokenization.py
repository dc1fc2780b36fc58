"""Cut text into the words inside which byte pairs are merged: GPT-2's word pattern.

The pattern is that of Radford et al. 2019 (``encoder.py`` of the released code): a contraction
(``'s``, ``'ll`` …), an optional space and letters, an optional space and numbers, an optional
space and anything else, white space up to the last one before a word, white space. The pieces
put together are the text again: nothing is lost between them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import cache
from itertools import accumulate, pairwise

from gpt2.tokenization import unicode_classes

_LAST_BMP = 0xFFFF
_ASTRAL = re.compile("[\U00010000-\U0010ffff]+")


def split_words(text: str) -> list[str]:
    """The words of the text, in order; ``"".join(split_words(text)) == text``.

    Takes time in proportion to the length, whatever the text.

    >>> split_words("I'm here,  now")
    ['I', "'m", ' here', ',', ' ', ' now']
    """
    find_words = _word_pattern().findall
    if text.isascii():
        return find_words(text)
    # The pattern knows no class beyond U+FFFF: a set of characters within it is one table
    # look-up in `re`, while ranges above are tried one by one (five times slower in all). So
    # letters and numbers from above are classified by a stand-in of the same class from below.
    lookalike = _ASTRAL.sub(_stand_ins, text)
    words = find_words(lookalike)
    if lookalike == text:
        return words
    ends = accumulate(map(len, words), initial=0)
    return [text[start:end] for start, end in pairwise(ends)]


@cache
def _word_pattern() -> re.Pattern[str]:
    letter, number, space = (
        _set_members(_ranges(name)) for name in ("LETTERS", "NUMBERS", "WHITE_SPACE")
    )
    return re.compile(
        f"{_words_of(f'[{letter}]')}"
        "|'(?:[sdmt]|ll|ve|re)"
        f"|{_words_of(f'[{number}]')}"
        f"|{_words_of(f'[^{letter}{number}{space}]')}"
        f"|[{space}]+(?![^{space}])"
        f"|[{space}]"
    )


def _words_of(members: str) -> str:
    """An optional space and some of the members.

    Spelt out, since `re` passes over a choice whose first character does not fit at once. A
    possessive quantifier (++) never gives back what it took: a long word costs one pass.
    """
    return f" {members}++|{members}++"


@cache
def _ranges(name: str) -> list[tuple[int, int]]:
    return unicode_classes.ranges(getattr(unicode_classes, name))


def _set_members(ranges: list[tuple[int, int]]) -> str:
    """The ranges up to U+FFFF as the inside of a ``[...]``; no class crosses that border."""
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in ranges if last <= _LAST_BMP)


def _stand_ins(run: re.Match[str]) -> str:
    return run.group().translate(_STAND_INS)


class _StandIns:
    """Code points above U+FFFF → a letter or a number below, as `str.translate` asks for them."""

    def __getitem__(self, code_point: int) -> str:
        for name, stand_in in (("LETTERS", "x"), ("NUMBERS", "0")):
            if _contains(_ranges(name), code_point):
                return stand_in
        raise LookupError  # leave it as it is: neither letter, number nor white space


def _contains(ranges: list[tuple[int, int]], code_point: int) -> bool:
    place = bisect_left(ranges, code_point, key=lambda members: members[1])
    return place < len(ranges) and ranges[place][0] <= code_point


_STAND_INS = _StandIns()
