"""Calls: pairs, words, offsets, windows, special text, and arguments that contradict each other."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2 import BatchEncoding, GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError

TEXT = "The fox's red hat, 1987: é☕ <|endoftext|>\n\n she 日本 said."


@pytest.mark.parametrize("prefix", [False, True])
def test_offsets_lead_back_to_the_text(tokenizer: GPT2Tokenizer, prefix: bool) -> None:
    tokenizer.add_prefix_space = prefix
    batch = tokenizer(TEXT, return_offsets_mapping=True)
    end = 0
    for token, (id_, (start, stop)) in enumerate(
        zip(batch.input_ids, batch.offset_mapping, strict=True)
    ):
        piece = tokenizer.token_bytes(id_)
        if piece == b" " and TEXT[start:stop] != " ":
            assert prefix  # the space put before a stretch of text shares its first character
            stop = start
        elif TEXT[start:stop].isascii():
            assert TEXT[start:stop].strip(" ") == piece.decode().strip(" ")
        assert start <= end <= stop  # nothing is left out; a character may be shared
        end = stop
        assert batch.token_to_chars(token) == batch.offset_mapping[token]
    assert all(batch.char_to_token(place) is not None for place in range(len(TEXT)))
    assert end == len(TEXT)
    assert batch.offset_mapping[0][0] == 0


def test_ids_that_share_a_character_share_its_span(tokenizer: GPT2Tokenizer) -> None:
    batch = tokenizer("☕a", return_offsets_mapping=True)
    assert batch["offset_mapping"] == [(0, 1)] * 3 + [(1, 2)]
    assert batch.word_ids() == [0, 0, 0, 1]
    assert batch.char_to_token(0) == 0
    assert batch.char_to_token(1) == 3
    assert batch.word_to_tokens(0) == (0, 3)
    assert batch.word_to_chars(1) == (1, 2)
    assert batch.char_to_word(1) == batch.token_to_word(3) == 1
    assert batch.char_to_token(2) is None
    assert batch.word_to_tokens(2) is None


def test_replaced_surrogates_keep_their_places() -> None:
    replacing = GPT2Tokenizer.train(["the"], 260, surrogates="replace")
    text = "a\ud83d\ude00b<|endoftext|>\udc80c"  # a pair, which is one character, and half a one
    batch = replacing(text, return_offsets_mapping=True)
    spans = [(0, 1)] + [(1, 3)] * 4 + [(3, 4), (4, 17)] + [(17, 18)] * 3 + [(18, 19)]
    assert batch["offset_mapping"] == spans
    assert batch["input_ids"] == replacing.encode("a😀b<|endoftext|>\ufffdc")
    with pytest.raises(ArgumentError, match="lone surrogate"):
        GPT2Tokenizer.train(["the"], 260)("\udc80", return_offsets_mapping=True)


def test_words_are_counted_across_added_tokens(tokenizer: GPT2Tokenizer) -> None:
    batch = tokenizer("the hat<|endoftext|> hen.")
    words = ["the", " hat", "<|endoftext|>", " hen", "."]
    numbers = [n for n, word in enumerate(words) for _ in tokenizer.encode(word)]
    assert batch.word_ids() == numbers
    assert [batch.word_to_chars(n) for n in range(5)] == [
        (0, 3),
        (3, 7),
        (7, 20),
        (20, 24),
        (24, 25),
    ]


def test_entries_of_a_pair(tokenizer: GPT2Tokenizer) -> None:
    tokenizer.add_bos_token = True
    end = tokenizer.bos_token_id
    batch = tokenizer(
        "the",
        "hat",
        return_token_type_ids=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
        return_length=True,
        padding="max_length",
        max_length=9,
    )
    the, hat = (tokenizer.encode(text, add_special_tokens=False) for text in ("the", "hat"))
    size, pad = 2 + len(the) + len(hat), 9 - 2 - len(the) - len(hat)
    assert batch["input_ids"] == [end, *the, end, *hat, *[end] * pad]
    assert batch["token_type_ids"] == [0] * (1 + len(the)) + [1] * (1 + len(hat)) + [0] * pad
    assert batch["attention_mask"] == [1] * size + [0] * pad
    mask = [1] + [0] * len(the) + [1] + [0] * len(hat) + [1] * pad
    assert batch["special_tokens_mask"] == mask
    assert batch["length"] == [9]
    assert batch["offset_mapping"][0] == (0, 0)
    none: list[int | None] = [None]
    assert batch.sequence_ids() == [None, *[0] * len(the), None, *[1] * len(hat), *none * pad]
    assert batch.char_to_token(0, sequence_index=1) == 2 + len(the)
    assert batch.word_to_tokens(0) == (1, 1 + len(the))
    assert batch.word_to_tokens(0, sequence_index=1) == (2 + len(the), size)
    assert batch.token_to_sequence(1) == 0
    assert batch.token_to_chars(0) is None
    assert len(batch[0]) == 9
    assert batch.tokens() == tokenizer.convert_ids_to_tokens(batch["input_ids"])


def test_the_ways_to_give_pairs(tokenizer: GPT2Tokenizer) -> None:
    expected = tokenizer(["the", "a"], ["hat", "fox"])
    assert tokenizer([("the", "hat"), ("a", "fox")]) == expected
    assert tokenizer.batch_encode_plus([("the", "hat"), ("a", "fox")]) == expected
    assert tokenizer("a", "fox")["input_ids"] == expected["input_ids"][1]
    assert tokenizer.encode("a", "fox") == expected["input_ids"][1]
    assert tokenizer.encode_plus("a", "fox") == tokenizer("a", "fox")
    assert list(tokenizer("a", return_attention_mask=None)) == ["input_ids", "attention_mask"]
    with pytest.raises(ArgumentTypeError, match="encode_plus takes one text"):
        tokenizer.encode_plus(["a"])
    with pytest.raises(ArgumentTypeError, match="batch_encode_plus takes a list"):
        tokenizer.batch_encode_plus("a")


def test_words_are_encoded_one_by_one(tokenizer: GPT2Tokenizer) -> None:
    words = ["the", "hat", "", " old hen", "don't"]
    batch = tokenizer(words, is_split_into_words=True, return_offsets_mapping=True)
    parts = [tokenizer(word, return_offsets_mapping=True) for word in words]
    assert batch["input_ids"] == [id_ for part in parts for id_ in part["input_ids"]]
    assert batch["offset_mapping"] == [span for part in parts for span in part["offset_mapping"]]
    numbers = [n for n, part in enumerate(parts) for _ in part["input_ids"]]
    assert batch.word_ids() == numbers
    both = tokenizer([words, ["the"]], [["a"], ["hat"]], is_split_into_words=True)
    assert both.word_ids(0) == [*numbers, *[0] * len(tokenizer.encode("a"))]
    assert tokenizer.encode(words, is_split_into_words=True) == batch["input_ids"]


def test_windows_over_long_texts(tokenizer: GPT2Tokenizer) -> None:
    texts = ["the red hat of the old hen, 1987", "the"]
    batch = tokenizer(
        texts,
        truncation=True,
        max_length=6,
        stride=2,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="np",
    )
    ids = tokenizer.encode(texts[0])
    samples = batch["overflow_to_sample_mapping"].tolist()
    rows = [row for row, sample in zip(batch["input_ids"].tolist(), samples, strict=True)]
    assert samples == [0] * (len(rows) - 1) + [1]
    mask = batch["attention_mask"].tolist()
    joined: list[int] = []
    for row, ones in list(zip(rows, mask, strict=True))[:-1]:
        joined += row[: sum(ones)][2 if joined else 0 :]
    assert joined == ids
    single = tokenizer("the", truncation=True, max_length=6, return_overflowing_tokens=True)
    assert single["overflow_to_sample_mapping"] == [0]
    assert single["input_ids"] == [tokenizer.encode("the")]


def test_tensors_of_every_entry(tokenizer: GPT2Tokenizer) -> None:
    every = {
        "return_token_type_ids": True,
        "return_special_tokens_mask": True,
        "return_offsets_mapping": True,
        "return_length": True,
        "return_overflowing_tokens": True,
    }
    batch = tokenizer(["the hat", "a"], padding=True, return_tensors="pt", **every)
    width = batch["input_ids"].shape[1]
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    assert shapes.pop("offset_mapping") == (2, width, 2)
    assert shapes.pop("length") == shapes.pop("overflow_to_sample_mapping") == (2,)
    assert set(shapes.values()) == {(2, width)}
    assert {value.dtype for value in batch.values()} == {torch.int64}
    empty = tokenizer([], return_tensors="pt", **every)
    assert empty["input_ids"].shape == (0, 0)
    assert empty["length"].shape == (0,)


# ------------------------------------------------------------------------------------ targets


def test_targets_become_labels(tokenizer: GPT2Tokenizer) -> None:
    both = tokenizer("the", text_target="hat", return_tensors="np")
    assert list(both) == ["input_ids", "attention_mask", "labels"]
    assert both["labels"].tolist() == [tokenizer.encode("hat")]
    batch = tokenizer(["the", "a"], text_target=["hat", "hen"], padding=True)
    assert batch["labels"] == tokenizer(["hat", "hen"], padding=True)["input_ids"]
    assert tokenizer(text_target="hat") == tokenizer("hat")
    pair = tokenizer("the", text_target="hat", text_pair_target="hen")
    assert pair["labels"] == tokenizer.encode("hat", "hen")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "^text must be a string or a list of strings, not NoneType"),
        ({"text_pair": "a"}, "^text must be"),
        ({"text_pair_target": "a"}, "^text_target must be a string or a list"),
        ({"text": "a", "text_target": 3}, "^text_target must be a string or a list"),
        ({"text": "a", "text_target": ["a", 3]}, r"^text_target\[1\] must be a string, not int"),
        (
            {"text_target": ["a"], "text_pair_target": ["a", "b"]},
            "^text_target has 1 entries, but text_pair_target has 2",
        ),
        (
            {"text_target": ["a"], "text_pair_target": "b"},
            "^text_pair_target must be a list of 1 texts, as text_target is a list",
        ),
        ({"text_target": ["a"], "text_pair_target": [2]}, r"^text_pair_target\[0\] must be"),
    ],
)
def test_messages_name_the_text_that_is_wrong(
    tokenizer: GPT2Tokenizer, texts: dict[str, Any], message: str
) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        tokenizer(**texts)


# ------------------------------------------------------------------------------- special text


def test_special_text_is_a_token_plain_or_an_error(tokenizer: GPT2Tokenizer) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<role>"]})
    tokenizer.add_tokens(["<word>"])
    text = "the<role> <|endoftext|><word>"
    special = set(tokenizer.all_special_ids)
    word = tokenizer.convert_tokens_to_ids("<word>")
    assert tokenizer(text) == tokenizer(text, special_text="allow")
    assert len(special & set(tokenizer.encode(text))) == 2
    plain = tokenizer(text, special_text="plain", return_offsets_mapping=True)
    assert not special & set(plain["input_ids"])
    assert word in plain["input_ids"]  # an ordinary token ends no text and changes no role
    assert tokenizer.decode(plain["input_ids"]) == text
    assert len(plain["offset_mapping"]) == len(plain["input_ids"])
    with pytest.raises(ArgumentError, match=r"special token '<role>' at character 3; .*plain"):
        tokenizer(text, special_text="error")
    with pytest.raises(ArgumentError, match="'<role>' at character 0"):
        tokenizer(["the", "<role>"], is_split_into_words=True, special_text="error")
    with pytest.raises(ArgumentError, match="at character 1"):
        tokenizer("a", "b<role>", special_text="error")
    fine = "the <word> <|endoftext"
    assert tokenizer(fine, special_text="error") == tokenizer(fine)
    with pytest.raises(ArgumentError, match='must be "allow", "plain" or "error", not False'):
        tokenizer(text, special_text=False)


def test_the_policy_for_special_text_is_a_setting_too(
    tokenizer: GPT2Tokenizer, tmp_path: Path
) -> None:
    text = "the<|endoftext|>"
    plain = tokenizer.encode(text, special_text="plain")
    assert tokenizer.encode(text, split_special_tokens=True) == plain
    tokenizer.save_pretrained(tmp_path)
    for setting in ({"special_text": "plain"}, {"split_special_tokens": True}):
        setup: dict[str, Any] = setting
        untrusting = GPT2Tokenizer.from_pretrained(tmp_path, **setup)
        assert untrusting.special_text == "plain"
        untrusting.save_pretrained(tmp_path / "plain")  # the setting survives
        config = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
        assert config["split_special_tokens"] is True
        restored = pickle.loads(pickle.dumps(untrusting))
        for one in (untrusting, restored, GPT2Tokenizer.from_pretrained(tmp_path / "plain")):
            assert one.encode(text) == one(text)["input_ids"] == plain
            assert one.tokenize(text) == one.convert_ids_to_tokens(plain)
            assert one.encode_batch([text]) == [plain]
            assert one.encode_to_array([text], append_eos=False).tolist() == plain
            assert one.encode(text, special_text="allow") == tokenizer.encode(text)
            assert one.encode(text, split_special_tokens=False) == tokenizer.encode(text)
    reloaded = GPT2Tokenizer.from_pretrained(tmp_path / "plain", special_text="error")
    with pytest.raises(ArgumentError, match="special token"):
        reloaded.encode(text)
    reloaded.special_text = "none"  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=r"special_text must be .* not 'none'"):
        reloaded.encode("the")


def test_the_two_names_of_the_policy_must_agree(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    for text, split in (("allow", True), ("error", True), ("plain", False)):
        with pytest.raises(ArgumentError, match=f"'{text}' and split.*={split} contradict"):
            tokenizer("a", special_text=text, split_special_tokens=split)  # type: ignore[arg-type]
    assert tokenizer("a", special_text="error", split_special_tokens=False) == tokenizer("a")
    with pytest.raises(ArgumentError, match="split_special_tokens must be True or False, not 1"):
        tokenizer("a", split_special_tokens=1)  # type: ignore[arg-type]


def test_the_tokenizers_own_special_tokens_are_put_around_untrusted_text(
    tokenizer: GPT2Tokenizer,
) -> None:
    tokenizer.add_bos_token = True
    for policy in ("plain", "error"):
        assert tokenizer.encode("the", special_text=policy)[0] == tokenizer.bos_token_id


# ------------------------------------------------------------------------- what is remembered


def test_look_ups_are_those_of_the_call(tokenizer: GPT2Tokenizer) -> None:
    batch = tokenizer("the <new> hat")
    expected = tokenizer("the <new> hat", return_offsets_mapping=True)
    tokenizer.add_tokens(["<new>"])
    tokenizer.add_prefix_space = True
    assert batch[0].offsets == expected["offset_mapping"]
    assert batch[0].ids == batch["input_ids"]


def test_tensors_can_be_made_later(tokenizer: GPT2Tokenizer) -> None:
    batch = tokenizer(["the hat", "a fox"], padding=True, return_offsets_mapping=True)
    expected = tokenizer(
        ["the hat", "a fox"], padding=True, return_offsets_mapping=True, return_tensors="pt"
    )
    assert batch.convert_to_tensors("pt") is batch
    for name in expected:
        assert torch.equal(batch[name], expected[name])
    with pytest.raises(ArgumentError, match="input_ids cannot be one tensor"):
        tokenizer(["the", "the hat"]).convert_to_tensors("np")


def test_the_number_of_texts_in_a_row(tokenizer: GPT2Tokenizer) -> None:
    assert tokenizer("the").n_sequences == 1
    assert tokenizer(["the", "a"], ["hat", "fox"]).n_sequences == 2
    assert BatchEncoding({"input_ids": [[1]]}).n_sequences is None


def test_look_ups_survive_a_pickle(tokenizer: GPT2Tokenizer) -> None:
    batch = tokenizer(["the hat", "a fox"], padding=True)
    twin = pickle.loads(pickle.dumps(batch))
    assert twin == batch
    assert twin.encodings == batch.encodings
    assert twin.word_ids(1) == batch.word_ids(1)
    assert batch.is_fast
    assert batch[0:2] == [batch[0], batch[1]]


def test_a_batch_without_texts_has_no_look_ups() -> None:
    batch = BatchEncoding({"input_ids": [[1], [2]]})
    assert not batch.is_fast
    assert batch.encodings is None
    assert batch[1:] == {"input_ids": [[2]]}
    for ask in (batch.word_ids, batch.tokens, lambda: batch[0], lambda: batch.char_to_token(0)):
        with pytest.raises(ArgumentError, match="was not made from texts"):
            ask()


def test_rows_and_tokens_that_are_not_there(tokenizer: GPT2Tokenizer) -> None:
    batch = tokenizer("the")
    with pytest.raises(ArgumentError, match="batch_index=1: the batch has 1 rows"):
        batch.word_ids(1)
    with pytest.raises(ArgumentError, match="token_index=99: the row has"):
        batch.token_to_chars(99)


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 2, "truncation": True, "max_length": 9}, "stride=2 has no effect without .*ov"),
        ({"stride": 2, "return_overflowing_tokens": True}, "stride=2 has no effect without trunc"),
        (
            {
                "stride": 9,
                "truncation": True,
                "max_length": 9,
                "return_overflowing_tokens": True,
            },
            "stride=9 must be less than max_length=9",
        ),
        ({"stride": -1}, "stride must be an integer from 0 up, not -1"),
        ({"truncation": "only_second", "max_length": 9}, "only_second.* needs a text_pair"),
        (
            {"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 8},
            "max_length=9 is no multiple of pad_to_multiple_of=8",
        ),
        ({"truncation": "only_first"}, "truncation='only_first' needs a length"),
    ],
)
def test_arguments_that_contradict_each_other(
    tokenizer: GPT2Tokenizer, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        tokenizer("the", **arguments)


@pytest.mark.parametrize(
    ("texts", "split", "message"),
    [
        (("a", ["b"]), False, "text_pair must be a string, not list"),
        ((["a"], "b"), False, "text_pair must be a list of 1 texts, as text is a list, not str"),
        ((["a"], ["b", "c"]), False, "text has 1 entries, but text_pair has 2"),
        (([("a", 1)],), False, r"text\[0\]\[1\] must be a string, not int"),
        (([("a", "b", "c")],), False, r"text\[0\] must be a string, not tuple"),
        (([["a", "b"]],), False, r"not list: .*add is_split_into_words=True"),
        ((["a"], [3]), False, r"text_pair\[0\] must be a string, not int"),
        (("a b",), True, "text must be a list of words or a list of such lists, not str"),
        ((["a", 3],), True, r"text\[1\] must be a string, as is_split_into_words=True says"),
        (([["a"], "b"],), True, r"text\[1\] must be a list of words, not str"),
        (([["a"], [None]],), True, r"text\[1\]\[0\] must be a string"),
        ((["a"], "b"), True, "text_pair must be a list of words, not str"),
    ],
)
def test_texts_that_do_not_fit(
    tokenizer: GPT2Tokenizer, texts: tuple[Any, ...], split: bool, message: str
) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        tokenizer(*texts, is_split_into_words=split)
