"""Which values a GPT2Config may hold: its choices, its limits, and what must fit together."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gpt2.errors import ConfigError
from gpt2.fieldchecks import check_bool, check_choice, check_number, check_whole

if TYPE_CHECKING:
    from gpt2.config import GPT2Config

#: What ``activation_function`` may be; gpt2.modeling.activations has the functions.
ACTIVATION_NAMES = (
    "relu", "silu", "gelu", "tanh", "gelu_new",
    "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "swish",
)  # fmt: skip
SUMMARY_TYPES = ("last", "first", "mean", "cls_index", "attn")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Sizes beyond these come from damaged files, not from models; a module tree of
# 10**9 layers would hang before any allocation could fail.
_MAX_SIZE = 2**31 - 1
_MAX_LAYERS = 10_000
_MAX_PARAMETERS = 10**13
MAX_LABELS = 1_000_000  # each is a name in memory, when the config is made


def check_config(config: GPT2Config) -> None:
    """Raise ConfigError for the first impossible value; allocates nothing."""
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        check_whole(
            ConfigError,
            name,
            getattr(config, name),
            1,
            _MAX_LAYERS if name == "n_layer" else _MAX_SIZE,
        )
    if config.n_inner is not None:
        check_whole(ConfigError, "n_inner", config.n_inner, 1, _MAX_SIZE)
    if config.n_embd % config.n_head:
        raise ConfigError(
            f"n_embd ({config.n_embd}) must be a multiple of n_head ({config.n_head}): "
            "each head takes an equal share"
        )
    d, f = config.n_embd, config.inner_dim
    parameters = (
        config.n_layer * (4 * d * d + 2 * d * f) + (config.vocab_size + config.n_positions) * d
    )
    if parameters > _MAX_PARAMETERS:
        raise ConfigError(
            f"vocab_size {config.vocab_size}, n_positions {config.n_positions}, n_embd {d}, "
            f"n_layer {config.n_layer} and n_inner {f} make {parameters:.2e} parameters; "
            f"more than {_MAX_PARAMETERS:.0e} is taken for a damaged config"
        )
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"):
        check_number(ConfigError, name, getattr(config, name), 0.0, 1.0)
    for name in ("classifier_dropout", "hidden_dropout"):
        if getattr(config, name) is not None:
            check_number(ConfigError, name, getattr(config, name), 0.0, 1.0)
    check_number(ConfigError, "layer_norm_epsilon", config.layer_norm_epsilon, 0.0, 1.0)
    check_number(ConfigError, "initializer_range", config.initializer_range, 0.0, math.inf)
    for f_ in fields(config):
        if f_.type == "bool":
            check_bool(ConfigError, f_.name, getattr(config, f_.name))
    check_choice(ConfigError, "activation_function", config.activation_function, ACTIVATION_NAMES)
    check_choice(ConfigError, "summary_type", config.summary_type, SUMMARY_TYPES)
    if config.summary_activation is not None:
        check_choice(ConfigError, "summary_activation", config.summary_activation, ACTIVATION_NAMES)
    if config.problem_type is not None:
        check_choice(ConfigError, "problem_type", config.problem_type, PROBLEM_TYPES)
    for name in ("bos_token_id", "pad_token_id"):
        if getattr(config, name) is not None:
            # Only the type: tiny test models keep the published 50256 beyond their vocabulary.
            check_whole(ConfigError, name, getattr(config, name), -_MAX_SIZE, _MAX_SIZE)
    eos = config.eos_token_id
    for token in eos if isinstance(eos, list) else [] if eos is None else [eos]:
        check_whole(ConfigError, "eos_token_id", token, -_MAX_SIZE, _MAX_SIZE)
    for layer, heads in config.pruned_heads.items():
        check_whole(ConfigError, "pruned_heads: layer", layer, 0, config.n_layer - 1)
        for head in heads:
            check_whole(ConfigError, f"pruned_heads[{layer}]: head", head, 0, config.n_head - 1)
        if len(set(heads)) >= config.n_head:
            raise ConfigError(
                f"pruned_heads[{layer}] names all {config.n_head} heads; one must stay"
            )


def check_table(name: str, value: Any) -> None:
    """Raise ConfigError unless a field that maps something is a dict or None."""
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{name} must be an object, not {value!r}")
    if name == "pruned_heads" and value is not None:
        for layer, heads in value.items():
            if not isinstance(heads, list | set) or not all(type(h) is int for h in heads):
                raise ConfigError(f"pruned_heads[{layer}] must be a list of heads, not {heads!r}")


def whole_number(key: Any, name: str) -> int:
    """JSON has only string keys; "3" stands for 3."""
    try:
        if isinstance(key, int | str) and not isinstance(key, bool):
            return int(key)
    except ValueError:
        pass
    raise ConfigError(f"{name} must have whole numbers as keys, not {key!r}")
