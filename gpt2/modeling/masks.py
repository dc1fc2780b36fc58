"""Which keys a query may see, and where a token stands.

The attention mask decides both: a padding column takes no position and is seen
by nobody but itself. A padding query sees at least its own key, so that no row
of scores is ever empty and every value stays finite. Where a row is packed with
several documents, a token sees its own document only, and positions begin anew
with each.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.modeling.segments import Segments


@dataclass(frozen=True)
class Visibility:
    """What attention hides, in the form that the backends take.

    ``mask``: None, or (B|1, 1|H, T, S), either bool (True: may be seen) or
    floating (added to the scores); or Segments, for the backends that take
    them. ``causal``: query i sees no key after S − T + i; False where ``mask``
    says so already, or where nothing is hidden.
    """

    mask: Tensor | Segments | None = None
    causal: bool = True


def numbered_documents(document_ids: Tensor, key_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The documents of each row, numbered 0, 1, 2 … in their order; and which rows are in order.

    ``document_ids`` (B, S), whole numbers, the same throughout a document, and
    ``key_mask`` (B, S) bool -> (B, S) int64, and (B,) bool: False where a
    document comes back after another one. The ids at padding say nothing; it
    gets the number of the nearest real token to its left, or 0.
    """
    columns = torch.arange(key_mask.shape[-1], device=key_mask.device)
    first = key_mask.int().argmax(-1, keepdim=True)  # (B, 1)
    nearest = torch.where(key_mask, columns, first).cummax(-1).values  # (B, S)
    ids = document_ids.gather(-1, nearest)
    numbers = F.pad((ids[:, 1:] != ids[:, :-1]).cumsum(-1), (1, 0))
    ordered = ids.sort(-1).values
    kinds = (ordered[:, 1:] != ordered[:, :-1]).sum(-1)  # different ids, less one
    return numbers, kinds == numbers[:, -1]


def positions_from_mask(
    key_mask: Tensor, query_length: int, documents: Tensor | None = None
) -> Tensor:
    """Position of each of the last T columns: real tokens before it, in its document.

    ``key_mask`` (B, S) bool and ``documents`` (B, S), see `numbered_documents`
    -> (B, T) int64. A padding column gets the position of the nearest real
    token to its left, or 0; nobody looks at it.
    """
    positions = key_mask.long().cumsum(-1) - 1
    if documents is not None:
        begins = F.pad(documents[:, 1:] > documents[:, :-1], (1, 0))
        positions = positions - torch.where(begins, positions, 0).cummax(-1).values
    return positions.clamp_(min=0)[:, -query_length:]


def causal_visibility(query_length: int, key_length: int, device: torch.device) -> Tensor:
    """(T, S) bool, True where a key is not after its query; aligned to the end of the keys."""
    keys = torch.arange(key_length, device=device)  # (S,)
    queries = torch.arange(key_length - query_length, key_length, device=device)  # (T,)
    return keys <= queries[:, None]


def padded_causal_visibility(
    key_mask: Tensor, query_length: int, documents: Tensor | None = None
) -> Tensor:
    """(B, 1, T, S) bool: causal, and no padding key for anyone but itself.

    ``key_mask`` (B, S) bool, True at real tokens; ``documents`` (B, S), see
    `numbered_documents`, hide all keys of other documents.
    """
    key_length = key_mask.shape[-1]
    keys = torch.arange(key_length, device=key_mask.device)  # (S,)
    queries = keys[key_length - query_length :, None]  # (T, 1)
    causal, own = keys <= queries, keys == queries  # (T, S)
    seen = causal & key_mask[:, None, None, :]  # (B, 1, T, S)
    if documents is not None:
        seen = seen & (documents[:, None, -query_length:, None] == documents[:, None, None, :])
    return seen | own


def finite_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """An additive mask in ``dtype`` without −inf, so that a row hidden as a whole stays finite."""
    return mask.to(dtype).clamp(min=torch.finfo(dtype).min)
