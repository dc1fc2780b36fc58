"""The encoder's keys and values in the cache: computed once, exact, never those of other states."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gpt2 import GPT2LMHeadModel
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.modeling.cache import KVCache
from gpt2.modeling.static_cache import StaticCache
from tests.helpers import assert_close, tiny_model

GENERATOR = torch.Generator().manual_seed(1)
IDS = torch.randint(0, 97, (2, 8), generator=GENERATOR)
STATES = torch.randn(2, 5, 32, generator=GENERATOR)
OTHER = torch.randn(2, 5, 32, generator=GENERATOR)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture
def model() -> GPT2LMHeadModel:
    return tiny_model(add_cross_attention=True)


def count_encodings(model: GPT2LMHeadModel) -> list[int]:
    """Grows by one for each layer that computes keys and values of an encoder's states."""
    calls: list[int] = []
    for block in model.transformer.h:
        block.crossattention.c_attn.register_forward_hook(lambda *_: calls.append(1))
    return calls


def whole(model: GPT2LMHeadModel, states: Tensor = STATES, **more: Any) -> Tensor:
    with torch.no_grad():
        logits = model(IDS, encoder_hidden_states=states, **more).logits
    assert isinstance(logits, Tensor)
    return logits


# -- computed once ------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("again", ["left out", "given again"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_computed_once(backend: str, again: str, static: bool) -> None:
    model = tiny_model(add_cross_attention=True, attn_implementation=backend)
    expected = whole(model, encoder_attention_mask=MASK)
    calls = count_encodings(model)
    encoder = {"encoder_hidden_states": STATES, "encoder_attention_mask": MASK}
    past: KVCache | None = StaticCache(model.config, 2, 8) if static else None
    with torch.no_grad():
        out = model(IDS[:, :4], past, **encoder)
        logits = [out.logits]
        for column in range(4, 8):
            more = encoder if again == "given again" else {}
            out = model(IDS[:, column : column + 1], out.past_key_values, **more)
            logits.append(out.logits)
    assert len(calls) == 2  # one per layer
    assert_close(torch.cat(logits, 1), expected)
    assert out.past_key_values[1][2].shape == (2, 4, 5, 8)


def test_a_new_mask_replaces_the_one_held(model: GPT2LMHeadModel) -> None:
    encoder = {"encoder_hidden_states": STATES}
    with torch.no_grad():
        past = model(IDS[:, :4], encoder_attention_mask=MASK, **encoder).past_key_values
        assert torch.equal(past.encoder.mask, MASK)
        kept = model(IDS[:, 4:], past).logits
        assert torch.equal(kept, model(IDS[:, 4:], past, encoder_attention_mask=MASK).logits)
        seen = model(IDS[:, 4:], past, encoder_attention_mask=torch.ones_like(MASK)).logits
        assert not torch.equal(seen, kept)
        # It is remembered as well.
        other = model(IDS[:, 4:6], past, encoder_attention_mask=torch.ones_like(MASK))
        assert_close(model(IDS[:, 6:], other.past_key_values).logits, seen[:, 2:])
        # States given anew without a mask are all real, as without a cache.
        assert torch.equal(seen, model(IDS[:, 4:], past, **encoder).logits)


# -- never those of other states ----------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_other_states_are_computed_anew(model: GPT2LMHeadModel, static: bool) -> None:
    past: KVCache | None = StaticCache(model.config, 2, 8) if static else None
    with torch.no_grad():
        past = model(IDS[:, :4], past, encoder_hidden_states=STATES).past_key_values
        pairs = tuple(pair[:2] for pair in past)  # without the encoder's: always computed
        for states in (OTHER, STATES.clone()):
            expected = model(IDS[:, 4:], pairs, encoder_hidden_states=states)
            out = model(IDS[:, 4:], past, encoder_hidden_states=states)
            assert_close(out.logits, expected.logits)
            assert torch.equal(out.past_key_values[0][2], expected.past_key_values[0][2])
            past = out.past_key_values.crop(4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_states_changed_in_place_are_computed_anew(
    model: GPT2LMHeadModel, mode: Callable[[], Any]
) -> None:
    with mode():
        states = STATES.clone()
        past = model(IDS[:, :4], encoder_hidden_states=states).past_key_values
        pairs = tuple(pair[:2] for pair in past)
        states.mul_(-1)
        out = model(IDS[:, 4:], past, encoder_hidden_states=states).logits
        assert_close(out, model(IDS[:, 4:], pairs, encoder_hidden_states=-STATES).logits)


def test_the_old_cache_keeps_its_states(model: GPT2LMHeadModel) -> None:
    with torch.no_grad():
        past = model(IDS[:, :4], encoder_hidden_states=STATES).past_key_values
        before = model(IDS[:, 4:], past).logits
        model(IDS[:, 4:], past, encoder_hidden_states=OTHER)
        assert torch.equal(model(IDS[:, 4:], past).logits, before)


@pytest.mark.parametrize("first", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_reach_the_encoder(model: GPT2LMHeadModel, first: Callable[[], Any]) -> None:
    """States given under grad are computed anew, the very same ones as well."""

    def gradients(states: Tensor, past: Any) -> list[Tensor]:
        model.zero_grad()
        model(IDS[:, 4:], past, encoder_hidden_states=states).logits.square().sum().backward()
        weight = model.transformer.h[1].crossattention.c_attn.weight
        assert states.grad is not None
        return [states.grad, weight.grad.clone()]

    states, twin = STATES.clone().requires_grad_(), STATES.clone().requires_grad_()
    with first():
        past = model(IDS[:, :4], encoder_hidden_states=states).past_key_values
    pairs = [(k.detach().clone(), v.detach().clone()) for k, v, *_ in past]
    if first is torch.enable_grad:  # only the new tokens' gradients are compared
        for mine, (k, v) in zip(past._buffers, pairs, strict=True):
            mine.keys, mine.values = k, v
    for found, expected in zip(gradients(states, past), gradients(twin, pairs), strict=True):
        assert expected.abs().max() > 0
        assert_close(found, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_held_is_a_constant_under_grad(
    model: GPT2LMHeadModel, mode: Callable[[], Any]
) -> None:
    with mode():
        past = model(IDS[:, :4], encoder_hidden_states=STATES).past_key_values
    out = model(IDS[:, 4:], past).logits
    assert_close(out, whole(model)[:, 4:])
    out.sum().backward()
    assert model.transformer.h[0].crossattention.q_attn.weight.grad.abs().max() > 0
    assert model.transformer.h[0].crossattention.c_attn.weight.grad is None


# -- the documented tuples, rows, copies ----------------------------------------------------------


def test_legacy_tuples_have_four_parts(model: GPT2LMHeadModel) -> None:
    expected = whole(model)
    with torch.no_grad():
        past = model(IDS[:, :4], encoder_hidden_states=STATES).past_key_values
    legacy = past.to_legacy_cache()
    assert [len(layer) for layer in legacy] == [4, 4]
    assert [t.shape[2] for t in legacy[0]] == [4, 4, 5, 5]
    back = KVCache.from_legacy_cache(legacy)
    for mine, theirs in zip(back.to_legacy_cache(), legacy, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    calls = count_encodings(model)
    with torch.no_grad():
        assert_close(model(IDS[:, 4:], legacy).logits, expected[:, 4:])
        assert calls == []
        given = model(IDS[:, 4:], legacy, encoder_hidden_states=STATES).logits
    assert len(calls) == 2  # tuples do not say what they come from
    assert_close(given, expected[:, 4:])


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda c: c.select(torch.tensor([1])), [1]),
        (lambda c: c.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda c: c.batch_select_indices(torch.tensor([1, 1, 0])), [1, 1, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda c: GPT2LMHeadModel._reorder_cache(c, torch.tensor([1, 1])), [1, 1]),
    ],
)
def test_rows_take_their_encoder_along(
    model: GPT2LMHeadModel, change: Callable[[KVCache], KVCache], rows: list[int], static: bool
) -> None:
    expected = whole(model, encoder_attention_mask=MASK)[:, 4:]
    past: KVCache | None = StaticCache(model.config, 2, 8) if static else None
    calls = count_encodings(model)
    with torch.no_grad():
        past = model(
            IDS[:, :4], past, encoder_hidden_states=STATES, encoder_attention_mask=MASK
        ).past_key_values
        out = model(IDS[rows, 4:], change(past)).logits
        assert len(calls) == 2
    assert_close(out, expected[rows])


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda c: pickle.loads(pickle.dumps(c)),
        lambda c: pytree.tree_map_only(Tensor, torch.clone, c),
    ],
    ids=["deepcopy", "pickle", "pytree"],
)
def test_copies_keep_the_encoder(model: GPT2LMHeadModel, copied: Any, static: bool) -> None:
    past: KVCache | None = StaticCache(model.config, 2, 8) if static else None
    with torch.no_grad():
        past = model(
            IDS[:, :4], past, encoder_hidden_states=STATES, encoder_attention_mask=MASK
        ).past_key_values
        twin = copied(past)
        assert torch.equal(model(IDS[:, 4:], twin).logits, model(IDS[:, 4:], past).logits)


# -- bad input ----------------------------------------------------------------------------------

KEYS, CROSS = torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 5, 8)


@pytest.mark.parametrize(
    ("past", "kind", "words"),
    [
        (((KEYS, KEYS, CROSS),) * 2, ArgumentTypeError, "cross key, cross value"),
        (((KEYS, KEYS, CROSS, CROSS), (KEYS, KEYS)), ArgumentTypeError, "past_key_values must be"),
        (
            ((KEYS, KEYS, CROSS, CROSS[:, :, :4]),) * 2,
            ArgumentError,
            "cross keys and values of all",
        ),
        (((KEYS, KEYS, CROSS[:1], CROSS[:1]),) * 2, ArgumentError, "cross keys have 1 rows.* 2"),
        (((KEYS, KEYS, CROSS[:, :3], CROSS[:, :3]),) * 2, ArgumentError, r"holds .*\(2, 3, 5, 8\)"),
        (
            ((KEYS, KEYS, CROSS.half(), CROSS.half()),) * 2,
            ArgumentError,
            "layer 0 is torch.float16",
        ),
    ],
)
def test_bad_tuples(model: GPT2LMHeadModel, past: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        model(IDS, past)


def test_a_model_without_cross_attention_refuses_the_encoders_columns() -> None:
    with pytest.raises(ArgumentError, match=r"past_key_values with cross keys.*no cross-attention"):
        tiny_model()(IDS, ((KEYS, KEYS, CROSS, CROSS),) * 2)


def test_a_mask_of_another_length_than_what_is_held(model: GPT2LMHeadModel) -> None:
    past = model(IDS[:, :4], encoder_hidden_states=STATES).past_key_values
    with pytest.raises(ArgumentError, match=r"encoder_attention_mask has shape \(2, 4\).*\(2, 5\)"):
        model(IDS[:, 4:], past, encoder_attention_mask=MASK[:, :4])
    with pytest.raises(ArgumentError, match="without encoder_hidden_states"):
        model(IDS, encoder_attention_mask=MASK)
