"""Read and write the small JSON files of a checkpoint, and say exactly what is wrong with one."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError, FileFormatError
from gpt2.storage.impostors import HEAD_BYTES, impostor

if TYPE_CHECKING:
    from pathlib import Path

# Far deeper than any file of a checkpoint, far shallower than Python's recursion limit, so
# that whoever walks the value afterwards (copy, write, compare) is safe too.
MAX_DEPTH = 100


def read_json_object(path: Path, *, max_bytes: int = 10_000_000) -> dict[str, Any]:
    """The JSON object that the file holds.

    Stricter than ``json.load``: no NaN or Infinity, no number that overflows to it, no key
    given twice, at most `MAX_DEPTH` levels.

    Raises:
        FileAccessError: the file is missing or cannot be read.
        FileFormatError: it is larger than ``max_bytes``, or is no such JSON; names the file and,
            where there is one, the line and column.
    """
    data = _read(path, max_bytes)
    really = impostor(data[:HEAD_BYTES])
    if really:
        raise FileFormatError(f"{path} is {really}")
    return parse_json_object(data, str(path))


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """As `read_json_object`, for bytes at hand; ``where`` says in errors what they are.

    Raises:
        FileFormatError: the bytes are no such JSON.
    """
    text = _decode(data, where)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except json.JSONDecodeError as error:
        raise FileFormatError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:  # from the hooks, and integers of thousands of digits
        raise FileFormatError(f"{where} is not usable JSON: {error}") from None
    if not isinstance(value, dict):
        raise FileFormatError(
            f"{where} must hold a JSON object ({{...}}), but holds {_JSON_NAMES[type(value)]}"
        )
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _containers_in(outer)]
        if not level:
            return value
    raise _too_deep(where)


def write_json(path: Path, obj: Any, *, sort_keys: bool = False) -> None:
    """Write ``obj`` as JSON: two spaces of indent, non-ASCII text as it is, a newline at the end.

    Raises:
        ArgumentTypeError: ``obj`` holds something that JSON has no form for.
        ArgumentError: it holds NaN or an infinity, or holds itself.
        FileAccessError: the file cannot be written.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    except TypeError as error:
        raise ArgumentTypeError(f"{path.name} cannot be written as JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path.name} cannot be written as JSON: {error}") from error
    try:
        # A lone surrogate has no UTF-8 form; its backslash escape is also its JSON escape.
        path.write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
    except OSError as error:
        raise FileAccessError(f"cannot write {path}: {error.strerror or error}") from error


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise FileAccessError(f"{path} does not exist") from None
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise FileFormatError(f"{path} is too large: more than the {max_bytes} bytes allowed")
    return data


def _decode(data: bytes, where: str) -> str:
    if not data:
        raise FileFormatError(f"{where} is empty; it must hold a JSON object")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise FileFormatError(
            f"{where} starts with a byte order mark (BOM); save it as UTF-8 without one"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise FileFormatError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at line {line}, "
            f"column {column} (in bytes)"
        ) from None


_JSON_NAMES: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r:.200} is given twice in one object")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits:.40} is too large")
    return number


def _containers_in(value: Any) -> list[Any]:
    members = value.values() if isinstance(value, dict) else value
    # One pass in C finds that a vocabulary of 50 000 numbers has none.
    if set(map(type, members)).isdisjoint((dict, list)):
        return []
    return [member for member in members if isinstance(member, (dict, list))]


def _too_deep(where: str) -> FileFormatError:
    return FileFormatError(f"{where} is nested too deeply: more than {MAX_DEPTH} levels")
