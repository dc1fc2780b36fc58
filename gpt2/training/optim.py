"""What an optimizer is given: groups of parameters, and a learning rate over time.

The optimizers and the scheduler are torch's own.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt2.errors import ArgumentError
from gpt2.fieldchecks import check_number, check_whole


def parameter_groups(model: nn.Module, *, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """Two groups for a torch optimizer: matrices, which decay, and vectors, which do not.

    Matrices are the weights of linear layers and the embeddings; vectors are
    biases and the weights of layer norms. A tied weight stands in them once,
    frozen parameters do not. Each group holds (name, parameter) pairs, so that
    the optimizer reports the names under "param_names".

        optimizer = torch.optim.AdamW(parameter_groups(model), lr=3e-4, fused=True)

    Raises ArgumentError for a negative ``weight_decay``, and where nothing is trainable.
    """
    check_number(ArgumentError, "weight_decay", weight_decay, 0, 1e6)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ArgumentError("the model has no trainable parameters: all of them are frozen")
    groups = [
        {"params": [(n, p) for n, p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [(n, p) for n, p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def cosine_with_warmup(
    optimizer: Optimizer, *, warmup_steps: int, total_steps: int, final: float = 0.1
) -> LambdaLR:
    """Linear from 0 to the optimizer's learning rate, then half a cosine down to ``final`` of it.

    Call ``step()`` once after each optimizer step; behind ``total_steps`` the
    rate stays at ``final`` (arXiv:1608.03983, without restarts).

    Raises ArgumentError for ``warmup_steps`` that are not below ``total_steps``.
    """
    check_whole(ArgumentError, "total_steps", total_steps, 1)
    check_whole(ArgumentError, "warmup_steps", warmup_steps, 0)
    check_number(ArgumentError, "final", final, 0, 1)
    if warmup_steps >= total_steps:
        raise ArgumentError(
            f"warmup_steps={warmup_steps} must be fewer than total_steps={total_steps}"
        )
    return LambdaLR(optimizer, partial(_cosine, warmup=warmup_steps, total=total_steps, end=final))


def _cosine(step: int, *, warmup: int, total: int, end: float) -> float:
    """The factor of the learning rate in step ``step`` (from 0)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / (total - warmup))
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2
