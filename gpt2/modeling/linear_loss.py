"""The loss straight from the hidden states, without the (N, V) logits: head and loss in one.

At 4 rows of 512 tokens the logits of GPT-2's vocabulary are 400 MB, and their
gradient as much again. Here a chunk of rows has logits at a time, and leaves
behind no more than the gradients of the states and of the weight, which are
computed at once (arXiv:2410.10989 does the same in a GPU kernel).

Shapes: see the legend in gpt2/modeling/transformer.py; N is B · T, or those
rows of it that have a target.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from gpt2.modeling import onednn
from gpt2.modeling.inputs import IGNORE_INDEX
from gpt2.modeling.losses import below_peak, loss_of_rows, summed_cross_entropy, to_gradient_
from gpt2.modeling.padded_head import is_plain, padded, padding_rows, weight_of

# float32 numbers that the logits of a chunk may have: 64 MB, 333 rows of GPT-2's vocabulary
_CHUNK_NUMBERS = 2**24


def summed_linear_cross_entropy(
    head: nn.Module,
    x: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    multiple: int | None = None,
) -> Tensor:
    """Σ −log softmax(head(x))[target], float32 (); rows with target −100 are left out.

    ``x`` (N, D), ``targets`` (N,) int64. The head's weight is used directly
    where the head is a plain linear layer. Any other module (with an adapter,
    quantized, hooked) is called chunk by chunk, and again in the backward pass.
    losses.py has the formulas of ``label_smoothing`` and ``z_loss``;
    ``multiple`` pads the vocabulary of the products, see padded_head.py.
    """
    terms = label_smoothing, z_loss
    if not torch.compiler.is_compiling():  # a graph may not count on the number of targets
        rows = targets != IGNORE_INDEX
        x, targets = x[rows], targets[rows]
    extra = padding_rows(head, len(x), multiple)
    if is_plain(head):
        weight = weight_of(head, x)
        if torch.is_autocast_enabled(x.device.type):  # as the layer itself would be computed
            x = x.to(weight.dtype)
        return _LinearCrossEntropy.apply(x, weight, targets, *terms, extra)  # type: ignore[no-untyped-call, no-any-return]
    total = x.new_zeros((), dtype=torch.float32)
    for piece, target in zip(*_pieces(x, targets, _vocabulary(head)), strict=True):
        total = total + checkpoint(_of_piece, head, piece, target, *terms, use_reentrant=False)
    return total


def _of_piece(head: nn.Module, x: Tensor, targets: Tensor, *terms: float) -> Tensor:
    return summed_cross_entropy(head(x), targets, *terms)


def _vocabulary(head: nn.Module) -> int:
    """A head's number of outputs, or GPT-2's where it does not say: it decides the chunks only."""
    return int(getattr(head, "out_features", 50257))


def _pieces(x: Tensor, targets: Tensor, columns: int) -> tuple[Any, Any]:
    if torch.compiler.is_compiling():
        return (x,), (targets,)
    rows = max(1, _CHUNK_NUMBERS // columns)
    return torch.split(x, rows), torch.split(targets, rows)


def _computed(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    smoothing: float,
    z_loss: float,
    extra: int,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sum of the losses and its gradients: of ``x``, and float32 of ``weight``, where needed.

    With logits = x Wᵀ and g the gradient of the logits (`to_gradient_`): dx = g W, dW = gᵀ x.
    The products are over W with ``extra`` rows of zeros, whose logits are 0 and stay it: they
    are in no softmax, and so they are their own gradient.
    """
    columns, weight = len(weight), padded(weight, extra)
    dx = torch.empty_like(x) if needs_x else None
    # Half precision would round each chunk's part of the sum.
    dw = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
    total = x.new_zeros((), dtype=torch.float32)
    start = 0
    with onednn.products(x)():
        for piece, target in zip(*_pieces(x, targets, len(weight)), strict=True):
            counts = (target != IGNORE_INDEX)[:, None]
            target = target.clamp(min=0)[:, None]
            g = F.linear(piece, weight).float()  # (n, V), the logits so far
            real = g[:, :columns]
            peak = real.amax(-1, keepdim=True)
            gap = below_peak(real, target, peak, smoothing)
            real.sub_(peak).exp_()
            log_sum = real.sum(-1, keepdim=True).log()
            total += torch.where(counts, loss_of_rows(gap, peak, log_sum, z_loss), 0.0).sum()
            if dx is not None or dw is not None:
                to_gradient_(real, target, counts.float(), peak, log_sum, smoothing, z_loss)
                g = g.to(weight.dtype)
            if dx is not None:
                torch.mm(g, weight, out=dx[start : start + len(piece)])
            if dw is not None and weight.dtype == torch.float32:
                dw.addmm_(g.t(), piece)
            elif dw is not None:
                dw += g.t() @ piece
            start += len(piece)
            del g, real  # before the next chunk has its own
    return total, dx, dw if dw is None else dw[:columns]


class _LinearCrossEntropy(torch.autograd.Function):
    """Both gradients are computed in the forward pass; backward scales them in place.

    So the weight's gradient, 154 MB for GPT-2, stands once in memory; a second
    backward over a retained graph computes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: float,
        z_loss: float,
        extra: int,
    ) -> Tensor:
        ctx.settings = smoothing, z_loss, extra, *ctx.needs_input_grad[:2]
        total, dx, dw = _computed(x, weight, targets, *ctx.settings)
        if torch.compiler.is_compiling():  # a graph plans its memory itself
            ctx.save_for_backward(dx, dw)
        else:
            ctx.save_for_backward(x, weight, targets)
            ctx.gradients = dx, dw
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            dx, dw = ctx.saved_tensors
            dx = None if dx is None else (dx * gradient).to(dx.dtype)
            dw = None if dw is None else (dw * gradient).to(ctx.dtype)
            return dx, dw, None, None, None, None
        saved = ctx.saved_tensors  # an error where the graph was not retained
        held, ctx.gradients = ctx.gradients, None
        dx, dw = _computed(*saved, *ctx.settings)[1:] if held is None else held
        dx = None if dx is None else dx.mul_(gradient)
        dw = None if dw is None else dw.mul_(gradient).to(ctx.dtype)
        return dx, dw, None, None, None, None
