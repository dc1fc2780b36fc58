"""LoRA: train a low-rank addition to some layers, and nothing else (arXiv:2106.09685).

    linear:     y = x Wᵀ + b + (alpha / r) · dropout(x) Aᵀ Bᵀ    A (r, in), B (out, r) = 0 at first
    embedding:  y = W[id] + (alpha / r) · A[:, id]ᵀ Bᵀ           A (r, V) = 0 at first, B (D, r)

The second is for tokens or positions that the model can hardly tell apart: an
adapter in the blocks sees no more of them than the frozen table gives.
gpt2/training/adapterfiles.py saves and loads adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.fieldchecks import check_number, check_whole
from gpt2.modeling.pretrained import GPT2PreTrainedModel


@dataclass(frozen=True)
class LoraConfig:
    """Where adapters go and how large they are; names and defaults are PEFT's.

    ``target_modules`` names linear layers and embeddings by the end of their path
    ("c_attn", "mlp.c_fc", "wte"); "all-linear" takes every linear one inside the blocks.
    ``lora_dropout`` is for the linear ones.
    ``modules_to_save`` names modules that are trained as a whole and saved with
    the adapter: a fresh head, "score" say.

    Raises ArgumentError for a value that cannot be.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ("c_attn",)
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_whole(ArgumentError, "r", self.r, 1)
        # With 0 nothing would ever be learned.
        check_number(ArgumentError, "lora_alpha", self.lora_alpha, 1e-6, 1e6)
        check_number(ArgumentError, "lora_dropout", self.lora_dropout, 0, 1)
        targets = [] if isinstance(self.target_modules, str) else self.target_modules
        if not (self.target_modules and _are_names(targets) and _are_names(self.modules_to_save)):
            raise ArgumentError(
                "target_modules and modules_to_save must be lists of names, the first not empty; "
                f"found {self.target_modules!r} and {self.modules_to_save!r}"
            )

    @property
    def scale(self) -> float:
        """alpha / r, the factor of the addition."""
        return self.lora_alpha / self.r


class LoraLinear(nn.Linear):
    """A linear layer with an adapter. ``weight`` and ``bias`` keep their names and are frozen."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        # On the meta device nothing is allocated: the weights are the given layer's own.
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.config, self.merged = config, False
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(self.in_features, config.r, bias=False, **like)
        self.lora_B = nn.Linear(config.r, self.out_features, bias=False, **like)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))  # as PEFT
        nn.init.zeros_(self.lora_B.weight)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.merged:
            return y
        low = self.lora_A(F.dropout(x, self.config.lora_dropout, self.training))  # (…, r)
        return y + self.lora_B(low) * self.config.scale  # type: ignore[no-any-return]

    def addition(self) -> Tensor:
        """What the adapter adds to the weight, (out, in)."""
        return self.config.scale * (self.lora_B.weight @ self.lora_A.weight)

    def plain(self) -> nn.Linear:
        """The layer without its adapter, of the same weight."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear


class LoraEmbedding(nn.Embedding):
    """An embedding with an adapter. ``weight`` keeps its name and is frozen.

    A and B are parameters of the layer, not layers, since that is how PEFT names them.
    """

    def __init__(self, table: nn.Embedding, config: LoraConfig) -> None:
        rows, width = table.weight.shape
        super().__init__(rows, width, _weight=table.weight, **_options(table))
        self.weight = table.weight
        self.config, self.merged = config, False
        self.lora_embedding_A = nn.Parameter(table.weight.new_zeros(config.r, rows))
        self.lora_embedding_B = nn.Parameter(table.weight.new_empty(width, config.r))
        nn.init.normal_(self.lora_embedding_B)  # as PEFT
        self.train(table.training)

    def forward(self, ids: Tensor) -> Tensor:
        y = super().forward(ids)
        if self.merged:
            return y
        low = F.embedding(ids, self.lora_embedding_A.T, self.padding_idx)  # (…, r)
        return y + low @ self.lora_embedding_B.T * self.config.scale

    def addition(self) -> Tensor:
        """What the adapter adds to the weight, (V, D)."""
        return self.config.scale * (self.lora_embedding_B @ self.lora_embedding_A).T

    def plain(self) -> nn.Embedding:
        """The table without its adapter, of the same weight."""
        rows, width = self.weight.shape
        table = nn.Embedding(rows, width, _weight=self.weight, **_options(self))
        table.weight = self.weight
        return table


LoraLayer = LoraLinear | LoraEmbedding


def _options(table: nn.Embedding) -> dict[str, Any]:
    names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    return {name: getattr(table, name) for name in names}


def add_lora(model: GPT2PreTrainedModel, config: LoraConfig | None = None) -> list[str]:
    """Give the model's target layers adapters and freeze all else; returns their paths.

    The model is changed in place. What trains afterwards: the adapters, and
    ``modules_to_save``. Raises ArgumentError for a name that no module has, for
    targets that are neither linear nor embeddings, for a tied head or embedding, and
    for a model that has adapters already or is parallel; ArgumentTypeError for what
    is none of gpt2's models, or no LoraConfig.
    """
    check_plain(model)
    config = LoraConfig() if config is None else config
    if not isinstance(config, LoraConfig):
        raise ArgumentTypeError(f"config must be a LoraConfig, not a {type(config).__name__}")
    targets = _targets(model, config)
    trained = [_trained_whole(model, name, targets) for name in config.modules_to_save]
    model.requires_grad_(False)
    for path in targets:
        parent, _, leaf = path.rpartition(".")
        layer: Any = model.get_submodule(path)
        kind = LoraLinear if isinstance(layer, nn.Linear) else LoraEmbedding
        setattr(model.get_submodule(parent), leaf, kind(layer, config))
    for name in trained:
        model.get_submodule(name).requires_grad_(True)
    return targets


def check_plain(model: GPT2PreTrainedModel) -> None:
    """Raise what `add_lora` raises for a model that can take no adapters."""
    if not isinstance(model, GPT2PreTrainedModel):
        raise ArgumentTypeError(f"model must be one of gpt2's, not a {type(model).__name__}")
    if adapted_layers(model):
        raise ArgumentError("the model has adapters already; merge_lora or drop_lora them first")
    if any(isinstance(p, DTensor) for p in model.parameters()):
        raise ArgumentError("the model is parallel already; add adapters before parallelize")


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The model's layers with adapters, by path."""
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch module, not a {type(model).__name__}")
    return {path: m for path, m in model.named_modules() if isinstance(m, LoraLayer)}


def merge_lora(model: nn.Module) -> None:
    """Add each adapter to its weight: no cost at inference. `unmerge_lora` takes it off again."""
    for layer in _adapted(model).values():
        if not layer.merged:
            _add(layer, 1)


def unmerge_lora(model: nn.Module) -> None:
    """Take merged adapters off their weights again, up to rounding in the weights' dtype."""
    for layer in _adapted(model).values():
        if layer.merged:
            _add(layer, -1)


def drop_lora(model: nn.Module) -> None:
    """Put plain layers back: as merged, or as before. All parameters train again."""
    for path, layer in _adapted(model).items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.plain().train(layer.training))
    model.requires_grad_(True)


@torch.no_grad()
def _add(layer: LoraLayer, sign: int) -> None:
    """Add the adapter to the weight (1), or take it off again (−1)."""
    layer.weight += sign * layer.addition()
    layer.merged = sign > 0


def _adapted(model: nn.Module) -> dict[str, LoraLayer]:
    layers = adapted_layers(model)
    if not layers:
        raise ArgumentError("the model has no adapters; add_lora or load_lora gives it some")
    return layers


def _targets(model: GPT2PreTrainedModel, config: LoraConfig) -> list[str]:
    """The paths of the layers that ``target_modules`` names, in the model's order."""
    if config.target_modules == "all-linear":
        paths = [p for p, m in model.named_modules() if isinstance(m, nn.Linear)]
        return [path for path in paths if _in_blocks(path)]
    if isinstance(config.target_modules, str):
        raise ArgumentError(
            f'target_modules must be a list of names or "all-linear", not {config.target_modules!r}'
        )
    found: set[str] = set()
    for name in config.target_modules:
        ends = _ending(model, name)
        for path in ends:
            module = model.get_submodule(path)
            if not isinstance(module, nn.Linear | nn.Embedding):
                raise ArgumentError(
                    f"target_modules: {path} is a {type(module).__name__}; LoRA adapts linear "
                    "layers, such as c_attn, c_proj and c_fc, and the embeddings wte and wpe"
                )
            if tied := _tied_to(model, path):
                raise ArgumentError(
                    f"target_modules: {path} is tied to {tied}, so an adapter of one of them would "
                    "part the two; leave it out, or load the model with tie_word_embeddings=False"
                )
        found.update(ends)
    return [path for path, _ in model.named_modules() if path in found]


def _ending(model: nn.Module, name: str) -> list[str]:
    paths = [p for p, _ in model.named_modules() if p == name or p.endswith("." + name)]
    if not paths:
        raise ArgumentError(f"the model has no module whose path ends in {name!r}")
    return paths


def _trained_whole(model: GPT2PreTrainedModel, name: str, targets: list[str]) -> str:
    """The path of the module that ``modules_to_save`` names."""
    paths = _ending(model, name)
    inner = [
        f"{path}.{leaf}" for path in paths for leaf, _ in model.get_submodule(path).named_modules()
    ]
    if any(map(_in_blocks, inner)):
        raise ArgumentError(
            f"modules_to_save: {name!r} lies in the blocks or holds them ({paths[0]}); give what "
            "is in them an adapter (target_modules); modules_to_save is for heads and embeddings"
        )
    if len(paths) > 1:
        raise ArgumentError(
            f"modules_to_save: {name!r} fits {len(paths)} modules ({paths[0]}, {paths[1]} …)"
        )
    path = paths[0]
    if not list(model.get_submodule(path).parameters()):
        raise ArgumentError(f"modules_to_save: {path} has no parameters to train")
    if tied := _tied_to(model, path):
        raise ArgumentError(
            f"modules_to_save: {path} is tied to {tied}, which would train as well, and peft would "
            "part the two; leave it out, or load the model with tie_word_embeddings=False"
        )
    if path in targets:
        raise ArgumentError(f"{path} is named in target_modules and in modules_to_save; choose one")
    return path


def _tied_to(model: GPT2PreTrainedModel, path: str) -> str | None:
    """The name of the other weight, where the module's own is tied to one."""
    if not model.config.tie_word_embeddings:
        return None
    weight = f"{path}.weight"
    ties = {**model.tied_weights, **{b: a for a, b in model.tied_weights.items()}}
    return ties.get(weight)


def _are_names(names: object) -> bool:
    return (
        isinstance(names, Sequence)
        and not isinstance(names, str)
        and all(isinstance(name, str) and name for name in names)
    )


def _in_blocks(path: str) -> bool:
    return ".h." in f".{path}"
