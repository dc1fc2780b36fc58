"""PEFT on our models: adapters train, save, merge and generate; prompt learning trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel
from gpt2.errors import ArgumentError
from tests.helpers import assert_close, tiny_model

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # PEFT's own and transformers'
]
peft = pytest.importorskip("peft")

IDS = torch.randint(0, 96, (2, 6), generator=torch.Generator().manual_seed(1))
LEFT = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
TARGETS = ["c_attn", "c_proj", "c_fc"]
ADAPTERS = {
    "LoRA": lambda: peft.LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, r=2),
    "DoRA": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["c_attn"], r=2, use_dora=True
    ),
    "IA3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=TARGETS, feedforward_modules=["c_fc"]
    ),
}


def generate(model: Any, **more: Any) -> Tensor:
    ids = model.generate(input_ids=IDS, max_new_tokens=6, eos_token_id=None, **more)
    assert isinstance(ids, Tensor)
    return ids


def trained(model: Any) -> Any:
    """After one large step of its adapters."""
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model.eval()


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_generate_save_and_merge(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = generate(tiny_model())
    model = peft.get_peft_model(tiny_model(), ADAPTERS[kind]())
    assert torch.equal(generate(model), plain)  # adapters begin as nothing
    trained(model)
    logits, ids = model(input_ids=IDS).logits, generate(model)
    assert not torch.equal(ids, plain)
    padded = model.generate(
        input_ids=IDS, attention_mask=LEFT, max_new_tokens=4, num_beams=2, eos_token_id=None
    )
    assert padded.shape == (2, 10)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    assert_close(again(input_ids=IDS).logits, logits)
    assert torch.equal(generate(again), ids)
    merged = again.merge_and_unload()
    assert isinstance(merged, GPT2LMHeadModel)
    assert_close(merged(IDS).logits, logits, 1e-4)
    merged.save_pretrained(tmp_path / "merged")
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded(IDS).logits, merged(IDS).logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},  # of models that PEFT does not know: lm_head as well
        {"target_modules": ["c_attn", "wte"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    ],
    ids=["head", "embedding", "copy of the head", "copy of the embedding"],
)
def test_adapters_around_a_tied_weight(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, **settings)
    model = trained(peft.get_peft_model(tiny_model(), config)).to(torch.float32)
    logits = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    assert_close(again(input_ids=IDS).logits, logits)
    assert torch.equal(generate(again), generate(model))


@pytest.mark.parametrize("reentrant", [False, True])
def test_adapters_with_recomputed_blocks(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model(), ADAPTERS["LoRA"]())
    trained(model).train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    expected = gradients()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for mine, theirs in zip(gradients(), expected, strict=True):
        assert_close(mine, theirs)


def test_adapters_of_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"], r=2)
    model = peft.get_peft_model(tiny_model(GPT2ForSequenceClassification, num_labels=3), config)
    model(input_ids=IDS, labels=torch.tensor([0, 2])).loss.backward()
    model.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        tiny_model(GPT2ForSequenceClassification, num_labels=3), tmp_path / "adapter"
    )
    assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize(
    "kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"]
)
def test_prompt_learning_trains_and_its_generate_is_refused_by_name(kind: str) -> None:
    torch.manual_seed(0)
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny_model(), config)
    loss = model(input_ids=IDS, attention_mask=LEFT, labels=IDS).loss
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert grads
    assert all(g is not None and g.abs().max() > 0 for g in grads)
    with pytest.raises(ArgumentError, match=r"prepare_inputs_for_generation.*prompt learning"):
        generate(model)
    base = model.get_base_model()  # which is itself again afterwards
    assert torch.equal(generate(base), generate(tiny_model()))
