"""The heads that speak: logits of the next token, on top of GPT2Model.

The heads that label sequences, tokens and spans are in gpt2/modeling/classifiers.py.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.modeling.generative import GenerativeModel
from gpt2.modeling.inputs import (
    IGNORE_INDEX,
    ValueChecks,
    attended_positions,
    in_last_document,
    require_ids,
    require_one_input,
    token_shape,
)
from gpt2.modeling.linear_loss import summed_linear_cross_entropy
from gpt2.modeling.losses import (
    averaged,
    causal_lm_loss,
    check_loss_terms,
    classification_loss,
    next_token_targets,
)
from gpt2.modeling.outputs import (
    CausalLMOutputWithCrossAttentions,
    GPT2DoubleHeadsModelOutput,
)
from gpt2.modeling.padded_head import logits_of
from gpt2.modeling.pretrained import refuse_unknown
from gpt2.modeling.summary import GPT2SequenceSummary
from gpt2.modeling.transformer import GPT2Model, PastKeyValues


class GPT2LMHeadModel(GenerativeModel):
    """GPT-2 with the language-modelling head, whose weight is the token embedding's."""

    tied_weights: ClassVar[Mapping[str, str]] = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer = GPT2Model(self.config)
        self.lm_head = nn.Linear(self.config.n_embd, self.config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        document_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool = True,
        num_items_in_batch: int | Tensor | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        check_inputs: bool = True,
        **unknown: Any,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Logits (B, T, V) of the next token, and the loss where ``labels`` are given.

        ``labels`` (B, T) are the input ids themselves: they are shifted here.
        −100 leaves a target out; so does padding, as source or as target, and a
        target in another document than its source. The loss is the mean over
        the targets that count, or their sum divided by ``num_items_in_batch``
        (not looked at without labels: Trainer sends it so with label smoothing).
        ``label_smoothing`` ε adds ε times the mean over the vocabulary of −log p
        to 1 − ε times that of the target, and ``z_loss`` z adds z · (log Z)², where
        log Z = log Σ exp(logits) (arXiv:1512.00567, arXiv:2204.02311 section 5).
        ``logits_to_keep``: the number of last positions to compute logits for
        (0: all), or their indices, (K,) for all rows or (B, K) for each.
        ``return_logits=False`` gives the loss alone, in far less memory: the
        logits of all positions never exist at once. The other arguments are
        GPT2Model.forward's.
        """
        refuse_unknown(self, unknown)
        require_one_input(input_ids, inputs_embeds)
        checks = ValueChecks(check_inputs)
        check_loss_terms(label_smoothing, z_loss, labels)
        if labels is not None:
            require_ids("labels", labels, token_shape(input_ids, inputs_embeds))
            checks.ids_in_range("labels", labels, self.config.vocab_size, ignore=IGNORE_INDEX)
        _check_keep(logits_to_keep, input_ids, inputs_embeds, checks)
        core = self.transformer(
            input_ids,
            past_key_values,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
            document_ids=document_ids,
            check_inputs=checks,
        )
        x = core.last_hidden_state  # (B, T, D)
        attended = attended_positions(attention_mask, x)
        loss, logits = _loss_and_logits(
            self.lm_head, x, labels, attended, document_ids, num_items_in_batch, logits_to_keep,
            return_logits, label_smoothing, z_loss, self.vocabulary_multiple,
        )  # fmt: skip
        output = CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=core.past_key_values,
            hidden_states=core.hidden_states,
            attentions=core.attentions,
            cross_attentions=core.cross_attentions,
        )
        return self.returned(output, return_dict)


class GPT2DoubleHeadsModel(GenerativeModel):
    """GPT-2 with the language-modelling head and one that chooses among continuations."""

    tied_weights: ClassVar[Mapping[str, str]] = {"lm_head.weight": "transformer.wte.weight"}
    may_initialize: ClassVar[tuple[str, ...]] = ("multiple_choice_head.*",)

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer = GPT2Model(self.config)
        self.lm_head = nn.Linear(self.config.n_embd, self.config.vocab_size, bias=False)
        self.multiple_choice_head = GPT2SequenceSummary(self.config, num_labels=1)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mc_token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        mc_labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        document_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool = True,
        num_items_in_batch: int | Tensor | None = None,
        mc_num_items_in_batch: int | Tensor | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        check_inputs: bool = True,
        **unknown: Any,
    ) -> GPT2DoubleHeadsModelOutput | tuple[Any, ...]:
        """Logits (B, C, T, V) of the next token, and one (B, C) per choice, for C choices.

        ``input_ids`` (B, C, T), or ``inputs_embeds`` (B, C, T, D).
        ``mc_token_ids`` (B, C): the token that each choice is judged by, its
        last real one where none is given. ``labels`` (B, C, T) are shifted
        here, as in GPT2LMHeadModel; ``mc_labels`` (B,) is the right choice,
        −100 leaves it out. The two losses, ``loss`` and ``mc_loss``, are means,
        or sums over ``num_items_in_batch`` tokens and ``mc_num_items_in_batch``
        rows; ``label_smoothing`` and ``z_loss`` are terms of ``loss``. With
        ``document_ids`` (B, C, T) a choice is judged by its last document. The
        other arguments are GPT2LMHeadModel.forward's.
        """
        refuse_unknown(self, unknown)
        require_one_input(input_ids, inputs_embeds)
        checks = ValueChecks(check_inputs)
        check_loss_terms(label_smoothing, z_loss, labels)
        shape = token_shape(input_ids, inputs_embeds)  # (B, C, T)
        if labels is not None:
            require_ids("labels", labels, shape)
            checks.ids_in_range("labels", labels, self.config.vocab_size, ignore=IGNORE_INDEX)
        if mc_token_ids is not None:
            if self.config.summary_type != "cls_index":
                raise ArgumentError(
                    f"mc_token_ids has no effect with summary_type {self.config.summary_type!r}; "
                    "leave it out, or build the model with summary_type='cls_index'"
                )
            require_ids("mc_token_ids", mc_token_ids, shape[:-1])
            checks.ids_in_range("mc_token_ids", mc_token_ids, shape[-1])
        if mc_labels is not None:
            if len(shape) < 3:
                raise ArgumentError(
                    f"mc_labels needs inputs of shape (batch, choices, length), not {tuple(shape)}"
                )
            require_ids("mc_labels", mc_labels, shape[:-2])
            checks.ids_in_range("mc_labels", mc_labels, shape[-2], ignore=IGNORE_INDEX)
        _check_keep(logits_to_keep, input_ids, inputs_embeds, checks)
        core = self.transformer(
            input_ids,
            past_key_values,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            document_ids=document_ids,
            check_inputs=checks,
        )
        x = core.last_hidden_state  # (B, C, T, D)
        attended = attended_positions(attention_mask, x)
        summarised = in_last_document(attended, document_ids)
        mc_logits = self.multiple_choice_head(x, summarised, mc_token_ids).squeeze(-1)  # (B, C)
        loss, logits = _loss_and_logits(
            self.lm_head, x, labels, attended, document_ids, num_items_in_batch, logits_to_keep,
            return_logits, label_smoothing, z_loss, self.vocabulary_multiple,
        )  # fmt: skip
        mc_loss = None
        if mc_labels is not None:
            if mc_logits.shape != shape[:-1]:
                raise ArgumentError(
                    "mc_labels needs one logit per choice; build the model with "
                    "summary_use_proj=True and summary_proj_to_labels=True"
                )
            mc_loss = classification_loss(
                mc_logits, mc_labels, num_items_in_batch=mc_num_items_in_batch
            )
        output = GPT2DoubleHeadsModelOutput(
            loss=loss,
            mc_loss=mc_loss,
            logits=logits,
            mc_logits=mc_logits,
            past_key_values=core.past_key_values,
            hidden_states=core.hidden_states,
            attentions=core.attentions,
        )
        return self.returned(output, return_dict)


def _loss_and_logits(
    lm_head: nn.Module,
    x: Tensor,
    labels: Tensor | None,
    attended: Tensor | None,
    document_ids: Tensor | None,
    num_items_in_batch: int | Tensor | None,
    logits_to_keep: int | Tensor,
    return_logits: bool,
    label_smoothing: float,
    z_loss: float,
    multiple: int | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The loss, where there are labels, and the logits of the positions that are asked for."""
    if not return_logits:
        if labels is None:
            raise ArgumentError("return_logits=False without labels leaves nothing to return")
        if isinstance(logits_to_keep, Tensor) or logits_to_keep:
            raise ArgumentError("logits_to_keep names logits that return_logits=False leaves out")
        targets = next_token_targets(labels, attended, document_ids)
        total = summed_linear_cross_entropy(
            lm_head, x.flatten(0, -2), targets.flatten(), label_smoothing, z_loss, multiple
        )
        return averaged(total, (targets != IGNORE_INDEX).sum(), num_items_in_batch), None
    if labels is None:
        return None, logits_of(lm_head, _keep(x, logits_to_keep), multiple)
    logits = logits_of(lm_head, x, multiple)  # (B, T, V): the loss is over every position
    loss = causal_lm_loss(
        logits,
        labels,
        attended=attended,
        document_ids=document_ids,
        num_items_in_batch=num_items_in_batch,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
    return loss, _keep(logits, logits_to_keep)


def _check_keep(
    which: int | Tensor,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    checks: ValueChecks,
) -> None:
    """Refuse indices in ``logits_to_keep`` that the input does not have; −1 is the last one."""
    if not isinstance(which, Tensor) or which.dtype == torch.bool:
        return
    require_ids("logits_to_keep", which)
    length = token_shape(input_ids, inputs_embeds)[-1]
    first = 0 if which.dim() == 2 else -length
    device = input_ids.device if input_ids is not None else inputs_embeds.device  # type: ignore[union-attr]
    checks.refuse(
        lambda: ((which < first) | (which >= length)).any().to(device),
        lambda: ArgumentError(
            f"logits_to_keep has an index outside {first} … {length - 1}: the input has {length} "
            f"positions; found {int(which.min())} … {int(which.max())}"
        ),
    )


def _keep(x: Tensor, which: int | Tensor) -> Tensor:
    """The positions of (B, T, ·) that ``logits_to_keep`` names, (B, K, ·)."""
    if isinstance(which, Tensor):
        if which.dim() == 2:
            return x.gather(-2, which[..., None].expand(-1, -1, x.shape[-1]))
        return x[..., which, :]
    if not isinstance(which, int):
        raise ArgumentTypeError(
            f"logits_to_keep must be a number or a tensor of indices, not {type(which).__name__}"
        )
    if which < 0:
        raise ArgumentError(f"logits_to_keep must be at least 0, not {which}")
    return x[..., max(0, x.shape[-2] - which) :, :] if which else x
