"""The layouts that have GPT-2's own names: Hugging Face's, nanoGPT's, minGPT's, and ours.

They differ in the orientation of the blocks' projections (Hugging Face keeps those of a layer
called Conv1D, stored [in, out]; the rest have ``nn.Linear``'s [out, in]), in what they leave out,
and in what their programs compute.
"""

from __future__ import annotations

import re

from gpt2.checkpoints.layouts import Fill, Layout, Row

_PROJECTIONS = (
    "attn.c_attn",  # stored [D, 3D] as Conv1D
    "attn.c_proj",  # [D, D]: its shape never tells its orientation
    "mlp.c_fc",  # [D, F]
    "mlp.c_proj",  # [F, D]
    "crossattention.c_attn",  # [D, 2D]
    "crossattention.q_attn",  # [D, D]
    "crossattention.c_proj",  # [D, D]
)
_NORMS = ("h.{n}.ln_1", "h.{n}.ln_2", "h.{n}.ln_cross_attn", "ln_f")

# The causal mask and its fill value, which early versions saved with the weights.
_MASKS = tuple(
    f"h.{{n}}.{module}.{buffer}"
    for module in ("attn", "crossattention")
    for buffer in ("bias", "masked_bias")
)


def _rows(*, conv1d: bool) -> tuple[Row, ...]:
    weights = {"wte.weight": False, "wpe.weight": False}
    weights |= {f"{norm}.{leaf}": False for norm in _NORMS for leaf in ("weight", "bias")}
    for module in _PROJECTIONS:
        weights |= {f"h.{{n}}.{module}.weight": conv1d, f"h.{{n}}.{module}.bias": False}
    return tuple(Row(name, name, transposed=turned) for name, turned in weights.items())


HUGGING_FACE = Layout(
    name="huggingface",
    rows=_rows(conv1d=True),
    ignored=_MASKS,
    older={
        # pytorch-pretrained-bert, 2019
        "lm_head.decoder.weight": "lm_head.weight",
        "multiple_choice_head.linear.weight": "multiple_choice_head.summary.weight",
        "multiple_choice_head.linear.bias": "multiple_choice_head.summary.bias",
        # The endings of the first converted files, and those of layer norms once.
        ".g": ".weight",
        ".w": ".weight",
        ".b": ".bias",
        ".gamma": ".weight",
        ".beta": ".bias",
    },
)
"""Hugging Face's GPT-2, of all eras. Cerebras-GPT, CodeParrot, DialoGPT and DialogRPT have it too:
what is theirs stands in config.json."""

LINEAR = Layout(name="linear", rows=_rows(conv1d=False), ignored=_MASKS)
"""Our own state dict: Hugging Face's names, ``nn.Linear``'s orientation."""

_SMALL = {
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
}

NANOGPT = Layout(
    name="nanogpt",
    rows=_rows(conv1d=False),
    bare_prefix="transformer.",
    ignored=_MASKS,
    fills=(
        Fill(
            re.compile(r"(h\.\d+\.(ln_[12]|attn\.c_\w+|mlp\.c_\w+)|ln_f)\.bias"),
            0.0,
            "the checkpoint is of a model without biases (bias=False)",
        ),
    ),
    # gelu is what it computes; gelu_new is how GPT-2's own weights, which it can start from, want
    # to be computed.
    fixed=_SMALL | {"activation_function": ("gelu", "gelu_new"), "tie_word_embeddings": (True,)},
    heads=("lm_head.weight",),
    file="ckpt.pt",
)
"""github.com/karpathy/nanoGPT: ckpt.pt has the weights under ``model``, the sizes under
``model_args``."""

MINGPT = Layout(
    name="mingpt",
    rows=_rows(conv1d=False),
    bare_prefix="transformer.",
    ignored=_MASKS,
    fixed=_SMALL | {"activation_function": ("gelu_new",)},
    heads=("lm_head.weight",),
    file="model.pt",
)
"""github.com/karpathy/minGPT: model.pt, a bare state dict; the head is not tied."""
