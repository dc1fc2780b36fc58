"""StaticDecoder: decode steps over a cache of fixed shape, each the same graph.

A step of GPT-2 on a GPU is hundreds of small kernels, and starting them takes
longer than running them. Compiled with CUDA graphs (the model's
``step_compile_mode = "reduce-overhead"``) a step is started as one. That wants
the same shapes and the same memory each time, so:

- the prompt goes through the model eagerly, with a growing cache, whatever its
  width and its padding; what it has left is then copied into a StaticCache;
- the StaticCache has a power of two of columns, so that calls share graphs;
- rows that have ended stay, and are fed fillers;
- cache and graphs are kept for the model's next call of the same shape.

Shapes: B rows of the batch, C columns of the cache, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gpt2.errors import ArgumentError, BackendError
from gpt2.fieldchecks import check_choice
from gpt2.generation.decoder import Decoder
from gpt2.generation.prompt import CausalLM, Prompt
from gpt2.modeling.cache import KVCache
from gpt2.modeling.static_cache import StaticCache, stay_in_place
from gpt2.progress import announce

Step = Callable[[CausalLM, Tensor, StaticCache], Tensor]

#: what ``step_compile_mode`` may be, beside None
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
#: caches that are kept for a model while nobody decodes with them; the oldest go first
KEPT = 4
FEWEST_COLUMNS = 64


def decode_step(model: CausalLM, tokens: Tensor, cache: StaticCache) -> Tensor:
    """Logits (B, V) float32 behind ``tokens`` (B, 1), which go into the next column of ``cache``.

    A row that has ended and stays may run past the last position; it stays at that.
    """
    positions = cache.real_tokens().clamp(max=model.config.n_positions - 1)  # (B,)
    output = model(
        tokens,
        past_key_values=cache,
        position_ids=positions[:, None],
        use_cache=True,
        output_attentions=False,
        output_hidden_states=False,
        return_dict=True,
        logits_to_keep=1,
        check_inputs=False,  # lengths are known beforehand
    )
    return output.logits[:, -1].float()  # type: ignore[no-any-return]


def compiled(mode: str) -> Step:
    """`decode_step`, compiled by itself.

    torch keeps graphs by code object, at most eight for one. A copy of the code
    for each shape and model has room of its own, and is freed with its owner.
    """
    own = FunctionType(decode_step.__code__.replace(), decode_step.__globals__)
    return torch.compile(own, fullgraph=True, dynamic=False, mode=mode)


def columns_for(needed: int) -> int:
    """C for so many columns: the next power of two.

    A step reads all C, at most twice what it must: of 124M, 9 % more bytes at 1024 columns.
    """
    return max(FEWEST_COLUMNS, 1 << (needed - 1).bit_length())


Key = tuple[Any, ...]  # all that a graph is compiled for


@dataclass(eq=False)
class Room:
    """A cache and the place of the tokens that are fed: memory that does not move."""

    key: Key
    cache: StaticCache
    tokens: Tensor  # (B, 1)


@dataclass(eq=False)
class Kept:
    """What a model has between calls: rooms nobody is in, the oldest first, and compiled steps."""

    rooms: list[Room] = field(default_factory=list)
    steps: dict[Key, Step] = field(default_factory=dict)


# Beside the models, not in them: never saved, pickled or copied, and gone when they are.
_kept: WeakKeyDictionary[CausalLM, Kept] = WeakKeyDictionary()
_lock = threading.Lock()  # several threads may generate with one model


def enter_room(model: CausalLM, past: KVCache, columns: int) -> Room:
    """A room of ``columns`` that holds what ``past`` holds; nobody else is in it."""
    layers = [(tuple(k.shape[:2]), k.shape[3], k.dtype, k.device) for k, *_ in past]
    key: Key = (columns, *layers)
    with _lock:
        kept = _kept.setdefault(model, Kept())
        room = next((r for r in reversed(kept.rooms) if r.key == key), None)
        if room is not None:
            kept.rooms.remove(room)
    with torch.inference_mode(False):  # memory that can be written to in either mode
        if room is None:
            cache = StaticCache.like(past, columns)
            tokens = torch.zeros(len(past[0][0]), 1, dtype=torch.int64, device=past[0][0].device)
            stay_in_place(tokens)
            room = Room(key, cache, tokens)
        room.cache.load(past)
    return room


def leave_room(model: CausalLM, room: Room) -> None:
    """Keep it for the model's next call, and no more than KEPT in all."""
    room.cache.encoder = None
    with _lock:
        kept = _kept.setdefault(model, Kept())
        kept.rooms.append(room)
        del kept.rooms[:-KEPT]


def step_for(model: CausalLM, room: Room, mode: str | None) -> Step:
    """`decode_step`, compiled once for each kind of room where ``mode`` says how."""
    if mode is None:
        return decode_step
    encoder = room.cache.encoder
    seen = () if encoder is None else (encoder.length, encoder.mask is None)
    key = (mode, *seen, *room.key)
    with _lock:
        steps = _kept[model].steps
        if key not in steps:
            rows, columns = len(room.tokens), room.cache.capacity
            announce(
                f"compiling the decode step for {rows} rows and {columns} columns, mode {mode!r} "
                "(once for each such shape)"
            )
            steps[key] = compiled(mode)
        return steps[key]


class StaticDecoder(Decoder):
    """See the module. One token per row and step, and the same rows to the end.

    Raises ArgumentError for an unknown ``step_compile_mode``, and BackendError
    where attention or the compiler cannot do it.
    """

    keeps_all_rows = True

    def __init__(
        self,
        model: CausalLM,
        prompt: Prompt,
        capacity: int,
        *,
        past: KVCache | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(model, prompt, capacity, past=past, extras=extras)
        self._mode: str | None = getattr(model, "step_compile_mode", None)
        if self._mode is not None:
            check_choice(ArgumentError, "step_compile_mode", self._mode, MODES)
        if model.config.attn_implementation == "flash_attention_2":
            raise BackendError(
                "flash_attention_2 cannot hide the unwritten columns of a cache of fixed shape; "
                "build the model with attn_implementation='sdpa' or 'eager', or say "
                "cache_implementation='dynamic'"
            )
        self._room: Room | None = None  # entered with the first step

    def decode_one(self, tokens: Tensor, so_far: Tensor) -> Tensor:
        if self._room is None:
            assert self.past is not None
            columns = columns_for(self.prompt.width + self.capacity)
            self._room = enter_room(self.model, self.past, columns)
            self.past = None  # its memory is free from here on
            self._step = step_for(self.model, self._room, self._mode)
        self.columns += 1
        self._room.tokens.copy_(tokens[:, None])
        return self._run(self._room)

    def _run(self, room: Room) -> Tensor:
        if self._mode is not None and room.tokens.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            # In one mode always, or there would be a graph for each.
            with torch.inference_mode(False), torch.no_grad():
                # The next run of a CUDA graph writes over what this one returns.
                return self._step(self.model, room.tokens, room.cache).clone()
        except RuntimeError as error:
            if self._mode is None or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            inner = getattr(error, "inner_exception", error)  # what the compiler itself has said
            reason = f"{type(inner).__name__}: {inner}".strip().split("\n", 1)[0]
            raise BackendError(
                f"the decode step could not be compiled with step_compile_mode={self._mode!r}: "
                f"{reason}; with model.step_compile_mode = None it runs as it is"
            ) from error

    def keep_rows(self, rows: Tensor) -> None:
        if self._room is None:
            super().keep_rows(rows)
        else:
            assert len(rows) == len(self._room.tokens)
            self._room.cache.reorder_cache(rows)

    def held(self) -> KVCache | None:
        if self._room is not None:
            self.past = self._room.cache.grown()
        return self.past

    def cache_of(self, lengths: Sequence[int]) -> KVCache | None:
        self.past = self.held()
        return super().cache_of(lengths)

    def close(self) -> None:
        if self._room is not None:
            leave_room(self.model, self._room)
            self._room = None
