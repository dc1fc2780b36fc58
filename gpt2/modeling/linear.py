"""Linear layers whose weights are stored for inference: float32, bfloat16 or int8.

A token at a time, a product with a weight is as fast as the weight can be read
from memory, so its size and its order there are what counts. All the products
of a step of GPT-2, 124M, on 2 cores (AVX-512, about 31 GB/s), in ms for 1 and 8 rows:

- float32, F.linear: 34 and 53; by oneDNN (onednn.py) 19 and 29, in its own order 20 and 24.
- bfloat16, F.linear: 14 and 21; in oneDNN's order 10 and 12.
- int8 with a scale per output, torch._weight_int8pack_mm with bfloat16 inputs: 7.9 and 24.
- compiled, one row, as reductions Σ w·x of four rows of W at a time (at 48 GB/s):
  float32 13.1, bfloat16 7.6, int8 5.8; of one at a time 14.3, 8.4, 6.9. For 8 rows such
  reductions take 15 and more. F.linear itself gains nothing from the compiler.

torchao 0.18 in the same model, ms of a step of one token: int8 weights 49, compiled 11.4;
activations made int8 as well, compiled with frozen weights, 8.5; int8 here 12.5, compiled 5.7,
without another dependency and with nothing to compile for each length of the cache.

Where there are many rows, the products are bound by arithmetic, and int8 is
written out as bfloat16.

Shapes: see the legend in gpt2/modeling/transformer.py; here N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.modeling import onednn
from gpt2.modeling.activations import gelu_tanh

Storage = Literal["float32", "bfloat16", "int8"]

#: Up to so many rows of input int8 weights are read as they are; above, written out first. All the
#: products of 4, 8 and 32 rows take 11, 19 and 58 ms the first way, 15, 19 and 38 the second.
_FEW_ROWS = 6


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


def int8_product(weight: Tensor, scale: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """``x`` (…, K) -> x Wᵀ + b (…, N) in bfloat16, with the int8 weight of `quantized`."""
    x = x.to(torch.bfloat16)
    if x.shape[:-1].numel() <= _FEW_ROWS:
        rows = x.reshape(-1, x.shape[-1])
        y = torch._weight_int8pack_mm(rows, weight, scale).view(*x.shape[:-1], len(weight))
    else:  # exact in bfloat16; what is scaled is the result, which is less than the weight
        y = F.linear(x, weight.to(torch.bfloat16)) * scale
    return y if bias is None else y + bias.to(y.dtype)


def reduced_product(weight: Tensor, scale: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor:
    """``x`` (K,) float32 -> W x + b (N,) float32, written for the compiler; slow without it.

    The rows are four parts, which the compiler sums up in one loop: four sums that do
    not wait for each other, and four streams of memory. A step takes 6.8 ms instead
    of 8.7 with int8, 10.1 instead of 11.5 with bfloat16, 15.5 instead of 17.4 with
    float32 (2, 3 and 6 parts: between the two, or the same).
    """
    parts = torch.split(weight, max(1, len(weight) // 4))  # a fifth where 4 does not divide N
    y = torch.cat([(part.float() * x).sum(-1) for part in parts])
    y = y if scale is None else y * scale.float()
    return y if bias is None else y + bias


class PackedLinear(nn.Module):
    """x Wᵀ + b for inference, with the weight as buffers in one of the storages.

    ``weight`` (N, K) by rows, and ``scale`` (N,) of int8; of the others ``blocked``
    (N, K), beside the rows or in place of them. In a state_dict the weight stands
    by rows. To be switched on: ``in_float32``, outputs in float32 whatever the
    storage; ``gelu``, gelu_tanh of them; ``compiled``, one token by a compiled
    reduction over the rows.
    """

    weight: Tensor | None
    blocked: Tensor | None
    scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        scale: Tensor | None = None,
        keep_rows: bool = True,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.keep_rows = keep_rows
        self.in_float32 = self.gelu = self.compiled = False
        self.register_buffer("weight", weight)
        self.register_buffer("blocked", None, persistent=False)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._block()

    @classmethod
    def pack(cls, linear: nn.Linear, storage: Storage, *, keep_rows: bool = False) -> PackedLinear:
        """A copy of ``linear``; ``keep_rows`` where they are needed beside what is blocked."""
        weight = linear.weight.detach()
        bias = None if linear.bias is None else linear.bias.detach().float().clone()
        if storage == "int8":
            steps, scale = quantized(weight)
            return cls(steps, bias, scale=scale)
        weight = weight.to(getattr(torch, storage), copy=True).contiguous()
        return cls(weight, bias, keep_rows=keep_rows)

    def rows(self) -> Tensor:
        """The weight (N, K) by rows, written out where only the blocked one is held."""
        if self.weight is not None:
            return self.weight
        assert self.blocked is not None
        return self.blocked.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) -> (…, N), in the dtype of the arithmetic, or float32."""
        if self.compiled and x.numel() == self.in_features and not torch.compiler.is_compiling():
            assert self.weight is not None
            y = compiled_product(self.weight, self.scale, self.bias, x.flatten().float())
            return y.view(*x.shape[:-1], self.out_features)
        y = self._product(x)
        return y.float() if self.in_float32 else y

    def _product(self, x: Tensor) -> Tensor:
        if self.blocked is not None and not (x.requires_grad and torch.is_grad_enabled()):
            product: Any = onednn.product
            if torch.compiler.is_compiling():  # a graph cannot hold an opaque tensor: it breaks
                product = torch.compiler.disable(product)  # type: ignore[no-untyped-call]
            return product(x, self.blocked, self.bias, self.gelu)  # type: ignore[no-any-return]
        weight = self.rows()
        if self.scale is not None:
            y = int8_product(weight, self.scale, self.bias, x)
        else:
            bias = None if self.bias is None else self.bias.to(weight.dtype)
            y = F.linear(x.to(weight.dtype), weight, bias)
        return gelu_tanh(y) if self.gelu else y

    # -- copies, moves, files: by rows, since an opaque tensor takes part in none of them --------

    def _block(self) -> None:
        assert self.weight is not None
        self.blocked = onednn.blocked(self.weight)
        if self.blocked is not None and not self.keep_rows:
            self.weight = None

    def _unblock(self) -> None:
        self.weight, self.blocked = self.rows(), None

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        self._unblock()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._block()
        return self

    def __getstate__(self) -> dict[str, Any]:
        buffers = {**self._buffers, "weight": self.rows(), "blocked": None}
        return {**self.__dict__, "_buffers": buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._block()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self.weight is None:
            destination[f"{prefix}weight"] = self.rows()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._unblock()
        super()._load_from_state_dict(*arguments)
        self._block()

    def extra_repr(self) -> str:
        held = self.blocked if self.weight is None else self.weight
        assert held is not None
        return f"{self.in_features} -> {self.out_features}, {held.dtype}".replace("torch.", "")


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
