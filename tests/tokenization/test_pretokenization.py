"""The word pattern: what is cut where, nothing lost, time linear."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.tokenization import unicode_classes
from gpt2.tokenization.pretokenization import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("I'm here,  now", ["I", "'m", " here", ",", " ", " now"]),
        ("they've we'll I'd it's can't you're", None),
        ("THEY'VE", ["THEY", "'", "VE"]),
        ("a\n\nb \n c", ["a", "\n", "\n", "b", " \n", " c"]),
        ("end  \r\n", ["end", "  \r\n"]),
        ("abc123 45,6", ["abc", "123", " 45", ",", "6"]),
        ("x\u00a0y\u2009z", ["x", "\u00a0", "y", "\u2009", "z"]),
        ("\x1c\x1d", ["\x1c\x1d"]),  # white space to str.isspace, not to Unicode
        ("cafe\u0301s", ["cafe", "\u0301", "s"]),  # a combining mark is no letter
        ("²x٣", ["²", "x", "٣"]),
        ("hi 😀😀 yo", ["hi", " 😀😀", " yo"]),
        ("𝐱𝐲1𝟙 𝐳", ["𝐱𝐲", "1𝟙", " 𝐳"]),  # letters and digits beyond U+FFFF
        ("a\ud800b", ["a", "\ud800", "b"]),
    ],
)
def test_words(text: str, words: list[str] | None) -> None:
    if words is None:
        words = ["they", "'ve", " we", "'ll", " I", "'d", " it", "'s", " can", "'t", " you", "'re"]
    assert split_words(text) == words


@given(st.text())
def test_nothing_is_lost(text: str) -> None:
    words = split_words(text)
    assert "".join(words) == text
    assert all(words)


@given(st.text(st.sampled_from(" \n\tab1²é中'!s\u0301\u3000𝐱𝟙😀\u00ad"), max_size=12))
def test_equals_the_pattern_as_published(text: str) -> None:
    """The published pattern, spelt with the table's classes and no shortcut, in plain `re`."""

    def members(runs: str) -> str:
        return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in unicode_classes.ranges(runs))

    letter, number, space = map(
        members, (unicode_classes.LETTERS, unicode_classes.NUMBERS, unicode_classes.WHITE_SPACE)
    )
    published = (
        f"'s|'t|'re|'ve|'m|'ll|'d| ?[{letter}]+| ?[{number}]+| ?[^{space}{letter}{number}]+"
        f"|[{space}]+(?![^{space}])|[{space}]+"
    )
    assert split_words(text) == re.findall(published, text)


def test_classes_are_those_of_unicode_16() -> None:
    sizes = {
        name: sum(
            last - first + 1
            for first, last in unicode_classes.ranges(getattr(unicode_classes, name))
        )
        for name in ("LETTERS", "NUMBERS", "WHITE_SPACE")
    }
    assert sizes == {"LETTERS": 141028, "NUMBERS": 1911, "WHITE_SPACE": 25}


def test_no_class_has_a_range_across_the_border_of_the_shortcut() -> None:
    for name in ("LETTERS", "NUMBERS", "WHITE_SPACE"):
        for first, last in unicode_classes.ranges(getattr(unicode_classes, name)):
            assert (first <= 0xFFFF) == (last <= 0xFFFF)
