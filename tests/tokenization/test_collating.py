"""pad, prepare_for_model and the methods that tell special tokens by ids."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError, TokenIdError


@pytest.fixture
def rows(tokenizer: GPT2Tokenizer) -> list[Any]:
    return [tokenizer(text, return_special_tokens_mask=True) for text in ("the red hat", "a")]


@pytest.mark.parametrize("side", ["left", "right"])
def test_pad_equals_padding_in_the_call(tokenizer: GPT2Tokenizer, side: str) -> None:
    texts = ["the red hat", "a", ""]
    for arguments in (
        {"padding": True},
        {"padding": "max_length", "max_length": 7},
        {"padding": True, "pad_to_multiple_of": 8},
        {"padding": False},
    ):
        more = {"return_token_type_ids": True, "return_special_tokens_mask": True}
        expected = tokenizer(texts, padding_side=side, **more, **arguments)
        for given in (tokenizer(texts, **more), [tokenizer(text, **more) for text in texts]):
            assert tokenizer.pad(given, padding_side=side, **arguments) == expected
    tokenizer.padding_side = side
    tensors = tokenizer.pad(tokenizer(texts), return_tensors="pt")
    assert torch.equal(
        tensors["input_ids"], tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    )


def test_pad_leaves_its_inputs_and_other_entries_alone(
    tokenizer: GPT2Tokenizer, rows: list[Any]
) -> None:
    before = [dict(row) for row in rows]
    labelled = [{**row, "label": 0.5 * n} for n, row in enumerate(rows)]
    batch = tokenizer.pad(labelled, return_tensors="pt")
    assert batch["label"].tolist() == [0.0, 0.5]
    assert batch["label"].dtype == torch.float32
    assert batch["special_tokens_mask"][1].tolist()[-1] == 1
    assert [dict(row) for row in rows] == before


def test_pad_gives_what_the_ids_came_in(tokenizer: GPT2Tokenizer) -> None:
    ids = [tokenizer.encode(text) for text in ("the red hat", "a")]
    tensors = tokenizer.pad([{"input_ids": torch.tensor(row)} for row in ids])
    assert isinstance(tensors["input_ids"], torch.Tensor)
    arrays = tokenizer.pad([{"input_ids": numpy.array(row)} for row in ids])
    assert isinstance(arrays["attention_mask"], numpy.ndarray)
    assert arrays["input_ids"].tolist() == tensors["input_ids"].tolist()
    one = tokenizer.pad({"input_ids": ids[1]}, padding="max_length", max_length=4)
    assert one["attention_mask"] == [1] * len(ids[1]) + [0] * (4 - len(ids[1]))
    assert tokenizer.pad({"input_ids": torch.tensor(ids[0])})["input_ids"].shape == (len(ids[0]),)
    without = tokenizer.pad(
        [{"input_ids": ids[0], "attention_mask": [1] * len(ids[0])}], return_attention_mask=False
    )
    assert list(without) == ["input_ids"]


@pytest.mark.parametrize(
    ("given", "arguments", "error", "message"),
    [
        ("the", {}, ArgumentTypeError, "encoded_inputs must be what the tokenizer returns, .* str"),
        ([[1, 2]], {}, ArgumentTypeError, "or a list of it, not list"),
        ({"labels": [1]}, {}, ArgumentError, "pad needs input_ids, but encoded_inputs has labels"),
        ([], {}, ArgumentError, "pad needs input_ids, but encoded_inputs has nothing"),
        ({"input_ids": 3}, {}, ArgumentTypeError, "input_ids must be a list of ids, not int"),
        (
            [{"input_ids": [1]}, {"input_ids": [1], "labels": [2]}],
            {},
            ArgumentError,
            r"encoded_inputs\[1\] and encoded_inputs\[0\] differ: only one has 'labels'",
        ),
        (
            [{"input_ids": [1], "attention_mask": [1, 1]}],
            {},
            ArgumentError,
            r"attention_mask has rows of the lengths \[2\], but input_ids of \[1\]",
        ),
        (
            [{"input_ids": [1], "labels": [1]}, {"input_ids": [1, 2], "labels": [1, 2]}],
            {"return_tensors": "pt"},
            ArgumentError,
            "labels cannot be one tensor: its rows are from 1 to 2",
        ),
        (
            [{"input_ids": [1], "text": "a"}],
            {"return_tensors": "np"},
            ArgumentError,
            "text cannot be a tensor: it does not hold numbers",
        ),
        ([{"input_ids": [1]}], {"max_length": 4}, ArgumentError, "max_length=4 has no effect"),
        ([{"input_ids": [1]}], {"lenght": 4}, ArgumentTypeError, "pad has no argument 'lenght'"),
    ],
)
def test_what_pad_refuses(
    tokenizer: GPT2Tokenizer, given: Any, arguments: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        tokenizer.pad(given, **arguments)


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (True, True)])
def test_ids_are_prepared_as_a_call_prepares_text(
    tokenizer: GPT2Tokenizer, bos: bool, eos: bool
) -> None:
    tokenizer.add_bos_token, tokenizer.add_eos_token = bos, eos
    first, second = "the red hat", "an old hen"
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (first, second)]
    every = {"return_token_type_ids": True, "return_special_tokens_mask": True}
    for count in (1, 2):
        texts, of_texts = (first, second)[:count], ids[:count]
        called = tokenizer(*texts, **every)
        assert tokenizer.prepare_for_model(*of_texts, **every) == called
        assert tokenizer.build_inputs_with_special_tokens(*of_texts) == called["input_ids"]
        types = tokenizer.create_token_type_ids_from_sequences(*of_texts)
        assert types == called["token_type_ids"]
        mask = tokenizer.get_special_tokens_mask(*of_texts)
        assert mask == called["special_tokens_mask"]
        assert tokenizer.num_special_tokens_to_add(count == 2) == sum(mask) == count * (bos + eos)
    cut = {"truncation": "only_second", "max_length": len(ids[0]) + 2 * (bos + eos) + 2}
    assert tokenizer.prepare_for_model(*ids, **cut) == tokenizer(first, second, **cut)
    tensors = tokenizer.prepare_for_model(ids[0], return_tensors="pt")
    assert tensors["input_ids"].shape == (1, len(ids[0]) + bos + eos)


def test_special_ids_of_a_finished_row(tokenizer: GPT2Tokenizer) -> None:
    ids = tokenizer.encode("the<|endoftext|>hat")
    mask = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert mask == [int(id_ == tokenizer.eos_token_id) for id_ in ids]
    assert sum(mask) == 1
    with pytest.raises(ArgumentError, match=r"already_has_special_tokens=True .* token_ids_1"):
        tokenizer.get_special_tokens_mask(ids, ids, already_has_special_tokens=True)
    with pytest.raises(TokenIdError, match="token id 300"):
        tokenizer.build_inputs_with_special_tokens([300])
    with pytest.raises(ArgumentTypeError, match="no argument 'strid'; did you mean 'stride'"):
        tokenizer.prepare_for_model(ids, strid=2)
    with pytest.raises(ArgumentTypeError, match="pair must be True or False, not 2"):
        tokenizer.num_special_tokens_to_add(2)
