"""A model with int8 weights is saved with them, and loads as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2 import GPT2ForTokenClassification, GPT2LMHeadModel
from gpt2.errors import ArgumentError, ConfigError, StateDictError
from tests.helpers import tiny_model

IDS = torch.arange(8)[None]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model().prepare_for_inference(weights="int8").save_pretrained(tmp_path / "int8")
    return tmp_path / "int8"


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, tied: bool) -> None:
    prepared = tiny_model(tie_word_embeddings=tied).prepare_for_inference(weights="int8")
    prepared.save_pretrained(tmp_path)
    loaded, report = GPT2LMHeadModel.from_pretrained(tmp_path, return_report=True)
    assert loaded.packed == "int8"
    assert not loaded.training
    assert torch.equal(loaded(IDS).logits, prepared(IDS).logits)
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == tied
    assert report.layout == "packed"
    assert report.loaded == len(report.tensors) == len(prepared.state_dict())
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["transformer.h.0.attn.c_attn.weight"].dtype == torch.int8
    assert ("lm_head.weight" in stored) != tied
    again = loaded.prepare_for_inference(weights="int8")  # a copy, which may be compiled
    assert torch.equal(again(IDS).logits, prepared(IDS).logits)


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_the_others_become_a_plain_checkpoint(tmp_path: Path, weights: Any) -> None:
    prepared = tiny_model().prepare_for_inference(weights=weights)
    prepared.save_pretrained(tmp_path)
    plain = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert plain.packed is None
    wanted = prepared.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, wanted[name].float()), name
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_a_head_of_labels_too(tmp_path: Path) -> None:
    prepared = tiny_model(GPT2ForTokenClassification).prepare_for_inference(weights="int8")
    prepared.save_pretrained(tmp_path)
    loaded = GPT2ForTokenClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).logits, prepared(IDS).logits)


def test_what_does_not_fit_is_named(saved: Path) -> None:
    name = "transformer.h.1.mlp.c_fc.scale"
    rewrite(saved, **{name: None, "transformer.spare": torch.zeros(2)})
    with pytest.raises(StateDictError) as found:
        GPT2LMHeadModel.from_pretrained(saved)
    assert f"missing: '{name}'" in str(found.value)
    assert "unexpected: 'transformer.spare'" in str(found.value)
    rewrite(saved, **{name: torch.zeros(5), "transformer.spare": None})
    with pytest.raises(StateDictError, match=r"c_fc.scale' is .*expected"):
        GPT2LMHeadModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": torch.bfloat16},
        {"ignore_mismatched_sizes": True},
        {"allow_missing": ["transformer.wpe.*"]},
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_in_loading(
    saved: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ArgumentError, match="has int8 weights, which load whole"):
        GPT2LMHeadModel.from_pretrained(saved, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"layout": "nanogpt"},
        {"safe_serialization": False},
        {"variant": "fp16"},
        {"max_shard_size": "1KB"},
        {"state_dict": {}},
    ],
    ids=str,
)
def test_and_in_saving(tmp_path: Path, arguments: dict[str, Any]) -> None:
    prepared = tiny_model().prepare_for_inference(weights="int8")
    with pytest.raises(ArgumentError, match=f"{next(iter(arguments))}.*does not go with int8"):
        prepared.save_pretrained(tmp_path / "here", **arguments)
    assert not (tmp_path / "here").exists()


def test_a_newer_kind_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"]["bits"] = 4
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"quantization_config is .*'bits': 4"):
        GPT2LMHeadModel.from_pretrained(saved)
