"""GPT2DoubleHeadsModel: text and choices, in batches of any padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import GPT2DoubleHeadsModel, GPT2LMHeadModel
from gpt2.errors import ArgumentError, ConfigError, TokenIdError
from tests.helpers import assert_close, tiny_config, tiny_model

# two questions, three choices each, of different lengths
CHOICES = [[[5, 9, 2, 7], [3, 1], [8, 8, 4, 6, 2]], [[1], [7, 7, 7], [2, 4, 6, 8]]]
TYPES = ["last", "first", "mean", "cls_index"]
IDS = torch.randint(0, 97, (2, 3, 5), generator=torch.Generator().manual_seed(0))


def padded(side: str, width: int = 6) -> tuple[Tensor, Tensor]:
    ids, mask = torch.full((2, 3, width), 11), torch.zeros(2, 3, width, dtype=torch.int64)
    for i, question in enumerate(CHOICES):
        for j, row in enumerate(question):
            columns = slice(width - len(row), None) if side == "left" else slice(0, len(row))
            ids[i, j, columns], mask[i, j, columns] = torch.tensor(row), 1
    return ids, mask


def model_of(summary_type: str = "cls_index", **overrides: Any) -> GPT2DoubleHeadsModel:
    return tiny_model(GPT2DoubleHeadsModel, summary_type=summary_type, **overrides)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("summary_type", TYPES)
def test_a_choice_is_judged_as_if_alone(summary_type: str, side: str) -> None:
    model, (ids, mask) = model_of(summary_type), padded(side)
    mc_labels = torch.tensor([2, 0])
    together = model(ids, attention_mask=mask, labels=ids, mc_labels=mc_labels)
    alone = torch.stack(
        [torch.stack([model(torch.tensor([row])).mc_logits[0] for row in q]) for q in CHOICES]
    )
    assert together.mc_logits.shape == (2, 3)
    assert_close(together.mc_logits, alone)
    assert_close(together.mc_loss, F.cross_entropy(alone, mc_labels))
    lm = GPT2LMHeadModel(model.config).eval()
    lm.load_state_dict(model.state_dict(), strict=False)
    flat = lm(ids.flatten(0, 1), attention_mask=mask.flatten(0, 1), labels=ids.flatten(0, 1))
    assert_close(together.loss, flat.loss)
    assert_close(
        together.logits.flatten(0, 1)[mask.flatten(0, 1) == 1], flat.logits[mask.flatten(0, 1) == 1]
    )
    embeds = model.transformer.wte(ids)
    assert_close(model(inputs_embeds=embeds, attention_mask=mask).mc_logits, together.mc_logits)


def test_summaries_are_what_they_are_called() -> None:
    x = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(1))
    real = torch.tensor([[[0, 1, 1, 0, 1]] * 3] * 2).bool()
    plain = {"summary_use_proj": False}

    def summary(kind: str, index: Tensor | None = None, mask: Tensor | None = real) -> Tensor:
        return model_of(kind, **plain).multiple_choice_head(x, mask, index)

    assert_close(summary("first"), x[:, :, 1])
    assert_close(summary("first", mask=None), x[:, :, 0])
    assert_close(summary("last"), x[:, :, 4])
    assert_close(summary("last", mask=real[..., [0, 1, 2, 3, 0]]), x[:, :, 2])
    assert_close(summary("mean"), x[:, :, [1, 2, 4]].mean(2))
    assert_close(summary("mean", mask=None), x.mean(2))
    assert_close(summary("cls_index"), x[:, :, 4])
    index = torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = torch.stack([x[i, j, index[i, j]] for i in range(2) for j in range(3)])
    assert_close(summary("cls_index", index), expected.view(2, 3, 32))
    none_real = model_of("mean", **plain).multiple_choice_head(x, torch.zeros_like(real))
    assert none_real.isfinite().all()


def test_projection_activation_and_dropout() -> None:
    x = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(1))
    head = model_of("last", summary_activation="tanh").multiple_choice_head
    assert_close(head(x, None), head.summary(x[:, :, -1]).tanh())
    assert head(x, None).shape == (2, 3, 1)
    wide = model_of("last", summary_proj_to_labels=False).multiple_choice_head
    assert wide(x, None).shape == (2, 3, 32)
    dropped = model_of("last", summary_first_dropout=1.0).multiple_choice_head
    assert not torch.equal(dropped(x, None)[0, 0], dropped.summary.bias)
    assert torch.equal(dropped.train()(x, None)[0, 0], dropped.summary.bias)


def test_the_config_stays_the_callers() -> None:
    config = tiny_config(num_labels=5)
    before = config.to_dict()
    model = GPT2DoubleHeadsModel(config)
    assert config.to_dict() == before
    assert model.config.num_labels == 5
    assert model.multiple_choice_head.summary.out_features == 1


def test_attn_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'attn'"):
        model_of("attn")


def test_micro_batches_add_up() -> None:
    model, (ids, mask) = model_of(), padded("right")
    mc_labels = torch.tensor([1, 2])
    whole = model(ids, attention_mask=mask, labels=ids, mc_labels=mc_labels)
    items = sum(len(row) - 1 for question in CHOICES for row in question)
    parts = [
        model(
            ids[i : i + 1],
            attention_mask=mask[i : i + 1],
            labels=ids[i : i + 1],
            mc_labels=mc_labels[i : i + 1],
            num_items_in_batch=items,
            mc_num_items_in_batch=2,
        )
        for i in range(2)
    ]
    assert_close(parts[0].loss + parts[1].loss, whole.loss, 1e-6)
    assert_close(parts[0].mc_loss + parts[1].mc_loss, whole.mc_loss, 1e-6)


def test_it_generates_what_the_language_model_generates() -> None:
    model = model_of()
    lm = GPT2LMHeadModel(model.config).eval()
    lm.load_state_dict(model.state_dict(), strict=False)
    ids, mask = padded("left")
    arguments = {"attention_mask": mask[:, 0], "max_new_tokens": 6}
    assert torch.equal(model.generate(ids[:, 0], **arguments), lm.generate(ids[:, 0], **arguments))


def test_files(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "bare")
    model, info = GPT2DoubleHeadsModel.from_pretrained(tmp_path / "bare", output_loading_info=True)
    names = ["multiple_choice_head.summary.bias", "multiple_choice_head.summary.weight"]
    assert sorted(info["missing_keys"]) == names
    model.save_pretrained(tmp_path / "double")
    again, info = GPT2DoubleHeadsModel.from_pretrained(
        tmp_path / "double", output_loading_info=True
    )
    assert info["missing_keys"] == []
    assert torch.equal(again(IDS).mc_logits, model(IDS).mc_logits)
    assert again.lm_head.weight is again.transformer.wte.weight


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"mc_token_ids": torch.full((2, 3), 5)}, TokenIdError, "from 0 to 4"),
        ({"mc_token_ids": torch.zeros(2, dtype=torch.int64)}, ArgumentError, "expected (2, 3)"),
        ({"mc_labels": torch.tensor([0, 3])}, TokenIdError, "from 0 to 2"),
        ({"mc_labels": torch.tensor([0])}, ArgumentError, "expected (2,)"),
        ({"labels": IDS[0]}, ArgumentError, "expected (2, 3, 5)"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        model_of()(IDS, **arguments)
    assert words in str(caught.value)


def test_a_named_token_needs_the_summary_that_looks_at_it() -> None:
    with pytest.raises(ArgumentError, match="no effect with summary_type 'mean'"):
        model_of("mean")(IDS, mc_token_ids=torch.zeros(2, 3, dtype=torch.int64))


def test_choices_need_their_axis_and_one_logit_each() -> None:
    with pytest.raises(ArgumentError, match="choices"):
        model_of()(IDS[0], mc_labels=torch.tensor(0))
    with pytest.raises(ArgumentError, match="summary_use_proj"):
        model_of(summary_use_proj=False)(IDS, mc_labels=torch.tensor([0, 1]))
