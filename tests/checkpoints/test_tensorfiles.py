"""One file of tensors: agreement with the safetensors library, and every way to be broken."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2.checkpoints import tensorfiles
from gpt2.checkpoints.pickledfiles import PickledFile
from gpt2.checkpoints.tensorfiles import SafetensorsFile, Stored, empty, write_safetensors
from gpt2.errors import FileAccessError, FileFormatError, StateDictError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
SHAPES = [(), (0,), (1,), (5,), (3, 4), (2, 0, 3), (2, 3, 4)]


def samples() -> dict[str, torch.Tensor]:
    """A tensor of every dtype and shape, under awkward names too."""
    tensors = {}
    for dtype in DTYPES:
        for shape in SHAPES:
            values = torch.arange(torch.Size(shape).numel()).reshape(shape) % 5
            tensors[f"{dtype} {shape} é"] = values.to(dtype)
    return tensors


def read_all(path: Path) -> dict[str, torch.Tensor]:
    with closing(SafetensorsFile(path)) as file:
        return {name: file.read(name)[0] for name in file.entries}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    shapes = {n: Stored(tuple(t.shape), t.dtype) for n, t in tensors.items()}
    write_safetensors(path, shapes, iter(tensors.values()))


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(
            found[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)
        )


def test_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(samples(), path, metadata={"format": "pt", "by": "x"})
    assert_equal(read_all(path), samples())


def test_writes_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, samples())
    assert_equal(safetensors.torch.load_file(path), samples())
    assert_equal(read_all(path), samples())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # for those who map it


def test_bytes_on_a_big_endian_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap undoes itself, and what it writes is the other order."""
    ours, swapped = tmp_path / "ours", tmp_path / "swapped"
    tensors = {"a": torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), "b": torch.zeros(())}
    write(ours, tensors)
    monkeypatch.setattr(sys, "byteorder", "big")
    write(swapped, tensors)
    assert_equal(read_all(swapped), tensors)
    monkeypatch.undo()
    assert read_all(swapped)["a"].tolist() == [[1 << 24, 2 << 24], [3 << 24, 4 << 24]]


def test_dtype_that_has_no_place(tmp_path: Path) -> None:
    with pytest.raises(StateDictError, match=r"'z' is torch\.complex64"):
        write(tmp_path / "a", {"z": torch.zeros(1, dtype=torch.complex64)})


def test_file_that_cannot_be_opened_or_written(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="cannot read"):
        SafetensorsFile(tmp_path / "none")
    with pytest.raises(FileAccessError, match="cannot read"):
        SafetensorsFile(tmp_path)
    with pytest.raises(FileAccessError, match="cannot read"):
        PickledFile(tmp_path / "none")
    with pytest.raises(FileAccessError, match="cannot write"):
        write(tmp_path, {"a": torch.zeros(1)})


# ---------------------------------------------------------------- broken safetensors files


def packed(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file of this header (bytes as they are, anything else as JSON)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def span(begin: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


GOOD = packed({"a": span(0, 8), "b": span(8, 20)}, bytes(20))

BROKEN = {
    "empty": (b"", "is empty"),
    "7 bytes": (b"\1\0\0\0\0\0\0", "only 7 bytes"),
    "huge header": (struct.pack("<Q", 2**63) + b"{}", f"header of {2**63} bytes"),
    "header beyond the end": (struct.pack("<Q", 100) + b"{}", "truncated"),
    "empty header": (packed(b""), "header is empty"),
    "not JSON": (packed(b"{'a'}"), "header is not valid JSON"),
    "array": (packed([]), "must hold a JSON object"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "not UTF-8"),
    "deep": (packed(b'{"a":' * 5000), "nested too deeply"),
    "truncated": (GOOD[:-1], "truncated: its tensors take 20 bytes, and only 19"),
    "no data": (GOOD[:-20], "only 0"),
    "trailing bytes": (GOOD + b"xx", "has 2 bytes after its last tensor"),
    "overlap": (packed({"a": span(0, 8), "b": span(4, 12)}, bytes(12)), "'b' overlaps after 'a'"),
    "same bytes twice": (packed({"a": span(0, 8), "b": span(0, 8)}, bytes(8)), "overlaps"),
    "hole": (packed({"a": span(0, 8), "b": span(12, 20)}, bytes(20)), "'b' leaves a hole"),
    "hole at the start": (packed({"a": span(4, 8)}, bytes(8)), "leaves a hole at the start"),
    "shape overflow": (packed({"a": span(0, 4, [2**62, 2**62])}, bytes(4)), "takes"),
    "wraps to the right size": (packed({"a": span(0, 0, [2**32, 2**30])}), "takes"),
    "shape against offsets": (packed({"a": span(0, 8, [3])}, bytes(8)), "takes 12 bytes"),
    "negative size": (packed({"a": span(0, 4, [-1])}, bytes(4)), "not a list of sizes"),
    "bool size": (packed({"a": span(0, 4, [True])}, bytes(4)), "not a list of sizes"),
    "float size": (packed({"a": span(0, 4, [1.0])}, bytes(4)), "not a list of sizes"),
    "huge size": (packed({"a": span(0, 0, [2**63, 0])}), "not a list of sizes"),
    "100 dimensions": (packed({"a": span(0, 4, [1] * 100)}, bytes(4)), "not a list of sizes"),
    "backward offsets": (packed({"a": span(8, 4, [0])}, bytes(8)), "span -4"),
    "one offset": (packed({"a": span(0, 4) | {"data_offsets": [0]}}, bytes(4)), "[begin, end]"),
    "unknown dtype": (packed({"a": span(0, 4, dtype="F31")}, bytes(4)), "unknown dtype 'F31'"),
    "dtype no string": (packed({"a": span(0, 4, dtype=[1])}, bytes(4)), "unknown dtype [1]"),
    "field missing": (packed({"a": {"dtype": "F32", "shape": []}}, bytes(4)), "exactly dtype"),
    "field too many": (packed({"a": span(0, 4) | {"x": 1}}, bytes(4)), "exactly dtype"),
    "no fields": (packed({"a": 3}), "exactly dtype"),
    "metadata": (packed({"__metadata__": {"a": 1}}), "__metadata__"),
    "duplicate": (
        packed(
            b'{"a":%b,"a":%b}' % ((json.dumps(span(0, 4)).encode(),) * 2),
            bytes(4),
        ),
        "'a' is given twice",
    ),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-LFS"),
    "HTML": (b"<!doctype html><html><body>Sign in</body></html>", "HTML page"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_safetensors_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_the_good_one_is_good(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    assert {n: t.tolist() for n, t in read_all(path).items()} == {"a": [0] * 2, "b": [0] * 3}


def test_header_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(GOOD)
    length = int.from_bytes(GOOD[:8], "little")
    monkeypatch.setattr(tensorfiles, "MAX_HEADER_BYTES", length)
    read_all(path)
    monkeypatch.setattr(tensorfiles, "MAX_HEADER_BYTES", length - 1)
    with pytest.raises(FileFormatError, match="at most"):
        SafetensorsFile(path)


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(FileFormatError):
            SafetensorsFile(path)


def test_file_cut_between_the_check_and_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    file = SafetensorsFile(path)
    os.truncate(path, len(GOOD) - 4)
    assert file.read("a")[0].tolist() == [0, 0]
    with pytest.raises(FileFormatError, match="ended inside the tensor 'b'"):
        file.read("b")
    file.close()


def opened(path: Path, data: bytes) -> str:
    """ "" where the file opens and reads, else the error."""
    path.write_bytes(data)
    try:
        read_all(path)
    except FileFormatError as error:
        return str(error)
    return ""


@settings(
    max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_mutated_files_give_tensors_or_our_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(
            st.sampled_from([b"", b"\0", b"9", b"-", b'"', b"[", b"}", b",", b"1e9", b"\xff" * 8])
        )
    problem = opened(tmp_path / "a", bytes(content))
    assert problem == "" or str(tmp_path / "a") in problem


FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I8", "X", 1]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**62, None]), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 12), min_size=1, max_size=3),
    }
)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from("abc"), FIELDS, max_size=3), st.integers(0, 12))
def test_what_we_take_the_safetensors_library_takes(
    tmp_path: Path, header: dict[str, Any], size: int
) -> None:
    path = tmp_path / "a"
    if opened(path, packed(header, bytes(size))) == "":
        assert_equal(read_all(path), safetensors.torch.load_file(path))


# ---------------------------------------------------------------- .bin


class Payload:
    """Runs code when it is unpickled by a careless reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_bin_is_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    for zipped in (True, False):
        torch.save(
            {"a": torch.zeros(1), "b": Payload(mark)}, path, _use_new_zipfile_serialization=zipped
        )
        with pytest.raises(FileFormatError, match=r"asks to run or build posix\.mkdir") as caught:
            PickledFile(path)
        assert "safetensors" in str(caught.value)
        assert not mark.exists()
    path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(FileFormatError):
        PickledFile(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # the payload does work


def test_corrupt_bin(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.arange(100.0)}, path)
    good = path.read_bytes()
    for length in (0, 1, 4, 50, len(good) // 2, len(good) - 30, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(FileFormatError, match=r"pytorch_model\.bin"):
            PickledFile(path)
    path.write_bytes(good.replace(b"PK", b"QK"))
    with pytest.raises(FileFormatError, match="damaged"):
        PickledFile(path)
    path.write_bytes(GOOD)
    with pytest.raises(FileFormatError, match="damaged"):
        PickledFile(path)
    for content, message in ((BROKEN["LFS"][0], "git-LFS"), (BROKEN["HTML"][0], "HTML page")):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=message):
            PickledFile(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "but holds list"),
        (torch.zeros(1), "but holds Tensor"),
        ({"a": torch.zeros(1), "b": 3}, "'b' is not a plain tensor but int"),
        ({1: torch.zeros(1)}, "key 1 is not a string"),
        ({"a": torch.zeros(3).to_sparse()}, "'a' is not a plain tensor but torch.sparse_coo"),
    ],
)
def test_bin_that_is_no_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    with pytest.raises(FileFormatError, match=message):
        PickledFile(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_of_every_age(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    tensors = {"a": torch.randn(3, 4), "b": torch.nn.Parameter(torch.randn(2).half())}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    with closing(PickledFile(path)) as file:
        entries = {"a": Stored((3, 4), torch.float32), "b": Stored((2,), torch.float16)}
        assert file.entries == entries
        for name, tensor in tensors.items():
            read, own = file.read(name)
            assert own
            assert not read.requires_grad
            assert torch.equal(read, tensor)


@pytest.mark.parametrize("threads", [1, 2])
def test_fresh_memory_is_touched_by_all_threads_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    assert empty((2, 3), torch.bfloat16, "meta").is_meta
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "empty", torch.ones)  # so that it shows what has been written
    found = empty((2, 3), torch.bfloat16)
    assert (found.shape, found.dtype) == ((2, 3), torch.bfloat16)
    assert bool(found.any()) == (threads == 1)
