"""Which keys a query may see, and where a token stands.

The attention mask decides both: a padding column takes no position and is seen
by nobody but itself. A padding query sees at least its own key, so that no row
of scores is ever empty and every value stays finite.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Visibility:
    """What attention hides, in the form that the backends take.

    ``mask``: None, or (B|1, 1|H, T, S), either bool (True: may be seen) or
    floating (added to the scores). ``causal``: query i sees no key after
    S − T + i; False where ``mask`` says so already, or where nothing is hidden.
    """

    mask: Tensor | None = None
    causal: bool = True


def positions_from_mask(key_mask: Tensor, query_length: int) -> Tensor:
    """Position of each of the last ``query_length`` columns: real tokens before it.

    ``key_mask`` (B, S) bool -> (B, T) int64. A padding column gets the position
    of the nearest real token to its left, or 0; nobody looks at it.
    """
    return (key_mask.long().cumsum(-1) - 1).clamp_(min=0)[:, -query_length:]


def causal_visibility(query_length: int, key_length: int, device: torch.device) -> Tensor:
    """(T, S) bool, True where a key is not after its query; aligned to the end of the keys."""
    keys = torch.arange(key_length, device=device)  # (S,)
    queries = torch.arange(key_length - query_length, key_length, device=device)  # (T,)
    return keys <= queries[:, None]


def padded_causal_visibility(key_mask: Tensor, query_length: int) -> Tensor:
    """(B, 1, T, S) bool: causal, and no padding key for anyone but itself.

    ``key_mask`` (B, S) bool, True at real tokens.
    """
    key_length = key_mask.shape[-1]
    keys = torch.arange(key_length, device=key_mask.device)  # (S,)
    queries = keys[key_length - query_length :, None]  # (T, 1)
    causal, own = keys <= queries, keys == queries  # (T, S)
    return (causal & key_mask[:, None, None, :]) | own


def finite_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask in ``dtype`` without −inf, so that a row hidden as a whole stays finite."""
    return mask.to(dtype).clamp(min=torch.finfo(dtype).min)
