"""Pickled files of tensors: the .bin of old, and what training programs save as .pt.

torch's restricted unpickler reads them, which runs no code; there is no second try with fewer
restrictions. Such a file is read whole: the peak is the file's tensors and one more.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import torch

from gpt2.checkpoints.tensorfiles import Stored
from gpt2.errors import FileAccessError, FileFormatError
from gpt2.storage.impostors import HEAD_BYTES, impostor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gpt2.checkpoints.tensorfiles import Scratch

CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
"""The keys under which training programs keep the weights, beside an optimizer and others."""


class PickledFile:
    """The tensors of a pickled state dict, or of the one in a training program's container.

    Raises:
        FileAccessError: the file cannot be opened or read.
        FileFormatError: it is damaged, asks for more than tensors, or is no state dict.
    """

    def __init__(self, path: Path) -> None:
        self.label = path.name
        self._path = path
        content = _unpickle(path)
        self.container: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        if not all(isinstance(value, torch.Tensor) for value in content.values()):
            content = self._opened(content)
        self._tensors = _checked(content, path)
        del content  # an optimizer's tensors are not held while the weights are read
        self.entries: dict[str, Stored] = {
            name: Stored(tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._tensors.items()
        }
        self._handed_out: set[int] = set()

    def _opened(self, content: dict[Any, Any]) -> dict[Any, Any]:
        """The state dict in a container; what else is there is noted."""
        keys = [key for key in CONTAINERS if isinstance(content.get(key), dict)]
        if len(keys) > 1:
            raise FileFormatError(
                f"{self._path} has weights under each of {', '.join(map(repr, keys))}; keep the "
                "one to load"
            )
        if not keys:
            return content  # the error names the first value that is no tensor
        (chosen,) = keys
        for key, value in content.items():
            if key != chosen:
                self.container[str(key)] = _scalars(value)
                self.left_out[str(key)] = f"stands beside the weights, which are under {chosen!r}"
        inner: dict[Any, Any] = content[chosen]
        return inner

    def read(self, name: str, scratch: Scratch | None = None) -> tuple[torch.Tensor, bool]:
        """The tensor ``name``, on the CPU. It can be had once: its memory is given away."""
        tensor = self._tensors.pop(name).detach()
        storage = tensor.untyped_storage()
        # A tied or sliced tensor shares its memory, and is not the caller's to keep.
        own = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in self._handed_out
        self._handed_out.add(storage.data_ptr())
        return tensor, own

    def close(self) -> None:
        self._tensors.clear()


def _unpickle(path: Path) -> dict[Any, Any]:
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            really = impostor(head)
            if really:
                raise FileFormatError(f"{path} is {really}")
            if not head:
                raise FileFormatError(f"{path} is empty. Download it again")
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about storage classes that old files name
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (FileFormatError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise FileAccessError(f"cannot read {path}: {error.strerror}") from error
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise FileFormatError(
                f"{path} asks to run or build {wanted[1]}, which is not a tensor; it was not "
                f"run. {_PREFER_SAFETENSORS}"
            ) from error
        raise FileFormatError(
            f"{path} is damaged, or no file of tensors ({type(error).__name__}). Download it "
            f"again. {_PREFER_SAFETENSORS}"
        ) from error
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{path} must hold a dict of tensors by name, but holds {type(content).__name__}"
        )
    return content


def _checked(content: dict[Any, Any], path: Path) -> dict[str, torch.Tensor]:
    """The content, if all of it is tensors by name."""
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise FileFormatError(f"{path}: the key {name!r:.200} is not a string")
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            kind = tensor.layout if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise FileFormatError(f"{path}: {name!r:.200} is not a plain tensor but {kind}")
    return dict(content)


def _scalars(value: Any) -> Any:
    """The number, text or flat dict of those that it is; nothing that would hold tensors."""
    if isinstance(value, dict):
        return {
            k: v
            for k, v in value.items()
            if isinstance(k, str) and not isinstance(v, dict) and _scalars(v) is v
        }
    return value if isinstance(value, str | int | float | bool) else None


_PREFER_SAFETENSORS = (
    "Best ask its author for a .safetensors file, or convert it on a machine where running its "
    "code does no harm"
)


def write_pickled(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    beside: Mapping[str, object] | None = None,
    *,
    key: str | None = None,
) -> None:
    """Write a pickled state dict; with ``key`` under that key, and ``beside`` beside it.

    Raises:
        FileAccessError: the file cannot be written.
    """
    plain = {name: _compact(tensor) for name, tensor in tensors.items()}
    content = plain if key is None else {key: plain, **(beside or {})}
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's writer hides the reason in the latter
        reason = error.strerror if isinstance(error, OSError) else error.__context__ or error
        raise FileAccessError(f"cannot write {path}: {reason}") from error


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    # torch saves the whole storage that a tensor is a view of.
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
