"""Where tensors come from and go to: the common interface, and safetensors files.

A safetensors file is an 8-byte length, a JSON header of that length, and the tensors' bytes,
back to back (https://github.com/huggingface/safetensors). All of it is checked here before a
byte of a tensor is read, and tensors are read with plain reads, never through a memory map: a
file that is cut or replaced meanwhile is then an error and not the end of the process, and a
tensor that was read has no tie to its file.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import torch

from gpt2.errors import FileAccessError, FileFormatError, StateDictError
from gpt2.storage.impostors import HEAD_BYTES, impostor
from gpt2.storage.jsonfiles import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAX_HEADER_BYTES = 10_000_000
"""About 70 000 tensors: hundreds of times more than the largest GPT-2 has."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
DTYPES = frozenset(_DTYPE_NAMES)
"""The dtypes of numbers that files may hold."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The number of bytes that its values take."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """torch.empty, for a tensor that one thread is going to fill at once.

    On the CPU all of torch's threads write zeros to it first. Most of the time that it takes to
    fill fresh memory is the system's, which finds a page when it is first written to: with two
    threads, 124M parameters in float32 load in 0.31 s instead of 0.39. (Huge pages took from 0.2 to
    1.1 s on a virtual machine, whose host may have to find them as well.)
    """
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if tensor.device.type == "cpu" and torch.get_num_threads() > 1:
        tensor.zero_()
    return tensor


class Scratch:
    """Memory that one tensor after another is read into, to be copied from.

    Reading each into memory of its own costs more than time: freed pieces between ones that
    stay are too small for the C library's next aligned request, and the peak doubles.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, stored: Stored) -> torch.Tensor:
        """An uninitialised tensor of this shape and dtype; ends the use of the last one."""
        size = stored.nbytes
        if size > self._bytes.numel():
            self._bytes = torch.empty(0, dtype=torch.uint8)  # let go before asking for more
            self._bytes = empty((size,), torch.uint8)
        return self._bytes[:size].view(stored.dtype).view(stored.shape)


class TensorSource(Protocol):
    """Where tensors come from: a file, or a state dict at hand."""

    @property
    def label(self) -> str:
        """What errors and reports call it: the file's name."""

    @property
    def entries(self) -> Mapping[str, Stored]:
        """Name -> shape and dtype, in the best order to read them."""

    @property
    def container(self) -> Mapping[str, Any]:
        """What a training program kept beside the weights: its model's arguments and the like."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Name -> why, of what the file has besides the weights."""

    def read(self, name: str, scratch: Scratch | None = None) -> tuple[torch.Tensor, bool]:
        """The tensor as stored, and whether its memory is the caller's to keep.

        With ``scratch`` it may lie there, and is valid until that is used again: for a caller
        who copies the tensor anyway.
        """

    def close(self) -> None:
        """Let go of the file. Tensors that were read stay whole."""


# ---------------------------------------------------------------- safetensors


class SafetensorsFile:
    """An open safetensors file whose header has been checked to the last byte.

    Raises:
        FileAccessError: the file cannot be opened or read.
        FileFormatError: it is not a whole and consistent safetensors file; the message names
            the file and, where it concerns one, the tensor.
    """

    def __init__(self, path: Path) -> None:
        self.label = path.name
        self._path = path
        try:
            self._file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error
        try:
            start, header = _read_header(self._file, path)
            size = os.fstat(self._file.fileno()).st_size
            spans = _checked_spans(header, size - start, path)
        except BaseException:
            self._file.close()
            raise
        self.entries: dict[str, Stored] = {name: stored for name, stored, _ in spans}
        self.container: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self._offsets = {name: start + begin for name, _, begin in spans}

    def read(self, name: str, scratch: Scratch | None = None) -> tuple[torch.Tensor, bool]:
        """The tensor ``name``, on the CPU, in ``scratch`` or else in memory of its own."""
        stored = self.entries[name]
        if scratch is None:
            tensor = empty(stored.shape, stored.dtype)
        else:
            tensor = scratch.tensor(stored)
        read_into(tensor, self._file, self._offsets[name], self._path, name)
        return _little_endian(tensor), scratch is None

    def close(self) -> None:
        self._file.close()


def _read_header(file: BinaryIO, path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors' bytes start, and the parsed header."""
    try:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD_BYTES)
        really = impostor(head)
        if really:
            raise FileFormatError(f"{path} is {really}")
        if size < 8:
            raise FileFormatError(
                f"{path} is {'empty' if size == 0 else f'only {size} bytes long'}; a safetensors "
                "file starts with 8 bytes that give the length of its header. Download it again"
            )
        length = int.from_bytes(head[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise FileFormatError(
                f"{path} is not a safetensors file: it would have a header of {length} bytes "
                f"(at most {MAX_HEADER_BYTES} are read)"
            )
        if length > size - 8:
            raise FileFormatError(
                f"{path} is truncated: its header is {length} bytes long, and only {size - 8} "
                "bytes follow. Download it again"
            )
        file.seek(8)
        raw = file.read(length)
    except OSError as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileAccessError(f"cannot read {path}: {error}") from error
    return 8 + length, parse_json_object(raw, f"{path}: its safetensors header")


def _checked_spans(header: dict[str, Any], size: int, path: Path) -> list[tuple[str, Stored, int]]:
    """(name, shape and dtype, first byte) in the order of the file, which must be filled exactly.

    ``size`` is the number of bytes after the header.
    """
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileFormatError(f"{path}: __metadata__ must be an object that holds strings")
    spans = sorted(
        (_checked_span(name, fields, path) for name, fields in header.items()),
        key=lambda span: span[2:],
    )
    position, previous = 0, ""
    for name, _, begin, end in spans:
        if begin != position:
            where = f"after {previous!r}" if previous else "at the start"
            problem = "overlaps" if begin < position else "leaves a hole"
            raise FileFormatError(
                f"{path}: the tensor {name!r} {problem} {where}: it begins at byte {begin} of "
                f"the data instead of {position}"
            )
        position, previous = end, name
    if position > size:
        raise FileFormatError(
            f"{path} is truncated: its tensors take {position} bytes, and only {size} are there. "
            "Download it again"
        )
    if position < size:
        raise FileFormatError(
            f"{path} has {size - position} bytes after its last tensor; it is damaged, or two "
            "files were joined"
        )
    return [(name, stored, begin) for name, stored, begin, _ in spans]


def _checked_span(name: str, fields: Any, path: Path) -> tuple[str, Stored, int, int]:
    where = f"{path}: the tensor {name!r:.200}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype = _DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise FileFormatError(
            f"{where} has the unknown dtype {fields['dtype']!r:.40}; known are {', '.join(_DTYPES)}"
        )
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _are_sizes(shape):
        raise FileFormatError(f"{where} has the shape {shape!r:.80}, not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise FileFormatError(f"{where} has the data_offsets {offsets!r:.80}, not [begin, end]")
    begin, end = offsets
    needed = dtype.itemsize  # in Python's integers, which do not overflow
    for length in shape:
        needed *= length
    if end - begin != needed:
        raise FileFormatError(
            f"{where}: its shape {shape!r:.80} of {fields['dtype']} takes {needed} bytes, but "
            f"data_offsets {offsets!r:.80} span {end - begin}"
        )
    return name, Stored(tuple(shape), dtype), begin, end


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64  # as many dimensions as a tensor can have
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def write_safetensors(
    path: Path, shapes: Mapping[str, Stored], tensors: Iterator[torch.Tensor]
) -> None:
    """Write a safetensors file, taking one tensor at a time.

    ``shapes`` gives the names in the order in which ``tensors`` come. Metadata is
    ``{"format": "pt"}``, which transformers asks for.

    Raises:
        StateDictError: a dtype has no place in the format.
        FileAccessError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, stored in shapes.items():
        if stored.dtype not in _DTYPE_NAMES:
            raise StateDictError(
                f"the tensor {name!r} is {stored.dtype}, which safetensors files cannot hold"
            )
        size = stored.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that the first tensor is aligned
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors:
                file.write(_bytes_of(_little_endian(tensor.detach().cpu().contiguous())))
    except OSError as error:
        raise FileAccessError(f"cannot write {path}: {error.strerror or error}") from error


def read_into(tensor: torch.Tensor, file: BinaryIO, position: int, path: Path, name: str) -> None:
    """Fill a contiguous tensor with the bytes of an unbuffered file from ``position`` on.

    Raises:
        FileFormatError: the file ends before.
        FileAccessError: it cannot be read.
    """
    view = _bytes_of(tensor)
    try:
        file.seek(position)
        while view.nbytes:
            count = file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise FileFormatError(
                    f"{path} ended inside the tensor {name!r}: it was changed while it was "
                    "being read; load it again"
                )
            view = view[count:]
    except OSError as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileAccessError(f"cannot read {path}: {error}") from error


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


def _little_endian(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its bytes in the file's order, or from it: the same swap both ways."""
    if sys.byteorder == "little":
        return tensor
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    swapped = flat.view(-1, tensor.element_size()).flip(-1).contiguous()
    return swapped.view(-1).view(tensor.dtype).view(tensor.shape)


# ---------------------------------------------------------------- at hand


class StateDict:
    """A state dict in memory, as a source. Its tensors stay the caller's."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], label: str = "state_dict") -> None:
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise StateDictError(
                    f"{label} must map names to tensors, but {name!r:.200} is "
                    f"{type(tensor).__name__}"
                )
            if tensor.is_meta:
                raise StateDictError(f"{label}: {name!r} is on the meta device, without values")
        self.label = label
        self.container: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self._tensors = tensors
        self.entries: dict[str, Stored] = {
            name: Stored(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
        }

    def read(self, name: str, scratch: Scratch | None = None) -> tuple[torch.Tensor, bool]:
        """The tensor itself, which the caller of `read` must copy."""
        return self._tensors[name].detach(), False

    def close(self) -> None:
        """Nothing is held open."""
