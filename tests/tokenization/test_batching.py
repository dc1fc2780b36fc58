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
