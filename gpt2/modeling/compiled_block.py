"""Blocks, for one new token of one row, as one compiled function over the growing cache.

What is around it stays eager: a step calls one function per few blocks, compiled
once for all of them, for all lengths and calls. Four blocks in one, rather than
one, save 0.4 ms of the 6.9 of a step with int8 weights of the 124M shape, in
which each call costs 80 µs outside of its loops; all twelve save no more, and
take half a minute to compile. For several rows the products are best left to
oneDNN (gpt2/modeling/linear.py), and what stands between them is then too
little to be worth compiling.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """GPT2Block for one new token: x (D,) -> (D,), written for the compiler.

    ``keys``, ``values`` (1, H, C, Dh) are the cache's buffers, of which the
    ``columns`` (S,) = 0 … S − 1 are read, and the last of them is written
    before. ``seen`` (1, S) bool, or None where all may be seen. ``weights``:
    `_parts`' tensors. Attention's products are reductions as well: over a
    cache they are bound by memory like the others, and F.linear's kin would
    stand between the fused loops.
    """
    scale, g1, b1, *attn, g2, b2 = weights[:11]
    c_attn, c_proj = attn[:3], attn[3:]
    c_fc, mlp_c_proj = weights[11:14], weights[14:]
    _, heads, _, size = keys.shape

    def linear(layer: Sequence[Any], x: Tensor) -> Tensor:  # (K,) -> (N,)
        return reduced_product(layer[0], layer[1], layer[2], x)

    h = F.layer_norm(x, x.shape, g1, b1, eps)
    q, k, v = linear(c_attn, h).view(3, heads, 1, size).unbind()  # (H, 1, Dh)
    q = q * scale  # the scores would be scaled as a case of an unknown sign, in loops of its own
    keys.index_copy_(2, columns[-1:], k[None].to(keys.dtype))
    values.index_copy_(2, columns[-1:], v[None].to(values.dtype))
    keys, values = keys[0, :, : len(columns)], values[0, :, : len(columns)]  # (H, S, Dh)
    scores = (keys.float() * q).sum(-1)  # (H, S)
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    attended = (scores.softmax(-1)[..., None] * values.float()).sum(1)  # (H, Dh)
    x = x + linear(c_proj, attended.flatten())
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
def _compiled_blocks() -> Callable[..., Tensor]:
    options = {**_OPTIONS}  # of which torch takes some out
    return torch.compile(decode_blocks, fullgraph=True, options=options)


#: the kinds of blocks met in this process, and what `decode_blocks` has been compiled for
_kinds: dict[Any, int] = {}
_compiled_for: set[Any] = set()


def _first(
    kind: Any, x: Tensor, columns: Tensor, seen: Tensor | None, blocks: Sequence[Block]
) -> Tensor:
    """The first call of a kind: compile for any lengths."""
    torch._dynamo.mark_dynamic(columns, 0)
    if seen is not None:
        torch._dynamo.mark_dynamic(seen, 1)
    for keys, values, *_ in blocks:
        torch._dynamo.mark_dynamic(keys, 2)
        torch._dynamo.mark_dynamic(values, 2)
    announce("compiling the decode step (about 20 s; torch keeps it on disk)")
    # torch's limit of 8 is there against endless recompilation; these kinds are few and known
    with torch._dynamo.config.patch(recompile_limit=64):
        result = _compiled_blocks()(x, columns, seen, blocks)
    _compiled_for.add(kind)
    return result


def one_token(
    blocks: Any, x: Tensor, visibility: Visibility, cache: KVCache | None
) -> Tensor | None:
    """All GPT2Blocks of a packed model, applied to x (1, 1, D) behind ``cache``.

    None where that cannot be compiled once: it takes one token of one row, a growing
    cache that already holds columns, and a mask that hides nothing but whole columns.
    """
    if cache is None or isinstance(cache, StaticCache) or torch.compiler.is_compiling():
        return None
    mask = visibility.mask
    if x.shape[:2] != (1, 1) or x.requires_grad or cache.length < 2:  # 1 would be compiled apart
        return None
    if mask is not None and not (
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape[:2] == (1, 1)
    ):
        return None
    parts = [_parts(block) for block in blocks]
    if not all(cache.fits(i, 1, *part.heads) for i, part in enumerate(parts)):
        return None
    seen = None if mask is None else mask[:, 0, 0]  # (1, S)
    columns = torch.arange(cache.length, device=x.device)
    x = x[0, 0]
    mode = seen is None, torch.is_inference_mode_enabled()
    for first in range(0, len(parts), _TOGETHER):
        group = parts[first : first + _TOGETHER]
        held = [cache.reserve(first + i) for i in range(len(group))]
        kind = (*mode, held[0][0].dtype, *(part.kind for part in group))
        run = _compiled_blocks() if kind in _compiled_for else partial(_first, kind)
        x = run(x, columns, seen, [(*kv, *part.rest) for kv, part in zip(held, group, strict=True)])
    return x[None, None]


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
    act, eps = block.mlp.act, block.ln_1.eps
    kind = _kinds.setdefault((heads, act, eps, shapes), len(_kinds))
    vars(block)["_parts"] = held = _Parts((act, eps, tensors), heads, kind)
    return held
