"""LoRA adapters in PEFT's file format: adapter_config.json and adapter_model.safetensors.

They go to and fro between this library and ``peft``, on transformers' GPT-2
as well as on ours: A and B have one orientation whatever that of the weight is.
Where lm_head is adapted, and where it is told to, peft writes weights of the base
model too; they are compared with the model's, and never loaded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.checkpoints.tensorfiles import SafetensorsFile, Stored, write_safetensors
from gpt2.errors import ArgumentError, FileFormatError, StateDictError
from gpt2.modeling.pretrained import GPT2PreTrainedModel
from gpt2.storage.atomic import staged_directory
from gpt2.storage.hub import open_repository
from gpt2.storage.jsonfiles import read_json_object, write_json
from gpt2.training.lora import LoraConfig, LoraLayer, adapted_layers, add_lora, check_plain

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_PREFIX = "base_model.model."  # what PEFT puts before every name
# The names of A and B in a linear layer, and in an embedding.
_LINEAR, _EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
# Fields of the file that change what an adapter computes, with the values that are plain LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "use_rslora": (False, None),
    "use_dora": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
    "layer_replication": (None,), "lora_bias": (False, None), "target_parameters": ([], None),
    "trainable_token_indices": (None,), "alora_invocation_tokens": (None,),
    "use_bdlora": (False, None), "arrow_config": (None,), "use_qalora": (False, None),
    "kasa_config": (None,), "monteclora_config": (None,),
    # The others take something off the base weights, or freeze B.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}  # fmt: skip


def save_lora(model: GPT2PreTrainedModel, save_directory: str | os.PathLike[str]) -> None:
    """Write the model's adapters, and what else trains (modules_to_save), as ``peft`` reads them.

    The directory is complete or as it was before; other files in it stay. The
    weights of the model itself are not written.

    Raises ArgumentError for a model without adapters, or with merged ones, and
    FileAccessError where the disk refuses.
    """
    layers = adapted_layers(model)
    if not layers:
        raise ArgumentError("the model has no adapters to save; save_pretrained saves its weights")
    if any(layer.merged for layer in layers.values()):
        raise ArgumentError("the adapters are merged into the weights; unmerge_lora them first")
    one = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "r": one.config.r,
        "lora_alpha": one.config.lora_alpha,
        "lora_dropout": one.config.lora_dropout,
        "target_modules": _names(model, layers),
        "modules_to_save": _trained_whole(model) or None,
        "bias": "none",
        "fan_in_fan_out": False,  # our layers; for transformers' Conv1D peft sets it itself
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    tensors = {_PREFIX + name: model.get_parameter(name) for name in _own(model, layers)}
    with staged_directory(save_directory, replaces=[CONFIG_NAME, WEIGHTS_NAME]) as stage:
        write_json(stage / CONFIG_NAME, config, sort_keys=True)
        stored = {name: Stored(tuple(t.shape), t.dtype) for name, t in tensors.items()}
        write_safetensors(stage / WEIGHTS_NAME, stored, iter(tensors.values()))


def load_lora(
    model: GPT2PreTrainedModel, name_or_path: str | os.PathLike[str], **where: Any
) -> list[str]:
    """Give the model the adapters of a directory or a hub repository; returns the layers' paths.

    Every tensor of the file finds its place, or nothing is changed; a weight of the
    base model that lies beside the adapters (see above) must equal the model's. The
    model is then as after `add_lora`: only adapters (and modules_to_save) train.
    ``where``: revision, subfolder, cache_dir, token, local_files_only, force_download.

    Raises FileFormatError for kinds of adapters that this library does not
    compute (DoRA, rsLoRA, ranks per layer …), StateDictError for tensors that do not
    fit the model, and what `add_lora` raises.
    """
    check_plain(model)
    repository = open_repository(name_or_path, **where)
    path = repository.require(CONFIG_NAME)
    content = read_json_object(path)
    _refuse_other_kinds(path, content)
    stored = _read(repository.require(WEIGHTS_NAME))
    halves = tuple(f".{half}" for half in (*_LINEAR, *_EMBEDDING))
    saved = _listed(path, content, "modules_to_save")
    tensors = {n: t for n, t in stored.items() if n.endswith(halves) or _lies_in(n, saved)}
    layers = sorted({n.removesuffix(h) for n in tensors for h in halves if n.endswith(h)})
    whole = sorted({n.rpartition(".")[0] for n in tensors if not n.endswith(halves)})
    if not layers:
        raise StateDictError(f"{name_or_path}: {WEIGHTS_NAME} holds no A and B of any layer")
    known = dict(model.named_modules())
    for name in (*layers, *whole):
        if name not in known:
            raise StateDictError(
                f"{name_or_path}: {WEIGHTS_NAME} adapts {name!r}, which {type(model).__name__} "
                "does not have"
            )
    _refuse_undelivered(path, content, known, layers, whole)
    _compare_base(model, {n: t for n, t in stored.items() if n not in tensors}, str(name_or_path))
    try:
        config = LoraConfig(
            r=content.get("r", 8),
            lora_alpha=content.get("lora_alpha", 8),
            lora_dropout=content.get("lora_dropout", 0.0),
            target_modules=layers,
            modules_to_save=whole,
        )
    except ArgumentError as error:
        raise FileFormatError(f"{path}: {error}") from None
    _check_shapes(model, config, tensors, str(name_or_path))
    targets = add_lora(model, config)
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.get_parameter(name).copy_(tensor)
    return targets


def _refuse_other_kinds(path: Path, content: dict[str, Any]) -> None:
    for field, plain in _PLAIN.items():
        if content.get(field, plain[0]) not in plain:
            raise FileFormatError(
                f"{path}: {field} is {content[field]!r}; only plain LoRA adapters are read, with "
                f"{field} {plain[0]!r}"
            )
    for field, value in content.items():
        if field.startswith("use_") and field not in _PLAIN and value:
            raise FileFormatError(
                f"{path}: {field} is {value!r}, which this library does not know; only plain LoRA "
                "adapters are read"
            )


def _refuse_undelivered(
    path: Path, content: dict[str, Any], known: Collection[str], layers: list[str], whole: list[str]
) -> None:
    """The weights must be of the modules that the config names, and of all that are saved whole."""

    def fits(module: str, name: str) -> bool:
        return f".{module}".endswith(f".{name}")

    targets = content.get("target_modules")
    if not isinstance(targets, str):  # a pattern, or all-linear
        targets = _listed(path, content, "target_modules")
        for layer in layers:
            if not any(fits(layer, name) for name in targets):
                raise FileFormatError(
                    f"{path}: target_modules is {targets!r}, but {WEIGHTS_NAME} adapts {layer}"
                )
    # peft names every head that there may be, such as classifier and score.
    for name in _listed(path, content, "modules_to_save"):
        asked = any(fits(module, name) for module in known)
        if asked and not any(_lies_in(f"{module}.", [name]) for module in whole):
            raise StateDictError(
                f"{path}: modules_to_save names {name!r}, of which {WEIGHTS_NAME} holds nothing"
            )


def _compare_base(model: nn.Module, stored: dict[str, Tensor], where: str) -> None:
    """Weights of the base model must be the model's own; they are nothing to load."""
    own = dict(model.named_parameters(remove_duplicate=False))
    for stored_name, tensor in stored.items():
        name = stored_name.replace(".base_layer.", ".")
        if name not in own:
            raise StateDictError(
                f"{where}: {WEIGHTS_NAME} holds {stored_name!r}, which is no adapter's, not of "
                f"modules_to_save, and no weight of {type(model).__name__}"
            )
        weight = own[name].detach()
        if tensor.shape != weight.shape or not torch.equal(tensor.to(weight), weight):
            raise StateDictError(
                f"{where}: {WEIGHTS_NAME} holds {stored_name!r}, a weight of the base model, "
                f"{tuple(tensor.shape)}, which differs from the model's {name}, "
                f"{tuple(weight.shape)}; load the model that the adapter was trained on, or give "
                "the model that weight first"
            )


def _listed(path: Path, content: dict[str, Any], field: str) -> list[str]:
    """A field of the file that is a list of names, or null."""
    value = content.get(field) or []
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise FileFormatError(f"{path}: {field} is {value!r}; it must be a list of names, or null")
    return value


def _lies_in(parameter: str, modules: Iterable[str]) -> bool:
    """Whether the parameter's path leads through a module of one of these names."""
    return any(f".{module}." in f".{parameter}" for module in modules)


def _own(model: GPT2PreTrainedModel, layers: dict[str, LoraLayer]) -> list[str]:
    """The names of all parameters that belong to the adapter."""
    inner = [(path, name) for path in layers for name, _ in layers[path].named_parameters()]
    names = [f"{path}.{name}" for path, name in inner if name.startswith("lora_")]
    for module in _trained_whole(model):
        names += [f"{module}.{name}" for name, _ in model.get_submodule(module).named_parameters()]
    return names


def _trained_whole(model: nn.Module) -> list[str]:
    """The modules beside the adapters that train: modules_to_save."""
    trained = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    return sorted({name.rpartition(".")[0] for name in trained})


def _names(model: nn.Module, layers: dict[str, LoraLayer]) -> list[str]:
    """``target_modules``: the last part of a path where all of that name are adapted."""
    names = set()
    for path in layers:
        leaf = path.rpartition(".")[2]
        alike = [p for p, _ in model.named_modules() if p.rpartition(".")[2] == leaf]
        names.add(leaf if layers.keys() >= set(alike) else path)
    return sorted(names)


def _read(path: Path) -> dict[str, Tensor]:
    """The file's tensors by our names, in memory of their own."""
    file = SafetensorsFile(path)
    try:
        tensors = {name: file.read(name)[0] for name in file.entries}
    finally:
        file.close()
    for name in tensors:
        if not name.startswith(_PREFIX):
            raise StateDictError(f"{path}: the tensor {name!r} does not begin with {_PREFIX}")
        if not tensors[name].is_floating_point():
            raise StateDictError(
                f"{path}: the tensor {name!r} has the dtype {tensors[name].dtype}; the weights of "
                "an adapter are floating-point numbers"
            )
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def _check_shapes(
    model: nn.Module, config: LoraConfig, tensors: dict[str, Tensor], where: str
) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for path in config.target_modules:
        layer = model.get_submodule(path)
        if isinstance(layer, nn.Embedding):
            halves, columns, rows = _EMBEDDING, layer.num_embeddings, layer.embedding_dim
        else:
            columns, rows = getattr(layer, "in_features", 0), getattr(layer, "out_features", 0)
            halves = _LINEAR
        expected[f"{path}.{halves[0]}"] = (config.r, columns)
        expected[f"{path}.{halves[1]}"] = (rows, config.r)
    for module in config.modules_to_save:
        for name, parameter in model.get_submodule(module).named_parameters():
            expected[f"{module}.{name}"] = tuple(parameter.shape)
    for name in sorted(expected.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        wanted = expected.get(name, "no such parameter")
        if found != wanted:
            raise StateDictError(
                f"{where}: {name} is {found} in {WEIGHTS_NAME}; {wanted} in the model"
            )
