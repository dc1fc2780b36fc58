"""Ours against the golden files of make_golden.py: needs no transformers.

They hold what transformers 4.48.3 gave for what later releases dropped
(head_mask, pruned heads, tuples as caches), and a few plain cases, so that
there is parity to test on any machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import gpt2
from tests.helpers import at_attended
from tests.parity.record import compare, count

HERE = Path(__file__).parent
CASES = sorted((HERE / "cases").glob("*.safetensors"))
FORWARDS = [path for path in CASES if path.stem.startswith("forward-")]
GENERATIONS = [path for path in CASES if path.stem.startswith("generate-")]
WITH_POSITIONS = [path for path in FORWARDS if "padded" in path.stem]
BACKENDS = ("eager", "sdpa")


@dataclass
class Golden:
    """One case: its arguments, inputs and expected tensors by name."""

    about: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    head: dict[str, Tensor]  # weights that the model's file does not have

    def model(self, backend: str) -> Any:
        model = getattr(gpt2, self.about.get("cls", "GPT2LMHeadModel")).from_pretrained(
            HERE / "models" / self.about["model"],
            attn_implementation=backend,
            local_files_only=True,
            **self.about.get("config", {}),
        )
        with torch.no_grad():
            for name, weight in self.head.items():
                model.get_parameter(name).copy_(weight)
        return model


def read(path: Path) -> Golden:
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert about["transformers"] == "4.48.3"
    parts: dict[str, dict[str, Tensor]] = {"input": {}, "expected": {}, "head": {}}
    for name, tensor in sorted(tensors.items()):
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return Golden(about, parts["input"], parts["expected"], parts["head"])


def legacy_past(inputs: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """Takes the past's tensors out of the inputs, as the documented tuple of (key, value)."""
    names = sorted(name for name in inputs if name.startswith("past_key_values."))
    tensors = [inputs.pop(name) for name in names]
    return tuple(zip(tensors[::2], tensors[1::2], strict=True)) or None


def produced(output: Any, name: str) -> Tensor:
    """The part of an output that a name such as "attentions.1" stands for."""
    if name == "last_hidden_state":
        return output.hidden_states[-1]
    field, *path = name.split(".")
    part = output[field]
    for index in path:
        part = part[int(index)]
    return part


def select(name: str, x: Tensor, mask: Tensor | None) -> Tensor:
    """What of a tensor is at real tokens; ``mask`` (B, S) may be longer than the queries."""
    if mask is None or x.dim() < 3:  # a loss, or logits of whole sequences
        return x
    if name.startswith(("attentions", "cross_attentions", "past_key_values")):
        x = x.transpose(1, 2)  # (B, T or S, H, ...)
    return at_attended(x, mask[:, -x.shape[1] :])


def test_the_cases_are_there_and_small() -> None:
    assert len(FORWARDS) >= 18
    assert len(GENERATIONS) >= 8
    files = [file for file in HERE.rglob("*") if file.suffix in (".safetensors", ".json")]
    assert sum(file.stat().st_size for file in files) <= 500_000


@pytest.mark.parametrize("shown", [False, True], ids=["", "weights-shown"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", FORWARDS, ids=lambda path: path.stem)
def test_forward(path: Path, backend: str, shown: bool) -> None:
    golden = read(path)
    model, inputs = golden.model(backend), dict(golden.inputs)
    past = legacy_past(inputs)
    labelled = "loss" in golden.expected
    if labelled:
        for tensor in inputs.values():
            if tensor.is_floating_point():
                tensor.requires_grad_()
    cached = {} if past is None else {"past_key_values": past, "use_cache": True}
    output = model(**inputs, **cached, output_attentions=shown, output_hidden_states=True)
    if labelled:
        (output.loss + output.mc_loss if "mc_loss" in output else output.loss).backward()
    where = f"{path.stem} {backend}"
    for name, expected in golden.expected.items():
        if "attentions" in name and not shown:
            continue
        if name.startswith("gradient/"):
            wanted = name.removeprefix("gradient/")
            source = inputs[wanted] if wanted in inputs else model.get_parameter(wanted)
            assert source.grad is not None, wanted
            compare("golden gradients", source.grad, expected, where=f"{where} {wanted}")
            continue
        mask = inputs.get("attention_mask")
        mine = select(name, produced(output, name), mask)
        compare("golden outputs", mine, select(name, expected, mask), where=f"{where} {name}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", WITH_POSITIONS, ids=lambda path: path.stem)
def test_positions_follow_from_the_mask(path: Path, backend: str) -> None:
    """The files give the old release its positions; ours come from the mask."""
    golden = read(path)
    inputs = dict(golden.inputs)
    del inputs["position_ids"]
    past = legacy_past(inputs)
    with torch.no_grad():
        logits = golden.model(backend)(**inputs, past_key_values=past).logits
    mask = inputs["attention_mask"]
    expected = select("logits", golden.expected["logits"], mask)
    compare("golden outputs", select("logits", logits, mask), expected, where=path.stem)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", GENERATIONS, ids=lambda path: path.stem)
def test_generate(path: Path, backend: str, use_cache: bool) -> None:
    golden = read(path)
    noise = golden.expected.get("noise")
    if noise is not None:
        torch.manual_seed(0)
        if not torch.allclose(torch.empty_like(noise).exponential_(1), noise):
            pytest.skip("this build of torch draws other random numbers from the same seed")
    torch.manual_seed(0)
    ids = golden.model(backend).generate(
        **golden.inputs, **golden.about["settings"], use_cache=use_cache
    )
    assert torch.equal(ids, golden.expected["ids"])
    count("golden generations")
