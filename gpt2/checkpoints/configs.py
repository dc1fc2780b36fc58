"""The config of a checkpoint: from config.json, or from what a training program left instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt2.checkpoints.detect import detect_layout
from gpt2.checkpoints.gpt2_tables import MINGPT, NANOGPT
from gpt2.checkpoints.opt import MODEL_TYPE, from_opt_config
from gpt2.config import CONFIG_NAME, GPT2Config
from gpt2.errors import ConfigError, FileAccessError, StateDictError
from gpt2.storage.jsonfiles import read_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpt2.checkpoints.layouts import Layout, Shape
    from gpt2.checkpoints.weightfiles import WeightFiles

_END_OF_TEXT = 50256
_N_HEAD = ("n_head", "num_attention_heads")
# nanoGPT's name -> ours
_MODEL_ARGS = {
    "n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "block_size": "n_positions",
    "vocab_size": "vocab_size",
}  # fmt: skip


def read_config(
    weights: WeightFiles, overrides: Mapping[str, Any], *, look_inside: bool = True
) -> tuple[GPT2Config, list[str]]:
    """The config of a repository, with ``overrides`` on top, and what the report is to say of it.

    config.json decides; an OPT's is translated. Where there is none, nanoGPT's and minGPT's
    weight files tell the sizes: by ``model_args`` beside the weights, or by the shapes, and then
    ``n_head`` must be among the overrides. ``look_inside=False`` leaves the weight files closed.

    Raises:
        ConfigError: an impossible value; or config.json and the weights contradict each other.
        FileAccessError, FileFormatError: a file is missing or broken.
    """
    path = weights.repository.find(CONFIG_NAME)
    if path is None:
        if not look_inside:
            weights.repository.require(CONFIG_NAME)
        return _derived(weights, overrides)
    content = read_json_object(path)
    notes = []
    try:
        if content.get("model_type") == MODEL_TYPE:
            content = from_opt_config(content)
            notes.append("config.json describes an OPT; the config is that of the same GPT-2")
        config = GPT2Config.from_dict(content, **overrides)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if look_inside and not set(_N_HEAD) & overrides.keys():
        arguments = weights.container.get("model_args")
        inside = arguments.get("n_head") if isinstance(arguments, dict) else None
        if inside not in (None, config.n_head):  # shapes would not show it
            raise ConfigError(
                f"{path} has n_head {config.n_head}, but model_args in {weights.sources[0].label} "
                f"says {inside!r}; pass n_head=... to say which is right"
            )
    return config, notes


def ties_embeddings(weights: WeightFiles) -> bool:
    """Whether config.json makes the head over the vocabulary and the token embedding one tensor."""
    path = weights.repository.find(CONFIG_NAME)
    return path is not None and read_json_object(path).get("tie_word_embeddings", True) is True


def _derived(weights: WeightFiles, overrides: Mapping[str, Any]) -> tuple[GPT2Config, list[str]]:
    try:
        sources = weights.sources
    except FileAccessError:
        weights.repository.require(CONFIG_NAME)
        raise
    entries = {name: s for source in sources for name, s in source.entries.items()}
    layout = detect_layout(entries, weights.container)
    if layout not in (NANOGPT, MINGPT):
        weights.repository.require(CONFIG_NAME)
    shapes = {layout.to_ours(name).ours: stored.shape for name, stored in entries.items()}
    sizes = _sizes(shapes, sources[0].label)
    # What is asked for counts from the start: the config must be possible without n_head's default.
    fields = sizes | _model_args(weights.container)
    for name in _N_HEAD:
        fields["n_head"] = overrides.get(name, fields.get("n_head"))
    if fields["n_head"] is None:
        raise ConfigError(
            f"{sources[0].label} has no model_args, and the number of heads cannot be read from "
            "shapes: pass n_head=..., or put a config.json beside it"
        )
    activation, why = _activation(layout, weights.container)
    if sizes["vocab_size"] <= _END_OF_TEXT:
        fields |= {"bos_token_id": None, "eos_token_id": None}
    fields |= {"activation_function": activation, "tie_word_embeddings": layout is NANOGPT}
    notes = [f"without a config.json, the config is that of {layout.name}'s files"]
    if "activation_function" not in overrides:
        notes.append(f"activation_function is {activation!r}, {why}")
    if sizes["vocab_size"] == 50304:
        notes.append(
            "vocab_size 50304 is kept as stored, GPT-2's 50257 tokens and 47 rows that no token "
            "uses; model.resize_token_embeddings(50257) cuts them off"
        )
    try:
        return GPT2Config.from_dict(fields, **overrides), notes
    except ConfigError as error:
        raise ConfigError(f"{sources[0].label}: {error}") from None


def _sizes(shapes: Mapping[str, Shape], label: str) -> dict[str, Any]:
    """What shapes tell: all sizes but the number of heads."""
    try:
        vocab_size, n_embd = shapes["wte.weight"]
        n_positions, _ = shapes["wpe.weight"]
        n_inner, _ = shapes["h.0.mlp.c_fc.weight"]
    except (KeyError, ValueError):
        raise StateDictError(
            f"{label}: without a config.json the sizes are read off wte.weight, wpe.weight and "
            "h.0.mlp.c_fc.weight, and not all of these are there as matrices"
        ) from None
    blocks = {name.split(".")[1] for name in shapes if name.endswith(".mlp.c_fc.weight")}
    return {
        "vocab_size": vocab_size,
        "n_positions": n_positions,
        "n_embd": n_embd,
        "n_layer": len(blocks),
        "n_inner": None if n_inner == 4 * n_embd else n_inner,
    }


def _model_args(container: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that nanoGPT's model_args name."""
    arguments = container.get("model_args")
    if not isinstance(arguments, dict):
        return {}
    fields = {ours: arguments[name] for name, ours in _MODEL_ARGS.items() if name in arguments}
    if "dropout" in arguments:
        fields |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), arguments["dropout"])
    return fields


def _activation(layout: Layout, container: Mapping[str, Any]) -> tuple[str, str]:
    """The activation, and where it was read off."""
    if layout is MINGPT:
        return "gelu_new", "as minGPT computes; pass activation_function=... for another"
    settings = container.get("config")
    origin = settings.get("init_from") if isinstance(settings, dict) else None
    if isinstance(origin, str) and origin.startswith("gpt2"):
        return "gelu_new", (
            f"since the training started from {origin}; nanoGPT itself computes 'gelu', which "
            "activation_function='gelu' gives"
        )
    return "gelu", (
        "as nanoGPT trains; if the weights started as GPT-2's, pass activation_function='gelu_new'"
    )


def nanogpt_container(config: GPT2Config, bias: bool) -> dict[str, Any]:
    """What stands beside the weights in nanoGPT's file: `_derived` backwards."""
    arguments = {name: getattr(config, ours) for name, ours in _MODEL_ARGS.items()}
    arguments |= {"bias": bias, "dropout": config.resid_pdrop}
    origin = "gpt2" if config.activation_function == "gelu_new" else "scratch"
    return {"model_args": arguments, "config": {"init_from": origin}}
