"""From a model's tensors to the weight files that transformers and this library load."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpt2.checkpoints.layouts import HUGGING_FACE
from gpt2.checkpoints.tensorfiles import Stored, write_pickled, write_safetensors
from gpt2.checkpoints.weightfiles import (
    PICKLED,
    SAFETENSORS,
    WEIGHT_FILE_PATTERNS,
    check_variant,
    weight_file_patterns,
)
from gpt2.errors import ArgumentError, StateDictError
from gpt2.storage.jsonfiles import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

__all__ = ["WEIGHT_FILE_PATTERNS", "weight_file_patterns", "write_checkpoint"]


def write_checkpoint(
    stage: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    max_shard_size: int | str = "5GB",
    variant: str | None = None,
    safe_serialization: bool = True,
) -> list[Path]:
    """Write the weight files of a model into the directory ``stage``, and return their paths.

    ``tensors`` has our names and orientation, and a tied tensor once; the files get the Hugging
    Face layout, the blocks' projections [in, out]. Larger than ``max_shard_size`` (bytes, or
    "5GB", "200MiB"), they are split in the order given, with an index beside them. One tensor at
    a time is held as a copy (a .bin holds one shard's projections).

    Pass `weight_file_patterns` to `gpt2.storage.atomic.staged_directory`, so that older weight
    files do not stay beside these.

    Raises:
        ArgumentError: ``max_shard_size`` or ``variant`` cannot be understood.
        StateDictError: there is nothing to save, or a tensor has no values or a dtype that
            cannot be stored.
        FileAccessError: a file cannot be written.
    """
    check_variant(variant)
    most = _bytes(max_shard_size)
    if not tensors:
        raise StateDictError("there are no tensors to save")
    kind = SAFETENSORS if safe_serialization else PICKLED
    shards = _shards(tensors, most)
    written, places = [], {}
    for number, names in enumerate(shards, start=1):
        single = len(shards) == 1
        file = kind.single(variant) if single else kind.shard(variant, number, len(shards))
        rows = [HUGGING_FACE.to_stored(name) for name in names]
        places.update({row.stored: file for row in rows})
        path = stage / file
        if safe_serialization:
            shapes = {
                row.stored: Stored(
                    tuple(tensors[row.ours].shape)[:: -1 if row.transposed else 1],
                    tensors[row.ours].dtype,
                )
                for row in rows
            }
            write_safetensors(
                path, shapes, (_turned(tensors[row.ours], row.transposed) for row in rows)
            )
        else:
            write_pickled(
                path,
                {row.stored: _turned(tensors[row.ours], row.transposed) for row in rows},
            )
        written.append(path)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        written.append(stage / kind.index(variant))
        write_json(
            written[-1], {"metadata": {"total_size": total}, "weight_map": places}, sort_keys=True
        )
    return written


def _turned(tensor: torch.Tensor, transposed: bool) -> torch.Tensor:
    return tensor.detach().t() if transposed else tensor.detach()


def _shards(tensors: Mapping[str, torch.Tensor], most: int) -> list[list[str]]:
    """The names, in order, filled into shards of at most ``most`` bytes or one tensor."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise StateDictError(f"{name!r} is on the meta device and has no values to save")
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
