"""The cross-entropy of logits whose vocabulary is spread over ranks: they are never gathered.

A rank has the columns [offset, offset + own) of the (N, V) logits. Three
numbers per row cross the network: the peak, Σ exp(x − peak), and the target's
logit (arXiv:1909.08053, section 3). torch's own loss_parallel asks that the
caller's backward runs inside its context; this asks nothing of the caller.

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


def summed_vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log softmax(logits)[target], float32 (), the same on every rank.

    ``logits`` (N, V), a DTensor cut along V; ``targets`` (N,) int64, −100 is left out.
    """
    assert isinstance(logits, DTensor)
    mesh = logits.device_mesh
    offset = -(-logits.shape[-1] // mesh.size()) * mesh.get_local_rank()
    return _SummedCrossEntropy.apply(logits.to_local(), targets, offset, mesh.get_group())  # type: ignore[no-untyped-call, no-any-return]


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, offset: int, group: Any) -> Tensor:
        x = logits.float()  # (N, own)
        peak = x.amax(-1)  # (N,)
        dist.all_reduce(peak, dist.ReduceOp.MAX, group)
        column = targets - offset
        here = (column >= 0) & (column < x.shape[-1])
        column = column.clamp(0, x.shape[-1] - 1)[:, None]
        picked = torch.where(here, x.gather(-1, column)[:, 0] - peak, 0.0)
        both = torch.stack([(x - peak[:, None]).exp_().sum(-1), picked])  # (2, N)
        dist.all_reduce(both, dist.ReduceOp.SUM, group)
        log_sum = both[0].log()
        counts = targets != IGNORE_INDEX
        ctx.save_for_backward(logits, column, here & counts, counts, peak, log_sum)
        return torch.where(counts, log_sum - both[1], 0.0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        # d/dx (log Σ exp x − x[target]) = softmax(x) − onehot(target), each rank its columns
        logits, column, here, counts, peak, log_sum = ctx.saved_tensors
        x = (logits.float() - peak[:, None]).sub_(log_sum[:, None]).exp_()
        x.scatter_add_(-1, column, -here.to(x.dtype)[:, None])
        return torch.where(counts[:, None], x * gradient, 0.0).to(logits.dtype), None, None, None
