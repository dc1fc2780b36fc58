"""Ragged batches: the real tokens of all rows side by side, with no padding in between.

What flash kernels take in place of a mask: one long row of tokens, and where in
it each segment (a row of the batch, or a document of a packed row) ends. No
token sees another segment. Nothing here waits for the device: the packed row
always has B · N places, and padding goes to its end, behind the last segment.

Shapes: see the legend in gpt2/modeling/transformer.py; N is T or S, n the
number of segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """How a padded (B, N) becomes one row of B · N tokens, segment after segment.

    ``order`` (B · N,) int64: where in the padded batch each packed token stands,
    padding last; None where nothing moves. ``ends`` (n + 1,) int32: 0, then
    where each segment ends. ``longest``: no segment has more tokens than this.
    """

    order: Tensor | None
    ends: Tensor
    longest: int

    def pack(self, x: Tensor) -> Tensor:
        """(B, H, N, Dh) -> (B · N, H, Dh), zeros behind the last segment."""
        rows = x.transpose(1, 2).flatten(0, 1)
        return rows if self.order is None else self._cleared(rows.index_select(0, self.order))

    def unpack(self, rows: Tensor, batch_size: int) -> Tensor:
        """(B · N, H, Dh) -> (B, H, N, Dh), zeros at padding."""
        if self.order is not None:
            rows = torch.empty_like(rows).index_copy(0, self.order, self._cleared(rows))
        return rows.view(batch_size, -1, *rows.shape[1:]).transpose(1, 2)

    def _cleared(self, rows: Tensor) -> Tensor:
        """Zeros behind the last segment: kernels leave it unwritten, in gradients too."""
        inside = torch.arange(len(rows), device=rows.device) < self.ends[-1]
        return torch.where(inside[:, None, None], rows, 0.0)


@dataclass(frozen=True)
class Segments:
    """The same segments on the side of the queries and on that of the keys."""

    queries: Packing
    keys: Packing


def even_packing(batch_size: int, length: int, device: torch.device) -> Packing:
    """Every row whole: B segments of ``length``."""
    ends = torch.arange(0, (batch_size + 1) * length, length, dtype=torch.int32, device=device)
    return Packing(None, ends, length)


def ragged_packing(
    real: Tensor, documents: Tensor | None = None, *, count: int = 0, longest: int = 0
) -> Packing:
    """The tokens where ``real`` (B, N) is True; a segment for each row, or for each document.

    ``documents`` (B, N): see `masks.numbered_documents`. ``count`` is how many
    there are and ``longest`` how many tokens the longest has, where known; the
    count has to be fetched from the device else.
    """
    batch_size, length = real.shape
    segment = torch.arange(batch_size, device=real.device)[:, None].expand_as(real)  # (B, N)
    if documents is None:
        count = batch_size
    else:
        in_row = documents[:, -1] + 1  # (B,)
        segment = documents + (in_row.cumsum(0) - in_row)[:, None]
        count = count or int(in_row.sum())
    lengths = torch.zeros(count, dtype=torch.int32, device=real.device)
    lengths.index_add_(0, segment.flatten(), real.flatten().int())
    ends = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    order = (~real).flatten().int().argsort(stable=True)
    return Packing(order, ends, longest or length)


def causal_segments(
    key_mask: Tensor, query_length: int, documents: Tensor | None = None, *, count: int = 0,
    longest: int = 0,
) -> Segments:  # fmt: skip
    """The real tokens of ``key_mask`` (B, S) as keys, and its last T columns as queries.

    ``documents`` (B, S) need T = S, as there are without a cache.
    """
    keys = ragged_packing(key_mask, documents, count=count, longest=longest)
    if query_length == key_mask.shape[-1]:
        return Segments(keys, keys)
    return Segments(ragged_packing(key_mask[:, -query_length:]), keys)


def encoder_segments(key_mask: Tensor, query_length: int) -> Segments:
    """Every query of a row over the encoder's states where ``key_mask`` (B, S) is True."""
    queries = even_packing(key_mask.shape[0], query_length, key_mask.device)
    return Segments(queries, ragged_packing(key_mask))
