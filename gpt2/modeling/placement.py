"""Where new tokens stand and what they see, from what a forward pass is given.

The attention mask, the documents, the position ids and the cache become
positions and a Visibility: a dense mask, or Segments for the backends that take
them.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError
from gpt2.modeling.cache import KVCache
from gpt2.modeling.inputs import ValueChecks, require_ids, require_tensor
from gpt2.modeling.masks import (
    Visibility,
    finite_bias,
    numbered_documents,
    padded_causal_visibility,
    positions_from_mask,
)
from gpt2.modeling.segments import causal_segments, encoder_segments


@dataclass(frozen=True)
class Placement:
    """Where the new tokens stand and what they see.

    ``position_ids`` (B|1, T); ``key_mask`` (B, S) bool, True at real tokens, or
    None where all are real (or where a 4-D mask leaves it unsaid).
    """

    position_ids: Tensor
    visibility: Visibility
    key_mask: Tensor | None


def place_tokens(
    *,
    batch_size: int,
    query_length: int,
    past: KVCache | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    document_ids: Tensor | None = None,
    n_positions: int,
    dtype: torch.dtype,
    device: torch.device,
    checks: ValueChecks,
    as_segments: bool = False,
) -> Placement:
    """Positions and visibility of ``query_length`` tokens behind ``past``; runs ``checks``.

    The mask is the truth: positions count real tokens, and n_positions limits
    them, not the padded width. With ``document_ids`` (B, T) both go by
    document. Without a mask the cache's own mask is used, and the new tokens
    are real. ``as_segments``: hide padding and documents by Segments, not by a
    dense mask.

    Raises ArgumentError, SequenceLengthError, or what ``checks`` refuses.
    """
    past_length = 0 if past is None else past.length
    key_length = past_length + query_length
    if past is not None and past.batch_size not in (None, batch_size):
        raise ArgumentError(
            f"past_key_values holds {past.batch_size} rows, the new input {batch_size}"
        )
    free_form = attention_mask is not None and attention_mask.dim() == 4
    if document_ids is not None and (free_form or past is not None):
        other = "a 4-D attention_mask" if free_form else "past_key_values"
        raise ArgumentError(
            f"document_ids cannot be given together with {other}; with a cache, run one document "
            "per row, and in place of a 4-D mask give the documents' (batch, length) mask"
        )

    key_mask: Tensor | None = None
    if attention_mask is not None and not free_form:
        key_mask = _checked_mask(attention_mask, batch_size, key_length, past_length, checks)
    elif past is not None and past.mask is not None:
        # Also under a 4-D mask: it says who sees whom, not which columns take a position.
        new = past.mask.new_ones(batch_size, query_length)
        key_mask = torch.cat([past.mask, new], dim=1)
    documents: Tensor | None = None
    if document_ids is not None:
        key_mask = torch.ones_like(document_ids, dtype=torch.bool) if key_mask is None else key_mask
        documents = _checked_documents(document_ids, key_mask, checks)

    all_real = right_padded = longest = document_count = -1
    if key_mask is not None:
        mask, counted = key_mask, positions_from_mask(key_mask, query_length, documents)  # (B, T)
        all_real = checks.ask(lambda: mask.all())
        right_padded = checks.ask(lambda: (mask[:, 1:] <= mask[:, :-1]).all())
        longest = checks.ask(lambda: counted.max() + 1)
    elif position_ids is None and key_length > n_positions:
        raise _too_long("sequence", key_length, n_positions)
    if documents is not None:
        numbers = documents
        document_count = checks.ask(lambda: (numbers[:, -1] + 1).sum())
    if position_ids is not None:
        position_ids = own_positions(position_ids, batch_size, query_length)
        checks.positions_in_range("position_ids", position_ids, n_positions)
    checks.run()

    if key_mask is not None and position_ids is None and checks.answer(longest) > n_positions:
        what = "sequence" if documents is None else "longest document"
        raise _too_long(what, checks.answer(longest), n_positions)
    if key_mask is not None and documents is None and checks.answer(all_real):
        key_mask = None
    if position_ids is None and key_mask is None:
        position_ids = torch.arange(past_length, key_length, device=device)[None]  # (1, T)
    elif position_ids is None:
        position_ids = counted

    if free_form:
        visibility = free_form_visibility(
            attention_mask, batch_size, query_length, key_length, dtype
        )
    elif key_mask is None or (documents is None and checks.answer(right_padded)):
        # Padding behind the last real token is after every query that matters: causal is enough.
        visibility = Visibility()
    elif as_segments:
        segments = causal_segments(
            key_mask, query_length, documents,
            count=checks.answer(document_count), longest=checks.answer(longest),
        )  # fmt: skip
        visibility = Visibility(segments)
    else:
        dense = padded_causal_visibility(key_mask, query_length, documents)
        visibility = Visibility(dense, causal=False)
    return Placement(position_ids, visibility, key_mask)


def _checked_mask(
    mask: Tensor, batch_size: int, key_length: int, past_length: int, checks: ValueChecks
) -> Tensor:
    """A 2-D attention mask as bool, (B, S)."""
    expected = (batch_size, key_length)
    if mask.shape != expected:
        new = key_length - past_length
        hint = f" ({past_length} cached + {new} new columns)" if past_length else ""
        raise ArgumentError(
            f"attention_mask has shape {tuple(mask.shape)}; expected {expected}{hint}"
        )
    checks.zeros_and_ones("attention_mask", mask)
    return mask.to(torch.bool)


def _checked_documents(document_ids: Tensor, key_mask: Tensor, checks: ValueChecks) -> Tensor:
    """The documents of each row, numbered in their order, (B, S)."""
    documents, in_order = numbered_documents(document_ids, key_mask)

    def error() -> ArgumentError:
        row = int((~in_order).nonzero()[0])
        return ArgumentError(
            f"document_ids: row {row} has a document in several pieces, "
            f"{document_ids[row][key_mask[row]].tolist()}; a document's tokens must stand together"
        )

    checks.refuse(lambda: ~in_order.all(), error)
    return documents


def _too_long(what: str, found: int, n_positions: int) -> SequenceLengthError:
    return SequenceLengthError(
        f"the {what} has {found} real tokens, but the model has n_positions = {n_positions}"
    )


def own_positions(position_ids: Tensor, batch_size: int, query_length: int) -> Tensor:
    require_ids("position_ids", position_ids)
    rows = position_ids.reshape(-1, position_ids.shape[-1]) if position_ids.dim() else position_ids
    if rows.shape not in ((batch_size, query_length), (1, query_length)):
        raise ArgumentError(
            f"position_ids has shape {tuple(position_ids.shape)}; "
            f"expected {(batch_size, query_length)} or {(1, query_length)}"
        )
    return rows


def free_form_visibility(
    mask: Tensor | None, batch_size: int, query_length: int, key_length: int, dtype: torch.dtype
) -> Visibility:
    """A caller's own (B|1, 1|H, T, S) mask: taken as it is, causality included."""
    assert mask is not None
    if mask.shape[-2:] != (query_length, key_length) or mask.shape[0] not in (1, batch_size):
        raise ArgumentError(
            f"attention_mask has shape {tuple(mask.shape)}; a 4-D mask must be "
            f"({batch_size} or 1, heads or 1, {query_length}, {key_length})"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ArgumentTypeError(
            "a 4-D attention_mask must be bool (True: may be seen) or floating (added to the "
            f"scores); its dtype is {mask.dtype}"
        )
    if mask.dtype != torch.bool:
        mask = finite_bias(mask, dtype)
    return Visibility(mask, causal=False)


def encoder_visibility(
    mask: Tensor | None,
    batch_size: int,
    length: int,
    query_length: int,
    checks: ValueChecks,
    *,
    as_segments: bool = False,
) -> Visibility:
    """Visibility of an encoder's states (B, length), each of T queries seeing all that are real.

    Where none of a row is real, all are seen, so that the values stay finite.
    """
    if mask is None:
        return Visibility(None, causal=False)
    require_tensor("encoder_attention_mask", mask)
    if mask.shape != (batch_size, length):
        raise ArgumentError(
            f"encoder_attention_mask has shape {tuple(mask.shape)}; expected {(batch_size, length)}"
        )
    checks.zeros_and_ones("encoder_attention_mask", mask)
    seen = mask.to(torch.bool)
    seen = seen | ~seen.any(-1, keepdim=True)  # (B, S)
    if as_segments:
        return Visibility(encoder_segments(seen, query_length), causal=False)
    return Visibility(seen[:, None, None, :], causal=False)
