"""The cross-entropy of logits whose vocabulary is spread over ranks: they are never gathered.

A rank has the columns [offset, offset + own) of the (N, V) logits. A few
numbers per row cross the network: the peak, Σ exp(x − peak), the target's logit
(arXiv:1909.08053, section 3), and Σ (x − peak) for label smoothing.
torch's own loss_parallel asks that the caller's backward runs inside its context;
this asks nothing of the caller.

Shapes: see the legend in gpt2/modeling/transformer.py; N is B · T.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from gpt2.modeling.inputs import IGNORE_INDEX
from gpt2.modeling.losses import loss_of_rows


def summed_vocab_parallel_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Σ −log softmax(logits)[target], float32 (), the same on every rank.

    ``logits`` (N, V), a DTensor cut along V; ``targets`` (N,) int64, −100 is left out.
    The terms ``label_smoothing`` and ``z_loss`` are those of gpt2/modeling/losses.py.
    """
    assert isinstance(logits, DTensor)
    mesh = logits.device_mesh
    offset = -(-logits.shape[-1] // mesh.size()) * mesh.get_local_rank()
    return _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call, no-any-return]
        logits.to_local(),
        targets,
        offset,
        mesh.get_group(),
        logits.shape[-1],
        label_smoothing,
        z_loss,
    )


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, offset: int, group: Any,
        vocabulary: int, smoothing: float, z_loss: float,
    ) -> Tensor:  # fmt: skip
        x = logits.float()  # (N, own)
        peak = x.amax(-1)  # (N,)
        dist.all_reduce(peak, dist.ReduceOp.MAX, group)
        column = targets - offset
        here = (column >= 0) & (column < x.shape[-1])
        column = column.clamp(0, x.shape[-1] - 1)[:, None]
        picked = torch.where(here, x.gather(-1, column)[:, 0] - peak, 0.0)
        x = x - peak[:, None]
        below = x.sum(-1) / vocabulary if smoothing else torch.zeros_like(peak)
        parts = torch.stack([x.exp_().sum(-1), picked, below])  # (3, N)
        dist.all_reduce(parts, dist.ReduceOp.SUM, group)
        log_sum = parts[0].log()
        gap = -(1 - smoothing) * parts[1] - smoothing * parts[2]
        counts = targets != IGNORE_INDEX
        ctx.save_for_backward(logits, column, here & counts, counts, peak, log_sum)
        ctx.terms = vocabulary, smoothing, z_loss
        return torch.where(counts, loss_of_rows(gap, peak, log_sum, z_loss), 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # As `losses.to_gradient_`, each rank its columns.
        logits, column, here, counts, peak, log_sum = ctx.saved_tensors
        vocabulary, smoothing, z_loss = ctx.terms
        x = (logits.float() - peak[:, None]).sub_(log_sum[:, None]).exp_()
        x.mul_(1 + 2 * z_loss * (peak + log_sum)[:, None]).sub_(smoothing / vocabulary)
        x.scatter_add_(-1, column, (smoothing - 1) * here.to(x.dtype)[:, None])
        x = torch.where(counts[:, None], x * gradient, 0.0).to(logits.dtype)
        return x, None, None, None, None, None, None
