"""Packed rows: what goes together, and that each document fares as it does alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import ArgumentError
from gpt2.training.packing import PackingCollator, first_fit, pack
from tests.helpers import assert_close, tiny_model


@given(st.lists(st.integers(1, 16), max_size=60))
def test_first_fit_puts_each_item_into_the_first_bin_with_room(lengths: list[int]) -> None:
    bins: list[list[int]] = []
    for item, length in enumerate(lengths):  # the definition, word for word
        fitting = [b for b in bins if sum(lengths[i] for i in b) + length <= 16]
        if fitting:
            fitting[0].append(item)
        else:
            bins.append([item])
    assert first_fit(lengths, 16) == bins


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_loss_and_gradients_are_those_of_the_rows_one_by_one(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (9, 4, 7, 12, 3, 2):
        ids = torch.randint(0, 97, (length,), generator=generator)
        labels = ids.clone()
        labels[: length // 3] = -100  # a prompt
        rows.append({"input_ids": ids, "labels": labels})
    batch = PackingCollator(block_size=16)(rows)
    assert batch["input_ids"].shape == (3, 16)
    packed = tiny_model(attn_implementation=backend)
    loss = packed(**batch).loss
    loss.backward()

    alone = tiny_model(attn_implementation=backend)
    terms = sum(int((row["labels"][1:] != -100).sum()) for row in rows)
    total = torch.zeros(())
    for row in rows:
        total = (
            total
            + alone(
                row["input_ids"][None], labels=row["labels"][None], num_items_in_batch=terms
            ).loss
        )
    total.backward()
    assert_close(loss, total)
    for (name, one), other in zip(packed.named_parameters(), alone.parameters(), strict=True):
        assert_close(one.grad, other.grad, what=name)


def test_padding_that_rows_bring_is_left_out() -> None:
    row = {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1]}
    (packed,) = pack([row, {"input_ids": [7]}], 8)
    assert packed["input_ids"].tolist() == [5, 6, 7]
    assert packed["document_ids"].tolist() == [1, 1, 2]


def test_what_cannot_be_packed_is_named() -> None:
    with pytest.raises(ArgumentError, match="row 1 has 9 tokens, more than block_size = 8"):
        pack([{"input_ids": [1]}, {"input_ids": list(range(9))}], 8)
    with pytest.raises(ArgumentError, match="row 0 has document_ids"):
        pack([{"input_ids": [1], "document_ids": [1]}], 8)
    with pytest.raises(ArgumentError, match="row 0 is all padding"):
        pack([{"input_ids": [1], "attention_mask": [0]}, {"input_ids": [1]}], 8)
    with pytest.raises(ArgumentError, match="no rows"):
        PackingCollator(8)([])
    with pytest.raises(ArgumentError, match="block_size must be a whole number"):
        PackingCollator(0)
    with pytest.raises(ArgumentError, match="filler must be a whole number"):
        PackingCollator(8, filler=-1)
