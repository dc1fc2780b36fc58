"""Packing: several short documents in one row, kept apart by ``document_ids``.

A packed row costs no padding, and gives each document the positions, the
attention and the loss that it has alone (see GPT2Model.forward,
``document_ids``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import ArgumentError
from gpt2.fieldchecks import check_whole
from gpt2.training.collate import checked_row, pad_rows


def first_fit(lengths: Iterable[int], room: int) -> list[list[int]]:
    """Which items go together: each into the first bin that still has room for it.

    >>> first_fit([5, 4, 3, 2], room=8)
    [[0, 2], [1, 3]]

    Raises ArgumentError for an item that is larger than a bin.
    """
    bins: list[list[int]] = []
    left: list[int] = []  # room in each bin
    first = 0  # bins before this one are full
    for item, length in enumerate(lengths):
        if length > room:
            raise ArgumentError(
                f"row {item} has {length} tokens, more than block_size = {room}; shorten it, "
                "split it, or raise block_size"
            )
        for chosen in range(first, len(bins)):
            if length <= left[chosen]:
                break
        else:
            chosen = len(bins)
            bins.append([])
            left.append(room)
        bins[chosen].append(item)
        left[chosen] -= length
        while first < len(bins) and not left[first]:
            first += 1
    return bins


def pack(rows: Sequence[Mapping[str, Any]], block_size: int) -> list[dict[str, Tensor]]:
    """Rows of at most ``block_size`` tokens, put together first-fit, each its own document.

    Takes what `pad_rows` takes; gives rows with ``input_ids``, ``labels`` and
    ``document_ids`` (1, 2, … within a row), all (T,). Padding that a row brings
    is left out. Raises as `pad_rows`, and ArgumentError for a row that is
    longer than a block or brings document_ids of its own.
    """
    check_whole(ArgumentError, "block_size", block_size, 2)
    plain = []
    for number, row in enumerate(rows):
        entries = checked_row(row, number)
        for name in ("document_ids", "token_type_ids"):
            if name in entries:
                raise ArgumentError(f"row {number} has {name}; only single documents can be packed")
        real = entries["attention_mask"] != 0
        plain.append({name: entries[name][real] for name in ("input_ids", "labels")})
    packed = []
    for members in first_fit((len(row["input_ids"]) for row in plain), block_size):
        documents = [torch.full_like(plain[m]["input_ids"], i) for i, m in enumerate(members, 1)]
        packed.append({
            "input_ids": torch.cat([plain[m]["input_ids"] for m in members]),
            "labels": torch.cat([plain[m]["labels"] for m in members]),
            "document_ids": torch.cat(documents),
        })  # fmt: skip
    return packed


@dataclass(frozen=True)
class PackingCollator:
    """``collate_fn`` of a DataLoader: its rows packed into as few as first-fit needs.

    Gives input_ids, attention_mask, labels and document_ids, each (R, T) with
    R at most the number of rows and T at most ``block_size``. The loss is that
    of the rows one by one, averaged over their tokens. ``filler`` is the id at
    padding columns; nobody reads it.
    """

    block_size: int
    filler: int = 0
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        check_whole(ArgumentError, "block_size", self.block_size, 2)
        check_whole(ArgumentError, "filler", self.filler, 0)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The rows as one packed batch; see `pack`."""
        return pad_rows(
            pack(rows, self.block_size),
            filler=self.filler,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
