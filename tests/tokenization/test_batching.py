"""BatchEncoding: a dictionary, attributes, a pickle, tensors that move."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from gpt2 import BatchEncoding, GPT2Tokenizer
from gpt2.errors import ArgumentError


@pytest.fixture
def encoding(tokenizer: GPT2Tokenizer) -> BatchEncoding:
    return tokenizer(["the hat", "the"], padding=True, return_tensors="pt")


def test_entries_are_attributes(encoding: BatchEncoding) -> None:
    assert isinstance(encoding, Mapping)
    assert encoding.input_ids is encoding["input_ids"]
    assert list(encoding) == ["input_ids", "attention_mask"]
    assert not hasattr(encoding, "token_type_ids")
    with pytest.raises(AttributeError, match="no attribute or entry 'labels'"):
        _ = encoding.labels
    encoding["labels"] = encoding["input_ids"]
    assert encoding.labels is encoding.input_ids

    def forward(**arguments: Any) -> set[str]:
        return set(arguments)

    assert forward(**encoding) == {"input_ids", "attention_mask", "labels"}


def test_it_pickles_and_copies(encoding: BatchEncoding) -> None:
    for twin in (pickle.loads(pickle.dumps(encoding)), copy.deepcopy(encoding)):
        assert type(twin) is BatchEncoding
        assert torch.equal(twin.input_ids, encoding.input_ids)


def test_tensors_move(encoding: BatchEncoding) -> None:
    moved = encoding.to("meta")
    assert moved is encoding
    assert {value.device.type for value in moved.values()} == {"meta"}


def test_lists_do_not_move(tokenizer: GPT2Tokenizer) -> None:
    with pytest.raises(ArgumentError, match=r"'input_ids' is a list, .*return_tensors"):
        tokenizer("the").to("cpu")


def test_conversion_may_add_the_axis_of_rows(tokenizer: GPT2Tokenizer) -> None:
    ids = tokenizer.encode("the hat")
    batch = tokenizer("the hat").convert_to_tensors("pt", prepend_batch_axis=True)
    assert batch.input_ids.tolist() == [ids]
    assert tokenizer("the hat").convert_to_tensors("np").input_ids.tolist() == ids
    assert tokenizer("the hat").convert_to_tensors().input_ids == ids


def test_places_before_the_first(tokenizer: GPT2Tokenizer) -> None:
    batch = tokenizer("the hat")
    last = len(batch.input_ids) - 1
    assert batch.token_to_chars(-1) == batch.token_to_chars(last)  # from the end, as documented
    row = batch[0]
    assert row.token_to_chars(-1) == batch.token_to_chars(last)
    with pytest.raises(ArgumentError, match="token_index=99"):
        row.token_to_chars(99)
    for look_up in ("char_to_token", "char_to_word"):
        with pytest.raises(ArgumentError, match="char_index must be at least 0, not -1"):
            getattr(batch, look_up)(-1)
    for look_up in ("word_to_tokens", "word_to_chars"):
        with pytest.raises(ArgumentError, match="word_index must be at least 0, not -1"):
            getattr(batch, look_up)(-1)
