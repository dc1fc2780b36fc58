"""flash_attention_2: FlashAttention, from the flash-attn package or from PyTorch's own kernels.

The kernels compute in float16 or bfloat16 on CUDA, keep scores and softmax in
float32 (which is what reorder_and_upcast_attn asks for), and want the heads
behind the tokens: (B, T, H, Dh), or (N, H, Dh) for a ragged batch. They take no
mask; padding and documents are `Segments`. Which kernel runs:

- the flash-attn package, where it can be imported, for everything;
- else, without padding, SDPA held to its flash backend;
- else varlen_attn for segments; it has no dropout, so where attention is
  dropped out the segments become rows, padded on the right, for SDPA again.

Shapes: see the legend in gpt2/modeling/transformer.py; N is B · T or B · S.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2.errors import BackendError
from gpt2.modeling.segments import Packing, Segments, even_packing

NAME = "flash_attention_2"
INSTEAD = "use attn_implementation='sdpa' or 'eager'"

_DEVICE = "cuda"
_DTYPES = (torch.float16, torch.bfloat16)
_OLDEST_PACKAGE = (2, 1)  # before it, causality is aligned to the start of the keys
_OLDEST_GPU = (8, 0)  # Ampere
_LARGEST_HEAD = 256


@dataclass(frozen=True)
class _Kernels:
    """What is installed, looked up once: both imports are slow, and no part of a compiled graph."""

    package: Any  # flash_attn, or None
    varlen_attn: Any  # torch's
    varlen_arguments: frozenset[str]


_kernels: _Kernels | None = None


def _installed() -> _Kernels:
    global _kernels
    if _kernels is None:
        from torch.nn.attention.varlen import varlen_attn

        arguments = frozenset(inspect.signature(varlen_attn).parameters)
        _kernels = _Kernels(_flash_attn_package(), varlen_attn, arguments)
    return _kernels


def _flash_attn_package() -> Any:
    """The flash-attn package, or None where it is missing or older than 2.1."""
    try:
        package = importlib.import_module("flash_attn")
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        raise BackendError(
            f"{NAME}: flash-attn is installed, but cannot be imported ({error}); install a build "
            f"for torch {torch.__version__}, uninstall it, or {INSTEAD}"
        ) from error
    version = tuple(int(part) for part in package.__version__.split(".")[:2])
    return package if version >= _OLDEST_PACKAGE else None


def why_not_installed() -> str | None:
    """What this installation lacks for the backend; None where it lacks nothing.

    Raises BackendError where the flash-attn package is there, but broken.
    """
    has_own = torch.backends.cuda.is_flash_attention_available()
    if _installed().package is not None or has_own:
        return None
    return (
        f"{NAME} needs the flash-attn package (2.1 or newer), or a PyTorch built with "
        f"FlashAttention for CUDA; this is torch {torch.__version__}"
    )


def attend_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | Segments | None,
    scale: float,
    causal: bool,
    dropout_p: float,
) -> Tensor:
    """The contract of gpt2/modeling/backends.py, with `Segments` for the mask.

    Padding queries give zeros. Raises BackendError for a device, a dtype, a
    head size or a mask that the kernels do not take.
    """
    _require_usable(q)
    if isinstance(mask, Tensor):
        raise BackendError(
            f"{NAME} takes no dense mask (a 4-D attention_mask, or that of a static cache); "
            f"{INSTEAD}"
        )
    package = _installed().package
    query_length, key_length = q.shape[-2], k.shape[-2]
    if mask is None and package is not None:
        x = package.flash_attn_func(
            *(t.transpose(1, 2) for t in (q, k, v)),  # (B, ·, H, Dh) each
            dropout_p=dropout_p,
            softmax_scale=scale,
            causal=causal,
        )
        return x.transpose(1, 2)  # type: ignore[no-any-return]
    if mask is None and (not causal or query_length in (1, key_length)):
        # One query sees every key: SDPA's causality, aligned to the start, would hide them.
        return _sdpa(q, k, v, scale=scale, causal=causal and query_length > 1, dropout_p=dropout_p)
    if mask is None:
        mask = Segments(
            even_packing(q.shape[0], query_length, q.device),
            even_packing(k.shape[0], key_length, k.device),
        )

    packed = mask.queries.pack(q), mask.keys.pack(k), mask.keys.pack(v)  # (N, H, Dh) each
    if package is not None:
        x = package.flash_attn_varlen_func(
            *packed,
            cu_seqlens_q=mask.queries.ends,
            cu_seqlens_k=mask.keys.ends,
            max_seqlen_q=mask.queries.longest,
            max_seqlen_k=mask.keys.longest,
            dropout_p=dropout_p,
            softmax_scale=scale,
            causal=causal,
        )
    elif dropout_p == 0:
        x = _varlen(*packed, mask, scale=scale, causal=causal)
    elif causal:
        x = _in_rows(*packed, mask, scale=scale, dropout_p=dropout_p)
    else:
        raise BackendError(
            f"{NAME} cannot drop out attention (attn_pdrop = {dropout_p}) to padded encoder "
            f"states without the flash-attn package; install it, set attn_pdrop=0, or {INSTEAD}"
        )
    return mask.queries.unpack(x, q.shape[0])


def _require_usable(q: Tensor) -> None:
    if q.device.type != _DEVICE or q.dtype not in _DTYPES:
        raise BackendError(
            f"{NAME} computes in float16 or bfloat16 on a CUDA device, and was given "
            f"{str(q.dtype).removeprefix('torch.')} on {q.device.type}; move the model with "
            f".to('cuda', torch.bfloat16), or {INSTEAD}"
        )
    head_dim = q.shape[-1]
    if head_dim % 8 or head_dim > _LARGEST_HEAD:
        raise BackendError(
            f"{NAME} takes head sizes (n_embd / n_head) that are multiples of 8 up to "
            f"{_LARGEST_HEAD}, not {head_dim}; {INSTEAD}"
        )
    if q.is_cuda and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(q.device)
        if capability < _OLDEST_GPU:
            raise BackendError(
                f"{NAME} needs a GPU of compute capability 8.0 (Ampere) or newer, not "
                f"{capability[0]}.{capability[1]}; {INSTEAD}"
            )


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool, dropout_p: float
) -> Tensor:
    """SDPA's flash kernel and no other; (B, H, ·, Dh), causal only where T = S."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout_p, is_causal=causal, scale=scale
        )


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, scale: float, causal: bool
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn, whose arguments changed after torch 2.10."""
    kernels = _installed()
    options: dict[str, Any] = {}
    if "is_causal" in kernels.varlen_arguments:
        options["is_causal"] = causal
    else:
        options["window_size"] = (-1, 0) if causal else (-1, -1)
    if "scale" in kernels.varlen_arguments:
        options["scale"] = scale
    else:
        q = q * (scale * q.shape[-1] ** 0.5)  # it divides by √Dh, and cannot be told otherwise
    queries, keys = segments.queries, segments.keys
    return kernels.varlen_attn(  # type: ignore[no-any-return]
        q, k, v, queries.ends, keys.ends, queries.longest, keys.longest, **options
    )


def _in_rows(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, *, scale: float, dropout_p: float
) -> Tensor:
    """Causal attention with each segment as a row of its own, padded on the right.

    No real query looks behind itself, so that the padding needs no mask. A query
    stands where its own key stands; the places of other keys are left empty.
    """
    queries, keys = segments.queries, segments.keys
    count, longest = len(keys.ends) - 1, keys.longest
    ahead = keys.ends.diff() - queries.ends.diff()  # (n,) keys without a query, at the front

    def places(packing: Packing, tokens: int, skip: Tensor) -> Tensor:
        """Where the packed tokens go in (n · longest + 1), the last place being for padding."""
        index = torch.arange(tokens, device=q.device)
        segment = torch.searchsorted(packing.ends[1:], index, right=True)  # n for padding
        inside = segment.clamp(max=count - 1)
        column = index - packing.ends[inside] + skip[inside]
        return torch.where(segment < count, inside * longest + column, count * longest)

    def rows(x: Tensor, where: Tensor) -> Tensor:
        """(N, H, Dh) -> (n, H, longest, Dh)."""
        empty = x.new_zeros(count * longest + 1, *x.shape[1:])
        filled = empty.index_copy(0, where, x)[:-1]
        return filled.view(count, longest, *x.shape[1:]).transpose(1, 2)

    of_queries = places(queries, len(q), ahead)
    of_keys = places(keys, len(k), torch.zeros_like(ahead))
    x = _sdpa(
        rows(q, of_queries), rows(k, of_keys), rows(v, of_keys),
        scale=scale, causal=True, dropout_p=dropout_p,
    )  # fmt: skip
    x = F.pad(x.transpose(1, 2).flatten(0, 1), (0, 0, 0, 0, 0, 1))  # (n · longest + 1, H, Dh)
    return x.index_select(0, of_queries)
