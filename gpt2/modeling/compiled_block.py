"""Blocks, for one new token of one row, as one compiled function over the growing cache.

What is around it stays eager: a step calls one function per few blocks, compiled
once for all of them, for all lengths and calls. Four blocks in one, rather than
one, save 0.4 ms of the 6.9 of a step with int8 weights of the 124M shape, in
which each call costs 80 µs outside of its loops; all twelve save no more, and
take half a minute to compile.

For several rows the products are best left to oneDNN (gpt2/modeling/linear.py),
and attention alone is compiled: of 8 rows over 64 bfloat16 columns 2.5 ms of a
step, where torch's kernels take 4.2 in float32 and more in bfloat16.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.modeling.activations import gelu_tanh
from gpt2.modeling.cache import KVCache
from gpt2.modeling.linear import reduced_product
from gpt2.modeling.masks import Visibility
from gpt2.modeling.static_cache import StaticCache
from gpt2.progress import announce


def _needed(guards: Sequence[Any]) -> list[bool]:
    """Which of Dynamo's guards are looked at before each call.

    All of them take a third of what a call costs outside of its loops, in memory that the
    weights have just swept. Left out are those of the vectors among the weights, whose
    sizes follow from the matrices', of how lengths relate, which `one_token` sees to, and
    of globals, which are this library's own code.
    """
    kept = []
    for guard in guards:
        tensor = guard.value if guard.guard_type == "TENSOR_MATCH" else None
        vector = tensor is not None and tensor.dim() < 2 and guard.name.startswith("blocks[")
        kept.append(not (vector or guard.is_global or guard.guard_type == "SHAPE_ENV"))
    return kept


#: how many blocks are one compiled function; the number of GPT-2's layers is a multiple of it
_TOGETHER = 4

# The sizes are known, and asserting them again takes 0.3 ms of a step.
_OPTIONS: dict[str, Any] = {"guard_filter_fn": _needed, "size_asserts": False}


def attend(
    qkv: Tensor, keys: Tensor, values: Tensor, columns: Tensor, seen: Tensor | None, scale: Tensor
) -> Tensor:
    """Self-attention of one new token per row, (B, 3 H Dh) -> (B, H Dh), written for the compiler.

    ``keys``, ``values`` (B, H, C, Dh) are the cache's buffers, of which the
    ``columns`` (S,) = 0 … S − 1 are read, and the last of them is written
    before. ``seen`` (B, S) bool, or None where all may be seen. The products
    are reductions as well: over a cache they are bound by memory like the
    weights', and F.linear's kin would stand between the fused loops.
    """
    rows, heads, _, size = keys.shape
    q, k, v = qkv.view(rows, 3, heads, 1, size).unbind(1)  # (B, H, 1, Dh)
    # The scores would be scaled as a case of an unknown sign, in loops of its own.
    q = q.float() * scale
    keys.index_copy_(2, columns[-1:], k.to(keys.dtype))
    values.index_copy_(2, columns[-1:], v.to(values.dtype))
    keys, values = keys[:, :, : len(columns)], values[:, :, : len(columns)]  # (B, H, S, Dh)
    scores = (keys.float() * q).sum(-1)  # (B, H, S)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
    attended = (scores.softmax(-1)[..., None] * values.float()).sum(2)  # (B, H, Dh)
    return attended.flatten(1).to(qkv.dtype)


def decode_block(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    columns: Tensor,
    seen: Tensor | None,
    activation: Callable[[Tensor], Tensor],
    eps: float,
    weights: Sequence[Any],
) -> Tensor:
    """GPT2Block for one new token of one row: x (D,) -> (D,), written for the compiler.

    ``keys`` to ``seen``: `attend`'s, of one row. ``weights``: `_parts`' tensors.
    """
    scale, g1, b1, *attn, g2, b2 = weights[:11]
    c_attn, c_proj = attn[:3], attn[3:]
    c_fc, mlp_c_proj = weights[11:14], weights[14:]

    def linear(layer: Sequence[Any], x: Tensor) -> Tensor:  # (K,) -> (N,)
        return reduced_product(layer[0], layer[1], layer[2], x)

    qkv = linear(c_attn, F.layer_norm(x, x.shape, g1, b1, eps))
    x = x + linear(c_proj, attend(qkv[None], keys, values, columns, seen, scale)[0])
    h = F.layer_norm(x, x.shape, g2, b2, eps)
    return x + linear(mlp_c_proj, activation(linear(c_fc, h)))


Block = tuple[Tensor, Tensor, Callable[[Tensor], Tensor], float, Sequence[Any]]


def decode_blocks(
    x: Tensor, columns: Tensor, seen: Tensor | None, blocks: Sequence[Block]
) -> Tensor:
    """`decode_block` of each of ``blocks``: keys, values, activation, eps and weights."""
    for keys, values, activation, eps, weights in blocks:
        x = decode_block(x, keys, values, columns, seen, activation, eps, weights)
    return x


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    options = {**_OPTIONS}  # of which torch takes some out
    return torch.compile(function, fullgraph=True, options=options)


_TIMES = {
    decode_blocks: "the decode step of one row (about 20 s)",
    attend: "the attention of a decode step of several rows (about 5 s)",
}

#: the kinds of blocks met in this process, and what has been compiled for which
_kinds: dict[Any, int] = {}
_compiled_for: set[Any] = set()


def _run(
    function: Callable[..., Tensor],
    kind: Any,
    dynamic: Callable[[], Sequence[tuple[Tensor | None, int]]],
    *arguments: Any,
) -> Tensor:
    """``function``, compiled at the first call of a kind, for any sizes of the ``dynamic``."""
    kind = function, kind
    if kind in _compiled_for:
        return _compiled(function)(*arguments)
    for tensor, dimension in dynamic():
        if tensor is not None:
            torch._dynamo.mark_dynamic(tensor, dimension)
    announce(f"compiling {_TIMES[function]}; torch keeps it on disk")
    # torch's limit of 8 is there against endless recompilation; these kinds are few and known
    with torch._dynamo.config.patch(recompile_limit=64):
        result = _compiled(function)(*arguments)
    _compiled_for.add(kind)
    return result


def one_token(
    blocks: Any, x: Tensor, visibility: Visibility, cache: KVCache | None
) -> Tensor | None:
    """All GPT2Blocks of a packed model, applied to x (B, 1, D) behind ``cache``.

    None where that cannot be compiled once: it takes one token per row, a growing
    cache that already holds columns, and a mask that hides nothing but whole columns.
    """
    if cache is None or isinstance(cache, StaticCache) or torch.compiler.is_compiling():
        return None
    mask, rows = visibility.mask, len(x)
    if x.shape[1] != 1 or x.requires_grad or cache.length < 2:  # 1 would be compiled apart
        return None
    if mask is not None and not (
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape[:2] == (rows, 1)
    ):
        return None
    parts = [_parts(block) for block in blocks]
    if not all(cache.fits(i, rows, *part.heads) for i, part in enumerate(parts)):
        return None
    seen = None if mask is None else mask[:, 0, 0]  # (B, S)
    columns = torch.arange(cache.length, device=x.device)
    if rows == 1:
        return _of_one_row(parts, x, columns, seen, cache)
    return _of_rows(blocks, parts, x, columns, seen, cache)


def _of_one_row(
    parts: Sequence[_Parts],
    x: Tensor,
    columns: Tensor,
    seen: Tensor | None,
    cache: KVCache,
) -> Tensor:
    x = x[0, 0]
    mode = seen is None, torch.is_inference_mode_enabled()
    for first in range(0, len(parts), _TOGETHER):
        group = parts[first : first + _TOGETHER]
        held = [cache.reserve(first + i) for i in range(len(group))]
        kind = (*mode, held[0][0].dtype, *(part.kind for part in group))

        def lengths(held: Any = held) -> list[tuple[Tensor | None, int]]:
            return [(columns, 0), (seen, 1), *((t, 2) for pair in held for t in pair)]

        together = [(*kv, *part.rest) for kv, part in zip(held, group, strict=True)]
        x = _run(decode_blocks, kind, lengths, x, columns, seen, together)
    return x[None, None]


def _of_rows(
    blocks: Any,
    parts: Sequence[_Parts],
    x: Tensor,
    columns: Tensor,
    seen: Tensor | None,
    cache: KVCache,
) -> Tensor:
    mode = seen is None, torch.is_inference_mode_enabled()
    for layer, (block, part) in enumerate(zip(blocks, parts, strict=True)):
        keys, values = cache.reserve(layer)
        qkv = block.attn.c_attn(block.ln_1(x))[:, 0]
        kind = (*mode, keys.dtype, qkv.dtype, part.heads)

        def sizes(qkv: Any = qkv, held: Any = (keys, values)) -> list[tuple[Tensor | None, int]]:
            of_cache = [(t, dimension) for t in held for dimension in (0, 2)]
            return [(qkv, 0), (columns, 0), (seen, 0), (seen, 1), *of_cache]

        scale = part.rest[2][0]
        attended = _run(attend, kind, sizes, qkv, keys, values, columns, seen, scale)
        x = x + block.attn.c_proj(attended[:, None])
        x = x + block.mlp(block.ln_2(x))
    return x


@dataclass(frozen=True)
class _Parts:
    """What `decode_blocks` needs of a block; gathered once, since look-ups take time."""

    rest: tuple[Callable[[Tensor], Tensor], float, Sequence[Any]]  # behind a Block's cache
    heads: tuple[int, int]  # number, size
    kind: int  # a number for what tells blocks that are compiled apart


def _parts(block: Any) -> _Parts:
    held: _Parts | None = vars(block).get("_parts")
    if held is not None and held.rest[2][3] is block.attn.c_attn.weight:
        return held  # neither moved nor loaded again
    layers = block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj
    a, p, f, m = ((layer.weight, layer.scale, layer.bias) for layer in layers)
    scale = torch.tensor(block.attn.scale, device=block.ln_1.weight.device)
    norms = block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias
    tensors = (scale, *norms[:2], *a, *p, *norms[2:], *f, *m)
    shapes = tuple((t.shape, t.dtype) for t in tensors if isinstance(t, Tensor))
    heads = block.attn.num_heads, block.attn.head_dim
    act = gelu_tanh if block.mlp.c_fc.gelu else block.mlp.act
    eps = block.ln_1.eps
    kind = _kinds.setdefault((heads, act, eps, shapes), len(_kinds))
    vars(block)["_parts"] = held = _Parts((act, eps, tensors), heads, kind)
    return held
