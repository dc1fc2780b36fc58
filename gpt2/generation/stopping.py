"""When a row ends: at EOS, at its length, at a stop string, out of time, or when the caller says.

What tensors can say is one bool per row on the device, so that a loop needs no
more than the one transfer of its tokens; stop strings are matched on the host,
on the tokens that this transfer brings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.tokenization.byte_alphabet import to_bytes

#: (documented ids (R, N), scores) -> bool, or (R,) bool: whether each row has ended
StoppingCriterion = Callable[..., Any]


class Stopping:
    """The rules of one call, for B rows of the prompt.

    ``limits`` are the new tokens that each of them may have. ``strings``: where
    stop strings are set. ``criteria`` are the caller's own.
    """

    def __init__(
        self,
        eos: Sequence[int],
        limits: Sequence[int],
        *,
        device: torch.device,
        max_time: float | None = None,
        strings: StopStrings | None = None,
        criteria: Sequence[StoppingCriterion] = (),
    ) -> None:
        self.eos = torch.tensor(list(eos), dtype=torch.int64, device=device)
        #: (B,) int64, or None where all rows may have as many
        self.limits = torch.tensor(limits, device=device) if len(set(limits)) > 1 else None
        self.new_tokens = max(limits)
        self.strings = strings
        self.criteria = list(criteria)
        self.deadline = None if max_time is None else time.monotonic() + max_time

    def ended(self, tokens: Tensor, step: int, rows: Tensor | None = None) -> Tensor:
        """(R,) bool: which rows end with ``tokens`` (R,), their new token number ``step`` (from 0).

        By EOS or by their length. ``rows`` (R,) int64: the prompt row of each,
        where that is not its own number.
        """
        ended = torch.isin(tokens, self.eos)
        if step + 1 >= self.new_tokens:
            return torch.ones_like(ended)
        if self.limits is not None:
            ended = ended | ((self.limits if rows is None else self.limits[rows]) <= step + 1)
        return ended

    def told(self, ids: Tensor, scores: Any) -> Tensor:
        """(R,) bool: what the caller's criteria say about ``ids`` (R, N)."""
        found = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for criterion in self.criteria:
            said = criterion(ids, scores)
            if not isinstance(said, bool | Tensor):
                raise ArgumentTypeError(
                    f"stopping_criteria: {criterion!r} must return True, False or a bool tensor "
                    f"(batch,), not {type(said).__name__}"
                )
            each = torch.as_tensor(said, device=ids.device).to(torch.bool)
            if each.shape not in ((), found.shape):
                raise ArgumentError(
                    f"stopping_criteria: {criterion!r} returned a tensor of shape "
                    f"{tuple(each.shape)}; expected {tuple(found.shape)}"
                )
            found = found | each
        return found

    def out_of_time(self) -> bool:
        """Whether max_time is over."""
        return self.deadline is not None and time.monotonic() > self.deadline


class StopStrings:
    """Strings that end the row whose text, in bytes, completes one of them.

    A token may complete a string and go on behind it. The text begins with the
    prompt's, so that a string may begin there. ``prompts``: the last tokens of
    each row of the prompt, at least ``longest`` of them where there are as many.
    """

    def __init__(self, strings: str | Sequence[str], tokenizer: Any) -> None:
        texts = [strings] if isinstance(strings, str) else strings
        self.strings = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.longest = max(map(len, self.strings))
        self.prompts: list[list[int]] = []
        self._tokenizer, self._bytes = tokenizer, dict[int, bytes]()
        self._size = len(tokenizer)
        for text, token in tokenizer.get_added_vocab().items():  # no spellings of bytes
            self._bytes[token] = text.encode("utf-8", "surrogatepass")

    def ended(self, row: int, tokens: Sequence[int]) -> bool:
        """Whether the last of the new ``tokens`` of prompt row ``row`` completes a string."""
        last = self.bytes_of(tokens[-1])
        tail = last
        for token in reversed((self.prompts[row] + list(tokens[-self.longest :]))[:-1]):
            if len(tail) >= len(last) + self.longest - 1:
                break
            tail = self.bytes_of(token) + tail
        new = len(tail) - len(last)  # where the last token begins
        return any(tail.find(s, max(0, new - len(s) + 1)) >= 0 for s in self.strings)

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for; none where the tokenizer does not have it."""
        if token not in self._bytes:
            known = 0 <= token < self._size
            text = self._tokenizer.convert_ids_to_tokens(token) if known else ""
            self._bytes[token] = to_bytes(text)
        return self._bytes[token]
