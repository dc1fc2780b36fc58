"""Attention with dropout on its weights, for the CPU.

torch's fused kernel has no dropout on a CPU, and its other path makes five
(B, H, T, S) tensors per layer: scores, weights, mask, dropped weights, and a
gradient. Here a block of queries has its scores at a time, of the keys that a
causal block can see only, and the backward pass computes them again (the scheme
of arXiv:2205.14135). The mask is drawn again as well, from a seed that comes from
torch's global generator.

Shapes: see the legend in gpt2/modeling/transformer.py; t is the number of
queries in a block, s the number of keys it sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2.modeling.dropout import kept
from gpt2.modeling.masks import causal_visibility

# scores that a block of queries may have: 4 MB in float32, which a cache holds
_BLOCK_NUMBERS = 2**20


def attend_with_dropout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
) -> Tensor:
    """The contract of a backend (gpt2/modeling/backends.py), where `dropout.is_cheap`.

    A ``mask`` gets no gradient.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    with torch.autocast("cpu", enabled=False):
        return _DroppedAttention.apply(q, k, v, mask, scale, causal, dropout_p)  # type: ignore[no-untyped-call, no-any-return]


class _Blocks:
    """The blocks of queries, those of the last queries first, and the weights of each.

    A block is of one row of the batch, or of several where all their scores are
    few. Its heads are (h, t, Dh), with h of H times the rows.
    """

    def __init__(
        self, q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool
    ) -> None:
        self.q, self.k, self.mask, self.scale, self.causal = q, k, mask, scale, causal
        self.batch, self.heads, self.queries, _ = q.shape
        self.keys = k.shape[-2]
        self.rows = max(1, _BLOCK_NUMBERS // (self.heads * self.queries * self.keys))
        self.rows = min(self.rows, self.batch)
        most = max(1, _BLOCK_NUMBERS // (self.heads * self.keys))  # queries
        self.length = -(-self.queries // -(-self.queries // most))  # blocks of like size
        seen = causal_visibility(self.length, self.length, q.device)  # (t, t)
        self.lowest = torch.finfo(q.dtype).min
        self.ceiling = q.new_full(seen.shape, torch.inf).masked_fill_(~seen, self.lowest)

    def __iter__(self) -> Iterator[tuple[slice, slice, int]]:
        """Rows of the batch, queries, and number of keys that they see."""
        for row in range(0, self.batch, self.rows):
            rows = slice(row, min(row + self.rows, self.batch))
            for stop in range(self.queries, 0, -self.length):
                queries = slice(max(0, stop - self.length), stop)
                seen = self.keys - self.queries + stop if self.causal else self.keys
                yield rows, queries, seen

    def buffer(self) -> Tensor:
        """Room for the numbers of the largest block."""
        return self.q.new_empty(self.rows * self.heads * self.length * self.keys)

    def within(self, buffer: Tensor, rows: slice, queries: slice, seen: int) -> Tensor:
        """The (h, t, s) numbers of a block, at the start of the buffer."""
        heads, length = (rows.stop - rows.start) * self.heads, queries.stop - queries.start
        shape = heads, length, seen
        return buffer[: math.prod(shape)].view(shape)

    def beside(self, x: Tensor) -> Tensor:
        """An empty tensor like ``x`` (B, H, N, Dh), laid out so that `_of` gives views of it.

        With one row to a block the heads of a token are side by side, so that
        merging them is a view as well.
        """
        if self.rows > 1:
            return x.new_empty(x.shape)
        return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)

    def weights(
        self, rows: slice, queries: slice, seen: int, scores: Tensor, out: Tensor
    ) -> Tensor:
        """softmax(scale · q kᵀ + mask), (h, t, s), in ``out``; ``scores`` is another buffer."""
        keys = _of(self.k, rows, slice(seen)).transpose(-1, -2)
        x = self.within(scores, rows, queries, seen)
        _product(_of(self.q, rows, queries), keys, self.scale, out=x)
        if self.causal:
            length = x.shape[1]
            x[..., seen - length :].clamp_(max=self.ceiling[:length, :length])
        if self.mask is not None:
            mask = self.mask[rows if len(self.mask) > 1 else slice(None), :, queries, :seen]
            by_row = x.view(-1, self.heads, *x.shape[1:])
            if mask.dtype == torch.bool:
                by_row.masked_fill_(~mask, self.lowest)
            else:
                by_row.add_(mask).clamp_(min=self.lowest)
        return torch.softmax(x, -1, out=self.within(out, rows, queries, seen))


def _of(x: Tensor, rows: slice, places: slice) -> Tensor:
    """The heads of a block, (h, n, ·), of x (B, H, N, ·)."""
    return x[rows, :, places].flatten(0, 1)


class _DroppedAttention(torch.autograd.Function):
    """o = w′ v with w′ = w ∘ m / (1 − p), w = softmax(scale · q kᵀ + mask) and m of zeros and ones.

    dv = w′ᵀ do, dw = (do vᵀ) ∘ m / (1 − p), and of the softmax ds = w ∘ (dw − Σ w ∘ dw), where the
    sum over the keys is that of do ∘ o over the head: then dq = scale · ds k, dk = scale · dsᵀ q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool,
        dropout_p: float,
    ) -> Tensor:  # fmt: skip
        blocks = _Blocks(q, k, mask, scale, causal)
        seed = int(torch.randint(2**62, ()))
        drawn, grow = torch.Generator().manual_seed(seed), 1 / (1 - dropout_p)
        out = blocks.beside(q)
        scores, weights = blocks.buffer(), blocks.buffer()
        for rows, queries, seen in blocks:
            w = blocks.weights(rows, queries, seen, scores, weights)
            w.mul_(kept(w.numel(), dropout_p, drawn).view(w.shape))
            _product(w, _of(v, rows, slice(seen)), grow, out=_of(out, rows, queries))
        ctx.save_for_backward(q, k, v, mask, out)
        ctx.settings = scale, causal, dropout_p, seed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out = ctx.saved_tensors
        scale, causal, dropout_p, seed = ctx.settings
        drawn, grow = torch.Generator().manual_seed(seed), 1 / (1 - dropout_p)
        blocks = _Blocks(q, k, mask, scale, causal)
        dq, dk, dv = blocks.beside(q), blocks.beside(k), blocks.beside(v)
        scores, weights, dropped = blocks.buffer(), blocks.buffer(), blocks.buffer()
        sums = (gradient * out).sum(-1, keepdim=True)  # (B, H, T, 1)
        for rows, queries, seen in blocks:
            keys = slice(seen)
            first = queries.stop == blocks.queries  # of its rows; it sees all keys, and others add
            w = blocks.weights(rows, queries, seen, scores, weights)
            m = kept(w.numel(), dropout_p, drawn).view(w.shape)
            do = _of(gradient, rows, queries)
            x = torch.mul(w, m, out=blocks.within(dropped, rows, queries, seen))
            _product(x.transpose(-1, -2), do, grow, out=_of(dv, rows, keys), add=not first)
            _product(do, _of(v, rows, keys).transpose(-1, -2), grow, out=x)
            x.mul_(m).sub_(_of(sums, rows, queries)).mul_(w)  # the gradient of the scores
            _product(x, _of(k, rows, keys), scale, out=_of(dq, rows, queries))
            of_q = _of(q, rows, queries)
            _product(x.transpose(-1, -2), of_q, scale, out=_of(dk, rows, keys), add=not first)
        return dq, dk, dv, None, None, None, None


def _product(a: Tensor, b: Tensor, factor: float, *, out: Tensor, add: bool = False) -> None:
    """factor · a b, written to ``out`` or added to it."""
    torch.baddbmm(out, a, b, beta=int(add), alpha=factor, out=out)
