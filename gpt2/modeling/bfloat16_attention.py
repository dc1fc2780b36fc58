"""Attention over a prompt in bfloat16, for the CPU.

torch's fused kernel multiplies bfloat16 no faster than float32 there, and works
on keys in pieces of 512, hidden ones included: 15.8 ms for 1024 tokens in 12
heads of 64 on 2 cores (AVX-512). Here a block of queries at a time has scores
for the keys that it may see only. They are float32, as is the softmax, and only
the product with the values is bfloat16's, which is twice as fast: 12 ms; 3.4 in
place of 5.7 for 512 tokens.

Shapes: see the legend in gpt2/modeling/transformer.py; t is the number of
queries in a block, s the number of keys it sees.
"""

from __future__ import annotations

from threading import local

import torch
from torch import Tensor

from gpt2.modeling.masks import causal_visibility

#: False: torch's own kernel for bfloat16 on a CPU too
IN_BLOCKS_ON_CPU = True

_BLOCK = 128  # queries; with fewer, torch's kernel is as fast
_BLOCK_NUMBERS = 2**21  # scores at most: 8 MB, which a cache holds


def suits_blocks(
    q: Tensor, k: Tensor, v: Tensor, *, mask: object, causal: bool, dropout_p: float
) -> bool:
    """Whether `attend_in_blocks` can do this, and faster: a prompt on a CPU, in eager inference.

    Compiled graphs, autocast, subclasses of Tensor and function transforms
    (torch.func) are left to torch, and so are masks.
    """
    return (
        IN_BLOCKS_ON_CPU
        and not torch.compiler.is_compiling()  # first: a graph is not to know sizes
        and causal
        and mask is None
        and dropout_p == 0
        and _BLOCK <= q.shape[-2] <= k.shape[-2]
        and all(type(x) is Tensor and x.device.type == "cpu" for x in (q, k, v))
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


_held = local()  # of each thread: the room for a block's scores, and for its weights


def _room(numbers: int) -> tuple[Tensor, Tensor]:
    """Memory for so many scores in float32 and weights in bfloat16; 12 MB at most stay held.

    The C library gives what is freed back to the system, which has to find it anew in each layer:
    a pass over 1024 tokens of the 124M shape took 0.80 s that way, and 0.69 with this.
    """
    held: tuple[Tensor, Tensor] | None = getattr(_held, "room", None)
    if held is None or len(held[0]) < numbers:
        with torch.inference_mode(False):  # a tensor made in that mode cannot be used outside
            scores = torch.empty(numbers, dtype=torch.float32, device="cpu")
            held = scores, torch.empty_like(scores, dtype=torch.bfloat16)
        _held.room = held
    return held


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v, causal, (B, H, T, Dh) in bfloat16; see backends.py for the contract.

    ``q`` (B, H, T, Dh) and ``k``, ``v`` (B, H, S, Dh) are bfloat16, or float32
    that may be rounded to it.
    """
    batch, heads, queries, size = q.shape
    keys = k.shape[-2]
    length = max(1, min(_BLOCK, _BLOCK_NUMBERS // (heads * keys)))
    out = q.new_empty(batch, queries, heads, size, dtype=torch.bfloat16).transpose(1, 2)
    scores, weights = _room(heads * length * keys)
    hidden = ~causal_visibility(length, length, q.device)  # (t, t)
    ceiling = scores.new_full(hidden.shape, torch.inf)
    ceiling.masked_fill_(hidden, torch.finfo(torch.float32).min)
    for row in range(batch):  # one at a time, so that what is cast stays small
        q32, k32, v16 = q[row].float(), k[row].float(), v[row].to(torch.bfloat16)  # (H, ·, Dh)
        for stop in range(queries, 0, -length):
            start = max(0, stop - length)
            t, s = stop - start, keys - queries + stop
            x = scores[: heads * t * s].view(heads, t, s)
            torch.baddbmm(
                x, q32[:, start:stop], k32[:, :s].transpose(1, 2), beta=0, alpha=scale, out=x
            )
            x[..., s - t :].clamp_(max=ceiling[:t, :t])
            torch.softmax(x, -1, out=x)
            w = weights[: heads * t * s].view(heads, t, s).copy_(x)
            torch.bmm(w, v16[:, :s], out=out[row, :, start:stop])
    return out
