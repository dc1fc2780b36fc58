"""The key/value cache: grows like a slice, reads like the documented tuple.

A KVCache is a handle: "the first ``length`` columns of these buffers". A
forward pass returns a new, longer handle and leaves the old one as it was. If
the old handle ends where its buffers are filled, the new columns are written in
place behind it; if somebody has already written there (the old cache is used
twice), or there is no room, the columns are copied first. Under grad they are
concatenated, since autograd must not see its saved tensors change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gpt2.errors import ArgumentError, ArgumentTypeError

KeyValue = tuple[Tensor, Tensor]


@dataclass
class _Buffer:
    """Room for the keys and values of one layer; shared by the handles that see it."""

    keys: Tensor  # (B, H, C, Dh), C >= filled
    values: Tensor  # (B, H, C, Dh)
    filled: int  # columns that belong to some handle

    def has_room(self, start: int, columns: int) -> bool:
        """Whether ``columns`` more may be written in place from column ``start`` on."""
        writable = not self.keys.is_inference() or torch.is_inference_mode_enabled()
        return writable and self.filled == start and start + columns <= self.keys.shape[2]


class KVCache:
    """Keys and values of all layers, and the mask of what they hold.

    ``cache[i]`` is ``(keys, values)`` of layer i, each (B, H, S, Dh); ``len``
    and iteration go over layers, as with the documented tuple of tuples.
    ``length`` is S. ``mask`` is (B, S) bool, True at real tokens, or None where
    all are real. ``capacity`` columns are allocated at the first write, so that
    a caller who knows the final length pays for no copy.
    """

    def __init__(self, n_layer: int, *, capacity: int = 0) -> None:
        self._buffers: list[_Buffer | None] = [None] * n_layer
        self.length = 0
        self.capacity = capacity
        self.mask: Tensor | None = None

    # -- the documented tuple of (key, value) ---------------------------------------------------

    def __len__(self) -> int:
        return len(self._buffers)

    def __getitem__(self, layer: int) -> KeyValue:
        buffer = self._buffers[layer]
        if buffer is None:
            raise IndexError(f"layer {layer} of the cache holds nothing yet")
        return buffer.keys[:, :, : self.length], buffer.values[:, :, : self.length]

    def __iter__(self) -> Iterator[KeyValue]:
        return (self[layer] for layer in range(len(self)) if self.length)

    def __repr__(self) -> str:
        return f"KVCache(layers={len(self)}, length={self.length}, batch_size={self.batch_size})"

    @classmethod
    def from_legacy_cache(cls, layers: Iterable[Sequence[Tensor]]) -> KVCache:
        """From a tuple with (keys, values) per layer, each (B, H, S, Dh); nothing is copied."""
        try:
            pairs = [tuple(pair) for pair in layers]
        except TypeError:  # one of them is no sequence
            pairs = []
        tensors = [t for pair in pairs for t in pair]
        if (
            not pairs
            or any(len(pair) != 2 for pair in pairs)
            or not all(isinstance(t, Tensor) for t in tensors)
        ):
            raise ArgumentTypeError(
                "past_key_values must be a cache of this library or have a (key, value) pair of "
                f"tensors per layer; found a {type(layers).__name__} that is neither"
            )
        shapes = {tuple(t.shape) for t in tensors}
        if any(len(s) != 4 for s in shapes) or len({(s[0], s[2]) for s in shapes}) != 1:
            raise ArgumentError(
                "past_key_values: keys and values of all layers must be (batch, heads, length, "
                f"head size) with one batch and one length; found {sorted(shapes)}"
            )
        cache = cls(len(pairs))
        cache.length = pairs[0][0].shape[2]
        cache._buffers = [_Buffer(k, v, cache.length) for k, v in pairs]
        return cache

    def to_legacy_cache(self) -> tuple[KeyValue, ...]:
        """The plain tuple of (keys, values), views of this cache."""
        return tuple(self)

    def get_seq_length(self) -> int:
        """Number of columns held, padding included."""
        return self.length

    @property
    def batch_size(self) -> int | None:
        """Rows held, or None while empty."""
        first = self._buffers[0]
        return None if first is None else first.keys.shape[0]

    # -- growing --------------------------------------------------------------------------------

    def extended(self, columns: int, mask: Tensor | None) -> KVCache:
        """A handle that is ``columns`` longer, to be filled by one ``update`` per layer.

        ``mask`` is (B, S + columns) bool over everything held then, or None.
        """
        longer = KVCache(len(self), capacity=self.capacity)
        longer._buffers = list(self._buffers)
        longer.length = self.length + columns
        longer.mask = mask
        return longer

    def update(self, layer: int, keys: Tensor, values: Tensor) -> KeyValue:
        """Put (B, H, T, Dh) into the last T columns; returns all columns, (B, H, S, Dh) each."""
        buffer, start = self._buffers[layer], self.length - keys.shape[2]
        past = None if buffer is None else (buffer.keys, buffer.values)
        for held, new in zip(past or (), (keys, values), strict=False):
            if (held.shape[:2], held.shape[3]) != (new.shape[:2], new.shape[3]):
                raise ArgumentError(
                    f"past_key_values: layer {layer} holds (batch, heads, length, head size) "
                    f"{tuple(held.shape)}, the model's new tokens {tuple(new.shape)}"
                )
        tracked = (keys, *past) if past else (keys,)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tracked):
            if past:
                keys = torch.cat([past[0][:, :, :start], keys], dim=2)
                values = torch.cat([past[1][:, :, :start], values], dim=2)
            self._buffers[layer] = _Buffer(keys, values, self.length)
            return keys, values
        if buffer is None or not buffer.has_room(start, keys.shape[2]):
            buffer = self._reallocate(buffer, start, keys)
            self._buffers[layer] = buffer
        buffer.keys[:, :, start : self.length] = keys
        buffer.values[:, :, start : self.length] = values
        buffer.filled = self.length
        return self[layer]

    def _reallocate(self, old: _Buffer | None, start: int, like: Tensor) -> _Buffer:
        """A fresh buffer with the first ``start`` columns of ``old``.

        It doubles, so that appending one column at a time copies each column
        a constant number of times on average.
        """
        room = max(self.capacity, self.length if old is None else 2 * self.length)
        shape = (like.shape[0], like.shape[1], room, like.shape[3])
        fresh = _Buffer(like.new_empty(shape), like.new_empty(shape), start)
        if old is not None:
            fresh.keys[:, :, :start] = old.keys[:, :, :start]
            fresh.values[:, :, :start] = old.values[:, :, :start]
        return fresh

    # -- reshaping the batch --------------------------------------------------------------------

    def select(self, rows: Tensor) -> KVCache:
        """The cache of the given rows (int64 or bool, as an index), in their order; a copy."""
        chosen = KVCache(len(self), capacity=self.capacity)
        chosen.length = self.length
        chosen.mask = None if self.mask is None else self.mask[rows]
        for layer, buffer in enumerate(self._buffers):
            if buffer is not None:
                chosen._buffers[layer] = _Buffer(
                    buffer.keys[rows], buffer.values[rows], self.length
                )
        return chosen

    def crop(self, length: int) -> KVCache:
        """The first ``length`` columns; shares the buffers."""
        if not 0 <= length <= self.length:
            raise ArgumentError(f"crop: length must be from 0 to {self.length}, not {length}")
        shorter = self.extended(length - self.length, None)
        shorter.mask = None if self.mask is None else self.mask[:, :length]
        return shorter


def as_cache(past: KVCache | Iterable[Sequence[Tensor]], n_layer: int) -> KVCache:
    """``past_key_values`` as a KVCache; ArgumentError where it has another number of layers."""
    cache = past if isinstance(past, KVCache) else KVCache.from_legacy_cache(past)
    if len(cache) != n_layer:
        raise ArgumentError(f"past_key_values has {len(cache)} layers, the model {n_layer}")
    return cache


def _flatten(cache: KVCache) -> tuple[list[Any], Any]:
    pairs = [cache[i] if cache._buffers[i] is not None else None for i in range(len(cache))]
    return [pairs, cache.mask], (cache.length, cache.capacity)


def _unflatten(children: Iterable[Any], context: Any) -> KVCache:
    pairs, mask = children
    cache = KVCache(len(pairs), capacity=context[1])
    cache.length, cache.mask = context[0], mask
    length = cache.length
    cache._buffers = [None if p is None else _Buffer(p[0], p[1], length) for p in pairs]
    return cache


pytree.register_pytree_node(
    KVCache, _flatten, _unflatten, serialized_type_name="gpt2.modeling.cache.KVCache"
)
