"""Adapters go to and fro between this library and peft, on our models and on transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel
from gpt2.training.adapterfiles import WEIGHTS_NAME, load_lora, save_lora
from gpt2.training.lora import LoraConfig, LoraLinear, adapted_layers, add_lora
from tests.helpers import assert_close, tiny_model

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.parity,
    # peft says that it sets fan_in_fan_out itself, and that a local model has no card
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
IDS = torch.arange(14).view(2, 7)
CONFIGS = [
    LoraConfig(r=4, lora_alpha=6),
    LoraConfig(r=2, target_modules=["c_attn", "c_fc", "c_proj"]),
    LoraConfig(r=3, target_modules=["attn.c_proj"]),
]
LABELS = {"num_labels": 3, "pad_token_id": 0}
# Where the embedding is free: no head over the vocabulary, or one of its own.
TABLES = [
    (GPT2ForSequenceClassification, LABELS, ["wte", "wpe", "c_attn"]),
    (GPT2LMHeadModel, {"tie_word_embeddings": False}, ["wte", "mlp.c_fc", "lm_head"]),
]


def ours(config: LoraConfig | None = None, cls: Any = GPT2LMHeadModel, **settings: Any) -> Any:
    model = tiny_model(cls, **settings)
    if config is not None:
        add_lora(model, config)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for layer in adapted_layers(model).values():
                linear = isinstance(layer, LoraLinear)
                zeros = layer.lora_B.weight if linear else layer.lora_embedding_A
                zeros.normal_(std=0.3, generator=generator)
    return model


def theirs(folder: Path, cls: str = "GPT2LMHeadModel", **settings: Any) -> Any:
    """The same weights in transformers' class."""
    ours(cls=globals()[cls], **settings).save_pretrained(folder)
    return getattr(transformers, cls).from_pretrained(folder).eval()


@pytest.mark.parametrize("config", CONFIGS)
def test_our_adapter_loads_in_peft(tmp_path: Path, config: LoraConfig) -> None:
    model = ours(config)
    save_lora(model, tmp_path / "adapter")
    expected = model(IDS).logits
    for base in (theirs(tmp_path / "base"), ours()):
        twin = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert_close(twin(IDS).logits, expected)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("base", ["ours", "theirs"])
def test_peft_s_adapter_loads_here(tmp_path: Path, config: LoraConfig, base: str) -> None:
    model = ours() if base == "ours" else theirs(tmp_path / "base")
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )
    adapted = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    twin = ours()
    load_lora(twin, tmp_path / "adapter")
    assert_close(twin(IDS).logits, adapted(IDS).logits)


@pytest.mark.parametrize(("cls", "settings", "targets"), TABLES, ids=["classifier", "head"])
def test_adapters_of_embeddings_go_both_ways(
    tmp_path: Path, cls: Any, settings: dict[str, Any], targets: list[str]
) -> None:
    whole = ["score"] if cls is GPT2ForSequenceClassification else []
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, modules_to_save=whole)
    model = ours(config, cls, **settings)
    save_lora(model, tmp_path / "adapter")
    for base in (theirs(tmp_path / "base", cls.__name__, **settings), ours(cls=cls, **settings)):
        twin = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert_close(twin(IDS).logits, model(IDS).logits)
        # "auto" writes the base weight where lm_head is adapted, True that of wte as well
        for how in ("auto", True):
            twin.save_pretrained(tmp_path / str(how), save_embedding_layers=how)
            again = ours(cls=cls, **settings)
            load_lora(again, tmp_path / str(how))
            assert_close(again(IDS).logits, model(IDS).logits)
            of_base = [
                n for n in load_file(tmp_path / str(how) / WEIGHTS_NAME) if "base_layer" in n
            ]
            if how is True or "lm_head" in targets:
                assert of_base
        merged = twin.merge_and_unload()
        assert_close(merged(IDS).logits, model(IDS).logits)


def test_a_fresh_adapter_of_an_embedding_is_as_pefts() -> None:
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=16, target_modules=["wte"])
    theirs_ = peft.get_peft_model(ours(cls=GPT2ForSequenceClassification), settings)
    mine = ours(cls=GPT2ForSequenceClassification)
    add_lora(mine, LoraConfig(r=16, target_modules=["wte"]))
    of_peft = theirs_.base_model.model.transformer.wte
    for half in ("lora_embedding_A", "lora_embedding_B"):
        peft_s, own = getattr(of_peft, half)["default"], getattr(mine.transformer.wte, half)
        assert (own.shape, own.dtype) == (peft_s.shape, peft_s.dtype)
        for found, expected in ((own.mean(), peft_s.mean()), (own.std(), peft_s.std())):
            assert abs(found - expected) < 0.2  # of 512 numbers from N(0, 1), or 0


def test_a_fresh_head_goes_both_ways(tmp_path: Path) -> None:
    name, labels = "GPT2ForSequenceClassification", LABELS
    model = ours(LoraConfig(modules_to_save=["score"]), GPT2ForSequenceClassification, **labels)
    with torch.no_grad():
        model.score.weight.mul_(2)
    save_lora(model, tmp_path / "adapter")
    reference = peft.PeftModel.from_pretrained(
        theirs(tmp_path / "base", name, **labels), tmp_path / "adapter"
    ).eval()
    assert_close(reference(IDS).logits, model(IDS).logits)
    reference.save_pretrained(tmp_path / "back")
    twin = ours(cls=GPT2ForSequenceClassification, **labels)
    load_lora(twin, tmp_path / "back")
    assert_close(twin(IDS).logits, model(IDS).logits)


def test_peft_trains_our_model(tmp_path: Path) -> None:
    model = ours()
    settings = peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        loss = adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    new = adapted.eval().generate(input_ids=IDS, max_new_tokens=3)
    merged = adapted.merge_and_unload()
    assert torch.equal(merged.generate(IDS, max_new_tokens=3), new)
