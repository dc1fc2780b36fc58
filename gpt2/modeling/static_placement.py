"""Where new tokens stand and what they see when they go into a StaticCache.

As in gpt2/modeling/placement.py, but no shape hangs on how much is held: the
position is a tensor, and all columns are seen through a mask that hides those
not yet written. So one compiled graph serves every step.

Shapes: see the legend in gpt2/modeling/transformer.py; C columns in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.errors import ArgumentError, BackendError, SequenceLengthError
from gpt2.modeling.inputs import ValueChecks
from gpt2.modeling.masks import Visibility
from gpt2.modeling.placement import Placement, free_form_visibility, own_positions
from gpt2.modeling.static_cache import StaticCache


def place_in_static(
    *,
    past: StaticCache,
    batch_size: int,
    query_length: int,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    document_ids: Tensor | None,
    n_positions: int,
    dtype: torch.dtype,
    device: torch.device,
    checks: ValueChecks,
    as_segments: bool,
) -> Placement:
    """Positions and visibility of ``query_length`` tokens behind ``past``; runs ``checks``.

    ``attention_mask`` is (B, T), of the new tokens alone, or (B|1, 1|H, T, C).
    The result's ``key_mask`` is (B, C). ``dtype`` and ``device`` are the model's.

    Raises ArgumentError, SequenceLengthError, or what ``checks`` refuses.
    """
    if document_ids is not None:
        raise ArgumentError(
            "document_ids cannot be given together with past_key_values; with a cache, run one "
            "document per row"
        )
    if as_segments:
        raise BackendError(
            "flash_attention_2 cannot hide the unwritten columns of a StaticCache; build the model "
            "with attn_implementation='sdpa' or 'eager', or use the growing cache"
        )
    capacity, position = past.capacity, past.position
    if past.batch_size != batch_size:
        raise ArgumentError(
            f"past_key_values holds {past.batch_size} rows, the new input {batch_size}"
        )
    if position.device != device:
        raise ArgumentError(
            f"past_key_values is on {position.device}, the model on {device}; make the StaticCache "
            "with device=model.device"
        )
    columns = torch.arange(capacity, device=device)  # (C,)
    queries = past.next_columns(query_length)  # (T,)
    checks.refuse(lambda: queries[-1] >= capacity, lambda: _full(past, query_length))

    free_form = attention_mask is not None and attention_mask.dim() == 4
    new_mask: Tensor | None = None
    if attention_mask is not None and not free_form:
        if attention_mask.shape != (batch_size, query_length):
            raise ArgumentError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; expected "
                f"{(batch_size, query_length)}: with a StaticCache it is the new tokens' alone"
            )
        checks.zeros_and_ones("attention_mask", attention_mask)
        new_mask = attention_mask.to(torch.bool)
    held = past.real_tokens()  # (B|1,)
    if new_mask is None:
        counts = held[:, None] + torch.arange(1, query_length + 1, device=device)  # (B|1, T)
    else:
        counts = held[:, None] + new_mask.cumsum(-1)
    if position_ids is None:
        checks.refuse(lambda: (counts > n_positions).any(), lambda: _too_long(counts, n_positions))
        position_ids = (counts - 1).clamp(min=0)
    else:
        position_ids = own_positions(position_ids, batch_size, query_length)
        checks.positions_in_range("position_ids", position_ids, n_positions)
    all_real = -1
    if new_mask is not None:
        all_real = checks.ask(new_mask.all)
    checks.run()

    key_mask = past.mask
    if new_mask is not None and not (key_mask is None and checks.answer(all_real)):
        if key_mask is None:
            key_mask = new_mask.new_ones(batch_size, capacity)
        key_mask = key_mask.index_copy(1, queries, new_mask)

    if free_form:
        visibility = free_form_visibility(attention_mask, batch_size, query_length, capacity, dtype)
    else:
        seen = columns <= queries[:, None]  # (T, C)
        if key_mask is None:
            seen = seen[None, None]
        else:
            seen = (seen & key_mask[:, None, None, :]) | (columns == queries[:, None])
        visibility = Visibility(seen, causal=False)
    return Placement(position_ids, visibility, key_mask)


def _full(past: StaticCache, query_length: int) -> ArgumentError:
    return ArgumentError(
        f"past_key_values has room for {past.capacity} columns; {past.length} are written, and "
        f"{query_length} more do not fit: make a StaticCache with a larger max_cache_len"
    )


def _too_long(counts: Tensor, n_positions: int) -> SequenceLengthError:
    return SequenceLengthError(
        f"the sequence has {int(counts.max())} real tokens, but the model has "
        f"n_positions = {n_positions}"
    )
