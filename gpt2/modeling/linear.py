"""Linear layers whose weights are stored for inference: float32, bfloat16 or int8.

A token at a time, a product with a weight is as fast as the weight can be read
from memory, so its size and its order there are what counts. The figures are of
2 cores (AVX-512, about 30 GB/s) and the head of GPT-2, 768 -> 50257, for one token:

- float32 as it is, F.linear: 11.6 ms; stored by columns, 5.9 ms. From the long
  side to the short one (mlp.c_proj) rows are faster.
- bfloat16, F.linear: by rows, 4.1 ms.
- int8 with a scale per output, torch._weight_int8pack_mm with bfloat16 inputs: 2.6 ms.
- compiled, as the reduction Σ w·x over rows: float32 4.9, bfloat16 2.2, int8 1.4 ms.
  F.linear itself gains nothing from the compiler.

Where there are many tokens, the products are bound by arithmetic, and all three
are F.linear's, int8 after it has been written out as bfloat16.

Shapes: see the legend in gpt2/modeling/transformer.py; here N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Storage = Literal["float32", "bfloat16", "int8"]

#: up to so many rows of input int8 weights are read as they are; above, written out first
_FEW_ROWS = 16


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` (N, K) as int8 (N, K) and a scale (N,) bfloat16 per row: weight ≈ int8 · scale.

    Symmetric, absolute maximum: the error of a weight is at most half a scale,
    1/254 of the largest in its row. The scales are bfloat16 before they divide,
    so that the kernels that want them so lose nothing.
    """
    largest = weight.float().abs().amax(-1)
    scale = (largest / 127).to(torch.bfloat16)
    # bfloat16 may have rounded down, and then 127 steps would not reach the largest
    scale = torch.where(scale.float() * 127 < largest, torch.nextafter(scale, scale * 2), scale)
    scale = scale.masked_fill(scale == 0, 1)
    steps = (weight.float() / scale.float()[:, None]).round_().clamp_(-127, 127)
    return steps.to(torch.int8), scale


def packed_product(weight: Tensor, scale: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor:
    """``x`` (…, K) -> x Wᵀ + b (…, N), float32 or, where the weight is narrower, bfloat16."""
    if weight.dtype == torch.float32:
        return F.linear(x.float(), weight, bias)
    x = x.to(torch.bfloat16)
    if scale is None:
        y = F.linear(x, weight)
    elif x.shape[:-1].numel() <= _FEW_ROWS:
        rows = x.reshape(-1, x.shape[-1])
        y = torch._weight_int8pack_mm(rows, weight, scale).view(*x.shape[:-1], len(weight))
    else:
        y = F.linear(x, weight.to(torch.bfloat16) * scale[:, None])
    return y if bias is None else y + bias.to(y.dtype)


def reduced_product(weight: Tensor, scale: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor:
    """``x`` (K,) float32 -> W x + b (N,) float32, written for the compiler; slow without it."""
    y = (weight.float() * x).sum(-1)
    y = y if scale is None else y * scale.float()
    return y if bias is None else y + bias


class PackedLinear(nn.Module):
    """x Wᵀ + b for inference, with the weight as a buffer in one of the storages.

    ``weight`` (N, K), in memory by rows or by columns; ``scale`` (N,) of int8,
    else None. ``in_float32`` gives float32 outputs whatever the storage;
    ``compiled`` computes one token by a compiled reduction.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        scale: Tensor | None = None,
        in_float32: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.in_float32, self.compiled = in_float32, False
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def pack(
        cls, linear: nn.Linear, storage: Storage, *, by_rows: bool, in_float32: bool = False
    ) -> PackedLinear:
        """A copy of ``linear``; ``by_rows`` False lets float32 choose the faster order."""
        weight = linear.weight.detach()
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        if storage == "int8":
            steps, scale = quantized(weight)
            return cls(steps, bias, scale=scale, in_float32=in_float32)
        if storage == "bfloat16":
            weight = weight.to(torch.bfloat16, copy=True).contiguous()
            return cls(weight, bias, in_float32=in_float32)
        if by_rows or weight.shape[1] > weight.shape[0]:
            return cls(weight.to(torch.float32, copy=True).contiguous(), bias)
        return cls(weight.float().t().clone(memory_format=torch.contiguous_format).t(), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) -> (…, N), in the dtype of the arithmetic, or float32."""
        if self.compiled and x.numel() == self.in_features and not torch.compiler.is_compiling():
            y = compiled_product(self.weight, self.scale, self.bias, x.flatten().float())
            return y.view(*x.shape[:-1], self.out_features)
        y = packed_product(self.weight, self.scale, self.bias, x)
        return y.float() if self.in_float32 else y

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.weight.dtype}".replace(
            "torch.", ""
        )


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(reduced_product, fullgraph=True, dynamic=False)


def compiled_product(
    weight: Tensor, scale: Tensor | None, bias: Tensor | None, x: Tensor
) -> Tensor:
    """`reduced_product`, compiled at the first call for weights of this shape and dtype."""
    return _compiled()(weight, scale, bias, x)


class PackedEmbedding(nn.Module):
    """A packed model's token embedding; ``weight`` (V, D) and ``scale`` (V,) as PackedLinear's."""

    weight: Tensor
    scale: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    @classmethod
    def pack(cls, table: nn.Embedding, storage: Storage) -> PackedEmbedding:
        """A copy of ``table``."""
        weight = table.weight.detach()
        if storage == "int8":
            return cls(*quantized(weight))
        return cls(weight.to(getattr(torch, storage), copy=True))

    def forward(self, ids: Tensor) -> Tensor:
        """(…) int64 -> (…, D) float32."""
        rows = self.weight[ids].float()
        return rows if self.scale is None else rows * self.scale[ids].float()[..., None]

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.weight.dtype}"
