"""Checkpoints as other programs write them, and what those programs compute from them.

All of it is written out by hand, so as not to trust the tables under test.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import GPT2Config, GPT2LMHeadModel

Tensors = dict[str, Tensor]


def without_biases(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The model with zeros for biases, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    return model


def nanogpt(model: GPT2LMHeadModel, *, bias: bool = True, **settings: Any) -> dict[str, Any]:
    """The content of nanoGPT's ckpt.pt, in the middle of a training."""
    weights = {k: v.clone() for k, v in model.state_dict().items() if bias or ".bias" not in k}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    c = model.config
    return {
        "model": weights,
        "optimizer": {
            "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(5)}},
            "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.95), "params": [0]}],
        },
        "model_args": {
            "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd,
            "block_size": c.n_positions, "bias": bias, "vocab_size": c.vocab_size,
            "dropout": 0.25,
        },
        "iter_num": 2000,
        "best_val_loss": torch.tensor(3.1),
        "config": {"init_from": "scratch", "dataset": "openwebtext", "compile": True, **settings},
    }  # fmt: skip


def mingpt(model: GPT2LMHeadModel) -> Tensors:
    """minGPT's model.pt: an untied head, and a mask in every block."""
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    weights.setdefault("lm_head.weight", weights["transformer.wte.weight"].clone())
    size = model.config.n_positions
    for n in range(model.config.n_layer):
        weights[f"transformer.h.{n}.attn.bias"] = torch.tril(torch.ones(size, size))[None, None]
    return weights


def opt(model: GPT2LMHeadModel, *, prefix: str = "model.decoder.") -> Tensors:
    """OPT's state dict; the rows before position 0 are noise that nothing may use."""
    ours = {k.removeprefix("transformer."): v for k, v in model.state_dict().items()}
    d = model.config.n_embd
    positions = torch.cat([torch.full((2, d), 99.0), ours["wpe.weight"]])
    stored = {"embed_tokens.weight": ours["wte.weight"], "embed_positions.weight": positions}
    for leaf in ("weight", "bias"):
        stored[f"final_layer_norm.{leaf}"] = ours[f"ln_f.{leaf}"]
        for n in range(model.config.n_layer):
            block = f"layers.{n}"
            fused = ours[f"h.{n}.attn.c_attn.{leaf}"]
            stored[f"{block}.self_attn.q_proj.{leaf}"] = fused[:d].clone()
            stored[f"{block}.self_attn.k_proj.{leaf}"] = fused[d : 2 * d].clone()
            stored[f"{block}.self_attn.v_proj.{leaf}"] = fused[2 * d :].clone()
            stored[f"{block}.self_attn.out_proj.{leaf}"] = ours[f"h.{n}.attn.c_proj.{leaf}"]
            stored[f"{block}.self_attn_layer_norm.{leaf}"] = ours[f"h.{n}.ln_1.{leaf}"]
            stored[f"{block}.fc1.{leaf}"] = ours[f"h.{n}.mlp.c_fc.{leaf}"]
            stored[f"{block}.fc2.{leaf}"] = ours[f"h.{n}.mlp.c_proj.{leaf}"]
            stored[f"{block}.final_layer_norm.{leaf}"] = ours[f"h.{n}.ln_2.{leaf}"]
    return {prefix + name: tensor for name, tensor in stored.items()}


def opt_config(config: GPT2Config) -> dict[str, Any]:
    """The config.json that describes the model as an OPT."""
    return {
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd, "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head, "ffn_dim": config.inner_dim,
        "max_position_embeddings": config.n_positions, "activation_function": "relu",
        "do_layer_norm_before": True, "word_embed_proj_dim": config.n_embd, "dropout": 0.1,
        "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0, "init_std": 0.02,
        "_remove_final_layer_norm": False, "bos_token_id": 2, "eos_token_id": 2,
        "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float32", "use_cache": True,
    }  # fmt: skip


def conv1d(model: GPT2LMHeadModel) -> Tensors:
    """Hugging Face's state dict."""
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    return {
        k: v.t().contiguous() if k.endswith(turned) else v for k, v in model.state_dict().items()
    }


def first_era(model: GPT2LMHeadModel) -> Tensors:
    """As pytorch-pretrained-bert had it in 2019: other endings, masks, and the head's old name."""
    stored: Tensors = {}
    for name, tensor in conv1d(model).items():
        norm = ".ln_" in name
        renamed = name.replace(".weight", ".g" if norm else ".w").replace(".bias", ".b")
        stored[renamed.removeprefix("transformer.")] = tensor
    for n in range(model.config.n_layer):
        stored[f"h.{n}.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    return stored | {"lm_head.decoder.weight": stored["wte.w"]}


def logits(weights: Tensors, ids: Tensor, n_head: int, activation: Any) -> Tensor:
    """What nanoGPT and minGPT compute for ids (T,), (T, V): read off their model.py's equations."""
    w = {k.removeprefix("transformer."): v for k, v in weights.items()}
    length = ids.shape[0]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    x = w["wte.weight"][ids] + w["wpe.weight"][:length]
    n = 0
    while f"h.{n}.ln_1.weight" in w:
        q, k, v = (
            part.view(length, n_head, -1).transpose(0, 1)
            for part in linear(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn").chunk(3, dim=-1)
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(k.shape[-1])
        future = torch.ones(length, length).triu(1).bool()
        attended = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        x = x + linear(attended.transpose(0, 1).reshape(length, -1), f"h.{n}.attn.c_proj")
        inner = activation(linear(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc"))
        x = x + linear(inner, f"h.{n}.mlp.c_proj")
        n += 1
    return F.linear(norm(x, "ln_f"), w["lm_head.weight"])
