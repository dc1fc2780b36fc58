"""GPT-2 itself: token ids -> hidden states.

Shape legend of the whole library: B batch, T query length, S key length
(past + T), H heads, Dh head size, D hidden, F inner, V vocabulary, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.modeling import onednn
from gpt2.modeling.attention import GPT2Attention
from gpt2.modeling.backends import TAKES_SEGMENTS
from gpt2.modeling.cache import KVCache, as_cache
from gpt2.modeling.compiled_block import one_token
from gpt2.modeling.dropout import Dropout
from gpt2.modeling.inputs import (
    ValueChecks,
    head_scales,
    require_ids,
    require_one_input,
    require_tensor,
    token_shape,
)
from gpt2.modeling.masks import Visibility
from gpt2.modeling.mlp import GPT2MLP
from gpt2.modeling.outputs import BaseModelOutputWithPastAndCrossAttentions
from gpt2.modeling.placement import Placement, encoder_visibility, place_tokens
from gpt2.modeling.pretrained import GPT2PreTrainedModel, refuse_unknown
from gpt2.modeling.static_cache import StaticCache
from gpt2.modeling.static_placement import place_in_static

PastKeyValues = KVCache | Iterable[Sequence[Tensor]]


class GPT2Block(nn.Module):
    """Attention and MLP, each behind a layer norm and added to the residual stream."""

    def __init__(self, config: GPT2Config, layer_idx: int = 0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer_idx=layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if config.add_cross_attention:
            self.crossattention = GPT2Attention(
                config, is_cross_attention=True, layer_idx=layer_idx
            )
            self.ln_cross_attn = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(
        self,
        x: Tensor,
        visibility: Visibility,
        cache: KVCache | None = None,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_visibility: Visibility | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, T, D) -> (B, T, D), and the weights of self- and cross-attention where asked for."""
        attended, weights = self.attn(
            self.ln_1(x),
            visibility,
            cache,
            head_mask=head_mask,
            output_attentions=output_attentions,
        )
        x = x + attended
        cross_weights = None
        if encoder_visibility is not None:
            attended, cross_weights = self.crossattention(
                self.ln_cross_attn(x),
                encoder_visibility,
                cache,
                encoder_hidden_states=encoder_hidden_states,
                head_mask=head_mask,
                output_attentions=output_attentions,
            )
            x = x + attended
        x = x + self.mlp(self.ln_2(x))
        return x, weights, cross_weights


class GPT2Model(GPT2PreTrainedModel):
    """The bare transformer: ids or embeddings -> hidden states after the last layer norm."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        config = self.config
        self.wte = _embedding(config.vocab_size, config.n_embd)
        self.wpe = _embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([GPT2Block(config, i) for i in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.takes_segments = config.attn_implementation in TAKES_SEGMENTS
        self.compiled = False  # prepare_for_inference(compile=True) sets it
        #: arguments of torch's checkpoint where blocks are computed again in backward, else None
        self.checkpointing: dict[str, Any] | None = None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        document_ids: Tensor | None = None,
        check_inputs: bool | ValueChecks = True,
        **unknown: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Hidden states (B, T, D) of the tokens, and what else is asked for.

        ``input_ids`` (B, T), or ``inputs_embeds`` (B, T, D); more leading
        dimensions are kept. ``attention_mask`` (B, S) with 1 at real tokens
        (cached ones included), or (B|1, 1|H, T, S), bool or additive, taken as
        it is: that says who sees whom, not which tokens are padding, so that
        positions, losses and poolings take every token as real.
        ``position_ids`` (B|1, T) are otherwise counted from the mask.
        ``token_type_ids`` (B, T) are embedded with the tokens' own table.
        ``head_mask`` (H,) or (L, H). ``encoder_hidden_states`` (B, Se, D) and
        ``encoder_attention_mask`` (B, Se) need add_cross_attention. Their keys
        and values stay in the cache: leave both out to read them again; the very
        same tensor is not computed twice, another one replaces them.
        ``use_cache`` None means: as the config says, but never in training or
        with documents.

        ``document_ids`` (B, T), whole numbers: tokens of a row with the same id
        are one document of a packed sequence. A token sees its own document
        only, positions begin anew with each, and n_positions limits each; so
        the result is that of the documents run one by one. The ids at padding
        say nothing. Not with a cache, nor with a 4-D mask.

        ``check_inputs=False`` skips the checks of values and with them the
        one host synchronisation.

        Raises ArgumentError, ArgumentTypeError, TokenIdError,
        SequenceLengthError and BackendError.
        """
        refuse_unknown(self, unknown)
        require_one_input(input_ids, inputs_embeds)
        shape = token_shape(input_ids, inputs_embeds)
        past = None if past_key_values is None else as_cache(past_key_values, self.config.n_layer)
        keep_attentions = _choose(output_attentions, self.config.output_attentions)
        # A head hands on the checks that it has begun, so that all are answered at once.
        checks = (
            check_inputs if isinstance(check_inputs, ValueChecks) else ValueChecks(check_inputs)
        )
        as_segments = self.takes_segments and not keep_attentions  # weights need a dense mask
        encoder = self._encoder_visibility(
            encoder_hidden_states, encoder_attention_mask, shape, past, checks, as_segments
        )
        place = self._place(
            shape, past, input_ids, attention_mask, token_type_ids, position_ids, document_ids,
            checks, as_segments,
        )  # fmt: skip
        keep_cache = _choose(
            use_cache, self.config.use_cache and not self.training and document_ids is None
        )
        if keep_cache and document_ids is not None:
            raise ArgumentError(
                "use_cache=True cannot be had with document_ids: a cache continues one document "
                "per row; leave out use_cache"
            )
        if isinstance(past, StaticCache) and not keep_cache:
            raise ArgumentError(
                "past_key_values is a StaticCache, which a forward pass writes to; it needs "
                "use_cache=True, by argument or config, and cannot be had in training otherwise"
            )
        recompute = self.checkpointing if self.training else None
        if recompute is not None and (keep_cache or past is not None):
            raise ArgumentError(
                "a cache cannot be read or kept while gradient checkpointing computes blocks "
                "twice; to generate, call model.eval() first; to train, leave out use_cache and "
                "past_key_values, or call gradient_checkpointing_disable()"
            )
        keep_states = _choose(output_hidden_states, self.config.output_hidden_states)
        cache = None
        if keep_cache or past is not None:
            start = KVCache(self.config.n_layer) if past is None else past
            cache = start.extended(shape[-1], place.key_mask)
            cache.attend_to(encoder_hidden_states, encoder_attention_mask)

        x = self.drop(self._embed(input_ids, inputs_embeds, token_type_ids, place.position_ids))
        states, attentions, cross_attentions = [], [], []
        blocks = list(zip(self.h, head_scales(head_mask, self.config.n_layer), strict=True))
        plain = not (keep_states or keep_attentions or encoder) and head_mask is None
        if self.compiled and plain:
            step = one_token(self.h, x, place.visibility, cache)
            if step is not None:
                x, blocks = step, []  # the same blocks, compiled
        products = nullcontext if self.packed else onednn.products(x)
        cross = encoder_hidden_states, encoder
        for block, scale in blocks:
            if keep_states:
                states.append(x.view(*shape, -1))
            run = partial(_run, products, block)  # what is computed again is, in the same context
            if recompute is not None:
                run = partial(checkpoint, run, **recompute)
            # arguments by position: reentrant checkpoints take nothing else
            x, weights, cross_weights = run(
                x, place.visibility, cache, scale, *cross, keep_attentions
            )
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        x = self.ln_f(x).view(*shape, -1)  # (B, T, D), or with the caller's leading dimensions
        if keep_states:
            states.append(x)

        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x,
            past_key_values=cache if keep_cache else None,
            hidden_states=tuple(states) if keep_states else None,
            attentions=tuple(attentions) if keep_attentions else None,
            cross_attentions=tuple(cross_attentions) if keep_attentions and encoder else None,
        )
        return self.returned(output, return_dict)

    def _place(
        self,
        shape: torch.Size,
        past: KVCache | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        document_ids: Tensor | None,
        checks: ValueChecks,
        as_segments: bool,
    ) -> Placement:
        """Check the inputs of ``shape`` (…, T), and say where they stand and what they see."""
        for name, ids in (("input_ids", input_ids), ("token_type_ids", token_type_ids)):
            if ids is not None:
                require_ids(name, ids, shape)
                checks.ids_in_range(name, ids, len(self.wte.weight))
        require_tensor("attention_mask", attention_mask)
        if attention_mask is not None and attention_mask.dim() == len(shape) != 2:
            attention_mask = attention_mask.flatten(0, -2)
        if document_ids is not None:
            require_ids("document_ids", document_ids, shape)
            document_ids = document_ids.flatten(0, -2)
        place: Callable[..., Placement] = place_tokens
        if isinstance(past, StaticCache):
            place = place_in_static
        return place(
            past=past,
            batch_size=math.prod(shape[:-1]),
            query_length=shape[-1],
            attention_mask=attention_mask,
            position_ids=position_ids,
            document_ids=document_ids,
            n_positions=len(self.wpe.weight),
            dtype=self.wpe.weight.dtype,
            device=self.wpe.weight.device,
            checks=checks,
            as_segments=as_segments,
        )

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
    ) -> Tensor:
        """wte[ids] + wpe[positions] (+ wte[types]), (B, T, D)."""
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if x.shape[-1] != self.config.n_embd:
            raise ArgumentError(
                f"inputs_embeds has width {x.shape[-1]}; "
                f"the model has n_embd = {self.config.n_embd}"
            )
        if inputs_embeds is not None:
            _require_dtype("inputs_embeds", x, self.wpe.weight.dtype, or_narrower=True)
        if token_type_ids is not None:
            x = x + self.wte(token_type_ids)
        return x.flatten(0, -3) + self.wpe(position_ids)  # type: ignore[no-any-return]

    def _encoder_visibility(
        self,
        states: Tensor | None,
        mask: Tensor | None,
        shape: torch.Size,
        past: KVCache | None,
        checks: ValueChecks,
        as_segments: bool,
    ) -> Visibility | None:
        batch_size, width = math.prod(shape[:-1]), self.config.n_embd
        held = None if past is None else past.encoder
        if states is None and held is None:
            if mask is not None:
                raise ArgumentError(
                    "encoder_attention_mask was given without encoder_hidden_states"
                )
            return None
        if not self.config.add_cross_attention:
            found = "encoder_hidden_states" if held is None else "past_key_values with cross keys"
            raise ArgumentError(
                f"{found} was given, but the model has no cross-attention; "
                "build it with add_cross_attention=True"
            )
        if states is None:
            assert held is not None
            mask = held.mask if mask is None else mask
            return encoder_visibility(
                mask, batch_size, held.length, shape[-1], checks, as_segments=as_segments
            )
        require_tensor("encoder_hidden_states", states)
        assert states is not None
        if states.dim() != 3 or states.shape[0] != batch_size or states.shape[2] != width:
            raise ArgumentError(
                f"encoder_hidden_states has shape {tuple(states.shape)}; "
                f"expected ({batch_size}, length, {width})"
            )
        _require_dtype("encoder_hidden_states", states, self.wpe.weight.dtype)
        return encoder_visibility(
            mask, batch_size, states.shape[1], shape[-1], checks, as_segments=as_segments
        )


def _require_dtype(name: str, x: Tensor, dtype: torch.dtype, *, or_narrower: bool = False) -> None:
    """Refuse another dtype than the model's; autocast sees to the dtypes itself."""
    fits = torch.promote_types(x.dtype, dtype) == dtype if or_narrower else x.dtype == dtype
    if not fits and not torch.is_autocast_enabled(x.device.type):
        raise ArgumentTypeError(
            f"{name} is {x.dtype}, but the model is {dtype}; give {name}.to({dtype})"
        )


def _embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding without torch's own initialisation, which post_init would overwrite.

    On the meta device, where loading begins, it would also import torch._dynamo: 1.3 s.
    """
    table = torch.empty(rows, width)
    return nn.Embedding.from_pretrained(table, freeze=False)  # type: ignore[no-any-return, no-untyped-call]


def _choose(argument: bool | None, default: bool) -> bool:
    return default if argument is None else argument


def _run(
    context: Callable[[], AbstractContextManager[object]], block: nn.Module, *arguments: Any
) -> Any:
    """``block`` in a context of its own, which it enters again where it is computed again."""
    with context():
        return block(*arguments)
