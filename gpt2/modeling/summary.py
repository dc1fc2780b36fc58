"""One vector per sequence, for the multiple-choice head.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.errors import ConfigError
from gpt2.modeling.activations import get_activation


class GPT2SequenceSummary(nn.Module):
    """Pick or average one vector per sequence, drop out, project, activate.

    config.summary_type: "last" and "first" real token, the "mean" of the real
    tokens, or "cls_index", the token that the caller names. All go along the
    token axis of each sequence (transformers' "last", "first" and "mean" index
    the axis of the choices).
    """

    def __init__(self, config: GPT2Config, num_labels: int) -> None:
        super().__init__()
        if config.summary_type == "attn":
            raise ConfigError(
                "summary_type 'attn' has never been defined for GPT-2; "
                "it may be last, first, mean or cls_index"
            )
        self.summary_type = config.summary_type
        self.summary: nn.Module = nn.Identity()
        if config.summary_use_proj:
            width = num_labels if config.summary_proj_to_labels else config.n_embd
            self.summary = nn.Linear(config.n_embd, width)
        name = config.summary_activation
        self.activation = None if name is None else get_activation(name)
        self.first_dropout = nn.Dropout(config.summary_first_dropout)

    def forward(self, x: Tensor, real: Tensor | None, cls_index: Tensor | None = None) -> Tensor:
        """(…, T, D) -> (…, num_labels), or (…, D) without projection to labels.

        ``real`` (…, T) bool, True at real tokens, None: all. ``cls_index`` (…)
        is the token of "cls_index"; None: the last real one.
        """
        x = self.summary(self.first_dropout(self._pooled(x, real, cls_index)))
        return x if self.activation is None else self.activation(x)

    def _pooled(self, x: Tensor, real: Tensor | None, cls_index: Tensor | None) -> Tensor:
        if cls_index is not None:
            return token_at(x, cls_index)
        if self.summary_type == "mean":
            if real is None:
                return x.mean(-2)
            weights = real.to(x.dtype)[..., None]  # (…, T, 1)
            return (x * weights).sum(-2) / weights.sum(-2).clamp(min=1)
        if self.summary_type == "first":
            first = torch.zeros_like(x[..., 0, 0], dtype=torch.int64)
            return token_at(x, first if real is None else real.int().argmax(-1))
        return last_token(x, real)


def token_at(x: Tensor, index: Tensor) -> Tensor:
    """Row ``index`` (…) of (…, T, D), (…, D)."""
    index = index.long()[..., None, None]
    return x.gather(-2, index.expand(*index.shape[:-1], x.shape[-1]))[..., 0, :]


def last_token(x: Tensor, real: Tensor | None) -> Tensor:
    """The last real token of (…, T, D), (…, D); the first where there is none."""
    if real is None:
        return x[..., -1, :]
    columns = torch.arange(real.shape[-1], device=real.device)
    return token_at(x, (real * columns).argmax(-1))
