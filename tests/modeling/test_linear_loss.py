"""return_logits=False: the same loss and gradients, without the logits."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpt2 import GPT2DoubleHeadsModel, GPT2LMHeadModel
from gpt2.errors import ArgumentError
from gpt2.modeling import linear_loss
from gpt2.modeling.linear_loss import summed_linear_cross_entropy
from gpt2.training.lora import LoraConfig, add_lora
from tests.helpers import assert_close, tiny_model

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.arange(24).view(2, 12) % 9
LABELS = IDS.masked_fill(torch.arange(12) < 3, -100)
MASK = torch.tensor([[0, 0, *[1] * 10], [1] * 12])


@pytest.fixture(params=[1, 3, 1000], ids=lambda rows: f"{rows} rows a chunk")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "_CHUNK_NUMBERS", request.param * 97)


def both(model: Any, **inputs: Any) -> tuple[Any, Any]:
    """Loss and gradients with the logits, and without."""
    results = []
    for logits in (True, False):
        model.zero_grad()
        output = model(**inputs, return_logits=logits)
        assert (output.logits is not None) == logits
        loss = output.loss + output.mc_loss if "mc_labels" in inputs else output.loss
        (1.7 * loss).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients))
    return results[0], results[1]


def same(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    assert_close(other[0], one[0], tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert_close(other[1][name], gradient, tolerance, what=name)


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_with_logits(chunk: None, tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    same(*both(model, input_ids=IDS, labels=LABELS))
    same(*both(model, input_ids=IDS, labels=LABELS, attention_mask=MASK, num_items_in_batch=40))
    terms = {"label_smoothing": 0.2, "z_loss": 1e-2}
    same(*both(model, input_ids=IDS, labels=LABELS, attention_mask=MASK, **terms))
    documents = torch.arange(12).expand(2, -1) // 5
    same(*both(model, input_ids=IDS, labels=LABELS, document_ids=documents))


def test_the_double_heads_have_it_too(chunk: None) -> None:
    model = tiny_model(GPT2DoubleHeadsModel)
    ids = torch.stack([IDS, IDS.flip(1)], 1)
    same(*both(model, input_ids=ids, labels=ids, mc_labels=torch.tensor([1, 0])))
    same(*both(model, input_ids=ids, labels=ids, label_smoothing=0.2, z_loss=1e-2))


def test_other_heads_than_a_plain_linear_are_called(chunk: None) -> None:
    model = tiny_model(tie_word_embeddings=False)
    calls: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    same(*both(model, input_ids=IDS, labels=LABELS, label_smoothing=0.2, z_loss=1e-2))
    assert len(calls) > 2
    model = tiny_model(tie_word_embeddings=False)
    forward = model.lm_head.forward  # as accelerate's hooks replace it
    vars(model.lm_head)["forward"] = lambda x: 2 * forward(x)
    same(*both(model, input_ids=IDS, labels=LABELS))
    model = tiny_model(tie_word_embeddings=False)
    add_lora(model, LoraConfig(target_modules=["lm_head"]))
    nn.init.normal_(model.lm_head.lora_B.weight)
    same(*both(model, input_ids=IDS, labels=LABELS))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_the_logits_path(
    chunk: None, kind: torch.dtype
) -> None:
    with_logits, without = both(tiny_model().to(kind), input_ids=IDS, labels=LABELS)
    exact, _ = both(tiny_model().to(kind).float(), input_ids=IDS, labels=LABELS)
    bound = 8 * torch.finfo(kind).eps
    assert_close(without[0], with_logits[0], bound)
    for name, gradient in exact[1].items():
        assert_close(without[1][name].float(), gradient, 4 * bound, what=name)
        assert without[1][name].dtype == kind


def test_autocast_computes_in_its_dtype() -> None:
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16):
        one, other = both(model, input_ids=IDS, labels=LABELS)
    same(one, other, 3e-2)
    assert other[0].dtype == torch.float32


def test_without_any_target_the_loss_is_0_and_so_are_the_gradients() -> None:
    one, other = both(tiny_model(), input_ids=IDS, labels=torch.full_like(IDS, -100))
    assert other[0] == one[0] == 0
    assert not any(gradient.any() for gradient in other[1].values())


def test_gradients_may_be_asked_for_twice_and_not_at_all() -> None:
    model = tiny_model()
    loss = model(IDS, labels=IDS, return_logits=False).loss
    loss.backward(retain_graph=True)
    once = model.lm_head.weight.grad.clone()
    loss.backward()
    assert_close(model.lm_head.weight.grad, 2 * once)
    with torch.no_grad():
        assert_close(model(IDS, labels=IDS, return_logits=False).loss, loss.detach())
    model.lm_head.requires_grad_(False)
    x = torch.randn(5, 32, requires_grad=True)
    summed_linear_cross_entropy(model.lm_head, x, torch.arange(5)).backward()
    assert x.grad is not None


def test_arguments_that_contradict_each_other() -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match="without labels leaves nothing"):
        model(IDS, return_logits=False)
    with pytest.raises(ArgumentError, match="logits_to_keep names logits"):
        model(IDS, labels=IDS, return_logits=False, logits_to_keep=1)


@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated",  # dynamo does that itself
    "ignore:`torch.jit.script:DeprecationWarning",
)
@pytest.mark.parametrize("dynamic", [None, True], ids=["shapes as they are", "dynamic"])
def test_it_compiles_whole(dynamic: bool | None) -> None:
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for terms in ({}, {"label_smoothing": 0.2, "z_loss": 1e-2}):
        loss = compiled(IDS, labels=LABELS, return_logits=False, **terms).loss
        assert_close(loss, model(IDS, labels=LABELS, **terms).loss)
    torch._dynamo.reset()


MEMORY = """
    import resource, torch
    from gpt2 import GPT2Config, GPT2LMHeadModel
    config = GPT2Config(vocab_size=60_000, n_positions=64, n_embd=16, n_layer=1, n_head=1)
    model = GPT2LMHeadModel(config)
    ids = torch.arange(64).expand(64, 64)
    model(ids[:1], labels=ids[:1], return_logits=False).loss.backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model(ids, labels=ids, return_logits=False).loss.backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_the_logits_never_exist_at_once() -> None:
    """64 · 64 · 60 000 float32 would be 983 MB, and their gradient as much."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 400


def test_the_class_is_the_documented_one() -> None:
    output = tiny_model(GPT2LMHeadModel)(IDS, labels=IDS, return_logits=False, return_dict=False)
    assert len(output) == 2  # loss and cache: absent entries are left out of the tuple
