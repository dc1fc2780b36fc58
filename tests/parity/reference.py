"""Pairs of models with the same weights: transformers' own, and ours, read from what it saved.

The reference is always eager attention in float32 and eval mode. Its weights
are all random, written by its own save_pretrained and read by our
from_pretrained, so that every comparison passes through the loader.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gpt2
from tests.helpers import randomise, tiny_config

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()  # its advice would drown the tests' own messages

BACKENDS = ("eager", "sdpa")

SIZES = {
    name: getattr(tiny_config(), name)
    for name in (
        "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "resid_pdrop", "embd_pdrop",
        "attn_pdrop", "summary_first_dropout", "bos_token_id", "eos_token_id",
    )
}  # fmt: skip


def make_theirs(cls: str, seed: int = 0, **overrides: Any) -> Any:
    """A random model of transformers' class ``cls``; ``overrides`` are config fields."""
    config = transformers.GPT2Config(
        **{**SIZES, **overrides}, attn_implementation="eager", use_cache=False
    )
    model = getattr(transformers, cls)(config)
    randomise(model, seed)
    return model.eval()


def load_theirs(cls: str, directory: Path) -> tuple[Any, dict[str, Any]]:
    """What transformers makes of a checkpoint of ours, in float32, and its loading report."""
    model, info = getattr(transformers, cls).from_pretrained(
        directory, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    return model.float().eval(), info


def load_ours(cls: str, directory: Path, backend: str = "sdpa", **overrides: Any) -> Any:
    """What we make of a checkpoint of theirs."""
    return getattr(gpt2, cls).from_pretrained(
        directory, attn_implementation=backend, local_files_only=True, **overrides
    )


def writes_pickled() -> bool:
    """Whether this transformers can write pytorch_model.bin; 5.x cannot."""
    save = transformers.PreTrainedModel.save_pretrained
    return "safe_serialization" in inspect.signature(save).parameters


class Pairs:
    """Models by class, backend and config, each made once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._theirs: dict[Any, tuple[Any, Path]] = {}
        self._ours: dict[Any, Any] = {}

    def theirs(self, cls: str, **overrides: Any) -> Any:
        return self._saved(cls, overrides)[0]

    def ours(self, cls: str, backend: str, **overrides: Any) -> Any:
        key = (cls, backend, repr(sorted(overrides.items())))
        if key not in self._ours:
            self._ours[key] = load_ours(cls, self._saved(cls, overrides)[1], backend)
        return self._ours[key]

    def _saved(self, cls: str, overrides: dict[str, Any]) -> tuple[Any, Path]:
        key = (cls, repr(sorted(overrides.items())))
        if key not in self._theirs:
            path = self.directory / str(len(self._theirs))
            model = make_theirs(cls, **overrides)
            model.save_pretrained(path)
            self._theirs[key] = (model, path)
        return self._theirs[key]


def in_our_orientation(theirs: nn.Module) -> dict[str, tuple[nn.Parameter, bool]]:
    """name -> (parameter, whether it is the transpose of ours), read off the module's class."""
    conv1d = transformers.pytorch_utils.Conv1D
    found = {}
    for name, parameter in theirs.named_parameters():
        path, _, leaf = name.rpartition(".")
        turned = isinstance(theirs.get_submodule(path), conv1d) and leaf == "weight"
        found[name] = (parameter, turned)
    return found


def cache_layers(past: Any) -> list[tuple[Tensor, Tensor]]:
    """(keys, values) of each layer of the self-attention, from any form of cache."""
    past = getattr(past, "self_attention_cache", past)
    if hasattr(past, "layers"):  # the Cache classes of transformers 5
        return [(layer.keys, layer.values) for layer in past.layers]
    return [(layer[0], layer[1]) for layer in past]


def random_ids(seed: int, *shape: int, vocab_size: int = SIZES["vocab_size"]) -> Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def random_states(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
