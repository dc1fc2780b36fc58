"""One block, one new token per row, as one compiled function over the growing cache.

What is around it stays eager: a step calls one function per block, compiled
once for all blocks, lengths and calls. All blocks in one function were 10 %
faster at short lengths and slower at long ones, and took 25 s to compile
instead of 7.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.modeling.cache import KVCache
from gpt2.modeling.linear import packed_product, reduced_product
from gpt2.modeling.masks import Visibility
from gpt2.modeling.segments import Segments
from gpt2.modeling.static_cache import StaticCache
from gpt2.progress import announce

# A layer norm is written out before the product that reads it, not computed again for each row of
# the weight: of the 7.6 ms of a step with int8 weights of the 124M shape, that saves 1.4.
_OPTIONS: dict[str, Any] = {"realize_reads_threshold": 1, "realize_opcount_threshold": 4}


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
    """GPT2Block for one new token per row: x (B, D) -> (B, D), written for the compiler.

    ``keys``, ``values`` (B, H, C, Dh) are the cache's buffers, of which the
    ``columns`` (S,) = 0 … S − 1 are read, and the last of them is written
    before. ``seen`` (B, S) bool, or None where all may be seen. ``weights``:
    CompiledBlock._tensors. Attention's products are reductions as well: over a
    cache they are bound by memory like the others, and F.linear's kin would
    stand between the fused loops.
    """
    scale, g1, b1, *attn, g2, b2 = weights[:11]
    c_attn, c_proj = attn[:3], attn[3:]
    c_fc, mlp_c_proj = weights[11:14], weights[14:]
    batch, heads, _, size = keys.shape

    def linear(layer: Sequence[Any], x: Tensor) -> Tensor:  # (B, K) -> (B, N)
        if batch == 1:
            return reduced_product(layer[0], layer[1], layer[2], x[0])[None]
        return packed_product(layer[0], layer[1], layer[2], x).float()

    h = F.layer_norm(x, x.shape[-1:], g1, b1, eps)
    q, k, v = linear(c_attn, h).view(batch, 3, heads, 1, size).unbind(1)  # (B, H, 1, Dh)
    keys.index_copy_(2, columns[-1:], k.to(keys.dtype))
    values.index_copy_(2, columns[-1:], v.to(values.dtype))
    keys, values = keys[:, :, : len(columns)], values[:, :, : len(columns)]  # (B, H, S, Dh)
    scores = (keys.float() * q).sum(-1) * scale  # (B, H, S)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
    attended = (scores.softmax(-1)[..., None] * values.float()).sum(2)  # (B, H, Dh)
    x = x + linear(c_proj, attended.flatten(1))
    h = F.layer_norm(x, x.shape[-1:], g2, b2, eps)
    return x + linear(mlp_c_proj, activation(linear(c_fc, h)))


@cache
def _compiled_block() -> Callable[..., Tensor]:
    return torch.compile(decode_block, fullgraph=True, options=_OPTIONS)


#: what `decode_block` has been compiled for in this process
_compiled_for: set[Any] = set()


def _run(
    shapes: Any,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    columns: Tensor,
    seen: Tensor | None,
    *rest: Any,
) -> Tensor:
    """`decode_block`, compiled once for one row and once for any number, whatever the lengths.

    ``shapes``: whatever tells weights of other shapes and dtypes apart.
    """
    alone = len(x) == 1
    kind = (alone, seen is None, torch.is_inference_mode_enabled(), keys.dtype, shapes)
    if kind in _compiled_for:
        return _compiled_block()(x, keys, values, columns, seen, *rest)
    lengths = [(keys, 2), (values, 2), (columns, 0), *([] if seen is None else [(seen, 1)])]
    rows = [] if alone else [(t, 0) for t in (x, keys, values, seen) if t is not None]
    for tensor, dimension in (*lengths, *rows):
        torch._dynamo.mark_dynamic(tensor, dimension)
    announce(
        f"compiling the decode step for {'one row' if alone else 'several rows'} "
        "(about 10 s; torch keeps it on disk)"
    )
    # torch's limit of 8 is there against endless recompilation; these kinds are few and known
    with torch._dynamo.config.patch(recompile_limit=64):
        result = _compiled_block()(x, keys, values, columns, seen, *rest)
    _compiled_for.add(kind)
    return result


def one_token(
    block: Any, x: Tensor, visibility: Visibility, cache: KVCache | None
) -> Tensor | None:
    """A GPT2Block of packed layers, applied to x (B, 1, D) behind ``cache``; None where it cannot.

    It can where a growing cache already holds columns of this layer, and
    nothing but whole columns is hidden.
    """
    if x.shape[1] != 1 or x.requires_grad or not _goes_on(block, cache, visibility):
        return None
    assert cache is not None
    assert not isinstance(visibility.mask, Segments)
    seen = None if visibility.mask is None else visibility.mask[:, 0, 0]  # (B, S)
    keys, values = cache.reserve(block.attn.layer_idx)
    columns = torch.arange(cache.length, device=x.device)
    weights, shapes = _tensors(block)
    return _run(
        shapes, x[:, 0], keys, values, columns, seen, block.mlp.act, block.ln_1.eps, weights
    )[:, None]


def _goes_on(block: Any, cache: KVCache | None, visibility: Visibility) -> bool:
    """Whether a growing cache holds this layer's columns, and the mask is one per column."""
    if cache is None or isinstance(cache, StaticCache) or torch.compiler.is_compiling():
        return False
    mask, held = visibility.mask, cache.shape_of(block.attn.layer_idx)
    if held is None or held[1::2] != (block.attn.num_heads, block.attn.head_dim):
        return False
    fits = mask is None or (
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape[:2] == (held[0], 1)
    )
    return fits and cache.length > 1  # a length of 1 would be compiled for apart


def _tensors(block: Any) -> tuple[Sequence[Any], Any]:
    """What `decode_block` takes as ``weights``, and what tells their shapes.

    Gathered once: 16 look-ups in each of 12 blocks would be 2 % of a step.
    """
    held: tuple[Sequence[Any], Any] | None = vars(block).get("_gathered")
    if held is None or held[0][3] is not block.attn.c_attn.weight:  # moved, or loaded again
        layers = block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj
        a, p, f, m = ((layer.weight, layer.scale, layer.bias) for layer in layers)
        scale = torch.tensor(block.attn.scale, device=block.ln_1.weight.device)
        norms = block.ln_1.weight, block.ln_1.bias, block.ln_2.weight, block.ln_2.bias
        tensors = (scale, *norms[:2], *a, *p, *norms[2:], *f, *m)
        shapes = tuple((t.shape, t.dtype) for t in tensors if isinstance(t, Tensor))
        held = tensors, (block.attn.num_heads, block.mlp.act, shapes)
        vars(block)["_gathered"] = held
    return held
