"""Losses over tokens, computed a chunk of rows at a time.

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
from gpt2.modeling.inputs import IGNORE_INDEX

# float32 numbers that a chunk of the logits may have: 32 MB, small beside any real logits
_CHUNK_NUMBERS = 2**23

#: type of logits that are spread over processes -> what sums their loss (training/)
SUMMED_BY_TYPE: dict[type[Tensor], Callable[[Tensor, Tensor], Tensor]] = {}


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum over rows of −log softmax(logits)[target], in float32.

    Keeps only the logits, which exist anyway, and two numbers per row: torch's
    own pair of log-softmax and its gradient holds a further (N, V) float32. The
    row's peak and log Σ exp(x − peak) are kept apart, not added up: GPT-2's
    logits lie around −100, where a float32 sum is good to 5 digits only.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        peak = logits.new_empty(logits.shape[0], dtype=torch.float32)  # (N,)
        log_sum = torch.empty_like(peak)  # (N,)
        total = logits.new_zeros((), dtype=torch.float32)
        for rows in _chunks(logits):
            x, target, counts = logits[rows].float(), targets[rows], targets[rows] != IGNORE_INDEX
            picked = x.gather(-1, target.clamp(min=0)[:, None])[:, 0]
            peak[rows] = x.amax(-1)
            log_sum[rows] = (x - peak[rows, None]).exp_().sum(-1).log_()
            total += torch.where(counts, peak[rows] - picked + log_sum[rows], 0.0).sum()
        ctx.save_for_backward(logits, targets, peak, log_sum)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, peak, log_sum = ctx.saved_tensors
        out = torch.empty_like(logits)
        for rows in _chunks(logits):
            # d/dx (log Σ exp x − x[target]) = softmax(x) − onehot(target)
            counts = (targets[rows] != IGNORE_INDEX)[:, None]
            x = logits[rows].float() - peak[rows, None]
            x.sub_(log_sum[rows, None]).exp_()
            x.scatter_add_(-1, targets[rows].clamp(min=0)[:, None], -counts.to(x.dtype))
            out[rows] = torch.where(counts, x * gradient, 0.0).to(out.dtype)
        return out, None


def _chunks(logits: Tensor) -> list[slice]:
    if torch.compiler.is_compiling():
        return [slice(None)]  # the compiler fuses these lines, and may not count on the length
    rows = max(1, _CHUNK_NUMBERS // logits.shape[-1])
    return [slice(i, i + rows) for i in range(0, logits.shape[0], rows)]


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Σ −log softmax(logits)[target], float32 (); rows with target −100 are left out.

    ``logits`` (N, V) of any floating dtype, ``targets`` (N,) int64.
    """
    if type(logits) in SUMMED_BY_TYPE:
        return SUMMED_BY_TYPE[type(logits)](logits, targets)
    return _SummedCrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call, no-any-return]


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
) -> Tensor:
    """Mean cross-entropy of predicting the next token, float32 ().

    ``logits`` (B, T, V), ``labels`` (B, T) not shifted, ``attended`` (B, T)
    bool, ``document_ids`` (B, T); see `next_token_targets`. The mean is over
    the terms that count, or the sum divided by ``num_items_in_batch``, so that
    micro-batches add up to one batch. A batch in which no term counts has loss
    0 and zero gradients. Raises ArgumentError for a negative ``num_items_in_batch``.
    """
    targets = next_token_targets(labels, attended, document_ids)
    return classification_loss(logits, targets, num_items_in_batch=num_items_in_batch)


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
