"""The heads that label sequences, tokens and spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import (
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)
from gpt2.errors import ArgumentError, ArgumentTypeError, TokenIdError
from tests.helpers import assert_close, tiny_model

ROWS = [[5, 9, 2, 7], [3, 1], [8, 8, 4, 6, 2, 0, 1]]
SIDES = ["left", "right"]


def padded(side: str, width: int = 7, filler: int = 11) -> tuple[Tensor, Tensor]:
    """(ids, mask) of ROWS, padded on one side with an ordinary token."""
    ids, mask = [], []
    for row in ROWS:
        gap = width - len(row)
        before, after = (gap, 0) if side == "left" else (0, gap)
        ids.append([filler] * before + row + [filler] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return torch.tensor(ids), torch.tensor(mask)


def sequence_model(num_labels: int = 3, **overrides: Any) -> GPT2ForSequenceClassification:
    return tiny_model(GPT2ForSequenceClassification, num_labels=num_labels, **overrides)


def token_model() -> GPT2ForTokenClassification:
    return tiny_model(GPT2ForTokenClassification, num_labels=4)


# -- padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", SIDES)
def test_a_sequence_is_classified_as_if_alone(side: str, attn_implementation: str) -> None:
    model = sequence_model(attn_implementation=attn_implementation)
    ids, mask = padded(side)
    labels = torch.tensor([2, 0, 1])
    together = model(ids, attention_mask=mask, labels=labels)
    alone = [model(torch.tensor([row]), labels=labels[i : i + 1]) for i, row in enumerate(ROWS)]
    assert_close(together.logits, torch.cat([a.logits for a in alone]))
    assert_close(together.loss, torch.stack([a.loss for a in alone]).mean())
    embedded = model(
        inputs_embeds=model.transformer.wte(ids), attention_mask=mask, labels=labels
    )  # no ids, and no pad token
    assert_close(embedded.logits, together.logits)


@pytest.mark.parametrize("side", SIDES)
def test_tokens_are_labelled_as_if_alone(side: str) -> None:
    model, (ids, mask) = token_model(), padded(side)
    labels = ids % 4
    together = model(ids, attention_mask=mask, labels=labels)
    alone = [model(torch.tensor([row])).logits[0] for row in ROWS]
    assert_close(together.logits[mask.bool()], torch.cat(alone))
    flat = torch.tensor([token for row in ROWS for token in row])
    assert_close(together.loss, F.cross_entropy(torch.cat(alone), flat % 4))


@pytest.mark.parametrize("side", SIDES)
def test_answers_are_found_as_if_alone(side: str) -> None:
    model, (ids, mask) = tiny_model(GPT2ForQuestionAnswering), padded(side)
    start, end = torch.tensor([1, 0, 2]), torch.tensor([2, 1, 6])
    first = mask.argmax(-1)  # column of each row's first token
    together = model(
        ids, attention_mask=mask, start_positions=start + first, end_positions=end + first
    )
    losses = []
    for i, row in enumerate(ROWS):
        alone = model(
            torch.tensor([row]), start_positions=start[i : i + 1], end_positions=end[i : i + 1]
        )
        assert_close(together.start_logits[i][mask[i].bool()], alone.start_logits[0])
        assert_close(together.end_logits[i][mask[i].bool()], alone.end_logits[0])
        assert mask[i, together.start_logits[i].argmax()] == 1
        losses.append(alone.loss)
    assert together.start_logits.isfinite().all()
    assert_close(together.loss, torch.stack(losses).mean())


def test_pooling_without_a_mask() -> None:
    """The last token that is not the pad token, where one is declared; else the last."""
    ids = torch.tensor([[5, 9, 2, 90, 90], [3, 90, 1, 7, 90], [90, 90, 4, 5, 6]])
    with_pad, without = sequence_model(pad_token_id=90), sequence_model()
    every = with_pad.score(with_pad.transformer(ids).last_hidden_state)  # (B, T, C)
    assert_close(with_pad(ids).logits, every[torch.arange(3), torch.tensor([2, 3, 4])])
    assert_close(without(ids).logits, every[:, -1])
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    pooled = with_pad(ids, attention_mask=mask).logits  # the mask is the truth
    assert_close(pooled[:1], with_pad(ids[:1, :1]).logits)


def test_a_row_of_padding_is_finite() -> None:
    ids, mask = padded("right")
    mask[1] = 0
    assert sequence_model()(ids, attention_mask=mask).logits.isfinite().all()
    spans = tiny_model(GPT2ForQuestionAnswering)(
        ids,
        attention_mask=mask,
        start_positions=torch.tensor([0, 0, 0]),
        end_positions=torch.tensor([1, 1, 1]),
    )
    assert spans.loss.isfinite()


def test_a_classifier_goes_on_from_a_cache() -> None:
    model, (ids, mask) = sequence_model(), padded("left")
    first = model(ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
    rest = model(ids[:, 4:], first.past_key_values, mask)
    assert_close(rest.logits, model(ids, attention_mask=mask).logits)


# -- losses ---------------------------------------------------------------------------------------


def test_problem_types_are_inferred_each_time_and_never_stored() -> None:
    model, (ids, mask) = sequence_model(), padded("left")
    single = model(ids, attention_mask=mask, labels=torch.tensor([0, 1, 2]))
    assert_close(single.loss, F.cross_entropy(single.logits, torch.tensor([0, 1, 2])))
    targets = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0.5, 0, 1]])
    multi = model(ids, attention_mask=mask, labels=targets)
    assert_close(multi.loss, F.binary_cross_entropy_with_logits(multi.logits, targets))
    assert model.config.problem_type is None
    one = sequence_model(num_labels=1)
    values = torch.tensor([0.3, -2.0, 1.0])
    regression = one(ids, attention_mask=mask, labels=values)
    assert_close(regression.loss, F.mse_loss(regression.logits[:, 0], values))
    assert_close(one(ids, attention_mask=mask, labels=values[:, None]).loss, regression.loss)


SPANS = {
    "start_positions": torch.tensor([0, 1, 9]),
    "end_positions": torch.tensor([1, 1, 2]),
}


@pytest.mark.parametrize(
    ("model", "labels", "items"),
    [
        (sequence_model(), {"labels": torch.tensor([0, 2, -100])}, 2),
        (sequence_model(), {"labels": torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 1]])}, 3),
        (sequence_model(num_labels=1), {"labels": torch.tensor([0.3, -2.0, 1.0])}, 3),
        (token_model(), {"labels": padded("left")[0] % 4}, 13),
        (tiny_model(GPT2ForQuestionAnswering), SPANS, 3),
    ],
    ids=["single", "multi", "regression", "tokens", "span"],
)
def test_micro_batches_add_up(model: Any, labels: dict[str, Tensor], items: int) -> None:
    ids, mask = padded("left")

    def loss(rows: slice) -> Tensor:
        targets = {name: value[rows] for name, value in labels.items()}
        return model(ids[rows], attention_mask=mask[rows], num_items_in_batch=items, **targets).loss

    whole = loss(slice(0, 3))
    assert whole > 0
    assert_close(loss(slice(0, 1)) + loss(slice(1, 3)), whole, 1e-6)
    if items != len(ids) or "labels" in labels:  # a span's two halves count different rows
        mean = model(ids, attention_mask=mask, **labels).loss
        assert_close(whole, mean, 1e-6)


def test_spans_outside_the_sequence_are_left_out_or_clamped() -> None:
    model, ids = tiny_model(GPT2ForQuestionAnswering), torch.tensor([[5, 9, 2, 7]] * 2)

    def loss(start: list[int], end: list[int]) -> Tensor:
        return model(ids, start_positions=torch.tensor(start), end_positions=torch.tensor(end)).loss

    assert_close(loss([1, 4], [2, 9]), loss([1, 1], [2, 2]))
    assert_close(loss([-3, 0], [2, 2]), loss([0, 0], [2, 2]))
    assert loss([7, 7], [7, 7]).item() == 0.0
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    at_padding = model(
        ids,
        attention_mask=mask,
        start_positions=torch.tensor([3, 1]),
        end_positions=torch.tensor([2, 2]),
    )
    assert at_padding.loss < 100


def test_nothing_to_learn_is_zero() -> None:
    ids, _ = padded("left")
    for model, labels in (
        (sequence_model(), torch.full((3,), -100)),
        (token_model(), torch.full((3, 7), -100)),
    ):
        loss = model(ids, labels=labels).loss
        loss.backward()
        assert loss.item() == 0.0
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_dropout_of_the_token_classifier() -> None:
    def p(**overrides: Any) -> float:
        return tiny_model(GPT2ForTokenClassification, **overrides).dropout.p

    assert p() == 0.1
    assert p(hidden_dropout=0.3) == 0.3
    assert p(hidden_dropout=0.3, classifier_dropout=0.0) == 0.0
    model = tiny_model(GPT2ForTokenClassification, classifier_dropout=1.0)
    assert not torch.equal(model(IDS).logits[0, 0], model.classifier.bias)
    assert torch.equal(model.train()(IDS).logits[0, 0], model.classifier.bias)


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "fresh"),
    [
        (GPT2ForSequenceClassification, ["score.weight"]),
        (GPT2ForTokenClassification, ["classifier.bias", "classifier.weight"]),
        (GPT2ForQuestionAnswering, ["qa_outputs.bias", "qa_outputs.weight"]),
    ],
)
@pytest.mark.parametrize("source", [GPT2Model, GPT2LMHeadModel])
def test_a_bare_checkpoint_loads_into_every_head(
    tmp_path: Path, cls: Any, fresh: list[str], source: Any
) -> None:
    tiny_model(source, tie_word_embeddings=False).save_pretrained(tmp_path / "bare")
    model, info = cls.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert sorted(info["missing_keys"]) == fresh
    own = dict(model.named_parameters())
    assert all(own[name].isfinite().all() for name in fresh)
    ids = torch.tensor([ROWS[0]])
    core = GPT2Model.from_pretrained(tmp_path / "bare")
    assert torch.equal(model.transformer(ids).last_hidden_state, core(ids).last_hidden_state)
    model.save_pretrained(tmp_path / "headed")
    again, info = cls.from_pretrained(tmp_path / "headed", output_loading_info=True)
    assert info["missing_keys"] == []
    assert torch.equal(again(ids)[0], model(ids)[0])
    back, info = GPT2Model.from_pretrained(tmp_path / "headed", output_loading_info=True)
    assert sorted(info["unexpected_keys"]) == fresh
    assert torch.equal(back(ids).last_hidden_state, core(ids).last_hidden_state)


# -- bad input ------------------------------------------------------------------------------------

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("model", "arguments", "error", "words"),
    [
        (sequence_model(), {"labels": torch.tensor([0, 3])}, TokenIdError, "from 0 to 2"),
        (sequence_model(), {"labels": torch.tensor([0, -1])}, TokenIdError, "labels[1] is -1"),
        (sequence_model(), {"labels": torch.tensor([0, 1, 2])}, ArgumentError, "expects (2,)"),
        (sequence_model(), {"labels": torch.rand(2, 2)}, ArgumentError, "expects (2, 3)"),
        (sequence_model(), {"labels": torch.rand(2, 3) + 1}, ArgumentError, "from 0 to 1"),
        (sequence_model(), {"labels": torch.full((2, 3), torch.nan)}, ArgumentError, "from 0 to 1"),
        (sequence_model(), {"labels": [0, 1]}, ArgumentTypeError, "labels must be a tensor"),
        (
            sequence_model(problem_type="single_label_classification"),
            {"labels": torch.tensor([0.0, 1.0])},
            ArgumentTypeError,
            "labels must be int64",
        ),
        (token_model(), {"labels": torch.tensor([0, 3])}, ArgumentError, "expected (2, 3)"),
        (token_model(), {"labels": torch.full((2, 3), 4)}, TokenIdError, "from 0 to 3"),
        (
            tiny_model(GPT2ForQuestionAnswering),
            {"start_positions": torch.tensor([0, 1])},
            ArgumentError,
            "both start_positions and end_positions",
        ),
        (
            tiny_model(GPT2ForQuestionAnswering),
            {"start_positions": torch.tensor([0]), "end_positions": torch.tensor([0])},
            ArgumentError,
            "start_positions has shape (1,)",
        ),
        (
            tiny_model(GPT2ForQuestionAnswering),
            {"start_position": torch.tensor([0])},
            ArgumentTypeError,
            "did you mean 'start_positions'",
        ),
        (token_model(), {"num_items_in_batch": -1, "labels": IDS % 4}, ArgumentError, "-1"),
    ],
)
def test_bad_input(model: Any, arguments: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        model(IDS, **arguments)
    assert words in str(caught.value)


def test_return_dict_and_hidden_states() -> None:
    for model in (sequence_model(), token_model(), tiny_model(GPT2ForQuestionAnswering)):
        full = model(IDS, output_hidden_states=True, output_attentions=True)
        assert len(full.hidden_states) == 3
        assert len(full.attentions) == 2
        assert_close(model(IDS, return_dict=False)[0], full[0])
    assert "past_key_values" not in token_model()(IDS)
    assert len(token_model()(IDS, use_cache=True).past_key_values) == 2
