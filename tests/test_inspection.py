"""inspect_checkpoint and verify_checkpoint: what they say of good and of bad checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import gpt2
from gpt2 import (
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
    GPT2Tokenizer,
    inspection,
)
from gpt2.errors import ArgumentTypeError, ConfigError, FileAccessError, FileFormatError
from tests.checkpoints import foreign
from tests.helpers import tiny_model

CORPUS = ["a hen and a hat and the fox's hat"] * 9


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer = GPT2Tokenizer.train(CORPUS, vocab_size=270, show_progress=False)
    model = tiny_model(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model"


def change(directory: Path, **tensors: torch.Tensor) -> None:
    """Give stored tensors other values; names with '.' written as '__'."""
    path = directory / "model.safetensors"
    stored = safetensors.torch.load_file(path)
    stored.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    safetensors.torch.save_file(stored, path, {"format": "pt"})


def failed(directory: Path, **arguments: Any) -> dict[str, str]:
    found = gpt2.verify_checkpoint(directory, **arguments)
    bad = {check.name: check.detail for check in found.checks if check.passed is False}
    assert found.passed is not bool(bad)
    assert str(found).count("FAILED") == len(bad)
    return bad


# -- inspect ------------------------------------------------------------------------------------


def test_every_stored_tensor_has_its_line(saved: Path) -> None:
    report = gpt2.inspect_checkpoint(saved)
    stored = safetensors.torch.load_file(saved / "model.safetensors")
    assert {r.stored_name for r in report.tensors} == stored.keys()
    for record in report.tensors:
        tensor = stored[record.stored_name or ""]
        assert (record.stored_shape, record.stored_dtype) == (tuple(tensor.shape), tensor.dtype)
        assert record.file == "model.safetensors"
        turned = "h." in (record.name or "") and tensor.dim() == 2
        assert record.action == ("transposed" if turned else "as it is")
        assert str(record) in str(report)
    assert report.model_class == "GPT2LMHeadModel"
    assert report.problems == []
    assert report.config == GPT2Config.from_pretrained(saved)
    assert report.loaded == len(stored)
    line = "model.safetensors: transformer.h.0.attn.c_attn.weight [32, 96] float32 -> "
    assert f"{line}transformer.h.0.attn.c_attn.weight: transposed" in str(report)


def test_it_is_what_loading_does(saved: Path) -> None:
    change(saved, lm_head__weight=safetensors.torch.load_file(saved / "model.safetensors")[
        "transformer.wte.weight"
    ])  # fmt: skip
    _, loaded = GPT2LMHeadModel.from_pretrained(saved, return_report=True)
    inspected = gpt2.inspect_checkpoint(saved)
    assert inspected.tensors == loaded.tensors
    assert inspected.tied == loaded.tied == {"lm_head.weight": "transformer.wte.weight"}


def test_what_does_not_fit_is_listed_and_no_error(saved: Path) -> None:
    change(saved, surplus=torch.zeros(2), transformer__ln_f__bias=torch.zeros(31))
    report = gpt2.inspect_checkpoint(saved)
    by_name = {r.stored_name: r for r in report.tensors}
    assert by_name["surplus"].action == "unexpected"
    assert by_name["transformer.ln_f.bias"].action == "misfit"
    assert "[32]" in by_name["transformer.ln_f.bias"].why
    assert len(report.problems) == 2
    assert "problem: unexpected (1): 'surplus' [2]" in str(report)


@pytest.mark.parametrize(
    "cls",
    [
        GPT2Model,
        GPT2LMHeadModel,
        GPT2DoubleHeadsModel,
        GPT2ForSequenceClassification,
        GPT2ForTokenClassification,
        GPT2ForQuestionAnswering,
    ],
)
def test_the_class_is_read_off_the_heads(tmp_path: Path, cls: Any) -> None:
    tiny_model(cls, tie_word_embeddings=False).save_pretrained(tmp_path)
    report = gpt2.inspect_checkpoint(tmp_path)
    assert report.model_class == cls.__name__
    assert report.problems == []
    assert gpt2.verify_checkpoint(tmp_path).passed


def test_files_of_other_programs(tmp_path: Path) -> None:
    model = foreign.without_biases(tiny_model(activation_function="gelu"))
    torch.save(foreign.nanogpt(model, bias=False), tmp_path / "ckpt.pt")
    report = gpt2.inspect_checkpoint(tmp_path / "ckpt.pt")
    text = str(report)
    assert report.layout == "nanogpt"
    assert "note: activation_function is 'gelu', as nanoGPT trains" in text
    assert "nothing stored -> transformer.ln_f.bias: filled with 0 (the checkpoint is of a" in text
    assert "optimizer" in text
    other = gpt2.inspect_checkpoint(tmp_path / "ckpt.pt", activation_function="relu")
    assert other.config is not None
    assert other.config.activation_function == "relu"


def test_what_cannot_be_read_is_an_error(saved: Path, tmp_path: Path) -> None:
    for look in (gpt2.inspect_checkpoint, gpt2.verify_checkpoint):
        with pytest.raises(FileAccessError, match="absent"):
            look(tmp_path / "absent" / "x" / "y")
        with pytest.raises(ArgumentTypeError, match="'n_layers'; did you mean 'n_layer'"):
            look(saved, n_layers=2)
        with pytest.raises(ConfigError, match="n_head"):
            look(saved, n_head=5)
    (saved / "model.safetensors").write_bytes(b"short")
    with pytest.raises(FileFormatError, match=r"model\.safetensors"):
        gpt2.inspect_checkpoint(saved)


# -- verify -------------------------------------------------------------------------------------


def test_a_sound_checkpoint_passes(saved: Path) -> None:
    found = gpt2.verify_checkpoint(saved)
    assert found.passed
    passed = {check.name: check.passed for check in found.checks}
    assert passed == {
        "names and shapes": True,
        "tied weights": True,
        "finite values": True,
        "known size": None,
        "special tokens": True,
        "vocabulary": True,
    }
    assert gpt2.verify_checkpoint(saved / "model.safetensors").passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(saved: Path, value: float) -> None:
    bad = torch.zeros(32)
    bad[3:5] = value
    change(saved, transformer__h__1__ln_2__bias=bad)
    assert failed(saved) == {"finite values": "NaN or infinite in transformer.h.1.ln_2.bias (2)"}
    with torch.no_grad():  # and loading leaves them as they are
        model = GPT2LMHeadModel.from_pretrained(saved)
    assert torch.equal(model.transformer.h[1].ln_2.bias.nan_to_num(7.0), bad.nan_to_num(7.0))


def test_large_float64_is_finite(tmp_path: Path) -> None:
    model = tiny_model().double()
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = 1e200
    model.save_pretrained(tmp_path)
    assert failed(tmp_path) == {}


def test_a_tie_that_does_not_hold(saved: Path) -> None:
    change(saved, lm_head__weight=torch.ones(270, 32))
    assert "differ" in failed(saved)["tied weights"]


def test_names_and_shapes(saved: Path) -> None:
    change(saved, surplus=torch.zeros(2))
    assert "unexpected (1): 'surplus'" in failed(saved)["names and shapes"]


def test_vocabulary_and_special_tokens(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "eos_token_id": [3, 50256]}))
    tokenizer = GPT2Tokenizer.from_pretrained(saved)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(saved)
    bad = failed(saved)
    assert bad.keys() == {"special tokens", "vocabulary"}
    assert "'eos_token_id': [3, 50256]" in bad["special tokens"]
    assert "271 tokens, the highest id 270; the embedding has 270 rows" in bad["vocabulary"]
    for name in ("tokenizer.json", "merges.txt"):
        (saved / name).write_text("{")
    assert "tokenizer.json" in failed(saved)["vocabulary"]


def test_the_public_sizes_know_their_numbers() -> None:
    for (n_layer, n_embd, n_head), (name, parameters) in inspection.PUBLIC_SIZES.items():
        config = GPT2Config(n_layer=n_layer, n_embd=n_embd, n_head=n_head)
        model = GPT2LMHeadModel.from_config(config, device="meta")
        assert model.num_parameters() == parameters, name


def test_known_size_and_ids(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tiny model declared a public one."""
    tokenizer = GPT2Tokenizer.from_pretrained(saved)
    count = GPT2LMHeadModel.from_pretrained(saved).num_parameters()
    known = {"a hen": tokenizer("a hen")["input_ids"]}
    monkeypatch.setattr(inspection, "PUBLIC_SIZES", {(2, 32, 4): ("tiny", count)})
    monkeypatch.setattr(inspection, "_VOCABULARY", 270)
    monkeypatch.setattr(inspection, "_POSITIONS", 32)
    monkeypatch.setattr(inspection, "_KNOWN_IDS", known)
    found = {check.name: check.passed for check in gpt2.verify_checkpoint(saved).checks}
    assert found["known size"] is True
    assert found["known ids"] is True
    monkeypatch.setattr(inspection, "PUBLIC_SIZES", {(2, 32, 4): ("tiny", count + 1)})
    monkeypatch.setattr(inspection, "_KNOWN_IDS", {"a hen": [1, 2]})
    assert failed(saved).keys() == {"known size", "known ids"}


def test_the_embedded_checkpoint_is_sound() -> None:
    directory = Path(__file__).resolve().parents[1] / "examples" / "stories-gpt2"
    assert gpt2.verify_checkpoint(directory).passed
