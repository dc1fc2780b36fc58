"""Guesses at the next tokens, for assisted decoding to check: looked up, or from a small model.

A draft is asked, for rows of new ids ``begun`` (lists), for at most ``wanted``
guesses each, and told afterwards how many of them were right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gpt2.generation.decoder import Decoder

Rows = list[list[int]]
#: (scores (R, k, V), each row's new ids before them) -> processed scores, tokens (R, k)
Choose = Callable[[Tensor, Rows], tuple[Tensor, Tensor]]


class Draft(Protocol):
    """See the module."""

    def propose(self, begun: Rows, wanted: Sequence[int]) -> Rows: ...

    def confirm(self, right: Sequence[int]) -> None: ...


class LookupDraft:
    """Prompt-lookup: what followed the last n-gram where it stood before, in the same row.

    The longest n-gram that stood before is taken, of ``longest`` tokens at
    most, where it stood last. What follows may reach into the guess itself: a
    text that repeats itself is guessed to go on so. The table of n-grams grows
    with the row.
    """

    def __init__(self, prompts: Rows, longest: int) -> None:
        self.prompts, self.longest = prompts, longest
        # n-gram -> where it was last followed by something
        self.followed: list[dict[tuple[int, ...], int]] = [{} for _ in prompts]
        self.known = [0] * len(prompts)

    def propose(self, begun: Rows, wanted: Sequence[int]) -> Rows:
        return [
            self._look_up(row, self.prompts[row] + new, count) if count else []
            for row, (new, count) in enumerate(zip(begun, wanted, strict=True))
        ]

    def _look_up(self, row: int, text: list[int], count: int) -> list[int]:
        followed = self.followed[row]
        for end in range(max(1, self.known[row]), len(text)):
            for n in range(1, min(self.longest, end) + 1):
                followed[tuple(text[end - n : end])] = end
        self.known[row] = len(text)
        for n in range(min(self.longest, len(text)), 0, -1):
            start = followed.get(tuple(text[-n:]))
            if start is not None:
                longer = list(text)
                for place in range(start, start + count):
                    longer.append(longer[place])
                return longer[len(text) :]
        return []

    def confirm(self, right: Sequence[int]) -> None:
        """Nothing to learn: the table is made of the rows themselves."""


class ModelDraft:
    """What a smaller model would go on with, chosen as the large one chooses.

    A row's draft ends behind a token that is less probable than ``threshold``.
    """

    def __init__(self, decoder: Decoder, copies: int, choose: Choose, threshold: float) -> None:
        decoder.prefill()
        decoder.expand(copies)
        self.decoder, self.choose, self.threshold = decoder, choose, threshold
        self.fed = [0] * decoder.rows  # new ids of each row that the model has seen
        self._drafted = [0] * decoder.rows  # of the last draft, those that it has seen
        self._columns = 0

    def propose(self, begun: Rows, wanted: Sequence[int]) -> Rows:
        guesses: Rows = [[] for _ in begun]
        self._drafted, self._columns = [0] * len(begun), 0
        if not any(wanted):
            return guesses
        unseen = [
            new[seen:] if count else []
            for new, seen, count in zip(begun, self.fed, wanted, strict=True)
        ]
        counts = [len(tokens) for tokens in unseen]
        scores = self.decoder.decode_block(padded(unseen, self.decoder.prompt.device), counts)
        last = torch.tensor(counts, device=scores.device).sub(1).clamp(min=0)
        scores = scores[torch.arange(len(begun), device=scores.device), last]  # (R, V)
        self.fed = [seen + count for seen, count in zip(self.fed, counts, strict=True)]

        going = [count > 0 for count in wanted]
        while True:
            so_far = [new + guess for new, guess in zip(begun, guesses, strict=True)]
            processed, chosen = self.choose(scores[:, None], so_far)
            sure = processed.softmax(-1).gather(-1, chosen[..., None])[:, 0, 0] >= self.threshold
            tokens, surely = torch.stack([chosen[:, 0], sure.long()]).tolist()
            for row in [r for r, on in enumerate(going) if on]:
                guesses[row].append(tokens[row])
                going[row] = bool(surely[row]) and len(guesses[row]) < wanted[row]
            if not any(going):
                return guesses
            scores = self.decoder.decode_block(chosen, [int(on) for on in going])[:, 0]
            self._columns += 1
            self._drafted = [n + on for n, on in zip(self._drafted, going, strict=True)]

    def confirm(self, right: Sequence[int]) -> None:
        """Of the last draft the model goes on with the first ``right`` of each row."""
        kept = [min(n, seen) for n, seen in zip(right, self._drafted, strict=True)]
        if self._columns:
            self.decoder.keep_first(kept, self._columns)
        self.fed = [seen + n for seen, n in zip(self.fed, kept, strict=True)]


def padded(rows: Rows, device: torch.device) -> Tensor:
    """(R, k) int64 of rows of at most k ids, zeros behind them."""
    k = max(map(len, rows))
    return torch.tensor([row + [0] * (k - len(row)) for row in rows], device=device)
