"""What happens to the scores before a token is chosen: small pure functions on (ids, scores).

``ids`` (B, n) are the tokens so far, ``scores`` (B, V) float32. To add a
processor: write the function, and add it to ``processors_for``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpt2.generation.config import GenerationConfig

Processor = Callable[[Tensor, Tensor], Tensor]


def temperature(_ids: Tensor, scores: Tensor, *, value: float) -> Tensor:
    """Flatter above 1, sharper below."""
    return scores / value


def top_k(_ids: Tensor, scores: Tensor, *, k: int) -> Tensor:
    """Hide all but the k highest scores (ties with the k-th stay)."""
    kth = scores.topk(min(k, scores.shape[-1])).values[..., -1:]  # (B, 1)
    return scores.masked_fill(scores < kth, -torch.inf)


def top_p(_ids: Tensor, scores: Tensor, *, p: float) -> Tensor:
    """Hide the least probable tokens that together have at most 1 − p (arXiv:1904.09751)."""
    ascending, order = scores.sort(descending=False)
    hidden = ascending.softmax(-1).cumsum(-1) <= 1 - p
    hidden[..., -1] = False  # the most probable token always stays
    return scores.masked_fill(hidden.scatter(-1, order, hidden), -torch.inf)


def processors_for(config: GenerationConfig) -> list[Processor]:
    """The processors that the settings ask for, in the reference's order."""
    chosen: list[Processor] = []
    if config.do_sample:
        if config.temperature != 1.0:
            chosen.append(partial(temperature, value=config.temperature))
        if config.top_k:
            chosen.append(partial(top_k, k=config.top_k))
        if config.top_p < 1.0:
            chosen.append(partial(top_p, p=config.top_p))
    return chosen
