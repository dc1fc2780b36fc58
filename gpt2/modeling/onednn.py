"""Products with weights by oneDNN, which torch on a CPU has beside MKL.

F.linear of float32 is MKL's. Of one row it is far from memory's speed, at least
on AMD: all the products of a token of GPT-2, 124M, take 34 ms on 2 cores
(AVX-512, about 31 GB/s), with oneDNN's kernels 19; of 8 rows 53 and 29; of 1024
rows 1.57 and 1.28 s. With the weight in the kernels' own order (`blocked`) 8 and
1024 rows take 23 ms and 1.24 s; bfloat16 gains by that order only, 14 -> 10 ms for
one row.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


_state = local()  # of each thread: whether _Products is on already


class _Products(TorchFunctionMode):
    """While it is on, F.linear of plain float32 tensors is `product`."""

    def __enter__(self) -> _Products:
        _state.on = True
        return super().__enter__()  # type: ignore[no-untyped-call, no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _state.on = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _suits(*args):
            return product(*args)
        return func(*args, **(kwargs or {}))


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
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def products(x: Tensor) -> AbstractContextManager[object]:
    """In this block, which computes on from ``x``, F.linear without gradients is oneDNN's.

    Where ``x`` is float32 on a CPU. Not in compiled graphs, under torch.func, or
    while a dispatch mode (a counter of FLOPs, fake tensors) wants to see torch's
    own operators.
    """
    if (
        torch.compiler.is_compiling()
        or not ON_CPU
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or torch.is_grad_enabled()
        or getattr(_state, "on", False)
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or not available()
    ):
        return nullcontext()
    return _Products()
