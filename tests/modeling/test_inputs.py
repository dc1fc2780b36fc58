"""Bad input to forward: our error, naming the argument, the value found and the one that is right.

And what the checks cost: one look at the device, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2 import GPT2LMHeadModel, GPT2Model
from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    GPT2Error,
    SequenceLengthError,
    TokenIdError,
)
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 97, (2, 5), generator=torch.Generator().manual_seed(1))
EMBEDS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))


def with_id(value: int) -> Tensor:
    ids = IDS.clone()
    ids[1, 3] = value
    return ids


# (arguments, error, parts of the message: the argument, what was found, what would be right)
BAD_INPUT: dict[str, tuple[dict[str, Any], type[GPT2Error], list[str]]] = {
    "neither": ({}, ArgumentError, ["input_ids", "inputs_embeds", "neither"]),
    "both": (
        {"input_ids": IDS, "inputs_embeds": EMBEDS},
        ArgumentError,
        ["input_ids", "inputs_embeds", "both"],
    ),
    "id too large": ({"input_ids": with_id(97)}, TokenIdError, ["input_ids[1, 3] is 97", "96"]),
    "id negative": ({"input_ids": with_id(-1)}, TokenIdError, ["input_ids[1, 3] is -1", "0 to"]),
    "float ids": ({"input_ids": IDS.float()}, ArgumentTypeError, ["input_ids", "float32", "int64"]),
    "bool ids": ({"input_ids": IDS.bool()}, ArgumentTypeError, ["input_ids", "bool", "int64"]),
    "narrow ids": (
        {"input_ids": IDS.to(torch.int16)},
        ArgumentTypeError,
        ["input_ids", "int16", "int64"],
    ),
    "list of ids": ({"input_ids": [[1, 2]]}, ArgumentTypeError, ["input_ids", "list", "tensor"]),
    "no batch": ({"input_ids": IDS[0]}, ArgumentError, ["input_ids", "(5,)", "(batch, length)"]),
    "no tokens": ({"input_ids": IDS[:, :0]}, ArgumentError, ["input_ids", "(2, 0)"]),
    "no rows": ({"input_ids": IDS[:0]}, ArgumentError, ["input_ids", "(0, 5)"]),
    "too long": (
        {"input_ids": IDS.repeat(1, 7)},
        SequenceLengthError,
        ["35 real tokens", "n_positions = 32"],
    ),
    "embeds of ids": (
        {"inputs_embeds": IDS},
        ArgumentTypeError,
        ["inputs_embeds", "floating-point"],
    ),
    "embeds too narrow": (
        {"inputs_embeds": EMBEDS[..., :31]},
        ArgumentError,
        ["inputs_embeds", "31", "n_embd = 32"],
    ),
    "embeds flat": ({"inputs_embeds": EMBEDS[0]}, ArgumentError, ["inputs_embeds", "(5, 32)"]),
    "mask too short": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 4)},
        ArgumentError,
        ["attention_mask", "(2, 4)", "(2, 5)"],
    ),
    "mask of other rows": (
        {"input_ids": IDS, "attention_mask": torch.ones(3, 5)},
        ArgumentError,
        ["attention_mask", "(3, 5)", "(2, 5)"],
    ),
    "mask of three dimensions": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 5, 5)},
        ArgumentError,
        ["attention_mask", "(2, 5, 5)", "(2, 5)"],
    ),
    "mask of ids": (
        {"input_ids": IDS, "attention_mask": 3 * torch.ones(2, 5)},
        ArgumentError,
        ["attention_mask", "0", "1", "it has 3"],
    ),
    "mask of NaN": (
        {"input_ids": IDS, "attention_mask": torch.full((2, 5), torch.nan)},
        ArgumentError,
        ["attention_mask", "nan"],
    ),
    "mask as list": (
        {"input_ids": IDS, "attention_mask": [[1] * 5] * 2},
        ArgumentTypeError,
        ["attention_mask", "list"],
    ),
    "4-D mask of other size": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 4)},
        ArgumentError,
        ["attention_mask", "(2, 1, 5, 4)", "5, 5)"],
    ),
    "4-D mask of integers": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 5, 5, dtype=torch.int64)},
        ArgumentTypeError,
        ["attention_mask", "int64", "bool"],
    ),
    "position too large": (
        {"input_ids": IDS, "position_ids": IDS * 0 + 32},
        SequenceLengthError,
        ["position_ids[0, 0] is 32", "n_positions = 32", "0 to 31"],
    ),
    "position negative": (
        {"input_ids": IDS, "position_ids": IDS * 0 - 1},
        SequenceLengthError,
        ["position_ids[0, 0] is -1", "n_positions = 32", "0 to 31"],
    ),
    "4-D mask of other heads": (
        {"input_ids": IDS, "attention_mask": torch.zeros(2, 3, 5, 5)},
        ArgumentError,
        ["attention_mask", "(2, 3, 5, 5)", "3 heads", "has 4"],
    ),
    "wider embeds": (
        {"inputs_embeds": EMBEDS.double()},
        ArgumentTypeError,
        ["inputs_embeds is torch.float64", "model is torch.float32", "inputs_embeds.to("],
    ),
    "positions of other shape": (
        {"input_ids": IDS, "position_ids": IDS[:, :4]},
        ArgumentError,
        ["position_ids", "(2, 4)", "(2, 5)"],
    ),
    "positions as floats": (
        {"input_ids": IDS, "position_ids": IDS.float()},
        ArgumentTypeError,
        ["position_ids", "float32"],
    ),
    "token type too large": (
        {"input_ids": IDS, "token_type_ids": with_id(97)},
        TokenIdError,
        ["token_type_ids[1, 3] is 97", "96"],
    ),
    "token types of other shape": (
        {"input_ids": IDS, "token_type_ids": IDS[:1]},
        ArgumentError,
        ["token_type_ids", "(1, 5)", "(2, 5)"],
    ),
    "heads of another model": (
        {"input_ids": IDS, "head_mask": torch.ones(3)},
        ArgumentError,
        ["head_mask", "3 heads", "has 4"],
    ),
    "head mask of another depth": (
        {"input_ids": IDS, "head_mask": torch.ones(3, 4)},
        ArgumentError,
        ["head_mask", "(3, 4)", "2 layers"],
    ),
    "head mask as list": (
        {"input_ids": IDS, "head_mask": [1, 1, 1, 1]},
        ArgumentTypeError,
        ["head_mask", "list"],
    ),
    "no cross-attention": (
        {"input_ids": IDS, "encoder_hidden_states": EMBEDS},
        ArgumentError,
        ["encoder_hidden_states", "add_cross_attention=True"],
    ),
    "mask of no encoder": (
        {"input_ids": IDS, "encoder_attention_mask": torch.ones(2, 5)},
        ArgumentError,
        ["encoder_attention_mask", "encoder_hidden_states"],
    ),
}
BAD_LABELS: dict[str, tuple[dict[str, Any], type[GPT2Error], list[str]]] = {
    "label too large": ({"labels": with_id(97)}, TokenIdError, ["labels[1, 3] is 97", "96"]),
    "label negative": ({"labels": with_id(-1)}, TokenIdError, ["labels[1, 3] is -1", "-100"]),
    "labels of other shape": (
        {"labels": IDS[:, 1:]},
        ArgumentError,
        ["labels", "(2, 4)", "(2, 5)"],
    ),
    "labels as floats": ({"labels": IDS.float()}, ArgumentTypeError, ["labels", "float32"]),
    "labels as list": ({"labels": IDS.tolist()}, ArgumentTypeError, ["labels", "list"]),
    "negative count": (
        {"labels": IDS, "num_items_in_batch": -3},
        ArgumentError,
        ["num_items_in_batch", "-3"],
    ),
    "negative logits_to_keep": ({"logits_to_keep": -2}, ArgumentError, ["logits_to_keep", "-2"]),
    "logits_to_keep behind the end": (
        {"logits_to_keep": torch.tensor([0, 5])},
        ArgumentError,
        ["logits_to_keep", "-5 … 4", "found 0 … 5"],
    ),
    "logits_to_keep before the start": (
        {"logits_to_keep": torch.tensor([[0], [-1]])},
        ArgumentError,
        ["logits_to_keep", "0 … 4", "found -1 … 0"],
    ),
    "logits_to_keep as floats": (
        {"logits_to_keep": torch.tensor([1.0])},
        ArgumentTypeError,
        ["logits_to_keep", "float32"],
    ),
    "logits_to_keep as text": ({"logits_to_keep": "1"}, ArgumentTypeError, ["logits_to_keep"]),
}


def refused(call: Callable[[], object], kind: type[GPT2Error], parts: list[str]) -> None:
    with pytest.raises(kind) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("case", BAD_INPUT)
@pytest.mark.parametrize("cls", [GPT2Model, GPT2LMHeadModel])
def test_bad_input_is_refused(cls: Any, case: str) -> None:
    arguments, kind, parts = BAD_INPUT[case]
    refused(lambda: tiny_model(cls)(**arguments), kind, parts)


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_arguments_of_the_head_are_refused(case: str) -> None:
    arguments, kind, parts = BAD_LABELS[case]
    refused(lambda: tiny_model()(IDS, **arguments), kind, parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"encoder_hidden_states": EMBEDS[:1]}, ["(1, 5, 32)", "(2, length, 32)"]),
        ({"encoder_hidden_states": EMBEDS[..., :30]}, ["(2, 5, 30)", "(2, length, 32)"]),
        (
            {"encoder_hidden_states": EMBEDS, "encoder_attention_mask": torch.ones(2, 4)},
            ["encoder_attention_mask", "(2, 4)", "(2, 5)"],
        ),
        (
            {"encoder_hidden_states": EMBEDS, "encoder_attention_mask": 2 * torch.ones(2, 5)},
            ["encoder_attention_mask", "0 (padding) and 1", "it has 2"],
        ),
        (
            {"encoder_hidden_states": EMBEDS, "encoder_attention_mask": EMBEDS[..., 0] / 0},
            ["encoder_attention_mask", "0 (padding) and 1"],
        ),
    ],
)
def test_encoder_states_of_another_shape_are_refused(
    arguments: dict[str, Any], parts: list[str]
) -> None:
    model = tiny_model(add_cross_attention=True)
    refused(lambda: model(IDS, **arguments), ArgumentError, parts)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_states_wider_than_the_model_are_refused(kind: torch.dtype) -> None:
    model = tiny_model(add_cross_attention=True).to(kind)
    name = str(kind)
    refused(
        lambda: model(inputs_embeds=EMBEDS), ArgumentTypeError, ["inputs_embeds", "float32", name]
    )
    refused(
        lambda: model(IDS, encoder_hidden_states=EMBEDS),
        ArgumentTypeError,
        ["encoder_hidden_states", "float32", name],
    )
    narrow = EMBEDS.to(kind)
    assert model(inputs_embeds=narrow, encoder_hidden_states=narrow).logits.dtype == kind
    whole = tiny_model()
    assert_close(  # narrower ones are widened, as by any addition
        whole(inputs_embeds=narrow).logits, whole(inputs_embeds=narrow.float()).logits
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        crossed = tiny_model(add_cross_attention=True)
        assert crossed(IDS, encoder_hidden_states=EMBEDS.bfloat16()).logits.isfinite().all()


@pytest.mark.parametrize(
    ("cls", "name", "near"),
    [
        (GPT2LMHeadModel, "label", "labels"),
        (GPT2LMHeadModel, "past_key_value", "past_key_values"),
        (GPT2Model, "input_embeds", "inputs_embeds"),
        (GPT2Model, "logit_keep", ""),
    ],
)
def test_unknown_arguments_are_refused_with_the_nearest(cls: Any, name: str, near: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        tiny_model(cls)(IDS, **{name: None})
    assert f"{cls.__name__}.forward has no argument {name!r}" in str(caught.value)
    assert (f"did you mean {near!r}" if near else "it takes attention_mask") in str(caught.value)


def test_lengths_count_what_the_cache_holds() -> None:
    model = tiny_model()
    with torch.no_grad():
        past = model(IDS.repeat(1, 6)).past_key_values
        refused(
            lambda: model(IDS, past_key_values=past),
            SequenceLengthError,
            ["35 real tokens", "n_positions = 32"],
        )
        refused(
            lambda: model(IDS[:, :1], past_key_values=past, attention_mask=torch.ones(2, 1)),
            ArgumentError,
            ["attention_mask", "(2, 1)", "(2, 31)", "30 cached + 1 new"],
        )
        refused(
            lambda: model(IDS[:1], past_key_values=past),
            ArgumentError,
            ["past_key_values", "2 rows", "1"],
        )
        assert model(IDS[:, :2], past_key_values=past).logits.shape == (2, 2, 97)


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    model = tiny_model()
    with torch.no_grad():
        past = model(IDS).past_key_values
        expected = model(IDS, past_key_values=past).logits
        with pytest.raises(TokenIdError):
            model(with_id(97), past_key_values=past)
        assert past.length == 5
        assert_close(model(IDS, past_key_values=past).logits, expected)


# -- what is accepted ---------------------------------------------------------------------------


def test_more_leading_dimensions_are_kept() -> None:
    """(2, 3, T) is what double heads feed: the same as its six rows."""
    model = tiny_model()
    ids = torch.randint(0, 97, (2, 3, 6))
    mask = torch.ones_like(ids)
    mask[0, 1, :2] = 0
    types = torch.randint(0, 97, (2, 3, 6))
    flat = {"attention_mask": mask.view(6, 6), "token_type_ids": types.view(6, 6)}
    with torch.no_grad():
        out = model(ids, attention_mask=mask, token_type_ids=types, labels=ids)
        expected = model(ids.view(6, 6), **flat, labels=ids.view(6, 6))
        assert out.logits.shape == (2, 3, 6, 97)
        assert_close(out.logits.view(6, 6, 97), expected.logits)
        assert_close(out.loss, expected.loss)
        embeds = model.get_input_embeddings()(ids)
        again = model(inputs_embeds=embeds, attention_mask=mask, token_type_ids=types, labels=ids)
        assert_close(again.logits, out.logits)
        assert_close(again.loss, out.loss)


def test_int32_ids_equal_int64_ids() -> None:
    model = tiny_model()
    narrow = IDS.to(torch.int32)
    a = model(narrow, token_type_ids=narrow, position_ids=narrow % 32, labels=narrow)
    b = model(IDS, token_type_ids=IDS, position_ids=IDS % 32, labels=IDS)
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.loss, b.loss)


def test_own_positions_are_taken_as_they_are() -> None:
    model = tiny_model(GPT2Model)
    default = model(IDS).last_hidden_state
    counted = torch.arange(5)
    for given in (counted[None], counted.expand(2, 5)):
        assert torch.equal(model(IDS, position_ids=given).last_hidden_state, default)
    moved = model(IDS, position_ids=counted[None] + 3).last_hidden_state
    table = model.wpe.weight.detach()
    embeds = model.wte(IDS) + table[3:8] - table[:5]
    assert_close(model(inputs_embeds=embeds).last_hidden_state, moved)


def test_a_mask_of_four_dimensions_says_everything() -> None:
    """Bool and additive, causality included: here every token sees all others."""
    model = tiny_model(GPT2Model)
    seen = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    both_ways = model(IDS, attention_mask=seen).last_hidden_state
    bias = torch.zeros(2, 4, 5, 5)
    assert_close(model(IDS, attention_mask=bias).last_hidden_state, both_ways)
    causal = seen.tril()
    expected = model(IDS).last_hidden_state
    assert_close(model(IDS, attention_mask=causal).last_hidden_state, expected)
    hidden = torch.zeros(1, 1, 5, 5).masked_fill(~causal, -torch.inf)
    assert_close(model(IDS, attention_mask=hidden).last_hidden_state, expected)
    assert (both_ways - expected).abs().max() > 1e-2


# -- what the checks cost -----------------------------------------------------------------------


class Synchronisations(TorchDispatchMode):
    """Counts what makes the host wait for the device: a tensor's value becoming a Python one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        waits = func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.equal)
        if func.overloadpacket is aten.index:  # by a mask: the size of the result is a value
            waits = any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += waits
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Synchronisations]:
    """``tolist`` reads a CPU tensor's memory without any operator: counted by name."""
    with Synchronisations() as mode, monkeypatch.context() as patch:
        tolist = Tensor.tolist

        def counting(self: Tensor) -> Any:
            mode.count += 1
            return tolist(self)

        patch.setattr(Tensor, "tolist", counting)
        yield mode


MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
EVERYTHING = {
    "attention_mask": MASK,
    "token_type_ids": IDS,
    "position_ids": IDS % 32,
    "labels": IDS,
    "num_items_in_batch": torch.tensor(8),
}


def test_the_counter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for wait in (
        lambda: IDS.tolist(),
        lambda: IDS[0, 0].item(),
        lambda: bool(IDS[0, 0]),
        lambda: int(IDS.max()),
        lambda: IDS[IDS > 3],
    ):
        with counted(monkeypatch) as mode:
            wait()
        assert mode.count >= 1


@pytest.mark.parametrize("arguments", [{}, {"attention_mask": MASK}, EVERYTHING])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_forward_waits_once_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, backend: str, arguments: dict[str, Any]
) -> None:
    model = tiny_model(attn_implementation=backend)
    with counted(monkeypatch) as mode:
        past = model(IDS, **arguments).past_key_values
    assert mode.count == 1
    with counted(monkeypatch) as mode:
        model(IDS, past_key_values=past)
    assert mode.count == 1
    with counted(monkeypatch) as mode:
        model(IDS, check_inputs=False, **arguments)
        model(IDS, past_key_values=past, check_inputs=False)
    assert mode.count == 0


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"do_sample": True, "seed": [1, 2]}])
@pytest.mark.parametrize("mask", [None, MASK])
def test_generate_waits_once_per_step(
    monkeypatch: pytest.MonkeyPatch, mask: Tensor | None, settings: dict[str, Any]
) -> None:
    model = tiny_model()

    def waits(steps: int) -> int:
        with counted(monkeypatch) as mode:
            model.generate(
                IDS, attention_mask=mask, max_new_tokens=steps, eos_token_id=None, **settings
            )
        return mode.count

    assert waits(1) <= 3  # the mask's lengths, the forward's checks, the step
    assert waits(11) - waits(1) == 10
