"""LoRA: what changes, what trains, and what the files hold."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from gpt2.errors import ArgumentError, ArgumentTypeError, FileFormatError, StateDictError
from gpt2.training.adapterfiles import load_lora, save_lora
from gpt2.training.lora import (
    LoraConfig,
    LoraEmbedding,
    LoraLinear,
    adapted_layers,
    add_lora,
    drop_lora,
    merge_lora,
    unmerge_lora,
)
from tests.helpers import assert_close, tiny_model

IDS = torch.arange(14).view(2, 7)


TABLES = LoraConfig(r=3, lora_alpha=5, target_modules=["wte", "wpe", "c_attn", "lm_head"])
UNTIED = {"tie_word_embeddings": False}


def adapted(config: LoraConfig | None = None, **overrides: Any) -> GPT2LMHeadModel:
    """A tiny model whose adapters do something."""
    model = tiny_model(**overrides)
    add_lora(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            zeros = layer.lora_B.weight if isinstance(layer, LoraLinear) else layer.lora_embedding_A
            zeros.normal_(std=0.3, generator=generator)
    return model


def test_a_fresh_adapter_changes_nothing_and_only_it_trains() -> None:
    model, plain = tiny_model(), tiny_model()
    paths = add_lora(model, LoraConfig(r=4, target_modules=["c_attn", "mlp.c_proj"]))
    assert paths == [
        f"transformer.h.{i}.{m}" for i in (0, 1) for m in ("attn.c_attn", "mlp.c_proj")
    ]
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    model(IDS, labels=IDS).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{path}.lora_{half}.weight" for path in paths for half in "AB"}
    assert all(p.grad is None for p in plain.parameters())
    names = {name for name, _ in plain.named_parameters()}
    assert names <= {name for name, _ in model.named_parameters()}  # no name has changed


def test_the_addition_is_the_formulas() -> None:
    linear = torch.nn.Linear(6, 5)
    layer = LoraLinear(linear, LoraConfig(r=2, lora_alpha=3))
    with torch.no_grad():
        layer.lora_B.weight.normal_()
    x = torch.randn(4, 6)
    low = x @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    assert_close(layer(x), linear(x) + 1.5 * low)


def test_an_embeddings_addition_is_the_formulas() -> None:
    table = torch.nn.Embedding(9, 6, padding_idx=2)
    layer = LoraEmbedding(table, LoraConfig(r=2, lora_alpha=3, lora_dropout=0.5))
    ids = torch.tensor([[3, 0, 2], [8, 3, 1]])
    assert torch.equal(layer(ids), table(ids))  # A is 0 at first
    with torch.no_grad():
        layer.lora_embedding_A.normal_()
    a, b = layer.lora_embedding_A, layer.lora_embedding_B
    assert (a.shape, b.shape) == ((2, 9), (6, 2))
    expected = torch.stack([table.weight[i] + 1.5 * b @ a[:, i] for i in ids.flatten()])
    assert_close(layer.train()(ids), expected.view(2, 3, 6))  # dropout is for linear layers
    layer(ids).sum().backward()
    assert a.grad is not None
    assert a.grad[:, [4, 5, 6, 7]].abs().max() == 0
    assert a.grad[:, 2].abs().max() == 0  # padding_idx
    assert a.grad[:, [0, 1, 3, 8]].abs().min() > 0
    again = layer.plain()
    assert again.weight is layer.weight is table.weight
    assert (type(again), again.padding_idx) == (torch.nn.Embedding, 2)


def test_a_fresh_adapter_of_an_embedding_is_as_pefts() -> None:
    layer = LoraEmbedding(torch.nn.Embedding(40, 500), LoraConfig(r=20))
    assert layer.lora_embedding_A.abs().max() == 0
    assert abs(layer.lora_embedding_B.std() - 1) < 0.05  # of 10,000 from N(0, 1)
    assert abs(layer.lora_embedding_B.mean()) < 0.05


def test_a_models_embeddings_can_be_adapted() -> None:
    model, plain = tiny_model(GPT2Model), tiny_model(GPT2Model)
    assert add_lora(model, LoraConfig(r=2, target_modules=["wte", "wpe"])) == ["wte", "wpe"]
    assert torch.equal(model(IDS).last_hidden_state, plain(IDS).last_hidden_state)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{t}.lora_embedding_{half}" for t in ("wte", "wpe") for half in "AB"}
    output = model(IDS, token_type_ids=IDS.flip(1))
    output.last_hidden_state.square().sum().backward()
    for table in (model.wte, model.wpe):
        assert table.lora_embedding_A.grad.abs().max() > 0
        assert table.weight.grad is None
    drop_lora(model)
    assert type(model.wte) is type(model.wpe) is torch.nn.Embedding
    assert model.wte.weight.requires_grad


def test_embeddings_of_a_shape_that_adapters_have_are_not_changed() -> None:
    model = adapted(TABLES, **UNTIED)
    expected = model(IDS).logits
    rows = len(model.transformer.wte.weight)
    assert model.resize_token_embeddings(rows) is model.transformer.wte  # nothing to do
    with pytest.raises(ArgumentError, match=r"resize_token_embeddings .* wte, which is a LoraEmb"):
        model.resize_token_embeddings(rows + 1)
    with pytest.raises(ArgumentError, match="shape of wpe, which is a LoraEmbedding whose lora_em"):
        model.resize_position_embeddings(8)
    with pytest.raises(ArgumentError, match=r"shape of h.1.attn.c_attn, .* whose lora_A.weight"):
        model.prune_heads({1: [0]})
    with pytest.raises(ArgumentError, match=r"a Lora.*, which cannot be packed; merge adapters"):
        model.prepare_for_inference()
    assert torch.equal(model(IDS).logits, expected)
    assert model.config.pruned_heads == {}
    head = adapted(LoraConfig(target_modules=["lm_head"]), **UNTIED)
    with pytest.raises(ArgumentError, match="shape of lm_head, which is a LoraLinear"):
        head.resize_token_embeddings(rows + 1)
    table = tiny_model(GPT2Model)
    add_lora(table, LoraConfig(target_modules=["wte"]))
    with pytest.raises(ArgumentError, match="wte is a LoraEmbedding, which cannot be packed"):
        table.prepare_for_inference()


@pytest.mark.parametrize("config", [None, TABLES], ids=["blocks", "tables"])
def test_merging_keeps_the_results_and_can_be_undone(config: LoraConfig | None) -> None:
    overrides = UNTIED if config is TABLES else {}
    model, plain = adapted(config, **overrides), tiny_model(**overrides)
    before = model(IDS).logits
    assert (before - plain(IDS).logits).abs().max() > 0.1
    merge_lora(model)
    merge_lora(model)  # once is enough
    assert_close(model(IDS).logits, before)
    unmerge_lora(model)
    assert_close(model(IDS).logits, before)
    of_plain = dict(plain.named_parameters())
    for path, layer in adapted_layers(model).items():
        assert_close(layer.weight, of_plain[f"{path}.weight"])
    drop_lora(model)
    assert_close(model(IDS).logits, plain(IDS).logits)
    assert not adapted_layers(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("config", [None, TABLES], ids=["blocks", "tables"])
def test_a_merged_model_is_a_plain_one(tmp_path: Path, config: LoraConfig | None) -> None:
    model = adapted(config, **(UNTIED if config is TABLES else {}))
    before = model(IDS).logits
    merge_lora(model)
    drop_lora(model)
    model.save_pretrained(tmp_path)
    assert_close(GPT2LMHeadModel.from_pretrained(tmp_path)(IDS).logits, before)


def test_dropout_acts_in_training_only() -> None:
    model = adapted(LoraConfig(lora_dropout=0.5))
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("config", [None, TABLES], ids=["blocks", "tables"])
def test_adapted_models_pickle_copy_and_generate(config: LoraConfig | None) -> None:
    model = adapted(config, **(UNTIED if config is TABLES else {}))
    expected = model.generate(IDS, max_new_tokens=3)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(IDS).logits, model(IDS).logits)
        assert torch.equal(twin.generate(IDS, max_new_tokens=3), expected)


def test_adapters_of_embeddings_go_to_a_file_and_back(tmp_path: Path) -> None:
    model = adapted(TABLES, **UNTIED)
    save_lora(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.transformer.wte.lora_embedding_A"  # as PEFT names it
    assert tensors[name].shape == (3, len(model.transformer.wte.weight))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["c_attn", "lm_head", "wpe", "wte"]
    twin = tiny_model(**UNTIED)
    assert load_lora(twin, tmp_path) == list(adapted_layers(model))
    assert torch.equal(twin(IDS).logits, model(IDS).logits)

    def refused(words: str, **overrides: Any) -> None:
        other = tiny_model(**overrides)
        with pytest.raises((StateDictError, ArgumentError), match=words):
            load_lora(other, tmp_path)
        assert not adapted_layers(other)

    refused("lm_head is tied to transformer.wte.weight")
    refused(r"wpe.lora_embedding_A is \(3, \d+\) in .*; \(3, 8\) in the", n_positions=8, **UNTIED)
    save_file(
        {n: t for n, t in tensors.items() if n != name}, tmp_path / "adapter_model.safetensors"
    )
    refused("transformer.wte.lora_embedding_A is missing", **UNTIED)


def test_weights_of_the_base_model_in_a_file_must_be_the_models_own(tmp_path: Path) -> None:
    # PEFT writes them where lm_head is adapted, and with save_embedding_layers=True.
    model = adapted(TABLES, **UNTIED)
    save_lora(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)

    def load(name: str, weight: torch.Tensor) -> GPT2LMHeadModel:
        save_file({**tensors, f"base_model.model.{name}": weight.clone()}, file)
        twin = tiny_model(**UNTIED)
        try:
            load_lora(twin, tmp_path)
        except StateDictError:
            assert not adapted_layers(twin)
            raise
        return twin

    head, table = model.lm_head.weight.detach(), model.transformer.wte.weight.detach()
    for name in ("lm_head.base_layer.weight", "lm_head.weight"):
        twin = load(name, head)
        assert torch.equal(twin(IDS).logits, model(IDS).logits)
        assert not twin.lm_head.weight.requires_grad
        for other in (head + 1e-6, head[1:]):
            with pytest.raises(StateDictError, match=rf"'{name}', .* differs .* lm_head.weight, "):
                load(name, other)
    load("transformer.wte.base_layer.weight", table)
    with pytest.raises(StateDictError, match=r"wte.base_layer.weight', a weight of the base model"):
        load("transformer.wte.base_layer.weight", table * 2)
    with pytest.raises(StateDictError, match=r"'score.weight', which is no adapter's, not of mod"):
        load("score.weight", head)


@pytest.mark.parametrize("targets", [["c_attn"], ["attn.c_proj"], "all-linear"])
def test_adapters_go_to_a_file_and_back(tmp_path: Path, targets: Any) -> None:
    model = adapted(LoraConfig(r=3, lora_alpha=5, target_modules=targets))
    save_lora(model, tmp_path)
    twin = tiny_model()
    assert load_lora(twin, tmp_path) == list(adapted_layers(model))
    assert torch.equal(twin(IDS).logits, model(IDS).logits)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    leaves = {"c_attn", "c_fc", "c_proj"} if targets == "all-linear" else {"c_attn"}
    # c_proj would name the other c_proj, too
    assert set(names) == leaves or all(name.endswith(".attn.c_proj") for name in names)


def test_a_fresh_head_is_trained_and_saved_as_a_whole(tmp_path: Path) -> None:
    model = tiny_model(GPT2ForSequenceClassification, num_labels=3)
    add_lora(model, LoraConfig(modules_to_save=["score"]))
    with torch.no_grad():
        model.score.weight.normal_()
    save_lora(model, tmp_path)
    assert "base_model.model.score.weight" in load_file(tmp_path / "adapter_model.safetensors")
    twin = tiny_model(GPT2ForSequenceClassification, num_labels=3)
    load_lora(twin, tmp_path)
    assert torch.equal(twin(IDS).logits, model(IDS).logits)
    assert twin.score.weight.requires_grad


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target_modules": ["lm_head"]}, "lm_head is tied to transformer.wte.weight"),
        ({"target_modules": ["wte"]}, "transformer.wte is tied to lm_head.weight"),
        ({"target_modules": ["ln_f"]}, "ln_f is a LayerNorm; LoRA adapts linear layers"),
        ({"target_modules": ["q_proj"]}, "no module whose path ends in 'q_proj'"),
        ({"target_modules": "c_attn"}, "must be a list of names"),
        ({"modules_to_save": ["ln_1"]}, "lies in the blocks"),
        ({"modules_to_save": ["transformer"]}, "or holds them"),
        ({"modules_to_save": ["drop"]}, "transformer.drop has no parameters"),
        ({"modules_to_save": ["lm_head"]}, "lm_head is tied to transformer.wte.weight"),
        ({"modules_to_save": ["wte"]}, "wte is tied to lm_head.weight"),
        ({"modules_to_save": ["score"]}, "no module whose path ends in 'score'"),
        ({"modules_to_save": "score"}, "must be lists of names"),
        ({"modules_to_save": [1]}, "must be lists of names"),
        ({"r": 0}, "r must be a whole number"),
        ({"r": True}, "r must be a whole number"),
        ({"lora_alpha": 0}, "lora_alpha must be a number from 1e-06"),
        ({"lora_dropout": 1.5}, "lora_dropout must be a number from 0 to 1"),
        ({"target_modules": []}, "not empty"),
        ({"target_modules": [""]}, "must be lists of names"),
        ({"target_modules": 5}, "must be lists of names"),
    ],
)
def test_targets_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match=words):
        add_lora(model, LoraConfig(**settings))
    assert not adapted_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_no_model_or_no_config_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="one of gpt2's, not a Sequential"):
        add_lora(torch.nn.Sequential(tiny_model()))  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="one of gpt2's, not a str"):
        load_lora("model", "adapter")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="config must be a LoraConfig, not a dict"):
        add_lora(tiny_model(), {"r": 8})  # type: ignore[arg-type]
    for change in (merge_lora, unmerge_lora, drop_lora):
        with pytest.raises(ArgumentError, match="has no adapters; add_lora or load_lora"):
            change(tiny_model())
        with pytest.raises(ArgumentTypeError, match="a torch module, not a str"):
            change("model")  # type: ignore[arg-type]
    both = {"target_modules": ["score"], "modules_to_save": ["score"]}
    with pytest.raises(ArgumentError, match="score is named in target_modules and in modules_to"):
        add_lora(tiny_model(GPT2ForSequenceClassification), LoraConfig(**both))


def test_an_untied_head_can_be_adapted() -> None:
    model = tiny_model(tie_word_embeddings=False)
    assert add_lora(model, LoraConfig(target_modules=["lm_head"])) == ["lm_head"]
    with pytest.raises(ArgumentError, match="has adapters already"):
        add_lora(model)


def test_files_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    save_lora(adapted(LoraConfig(r=2)), tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    settings, tensors = json.loads(config.read_text()), load_file(weights)
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"

    def refused(error: type[Exception], words: str, model: Any = None) -> None:
        model = model or tiny_model()
        with pytest.raises(error, match=words):
            load_lora(model, tmp_path)
        assert not adapted_layers(model)

    refused(StateDictError, r"lora_A.weight is \(2, 32\).*\(2, 16\) in the", tiny_model(n_embd=16))
    for field, value in (
        ("peft_type", "IA3"), ("use_dora", True), ("use_rslora", True), ("use_qalora", True),
        ("bias", "all"), ("rank_pattern", {"c_fc": 4}), ("init_lora_weights", "pissa_niter_4"),
    ):  # fmt: skip
        config.write_text(json.dumps({**settings, field: value}))
        refused(FileFormatError, f"{field} is {re.escape(repr(value))}; only plain LoRA")
    config.write_text(json.dumps({**settings, "use_tomorrows_kind": {"a": 1}}))
    refused(FileFormatError, "use_tomorrows_kind is {'a': 1}, which this library does not know")
    for field in ("target_modules", "modules_to_save"):
        config.write_text(json.dumps({**settings, field: [5]}))
        refused(FileFormatError, rf"{field} is \[5\]; it must be a list of names, or null")
    config.write_text(json.dumps({**settings, "target_modules": ["c_fc"]}))
    refused(FileFormatError, r"target_modules is \['c_fc'\], but .* adapts transformer.h.0.attn")
    config.write_text(json.dumps({**settings, "modules_to_save": ["ln_f"]}))
    refused(StateDictError, "modules_to_save names 'ln_f', of which .* holds nothing")
    config.write_text(json.dumps({**settings, "r": 3}))
    refused(StateDictError, r"\(2, 32\) in adapter_model.safetensors; \(3, 32\) in the model")
    config.write_text(json.dumps({**settings, "r": "many"}))
    refused(FileFormatError, "adapter_config.json: r must be")
    config.write_text(json.dumps(settings))
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    refused(StateDictError, "lora_A.weight is missing")
    save_file(
        {**tensors, "base_model.model.transformer.h.7.x.lora_A.weight": tensors[name].clone()},
        weights,
    )
    refused(StateDictError, "'transformer.h.7.x', which GPT2LMHeadModel does not have")
    save_file({k: (v * 100).int() for k, v in tensors.items()}, weights)
    refused(StateDictError, "has the dtype torch.int32")
    with pytest.raises(ArgumentError, match="has adapters already"):
        load_lora(adapted(), tmp_path)
    save_file({"lora_A": tensors[name]}, weights)
    refused(StateDictError, "does not begin with base_model.model.")


def test_what_cannot_be_saved_says_why(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(ArgumentError, match="no adapters to save"):
        save_lora(model, tmp_path)
    model = adapted()
    merge_lora(model)
    with pytest.raises(ArgumentError, match="unmerge_lora them first"):
        save_lora(model, tmp_path)
    assert not list(tmp_path.iterdir())
