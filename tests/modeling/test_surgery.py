"""Resizing, pruning and gradient checkpointing: the shape of a model that has its weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)
from gpt2.errors import ArgumentError, ArgumentTypeError, ConfigError, SequenceLengthError
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


@pytest.mark.parametrize("tied", [True, False])
def test_another_token_embedding(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    head = model.lm_head.weight
    table = torch.nn.Embedding(97, 32)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table is model.transformer.wte
    assert (model.lm_head.weight is table.weight) == tied
    assert (model.lm_head.weight is head) == (not tied)
    expected = tiny_model(tie_word_embeddings=tied)
    with torch.no_grad():
        expected.transformer.wte.weight.copy_(table.weight)
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    model.save_pretrained(tmp_path / "m")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "m")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_another_token_embedding_with_more_tokens() -> None:
    model = tiny_model()
    model.set_input_embeddings(torch.nn.Embedding(101, 32))
    assert model.config.vocab_size == model.lm_head.out_features == 101
    assert model(IDS + 10).logits.shape[-1] == 101
    core = tiny_model(GPT2Model)
    core.set_input_embeddings(torch.nn.Embedding(50, 32))
    assert core.config.vocab_size == core.wte.num_embeddings == 50


def test_another_head() -> None:
    model = tiny_model(tie_word_embeddings=False)
    head = torch.nn.Linear(32, 97, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is head is model.lm_head
    states = model.transformer(IDS).last_hidden_state
    assert torch.equal(model(IDS).logits, head(states))
    tied = tiny_model()
    shared = torch.nn.Linear(32, 97, bias=False)
    shared.weight = tied.transformer.wte.weight
    expected = tied(IDS).logits
    tied.set_output_embeddings(shared)
    assert tied.lm_head is shared
    assert torch.equal(tied(IDS).logits, expected)
    tied.config.tie_word_embeddings = False  # now it may have one of its own
    tied.set_output_embeddings(torch.nn.Linear(32, 97, bias=False))
    assert "lm_head.weight" in tied.state_dict()


def linear(*size: int, bias: bool = False) -> torch.nn.Linear:
    return torch.nn.Linear(*size, bias=bias)


@pytest.mark.parametrize(
    ("tied", "call", "kind", "words"),
    [
        (True, lambda m: m.set_input_embeddings(linear(32, 97)), ArgumentTypeError, "not Linear"),
        (
            True,
            lambda m: m.set_input_embeddings(torch.nn.Embedding(97, 16)),
            ArgumentError,
            r"\(97 tokens, width 16\); expected \(97, 32\)",
        ),
        (
            False,
            lambda m: m.set_input_embeddings(torch.nn.Embedding(99, 32)),
            ArgumentError,
            r"\(99 tokens.*expected \(97, 32\); use resize_token_embeddings",
        ),
        (
            True,
            lambda m: m.set_output_embeddings(linear(32, 97)),
            ArgumentError,
            "makes the head's",
        ),
        (
            False,
            lambda m: m.set_output_embeddings(linear(32, 98)),
            ArgumentError,
            r"shape \(98, 32\); expected \(97, 32\)",
        ),
        (
            False,
            lambda m: m.set_output_embeddings(linear(32, 97, bias=True)),
            ArgumentTypeError,
            r"nn.Linear\(…, bias=False\), not Linear",
        ),
        (
            True,
            lambda m: m.transformer.set_output_embeddings(linear(32, 97)),
            ArgumentError,
            "GPT2Model has no output embeddings",
        ),
    ],
)
def test_embeddings_that_do_not_fit(
    tied: bool, call: Callable[[Any], None], kind: type[Exception], words: str
) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    expected = model(IDS).logits
    with pytest.raises(kind, match=words):
        call(model)
    assert torch.equal(model(IDS).logits, expected)


# -- positions ------------------------------------------------------------------------------------


def test_fewer_positions(tmp_path: Path) -> None:
    model = tiny_model()
    expected = model(IDS).logits
    table = model.resize_position_embeddings(8)
    assert table is model.get_position_embeddings() is model.transformer.wpe
    assert (table.num_embeddings, model.config.n_positions) == (8, 8)
    assert torch.equal(model(IDS).logits, expected)
    with pytest.raises(SequenceLengthError, match="n_positions = 8"):
        model(IDS.repeat(1, 2))
    model.save_pretrained(tmp_path / "short")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "short")
    assert again.config.n_positions == 8
    assert torch.equal(again(IDS).logits, expected)
    model(IDS).logits.sum().backward()
    assert table.weight.grad is not None


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 63, 200])
def test_stretched_positions(rows: int) -> None:
    model = tiny_model(GPT2Model)
    model.wpe.weight.requires_grad_(False)
    old = model.wpe.weight.double()  # 32 rows
    table = model.resize_position_embeddings(rows, mode="interpolate")
    assert table.weight.shape == (rows, 32)
    assert model.config.n_positions == table.num_embeddings == rows
    assert not table.weight.requires_grad
    assert table.weight.is_contiguous()
    for i in range(rows):
        place = i * 31 / max(1, rows - 1)
        low = min(int(place), 30)
        between = old[low] + (place - low) * (old[low + 1] - old[low])
        assert_close(table.weight[i], between, 1e-5)
    if rows > 32:
        assert model(IDS.repeat(1, rows // 7)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "new_num_position_embeddings must be .* not 0"),
        ((33,), "is 33, but the model has only 32 .* mode='interpolate'"),
        ((16, "linear"), "mode is 'linear'; it may be truncate, interpolate"),
    ],
)
def test_impossible_positions(arguments: tuple[Any, ...], words: str) -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match=words):
        model.resize_position_embeddings(*arguments)
    assert model.config.n_positions == model.transformer.wpe.num_embeddings == 32
    table = model.transformer.wpe.weight
    assert model.resize_position_embeddings(32).weight is table


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


def labelled(cls: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Inputs of a head, with labels."""
    rows = torch.tensor([0, 1])
    labels: dict[Any, dict[str, Tensor]] = {
        GPT2Model: {},
        GPT2LMHeadModel: {"labels": IDS},
        GPT2DoubleHeadsModel: {"labels": IDS[None], "mc_labels": rows[:1]},
        GPT2ForSequenceClassification: {"labels": rows},
        GPT2ForTokenClassification: {"labels": IDS % 2},
        GPT2ForQuestionAnswering: {"start_positions": rows, "end_positions": rows + 1},
    }
    return IDS[None] if cls is GPT2DoubleHeadsModel else IDS, labels[cls]


HEADS = [
    GPT2Model,
    GPT2LMHeadModel,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2ForQuestionAnswering,
]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("cls", HEADS)
def test_checkpointed_gradients_are_equal(cls: Any, reentrant: bool) -> None:
    model = tiny_model(cls, attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1).train()
    core = getattr(model, "transformer", model)
    ids, labels = labelled(cls)
    mask = torch.ones_like(ids)
    mask[..., 0, :2] = 0

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(3)
        model.zero_grad()
        output = model(ids, attention_mask=mask, output_attentions=True, **labels)
        loss = output.loss if labels else output[0].square().sum()
        (loss + output.get("mc_loss", 0)).backward()
        return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    loss, plain = gradients()
    runs = []
    hook = core.h[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    again, checkpointed = gradients()
    assert len(runs) == 2, "a block is computed again in backward"
    assert torch.equal(again, loss)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], plain[name]) for name in plain)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    gradients()
    assert len(runs) == 3
    hook.remove()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_reach_the_encoder(reentrant: bool) -> None:
    model = tiny_model(add_cross_attention=True).train()

    def gradient() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(2, 4, 32, generator=generator).requires_grad_()
        model(IDS, encoder_hidden_states=states, labels=IDS).loss.backward()
        assert states.grad is not None
        return states.grad

    plain = gradient()
    assert plain.abs().max() > 0
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert torch.equal(gradient(), plain)


def test_unknown_arguments_of_a_checkpoint() -> None:
    model = tiny_model()
    with pytest.raises(ArgumentTypeError, match="no argument 'reentrant'; did you mean 'use_reent"):
        model.gradient_checkpointing_enable({"reentrant": True})
    assert not model.is_gradient_checkpointing


def test_checkpointing_is_for_training_and_without_a_cache() -> None:
    model = tiny_model()
    model.gradient_checkpointing_enable({"preserve_rng_state": False})
    assert model(IDS).past_key_values is not None  # in eval mode nothing changes
    model.train()
    with pytest.raises(ArgumentError, match="gradient_checkpointing_disable"):
        model(IDS, use_cache=True)


# -- what trainers and adapters ask ---------------------------------------------------------------


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy])
def test_input_gradients_for_adapters(copied: Callable[[Any], Any]) -> None:
    """Frozen below, trained above: a reentrant checkpoint needs inputs that require gradients."""
    model = tiny_model().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.transformer.h[1].mlp.c_fc.weight.requires_grad_()
    model(IDS, labels=IDS).loss.backward()
    expected = model.transformer.h[1].mlp.c_fc.weight.grad
    model.zero_grad()
    model.enable_input_require_grads()
    model.enable_input_require_grads()  # twice is once
    model = copied(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert model.transformer.wte(IDS).requires_grad
    model(IDS, labels=IDS).loss.backward()
    assert_close(model.transformer.h[1].mlp.c_fc.weight.grad, expected)
    with torch.no_grad():
        assert not model.transformer.wte(IDS).requires_grad
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.zeros(97, 32)))
    assert model.transformer.wte(IDS).requires_grad
    model.disable_input_require_grads()
    assert not model.transformer.wte(IDS).requires_grad
    model.disable_input_require_grads()
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.eval()(IDS).logits, model.eval()(IDS).logits)


def test_number_of_parameters() -> None:
    block = 2 * 64 + 32 * 96 + 96 + 32 * 32 + 32 + 32 * 128 + 128 + 128 * 32 + 32
    tables = 97 * 32 + 32 * 32
    model = tiny_model()
    assert model.num_parameters() == tables + 2 * block + 64
    assert model.num_parameters(exclude_embeddings=True) == 2 * block + 64
    untied = tiny_model(tie_word_embeddings=False)
    assert untied.num_parameters() == tables + 97 * 32 + 2 * block + 64
    assert untied.num_parameters(exclude_embeddings=True) == 97 * 32 + 2 * block + 64
    model.transformer.wpe.weight.requires_grad_(False)
    model.transformer.ln_f.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == 97 * 32 + 2 * block
    assert model.num_parameters(only_trainable=True, exclude_embeddings=True) == 2 * block


def test_device_and_dtype() -> None:
    model = tiny_model()
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.half().dtype == torch.float16
    assert model.to("meta").device.type == "meta"
