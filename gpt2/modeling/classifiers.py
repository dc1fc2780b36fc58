"""The heads that label: one sequence, each token, or the span of an answer.

Shapes: see the legend in gpt2/modeling/transformer.py; C is the number of labels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError
from gpt2.modeling.inputs import (
    IGNORE_INDEX,
    ValueChecks,
    attended_positions,
    require_ids,
    require_one_input,
    require_tensor,
    token_shape,
)
from gpt2.modeling.losses import classification_loss, sequence_loss, span_loss
from gpt2.modeling.outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from gpt2.modeling.pretrained import GPT2PreTrainedModel, refuse_unknown
from gpt2.modeling.summary import last_token
from gpt2.modeling.transformer import GPT2Model, PastKeyValues


class GPT2ForSequenceClassification(GPT2PreTrainedModel):
    """GPT-2 with a linear layer over each sequence's last real token."""

    may_initialize: ClassVar[tuple[str, ...]] = ("score.weight",)

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self.transformer = GPT2Model(self.config)
        self.score = nn.Linear(self.config.n_embd, self.num_labels, bias=False)
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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        document_ids: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        check_inputs: bool = True,
        **unknown: Any,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Logits (B, C) per sequence, and the loss where ``labels`` are given.

        The last real token is the attention mask's; without a mask, the last
        that is not config.pad_token_id; without that, the last. (In a row of
        several documents it belongs to the last one.) ``labels`` and
        loss go by config.problem_type: class numbers (B,), −100 left out, and
        cross-entropy; (B, C) numbers and squared error; or (B, C) of 0 … 1 and
        binary cross-entropy. Where it is None it is inferred, each time:
        regression for one label, single_label_classification for integer
        labels, else multi_label_classification. The other arguments are
        GPT2Model.forward's.
        """
        refuse_unknown(self, unknown)
        require_one_input(input_ids, inputs_embeds)
        checks = ValueChecks(check_inputs)
        rows = token_shape(input_ids, inputs_embeds)[:-1]
        problem_type = ""
        if labels is not None:
            require_tensor("labels", labels)
            problem_type = self.config.problem_type or self._inferred_problem_type(labels)
            labels = self._checked_labels(labels, rows, problem_type, checks)
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
        x = core.last_hidden_state  # (B, T, D)
        real = attended_positions(attention_mask, x)
        if real is None and input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        logits = self.score(last_token(x, real))  # (B, C)
        loss = None
        if labels is not None:
            loss = sequence_loss(
                logits, labels, problem_type, num_items_in_batch=num_items_in_batch
            )
        output = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=core.past_key_values,
            hidden_states=core.hidden_states,
            attentions=core.attentions,
        )
        return self.returned(output, return_dict)

    def _inferred_problem_type(self, labels: Tensor) -> str:
        if self.num_labels == 1:
            return "regression"
        if labels.is_floating_point():
            return "multi_label_classification"
        return "single_label_classification"

    def _checked_labels(
        self, labels: Tensor, rows: torch.Size, problem_type: str, checks: ValueChecks
    ) -> Tensor:
        """The labels in the shape that the loss takes: (B,), or (B, C)."""
        single = problem_type == "single_label_classification"
        shape = rows if single else (*rows, self.num_labels)
        per_row = single or self.num_labels == 1  # then (B,) and (B, 1) say the same
        accepted = {shape, (*rows, 1), tuple(rows)} if per_row else {shape}
        if tuple(labels.shape) not in accepted:
            raise ArgumentError(
                f"labels has shape {tuple(labels.shape)}; {problem_type} expects {tuple(shape)}"
            )
        labels = labels.reshape(shape)
        if single:
            require_ids("labels", labels)
            checks.ids_in_range("labels", labels, self.num_labels, ignore=IGNORE_INDEX)
        elif problem_type == "multi_label_classification":
            checks.refuse(
                lambda: ~((labels >= 0) & (labels <= 1)).all(),
                lambda: ArgumentError(
                    "labels of multi_label_classification must be from 0 to 1, one per class"
                ),
            )
        return labels


class GPT2ForTokenClassification(GPT2PreTrainedModel):
    """GPT-2 with a linear layer over every token."""

    may_initialize: ClassVar[tuple[str, ...]] = ("classifier.*",)

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.num_labels = self.config.num_labels
        self.transformer = GPT2Model(self.config)
        wanted = (self.config.classifier_dropout, self.config.hidden_dropout, 0.1)  # as documented
        self.dropout = nn.Dropout(next(p for p in wanted if p is not None))
        self.classifier = nn.Linear(self.config.n_embd, self.num_labels)
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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        document_ids: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        check_inputs: bool = True,
        **unknown: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Logits (B, T, C) per token, and the loss where ``labels`` are given.

        ``labels`` (B, T) are class numbers; −100 and padding are left out of
        the mean cross-entropy. No cache is kept unless use_cache=True says so.
        The other arguments are GPT2Model.forward's.
        """
        refuse_unknown(self, unknown)
        require_one_input(input_ids, inputs_embeds)
        checks = ValueChecks(check_inputs)
        if labels is not None:
            require_ids("labels", labels, token_shape(input_ids, inputs_embeds))
            checks.ids_in_range("labels", labels, self.num_labels, ignore=IGNORE_INDEX)
        core = self.transformer(
            input_ids,
            past_key_values,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            use_cache=bool(use_cache),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            document_ids=document_ids,
            check_inputs=checks,
        )
        x = core.last_hidden_state  # (B, T, D)
        logits = self.classifier(self.dropout(x))  # (B, T, C)
        loss = None
        if labels is not None:
            attended = attended_positions(attention_mask, x)
            if attended is not None:
                labels = labels.masked_fill(~attended, IGNORE_INDEX)
            loss = classification_loss(logits, labels, num_items_in_batch=num_items_in_batch)
        output = TokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=core.hidden_states,
            attentions=core.attentions,
            past_key_values=core.past_key_values,
        )
        return self.returned(output, return_dict)


class GPT2ForQuestionAnswering(GPT2PreTrainedModel):
    """GPT-2 with two scores per token: how well an answer begins there, and ends there."""

    may_initialize: ClassVar[tuple[str, ...]] = ("qa_outputs.*",)

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer = GPT2Model(self.config)
        self.qa_outputs = nn.Linear(self.config.n_embd, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        document_ids: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        check_inputs: bool = True,
        **unknown: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Start and end logits (B, T), and the loss where both positions are given.

        ``start_positions`` and ``end_positions`` (B,) are columns of the input;
        one behind its end or at padding is left out of the loss, one below 0 is
        taken for 0. Logits at padding are the dtype's lowest number, so that
        neither a softmax nor an argmax sees it. With ``document_ids`` the loss
        seeks a position in its own document. The other arguments are
        GPT2Model.forward's.
        """
        refuse_unknown(self, unknown)
        require_one_input(input_ids, inputs_embeds)
        positions = []
        for name, given in (("start", start_positions), ("end", end_positions)):
            if given is not None:
                rows = token_shape(input_ids, inputs_embeds)[:-1]
                flat = given.flatten() if isinstance(given, Tensor) else given  # also (B, 1)
                require_ids(f"{name}_positions", flat, torch.Size([rows.numel()]))
                positions.append(flat)
        if len(positions) == 1:
            raise ArgumentError("give both start_positions and end_positions, or neither")
        core = self.transformer(
            input_ids,
            None,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            document_ids=document_ids,
            check_inputs=check_inputs,
        )
        x = core.last_hidden_state  # (B, T, D)
        logits = self.qa_outputs(x)  # (B, T, 2)
        attended = attended_positions(attention_mask, x)
        if attended is not None:
            logits = logits.masked_fill(~attended[..., None], torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(-1)  # (B, T) each
        loss = None
        if positions:
            loss = span_loss(
                start_logits.flatten(0, -2),
                end_logits.flatten(0, -2),
                *positions,
                attended=None if attended is None else attended.flatten(0, -2),
                document_ids=None if document_ids is None else document_ids.flatten(0, -2),
                num_items_in_batch=num_items_in_batch,
            )
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits.contiguous(),
            end_logits=end_logits.contiguous(),
            hidden_states=core.hidden_states,
            attentions=core.attentions,
        )
        return self.returned(output, return_dict)
