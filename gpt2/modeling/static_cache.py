"""A cache of fixed size, for decode steps that are compiled once and never again.

The growing cache gets longer with every token, which a compiled graph would
have to be compiled for. This one keeps its shape: all columns are there from
the start, the position of the next one is a tensor, and attention sees all of
them with the unwritten ones masked. It is one line of decoding, changed in
place: a forward pass writes behind ``position``, moves it, and gives the same
object back.

Shapes: see the legend in gpt2/modeling/transformer.py; C columns in all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError
from gpt2.fieldchecks import check_whole
from gpt2.modeling.cache import Buffer, EncoderColumns, KeyValue, KVCache, is_frozen, require_alike


class StaticCache(KVCache):
    """Room for ``max_cache_len`` columns of ``max_batch_size`` rows, allocated at once.

    Give it as ``past_key_values`` and keep giving it. The ``attention_mask`` of
    a call is (B, T), of its new tokens alone, since what is held is remembered;
    a 4-D one is (…, T, C) and has to hide the unwritten columns itself.
    ``position`` () int64 is the number of columns written. ``length`` and
    reading the columns ask the device for it. Not for training: gradients
    cannot flow through what is written over. On a CUDA device its memory is
    marked as staying where it is, so that CUDA graphs write to it directly.
    """

    def __init__(
        self,
        config: GPT2Config,
        max_batch_size: int,
        max_cache_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_whole(ArgumentError, "max_batch_size", max_batch_size, 1)
        check_whole(ArgumentError, "max_cache_len", max_cache_len, 1)
        pairs = []
        for layer in range(config.n_layer):
            heads = config.n_head - len(config.pruned_heads.get(layer, ()))
            shape = (max_batch_size, heads, max_cache_len, config.head_dim)
            # Zeros: a hidden column has weight 0, and 0 · NaN would be NaN.
            keys = torch.zeros(shape, device=device, dtype=dtype)
            pairs.append((keys, torch.zeros_like(keys)))
        self._take(pairs)

    @classmethod
    def like(cls, past: KVCache, max_cache_len: int) -> StaticCache:
        """An empty one for the rows, heads, dtype and device of a cache that holds something."""
        cache = cls.__new__(cls)
        pairs = [
            (keys.new_zeros(shape), values.new_zeros(shape))
            for keys, values, *_ in past
            for shape in [(*keys.shape[:2], max_cache_len, keys.shape[3])]
        ]
        cache._take(pairs)
        return cache

    def _take(self, pairs: list[KeyValue]) -> None:
        """Nothing held, with room in these zeros, (B, H, C, Dh) each."""
        keys = pairs[0][0]
        self.capacity = keys.shape[2]
        self.position = torch.zeros((), dtype=torch.int64, device=keys.device)
        self.mask: Tensor | None = None  # (B, C), True where unwritten; None where all are real
        self.encoder: EncoderColumns | None = None
        # Of the pass that is running: its columns (T,), and the mask when it will be through.
        self._arriving: tuple[Tensor, Tensor | None] | None = None
        self._buffers: list[Buffer | None] = [Buffer(keys, values, 0) for keys, values in pairs]
        stay_in_place(self.position, *(t for pair in pairs for t in pair))

    @property
    def length(self) -> int:  # type: ignore[override]
        """Number of columns written; waits for the device."""
        return int(self.position)

    def get_max_cache_shape(self) -> int:
        """The most columns it can hold."""
        return self.capacity

    def reset(self) -> Self:
        """Forget everything, keep the room; returns this cache."""
        self.crop(0)
        self.mask = self.encoder = None
        return self

    def real_tokens(self) -> Tensor:
        """How many of the columns written are real tokens, (B,), or (1,) where all are."""
        if self.mask is None:
            return self.position[None]
        columns = torch.arange(self.capacity, device=self.position.device)
        return (self.mask & (columns < self.position)).sum(-1)

    # -- from and to the growing cache ----------------------------------------------------------

    def load(self, past: KVCache) -> None:
        """Hold what ``past`` holds, and nothing else, in the memory that is here; a copy.

        Only its encoder's keys are shared. ``mask`` becomes a tensor, also where
        all columns are real, and stays the same one from then on: a graph that
        was compiled with it serves prompts with and without padding.
        """
        length = past.length
        for buffer, (keys, values, *_) in zip(self._buffers, past, strict=True):
            assert buffer is not None
            for mine, theirs in ((buffer.keys, keys), (buffer.values, values)):
                mine[:, :, :length] = theirs
                mine[:, :, length:] = 0
        self.position.fill_(length)
        self.encoder = past.encoder
        if self.mask is None:
            shape = (past.batch_size or 0, self.capacity)
            self.mask = torch.ones(shape, dtype=torch.bool, device=self.position.device)
            stay_in_place(self.mask)
        self.mask.fill_(True)
        if past.mask is not None:
            self.mask[:, :length] = past.mask

    def grown(self) -> KVCache:
        """A growing cache of the columns written; a copy."""
        grown = KVCache(len(self))
        grown.length = length = self.length
        for layer, (keys, values) in enumerate(map(self._columns, range(len(self)))):
            grown._buffers[layer] = Buffer(keys.clone(), values.clone(), length)
        grown.mask = None if self.mask is None else self.mask[:, :length].clone()
        grown.encoder = self.encoder
        return grown

    # -- writing --------------------------------------------------------------------------------

    def next_columns(self, columns: int) -> Tensor:
        """Where the next ``columns`` tokens go, (T,)."""
        return self.position + torch.arange(columns, device=self.position.device)

    def extended(self, columns: int, mask: Tensor | None) -> Self:
        """This cache, about to take ``columns`` more by one ``update`` per layer.

        ``mask`` is (B, C) bool over all columns, True at those to come, or None.
        """
        self._thaw()
        self._arriving = self.next_columns(columns), mask
        return self

    def _thaw(self) -> None:
        """Made in inference mode and used outside of it, where it cannot be written to: a copy."""
        if is_frozen(self.position):
            vars(self).update(vars(self.select(torch.arange(self.batch_size or 0))))

    def update(self, layer: int, keys: Tensor, values: Tensor) -> KeyValue:
        """Write (B, H, T, Dh) behind ``position``; returns all columns, (B, H, C, Dh) each."""
        buffer = self._buffers[layer]
        assert buffer is not None
        assert self._arriving is not None
        columns, mask = self._arriving
        if torch.is_grad_enabled() and keys.requires_grad:
            raise ArgumentError(
                "past_key_values is a StaticCache, through which no gradient can flow; call the "
                "model under torch.no_grad(), or use the growing cache (past_key_values=None)"
            )
        require_alike(layer, buffer.keys, keys)
        buffer.keys.index_copy_(2, columns, keys)
        buffer.values.index_copy_(2, columns, values)
        if layer == len(self) - 1:  # not before, so that a pass that fails has not happened
            self.position.add_(keys.shape[2])  # not +=, which would make a graph return it
            self.mask, self._arriving = mask, None
        return buffer.keys, buffer.values

    # -- reshaping ------------------------------------------------------------------------------

    def select(self, rows: Tensor) -> Self:
        """The cache of the given rows (int64 or bool, as an index), in their order; a copy."""
        chosen = copy.copy(self)
        chosen.position = self.position.clone()
        chosen.mask = None if self.mask is None else self.mask[rows]
        chosen.encoder = None if self.encoder is None else self.encoder.select(rows)
        chosen._buffers = [Buffer(b.keys[rows], b.values[rows], 0) for b in self._buffers if b]
        return chosen

    def reorder_cache(self, beam_idx: Tensor) -> Self:
        """Change this cache to the rows ``beam_idx`` (N,), in their order, and return it.

        As many rows as before stay in the same memory, which a graph may have
        been recorded with.
        """
        chosen = self.select(beam_idx)
        if chosen.batch_size == self.batch_size:
            for mine, theirs in zip(self._buffers, chosen._buffers, strict=True):
                if mine and theirs:
                    mine.keys.copy_(theirs.keys)
                    mine.values.copy_(theirs.values)
            chosen._buffers, chosen.position = self._buffers, self.position
            if self.mask is not None and chosen.mask is not None:
                chosen.mask = self.mask.copy_(chosen.mask)
        vars(self).update(vars(chosen))
        return self

    def crop(self, max_length: int) -> Self:
        """Change this cache to its first ``max_length`` columns, and return it.

        A negative number takes that many off the end.
        """
        length = self._cropped_length(max_length)
        self._thaw()
        self.position.fill_(length)
        if self.mask is not None:
            self.mask = self.mask.clone()
            self.mask[:, length:] = True
        return self


def stay_in_place(*tensors: Tensor) -> None:
    """Tell CUDA graphs that these will be where they are at every step.

    Else a graph would read copies of them, and could not write to them at all.
    """
    for tensor in tensors:
        if tensor.is_cuda:
            torch._dynamo.mark_static_address(tensor, guard=False)


def _flatten(cache: StaticCache) -> tuple[list[Any], Any]:
    pairs = [(b.keys, b.values) for b in cache._buffers if b]
    encoder = [] if cache.encoder is None else [cache.encoder.layers, cache.encoder.mask]
    return [pairs, cache.position, cache.mask, *encoder], cache.capacity


def _unflatten(children: Iterable[Any], capacity: Any) -> StaticCache:
    pairs, position, mask, *encoder = children
    cache = StaticCache.__new__(StaticCache)
    cache.capacity, cache.position, cache.mask = capacity, position, mask
    cache.encoder = EncoderColumns(*encoder) if encoder else None
    cache._arriving = None
    cache._buffers = [Buffer(keys, values, 0) for keys, values in pairs]
    return cache


pytree.register_pytree_node(
    StaticCache,
    _flatten,
    _unflatten,
    serialized_type_name="gpt2.modeling.static_cache.StaticCache",
)
