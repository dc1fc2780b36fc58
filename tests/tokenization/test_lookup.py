"""Tokens, ids, roles; added tokens in text."""

from __future__ import annotations

from typing import Any

import pytest

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.tokenization.added import AddedToken, AddedTokens


def test_vocabulary(tokenizer: GPT2Tokenizer) -> None:
    vocab = tokenizer.get_vocab()
    assert len(vocab) == len(tokenizer) == tokenizer.vocab_size == 300
    assert sorted(vocab.values()) == list(range(300))
    assert vocab["<|endoftext|>"] == 0
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "!"]) == [0, 1]
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<|endoftext|>", "!"]
    assert tokenizer.convert_ids_to_tokens(1) == "!"
    text = "the fox's hat\n"
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(text)) == text
    pieces = [tokenizer.token_bytes(id_) for id_ in tokenizer.encode(text)]
    assert b"".join(pieces) == text.encode()


def test_other_documented_names(tokenizer: GPT2Tokenizer) -> None:
    token = AddedToken("<x>", lstrip=True)
    tokenizer.add_tokens([token])
    assert tokenizer.vocab == tokenizer.get_vocab()
    assert tokenizer.added_tokens_encoder == {"<|endoftext|>": 0, "<x>": 300}
    assert tokenizer.added_tokens_decoder[300] == token
    tokenizer.model_max_length = 10
    assert (tokenizer.max_len_single_sentence, tokenizer.max_len_sentences_pair) == (10, 10)
    tokenizer.add_bos_token = True
    assert (tokenizer.max_len_single_sentence, tokenizer.max_len_sentences_pair) == (9, 8)


def test_unknown_tokens(tokenizer: GPT2Tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids("nonesuch") == tokenizer.unk_token_id == 0
    tokenizer.unk_token = None
    with pytest.raises(ArgumentError, match="no token 'nonesuch', and there is no unk_token"):
        tokenizer.convert_tokens_to_ids("nonesuch")


def test_bytes_without_a_token_become_the_unknown_one() -> None:
    vocab = {"l": 0, "o": 1, "Ġ": 2, "lo": 3, "<unk>": 4}
    roles = {"bos_token": None, "eos_token": None}
    tokenizer = GPT2Tokenizer(vocab, ["l o"], unk_token="<unk>", **roles)  # type: ignore[arg-type]
    assert tokenizer.encode("lo wlo") == [3, 2, 4, 3]
    silent = GPT2Tokenizer(vocab, ["l o"], unk_token=None, **roles)  # type: ignore[arg-type]
    assert silent.encode("lo lo") == [3, 2, 3]
    with pytest.raises(ArgumentError, match="no token for the byte 0x77 of the text"):
        silent.encode("low")


# ----------------------------------------------------------------------------------- roles


def test_a_role_takes_a_known_token(tokenizer: GPT2Tokenizer) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == 0
    tokenizer.pad_token = None
    assert tokenizer.pad_token_id is None
    tokenizer.pad_token_id = 1
    assert tokenizer.pad_token == "!"
    assert tokenizer.special_tokens_map["pad_token"] == "!"
    with pytest.raises(ArgumentError, match=r"pad_token = '<pad>'.*add_special_tokens"):
        tokenizer.pad_token = "<pad>"
    with pytest.raises(ArgumentTypeError, match="a token must be text"):
        tokenizer.pad_token = 5  # type: ignore[assignment]
    assert tokenizer.pad_token == "!"


def test_new_special_tokens_work_at_once(tokenizer: GPT2Tokenizer) -> None:
    before = tokenizer.encode("the<pad>hat")
    new = {"additional_special_tokens": ["<a>", "<b>"], "pad_token": "<pad>"}
    assert tokenizer.add_special_tokens(new) == 3
    assert (tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<a>")) == (300, 301)
    assert (len(tokenizer), tokenizer.vocab_size) == (303, 300)
    assert tokenizer.encode("the<pad>hat") != before
    assert tokenizer.encode("<b><pad>") == [302, 300]
    assert tokenizer.decode([302, 300]) == "<b><pad>"
    assert tokenizer.add_special_tokens(new) == 0
    assert tokenizer.all_special_tokens == ["<|endoftext|>", "<pad>", "<a>", "<b>"]
    assert tokenizer.all_special_ids == [0, 300, 301, 302]
    assert tokenizer.additional_special_tokens_ids == [301, 302]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<c>"]})
    assert tokenizer.additional_special_tokens == ["<c>"]
    keep: dict[str, Any] = {"replace_additional_special_tokens": False}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<d>"]}, **keep)
    assert tokenizer.additional_special_tokens == ["<c>", "<d>"]
    assert tokenizer.get_added_vocab()["<d>"] == 304


def test_added_tokens_are_kept_whole_longest_first(tokenizer: GPT2Tokenizer) -> None:
    assert tokenizer.decode([1]) == "!"
    assert tokenizer.add_tokens(["<x>", "<x><y>", "the hat"]) == 3
    assert tokenizer.decode([300, 302]) == "<x>the hat"
    assert tokenizer.encode("<x><y><x>the hat") == [301, 300, 302]
    assert tokenizer.add_tokens("é日") == 1
    assert tokenizer.decode(tokenizer.encode("aé日b")) == "aé日b"  # not through the byte alphabet
    assert tokenizer.add_tokens([AddedToken("the hat")]) == 0


def test_a_token_of_the_vocabulary_can_be_made_whole(tokenizer: GPT2Tokenizer) -> None:
    known = tokenizer.convert_tokens_to_ids("he")
    assert tokenizer.add_tokens("he") == 0
    assert known in tokenizer.encode("the")
    assert tokenizer.decode(tokenizer.encode("the hen")) == "the hen"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.add_special_tokens({"pad_tokn": "<p>"}), ArgumentError, "mean 'pad_token'"),
        (lambda t: t.add_special_tokens({"zzz": "<p>"}), ArgumentError, "the roles are bos_token"),
        (lambda t: t.add_special_tokens({"pad_token": None}), ArgumentTypeError, "not None"),
        (lambda t: t.add_tokens(["ok", ""]), ArgumentError, "must not be empty"),
        (lambda t: t.add_tokens([3]), ArgumentTypeError, "must be text or an AddedToken, not 3"),
    ],
)
def test_bad_tokens_change_nothing(
    tokenizer: GPT2Tokenizer, call: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        call(tokenizer)
    assert len(tokenizer) == 300
    assert "<p>" not in tokenizer.all_special_tokens


# --------------------------------------------------------------------- finding added tokens


def split(text: str, *tokens: AddedToken) -> list[str | int]:
    return AddedTokens(dict(enumerate(tokens))).split(text)


@pytest.mark.parametrize(
    ("flags", "text", "expected"),
    [
        ({}, "a<m> b", ["a", 0, " b"]),
        ({}, "", []),
        ({}, "<m><m>", [0, 0]),
        ({"lstrip": True}, "a \n<m> b", ["a", 0, " b"]),
        ({"rstrip": True}, "a <m> \u3000b", ["a ", 0, "b"]),
        ({"lstrip": True, "rstrip": True}, " <m> <m> ", [0, 0]),
        ({"single_word": True}, "a<m> <m>b <m>", ["a<m> <m>b ", 0]),
        ({"single_word": True}, "<m>.<m>_", [0, ".<m>_"]),
        ({"single_word": True}, "<m>\u0301<m>", ["<m>\u0301<m>"]),
    ],
)
def test_flags(flags: dict[str, bool], text: str, expected: list[str | int]) -> None:
    assert split(text, AddedToken("<m>", **flags)) == expected


def test_unmarked_tokens_win_over_normalized_ones() -> None:
    first = AddedToken("ab", normalized=True)
    second = AddedToken("bc", normalized=False)
    assert split("abc", first, second) == ["a", 1]
    assert split("abab", first, second) == [0, 0]


def test_tokens_are_text_not_patterns() -> None:
    assert split("a.b*c", AddedToken(".b*")) == ["a", 0, "c"]


def test_special_tokens_come_with_their_roles(tokenizer: GPT2Tokenizer) -> None:
    with pytest.raises(ArgumentTypeError, match=r"must map roles to tokens.*it is a list"):
        tokenizer.add_special_tokens(["<pad>"])  # type: ignore[arg-type]
