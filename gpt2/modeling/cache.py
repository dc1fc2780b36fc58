"""The key/value cache: grows like a slice, reads like the documented tuple.

A KVCache is a handle: "the first ``length`` columns of these buffers". A
forward pass returns a new, longer handle and leaves the old one as it was. If
the old handle ends where its buffers are filled, the new columns are written in
place behind it; if somebody has already written there (the old cache is used
twice), or there is no room, the columns are copied first. Under grad they are
concatenated, since autograd must not see its saved tensors change.

The fixed-size cache for compiled decoding is in gpt2/modeling/static_cache.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gpt2.errors import ArgumentError, ArgumentTypeError

KeyValue = tuple[Tensor, Tensor]


@dataclass
class Buffer:
    """Room for the keys and values of one layer; shared by the handles that see it."""

    keys: Tensor  # (B, H, C, Dh), C >= filled
    values: Tensor  # (B, H, C, Dh)
    filled: int  # columns that belong to some handle

    def has_room(self, start: int, columns: int) -> bool:
        """Whether ``columns`` more may be written in place from column ``start`` on."""
        return (
            not is_frozen(self.keys)
            and self.filled == start
            and start + columns <= self.keys.shape[2]
        )


@dataclass(frozen=True)
class EncoderColumns:
    """Keys and values of an encoder's states: computed once, read by every later pass.

    ``layers`` fill up during the first pass. ``source`` is the tensor of states
    that they come from, where it is known; ``mask`` (B, Se) with 1 at real ones.
    """

    layers: list[KeyValue | None]  # each (B, H, Se, Dh)
    mask: Tensor | None = None
    source: Tensor | None = None
    version: int = 0

    @property
    def length(self) -> int:
        """Se; ArgumentError where the pass that was to compute them has failed."""
        found = [pair[0].shape[2] for pair in self.layers if pair is not None]
        if len(found) < len(self.layers):
            raise ArgumentError(
                f"past_key_values has the encoder's keys for {len(found)} of {len(self.layers)} "
                "layers, since a forward pass has failed; give encoder_hidden_states again"
            )
        return found[0]

    @classmethod
    def of(cls, states: Tensor, n_layer: int) -> EncoderColumns:
        """Nothing computed yet, for these states."""
        version = 0 if _uncounted(states) else states._version
        return cls([None] * n_layer, source=states, version=version)

    def come_from(self, states: Tensor) -> bool:
        """Whether computing the keys and values of ``states`` again would give these.

        True only where that is sure: the very same tensor, unchanged since. Under
        grad never, since the gradient must reach what they are computed with; nor
        in inference mode or a compiled graph, which do not say what has changed.
        """
        if self.source is not states or torch.is_grad_enabled() or _uncounted(states):
            return False
        return states._version == self.version

    def at(self, layer: int) -> KeyValue | None:
        """Keys and values of a layer, (B, H, Se, Dh) each; None while it has none."""
        pair = self.layers[layer]
        if pair is not None and is_frozen(pair[0]):
            pair = self.layers[layer] = (pair[0].clone(), pair[1].clone())  # autograd may save it
        return pair

    def select(self, rows: Tensor) -> EncoderColumns:
        """Those of the given rows; a copy, of which no source is known."""
        layers = [None if pair is None else (pair[0][rows], pair[1][rows]) for pair in self.layers]
        return EncoderColumns(layers, None if self.mask is None else self.mask[rows])


class KVCache:
    """Keys and values of all layers, and the mask of what they hold.

    ``cache[i]`` is ``(keys, values)`` of layer i, each (B, H, S, Dh); ``len``,
    slices and iteration go over layers, as with the documented tuple of tuples.
    With cross-attention it is ``(keys, values, cross_keys, cross_values)``, the
    latter two (B, H, Se, Dh) of the encoder's states. ``length`` is S. ``mask``
    is (B, S) bool, True at real tokens, or None where all are real.
    ``capacity`` columns are allocated at the first write, so that a caller who
    knows the final length pays for no copy.
    """

    length: int

    def __init__(self, n_layer: int, *, capacity: int = 0) -> None:
        self._buffers: list[Buffer | None] = [None] * n_layer
        self._own = 0  # the column from which on no other handle shares the buffers
        self.length = 0
        self.capacity = capacity
        self.mask: Tensor | None = None
        self.encoder: EncoderColumns | None = None

    # -- the documented tuple of (key, value) ---------------------------------------------------

    def __len__(self) -> int:
        return len(self._buffers)

    @overload
    def __getitem__(self, layer: int) -> tuple[Tensor, ...]: ...

    @overload
    def __getitem__(self, layer: slice) -> tuple[tuple[Tensor, ...], ...]: ...

    def __getitem__(
        self, layer: int | slice
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], ...]:
        if isinstance(layer, slice):
            return tuple(self)[layer]
        cross = None if self.encoder is None else self.encoder.layers[layer]
        return (*self._columns(layer), *(cross or ()))

    def _columns(self, layer: int) -> KeyValue:
        buffer = self._buffers[layer]
        if buffer is None:
            raise IndexError(f"layer {layer} of the cache holds nothing yet")
        return buffer.keys[:, :, : self.length], buffer.values[:, :, : self.length]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[layer] for layer in range(len(self)) if self.length)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(layers={len(self)}, length={self.length}, "
            f"batch_size={self.batch_size})"
        )

    @classmethod
    def from_legacy_cache(cls, layers: Iterable[Sequence[Tensor]]) -> KVCache:
        """From a tuple with (keys, values) per layer, each (B, H, S, Dh); nothing is copied.

        With cross-attention (keys, values, cross_keys, cross_values).
        """
        try:
            # transformers' own caches yield a None behind the pair
            found = [tuple(t for t in of_layer if t is not None) for of_layer in layers]
        except TypeError:  # one of them is no sequence
            found = []
        tensors = [t for of_layer in found for t in of_layer]
        if {len(of_layer) for of_layer in found} not in ({2}, {4}) or not all(
            isinstance(t, Tensor) for t in tensors
        ):
            raise ArgumentTypeError(
                "past_key_values must be a cache of this library or have a (key, value) pair of "
                "tensors per layer, or (key, value, cross key, cross value); found a "
                f"{type(layers).__name__} that is neither"
            )
        own, cross = [(t[0], t[1]) for t in found], [t[2:] for t in found]
        for pairs, what in ((own, "keys and values"), (cross, "cross keys and values")):
            shapes = {tuple(t.shape) for pair in pairs for t in pair}
            if any(len(s) != 4 for s in shapes) or len({(s[0], s[2]) for s in shapes}) > 1:
                raise ArgumentError(
                    f"past_key_values: {what} of all layers must be (batch, heads, length, "
                    f"head size) with one batch and one length; found {sorted(shapes)}"
                )
        cache = KVCache(len(own))
        cache.length = own[0][0].shape[2]
        cache._buffers = [Buffer(k, v, cache.length) for k, v in own]
        if any(cross):
            if cross[0][0].shape[0] != cache.batch_size:
                raise ArgumentError(
                    f"past_key_values: the cross keys have {cross[0][0].shape[0]} rows, "
                    f"the keys {cache.batch_size}"
                )
            cache.encoder = EncoderColumns([(t[0], t[1]) for t in cross])
        return cache

    def to_legacy_cache(self) -> tuple[tuple[Tensor, ...], ...]:
        """The plain tuple with (keys, values) per layer, and cross ones; views of this cache."""
        return tuple(self)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of columns held, padding included; the same for every layer."""
        return self.length

    def get_max_cache_shape(self) -> int | None:
        """The most columns it can hold: None, it grows."""
        return None

    def get_max_length(self) -> int | None:
        """get_max_cache_shape under its older documented name."""
        return self.get_max_cache_shape()

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
        longer._own = self._own = self.length  # what this handle has, both have now
        longer.length = self.length + columns
        longer.mask = mask
        longer.encoder = self.encoder
        return longer

    def attend_to(self, states: Tensor | None, mask: Tensor | None) -> None:
        """Let cross-attention see an encoder's ``states`` (B, Se, D), ``mask`` (B, Se) or None.

        Keys and values that are held are kept where they come from these very
        states, else they are computed again. None is what is held: its states,
        and without states its mask.
        """
        held = self.encoder
        if states is not None and (held is None or not held.come_from(states)):
            held = EncoderColumns.of(states, len(self))
        if held is not None and (states is not None or mask is not None):
            self.encoder = replace(held, mask=mask)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> KeyValue:
        """Put (B, H, T, Dh) into the last T columns; returns all columns, (B, H, S, Dh) each."""
        buffer, start = self._buffers[layer], self.length - keys.shape[2]
        if buffer is not None:
            require_alike(layer, buffer.keys, keys)
        past = None if buffer is None else (buffer.keys, buffer.values)
        tracked = (keys, *past) if past else (keys,)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tracked):
            if past:
                keys = torch.cat([past[0][:, :, :start], keys], dim=2)
                values = torch.cat([past[1][:, :, :start], values], dim=2)
            self._buffers[layer] = Buffer(keys, values, self.length)
            return keys, values
        buffer = self._with_room(layer, keys.shape[2], keys)
        buffer.keys[:, :, start : self.length] = keys
        buffer.values[:, :, start : self.length] = values
        return self._columns(layer)

    def reserve(self, layer: int) -> KeyValue:
        """The buffers of a layer that holds something, (B, H, C, Dh) each, with room for one more.

        The caller writes column S − 1 and reads the first S, for S = ``length``.
        """
        buffer = self._buffers[layer]
        assert buffer is not None
        buffer = self._with_room(layer, 1, buffer.keys)
        return buffer.keys, buffer.values

    def fits(self, layer: int, rows: int, heads: int, size: int) -> bool:
        """Whether something is held for a layer, and of that many rows, heads and head size."""
        buffer = self._buffers[layer]
        return buffer is not None and (*buffer.keys.shape[:2], buffer.keys.shape[3]) == (
            rows, heads, size,
        )  # fmt: skip

    def _with_room(self, layer: int, columns: int, like: Tensor) -> Buffer:
        """The layer's buffer, whose last ``columns`` are to be written; ``like`` (B, H, ·, Dh)."""
        buffer, start = self._buffers[layer], self.length - columns
        if buffer is None or not buffer.has_room(start, columns):
            buffer = self._buffers[layer] = self._reallocate(buffer, start, like)
        buffer.filled = self.length
        return buffer

    def _reallocate(self, old: Buffer | None, start: int, like: Tensor) -> Buffer:
        """A fresh buffer with the first ``start`` columns of ``old``.

        It doubles, so that appending one column at a time copies each column
        a constant number of times on average.
        """
        room = max(self.capacity, self.length if old is None else 2 * self.length)
        shape = (like.shape[0], like.shape[1], room, like.shape[3])
        fresh = Buffer(like.new_empty(shape), like.new_empty(shape), start)
        if old is not None:
            fresh.keys[:, :, :start] = old.keys[:, :, :start]
            fresh.values[:, :, :start] = old.values[:, :, :start]
        return fresh

    # -- reshaping ------------------------------------------------------------------------------

    def select(self, rows: Tensor) -> KVCache:
        """The cache of the given rows (int64 or bool, as an index), in their order; a copy."""
        chosen = KVCache(len(self), capacity=self.capacity)
        chosen.length = self.length
        chosen.mask = None if self.mask is None else self.mask[rows]
        chosen.encoder = None if self.encoder is None else self.encoder.select(rows)
        for layer, buffer in enumerate(self._buffers):
            if buffer is not None:
                chosen._buffers[layer] = Buffer(buffer.keys[rows], buffer.values[rows], self.length)
        return chosen

    def reorder_cache(self, beam_idx: Tensor) -> Self:
        """Change this cache to the rows ``beam_idx`` (N,), in their order, and return it."""
        vars(self).update(vars(self.select(beam_idx)))
        return self

    def batch_select_indices(self, indices: Tensor) -> Self:
        """Change this cache to the rows ``indices``, as reorder_cache does, and return it."""
        return self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> Self:
        """Change this cache to ``repeats`` copies of each row, side by side, and return it."""
        if self.batch_size is None:
            return self
        rows = torch.arange(self.batch_size).repeat_interleave(repeats)
        return self.reorder_cache(rows)

    def move_columns(self, sources: Tensor, target: int) -> None:
        """In each row, write column ``sources`` (B,) over column ``target``, in place."""
        rows = torch.arange(len(sources), device=sources.device)
        for buffer in self._buffers:
            if buffer is not None:
                buffer.keys[:, :, target] = buffer.keys[rows, :, sources]
                buffer.values[:, :, target] = buffer.values[rows, :, sources]

    def crop(self, max_length: int) -> Self:
        """Change this cache to its first ``max_length`` columns, and return it.

        A negative number takes that many off the end. Columns that no other
        handle has are written over by what comes next, without a copy: to crop
        what the last forward pass appended costs nothing.
        """
        length = self._cropped_length(max_length)
        for buffer in self._buffers:
            if buffer is not None and buffer.filled == self.length and length >= self._own:
                buffer.filled = length
        self.length = length
        self.mask = None if self.mask is None else self.mask[:, :length]
        return self

    def _cropped_length(self, max_length: int) -> int:
        length = max_length + (self.length if max_length < 0 else 0)
        if not 0 <= length <= self.length:
            raise ArgumentError(
                f"crop: max_length must be from -{self.length} to {self.length}, not {max_length}"
            )
        return length


def require_alike(layer: int, held: Tensor, new: Tensor) -> None:
    """Refuse what is held for another batch, number of heads, head size, dtype or device.

    ``held`` (B, H, S, Dh) is the cache's, ``new`` (B, H, T, Dh) of the tokens that read it.
    """
    if (held.shape[:2], held.shape[3]) != (new.shape[:2], new.shape[3]):
        raise ArgumentError(
            f"past_key_values: layer {layer} holds (batch, heads, length, head size) "
            f"{tuple(held.shape)}, the model's new tokens {tuple(new.shape)}"
        )
    # Under autocast the products see to a common dtype themselves.
    mixed = held.dtype != new.dtype and not torch.is_autocast_enabled(new.device.type)
    if mixed or held.device != new.device:
        raise ArgumentError(
            f"past_key_values: layer {layer} is {held.dtype} on {held.device}, the model's "
            f"new tokens are {new.dtype} on {new.device}; bring the cache to theirs"
        )


def is_frozen(tensor: Tensor) -> bool:
    """Whether autograd refuses to write to ``tensor`` or to save it, for it is inference mode's."""
    if torch.compiler.is_compiling():  # cannot ask; a graph is not compiled for both modes
        return False
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def _uncounted(tensor: Tensor) -> bool:
    """Whether a write to ``tensor`` would go unnoticed: in inference mode, and in a graph."""
    return torch.compiler.is_compiling() or tensor.is_inference()


def as_cache(past: KVCache | Iterable[Sequence[Tensor]], n_layer: int) -> KVCache:
    """``past_key_values`` as a KVCache; ArgumentError where it has another number of layers."""
    cache = past if isinstance(past, KVCache) else KVCache.from_legacy_cache(past)
    if len(cache) != n_layer:
        raise ArgumentError(f"past_key_values has {len(cache)} layers, the model {n_layer}")
    return cache


def _flatten(cache: KVCache) -> tuple[list[Any], Any]:
    pairs = [cache._columns(i) if cache._buffers[i] else None for i in range(len(cache))]
    encoder = [] if cache.encoder is None else [cache.encoder.layers, cache.encoder.mask]
    return [pairs, cache.mask, *encoder], cache.capacity


def _unflatten(children: Iterable[Any], capacity: Any) -> KVCache:
    pairs, mask, *encoder = children
    cache = KVCache(len(pairs), capacity=capacity)
    cache.mask = mask
    # The keys tell the length: in an exported program it may be a symbol, which no file can hold.
    if pairs[0] is not None and isinstance(pairs[0][0], Tensor):
        cache.length = pairs[0][0].shape[2]
    length = cache.length
    cache._buffers = [None if p is None else Buffer(p[0], p[1], length) for p in pairs]
    cache.encoder = EncoderColumns(*encoder) if encoder else None
    return cache


pytree.register_pytree_node(
    KVCache, _flatten, _unflatten, serialized_type_name="gpt2.modeling.cache.KVCache"
)
