"""prepare_for_inference: the same model, other storage; eager, and as a compiled step."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model, GPT2Tokenizer
from gpt2.errors import ArgumentError, BackendError
from gpt2.modeling import compiled_block
from gpt2.modeling.linear import PackedLinear, reduced_product
from tests.helpers import assert_close, tiny_model

STORIES = Path(__file__).resolve().parents[1] / "examples"
STORAGES = ("float32", "bfloat16", "int8")
# relative to the largest logit; measured 0, 0.8 % and 1.9 %, on weights far from trained ones
ERROR = {"float32": 1e-6, "bfloat16": 2e-2, "int8": 5e-2}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The step's own functions in place of their compiled form; lists (rows, columns) of calls."""
    calls: list[tuple[int, int]] = []

    def plain(function: Any) -> Any:
        def run(first: Tensor, *rest: Any) -> Tensor:
            one_row = function is compiled_block.decode_blocks
            calls.append((1 if one_row else len(first), len(rest[0 if one_row else 2])))
            return cast(Tensor, function(first, *rest))

        return run

    monkeypatch.setattr(compiled_block, "_compiled", plain)
    monkeypatch.setattr(compiled_block, "_compiled_for", set())
    monkeypatch.setattr("gpt2.modeling.linear._compiled", lambda: reduced_product)
    return calls


def prompt(rows: int = 4, width: int = 9) -> tuple[Tensor, Tensor]:
    """Ids and a mask with rows padded left, right, on both sides and not at all."""
    ids = torch.randint(0, 96, (rows, width), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    mask[2, 6:] = 0
    mask[3, 0] = mask[3, -1] = 0
    return ids, mask


def test_float32_gives_the_same_numbers_and_the_original_stays() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    prepared = model.prepare_for_inference()
    assert type(prepared) is GPT2LMHeadModel
    ids, mask = prompt()
    assert_close(
        prepared(ids, attention_mask=mask).logits[mask.bool()],
        model(ids, attention_mask=mask).logits[mask.bool()],
        1e-6,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert prepared(ids).logits.abs().max() > 1  # nothing is shared
    for name, tensor in prepared.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad for p in prepared.parameters())


@pytest.mark.parametrize("weights", STORAGES)
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
def test_narrow_weights_are_close(weights: Any, activation: str) -> None:
    model = tiny_model(activation_function=activation)
    prepared = model.prepare_for_inference(weights=weights)
    ids, mask = prompt()
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits[mask.bool()]
        found = prepared(ids, attention_mask=mask).logits[mask.bool()]
    assert found.dtype == torch.float32
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error <= ERROR[weights]
    assert weights == "float32" or error > 0


def test_weights_are_held_in_the_order_of_the_kernels() -> None:
    plain = tiny_model().prepare_for_inference()
    layer: Any = plain.transformer.h[0]
    layer = layer.attn.c_attn
    assert layer.weight is None
    assert layer.blocked.is_mkldnn
    assert plain.lm_head.weight is plain.transformer.wte.weight  # looked up by rows
    assert plain.lm_head.blocked is not None


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch's, of flags()
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_without_onednn_they_stay_as_they_are(weights: Any) -> None:
    model = tiny_model()
    with torch.backends.mkldnn.flags(enabled=False):
        plain = model.prepare_for_inference(weights=weights)
    layers = [m for m in plain.modules() if isinstance(m, PackedLinear)]
    assert layers
    assert all(m.blocked is None and m.weight is not None for m in layers)
    ids, _ = prompt()
    blocked = model.prepare_for_inference(weights=weights)
    assert_close(plain(ids).logits, blocked(ids).logits, ERROR[weights])
    assert all(torch.equal(a, b) for a, b in both(plain.state_dict(), blocked.state_dict()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert plain(ids).logits.abs().max() > 1  # nothing is shared


def both(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The tensors of two dictionaries with the same names in the same order."""
    assert list(a) == list(b)
    return list(zip(a.values(), b.values(), strict=True))


@pytest.mark.parametrize("weights", STORAGES)
@pytest.mark.parametrize("compile", [False, True])
def test_it_takes_the_memory_that_it_says(
    uncompiled: list[tuple[int, int]], weights: Any, compile: bool
) -> None:
    model = tiny_model(n_embd=64)
    prepared = model.prepare_for_inference(weights=weights, compile=compile)
    table = model.lm_head.weight.numel()
    blocks = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    blocks -= table
    added = prepared.get_memory_footprint() - model.get_memory_footprint() + 4 * (blocks + table)
    if weights == "int8":  # head and table are one, here and there
        scales = 2 * sum(m.out_features for m in prepared.modules() if isinstance(m, PackedLinear))
        assert added == blocks + table + scales
    else:
        size = {"float32": 4, "bfloat16": 2}[weights]
        assert added == size * ((2 if compile else 1) * blocks + 2 * table)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_gradients_reach_the_inputs(weights: Any) -> None:
    model = tiny_model()
    found, wanted = (
        torch.autograd.grad(m(inputs_embeds=x).logits.logsumexp(-1).sum(), x)[0]
        for m in (model.prepare_for_inference(weights=weights), model)
        for x in (torch.linspace(-1, 1, 128).view(1, 4, 32).requires_grad_(),)
    )
    assert_close(found, wanted, {"float32": 1e-5, "bfloat16": 3e-2}[weights])


def test_a_caller_may_compile_around_them() -> None:
    torch._dynamo.reset()
    prepared = tiny_model(n_layer=1).prepare_for_inference()
    ids, _ = prompt()
    with torch.no_grad():
        assert_close(
            torch.compile(prepared, backend="eager")(ids).logits, prepared(ids).logits, 1e-6
        )


def test_a_state_dict_loads_into_blocked_weights() -> None:
    prepared = tiny_model().prepare_for_inference()
    other = tiny_model(seed=7).prepare_for_inference()
    ids, _ = prompt()
    assert not torch.equal(prepared(ids).logits, other(ids).logits)
    other.load_state_dict(prepared.state_dict())
    assert torch.equal(prepared(ids).logits, other(ids).logits)
    assert other.lm_head.weight is other.transformer.wte.weight


# -- the compiled step ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", STORAGES)
@pytest.mark.parametrize("rows", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)], ids=str)
def test_the_step_is_the_block(
    uncompiled: list[tuple[int, int]], weights: Any, rows: tuple[int, ...]
) -> None:
    """The step beside the same packed model without it, token by token, padded and not."""
    model = tiny_model()
    plain = model.prepare_for_inference(weights=weights)
    step = model.prepare_for_inference(weights=weights, compile=True)
    uncompiled.clear()
    ids, mask = prompt()
    ids, mask = ids[list(rows)], mask[list(rows)]
    settings: Any = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
    for given in ({}, {"attention_mask": mask}):
        a = plain.generate(
            ids, **settings, **given, output_logits=True, return_dict_in_generate=True
        )
        b = step.generate(
            ids, **settings, **given, output_logits=True, return_dict_in_generate=True
        )
        if weights == "float32":
            assert torch.equal(a.sequences, b.sequences)
        same = (a.sequences == b.sequences).int().cumprod(-1).bool()
        assert same.float().mean() > 0.8  # ties aside
        for number, (x, y) in enumerate(zip(a.logits, b.logits, strict=True)):
            alike = same[:, ids.shape[1] + number - 1]
            if alike.any():
                assert_close(y[alike], x[alike], {"float32": 1e-5}.get(weights, ERROR[weights]))
    layers, calls = 2, 2  # of several rows, only attention is compiled, layer by layer
    times = 1 if len(rows) == 1 else layers
    steps = [(len(rows), columns) for columns in range(10, 21) for _ in range(times)]
    assert uncompiled == steps * calls


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"reorder_and_upcast_attn": True},
        {"activation_function": "quick_gelu"},
        {"n_inner": 48},
        {"tie_word_embeddings": False},
        {"attn_implementation": "eager"},
        {"layer_norm_epsilon": 1e-2},
        {"n_layer": 6},  # of which four are one function, and the others another
    ],
    ids=str,
)
def test_every_setting_of_the_config_holds_in_the_step(
    uncompiled: list[tuple[int, int]], settings: dict[str, Any]
) -> None:
    model = tiny_model(**settings)
    step = model.prepare_for_inference(compile=True)
    arguments: Any = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    arguments |= {"output_logits": True, "return_dict_in_generate": True}
    for ids, mask in zip(*(t.split(1) for t in prompt()), strict=True):
        uncompiled.clear()
        wanted = model.generate(ids, attention_mask=mask, **arguments)
        found = step.generate(ids, attention_mask=mask, **arguments)
        assert torch.equal(wanted.sequences, found.sequences)
        for x, y in zip(wanted.logits, found.logits, strict=True):
            assert_close(y, x, 1e-5)
        assert len(uncompiled) == 7 * (2 if "n_layer" in settings else 1)


def test_pruned_heads_hold_in_the_step(uncompiled: list[tuple[int, int]]) -> None:
    model = tiny_model()
    model.prune_heads({0: [1, 2]})
    step = model.prepare_for_inference(compile=True)
    ids = prompt()[0][:1]
    uncompiled.clear()
    wanted = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None)
    assert torch.equal(
        wanted, step.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None)
    )
    assert len(uncompiled) == 7


def test_the_last_row_of_a_batch_gets_the_step(uncompiled: list[tuple[int, int]]) -> None:
    model = tiny_model()
    step = model.prepare_for_inference(compile=True)
    ids, mask = prompt()
    arguments: Any = {"attention_mask": mask, "do_sample": True, "max_new_tokens": 16}
    arguments |= {"eos_token_id": list(range(0, 96, 7)), "pad_token_id": 96, "seed": [1, 2, 3, 4]}
    uncompiled.clear()
    wanted = model.generate(ids, **arguments)
    assert torch.equal(wanted, step.generate(ids, **arguments))
    rows = [rows for rows, _ in uncompiled]
    assert rows == sorted(rows, reverse=True)
    assert set(rows) == {
        1,
        2,
        3,
    }  # the first token ends one; ended rows leave, and the last one goes on alone


def test_what_the_step_cannot_do_the_block_does(uncompiled: list[tuple[int, int]]) -> None:
    model = tiny_model()
    step = model.prepare_for_inference(compile=True)
    ids, _ = prompt()
    ids = ids[:1]
    uncompiled.clear()
    arguments: Any = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True}
    wanted = model.generate(ids, output_attentions=True, **arguments)
    found = step.generate(ids, output_attentions=True, **arguments)
    assert_close(found.attentions[-1][-1], wanted.attentions[-1][-1], 1e-5)
    scales = torch.tensor([0.0, 0.5, 1.0, 1.0])
    past = step(ids, use_cache=True).past_key_values
    old = model(ids, use_cache=True).past_key_values
    assert_close(
        step(ids[:, :1], past_key_values=past, head_mask=scales).logits,
        model(ids[:, :1], past_key_values=old, head_mask=scales).logits,
        1e-5,
    )
    assert uncompiled == []
    # an old cache is used twice: the second use copies, as ever
    first = step(ids[:, :1], past_key_values=past).logits
    assert torch.equal(first, step(ids[:, :1], past_key_values=past).logits)
    assert uncompiled == [(1, 10)] * 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
def test_compiled_by_torch_it_gives_the_same_ids(capfd: pytest.CaptureFixture[str]) -> None:
    """The real thing; a second length compiles nothing more, nor does another batch."""
    model = tiny_model()
    step = model.prepare_for_inference(compile=True)
    ids, mask = prompt()
    arguments: Any = {"do_sample": False, "eos_token_id": None}
    for rows, new in ((1, 12), (1, 5), (4, 12), (3, 7)):
        given = {"attention_mask": mask[:rows]} if rows > 1 else {}
        wanted = model.generate(ids[:rows], max_new_tokens=new, **given, **arguments)
        found = step.generate(ids[:rows], max_new_tokens=new, **given, **arguments)
        assert torch.equal(wanted, found)
    said = capfd.readouterr().err
    assert said.count("compiling the decode step of one row") == 1
    assert said.count("compiling the attention of a decode step of several rows") == 1


def test_kinds_of_blocks_are_told_apart(
    uncompiled: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most guards are left out; the others must do, also when torch has forgotten all."""
    captured = torch.compile(
        compiled_block.decode_blocks,
        fullgraph=True,
        backend="eager",
        options={"guard_filter_fn": compiled_block._needed},
    )

    def logits(step: Any, tokens: Tensor, run: Any) -> Tensor:
        """Those behind the last token, after several steps by ``run``."""
        monkeypatch.setattr(compiled_block, "_compiled", lambda function: run)
        out = step(tokens[:, :3])
        for token in tokens[:, 3:].T:
            out = step(token[None], past_key_values=out.past_key_values)
        return cast(Tensor, out.logits)

    kinds: list[dict[str, Any]] = [
        {}, {"n_inner": 80}, {"n_embd": 64}, {"n_head": 2}, {"layer_norm_epsilon": 0.5},
        {"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True},
    ]  # fmt: skip
    steps = [tiny_model(n_layer=1, **k).prepare_for_inference(compile=True) for k in kinds]
    for weights in ("bfloat16", "int8"):
        model = tiny_model(n_layer=1)
        steps.append(model.prepare_for_inference(weights=weights, compile=True))
    ids = prompt()[0][:1]
    uncompiled.clear()
    compiled_block._compiled_for.clear()  # of what it was prepared with
    for width, chosen in ((5, steps), (9, steps), (7, steps[-3:])):
        if width != 9:
            torch._dynamo.reset()
        for step in chosen:
            found = logits(step, ids[:, :width], captured)
            wanted = logits(step, ids[:, :width], compiled_block.decode_blocks)
            assert_close(found, wanted, 1e-6)
    assert not uncompiled


# -- refusals, copies -----------------------------------------------------------------------------


def test_what_cannot_be_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match=r"weights.*'int4'.*float32, bfloat16, int8"):
        model.prepare_for_inference(weights="int4")  # type: ignore[arg-type]
    prepared = model.prepare_for_inference(weights="int8")
    with pytest.raises(ArgumentError, match="cannot be trained; train the one"):
        prepared.train()
    with pytest.raises(ArgumentError, match="prepared already, with int8 weights"):
        prepared.prepare_for_inference(weights="bfloat16")
    for change in (
        lambda: prepared.resize_token_embeddings(100),
        lambda: prepared.prune_heads({0: [0]}),
    ):
        with pytest.raises(ArgumentError, match=r"needs plain weights.*int8"):
            change()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendError, match=r"compile=True needs a C\+\+ compiler"):
        model.prepare_for_inference(compile=True)


def test_an_adapter_has_to_be_merged_first() -> None:
    class Adapted(torch.nn.Linear):
        """A linear layer with something of its own."""

    model = tiny_model()
    block: Any = model.transformer.h[1]
    block.mlp.c_fc.__class__ = Adapted
    with pytest.raises(ArgumentError, match=r"transformer.h.1.mlp.c_fc is a Adapted.*merge"):
        model.prepare_for_inference()


@pytest.mark.parametrize("weights", STORAGES)
def test_copies_pickles_and_moves_keep_the_tie(weights: Any) -> None:
    prepared = tiny_model().prepare_for_inference(weights=weights)
    ids, _ = prompt()
    wanted = prepared(ids).logits
    for other in (
        copy.deepcopy(prepared),
        pickle.loads(pickle.dumps(prepared)),
        copy.deepcopy(prepared).to("cpu", torch.float64).to(torch.float32)
        if weights == "float32"
        else copy.deepcopy(prepared).to("cpu"),
    ):
        assert other.lm_head.weight is other.transformer.wte.weight
        assert torch.equal(other(ids).logits, wanted)
        assert list(other.state_dict()) == list(prepared.state_dict())
    assert not any(name.startswith("lm_head") for name in prepared.state_dict())


@pytest.mark.parametrize("cls", [GPT2Model, GPT2ForSequenceClassification])
def test_other_classes_are_prepared_as_well(cls: Any) -> None:
    model = tiny_model(cls, pad_token_id=95)
    prepared = model.prepare_for_inference(weights="bfloat16")
    ids, mask = prompt()
    wanted, found = model(ids, attention_mask=mask)[0], prepared(ids, attention_mask=mask)[0]
    real = mask.bool() if cls is GPT2Model else slice(None)
    assert (wanted - found)[real].abs().max() / wanted[real].abs().max() < 3e-2


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_perplexity_on_the_embedded_model_stays_within_one_percent(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(STORIES), *sys.path])
    from stories import held_out_stories

    tokenizer = GPT2Tokenizer.from_pretrained(STORIES / "stories-gpt2")
    model = GPT2LMHeadModel.from_pretrained(STORIES / "stories-gpt2")
    texts = [story.text for story in held_out_stories(24)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")

    def loss(of: GPT2LMHeadModel) -> float:
        with torch.no_grad():
            given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            return float(of(**given, labels=batch["input_ids"]).loss)

    change = math.exp(loss(model.prepare_for_inference(weights=weights)) - loss(model)) - 1
    assert change != 0
    assert abs(change) < 0.01
