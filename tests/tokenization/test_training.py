"""Training: what is merged, in which order, and what cannot be asked for."""

from __future__ import annotations

import io
import sys

import pytest

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.progress import Progress
from gpt2.tokenization.added import AddedToken


def merges_of(texts: list[str], vocab_size: int, **arguments: object) -> list[str]:
    tokenizer = GPT2Tokenizer.train(texts, vocab_size, show_progress=False, **arguments)  # type: ignore[arg-type]
    return tokenizer.convert_ids_to_tokens(range(257, len(tokenizer)))


def test_ids_are_specials_then_bytes_then_merges() -> None:
    tokenizer = GPT2Tokenizer.train(["abab"], 262, special_tokens=["<|endoftext|>", "<|pad|>"])
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[:3] == ["<|endoftext|>", "<|pad|>", "!"]
    assert tokens[2:258] == sorted(tokens[2:258])
    assert tokens[258:] == ["ab"]  # "abab" would be met once, fewer than min_frequency
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
    assert tokenizer.pad_token is None
    assert tokenizer.additional_special_tokens == ["<|pad|>"]


def test_the_most_frequent_pair_is_merged_first() -> None:
    assert merges_of(["xy xy xy xy", "zw zw"], 400) == ["xy", "Ġxy", "zw"]


def test_of_equally_frequent_pairs_the_lower_ids_are_merged_first() -> None:
    assert merges_of(["zw", "ab", "cd"] * 2, 400) == ["ab", "cd", "zw"]


# "aa aa a": of its two pairs, (aa, a) has the lower ids
def test_runs_of_one_character_are_merged_from_the_left() -> None:
    assert merges_of(["aaaaa"], 400, min_frequency=1) == ["aa", "aaa", "aaaaa"]


def test_stops_at_the_size_and_at_the_frequency() -> None:
    text = "the cat and the dog and the bird"
    assert len(GPT2Tokenizer.train([text], 260)) == 260
    assert merges_of([text], 400, min_frequency=4) == []
    assert merges_of([text], 400, min_frequency=3)[:2] == ["he", "the"]


def test_texts_may_be_a_generator_and_are_cut_one_by_one() -> None:
    assert merges_of(["ab", "ab"], 400) == ["ab"]
    tokenizer = GPT2Tokenizer.train((text for text in ["ab", "ab"]), 400)
    assert len(tokenizer) == 258


def test_special_text_in_the_corpus_is_plain_text() -> None:
    assert merges_of(["<|endoftext|>"] * 2, 258) == ["<|"]


def test_a_merge_that_spells_a_special_token_takes_its_id() -> None:
    tokenizer = GPT2Tokenizer.train(["abc", "abc"], 400, special_tokens=["ab"])
    assert tokenizer.convert_ids_to_tokens([0, 257]) == ["ab", "abc"]
    assert len(tokenizer) == 258


def test_prefix_space_is_trained_on_and_kept() -> None:
    tokenizer = GPT2Tokenizer.train(["hat", "hat"], 400, add_prefix_space=True)
    assert tokenizer.tokenize("hat") == ["Ġhat"]


def test_without_an_end_token_there_is_none() -> None:
    tokenizer = GPT2Tokenizer.train(["ab"], 300, special_tokens=[])
    assert tokenizer.eos_token is None
    assert len(tokenizer) == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 200}, "vocab_size=200 is too small: 1 special tokens and the 256 bytes"),
        ({"vocab_size": 300.0}, "vocab_size must be an integer from 0 up, not 300.0"),
        ({"min_frequency": -1}, "min_frequency must be an integer from 0 up, not -1"),
        ({"special_tokens": ["x"]}, "special_tokens has 'x'"),
        ({"special_tokens": ["<a>", "<a>"]}, "names a token twice"),
        ({"texts": "one text"}, "texts must be an iterable of texts, not str"),
        ({"texts": ["a", 3]}, r"texts\[1\] must be a string, not int"),
        ({"texts": ["a\ud800"]}, "lone surrogate"),
        ({"min_frequncy": 3}, "no argument 'min_frequncy'; did you mean 'min_frequency'"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    given = {"texts": ["ab ab"], "vocab_size": 300} | arguments
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        GPT2Tokenizer.train(**given)  # type: ignore[arg-type]


def test_progress_is_told_on_stderr_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    GPT2Tokenizer.train(["ab ab"], 258)
    assert stderr.getvalue() == ""
    monkeypatch.setattr(Progress, "SILENT", 0.0)
    GPT2Tokenizer.train(["ab ab"], 258)
    assert "258/258 tokens" in stderr.getvalue()
    before = stderr.getvalue()
    GPT2Tokenizer.train(["ab ab"], 258, show_progress=False)
    assert stderr.getvalue() == before


def test_a_new_vocabulary_keeps_special_tokens_and_settings() -> None:
    old = GPT2Tokenizer.train(
        ["xy xy"],
        300,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        pad_token="<|pad|>",
        add_prefix_space=True,
        padding_side="left",
        model_max_length=64,
        surrogates="replace",
    )
    old.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    old.add_tokens(["plain"])
    old.add_tokens(["<|turn|>"], special_tokens=True)
    new = old.train_new_from_iterator(
        iter([["zw zw", "zw"], ["ab ab"]]),
        400,
        new_special_tokens=["<|new|>"],
        special_tokens_map={"<|endoftext|>": "<|end|>"},
        show_progress=False,
    )
    contents = ["<|end|>", "<|pad|>", "<mask>", "<|turn|>", "<|new|>"]
    assert new.convert_ids_to_tokens(range(5)) == contents
    assert new.get_added_vocab() == {content: id_ for id_, content in enumerate(contents)}
    assert new.eos_token == new.bos_token == new.unk_token == "<|end|>"
    assert (new.pad_token, new.mask_token) == ("<|pad|>", "<mask>")
    assert new.additional_special_tokens == ["<|pad|>", "<|new|>"]
    assert new.encode("\ud800 <mask>") == [*new.encode("\ufffd"), 2]  # lstrip and surrogates
    assert (new.padding_side, new.model_max_length, new.add_prefix_space) == ("left", 64, True)
    assert new.tokenize("zw")[0] == "Ġzw"
    assert old.tokenize("xy") == ["Ġxy"]  # as it was


def test_a_new_vocabulary_is_learnt_without_a_least_frequency() -> None:
    old = GPT2Tokenizer.train(["xy"], 256, special_tokens=[])
    assert len(old.train_new_from_iterator(["abc"], 400)) == 258
    assert len(old.train_new_from_iterator(["abc"], 400, min_frequency=2)) == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_iterator": "one text"}, "text_iterator must be an iterable of texts, .* not str"),
        ({"text_iterator": [["a", 3]]}, r"texts\[1\] must be a string, not int"),
        ({"text_iterator": [3]}, r"texts\[0\] must be a string, not int"),
        ({"vocab_size": 3}, "vocab_size=3 is too small"),
        ({"special_tokens_map": {"<s>": "<t>"}}, "special_tokens_map renames '<s>', which is no"),
    ],
)
def test_bad_arguments_for_a_new_vocabulary(arguments: dict[str, object], message: str) -> None:
    given = {"text_iterator": ["ab ab"], "vocab_size": 300} | arguments
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        GPT2Tokenizer.train(["ab"], 257).train_new_from_iterator(**given)  # type: ignore[arg-type]


def test_progress_counts_texts_where_their_number_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(Progress, "SILENT", 0.0)
    GPT2Tokenizer.train(["ab"], 257).train_new_from_iterator(["ab", "cd"], 257, length=2)
    assert "1/2 texts read" in stderr.getvalue()
