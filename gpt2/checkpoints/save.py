"""From a model's tensors to weight files, in any of the layouts that are loaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from gpt2.checkpoints.configs import nanogpt_container
from gpt2.checkpoints.detect import layout_to_write
from gpt2.checkpoints.gpt2_tables import HUGGING_FACE, NANOGPT
from gpt2.checkpoints.layouts import CORE_PREFIX, core_name
from gpt2.checkpoints.opt import OPT, to_opt_config
from gpt2.checkpoints.pickledfiles import write_pickled
from gpt2.checkpoints.tensorfiles import Stored, write_safetensors
from gpt2.checkpoints.weightfiles import (
    PICKLED,
    SAFETENSORS,
    WEIGHT_FILE_PATTERNS,
    check_variant,
    weight_file_patterns,
)
from gpt2.config import CONFIG_NAME
from gpt2.errors import ArgumentError, ConfigError, StateDictError
from gpt2.storage.jsonfiles import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gpt2.checkpoints.layouts import Layout
    from gpt2.config import GPT2Config

__all__ = [
    "WEIGHT_FILE_PATTERNS",
    "fitting_tensors",
    "superseded_files",
    "weight_file_patterns",
    "write_checkpoint",
    "write_model",
]


def superseded_files(layout: str, variant: str | None) -> list[str]:
    """Patterns of the names that a save supersedes, for `gpt2.storage.atomic.staged_directory`.

    Weights of other variants stay beside those of one; a training program's file stays beside
    the Hugging Face files, which are read before it.
    """
    file = layout_to_write(layout).file
    return [CONFIG_NAME, *weight_file_patterns(variant), *([file] if file else [])]


def fitting_tensors(
    given: Mapping[str, torch.Tensor],
    whole: Mapping[str, torch.Tensor],
    tied: Mapping[str, str],
) -> dict[str, torch.Tensor]:
    """A caller's ``given`` weights without those that are ``tied`` to another of them.

    ``whole``: a tensor of the right shape for each name of the model. Raises StateDictError where
    a name is missing or unexpected, a shape is wrong, or a tied pair differs: what is saved loads.
    """
    kept = {n: t for n, t in given.items() if n not in tied or tied[n] not in given}
    for name in given.keys() - kept.keys():
        twin = given[tied[name]]
        if twin is not given[name] and not (
            twin.shape == given[name].shape
            and torch.allclose(twin, given[name].to(twin), rtol=0, atol=0, equal_nan=True)
        ):
            raise StateDictError(
                f"state_dict: {name} and {tied[name]} differ, but config.tie_word_embeddings makes "
                "them one; drop one of them, or set tie_word_embeddings=False"
            )
    for name in whole.keys() | kept.keys():
        if name not in kept or name not in whole:
            fault = "is missing" if name in whole else "is no weight of this model"
            raise StateDictError(f"state_dict: {name} {fault}; give all of the model's weights")
        if kept[name].shape != whole[name].shape:
            raise StateDictError(
                f"state_dict: {name} has shape {tuple(kept[name].shape)}; the model's has "
                f"{tuple(whole[name].shape)}"
            )
    return kept


def write_model(
    stage: Path,
    tensors: Mapping[str, torch.Tensor],
    config: GPT2Config,
    *,
    layout: str = "huggingface",
    max_shard_size: int | str = "5GB",
    variant: str | None = None,
    safe_serialization: bool = True,
) -> None:
    """Write config.json and the weights of a model into the directory ``stage``.

    ``tensors`` has our names and orientation, and a tied tensor once. config.json is that of an
    OPT in the layout "opt", else a GPT-2's.

    Raises:
        ArgumentError: an argument cannot be understood, or the layout cannot honour it.
        ConfigError: the config is impossible, or has what the layout's program cannot compute.
        StateDictError: there is nothing to save, the layout has no place for a tensor, or a
            tensor has no values or a dtype that cannot be stored.
        FileAccessError: a file cannot be written.
    """
    config.validate()
    table = layout_to_write(layout)
    check_layout_holds(table, config)
    if table is OPT:
        architecture = (config.architectures or ["GPT2LMHeadModel"])[0]
        write_json(stage / CONFIG_NAME, to_opt_config(config, architecture), sort_keys=True)
    else:
        config.write_to(stage)
    if table.file is None:
        write_checkpoint(
            stage,
            tensors,
            layout=table,
            max_shard_size=max_shard_size,
            variant=variant,
            safe_serialization=safe_serialization,
        )
        return
    if variant is not None:
        raise ArgumentError(
            f"variant={variant!r}: the layout {layout!r} has one file, {table.file}"
        )
    total, most = sum(tensor.nbytes for tensor in tensors.values()), _bytes(max_shard_size)
    if total > most:
        raise ArgumentError(
            f"max_shard_size={max_shard_size!r}, but the layout {layout!r} has one file, "
            f"of {total} bytes here; raise it"
        )
    write_training_file(stage / table.file, tensors, config, table)


def check_layout_holds(layout: Layout, config: GPT2Config) -> None:
    """ConfigError for what the program that the layout is of could not compute."""
    for name, allowed in layout.fixed.items():
        value = getattr(config, name)
        if value not in allowed:
            # A dropout acts in training alone: without it the model computes the same.
            first = f"set model.config.{name} = {allowed[0]!r}, or " if "pdrop" in name else ""
            raise ConfigError(
                f"{name} is {value!r}, but the layout {layout.name!r} can only hold models with "
                f"{' or '.join(map(repr, allowed))}; {first}save in the layout 'huggingface'"
            )
    if layout.file is not None and config.n_inner not in (None, 4 * config.n_embd):
        raise ConfigError(
            f"n_inner is {config.n_inner}, but the layout {layout.name!r} can only hold models "
            f"with 4 * n_embd = {4 * config.n_embd}; save in the layout 'huggingface'"
        )


def write_training_file(
    path: Path, tensors: Mapping[str, torch.Tensor], config: GPT2Config, layout: Layout
) -> None:
    """Write nanoGPT's or minGPT's file. Both have a head of its own, a tied one too.

    nanoGPT's has no biases where all of ours are zeros: that is how a model without any loads.
    """
    plain = _checked(tensors, layout)
    plain.setdefault("lm_head.weight", plain["transformer.wte.weight"])
    content: dict[str, object] = {}
    if layout is NANOGPT:
        (fill,) = layout.fills
        biases = [name for name in plain if fill.names.fullmatch(core_name(name))]
        bias = any(plain[name].any() for name in biases)
        if not bias:
            for name in biases:
                del plain[name]
        content = nanogpt_container(config, bias)
    else:
        # minGPT's state dict has the causal mask in every block; here they share their memory.
        size = config.n_positions
        mask = torch.ones(size, size).tril().view(1, 1, size, size)
        plain |= {f"{CORE_PREFIX}h.{n}.attn.bias": mask for n in range(config.n_layer)}
    write_pickled(path, plain, content, key="model" if content else None)


def _checked(tensors: Mapping[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
    """Stored name -> tensor, of a layout that stores all as it is."""
    if not tensors:
        raise StateDictError("there are no tensors to save")
    plain = {}
    for name, tensor in tensors.items():
        _check_storable(name, tensor, layout)
        (row,) = layout.to_stored(name)
        plain[row.stored] = tensor
    return plain


def _check_storable(name: str, tensor: torch.Tensor, layout: Layout) -> None:
    if tensor.is_meta:
        raise StateDictError(f"{name!r} is on the meta device and has no values to save")
    if layout is not HUGGING_FACE and not layout.has_place_for(name):
        raise StateDictError(
            f"the layout {layout.name!r} has no place for {name!r}; save in the layout "
            "'huggingface', or only what the other has"
        )


def write_checkpoint(
    stage: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    layout: Layout | None = None,
    max_shard_size: int | str = "5GB",
    variant: str | None = None,
    safe_serialization: bool = True,
) -> list[Path]:
    """Write the weight files of a model into the directory ``stage``, and return their paths.

    The layout is Hugging Face's GPT-2 unless told. Larger than ``max_shard_size`` (bytes, or
    "5GB", "200MiB"), the files are split in the order given, with an index beside them. One
    tensor at a time is held as a copy (a .bin holds one shard's projections).

    Raises:
        ArgumentError: ``max_shard_size`` or ``variant`` cannot be understood.
        StateDictError: there is nothing to save, or a tensor has no values or a dtype that
            cannot be stored.
        FileAccessError: a file cannot be written.
    """
    table = layout or HUGGING_FACE
    check_variant(variant)
    most = _bytes(max_shard_size)
    if not tensors:
        raise StateDictError("there are no tensors to save")
    for name, tensor in tensors.items():
        _check_storable(name, tensor, table)
    kind = SAFETENSORS if safe_serialization else PICKLED
    shards = _shards(tensors, most)
    written, places, total = [], {}, 0
    for number, names in enumerate(shards, start=1):
        single = len(shards) == 1
        file = kind.single(variant) if single else kind.shard(variant, number, len(shards))
        rows = [row for name in names for row in table.to_stored(name)]
        places.update({row.stored: file for row in rows})
        path = stage / file
        shapes = {
            row.stored: Stored(
                row.stored_shape(tuple(tensors[row.ours].shape)), tensors[row.ours].dtype
            )
            for row in rows
        }
        total += sum(stored.nbytes for stored in shapes.values())
        if safe_serialization:
            write_safetensors(
                path, shapes, (row.as_stored(tensors[row.ours].detach()) for row in rows)
            )
        else:
            write_pickled(
                path, {row.stored: row.as_stored(tensors[row.ours].detach()) for row in rows}
            )
        written.append(path)
    if len(shards) > 1:
        written.append(stage / kind.index(variant))
        write_json(
            written[-1], {"metadata": {"total_size": total}, "weight_map": places}, sort_keys=True
        )
    return written


def _shards(tensors: Mapping[str, torch.Tensor], most: int) -> list[list[str]]:
    """The names, in order, filled into shards of at most ``most`` bytes or one tensor."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _bytes(size: int | str) -> int:
    """The number of bytes that "5GB" (10⁹ each), "200MiB" (2²⁰ each) or an int means."""
    if isinstance(size, str):
        match = re.fullmatch(r"([0-9]{1,15})\s*([KMGT]?)(i?)B?", size.strip(), re.IGNORECASE)
        if match:
            units = _BINARY_UNITS if match[3] else _UNITS
            size = int(match[1]) * units.get(match[2].upper(), 0)
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise ArgumentError(
            f"max_shard_size={size!r} must be a positive number of bytes, or a text such as "
            "'5GB' or '200MiB'"
        )
    return size
