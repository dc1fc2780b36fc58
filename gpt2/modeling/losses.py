"""Losses over tokens, computed a chunk of rows at a time.

Two terms may be added to the cross-entropy log Z − x[target], log Z = log Σ exp x:
``label_smoothing`` ε takes the target's place by (1 − ε) of it and ε spread
evenly over all V classes (arXiv:1512.00567, section 7), so that x[target] becomes
(1 − ε) · x[target] + ε · mean(x); ``z_loss`` z adds z · (log Z)², which keeps
log Z near 0 (arXiv:2204.02311, section 5).

Shapes: see the legend in gpt2/modeling/transformer.py; N is B · T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.fieldchecks import check_number
from gpt2.modeling.inputs import IGNORE_INDEX

# float32 numbers that a chunk of the logits may have: 32 MB, small beside any real logits
_CHUNK_NUMBERS = 2**23

#: type of logits that are spread over processes -> what sums their loss (training/)
SUMMED_BY_TYPE: dict[type[Tensor], Callable[[Tensor, Tensor, float, float], Tensor]] = {}


def below_peak(x: Tensor, target: Tensor, peak: Tensor, smoothing: float) -> Tensor:
    """peak − (1 − ε) · x[target] − ε · mean(x), (n, 1), for rows x (n, V); ``peak`` (n, 1).

    ``target`` (n, 1) is in range. A row's peak and log Σ exp(x − peak) are kept
    apart, not added up to log Z: GPT-2's logits lie around −100, where a float32
    sum is good to 5 digits only.
    """
    gap = peak - x.gather(-1, target)
    if smoothing:
        gap = (1 - smoothing) * gap + smoothing * (peak - x.mean(-1, keepdim=True))
    return gap


def loss_of_rows(gap: Tensor, peak: Tensor, log_sum: Tensor, z_loss: float) -> Tensor:
    """The loss of each row from its `below_peak`, peak and log Σ exp(x − peak)."""
    return gap + log_sum + z_loss * (peak + log_sum).square() if z_loss else gap + log_sum


def to_gradient_(
    exps: Tensor,
    target: Tensor,
    factor: Tensor,
    peak: Tensor,
    log_sum: Tensor,
    smoothing: float,
    z_loss: float,
) -> Tensor:
    """``exps`` (n, V) = exp(x − peak), in place, becomes ``factor`` (n, 1) times d loss / dx.

    d loss / dx = softmax(x) · (1 + 2 z log Z) − (1 − ε) · onehot(target) − ε / V
    """
    growth = 1 + 2 * z_loss * (peak + log_sum) if z_loss else 1.0
    exps.mul_(factor * growth * (-log_sum).exp())
    if smoothing:
        exps.sub_(factor * (smoothing / exps.shape[-1]))
    return exps.scatter_add_(-1, target, factor * (smoothing - 1))


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum over rows of −log softmax(logits)[target], in float32.

    Keeps only the logits, which exist anyway, and two numbers per row: torch's
    own pair of log-softmax and its gradient holds a further (N, V) float32.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, z_loss: float
    ) -> Tensor:
        peak = logits.new_empty(logits.shape[0], 1, dtype=torch.float32)  # (N, 1)
        log_sum = torch.empty_like(peak)  # (N, 1)
        total = logits.new_zeros((), dtype=torch.float32)
        for rows in _chunks(logits):
            x, target, counts = logits[rows].float(), targets[rows], targets[rows] != IGNORE_INDEX
            peak[rows] = x.amax(-1, keepdim=True)
            log_sum[rows] = (x - peak[rows]).exp_().sum(-1, keepdim=True).log_()
            target = target.clamp(min=0)[:, None]
            gap = below_peak(x, target, peak[rows], smoothing)
            lost = loss_of_rows(gap, peak[rows], log_sum[rows], z_loss)
            total += torch.where(counts[:, None], lost, 0.0).sum()
        ctx.save_for_backward(logits, targets, peak, log_sum)
        ctx.terms = smoothing, z_loss
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, peak, log_sum = ctx.saved_tensors
        out = torch.empty_like(logits)
        in_place = out.dtype == torch.float32 and not torch.compiler.is_compiling()
        for rows in _chunks(logits):
            counts, target = targets[rows] != IGNORE_INDEX, targets[rows].clamp(min=0)[:, None]
            # In float32 a chunk becomes its gradient where that has to be.
            x = torch.sub(
                logits[rows].float(), peak[rows], out=out[rows] if in_place else None
            ).exp_()
            factor = gradient.expand_as(target).float()
            to_gradient_(x, target, factor, peak[rows], log_sum[rows], *ctx.terms)
            x.masked_fill_(~counts[:, None], 0.0)  # NaN logits that nobody asked for stay theirs
            if not in_place:
                out[rows] = x
        return out, None, None, None


def _chunks(logits: Tensor) -> list[slice]:
    if torch.compiler.is_compiling():
        return [slice(None)]  # the compiler fuses these lines, and may not count on the length
    rows = max(1, _CHUNK_NUMBERS // logits.shape[-1])
    return [slice(i, i + rows) for i in range(0, logits.shape[0], rows)]


def summed_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Σ −log softmax(logits)[target], float32 (); rows with target −100 are left out.

    ``logits`` (N, V) of any floating dtype, ``targets`` (N,) int64. The module's
    docstring has the formulas of ``label_smoothing`` and ``z_loss``.
    """
    summed: Callable[..., Tensor] = SUMMED_BY_TYPE.get(type(logits), _SummedCrossEntropy.apply)
    return summed(logits, targets, label_smoothing, z_loss)


def check_loss_terms(label_smoothing: Any, z_loss: Any, labels: Tensor | None) -> None:
    """Raise ArgumentError for a term that cannot be, or that there are no labels for."""
    check_number(ArgumentError, "label_smoothing", label_smoothing, 0, 1)
    check_number(ArgumentError, "z_loss", z_loss, 0, 1e6)
    if labels is None and (label_smoothing or z_loss):
        name = "label_smoothing" if label_smoothing else "z_loss"
        raise ArgumentError(f"{name} is a term of the loss, which needs labels")


def next_token_targets(
    labels: Tensor, attended: Tensor | None = None, document_ids: Tensor | None = None
) -> Tensor:
    """What each position has to predict: ``labels`` (…, T) moved one to the left, (…, T).

    −100 (left out of the loss) at the last position, where the label is −100,
    where ``attended`` (…, T) bool hides the source or the target, and where the
    target is in another document, by ``document_ids`` (…, T).
    """
    targets = torch.full_like(labels, IGNORE_INDEX, dtype=torch.int64)
    targets[..., :-1] = labels[..., 1:]
    if attended is not None:
        both = attended[..., :-1] & attended[..., 1:]
        targets[..., :-1] = targets[..., :-1].masked_fill(~both, IGNORE_INDEX)
    if document_ids is not None:
        across = document_ids[..., :-1] != document_ids[..., 1:]
        targets[..., :-1] = targets[..., :-1].masked_fill(across, IGNORE_INDEX)
    return targets


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    attended: Tensor | None = None,
    document_ids: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of predicting the next token, float32 ().

    ``logits`` (B, T, V), ``labels`` (B, T) not shifted, ``attended`` (B, T)
    bool, ``document_ids`` (B, T); see `next_token_targets`. The mean is over
    the terms that count, or the sum divided by ``num_items_in_batch``, so that
    micro-batches add up to one batch. A batch in which no term counts has loss
    0 and zero gradients. ``label_smoothing`` from 0 to 1 and ``z_loss`` from 0:
    see the module's docstring. Raises ArgumentError for numbers out of these
    ranges and for a negative ``num_items_in_batch``.
    """
    check_loss_terms(label_smoothing, z_loss, labels)
    targets = next_token_targets(labels, attended, document_ids)
    total = summed_cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing, z_loss)
    return averaged(total, (targets != IGNORE_INDEX).sum(), num_items_in_batch)


def classification_loss(
    logits: Tensor, targets: Tensor, *, num_items_in_batch: int | Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of ``targets`` (…) under ``logits`` (…, C), float32 ().

    Targets of −100 are left out; the mean is `averaged`'s.
    """
    total = summed_cross_entropy(logits.flatten(0, -2), targets.flatten().long())
    return averaged(total, (targets != IGNORE_INDEX).sum(), num_items_in_batch)


def sequence_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str,
    *,
    num_items_in_batch: int | Tensor | None = None,
) -> Tensor:
    """The loss of one (…, C) row of ``logits`` per sequence, float32 ().

    Cross-entropy for "single_label_classification", ``labels`` (…);
    otherwise squared error ("regression") or binary cross-entropy
    ("multi_label_classification"), ``labels`` (…, C), averaged over C and then
    over the sequences as `averaged` does.
    """
    if problem_type == "single_label_classification":
        return classification_loss(logits, labels, num_items_in_batch=num_items_in_batch)
    logits, labels = logits.float(), labels.float()
    if problem_type == "regression":
        terms = (logits - labels).square()
    else:
        terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    per_sequence = terms.mean(-1)  # (…)
    return averaged(per_sequence.sum(), per_sequence.numel(), num_items_in_batch)


def span_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    *,
    attended: Tensor | None = None,
    document_ids: Tensor | None = None,
    num_items_in_batch: int | Tensor | None = None,
) -> Tensor:
    """Mean of the cross-entropies of a span's first and last position, float32 ().

    ``logits`` (B, T), ``positions`` (B,). As documented, a position below 0 is
    taken for 0, and one behind the sequence is left out; so is one at padding,
    where ``attended`` (B, T) bool is False. With ``document_ids`` (B, T) the
    position is sought in its own document, not in the whole row.
    """

    def loss(logits: Tensor, positions: Tensor) -> Tensor:
        length = logits.shape[-1]
        inside = positions < length
        positions = positions.clamp(0, length - 1)
        if attended is not None:
            inside = inside & attended.gather(-1, positions[:, None])[:, 0]
        if document_ids is not None:
            elsewhere = document_ids != document_ids.gather(-1, positions[:, None])
            logits = logits.masked_fill(elsewhere, torch.finfo(logits.dtype).min)
        targets = positions.masked_fill(~inside, IGNORE_INDEX)
        return classification_loss(logits, targets, num_items_in_batch=num_items_in_batch)

    return (loss(start_logits, start_positions) + loss(end_logits, end_positions)) / 2


def averaged(total: Tensor, count: int | Tensor, num_items_in_batch: int | Tensor | None) -> Tensor:
    """``total`` over the number of terms, or over ``num_items_in_batch`` where that is given.

    The latter makes micro-batches add up to one batch. Nothing to count gives
    0. Raises ArgumentError for a negative number, ArgumentTypeError for what is none.
    """
    count = count if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, Tensor):
        return total / count.to(total.device).clamp(min=1)
    if not hasattr(count, "__float__"):
        raise ArgumentTypeError(
            f"num_items_in_batch must be a number or a tensor of one, not {type(count).__name__}"
        )
    if count < 0:
        raise ArgumentError(f"num_items_in_batch must be at least 0, not {count}")
    return total / max(1, count)
