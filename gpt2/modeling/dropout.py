"""Dropout whose mask is cheap on a CPU.

torch draws a CPU's mask one Bernoulli number at a time: 18 ms for 3 million of
them on one core, beside 2 ms for their random bits and 0.7 ms for comparing
those. A number is kept where 16 random bits are at or above a threshold, so that
the probability is the one asked for to within 2⁻¹⁷ = 7.6e-6; what is kept is
divided by 1 − p. The bits come from torch's global generator: torch.manual_seed
decides them, and activation checkpoints draw them again. They are other ones
than torch's own dropout would draw.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: False: torch's own dropout, and its own attention under dropout, on a CPU too
CHEAP_ON_CPU = True

_STEPS = 2**16  # that a probability may have


def is_cheap(x: Tensor, p: float) -> bool:
    """Whether ``x`` is a plain tensor of a CPU, in eager mode, and p is worth 16 bits.

    Compiled graphs, other devices, subclasses of Tensor and function transforms
    (torch.func) have dropouts of their own; near 0 and 1, 16 bits say too little.
    """
    return (
        CHEAP_ON_CPU
        and x.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)
        and 0.01 <= p <= 0.99
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def kept(count: int, p: float, generator: torch.Generator | None = None) -> Tensor:
    """(count,) uint8 on the CPU: 0 with probability p, else 1."""
    bits = torch.empty(-(-count // 4), dtype=torch.int64)
    bits.random_(-(2**63), None, generator=generator)
    threshold = round(p * _STEPS) - _STEPS // 2
    return (bits.view(torch.int16)[:count] >= threshold).view(torch.uint8)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """torch.nn.functional.dropout: each number of ``x`` is 0 with probability p, or grows by
    1 / (1 − p)."""
    if not training or p == 0:
        return x
    if not is_cheap(x, p):
        return F.dropout(x, p)
    return (x * kept(x.numel(), p).view(x.shape)).mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    """torch.nn.Dropout, by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.inplace:
            return super().forward(x)
        return dropout(x, self.p, self.training)
