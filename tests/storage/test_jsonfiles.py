"""JSON files: what is read, what is refused and how, what is written."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    FileAccessError,
    FileFormatError,
)
from gpt2.storage.jsonfiles import MAX_DEPTH, parse_json_object, read_json_object, write_json

if TYPE_CHECKING:
    from pathlib import Path

BROKEN = {
    "empty": (b"", "is empty"),
    "not JSON": (b"{'a': 1}", "line 1, column 2"),
    "second line": (b'{"a": 1,\n "b" 2}', "line 2, column 6"),
    "cut": (b'{"a": [1, 2', "not valid JSON"),
    "two values": (b"{} {}", "Extra data"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "infinity": (b'{"a": -Infinity}', "-Infinity"),
    "overflow": (b'{"a": 1e999}', "1e999 is too large"),
    "huge integer": (b'{"a": ' + b"1" * 5000 + b"}", "not usable JSON"),
    "duplicate": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
    "BOM": (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "byte order mark"),
    "not UTF-8": (b'{"a":\n "\xff"}', "byte 0xff at line 2, column 3"),
    "array": (b"[1]", "holds an array"),
    "string": (b'"a"', "holds a string"),
    "null": (b"null", "holds null"),
    "true": (b"true", "holds true or false"),
    "number": (b"1.5", "holds a number"),
    "deep": (b'{"a":' * 150 + b"1" + b"}" * 150, "nested too deeply"),
    "very deep": (b'{"a":' + b"[" * 200_000, "nested too deeply"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
    "HTML": (b"\n<!DOCTYPE html>\n<html>", "HTML page"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        read_json_object(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_depth_is_allowed_up_to_the_limit() -> None:
    text = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert "a" in parse_json_object(text, "here")
    with pytest.raises(FileFormatError, match="nested"):
        parse_json_object(b'{"a":' + text + b"}", "here")


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_text(json.dumps({"a": "x" * 100}))
    size = path.stat().st_size
    assert read_json_object(path, max_bytes=size) == {"a": "x" * 100}
    with pytest.raises(FileFormatError, match=f"more than the {size - 1} bytes"):
        read_json_object(path, max_bytes=size - 1)


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="does not exist"):
        read_json_object(tmp_path / "config.json")
    with pytest.raises(FileAccessError, match="cannot read"):
        read_json_object(tmp_path)


def test_written_form(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": "Ġ 猫", "a": [1, 0.5, None, True]})
    assert path.read_bytes() == (
        '{\n  "b": "Ġ 猫",\n  "a": [\n    1,\n    0.5,\n    null,\n    true\n  ]\n}\n'.encode()
    )
    write_json(path, {"b": 1, "a": 2}, sort_keys=True)
    assert list(read_json_object(path)) == ["a", "b"]


def test_unwritable_values(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ArgumentTypeError, match=r"a\.json"):
        write_json(path, {"a": {1, 2}})
    with pytest.raises(ArgumentError, match=r"a\.json"):
        write_json(path, {"a": math.nan})
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ArgumentError, match=r"a\.json"):
        write_json(path, {"a": loop})
    assert not path.exists()
    with pytest.raises(FileAccessError, match="cannot write"):
        write_json(tmp_path / "none" / "a.json", {})


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),  # lone surrogates included
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=200,
    deadline=None,
    # The table of characters takes a second to make where it is not cached.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.dictionaries(st.text(st.characters()), VALUES, max_size=5))
def test_round_trip(tmp_path: Path, value: dict[str, object]) -> None:
    write_json(tmp_path / "a.json", value)
    assert read_json_object(tmp_path / "a.json") == value


@settings(max_examples=1000, deadline=None)
@given(
    st.binary(max_size=60)
    | st.text('{}[]",:\\ntrue01eE+-.u ', max_size=60).map(str.encode)
    | st.tuples(st.binary(max_size=8), st.integers(0, 40)).map(
        lambda pair: b'{"a": [1, {"b": "c"}], "d": 2.5e3}'[: pair[1]] + pair[0]
    )
)
def test_any_bytes_give_an_object_or_our_error(data: bytes) -> None:
    problem = "here"
    try:
        parse_json_object(data, "here")
    except FileFormatError as error:
        problem = str(error)
    assert "here" in problem
