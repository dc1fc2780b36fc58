"""Checkpoints of other programs and eras: told by looking, equal to the last bit, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

import gpt2
from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from gpt2.checkpoints.report import LoadReport
from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConfigError,
    FileAccessError,
    FileFormatError,
    StateDictError,
)
from tests.checkpoints import foreign
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 97, (2, 7), generator=torch.Generator().manual_seed(1))
RELU = {"activation_function": "relu"}


def load(path: Path, **arguments: Any) -> tuple[GPT2LMHeadModel, LoadReport]:
    return GPT2LMHeadModel.from_pretrained(path, return_report=True, **arguments)


def put(directory: Path, model: GPT2LMHeadModel, weights: Any, file: str) -> None:
    """A repository with our config.json and these weights."""
    model.config.save_pretrained(directory)
    if file.endswith(".safetensors"):
        tensors = {k: v.clone().contiguous() for k, v in weights.items()}
        safetensors.torch.save_file(tensors, directory / file)
    else:
        torch.save(weights, directory / file)


def wrapped(weights: dict[str, Any], *prefixes: str) -> dict[str, Any]:
    return {"".join(prefixes) + name: tensor for name, tensor in weights.items()}


def linear(model: GPT2LMHeadModel) -> dict[str, Any]:
    return model.state_dict()


def inner_wrapped(model: GPT2LMHeadModel) -> dict[str, Any]:
    """Each block compiled by itself, inside FSDP."""
    return {
        "module."
        + name.replace(".attn.", "._fsdp_wrapped_module.attn.").replace("h.1.", "h.1._orig_mod."): t
        for name, t in foreign.conv1d(model).items()
    }


# name -> (file, what is in it, the layout that is told)
FORMS: dict[str, tuple[str, Callable[[GPT2LMHeadModel], Any], str]] = {
    "conv1d": ("model.safetensors", foreign.conv1d, "huggingface"),
    "conv1d bin": ("pytorch_model.bin", foreign.conv1d, "huggingface"),
    "first era": ("pytorch_model.bin", foreign.first_era, "huggingface"),
    "linear": ("model.safetensors", linear, "linear"),
    "nanogpt": ("ckpt.pt", foreign.nanogpt, "nanogpt"),
    "nanogpt, bare": (
        "model.safetensors", lambda m: foreign.nanogpt(m)["model"], "nanogpt",
    ),
    "mingpt": ("model.pt", foreign.mingpt, "mingpt"),
    "opt": ("model.safetensors", foreign.opt, "opt"),
    "opt, core": ("pytorch_model.bin", partial(foreign.opt, prefix="decoder."), "opt"),
    "compiled": (
        "ckpt.pt",
        lambda m: {"model": wrapped(foreign.nanogpt(m)["model"], "_orig_mod.")},
        "nanogpt",
    ),
    "wrapped twice": (
        "model.safetensors",
        lambda m: wrapped(foreign.conv1d(m), "module.", "module.", "_orig_mod."),
        "huggingface",
    ),
    "wrapped inside": ("pytorch_model.bin", inner_wrapped, "huggingface"),
    "state_dict": ("model.pt", lambda m: {"epoch": 3, "state_dict": m.state_dict()}, "linear"),
}  # fmt: skip


# nanoGPT and the first era always tie
ALWAYS_TIED = {"nanogpt", "nanogpt, bare", "compiled", "first era"}


@pytest.mark.parametrize(
    ("form", "tie"),
    [(form, tie) for form in FORMS for tie in (True, False) if tie or form not in ALWAYS_TIED],
)
def test_the_same_weights_give_the_same_logits_to_the_last_bit(
    tmp_path: Path, form: str, tie: bool
) -> None:
    file, store, layout = FORMS[form]
    model = tiny_model(tie_word_embeddings=tie, n_inner=128)
    weights = store(model)
    if layout == "opt" and not tie:
        weights["lm_head.weight"] = model.lm_head.weight.detach()
    elif layout == "linear" and not tie:
        layout = "nanogpt"  # the same names and shapes; the config says what it computes
    put(tmp_path, model, weights, file)
    loaded, report = load(tmp_path)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert report.layout == layout
    assert report.problems == []
    by_name = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(by_name[name], tensor), name
        assert by_name[name].is_contiguous()


# -- nanoGPT ------------------------------------------------------------------------------------


def save(directory: Path, content: Any, name: str = "ckpt.pt") -> Path:
    directory.mkdir(exist_ok=True)
    torch.save(content, directory / name)
    return directory / name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("whole_directory", [True, False])
def test_nanogpt_needs_no_config(tmp_path: Path, bias: bool, whole_directory: bool) -> None:
    made = tiny_model(activation_function="gelu")
    made = made if bias else foreign.without_biases(made)
    content = foreign.nanogpt(made, bias=bias)
    path = save(tmp_path, content)
    model, report = load(tmp_path if whole_directory else path)
    assert torch.equal(model(IDS).logits, made(IDS).logits)
    alone = foreign.logits(content["model"], IDS[0], 4, F.gelu)
    assert_close(model(IDS).logits[0], alone)
    assert report.layout == "nanogpt"
    assert report.model_class == "GPT2LMHeadModel"
    config = model.config
    assert report.config is config
    assert (config.n_layer, config.n_head, config.n_embd, config.n_positions) == (2, 4, 32, 32)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.25, 0.25, 0.25)
    assert config.bos_token_id is config.eos_token_id is None  # 50256 is not in the vocabulary
    assert {"optimizer", "model_args", "config", "iter_num"} <= {
        record.stored_name for record in report.tensors if record.action == "left out"
    }
    biases = {name for name in model.state_dict() if name.endswith(".bias")}
    assert report.filled == ({} if bias else dict.fromkeys(biases, 0.0))
    assert not model.lm_head.weight.is_meta
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize(
    ("settings", "arguments", "activation", "words"),
    [
        ({}, {}, "gelu", "as nanoGPT trains"),
        ({"init_from": "resume"}, {}, "gelu", "pass activation_function='gelu_new'"),
        ({"init_from": "gpt2-xl"}, {}, "gelu_new", "the training started from gpt2-xl"),
        ({}, {"activation_function": "gelu_new"}, "gelu_new", None),
        ({"init_from": "gpt2"}, {"activation_function": "gelu"}, "gelu", None),
        ({"init_from": 3}, {}, "gelu", "as nanoGPT trains"),
    ],
)
def test_the_activation_is_said_and_can_be_overridden(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    arguments: dict[str, Any],
    activation: str,
    words: str | None,
) -> None:
    path = save(tmp_path, foreign.nanogpt(tiny_model(), **settings))
    with caplog.at_level("INFO", logger="gpt2"):
        model, report = load(path, **arguments)
    assert model.config.activation_function == activation
    said = [note for note in report.notes if "activation_function" in note]
    assert [words in note for note in said] == ([] if words is None else [True])
    assert all(note in caplog.messages[0] for note in said)


def test_nanogpt_of_before_flash_attention_has_masks_too(tmp_path: Path) -> None:
    """Its model_args tell it from minGPT."""
    made = tiny_model(activation_function="gelu")
    content = foreign.nanogpt(made)
    content["model"] |= {k: v for k, v in foreign.mingpt(made).items() if k.endswith("attn.bias")}
    model, report = load(save(tmp_path, content))
    assert report.layout == "nanogpt"
    assert len(report.ignored) == 2
    assert torch.equal(model(IDS).logits, made(IDS).logits)


def test_a_padded_vocabulary_is_kept_and_said(tmp_path: Path) -> None:
    made = tiny_model(vocab_size=50304, n_embd=8, n_head=2, n_layer=1, activation_function="gelu")
    path = save(tmp_path, foreign.nanogpt(made))
    model, report = load(path)
    assert model.config.vocab_size == 50304
    assert model.config.eos_token_id == 50256
    assert torch.equal(model(IDS).logits, made(IDS).logits)
    assert [note for note in report.notes if "model.resize_token_embeddings(50257)" in note]
    model.resize_token_embeddings(50257)
    assert torch.equal(model(IDS).logits, made(IDS).logits[..., :50257])


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_there_and_back(tmp_path: Path, bias: bool) -> None:
    """File, model and file again: the same names and bits, with and without biases."""
    made = tiny_model(activation_function="gelu")
    content = foreign.nanogpt(made if bias else foreign.without_biases(made), bias=bias)
    model, _ = load(save(tmp_path / "first", content))
    model.save_pretrained(tmp_path / "second", layout="nanogpt")
    again = torch.load(tmp_path / "second" / "ckpt.pt", weights_only=True)
    assert again["model"].keys() == content["model"].keys()
    for name, tensor in content["model"].items():
        assert torch.equal(again["model"][name], tensor), name
    assert again["model_args"] == content["model_args"]
    pointers = {again["model"][n].data_ptr() for n in ("lm_head.weight", "transformer.wte.weight")}
    assert len(pointers) == 1  # stored once
    for path in (tmp_path / "second", tmp_path / "second" / "ckpt.pt"):
        loaded, _ = load(path)
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
        assert loaded.config.to_dict() == model.config.to_dict() | {
            "architectures": ["GPT2LMHeadModel"], "torch_dtype": "float32",
        }  # fmt: skip


def test_gelu_new_survives_nanogpts_file(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, layout="nanogpt")
    (tmp_path / "config.json").unlink()
    loaded, _ = load(tmp_path)
    assert loaded.config.activation_function == "gelu_new"
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_config_json_and_model_args_must_agree(tmp_path: Path) -> None:
    model = tiny_model(activation_function="gelu")
    path = save(tmp_path, foreign.nanogpt(model))
    model.config.replaced(n_head=2).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"n_head 2, but model_args in ckpt\.pt says 4"):
        load(path)
    assert torch.equal(load(path, n_head=4)[0](IDS).logits, model(IDS).logits)


def spoilt(model: GPT2LMHeadModel, **arguments: Any) -> dict[str, Any]:
    content = foreign.nanogpt(model)
    content["model_args"] |= arguments
    return content


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"n_head": 5}, ConfigError, r"ckpt\.pt: n_embd \(32\) must be a multiple of n_head \(5\)"),
        ({"n_head": "4"}, ConfigError, r"ckpt\.pt: n_head"),
        ({"n_layer": 3}, StateDictError, "has 2 blocks, the config n_layer=3"),
        ({"n_layer": -1}, ConfigError, "n_layer"),
        ({"vocab_size": 98}, StateDictError, r"\[97, 32\] instead of \[98, 32\]"),
        ({"vocab_size": 10**12}, ConfigError, "vocab_size"),
        ({"vocab_size": "many"}, ConfigError, "vocab_size"),
        ({"dropout": 7}, ConfigError, "pdrop"),
    ],
)
def test_impossible_model_args(
    tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        load(save(tmp_path, spoilt(tiny_model(), **arguments)))


def test_some_biases_missing_is_a_gap_like_any_other(tmp_path: Path) -> None:
    content = foreign.nanogpt(tiny_model())
    del content["model"]["transformer.h.1.ln_2.bias"]
    with pytest.raises(StateDictError, match=r"missing \(1\): 'transformer\.h\.1\.ln_2\.bias'"):
        load(save(tmp_path, content))


def test_no_biases_at_all_is_no_gpt2_of_hugging_face(tmp_path: Path) -> None:
    model = tiny_model()
    weights = {k: v for k, v in foreign.conv1d(model).items() if not k.endswith(".bias")}
    put(tmp_path, model, weights, "model.safetensors")
    with pytest.raises(StateDictError, match=r"missing \(13\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {}, "state_dict": {}}, "'model', 'state_dict'; keep the one"),
        ({"model": {"a": 3}}, "'a' is not a plain tensor but int"),
        ({"weights": {}}, "'weights' is not a plain tensor but dict"),
        ([1, 2], "must hold a dict of tensors by name, but holds list"),
        ({"model": {3: torch.zeros(1)}}, "the key 3 is not a string"),
    ],
)
def test_containers_that_cannot_be_read(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(FileFormatError, match=words):
        load(save(tmp_path, content))


def test_a_container_that_holds_itself(tmp_path: Path) -> None:
    content = foreign.nanogpt(tiny_model(activation_function="gelu"))
    content["config"]["config"] = content["config"]
    assert load(save(tmp_path, content))[0].config.n_head == 4


# -- minGPT -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, False])
def test_mingpt(tmp_path: Path, tie: bool) -> None:
    made = tiny_model(tie_word_embeddings=tie)
    weights = foreign.mingpt(made)
    path = save(tmp_path, weights, "model.pt")
    with pytest.raises(ConfigError, match=r"model\.pt has no model_args.*pass n_head=\.\.\."):
        load(path)
    model, report = load(path, n_head=4)
    assert torch.equal(model(IDS).logits, made(IDS).logits)
    gelu = partial(F.gelu, approximate="tanh")
    assert_close(model(IDS).logits[0], foreign.logits(weights, IDS[0], 4, gelu))
    assert report.layout == "mingpt"
    assert model.config.activation_function == "gelu_new"
    assert not model.config.tie_word_embeddings  # the head is minGPT's own parameter
    assert [note for note in report.notes if "as minGPT computes" in note]
    assert sorted(report.ignored) == ["transformer.h.0.attn.bias", "transformer.h.1.attn.bias"]
    assert load(path, num_attention_heads=2)[0].config.n_head == 2


@pytest.mark.parametrize("tie", [True, False])
def test_mingpt_there_and_back(tmp_path: Path, tie: bool) -> None:
    model = tiny_model(tie_word_embeddings=tie)
    model.save_pretrained(tmp_path, layout="mingpt")
    stored = torch.load(tmp_path / "model.pt", weights_only=True)
    expected = foreign.mingpt(model)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    loaded, _ = load(tmp_path)
    assert loaded.config.tie_word_embeddings is tie
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


# -- OPT ----------------------------------------------------------------------------------------


def test_opt_translates_its_config(tmp_path: Path) -> None:
    made = tiny_model(**RELU)
    (tmp_path / "config.json").write_text(json.dumps(foreign.opt_config(made.config)))
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in foreign.opt(made).items()}, tmp_path / "model.safetensors"
    )
    model, report = load(tmp_path, resid_pdrop=0.3)
    assert torch.equal(model(IDS).logits, made(IDS).logits)
    config = model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (2, 2, 1)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.3, 0.0, 0.0)
    assert config.activation_function == "relu"
    assert config.extra["prefix"] == "</s>"
    by_name = {r.stored_name: r for r in report.tensors}
    part = by_name["model.decoder.layers.1.self_attn.k_proj.weight"]
    assert (part.name, part.action) == ("transformer.h.1.attn.c_attn.weight", "fused, part 2 of 3")
    assert by_name["model.decoder.embed_positions.weight"].action == "first 2 rows cut"
    model.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "gpt2"
    assert torch.equal(load(tmp_path / "ours")[0](IDS).logits, made(IDS).logits)


def test_opt_stored_in_part(tmp_path: Path) -> None:
    made = tiny_model(**RELU)
    weights = foreign.opt(made)
    del weights["model.decoder.layers.1.self_attn.v_proj.weight"]
    put(tmp_path, made, weights, "pytorch_model.bin")
    with pytest.raises(StateDictError, match=r"stored in part \(1\): of 'transformer\.h\.1\.attn"):
        load(tmp_path)
    weights["model.decoder.layers.1.self_attn.v_proj.weight"] = torch.zeros(31, 32)
    put(tmp_path, made, weights, "pytorch_model.bin")
    with pytest.raises(StateDictError, match=r"v_proj\.weight' \[31, 32\] instead of \[32, 32\]"):
        load(tmp_path)
    model, report = load(tmp_path, ignore_mismatched_sizes=True)
    assert [name for name, _, _ in report.mismatched_keys] == ["transformer.h.1.attn.c_attn.weight"]
    assert model(IDS).logits.isfinite().all()


# -- other repositories of Hugging Face's layout ------------------------------------------------


def test_cerebras_and_codeparrot_are_in_their_configs(tmp_path: Path) -> None:
    """Both have GPT-2's layout; config.json says what is theirs."""
    flags = {
        "cerebras": {"activation_function": "gelu", "n_inner": 100, "attn_pdrop": 0.0},
        "codeparrot": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    }
    for name, fields in flags.items():
        made = tiny_model(**fields)
        weights = foreign.conv1d(made)
        for n in range(2):
            weights[f"transformer.h.{n}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            weights[f"transformer.h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
        directory = tmp_path / name
        directory.mkdir()
        put(
            directory, made, {**weights, "lm_head.weight": made.lm_head.weight}, "pytorch_model.bin"
        )
        model, report = load(directory)
        assert torch.equal(model(IDS).logits, made(IDS).logits)
        assert {k: getattr(model.config, k) for k in fields} == fields
        assert len(report.ignored) == 4
        assert report.tied == {"lm_head.weight": "transformer.wte.weight"}


def test_dialogrpt_is_a_classifier_of_one_label(tmp_path: Path) -> None:
    made = tiny_model(GPT2ForSequenceClassification, num_labels=1)
    weights = foreign.conv1d(made)  # type: ignore[arg-type]
    put(tmp_path, made, weights, "pytorch_model.bin")  # type: ignore[arg-type]
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.num_labels == 1
    assert torch.equal(model(IDS).logits, made(IDS).logits)
    assert gpt2.inspect_checkpoint(tmp_path).model_class == "GPT2ForSequenceClassification"


# -- what does not fit --------------------------------------------------------------------------


def test_the_head_decides_what_a_bare_core_loads_into(tmp_path: Path) -> None:
    model = tiny_model(activation_function="gelu")
    model.save_pretrained(tmp_path, layout="nanogpt")
    core = GPT2Model.from_pretrained(tmp_path)
    assert torch.equal(core.wte.weight, model.transformer.wte.weight)
    core.save_pretrained(tmp_path / "core", layout="nanogpt")  # nanoGPT has a head always
    assert torch.equal(load(tmp_path / "core")[0](IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("overrides", "arguments", "kind", "words"),
    [
        ({}, {"layout": "gpt3"}, ArgumentError, "'huggingface', 'nanogpt', 'mingpt', 'opt'"),
        ({"tie_word_embeddings": False}, {"layout": "nanogpt"}, ConfigError, "tie_word_embeddings"),
        (RELU, {"layout": "nanogpt"}, ConfigError, "'relu', but the layout 'nanogpt' can only"),
        (RELU, {"layout": "mingpt"}, ConfigError, "'gelu_new'"),
        ({"n_inner": 64}, {"layout": "mingpt"}, ConfigError, "4 \\* n_embd = 128"),
        ({"reorder_and_upcast_attn": True}, {"layout": "nanogpt"}, ConfigError, "reorder"),
        ({}, {"layout": "nanogpt", "variant": "fp16"}, ArgumentError, "variant='fp16'"),
        ({}, {"layout": "nanogpt", "max_shard_size": 9}, ArgumentError, "max_shard_size=9"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(
    tmp_path: Path,
    overrides: dict[str, Any],
    arguments: dict[str, Any],
    kind: type[Exception],
    words: str,
) -> None:
    with pytest.raises(kind, match=words):
        tiny_model(**overrides).save_pretrained(tmp_path / "m", **arguments)
    assert not (tmp_path / "m").exists()


def test_a_classifier_has_no_place_in_nanogpts_file(tmp_path: Path) -> None:
    model = tiny_model(GPT2ForSequenceClassification)
    with pytest.raises(StateDictError, match=r"'nanogpt' has no place for 'score\.weight'"):
        model.save_pretrained(tmp_path / "m", layout="nanogpt")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArgumentError, match=r"'model\.gguf' is not the name of a weight file"):
        load(tmp_path / "model.gguf", config=tiny_model().config)
    weights = foreign.conv1d(tiny_model())
    torch.save(weights, tmp_path / "some.bin")
    with pytest.raises(FileAccessError, match=r"config\.json"):  # heads and activation are unknown
        load(tmp_path / "some.bin")
    model, _ = load(tmp_path / "some.bin", config=tiny_model().config)
    assert torch.equal(model(IDS).logits, tiny_model()(IDS).logits)


def test_saving_in_one_layout_leaves_no_weights_of_the_other_to_be_read_first(
    tmp_path: Path,
) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_model(seed=2).save_pretrained(tmp_path, layout="nanogpt")
    assert torch.equal(load(tmp_path)[0](IDS).logits, tiny_model(seed=2)(IDS).logits)
    tiny_model(seed=3).save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)[0](IDS).logits, tiny_model(seed=3)(IDS).logits)
    assert (tmp_path / "ckpt.pt").exists()  # a training's own file is not deleted


# -- allowed gaps -------------------------------------------------------------------------------


def test_allowed_gaps(tmp_path: Path) -> None:
    model = tiny_model()
    weights = foreign.conv1d(model)
    del weights["transformer.h.1.ln_2.bias"]
    weights["transformer.h.0.attn.rotary.inv_freq"] = torch.zeros(3)
    put(tmp_path, model, weights, "model.safetensors")
    for arguments in (
        {},
        {"allow_missing": ["*.ln_2.bias"]},
        {"allow_unexpected": ["*.rotary.*"]},
    ):
        with pytest.raises(StateDictError):
            load(tmp_path, **arguments)
    loaded, report = load(tmp_path, allow_missing=["*.ln_2.bias"], allow_unexpected=["*.rotary.*"])
    assert report.missing_keys == ["transformer.h.1.ln_2.bias"]
    assert report.dropped == ["transformer.h.0.attn.rotary.inv_freq"]
    assert not loaded.transformer.h[1].ln_2.bias.any()  # as a new model has it
    with pytest.raises(ArgumentTypeError, match="allow_missing must be a list of patterns"):
        load(tmp_path, allow_missing="*.ln_2.bias")
    with pytest.raises(ArgumentError, match="not both"):
        load(tmp_path, output_loading_info=True)
