"""Writes the golden files: what transformers 4.48.3 gives for what later releases dropped.

Run from the root of the repository, where transformers 4.48.3 is installed:

    python tests/golden/make_golden.py

It writes models/ (tiny random GPT-2s) and cases/ beside itself; one case is one
safetensors file with the inputs, the expected tensors, and in its metadata the
versions and the arguments. tests/golden/test_golden.py reads them and needs no
transformers. To add a case, add an entry to FORWARDS or GENERATIONS.

Always eager attention: the fused path of that release ignores the scale flags.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

VERSION = "4.48.3"
HERE = Path(__file__).parent
B, T, H, L, D, V = 2, 7, 4, 2, 16, 61

SIZES: dict[str, Any] = {
    "vocab_size": V, "n_positions": 24, "n_embd": D, "n_layer": L, "n_head": H,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0,
    "bos_token_id": 60, "eos_token_id": 60,
}  # fmt: skip
# directory of the model -> config fields besides SIZES
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cross": {"add_cross_attention": True, "n_layer": 1},
    "pruned": {},
}
PRUNED_HEADS = {0: [1], 1: [0, 3]}
# The parameters whose gradients a case keeps
GRADIENTS = ("h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight", "h.0.ln_1.weight")


def ids(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, V - 1, shape, generator=torch.Generator().manual_seed(seed))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IDS = ids(1, B, T)
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
LEFT_POSITIONS = (LEFT.cumsum(-1) - 1).clamp(min=0)
LEFT_LABELS = IDS.masked_fill(LEFT == 0, -100)
LEFT_LABELS[0, 2] = -100  # its source is padding
PER_HEAD = torch.tensor([1.0, 0.0, 0.5, 1.0])
PER_LAYER = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, -0.3]])
PADDED = {
    "input_ids": IDS, "attention_mask": LEFT, "position_ids": LEFT_POSITIONS,
    "labels": LEFT_LABELS,
}  # fmt: skip
PADDED_PROMPT = {
    "input_ids": IDS.masked_fill(LEFT == 0, 60), "attention_mask": LEFT,
    "position_ids": LEFT_POSITIONS,
}  # fmt: skip
LABELLED = {"input_ids": IDS, "labels": IDS}
ALL_SCALES = {
    "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
}
# 3 columns of keys and values for 2 layers, as the tuple that the old API takes
PAST = {
    f"past_key_values.{layer}.{part}": 0.5 * normal(10 + 2 * layer + part, B, H, 3, D // H)
    for layer in range(L)
    for part in (0, 1)
}
ENCODER = {
    "encoder_hidden_states": normal(20, B, 4, D),
    "encoder_attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]),
}


@dataclass(frozen=True)
class Forward:
    """A forward pass; labels among the inputs ask for loss and gradients.

    A head that is not in the model's file gets random weights, kept with the case.
    """

    inputs: Mapping[str, Tensor]
    model: str = "plain"
    cls: str = "GPT2LMHeadModel"
    config: Mapping[str, Any] = field(default_factory=dict)
    attentions: bool = False


@dataclass(frozen=True)
class Generation:
    """A call of generate, under torch.manual_seed(0)."""

    settings: Mapping[str, Any]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    model: str = "plain"


FORWARDS: dict[str, Forward] = {
    "plain": Forward(LABELLED, attentions=True),
    "padded": Forward(PADDED),
    "scales": Forward(LABELLED, config=ALL_SCALES),
    "head-mask": Forward({**LABELLED, "head_mask": PER_HEAD}, attentions=True),
    "head-mask-layers": Forward({**LABELLED, "head_mask": PER_LAYER}, attentions=True),
    "head-mask-padded": Forward({**PADDED, "head_mask": PER_LAYER}),
    "head-mask-scales": Forward({**LABELLED, "head_mask": PER_LAYER}, config=ALL_SCALES),
    "head-mask-cross": Forward(
        {**LABELLED, **ENCODER, "head_mask": PER_HEAD}, model="cross", attentions=True
    ),
    "legacy-past": Forward({"input_ids": IDS[:, :4], **PAST}, attentions=True),
    "legacy-past-padded": Forward(
        {"input_ids": IDS[:, :4], "attention_mask": LEFT, "position_ids": LEFT_POSITIONS[:, 3:],
         **PAST}
    ),
    "legacy-past-head-mask": Forward({"input_ids": IDS[:, :1], "head_mask": PER_LAYER, **PAST}),
    "head-mask-sequence": Forward(
        {**PADDED_PROMPT, "labels": torch.tensor([1, 0]), "head_mask": PER_LAYER},
        config={"pad_token_id": 60},
        cls="GPT2ForSequenceClassification",
    ),
    "head-mask-tokens": Forward(
        {**PADDED_PROMPT, "labels": (IDS % 2).masked_fill(LEFT == 0, -100), "head_mask": PER_HEAD},
        cls="GPT2ForTokenClassification",
    ),
    "head-mask-span": Forward(
        {"input_ids": IDS, "start_positions": torch.tensor([1, 3]),
         "end_positions": torch.tensor([2, 6]), "head_mask": PER_LAYER},
        cls="GPT2ForQuestionAnswering",
    ),
    "head-mask-choices": Forward(
        {"input_ids": torch.stack([IDS, IDS.flip(1)], 1), "mc_labels": torch.tensor([1, 0]),
         "mc_token_ids": torch.tensor([[6, 3], [2, 6]]),
         "labels": torch.stack([IDS, IDS.flip(1)], 1), "head_mask": PER_LAYER},
        cls="GPT2DoubleHeadsModel",
    ),
    "pruned": Forward(LABELLED, model="pruned", attentions=True),
    "pruned-padded": Forward(PADDED, model="pruned"),
    "pruned-scales": Forward(LABELLED, model="pruned", config=ALL_SCALES),
}  # fmt: skip

PROMPT = {"input_ids": ids(2, 3, 4), "attention_mask": torch.ones(3, 4, dtype=torch.long)}
LEFT_PROMPT = {"input_ids": IDS, "attention_mask": LEFT}
SAMPLE = {"do_sample": True, "max_new_tokens": 10}
GENERATIONS: dict[str, Generation] = {
    "greedy": Generation({"max_new_tokens": 16}, PROMPT),
    "greedy-padded": Generation({"max_new_tokens": 12}, LEFT_PROMPT),
    "greedy-pruned": Generation({"max_new_tokens": 12}, LEFT_PROMPT, model="pruned"),
    "greedy-promptless": Generation({"max_new_tokens": 12}),
    "sampled": Generation(SAMPLE, PROMPT),
    "sampled-top-k": Generation({**SAMPLE, "temperature": 0.7, "top_k": 5}, PROMPT),
    "sampled-top-p": Generation(
        {**SAMPLE, "temperature": 1.6, "top_k": 0, "top_p": 0.8, "num_return_sequences": 2},
        LEFT_PROMPT,
    ),
    "sampled-eos": Generation(
        {**SAMPLE, "eos_token_id": list(range(8)), "pad_token_id": 9}, LEFT_PROMPT
    ),
}


def make_model(name: str, seed: int) -> Any:
    config = transformers.GPT2Config(**{**SIZES, **MODELS[name]}, attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_weight = parameter.dim() == 1 and parameter_name.endswith("weight")
            parameter.copy_(0.25 * noise + float(is_norm_weight))
    if name == "pruned":
        model.prune_heads(PRUNED_HEADS)
    model.save_pretrained(HERE / "models" / name)
    return model


def load(name: str, config: Mapping[str, Any], cls: str = "GPT2LMHeadModel") -> Any:
    model, info = getattr(transformers, cls).from_pretrained(
        HERE / "models" / name, attn_implementation="eager", local_files_only=True,
        output_loading_info=True, **config,
    )  # fmt: skip
    with torch.no_grad():
        for seed, new in enumerate(sorted(info["missing_keys"])):
            if new != "lm_head.weight":  # tied
                model.get_parameter(new).copy_(normal(50 + seed, *model.get_parameter(new).shape))
    return model.eval()


def head_weights(model: Any) -> dict[str, Tensor]:
    """The parameters beside the core's and the tied head's."""
    return {
        f"head/{name}": parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(("transformer.", "lm_head."))
    }


def nested_past(inputs: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...] | None:
    past = [t for name, t in inputs.items() if name.startswith("past_key_values.")]
    return tuple(zip(past[::2], past[1::2], strict=True)) or None


def run_forward(case: Forward) -> dict[str, Tensor]:
    """Expected tensors by name; a gradient's name is gradient/ and the parameter or input."""
    model = load(case.model, case.config, case.cls)
    inputs = {k: v.clone() for k, v in case.inputs.items() if not k.startswith("past_")}
    past = nested_past(case.inputs)
    floating = {k: v for k, v in inputs.items() if v.is_floating_point()}
    labelled = bool(inputs.keys() & {"labels", "start_positions"})
    if labelled:
        for tensor in floating.values():
            tensor.requires_grad_()
    cached = {"past_key_values": past, "use_cache": True} if past is not None else {}
    output = model(**inputs, **cached, output_attentions=case.attentions, output_hidden_states=True)
    expected = head_weights(model) | {"last_hidden_state": output.hidden_states[-1]}
    for name in ("logits", "mc_logits", "start_logits", "end_logits"):
        if name in output:
            expected[name] = output[name]
    for name in ("attentions", "cross_attentions"):
        for layer, weights in enumerate(getattr(output, name, None) or ()):
            expected[f"{name}.{layer}"] = weights
    if past is not None:
        for layer, pair in enumerate(output.past_key_values):
            for part, tensor in enumerate(pair):
                expected[f"past_key_values.{layer}.{part}"] = tensor
    if labelled:
        expected["loss"] = output.loss
        if "mc_loss" in output:
            expected["mc_loss"] = output.mc_loss
        sum(output[name] for name in ("loss", "mc_loss") if name in output).backward()
        conv1d = transformers.pytorch_utils.Conv1D
        for name in GRADIENTS:
            parameter = model.transformer.get_parameter(name)
            module = model.transformer.get_submodule(name.rpartition(".")[0])
            turned = isinstance(module, conv1d)  # stored [in, out]; ours is [out, in]
            gradient = parameter.grad.t() if turned else parameter.grad
            expected[f"gradient/transformer.{name}"] = gradient
        expected |= {f"gradient/{name}": tensor.grad for name, tensor in floating.items()}
    return expected


def run_generation(case: Generation) -> dict[str, Tensor]:
    """The ids, and the first numbers that sampling draws: they tell one generator from another."""
    model = load(case.model, {})
    torch.manual_seed(0)
    expected = {"ids": model.generate(**case.inputs, **case.settings)}
    if case.settings.get("do_sample"):
        torch.manual_seed(0)
        expected["noise"] = torch.empty(B, V).exponential_(1)
    return expected


def write(
    name: str, inputs: Mapping[str, Tensor], expected: Mapping[str, Tensor], about: dict[str, Any]
) -> None:
    tensors = {f"input/{k}": v for k, v in inputs.items()}
    tensors |= {k if k.startswith("head/") else f"expected/{k}": v for k, v in expected.items()}
    about = {"transformers": VERSION, "torch": torch.__version__, **about}
    save_file(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()},
        HERE / "cases" / f"{name}.safetensors",
        # one entry only: safetensors writes several in any order, and the file would differ
        metadata={"about": json.dumps(about, sort_keys=True)},
    )


def main() -> None:
    if transformers.__version__ != VERSION:
        sys.exit(
            f"the golden files are made by transformers {VERSION}, which still has head_mask, "
            f"prune_heads and tuple caches; this is {transformers.__version__}. "
            f"Install transformers=={VERSION}."
        )
    for folder in ("models", "cases"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
    for seed, name in enumerate(MODELS):
        make_model(name, seed)
    for name, forward in FORWARDS.items():
        about = {"model": forward.model, "config": dict(forward.config), "cls": forward.cls}
        about["attentions"] = forward.attentions
        write(f"forward-{name}", forward.inputs, run_forward(forward), about)
    for name, generation in GENERATIONS.items():
        about = {"model": generation.model, "settings": dict(generation.settings)}
        write(f"generate-{name}", generation.inputs, run_generation(generation), about)
    size = sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file())
    print(f"{len(FORWARDS) + len(GENERATIONS)} cases, {size / 1000:.0f} KB with the models")


if __name__ == "__main__":
    main()
