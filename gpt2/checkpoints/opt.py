"""OPT: a GPT-2 with other names, q, k and v apart, ReLU, and positions that begin at 2.

The layer norms stand where GPT-2's stand, in all sizes but one: OPT-350m has them behind the
attention and the MLP, and projects its embeddings. That one is refused (arXiv:2205.01068, and
its published config.json).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gpt2.checkpoints.layouts import Fill, Layout, Row
from gpt2.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpt2.config import GPT2Config

MODEL_TYPE = "opt"

#: Rows of the table of positions before that of position 0. The first is never used, the second
#: only at padding.
POSITION_OFFSET = 2

_BLOCK = {
    "self_attn_layer_norm": "ln_1",
    "self_attn.out_proj": "attn.c_proj",
    "final_layer_norm": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}


def _rows() -> tuple[Row, ...]:
    rows = [
        Row("embed_tokens.weight", "wte.weight"),
        Row("embed_positions.weight", "wpe.weight", skipped=POSITION_OFFSET),
    ]
    for leaf in ("weight", "bias"):
        rows.append(Row(f"final_layer_norm.{leaf}", f"ln_f.{leaf}"))
        for part, letter in enumerate("qkv"):
            stored = f"layers.{{n}}.self_attn.{letter}_proj.{leaf}"
            rows.append(Row(stored, f"h.{{n}}.attn.c_attn.{leaf}", part=part, parts=3))
        for stored, ours in _BLOCK.items():
            rows.append(Row(f"layers.{{n}}.{stored}.{leaf}", f"h.{{n}}.{ours}.{leaf}"))
    return tuple(rows)


OPT = Layout(
    name="opt",
    rows=_rows(),
    prefixes=("model.decoder.", "decoder."),
    bare_prefix="decoder.",
    fills=(
        Fill(re.compile(r"h\.\d+\.(attn|mlp)\.\w+\.bias"), 0.0, "enable_bias is false"),
        Fill(
            re.compile(r"(h\.\d+\.ln_[12]|ln_f)\.weight"),
            1.0,
            "layer_norm_elementwise_affine is false",
        ),
        Fill(
            re.compile(r"(h\.\d+\.ln_[12]|ln_f)\.bias"),
            0.0,
            "layer_norm_elementwise_affine is false",
        ),
    ),
    fixed={
        "layer_norm_epsilon": (1e-5,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
        "embd_pdrop": (0.0,),
        "pruned_heads": ({},),
    },
)

# Their field -> (ours, their default): https://huggingface.co/docs/transformers/model_doc/opt
_FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 50272),
    "hidden_size": ("n_embd", 768),
    "num_hidden_layers": ("n_layer", 12),
    "num_attention_heads": ("n_head", 12),
    "ffn_dim": ("n_inner", 3072),
    "max_position_embeddings": ("n_positions", 2048),
    "activation_function": ("activation_function", "relu"),
    "dropout": ("resid_pdrop", 0.1),
    "attention_dropout": ("attn_pdrop", 0.0),
    "init_std": ("initializer_range", 0.02),
    "pad_token_id": ("pad_token_id", 1),
    "bos_token_id": ("bos_token_id", 2),
    "eos_token_id": ("eos_token_id", 2),
}
# Fields that GPT-2 has nothing for: the value at which they do nothing, and what another one does.
_WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "do_layer_norm_before": (
        True,
        "the layer norms stand behind attention and MLP, where GPT-2's stand before them",
    ),
    "_remove_final_layer_norm": (False, "there is no final layer norm, which GPT-2 always has"),
    "layerdrop": (0.0, "whole layers are dropped in training, which GPT-2 does not do"),
}
_BIASES = ("enable_bias", "layer_norm_elementwise_affine")  # the weights show it; see `OPT.fills`


def from_opt_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a GPT-2 config that computes what an OPT config describes.

    Raises:
        ConfigError: GPT-2 cannot compute it (OPT-350m); says which field and why.
    """
    rest = {name: value for name, value in content.items() if name != "model_type"}
    reasons = []
    for name, (harmless, otherwise) in _WITHOUT_EFFECT.items():
        value = rest.pop(name, harmless)
        if value != harmless:
            reasons.append(f"{name} is {value!r}: {otherwise}")
    width, projected = rest.get("hidden_size", 768), rest.pop("word_embed_proj_dim", None)
    if projected not in (None, width):
        reasons.append(
            f"word_embed_proj_dim is {projected!r} and hidden_size {width!r}: the embeddings are "
            "projected, where GPT-2's have the width of the blocks"
        )
    if reasons:
        raise ConfigError(
            f"this OPT cannot be computed as a GPT-2 (of the published ones, only OPT-350m is "
            f"such): {'; '.join(reasons)}"
        )
    for name in (*_BIASES, "architectures"):
        rest.pop(name, None)
    fields = {ours: rest.pop(name, default) for name, (ours, default) in _FIELDS.items()}
    return {**rest, **fields, "embd_pdrop": 0.0, "layer_norm_epsilon": 1e-5}


def to_opt_config(config: GPT2Config, architecture: str) -> dict[str, Any]:
    """The OPT config that describes what ours computes: `from_opt_config` backwards.

    ``architecture`` is our class's name. Fields that OPT cannot have are the caller's to refuse
    (`Layout.fixed`).
    """
    plain = config.to_dict()
    kept = (
        "id2label", "label2id", "problem_type", "tie_word_embeddings", "torch_dtype", "use_cache",
    )  # fmt: skip
    fields = {name: plain[ours] for name, (ours, _) in _FIELDS.items()}
    theirs = architecture.replace("GPT2LMHeadModel", "OPTForCausalLM").replace("GPT2", "OPT")
    return {
        **config.extra,
        **fields,
        **{name: plain[name] for name in kept if plain[name] is not None},
        "ffn_dim": config.inner_dim,
        "word_embed_proj_dim": config.n_embd,
        "do_layer_norm_before": True,
        "model_type": MODEL_TYPE,
        "architectures": [theirs],
    }
