"""Merging: lowest rank first, leftmost first, short and long words alike."""

from __future__ import annotations

import random

import pytest

from gpt2.tokenization import bpe
from gpt2.tokenization.bpe import BytePairEncoder, MergeRules
from gpt2.tokenization.byte_alphabet import BYTE_CHARACTERS, to_bytes, to_characters


def encoder_of(*rules: str) -> tuple[BytePairEncoder, list[bytes]]:
    """An encoder with these rules ("left right", in order), and the bytes of each id."""
    tokens = [bytes([byte]) for byte in range(256)]
    ranks, merged = {}, []
    tokens += dict.fromkeys(rule.replace(" ", "").encode() for rule in rules)
    for rank, rule in enumerate(rules):
        left, right = rule.encode().split()
        ranks[tokens.index(left), tokens.index(right)] = rank
        merged.append(tokens.index(left + right))
    return BytePairEncoder(range(256), lambda: MergeRules(ranks, merged)), tokens


def pieces(rules: tuple[str, ...], word: str) -> str:
    encoder, tokens = encoder_of(*rules)
    return " ".join(tokens[id_].decode() for id_ in encoder.encode(word.encode()))


@pytest.fixture(params=["scan", "heap"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of merging, whatever the length of the word."""
    monkeypatch.setattr(bpe, "_SHORT", 10**9 if request.param == "scan" else 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("rules", "word", "expected"),
    [
        ((), "", ""),
        ((), "abc", "a b c"),
        (("a b",), "abab", "ab ab"),
        (("b c", "a b"), "abc", "a bc"),  # the lower rank, though further right
        (("a a",), "aaaaa", "aa aa a"),  # from the left
        (("a a", "aa aa"), "aaaaaaa", "aaaa aa a"),
        (("a b", "ab c", "abc d"), "abcdabcabd", "abcd abc ab d"),
        (("b c", "a b", "a bc"), "abcab", "abc ab"),
        (("a b", "b c", "ab c", "a bc"), "abc", "abc"),  # two rules for one token
    ],
)
def test_merges(rules: tuple[str, ...], word: str, expected: str) -> None:
    assert pieces(rules, word) == expected


def test_the_two_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    for _ in range(300):
        made, rules = ["a", "b", "c"], []
        for _ in range(rng.randrange(1, 12)):
            rule = f"{rng.choice(made)} {rng.choice(made)}"
            if rule not in rules:
                rules.append(rule)
                made.append(rule.replace(" ", ""))
        rng.shuffle(rules)  # also ranks that no training gives: a part's rule after the whole's
        encoder, _ = encoder_of(*rules)
        word = "".join(rng.choices("abc", k=rng.randrange(60))).encode()
        by_scan = encoder._merge_short(list(word))
        assert encoder._merge_long(list(word)) == by_scan
        monkeypatch.setattr(bpe, "_SHORT", rng.choice([0, 20, 10**9]))
        assert encoder.encode(word) == by_scan


def test_a_very_long_word() -> None:
    """Not timed: a way that is quadratic would take many minutes."""
    encoder, tokens = encoder_of("a a", "aa aa", "b a", "ba ba")
    for word in (b"a" * 200_000, b"ba" * 100_000):
        ids = encoder.encode(word)
        assert b"".join(tokens[id_] for id_ in ids) == word
        assert len(ids) == 50_000


def test_a_byte_without_a_token_comes_out_as_it_went_in() -> None:
    ids = [-1 - byte for byte in range(256)]
    ids[97] = 0
    assert BytePairEncoder(ids, lambda: MergeRules({(0, 0): 0}, [1])).encode(b"aabaa") == [
        1,
        -99,
        1,
    ]


def test_the_byte_alphabet() -> None:
    assert len(set(BYTE_CHARACTERS)) == 256
    assert all(character.isprintable() and not character.isspace() for character in BYTE_CHARACTERS)
    everything = bytes(range(256))
    assert to_bytes(to_characters(everything)) == everything
    assert to_characters(b" \n\0") == "ĠĊĀ"
    assert to_bytes("日本") == "日本".encode()  # not in the alphabet: plain text
