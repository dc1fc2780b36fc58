"""How attention is computed: one function per backend, all with the same contract.

``attend(q, k, v, *, mask, scale, causal, dropout_p) -> (B, H, T, Dh)`` with q
(B, H, T, Dh) and k, v (B, H, S, Dh). ``mask`` is None, a bool tensor (True: may
be seen) or a floating one (added to the scores), broadcastable to (B, H, T, S);
the backends in TAKES_SEGMENTS get `Segments` in place of a tensor. ``causal`` is
aligned to the END of the keys: query i sees keys ≤ S − T + i.

To add a backend: write the function, and enter it in BACKENDS.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.errors import BackendError, did_you_mean
from gpt2.modeling import flash
from gpt2.modeling.bfloat16_attention import attend_in_blocks, suits_blocks
from gpt2.modeling.dropout import dropout, is_cheap
from gpt2.modeling.dropped_attention import attend_with_dropout
from gpt2.modeling.masks import causal_visibility


class Attend(Protocol):
    """The contract of a backend; see the module's docstring."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Any,  # Tensor | None, or Segments | None for those that take them
        scale: float,
        causal: bool,
        dropout_p: float,
    ) -> Tensor: ...


def attention_weights(
    q: Tensor, k: Tensor, *, mask: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """softmax(scale · q kᵀ + mask), (B, H, T, S): what output_attentions reports.

    Hidden scores become the dtype's lowest finite number, not −inf, so that a
    row that hides everything gives equal weights in place of NaN.
    """
    scores = (q @ k.transpose(-1, -2)) * scale  # (B, H, T, S)
    lowest = torch.finfo(scores.dtype).min
    if causal and q.shape[-2] > 1:
        seen = causal_visibility(q.shape[-2], k.shape[-2], q.device)  # (T, S)
        scores = scores.masked_fill(~seen, lowest)
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, lowest)
        else:
            scores = (scores + mask).clamp(min=lowest)
    return scores.softmax(-1)


def attend_eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
) -> Tensor:
    """Attention as its equation: softmax(scale · q kᵀ + mask) v."""
    weights = attention_weights(q, k, mask=mask, scale=scale, causal=causal)  # (B, H, T, S)
    weights = dropout(weights.to(v.dtype), dropout_p)
    return weights @ v  # (B, H, T, Dh)


def attend_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention.

    Its own ``is_causal`` is aligned to the start of the keys, which is right
    only where T = S; cached chunks get a mask that is aligned to the end. On a
    CPU it has no kernel with dropout, and a slow one for bfloat16: there
    dropped_attention.py and bfloat16_attention.py are used.
    """
    if q.dtype == torch.bfloat16 and suits_blocks(
        q, k, v, mask=mask, causal=causal, dropout_p=dropout_p
    ):
        return attend_in_blocks(q, k, v, scale=scale)
    if is_cheap(q, dropout_p) and not (mask is not None and mask.requires_grad):
        return attend_with_dropout(
            q, k, v, mask=mask, scale=scale, causal=causal, dropout_p=dropout_p
        )
    query_length, key_length = q.shape[-2], k.shape[-2]
    is_causal = False
    if causal and mask is None and query_length == key_length and query_length > 1:
        is_causal = True  # a branch: in a graph compiled for any length the condition is no bool
    if causal and not is_causal and query_length > 1:
        seen = causal_visibility(query_length, key_length, q.device)  # (T, S)
        if mask is None:
            mask = seen
        elif mask.dtype == torch.bool:
            mask = mask & seen
        else:
            mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale
    )


def attend_sdpa_rounded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
) -> Tensor:
    """attend_sdpa for packed weights: float32 that may be rounded to bfloat16, as c_proj does."""
    if suits_blocks(q, k, v, mask=mask, causal=causal, dropout_p=dropout_p):
        return attend_in_blocks(q, k, v, scale=scale)
    return attend_sdpa(q, k, v, mask=mask, scale=scale, causal=causal, dropout_p=dropout_p)


BACKENDS: dict[str, Attend] = {
    "eager": attend_eager,
    "sdpa": attend_sdpa,
    flash.NAME: flash.attend_flash,
}
TAKES_SEGMENTS = frozenset({flash.NAME})


def get_backend(name: str) -> Attend:
    """The backend called ``name``.

    Raises BackendError, with the list of those that can be used, where there is
    none of that name or this installation lacks what it needs.
    """
    if isinstance(name, str) and name in BACKENDS and name != flash.NAME:
        return BACKENDS[name]
    lacking = flash.why_not_installed()
    if name == flash.NAME and lacking is None:
        return BACKENDS[name]
    usable = [known for known in BACKENDS if known != flash.NAME or lacking is None]
    why = f"; {lacking}" if name == flash.NAME else did_you_mean(str(name), usable)
    raise BackendError(f"attn_implementation is {name!r}; it may be {', '.join(usable)}{why}")
