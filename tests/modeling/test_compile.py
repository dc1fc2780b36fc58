"""torch.compile and torch.export: one graph without a break, and none compiled anew per step.

``fullgraph=True`` raises at a graph break; the counter counts the graphs that
were compiled. A length that changes costs one more graph, for any length.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, ExportedProgram, export, load, save

from gpt2 import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)
from gpt2.modeling.static_cache import StaticCache
from tests.helpers import assert_close, tiny_model

# torch's own, from inside its compiler
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]

IDS = torch.randint(0, 97, (3, 16), generator=torch.Generator().manual_seed(1))
STATES = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(2))
HEADS = [
    GPT2Model,
    GPT2LMHeadModel,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2ForQuestionAnswering,
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(module: Any, backend: str = "eager") -> tuple[Any, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(module, backend=counter, fullgraph=True), counter


def padded(rows: int, columns: int) -> Tensor:
    mask = torch.ones(rows, columns, dtype=torch.long)
    mask[0, :2] = mask[-1, -1] = 0
    return mask


def tensors(output: Any) -> list[Tensor]:
    return [t for t in output.to_tuple() if isinstance(t, Tensor)]


def answers(cls: Any, ids: Tensor) -> dict[str, Tensor]:
    """Labels for a head."""
    rows = torch.arange(len(ids))
    if cls is GPT2Model:
        return {}
    if cls is GPT2DoubleHeadsModel:
        return {"labels": ids, "mc_labels": rows[:1]}
    if cls is GPT2LMHeadModel:
        return {"labels": ids}
    if cls is GPT2ForQuestionAnswering:
        return {"start_positions": rows, "end_positions": rows + 1}
    return {"labels": rows % 2 if cls is GPT2ForSequenceClassification else ids % 2}


# -- forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "mask"), [("eager", True), ("sdpa", False)], ids=["eager padded", "sdpa real"]
)
def test_eval_at_any_length(backend: str, mask: bool) -> None:
    model = tiny_model(attn_implementation=backend)
    function, counter = compiled(model)
    for rows, columns in [(2, 5), (2, 7), (3, 9), (3, 16), (2, 12)]:
        ids = IDS[:rows, :columns]
        more = {"attention_mask": padded(rows, columns)} if mask else {}
        with torch.no_grad():
            found, expected = function(ids, **more), model(ids, **more)
        real = more.get("attention_mask", torch.ones(rows, columns)).bool()
        assert_close(found.logits[real], expected.logits[real])
        assert_close(found.past_key_values[1][0], expected.past_key_values[1][0])
    assert counter.frame_count <= 3  # these sizes; any length; any length and batch size


@pytest.mark.parametrize("cls", HEADS)
def test_training_at_any_length(cls: Any) -> None:
    """The gradients are eager's; one head's backward pass is traced as well."""
    layers = 2 if cls is GPT2LMHeadModel else 1  # the core is the same
    model = tiny_model(cls, n_layer=layers, num_labels=2, classifier_dropout=0.0).train()
    function, counter = compiled(model, "aot_eager" if cls is GPT2LMHeadModel else "eager")

    def gradients(call: Any, ids: Tensor) -> list[Tensor]:
        model.zero_grad()
        mask = padded(*ids.shape)
        if cls is GPT2DoubleHeadsModel:
            ids, mask = ids[None], mask[None]  # three choices
        out = call(ids, attention_mask=mask, **answers(cls, ids))
        if cls is GPT2Model:
            loss = out.last_hidden_state[mask.bool()].square().sum()
        else:
            loss = out.loss + out.get("mc_loss", 0)
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    for columns in (5, 8, 11):
        found = gradients(function, IDS[:, :columns])
        expected = gradients(model, IDS[:, :columns])
        assert len(found) == len(expected) > 12 * layers  # the loss, and more than the blocks
        for mine, theirs in zip(found, expected, strict=True):
            assert_close(mine, theirs)
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"output_attentions": True, "output_hidden_states": True},
        {"return_dict": False},
        {"logits_to_keep": 1},
        {"head_mask": torch.tensor([1.0, 0.0, 0.5, 1.0])},
        {"token_type_ids": IDS, "position_ids": torch.arange(16)[None] + 2},
        {"attention_mask": torch.ones(3, 1, 16, 16, dtype=torch.bool).tril()},
        {"encoder_hidden_states": STATES, "encoder_attention_mask": torch.ones(3, 4)},
        {"document_ids": torch.tensor([[0] * 5 + [1] * 11] * 3)},
    ],
    ids=lambda a: next(iter(a)),
)
def test_every_argument_traces(arguments: dict[str, Any]) -> None:
    model = tiny_model(add_cross_attention=True)
    function, _ = compiled(model)
    with torch.no_grad():
        found, expected = function(IDS, **arguments), model(IDS, **arguments)
    assert type(found) is type(expected)
    if isinstance(found, tuple):
        assert_close(found[0], expected[0])
        return
    assert found.keys() == expected.keys()
    assert_close(found.logits, expected.logits)
    for name in ("attentions", "hidden_states", "cross_attentions"):
        for mine, theirs in zip(found.get(name, ()), expected.get(name, ()), strict=True):
            assert_close(mine, theirs)


def test_recomputed_blocks_trace() -> None:
    model = tiny_model().train()
    model.gradient_checkpointing_enable()
    function, counter = compiled(model, "aot_eager")
    loss = function(IDS, labels=IDS).loss
    loss.backward()
    found = model.transformer.wte.weight.grad.clone()
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    assert_close(found, model.transformer.wte.weight.grad)
    assert counter.frame_count == 1


# -- decoding -------------------------------------------------------------------------------------


def decode(model: GPT2LMHeadModel, call: Any, cache: Any, prompt: int, **first: Any) -> Tensor:
    """The prompt, then one token at a time; logits (3, 16, V)."""
    with torch.no_grad():
        out = call(IDS[:, :prompt], past_key_values=cache, **first)
        logits = [out.logits]
        for column in range(prompt, 16):
            out = call(IDS[:, column : column + 1], past_key_values=out.past_key_values)
            logits.append(out.logits)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize(
    ("backend", "mask", "compiler"),
    [("sdpa", False, "aot_eager"), ("sdpa", True, "eager"), ("eager", True, "eager")],
)
def test_one_graph_for_the_prompt_and_one_for_every_step(
    backend: str, mask: bool, compiler: str
) -> None:
    model = tiny_model(attn_implementation=backend)
    function, counter = compiled(model, compiler)
    first = {"attention_mask": padded(3, 5)} if mask else {}
    real = torch.ones(3, 16, dtype=torch.bool)
    real[:, :5] = first.get("attention_mask", real[:, :5]).bool()
    with torch.no_grad():
        expected = model(IDS, attention_mask=real.long()).logits
    cache = StaticCache(model.config, 3, 20)
    assert_close(decode(model, function, cache, 5, **first)[real], expected[real])
    assert counter.frame_count == 2
    cache.reset()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        function(IDS[:, :5], past_key_values=cache, **first)  # again, and from another column
        function(IDS[:, 3:4], past_key_values=cache.crop(3))
    assert counter.frame_count == 2


def test_a_whole_greedy_step_is_one_graph() -> None:
    """What a compiled decode loop is made of: token in, token out, nothing else moves."""
    model = tiny_model()
    cache = StaticCache(model.config, 3, 32)

    def step(token: Tensor) -> Tensor:
        out = model(token, past_key_values=cache, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    function, counter = compiled(step)
    with torch.no_grad():
        token = model(IDS[:, :5], cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        tokens = [token]
        for _ in range(20):
            tokens.append(function(tokens[-1]))
    expected = model.generate(IDS[:, :5], max_new_tokens=21, eos_token_id=None)
    assert torch.equal(torch.cat(tokens, dim=1), expected[:, 5:])
    assert counter.frame_count == 1


def test_the_encoder_is_computed_in_the_prompts_graph_only() -> None:
    model = tiny_model(add_cross_attention=True)
    with torch.no_grad():
        expected = model(IDS, encoder_hidden_states=STATES).logits
    function, counter = compiled(model)
    cache = StaticCache(model.config, 3, 16)
    found = decode(model, function, cache, 5, encoder_hidden_states=STATES)
    assert_close(found, expected)
    assert counter.frame_count == 2
    with torch.no_grad():  # other states are computed anew in a graph as well
        given = function(IDS[:, 15:], past_key_values=cache.crop(15), encoder_hidden_states=-STATES)
        anew = model(IDS[:, 15:], past_key_values=cache.crop(15), encoder_hidden_states=-STATES)
    assert_close(given.logits, anew.logits)


def test_the_growing_cache_costs_a_graph_per_doubling() -> None:
    model = tiny_model()
    function, counter = compiled(model)
    with torch.no_grad():
        expected = model(IDS).logits
    assert_close(decode(model, function, None, 3), expected)
    assert counter.frame_count <= 5


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
def test_the_default_compiler_agrees() -> None:
    model = tiny_model(n_layer=1)
    cache = StaticCache(model.config, 3, 20)
    function = torch.compile(model, fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        logits = [model(IDS[:, :12], cache).logits]
        logits += [function(IDS[:, c : c + 1], past_key_values=cache).logits for c in range(12, 16)]
        assert_close(torch.cat(logits, dim=1), model(IDS).logits)


# -- export ---------------------------------------------------------------------------------------


def exported(model: nn.Module, **inputs: Tensor) -> ExportedProgram:
    """With batch and length left open, written to a file and read again."""
    sizes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in inputs}
    inputs = {name: x.clone() for name, x in inputs.items()}  # of a view it would guard the base
    with torch.no_grad():
        program = export(model, (), inputs, dynamic_shapes=sizes)
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    return load(file)


@pytest.mark.parametrize("cls", HEADS)
def test_export(cls: Any) -> None:
    model = tiny_model(cls, num_labels=2, use_cache=False)
    program = exported(model, input_ids=IDS[:, :8], attention_mask=padded(3, 8)).module()
    for ids in (IDS[:2, :6], IDS):
        mask = torch.ones_like(ids)
        found, expected = (
            program(input_ids=ids, attention_mask=mask),
            model(ids, attention_mask=mask),
        )
        assert type(found) is type(expected)
        for mine, theirs in zip(tensors(found), tensors(expected), strict=True):
            assert_close(mine, theirs)


def test_an_exported_prompt_gives_its_cache() -> None:
    model = tiny_model()
    program = exported(model, input_ids=IDS[:, :8]).module()
    past = program(input_ids=IDS[:, :11]).past_key_values
    assert past.length == 11
    assert_close(model(IDS[:, 11:], past).logits, model(IDS).logits[:, 11:])
