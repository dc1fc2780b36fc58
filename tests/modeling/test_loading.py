"""from_config, load_weights and the report; from_pretrained is tested in test_pretrained.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2 import GPT2LMHeadModel, GPT2Model
from gpt2.errors import ArgumentError, FileAccessError, StateDictError
from tests.checkpoints import foreign
from tests.helpers import tiny_config, tiny_model

IDS = torch.randint(0, 97, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# -- from_config --------------------------------------------------------------------------------


def test_from_config_is_the_constructor() -> None:
    torch.manual_seed(0)
    one = GPT2LMHeadModel.from_config(tiny_config())
    torch.manual_seed(0)
    other = GPT2LMHeadModel(tiny_config())
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    half = GPT2LMHeadModel.from_config(tiny_config(), dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.lm_head.weight is half.transformer.wte.weight
    with pytest.raises(ArgumentError, match="dtype='auto' is that of stored weights"):
        GPT2LMHeadModel.from_config(tiny_config(), dtype="auto")


def test_a_model_of_any_size_on_the_meta_device() -> None:
    model = GPT2LMHeadModel.from_config(tiny_config(n_embd=8192, n_layer=90), device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert model.num_parameters() > 70e9
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("cls", [GPT2LMHeadModel, GPT2Model])
def test_meta_then_load(tmp_path: Path, cls: Any, tie: bool) -> None:
    made = tiny_model(cls, tie_word_embeddings=tie)
    made.save_pretrained(tmp_path, max_shard_size="20KB")
    model = cls.from_config(made.config, device="meta")
    report = model.load_weights(tmp_path)
    assert not any(p.is_meta for p in model.parameters())
    assert torch.equal(model.eval()(IDS)[0], made(IDS)[0])
    assert report.loaded == len(made.state_dict())
    assert report.config is model.config
    half = cls.from_config(made.config, device="meta", dtype=torch.float16)
    half.load_weights(tmp_path)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    wide = cls.from_config(made.config, device="meta")
    wide.load_weights(tmp_path, dtype="float64")
    assert {p.dtype for p in wide.parameters()} == {torch.float64}


def test_load_into_a_model_that_has_weights(saved: Path) -> None:
    model = tiny_model(seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = foreign.nanogpt(tiny_model())
    del weights["model"]["transformer.ln_f.bias"]
    torch.save(weights, saved / "broken.pt")
    for damaged, kind in ((saved / "broken.pt", StateDictError), (saved / "no", FileAccessError)):
        with pytest.raises(kind):
            model.load_weights(damaged)
    after = model.state_dict()  # an error leaves the model as it was
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    report = model.load_weights(saved / "broken.pt", allow_missing=["*ln_f.bias"])
    assert report.missing_keys == ["transformer.ln_f.bias"]
    assert not model.transformer.ln_f.bias.any()  # anew, not what it was before
    model.load_weights(saved)
    assert torch.equal(model(IDS).logits, tiny_model()(IDS).logits)
    with pytest.raises(TypeError, match="cache"):
        model.load_weights(saved, cache="x")


# -- report -------------------------------------------------------------------------------------


def test_return_report(saved: Path) -> None:
    model, report = GPT2LMHeadModel.from_pretrained(saved, return_report=True)
    assert report.model_class == "GPT2LMHeadModel"
    assert report.config is model.config
    assert len(report.tensors) == report.loaded == 28
    assert not model.training
    _, report = GPT2LMHeadModel.from_pretrained(
        saved, return_report=True, n_positions=48, ignore_mismatched_sizes=True
    )
    (record,) = [r for r in report.tensors if r.action == "misfit"]
    assert record.name == "transformer.wpe.weight"
    assert "[48, 32]" in record.why
