"""Resizing, pruning and gradient checkpointing: the shape of a model that has its weights."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2DoubleHeadsModel, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from gpt2.errors import ArgumentError, ConfigError
from gpt2.modeling.surgery import resized_rows
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 90, (2, 7), generator=torch.Generator().manual_seed(0))


def test_one_config_for_a_head_and_its_core() -> None:
    model = tiny_model()
    assert model.config is model.transformer.config
    model.config.use_cache = False
    assert model(IDS).past_key_values is None
    model.config.output_hidden_states = True
    assert len(model(IDS).hidden_states) == 3
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config is other.transformer.config
        assert other.config is not model.config


# -- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cls", [GPT2LMHeadModel, GPT2DoubleHeadsModel])
def test_growing_and_shrinking_keep_what_was_there(cls: Any, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(cls, tie_word_embeddings=tied)
    before = model(IDS).logits.detach()
    table = model.resize_token_embeddings(105)
    assert table is model.get_input_embeddings()
    assert (table.num_embeddings, model.lm_head.out_features) == (105, 105)
    assert model.config.vocab_size == model.transformer.config.vocab_size == 105
    assert (model.lm_head.weight is table.weight) == tied
    after = model(IDS).logits
    assert after.shape[-1] == 105
    assert_close(after[..., :97], before)
    assert model(IDS + 10).logits.isfinite().all()  # new ids are in range
    after.sum().backward()
    assert table.weight.grad is not None
    model.save_pretrained(tmp_path / "grown")
    assert torch.equal(cls.from_pretrained(tmp_path / "grown")(IDS).logits, model(IDS).logits)
    model.resize_token_embeddings(92)
    assert_close(model(IDS).logits, before[..., :92])


def test_rounding_up_and_leaving_as_it_is() -> None:
    model = tiny_model(GPT2Model)
    weight = model.wte.weight
    assert model.resize_token_embeddings().weight is weight
    assert model.resize_token_embeddings(97).weight is weight
    assert model.resize_token_embeddings(pad_to_multiple_of=64).num_embeddings == 128
    assert model.resize_token_embeddings(129, pad_to_multiple_of=64).num_embeddings == 192
    frozen = tiny_model(GPT2Model)
    frozen.wte.weight.requires_grad_(False)
    assert not frozen.resize_token_embeddings(100).weight.requires_grad


def test_new_rows_scatter_around_the_mean() -> None:
    table = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    torch.manual_seed(0)
    new = resized_rows(table, 20_050, mean_resizing=True, std=0.02)[50:]
    assert_close(new.mean(0), table.mean(0), 1e-5)
    assert 0 < (new - table.mean(0)).abs().max() < 0.01
    centred = (new.double() - new.double().mean(0)) * 1e9**0.5
    wanted = torch.cov(table.double().T, correction=0)
    assert_close(centred.T @ centred / len(new), wanted, 0.1)
    plain = resized_rows(table, 20_050, mean_resizing=False, std=0.02)[50:]
    assert plain.mean().abs() < 1e-3
    assert abs(plain.std().item() - 0.02) < 1e-3


@pytest.mark.parametrize("arguments", [{"new_num_tokens": 0}, {"pad_to_multiple_of": 0}])
def test_impossible_sizes(arguments: dict[str, int]) -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match=f"{next(iter(arguments))} must be"):
        model.resize_token_embeddings(**arguments)
    assert model.config.vocab_size == 97


# -- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_pruned_heads_are_heads_masked_out(attn_implementation: str, tmp_path: Path) -> None:
    model = tiny_model(attn_implementation=attn_implementation, add_cross_attention=True)
    keep = torch.ones(2, 4)
    keep[0, 1] = keep[1, 0] = keep[1, 3] = 0
    expected = model(IDS, head_mask=keep).logits
    model.prune_heads({0: [1], 1: [3]})
    model.prune_heads({1: [0]})  # numbered as at first
    assert model.config.pruned_heads == {0: [1], 1: [0, 3]}
    assert_close(model(IDS).logits, expected)
    assert model.transformer.h[1].attn.c_attn.weight.shape == (48, 32)
    cached = model(IDS[:, :4], use_cache=True)
    assert_close(model(IDS[:, 4:], cached.past_key_values).logits, expected[:, 4:])
    model(IDS).logits.sum().backward()
    model.save_pretrained(tmp_path / "pruned")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "pruned")
    assert again.config.pruned_heads == {0: [1], 1: [0, 3]}
    assert_close(again(IDS).logits, expected)


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({2: [0]}, "pruned_heads: layer"),
        ({0: [4]}, "from 0 to 3"),
        ({0: [0, 1, 2, 3]}, "one must stay"),
    ],
)
def test_heads_that_cannot_be_pruned(heads: dict[int, list[int]], words: str) -> None:
    model = tiny_model()
    expected = model(IDS).logits
    with pytest.raises(ConfigError, match=words):
        model.prune_heads(heads)
    assert torch.equal(model(IDS).logits, expected)
    assert model.config.pruned_heads == {}


# -- gradient checkpointing -----------------------------------------------------------------------


@pytest.mark.parametrize("cls", [GPT2LMHeadModel, GPT2ForSequenceClassification])
def test_checkpointed_gradients_are_equal(cls: Any) -> None:
    model = tiny_model(cls, attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1).train()
    labels = IDS if cls is GPT2LMHeadModel else torch.tensor([0, 1])

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(3)
        model.zero_grad()
        output = model(IDS, labels=labels)
        output.loss.backward()
        return output.loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    loss, plain = gradients()
    runs = []
    hook = model.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    again, checkpointed = gradients()
    assert len(runs) == 2, "a block is computed again in backward"
    assert torch.equal(again, loss)
    assert all(torch.equal(checkpointed[name], plain[name]) for name in plain)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    gradients()
    assert len(runs) == 3
    hook.remove()


def test_checkpointing_is_for_training_and_without_a_cache() -> None:
    model = tiny_model()
    model.gradient_checkpointing_enable({"preserve_rng_state": False})
    assert model(IDS).past_key_values is not None  # in eval mode nothing changes
    model.train()
    with pytest.raises(ArgumentError, match="gradient_checkpointing_disable"):
        model(IDS, use_cache=True)
