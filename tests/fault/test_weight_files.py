"""Rows 1 to 13: weight files and their indexes, broken on the disk.

Every test loads the way a user does, and looks for three things: the class of
the error, the words that name file and fault, and that nothing else was touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gpt2
from gpt2 import GPT2LMHeadModel
from gpt2.errors import FileAccessError, FileFormatError, GPT2Error, StateDictError

IDS = torch.tensor([[1, 2, 3, 4]])
C_ATTN = "transformer.h.0.attn.c_attn.weight"
C_PROJ = "transformer.h.0.attn.c_proj.weight"


def load(folder: Path, **options: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(folder, **options)


def refused(folder: Path, error: type[Exception], *words: str, **options: Any) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(error) as caught:
        load(folder, **options)
    assert isinstance(caught.value, GPT2Error)
    for word in words:
        assert word in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Write the weights again after ``change`` has had the tensors."""
    tensors = load_file(weights(folder))
    change(tensors)
    save_file(tensors, weights(folder), metadata={"format": "pt"})


def with_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write the header again after ``change`` has had it; the data stay."""
    data = weights(folder).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    replaced = change(header)
    text = replaced if isinstance(replaced, bytes) else json.dumps(header).encode()
    weights(folder).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def doubled(header: dict[str, Any]) -> bytes:
    """The header with one of its keys a second time."""
    again = json.dumps({C_ATTN: header[C_ATTN]})
    return f"{json.dumps(header)[:-1]},{again[1:]}".encode()


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**60) + b"{}"])
def test_row_01_empty_short_or_with_a_huge_header(checkpoint: Path, content: bytes) -> None:
    weights(checkpoint).write_bytes(content)
    refused(checkpoint, FileFormatError, "model.safetensors")


def test_row_02_truncated_at_any_boundary_or_with_trailing_bytes(checkpoint: Path) -> None:
    data = weights(checkpoint).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    boundaries = {8, 8 + length, *(8 + length + edge for span in spans for edge in span)}
    for cut in sorted(boundaries | {edge - 1 for edge in boundaries}):
        if cut < len(data):
            weights(checkpoint).write_bytes(data[:cut])
            refused(checkpoint, FileFormatError, "model.safetensors")
    weights(checkpoint).write_bytes(data + b"\0")
    refused(checkpoint, FileFormatError, "model.safetensors")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda h: h[C_ATTN].update(data_offsets=h[C_PROJ]["data_offsets"]), "c_attn"),
        (lambda h: h.pop(C_PROJ), ""),  # a hole where it lay
        (lambda h: h[C_ATTN].update(shape=[2**40, 2**40]), "c_attn"),
        (lambda h: h[C_ATTN].update(dtype="F4"), "F4"),
        (doubled, "c_attn"),
    ],
    ids=["overlap", "hole", "shape overflow", "unknown dtype", "duplicate key"],
)  # fmt: skip
def test_row_03_contradictory_header(checkpoint: Path, change: Any, word: str) -> None:
    with_header(checkpoint, change)
    refused(checkpoint, FileFormatError, "model.safetensors", word)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
    ],
)
def test_row_04_a_pointer_or_a_page_in_place_of_weights(
    checkpoint: Path, content: bytes, word: str
) -> None:
    weights(checkpoint).write_bytes(content)
    refused(checkpoint, FileFormatError, "model.safetensors", word)
    weights(checkpoint).unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(content)
    refused(checkpoint, FileFormatError, "pytorch_model.bin", word)


@pytest.mark.parametrize("safe", [True, False])
def test_row_05_truncated_or_replaced_after_loading(checkpoint: Path, safe: bool) -> None:
    load(checkpoint).save_pretrained(checkpoint, safe_serialization=safe)
    model = load(checkpoint)
    expected = model(IDS).logits
    file = weights(checkpoint) if safe else checkpoint / "pytorch_model.bin"
    os.truncate(file, 100)
    assert torch.equal(model(IDS).logits, expected)
    file.write_bytes(b"\xff" * 500_000)
    assert torch.equal(model(IDS).logits, expected)


def test_row_06_wrong_shape_dtype_or_orientation(checkpoint: Path, good: Path) -> None:
    rewrite(checkpoint, lambda t: t.update({C_PROJ: torch.zeros(32, 33)}))
    refused(checkpoint, StateDictError, "h.0.attn.c_proj.weight", "33", "[32, 32]")
    shutil.copy(weights(good), weights(checkpoint))
    rewrite(checkpoint, lambda t: t.update({C_PROJ: torch.zeros(32, 32, dtype=torch.int32)}))
    refused(checkpoint, StateDictError, C_PROJ, "int32")
    shutil.copy(weights(good), weights(checkpoint))  # one matrix against the others
    rewrite(checkpoint, lambda t: t.update({C_ATTN: t[C_ATTN].T.contiguous()}))
    refused(checkpoint, StateDictError, "c_attn")

    def turn_all(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.split(".")[-2] in ("c_attn", "c_proj", "c_fc"):
                tensors[name] = (
                    tensors[name].T.contiguous() if tensors[name].dim() == 2 else tensors[name]
                )

    shutil.copy(weights(good), weights(checkpoint))  # all of them: the Linear layout, which loads
    rewrite(checkpoint, turn_all)
    assert torch.equal(load(checkpoint)(IDS).logits, load(good)(IDS).logits)


def test_row_07_missing_or_unexpected_keys_and_ties_that_differ(
    checkpoint: Path, good: Path
) -> None:
    rewrite(checkpoint, lambda t: t.pop(C_ATTN))
    refused(checkpoint, StateDictError, "h.0.attn.c_attn.weight")
    shutil.copy(weights(good), weights(checkpoint))
    rewrite(checkpoint, lambda t: t.update({"transformer.h.0.attn.q_norm.weight": torch.ones(3)}))
    refused(checkpoint, StateDictError, "q_norm")
    shutil.copy(weights(good), weights(checkpoint))
    rewrite(
        checkpoint,
        lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}),
    )
    refused(checkpoint, StateDictError, "lm_head.weight", "wte.weight")


def test_row_08_nan_and_inf_load_as_they_are_and_a_check_finds_them(checkpoint: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[C_ATTN][0, 0] = torch.nan
        tensors["transformer.ln_f.bias"][1] = torch.inf

    rewrite(checkpoint, spoil)
    model = load(checkpoint)
    assert model.transformer.h[0].attn.c_attn.weight.isnan().sum() == 1
    verification = gpt2.verify_checkpoint(checkpoint)
    assert not verification.passed
    (check,) = (check for check in verification.checks if check.passed is False)
    assert check.name == "finite values"
    assert "c_attn.weight (1)" in check.detail
    assert "ln_f.bias (1)" in check.detail


def sharded(checkpoint: Path) -> dict[str, Any]:
    load(checkpoint).save_pretrained(checkpoint, max_shard_size=20_000)
    return json.loads((checkpoint / "model.safetensors.index.json").read_text())


def put_index(checkpoint: Path, index: Any) -> None:
    content = index if isinstance(index, bytes) else json.dumps(index).encode()
    (checkpoint / "model.safetensors.index.json").write_bytes(content)


@pytest.mark.parametrize("way", ["../{}", "/{}", "sub\\{}", "./{}", "sub/{}", ".."])
def test_row_09_index_entries_that_leave_the_directory(checkpoint: Path, way: str) -> None:
    index = sharded(checkpoint)
    outside = checkpoint.parent / "model-00001-of-00002.safetensors"
    shutil.copy(next(checkpoint.glob("model-00001-*")), outside)
    opened: list[str] = []
    sys.addaudithook(
        lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None
    )
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = way.format(outside.name)
    put_index(checkpoint, index)
    refused(checkpoint, FileFormatError, "model.safetensors.index.json", "weight_map")
    assert str(outside) not in opened


def test_row_09_a_link_that_leads_outside_is_not_followed(checkpoint: Path) -> None:
    index = sharded(checkpoint)
    shard = checkpoint / next(iter(index["weight_map"].values()))
    outside = checkpoint.parent / "elsewhere.safetensors"
    shutil.move(shard, outside)
    shard.symlink_to(outside)
    refused(checkpoint, FileAccessError, shard.name)


@pytest.mark.parametrize(
    "index",
    [
        [], {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": None}}, {},
        {"weight_map": {"transformer.wte.weight": "pytorch_model-00001-of-00002.bin"}},
        b'{"weight_map": {"a": "' + b"x" * 11_000_000 + b'"}}',
    ],
    ids=["list", "list inside", "number", "null", "empty", "names .bin", "over 10 MB"],
)  # fmt: skip
def test_row_10_index_of_the_wrong_kind(checkpoint: Path, index: Any) -> None:
    sharded(checkpoint)
    put_index(checkpoint, index)
    refused(checkpoint, FileFormatError, "model.safetensors.index.json")


def test_row_11_missing_shard_and_tensor_that_its_shard_lacks(checkpoint: Path) -> None:
    index = sharded(checkpoint)
    files = sorted(set(index["weight_map"].values()))
    kept = (checkpoint / files[0]).read_bytes()
    (checkpoint / files[0]).unlink()
    refused(checkpoint, FileAccessError, files[0])
    (checkpoint / files[0]).write_bytes(kept)
    name = next(name for name, file in index["weight_map"].items() if file == files[0])
    index["weight_map"][name] = files[1]
    put_index(checkpoint, index)
    refused(checkpoint, FileFormatError, name, files[1])


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_row_12_a_payload_is_never_run(checkpoint: Path, tmp_path: Path, form: str) -> None:
    weights(checkpoint).unlink()
    mark, file = tmp_path / "ran", checkpoint / "pytorch_model.bin"
    content = {"transformer.wte.weight": Payload(mark)}
    if form == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    refused(checkpoint, FileFormatError, "pytorch_model.bin")
    assert not mark.exists()
    torch.load(file, weights_only=False) if form == "torch" else pickle.loads(file.read_bytes())
    assert mark.exists()  # the payload works: it was not run above


def test_row_13_corrupt_zip(checkpoint: Path) -> None:
    load(checkpoint).save_pretrained(checkpoint, safe_serialization=False)
    file = checkpoint / "pytorch_model.bin"
    data = file.read_bytes()
    assert zipfile.is_zipfile(file)
    random = Random(0)
    for cut in (100, len(data) // 2, len(data) - 30):
        file.write_bytes(data[:cut])
        refused(checkpoint, FileFormatError, "pytorch_model.bin")
    directory = data.rindex(b"PK\x01\x02")
    for _ in range(20):  # the list of entries at the end
        bad = bytearray(data)
        for _ in range(8):
            bad[random.randrange(directory, len(bad))] = random.randrange(256)
        file.write_bytes(bytes(bad))
        with contextlib.suppress(GPT2Error):  # what does not matter to the reader may load
            load(checkpoint)
