"""What happens to the scores before a token is chosen: small pure functions on (ids, scores).

``ids`` (R, N) are the tokens so far, prompt and new ones, each row's real tokens
side by side at the right end and ABSENT (−1) before them: padding is nobody's
token. ``scores`` (R, V) float32. To add a processor: write the function, and
add it to ``processors_for``; its setting is a field of GenerationConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpt2.generation.config import GenerationConfig

Processor = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OfRows:
    """A function of the caller's, which may ask which row it is looking at.

    ``apply(given_ids, ids, scores, rows)``: ``given_ids`` (R, N) as documented,
    with the prompt as the caller gave it; ``ids``, ``scores`` as for a
    Processor; ``rows`` (R,) the prompt row of each, or None where that is its number.
    """

    apply: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def temperature(_ids: Tensor, scores: Tensor, *, value: float) -> Tensor:
    """Flatter above 1, sharper below."""
    return scores / value


def top_k(_ids: Tensor, scores: Tensor, *, k: int) -> Tensor:
    """Hide all but the k highest scores (ties with the k-th stay)."""
    kth = scores.topk(min(k, scores.shape[-1])).values[..., -1:]  # (R, 1)
    return scores.masked_fill(scores < kth, -torch.inf)


def top_p(_ids: Tensor, scores: Tensor, *, p: float, keep: int = 1) -> Tensor:
    """Hide the least probable tokens that together have at most 1 − p (arXiv:1904.09751)."""
    ascending, order = scores.sort(descending=False)
    hidden = ascending.softmax(-1).cumsum(-1) <= 1 - p
    hidden[..., -keep:] = False  # the most probable tokens always stay
    return scores.masked_fill(hidden.scatter(-1, order, hidden), -torch.inf)


def processors_for(config: GenerationConfig) -> list[Processor | OfRows]:
    """The processors that the settings ask for, in the reference's order."""
    chosen: list[Processor | OfRows] = []
    if config.do_sample:
        # Beams need a token beside EOS to go on with.
        keep = 1 if config.num_beams == 1 else len(config.eos_token_ids) + 1
        if config.temperature != 1.0:
            chosen.append(partial(temperature, value=config.temperature))
        if config.top_k:
            chosen.append(partial(top_k, k=max(config.top_k, keep)))
        if config.top_p < 1.0:
            chosen.append(partial(top_p, p=config.top_p, keep=keep))
    return chosen
