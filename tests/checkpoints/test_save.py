"""What is written: the Hugging Face layout, shards, their index, and errors."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from gpt2.checkpoints.save import write_checkpoint
from gpt2.errors import ArgumentError, StateDictError
from gpt2.storage.hub import open_repository
from tests.checkpoints.tiny import (
    TIED,
    as_conv1d,
    assert_same,
    lm_shapes,
    load_tensors,
    random_tensors,
)


@pytest.mark.parametrize("safe", [True, False])
def test_files_have_the_hugging_face_layout(tmp_path: Path, safe: bool) -> None:
    tensors = random_tensors(lm_shapes(cross=True))
    written = write_checkpoint(tmp_path, tensors, safe_serialization=safe)
    assert [path.name for path in written] == ["model.safetensors" if safe else "pytorch_model.bin"]
    if safe:
        stored = safetensors.torch.load_file(written[0])
    else:
        stored = torch.load(written[0], weights_only=True)
    assert_same(stored, as_conv1d(tensors))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", [1, 200, 1000, "1KB", "1KiB"])
def test_shards(tmp_path: Path, safe: bool, size: Any) -> None:
    tensors = random_tensors(lm_shapes())
    written = write_checkpoint(tmp_path, tensors, max_shard_size=size, safe_serialization=safe)
    *shards, index = written
    places = json.loads(index.read_text())
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert places["metadata"]["total_size"] == total
    assert places["weight_map"].keys() == tensors.keys()
    assert set(places["weight_map"].values()) == {path.name for path in shards}
    assert [path.name for path in shards] == sorted(path.name for path in shards)
    most = {"1KB": 1000, "1KiB": 1024}.get(size, size)
    for path in shards:
        names = [name for name, file in places["weight_map"].items() if file == path.name]
        assert len(names) == 1 or sum(tensors[name].nbytes for name in names) <= most
    loaded = load_tensors(open_repository(tmp_path), lm_shapes(), tied=TIED)
    assert_same(loaded.tensors, tensors)
    assert sorted(loaded.report.files) == [path.name for path in shards]


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "", "5 apples", "GB", "-1GB", "0GB", "5PB"])
def test_unusable_shard_size(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ArgumentError, match="max_shard_size="):
        write_checkpoint(tmp_path, {"a": torch.zeros(1)}, max_shard_size=size)
    assert not list(tmp_path.iterdir())


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(StateDictError, match="no tensors"):
        write_checkpoint(tmp_path, {})
    with pytest.raises(StateDictError, match="'a' is on the meta device"):
        write_checkpoint(tmp_path, {"a": torch.zeros(1, device="meta")})


@pytest.mark.parametrize("safe", [True, False])
def test_parameters_and_views_are_saved_as_plain_tensors(tmp_path: Path, safe: bool) -> None:
    whole = torch.nn.Parameter(torch.randn(1000, 4))
    tensors = {"wte.weight": whole[3:5], "wpe.weight": whole[:, 1], "ln_f.bias": whole[0]}
    (path,) = write_checkpoint(tmp_path, tensors, safe_serialization=safe)
    assert path.stat().st_size < 9000  # not the 16 000 bytes that two of them are views of
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    loaded = load_tensors(open_repository(tmp_path), shapes).tensors
    assert_same(loaded, {name: tensor.detach() for name, tensor in tensors.items()})


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import torch
    from gpt2.checkpoints.save import write_checkpoint
    from gpt2.errors import FileAccessError
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    for safe in (True, False):
        try:
            write_checkpoint(Path(sys.argv[1]), {"a": torch.zeros(9000)}, safe_serialization=safe)
        except FileAccessError as error:
            print(error)
"""


def test_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    safe, pickled = done.stdout.splitlines()
    assert "model.safetensors: File too large" in safe, done.stderr
    assert "pytorch_model.bin: " in pickled
    assert "File too large" in pickled


PEAK = """
    import os, sys
    from pathlib import Path
    import torch
    from gpt2.checkpoints.save import write_checkpoint
    from tests.checkpoints.tiny import load_tensors
    from gpt2.storage.hub import open_repository

    def peak():  # MB of memory that the process has had at once
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    directory = Path(sys.argv[1])
    shapes = {f"h.{n}.attn.c_proj.weight": (1024, 1024) for n in range(40)}  # 4 MB each, 160 MB
    load_tensors(open_repository(directory / "small"), {"a": (1,)})
    for what in sys.argv[2:]:
        if child := os.fork():  # each has a peak of its own
            assert os.waitpid(child, 0)[1] == 0
            continue
        saved = shapes if what == "save" else {}
        tensors = {name: torch.ones(shape) for name, shape in saved.items()}
        before = peak()
        if what == "save":
            write_checkpoint(directory, tensors)
        else:
            loaded = load_tensors(open_repository(directory), shapes, dtype=getattr(torch, what))
        print(peak() - before, flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory(tmp_path: Path) -> None:
    """Saving holds one tensor more than the model, loading the model and one tensor."""
    (tmp_path / "small").mkdir()
    write_checkpoint(tmp_path / "small", {"a": torch.zeros(1)})
    kinds = ("save", "float32", "bfloat16")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path), *kinds],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    peaks = dict(zip(kinds, map(float, done.stdout.split()), strict=True))
    assert peaks["float32"] > 150  # the measure sees what is loaded
    # torch takes some 20 MB more for code and buffers that it loads at first use.
    assert peaks["save"] < 4 + 30
    assert peaks["float32"] < 160 + 4 + 30
    assert peaks["bfloat16"] < 80 + 4 + 30
