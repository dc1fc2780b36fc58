"""What a torch.distributed.checkpoint directory holds, read before torch is let loose on it.

torch unpickles the index file, ``.metadata``, with whatever that asks for, and meets a missing or
short data file in the middle of loading. Here the index may ask for a few known types only, and
the files must be as long as it says.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from gpt2.errors import FileAccessError, FileFormatError

_INDEX = ".metadata"
# All that torch writes into the index of tensors, beside dtypes.
_KNOWN: dict[str, frozenset[str]] = {
    "pathlib": frozenset({"PosixPath", "WindowsPath"}),
    "pathlib._local": frozenset({"PosixPath", "WindowsPath"}),  # Python 3.13
    "torch": frozenset({"Size"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed.checkpoint.metadata": frozenset({
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    }),
}  # fmt: skip


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_index(directory: Path) -> dict[str, Any]:
    """What the checkpoint has: key -> torch's TensorStorageMetadata.

    Raises FileAccessError where a file is missing, and FileFormatError for an index that is broken
    or would run code, and for a data file that is shorter than it says.
    """
    path = directory / _INDEX
    try:
        with open(path, "rb") as file:
            index = _Index(file).load()
        known: dict[str, Any] = index.state_dict_metadata
        ends: dict[str, int] = {}
        for info in index.storage_data.values():
            end = info.offset + info.length
            ends[info.relative_path] = max(end, ends.get(info.relative_path, 0))
    except OSError as error:
        raise FileAccessError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what a broken pickle raises has no end
        raise FileFormatError(f"{path} is not the index of a checkpoint: {error}") from error
    for name, end in sorted(ends.items()):
        if Path(name).name != name:
            raise FileFormatError(f"{path} names the file {name!r} outside its directory")
        _require_length(directory / name, end)
    return known


def _require_length(path: Path, length: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise FileAccessError(f"{path} cannot be read: {error.strerror or error}") from error
    if found < length:
        raise FileFormatError(f"{path} has {found} bytes, of {length}: it is cut short")


def read_failure(directory: Path, error: CheckpointException) -> FileFormatError:
    """The error to raise where torch's ``load`` failed; its own is no Exception."""
    return FileFormatError(f"{directory} cannot be read: {_causes(error)}")


def write_failure(directory: Path, error: CheckpointException) -> FileAccessError:
    """The error to raise where torch's ``save`` failed; its own is no Exception."""
    return FileAccessError(f"{directory} cannot be written: {_causes(error)}")


def _causes(error: CheckpointException) -> str:
    causes = ((rank, wrapped[0]) for rank, wrapped in sorted(error.failures.items()))
    return "; ".join(f"rank {rank}: {type(cause).__name__}: {cause}" for rank, cause in causes)
