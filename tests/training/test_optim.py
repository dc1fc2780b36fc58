"""Groups of parameters and the learning rate over time."""

from __future__ import annotations

import pytest
import torch

from gpt2 import GPT2LMHeadModel
from gpt2.errors import ArgumentError
from gpt2.training.optim import cosine_with_warmup, parameter_groups
from tests.helpers import tiny_model


def test_matrices_decay_vectors_do_not_and_the_tied_weight_stands_once() -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-3)
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert "transformer.wte.weight" in decayed["param_names"]
    assert "lm_head.weight" not in decayed["param_names"] + plain["param_names"]
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in plain["params"]} == {1}
    assert sorted(decayed["param_names"] + plain["param_names"]) == sorted(
        name for name, _ in model.named_parameters()
    )


def test_an_untied_head_decays_too_and_frozen_parameters_are_left_out() -> None:
    model = tiny_model(GPT2LMHeadModel, tie_word_embeddings=False)
    model.transformer.requires_grad_(False)
    (group,) = parameter_groups(model)
    assert [name for name, _ in group["params"]] == ["lm_head.weight"]
    model.requires_grad_(False)
    with pytest.raises(ArgumentError, match="all of them are frozen"):
        parameter_groups(model)
    with pytest.raises(ArgumentError, match="weight_decay"):
        parameter_groups(model, weight_decay=-0.1)


def test_the_learning_rate_warms_up_and_follows_half_a_cosine() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = cosine_with_warmup(optimizer, warmup_steps=3, total_steps=11, final=0.1)
    rates = []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[7] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half way
    assert rates[11:] == pytest.approx([0.2] * 3)
    with pytest.raises(ArgumentError, match="warmup_steps=11 must be fewer than total_steps=11"):
        cosine_with_warmup(optimizer, warmup_steps=11, total_steps=11)
