"""When a row ends: at EOS, at its length, at a stop string, out of time, or when the caller says.

Everything that tensors can say is one bool per row on the device, so that a
loop needs no more than the one transfer of its tokens; stop strings are
matched on the host, on the tokens that this transfer brings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import ArgumentTypeError

#: (documented ids (R, N), scores) -> bool, or (R,) bool: whether each row has ended
StoppingCriterion = Callable[..., Any]


class Stopping:
    """The rules of one call.

    ``limits`` are the new tokens that each row of the prompt may have.
    """

    def __init__(
        self,
        eos: Sequence[int],
        limits: Sequence[int],
        *,
        device: torch.device,
        max_time: float | None = None,
        criteria: Sequence[StoppingCriterion] = (),
    ) -> None:
        self.eos = torch.tensor(list(eos), dtype=torch.int64, device=device)
        #: (B,) int64, or None where all rows may have as many
        self.limits = torch.tensor(limits, device=device) if len(set(limits)) > 1 else None
        self.new_tokens = max(limits)
        self.criteria = list(criteria)
        self.deadline = None if max_time is None else time.monotonic() + max_time

    def ended(self, tokens: Tensor, step: int, rows: Tensor | None = None) -> Tensor:
        """(R,) bool: which rows end with ``tokens`` (R,), their new token number ``step`` (from 0).

        ``rows`` (R,) int64: the prompt row of each, where that is not its own number.
        """
        ended = torch.isin(tokens, self.eos)
        if step + 1 >= self.new_tokens:
            return torch.ones_like(ended)
        if self.limits is not None:
            ended = ended | ((self.limits if rows is None else self.limits[rows]) <= step + 1)
        return ended

    def told(self, ids: Tensor, scores: Any) -> Tensor | None:
        """(R,) bool: what the caller's criteria say about ``ids`` (R, N); None without any."""
        found: Tensor | None = None
        for criterion in self.criteria:
            said = criterion(ids, scores)
            if not isinstance(said, bool | Tensor):
                raise ArgumentTypeError(
                    "a stopping criterion must return True, False or a bool tensor (batch,), not "
                    f"{type(said).__name__}"
                )
            each = torch.as_tensor(said, dtype=torch.bool, device=ids.device).expand(len(ids))
            found = each if found is None else found | each
        return found

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline
