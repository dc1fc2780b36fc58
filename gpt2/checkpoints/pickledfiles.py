"""Pickled files of tensors: the .bin of old, and what training programs save as .pt.

torch's restricted unpickler reads them, which runs no code; there is no second try with fewer
restrictions. Of a file in the present format (a zip archive whose members are not compressed) it
reads only the structure; the tensors' bytes are then read from their places one by one, so that
an optimizer's are never read at all. Any other file is read whole.
"""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from gpt2.checkpoints.tensorfiles import DTYPES, Stored, empty, read_into
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
        self.container: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self._handed_out: set[int] = set()
        try:
            self._file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error
        try:
            _refuse_impostors(self._file, path)
            # Where each tensor's bytes are; empty where all of them are in memory.
            self._places: dict[str, int] = {}
            self._tensors: dict[str, torch.Tensor] = {}
            spans = _stored_members(self._file)
            if spans:
                self._tensors = self._state_dict(_unpickle(self._file, path, "meta"))
                self._places = _places(self._tensors, spans)
            if not self._places:
                self._tensors = self._state_dict(_unpickle(self._file, path, "cpu"))
        except BaseException:
            self._file.close()
            raise
        self.entries: dict[str, Stored] = {
            name: Stored(tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._tensors.items()
        }

    def _state_dict(self, content: dict[Any, Any]) -> dict[str, torch.Tensor]:
        if not all(isinstance(value, torch.Tensor) for value in content.values()):
            content = self._opened(content)
        return _checked(content, self._path)

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
        """The tensor ``name``, on the CPU, and whether its memory is the caller's to keep.

        Of a file that was read whole, a tensor can be had once.
        """
        if not self._places:
            tensor = self._tensors.pop(name).detach()
            storage = tensor.untyped_storage()
            # A tied or sliced tensor shares its memory, and is not the caller's to keep.
            own = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in self._handed_out
            self._handed_out.add(storage.data_ptr())
            return tensor, own
        form = self._tensors[name]
        # From its first element to its last, with what may lie between.
        span = Stored((_length(form),), form.dtype)
        if scratch is None:
            flat = empty(span.shape, span.dtype)
        else:
            flat = scratch.tensor(span)
        read_into(flat, self._file, self._places[name], self._path, name)
        return flat.as_strided(form.shape, form.stride()), scratch is None

    def close(self) -> None:
        self._tensors.clear()
        self._file.close()


def _refuse_impostors(file: BinaryIO, path: Path) -> None:
    try:
        head = file.read(HEAD_BYTES)
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error
    really = impostor(head)
    if really:
        raise FileFormatError(f"{path} is {really}")
    if not head:
        raise FileFormatError(f"{path} is empty. Download it again")


def _stored_members(file: BinaryIO) -> dict[int, int]:
    """First byte -> length of each member of the archive; empty if it is none, or not plain."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            order = next((m for m in members if m.filename.endswith("/byteorder")), None)
            if (
                any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members)
                or sys.byteorder != "little"
                or (
                    order is not None and (order.file_size != 6 or archive.read(order) != b"little")
                )
            ):
                return {}
            spans = {}
            for member in members:
                file.seek(member.header_offset)
                head = file.read(30)  # the local header's fixed part; name and extra follow it
                sizes = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:], "little")
                spans[member.header_offset + 30 + sum(sizes)] = member.file_size
            return spans
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return {}  # torch will say what it is


def _places(tensors: Mapping[str, torch.Tensor], spans: Mapping[int, int]) -> dict[str, int]:
    """The first byte of each tensor in the file; empty where one of them cannot be told.

    torch notes where a storage's bytes are when it loads a file to the meta device. The note
    counts only where the archive has a member of that size there.
    """
    places = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        begin = getattr(storage, "_checkpoint_offset", None)
        skipped = tensor.storage_offset() * tensor.element_size()
        if (
            not isinstance(begin, int)
            or spans.get(begin) != storage.nbytes()
            or skipped + _length(tensor) * tensor.element_size() > storage.nbytes()
            or tensor.dtype not in DTYPES
            or tensor.is_neg()
        ):
            return {}
        places[name] = begin + int(skipped)
    return places


def _length(tensor: torch.Tensor) -> int:
    """How many elements of its storage a tensor spans."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _unpickle(file: BinaryIO, path: Path, device: str) -> dict[Any, Any]:
    try:
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about storage classes that old files name
            content = torch.load(file, map_location=device, weights_only=True)
    except MemoryError:
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
