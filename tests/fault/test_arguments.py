"""Rows 19 and 20: ids, lengths, masks, labels and settings that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt2 import GPT2LMHeadModel
from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError, TokenIdError
from tests.helpers import tiny_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IDS = [[1, 2, 3]]


@pytest.fixture(params=DEVICES)
def model(request: pytest.FixtureRequest) -> GPT2LMHeadModel:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return tiny_model().to(request.param)


def ran(model: GPT2LMHeadModel) -> list[int]:
    """Grows with each block that runs from now on."""
    runs: list[int] = []
    for block in model.transformer.h:
        block.register_forward_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([[1, 97]], TokenIdError, r"input_ids\[0, 1\] is 97; ids must be from 0 to 96"),
        ([[1, -1]], TokenIdError, r"input_ids\[0, 1\] is -1"),
        ([[5] * 33], SequenceLengthError, "33 real tokens.*n_positions = 32"),
        (torch.empty(1, 0, dtype=torch.int64), ArgumentError, "at least one token"),
        ([[1.0, 2.0]], ArgumentTypeError, "input_ids must be int64 or int32, not float32"),
    ],
    ids=["too high", "negative", "too long", "empty", "float"],
)
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_row_19_ids_are_refused_before_the_kernel(
    model: GPT2LMHeadModel, call: str, ids: Any, error: type[Exception], words: str
) -> None:
    runs = ran(model)
    tensor = torch.as_tensor(ids, device=model.device)
    with pytest.raises(error, match=words if call == "forward" else None):
        model(tensor) if call == "forward" else model.generate(tensor, max_new_tokens=2)
    assert not runs
    assert model(torch.tensor(IDS, device=model.device)).logits.isfinite().all()  # still usable


def test_row_20_a_row_that_is_all_padding_is_finite_and_adds_nothing(
    model: GPT2LMHeadModel,
) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]], device=model.device)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]], device=model.device)
    both = model(ids, attention_mask=mask, labels=ids)
    alone = model(ids[:1], labels=ids[:1])
    assert both.logits.isfinite().all()
    assert torch.allclose(both.loss, alone.loss)
    with pytest.raises(ArgumentError, match="row 1 of the prompt is all padding"):
        model.generate(ids, attention_mask=mask)


def test_row_20_labels_that_are_all_ignored_give_loss_0_and_no_gradient(
    model: GPT2LMHeadModel,
) -> None:
    ids = torch.tensor(IDS, device=model.device)
    loss = model(ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.0}, "temperature must be a number above 0, not 0.0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 5, "max_length": 9}, "max_length=9 and max_new_tokens=5"),
        ({"max_new_tokens": 30}, "n_positions = 32"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"do_sample": False, "temperature": 0.5}, "temperature=0.5 has no effect without"),
        ({"min_new_tokens": 9, "max_new_tokens": 5}, "min_new_tokens"),
    ],
    ids=str,
)
def test_row_20_settings_are_refused_before_the_first_step(
    model: GPT2LMHeadModel, settings: dict[str, Any], words: str
) -> None:
    runs = ran(model)
    with pytest.raises(ArgumentError, match=words):
        model.generate(torch.tensor(IDS, device=model.device), **{"do_sample": True, **settings})
    assert not runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attention_mask": torch.tensor([[1, 2, 1]])}, "only 0 .padding. and 1"),
        ({"attention_mask": torch.ones(1, 4)}, r"shape \(1, 4\); expected \(1, 3\)"),
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, "either input_ids or inputs_embeds"),
        ({"labels": torch.tensor([[1, 2]])}, "labels"),
        ({"labels": torch.tensor([[1, 2, 97]])}, "labels"),
        ({"position_ids": torch.tensor([[0, 1, 32]])}, "position_ids"),
        ({"head_mask": torch.ones(3)}, "head_mask"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_row_20_arguments_that_contradict_each_other(
    arguments: dict[str, torch.Tensor], words: str
) -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match=words):
        model(torch.tensor(IDS), **arguments)
