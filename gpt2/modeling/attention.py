"""Multi-head attention: what is the same for every backend.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError
from gpt2.modeling.backends import (
    TAKES_SEGMENTS,
    attend_eager,
    attention_weights,
    get_backend,
)
from gpt2.modeling.cache import KeyValue, KVCache, require_alike
from gpt2.modeling.dropout import Dropout, dropout
from gpt2.modeling.masks import Visibility, finite_bias
from gpt2.modeling.segments import Segments


class GPT2Attention(nn.Module):
    """Self-attention, or attention to an encoder's states with ``is_cross_attention``."""

    def __init__(
        self, config: GPT2Config, is_cross_attention: bool = False, layer_idx: int = 0
    ) -> None:
        super().__init__()
        pruned = () if is_cross_attention else config.pruned_heads.get(layer_idx, ())
        self.num_heads = config.n_head - len(pruned)
        self.head_dim = config.head_dim
        self.layer_idx = layer_idx
        self.is_cross_attention = is_cross_attention
        width = self.num_heads * self.head_dim
        if is_cross_attention:
            self.q_attn = nn.Linear(config.n_embd, width)
            self.c_attn = nn.Linear(config.n_embd, 2 * width)  # keys and values of the encoder
        else:
            self.c_attn = nn.Linear(config.n_embd, 3 * width)  # queries, keys, values
        self.c_proj = nn.Linear(width, config.n_embd)
        self.attn_dropout = Dropout(config.attn_pdrop)
        self.resid_dropout = Dropout(config.resid_pdrop)

        self.attend = get_backend(config.attn_implementation)
        self.takes_segments = config.attn_implementation in TAKES_SEGMENTS
        self.upcast = config.reorder_and_upcast_attn
        self.scale = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer_idx + 1

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)  # (B, H, T, Dh)

    def merge_heads(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(-2)  # (B, T, H * Dh)

    def forward(
        self,
        hidden_states: Tensor,
        visibility: Visibility,
        cache: KVCache | None = None,
        *,
        encoder_hidden_states: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D), and the weights (B, H, T, S) where asked for.

        ``cache`` takes the new keys and values and gives all of them back; those
        of the encoder's states are computed only where it does not have them.
        ``head_mask`` (H, 1, 1) scales each head's output.
        """
        if self.is_cross_attention:
            q = self.split_heads(self.q_attn(hidden_states))
            k, v = self._of_encoder(q, encoder_hidden_states, cache)  # (B, H, Se, Dh)
        else:
            q, k, v = map(self.split_heads, self.c_attn(hidden_states).chunk(3, dim=-1))
            if cache is not None:
                k, v = cache.update(self.layer_idx, k, v)  # (B, H, S, Dh)
        if head_mask is not None and head_mask.shape[0] not in (1, self.num_heads):
            raise ArgumentError(
                f"head_mask names {head_mask.shape[0]} heads; layer {self.layer_idx} "
                f"has {self.num_heads}"
            )
        mask = visibility.mask
        if isinstance(mask, Tensor) and mask.shape[1] not in (1, self.num_heads):
            raise ArgumentError(
                f"attention_mask has shape {tuple(mask.shape)}, for {mask.shape[1]} heads; "
                f"layer {self.layer_idx} has {self.num_heads}"
            )

        dropout_p = self.attn_dropout.p if self.training else 0.0
        weights = None
        if output_attentions:
            x, weights = self._explicit(q, k, v, visibility, dropout_p)
        else:
            x = self._attend(q, k, v, visibility, dropout_p)  # (B, H, T, Dh)
        if head_mask is not None:
            x = x * head_mask.to(x.dtype)
            weights = None if weights is None else weights * head_mask.to(weights.dtype)
        return self.resid_dropout(self.c_proj(self.merge_heads(x))), weights

    def _of_encoder(self, q: Tensor, states: Tensor | None, cache: KVCache | None) -> KeyValue:
        """Keys and values of the encoder's states, (B, H, Se, Dh) each, kept in the cache."""
        encoder = None if cache is None else cache.encoder
        held = None if encoder is None else encoder.at(self.layer_idx)
        if held is not None:
            require_alike(self.layer_idx, held[0], q)
            return held
        k, v = self.c_attn(states).chunk(2, dim=-1)
        computed = self.split_heads(k), self.split_heads(v)
        if encoder is not None:
            encoder.layers[self.layer_idx] = computed
        return computed

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, dropout_p: float
    ) -> Tensor:
        # Kernels that take segments keep scores and softmax in float32 by themselves.
        if not self.upcast or self.takes_segments:
            return self.attend(
                q, k, v, mask=_fit(visibility.mask, q), scale=self.scale,
                causal=visibility.causal, dropout_p=dropout_p,
            )  # fmt: skip
        if self.attend is attend_eager:
            return self._explicit(q, k, v, visibility, dropout_p)[0]
        # A fused kernel has one dtype for all three: the product with v is then float32 as well.
        with torch.autocast(q.device.type, enabled=False):
            q32, k32, v32 = q.float(), k.float(), v.float()
            x = self.attend(
                q32, k32, v32, mask=_fit(visibility.mask, q32), scale=self.scale,
                causal=visibility.causal, dropout_p=dropout_p,
            )  # fmt: skip
        return x.to(v.dtype)

    def _explicit(
        self, q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, dropout_p: float
    ) -> tuple[Tensor, Tensor]:
        """Attention with its weights in hand, dropout included: what the caller asked to see."""
        if self.upcast:
            with torch.autocast(q.device.type, enabled=False):
                weights = self._weights(q.float(), k.float(), visibility)
        else:
            weights = self._weights(q, k, visibility)  # (B, H, T, S)
        weights = dropout(weights.to(v.dtype), dropout_p)
        return weights @ v, weights

    def _weights(self, q: Tensor, k: Tensor, visibility: Visibility) -> Tensor:
        mask = _fit(visibility.mask, q)
        assert not isinstance(mask, Segments)  # where weights are asked for, masks are dense
        return attention_weights(q, k, mask=mask, scale=self.scale, causal=visibility.causal)


def _fit(mask: Tensor | Segments | None, q: Tensor) -> Tensor | Segments | None:
    """The mask in the dtype that kernels want: bool, or that of the queries."""
    if not isinstance(mask, Tensor) or mask.dtype in (torch.bool, q.dtype):
        return mask
    return finite_bias(mask, q.dtype)  # under autocast: float32's lowest is −inf in half precision
