"""What the models are given: prompts, paddings and caches, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity.reference import SIZES, random_ids, random_states

BATCH, LENGTH, ENCODER_LENGTH, D = 3, 9, 5, SIZES["n_embd"]

# 1 at real tokens; every kind has a row without padding
MASKS = {
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9, [0, 0, 0, 0, 0, 0, 0, 1, 1]],
    "right": [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 9, [1, 1, 0, 0, 0, 0, 0, 0, 0]],
    "mixed": [[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9, [1, 1, 1, 1, 1, 0, 0, 0, 0]],
    "holes": [[1, 1, 0, 1, 1, 0, 0, 1, 1], [1] * 9, [0, 1, 0, 1, 1, 1, 0, 1, 0]],
}


@dataclass(frozen=True)
class Case:
    """One way to call a forward pass; ``chunks`` are the lengths of cached calls in a row."""

    name: str
    padding: str | None = None
    extras: tuple[str, ...] = ()
    chunks: tuple[int, ...] = (LENGTH,)

    @property
    def cached(self) -> bool:
        return len(self.chunks) > 1


_ALL_EXTRAS = ("position_ids", "token_type_ids", "inputs_embeds")
_SEVERAL, _SINGLE = (2, 3, 1, 3), (1,) * LENGTH

CASES = (
    Case("plain"),
    Case("left", "left"),
    Case("right", "right"),
    Case("mixed", "mixed"),
    Case("holes", "holes"),
    Case("position_ids", extras=("position_ids",)),
    Case("token_type_ids", extras=("token_type_ids",)),
    Case("inputs_embeds", extras=("inputs_embeds",)),
    Case("all-extras-left", "left", _ALL_EXTRAS),
    Case("one-chunk", chunks=(5, 4)),
    Case("several-chunks", chunks=_SEVERAL),
    Case("token-by-token", chunks=_SINGLE),
    Case("one-chunk-left", "left", chunks=(5, 4)),
    Case("several-chunks-mixed", "mixed", chunks=_SEVERAL),
    Case("token-by-token-left", "left", chunks=_SINGLE),
    Case("token-by-token-right", "right", chunks=_SINGLE),
    Case("several-chunks-extras", None, _ALL_EXTRAS, _SEVERAL),
)


@dataclass
class Inputs:
    """The tensors of a case. ``mask`` (B, T) is None without padding."""

    mask: Tensor | None
    columns: dict[str, Tensor]  # each (B, T, ...): cut into chunks
    whole: dict[str, Tensor]  # given to every call as it is
    labels: Tensor  # (B, T), real targets at padding too

    @property
    def full_mask(self) -> Tensor:
        return torch.ones(BATCH, LENGTH, dtype=torch.long) if self.mask is None else self.mask


def make_inputs(case: Case, *, cross_attention: bool = False) -> Inputs:
    mask = None if case.padding is None else torch.tensor(MASKS[case.padding])
    columns: dict[str, Tensor] = {}
    if "inputs_embeds" in case.extras:
        columns["inputs_embeds"] = 0.3 * random_states(1, BATCH, LENGTH, D)
    else:
        columns["input_ids"] = random_ids(2, BATCH, LENGTH)
    if "token_type_ids" in case.extras:
        columns["token_type_ids"] = random_ids(3, BATCH, LENGTH)
    if "position_ids" in case.extras:
        columns["position_ids"] = random_ids(4, BATCH, LENGTH, vocab_size=SIZES["n_positions"])
    whole: dict[str, Tensor] = {}
    if cross_attention:
        whole["encoder_hidden_states"] = random_states(5, BATCH, ENCODER_LENGTH, D)
        whole["encoder_attention_mask"] = torch.tensor(
            [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1]]
        )
    labels = random_ids(6, BATCH, LENGTH)
    labels[1, 4] = -100
    return Inputs(mask, columns, whole, labels)


def labels_without_padding(inputs: Inputs) -> Tensor:
    """The labels as the reference needs them: −100 at padding, and at a token behind padding.

    Ours leaves out by itself whatever has padding for its source or its target.
    """
    mask = inputs.full_mask
    behind = torch.nn.functional.pad(mask[:, :-1], (1, 0), value=1)
    return inputs.labels.masked_fill((mask == 0) | (behind == 0), -100)


def calls(case: Case, inputs: Inputs, *, for_theirs: bool) -> list[dict[str, Any]]:
    """The keyword arguments of each call, the cache aside.

    The reference gets its mask always (5.x reads documents out of positions
    where there is none) and positions counted from the mask, since it counts
    columns; ours derives both.
    """
    counted = (inputs.full_mask.cumsum(-1) - 1).clamp(min=0)
    arguments = []
    start = 0
    for length in case.chunks:
        stop = start + length
        chunk: dict[str, Any] = {k: v[:, start:stop] for k, v in inputs.columns.items()}
        if for_theirs:
            chunk["attention_mask"] = inputs.full_mask[:, :stop]
            chunk.setdefault("position_ids", counted[:, start:stop])
        elif inputs.mask is not None:
            chunk["attention_mask"] = inputs.mask[:, :stop]
        arguments.append({**chunk, **inputs.whole})
        start = stop
    return arguments
