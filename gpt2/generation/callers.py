"""Processors that the caller gives: logits_processor and prefix_allowed_tokens_fn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True)
class OfRows:
    """A function of the caller's, which may ask which row it is looking at.

    ``apply(given_ids, ids, scores, rows)``: ``given_ids`` (R, N) as documented,
    with the prompt as the caller gave it; ``ids``, ``scores`` as for a
    Processor; ``rows`` (R,) the prompt row of each, or None where that is its number.
    """

    apply: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def callers_processor(process: Callable[[Tensor, Tensor], Tensor]) -> OfRows:
    """An element of the documented ``logits_processor`` list."""

    def apply(given: Tensor, _ids: Tensor, scores: Tensor, _rows: Tensor | None) -> Tensor:
        found = process(given, scores.clone())  # it may work in place
        if not isinstance(found, Tensor) or found.shape != scores.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ArgumentTypeError(
                f"logits_processor: {process!r} must return scores of shape "
                f"{tuple(scores.shape)}, not {shape}"
            )
        return found

    return OfRows(apply)


def prefix_allowed(allowed: Callable[[int, Tensor], Sequence[int]], num_beams: int) -> OfRows:
    """The documented ``prefix_allowed_tokens_fn``: (prompt row, ids so far) -> what may come.

    Where all that is allowed is hidden already (in all beams of a row), it is forced.
    """

    def apply(_given: Tensor, ids: Tensor, scores: Tensor, rows: Tensor | None) -> Tensor:
        numbers = list(range(len(ids))) if rows is None else rows.tolist()
        mask = torch.full_like(scores, -torch.inf)
        for i, row in enumerate(numbers):
            tokens = list(allowed(row, ids[i][ids[i] >= 0]))
            if not tokens or not all(0 <= int(t) < scores.shape[-1] for t in tokens):
                raise ArgumentError(
                    f"prefix_allowed_tokens_fn must return ids from 0 to {scores.shape[-1] - 1}, "
                    f"at least one; for batch row {row} it returned {tokens}"
                )
            mask[i, tokens] = 0.0
        left = scores + mask
        hopeless = left.amax(-1).isneginf()
        if num_beams > 1:
            hopeful = {row for row, h in zip(numbers, hopeless.tolist(), strict=True) if not h}
            hopeless = hopeless.new_tensor([row not in hopeful for row in numbers])
        return torch.where(hopeless[:, None], mask, left)

    return OfRows(apply)
