"""Products with weights by oneDNN, which torch on a CPU has beside MKL.

F.linear of float32 is MKL's. Of one row it is far from memory's speed, at least
on AMD: all the products of a token of GPT-2, 124M, take 34 ms on 2 cores
(AVX-512, about 31 GB/s), with oneDNN's kernels 19; of 8 rows 53 and 29; of 1024
rows 1.57 and 1.28 s. With the weight in the kernels' own order (`blocked`) 8 and
1024 rows take 23 ms and 1.24 s; bfloat16 gains by that order only, 14 -> 10 ms for
one row.

In training, the blocks' products of 2048 rows take 1.93 and 1.69 s forward, 1.90
and 1.65 s for the gradient of x; for that of W oneDNN is no faster.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

#: False: products of plain models are torch's own on a CPU too
ON_CPU = True


def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN is here, is on (torch.backends.mkldnn), and has kernels for ``dtype``."""
    onednn = torch.backends.mkldnn
    if not (onednn.is_available() and onednn.enabled):  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def blocked(weight: Tensor) -> Tensor | None:
    """A copy of ``weight`` (N, K) in the order of oneDNN's kernels, opaque to torch.

    None where this machine has no such kernels for its dtype.
    """
    if weight.device.type != "cpu" or not available(weight.dtype):
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight)  # type: ignore[no-any-return]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``x`` (…, K) -> x Wᵀ + b (…, N); ``weight`` as it is, or `blocked`. No gradients.

    ``gelu``: gelu_tanh of it, computed on what the kernel still has in registers.
    """
    return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
        x.to(weight.dtype), weight, bias, "gelu" if gelu else "none", [], "tanh" if gelu else ""
    )


class _Product(torch.autograd.Function):
    """`product` of rows x (R, K) and Wᵀ (K, N), with gradients: dx = g W by oneDNN, else torch's.

    It keeps the very tensors that F.linear keeps, in its order. So a block that is
    checkpointed from outside may compute itself again without `Products`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_t: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.has_bias = bias is not None
        kept = [x if needs_weight else None, weight_t if needs_x else None]
        ctx.save_for_backward(*(kept if ctx.has_bias else reversed(kept)))
        return product(x, weight_t.t(), bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_t = ctx.saved_tensors if ctx.has_bias else reversed(ctx.saved_tensors)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = None
        if needs_x:
            # gradients of gradients, or of many at once (vmap), go through torch's operators
            torchs = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
            dx = g @ weight_t.t() if torchs else product(g, weight_t)
        dw_t = (g.t() @ x).t() if needs_weight else None  # laid out as the weight is
        return dx, dw_t, g.sum(0) if needs_bias else None


_state = local()  # of each thread: whether Products is on already


class Products(TorchFunctionMode):
    """While it is on, F.linear of plain float32 tensors is `product`, with gradients or without."""

    def __enter__(self) -> Products:
        _state.on = True
        return super().__enter__()  # type: ignore[no-untyped-call, no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _state.on = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # a block that is compiled by itself is traced with the mode on, and stays torch's
        if func is F.linear and not (kwargs or torch.compiler.is_compiling()) and _suits(*args):
            return _linear(*args)
        return func(*args, **(kwargs or {}))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    learns = any(t is not None and t.requires_grad for t in (x, weight, bias))
    if not (learns and torch.is_grad_enabled()):
        return product(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    y: Tensor = _Product.apply(rows, weight.t(), bias)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], len(weight))


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(
            type(t) in (Tensor, nn.Parameter)
            and t.dtype == torch.float32
            and t.device.type == "cpu"
            and t.layout == torch.strided
            for t in tensors
        )
        and x.numel() > 0
        and weight.dim() == 2
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )


def products(x: Tensor) -> Callable[[], AbstractContextManager[object]]:
    """The context in which what computes on from ``x`` has its products with weights: `Products`.

    It is that where ``x`` is float32 on a CPU. Not in compiled, traced or exported
    graphs, under torch.func or forward-mode differentiation, or while a dispatch mode
    (a counter of FLOPs, fake tensors) wants to see torch's own operators.
    """
    if (
        torch.compiler.is_compiling()
        or not ON_CPU
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or getattr(_state, "on", False)
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or not available()
    ):
        return nullcontext
    return Products
