"""Pickled files: tensors read from their places, or with the whole file, and equal either way."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
import torch

from gpt2 import GPT2LMHeadModel
from gpt2.checkpoints import pickledfiles
from gpt2.checkpoints.pickledfiles import PickledFile
from gpt2.checkpoints.tensorfiles import Scratch
from gpt2.errors import FileFormatError
from tests.checkpoints import foreign
from tests.helpers import tiny_model

IDS = torch.randint(0, 97, (2, 7), generator=torch.Generator().manual_seed(1))


def samples() -> dict[str, torch.Tensor]:
    whole = torch.randn(6, 8)
    shared = torch.randn(5)
    return {
        "plain": torch.randn(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(3).bfloat16()),
        "transposed": torch.randn(3, 4).t(),
        "rows": whole[2:4],
        "columns": whole[:, 3],
        "every other": whole[::2, 1::3],
        "shared": shared,
        "shared too": shared,
        "expanded": torch.randn(1, 3).expand(4, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "whole numbers": torch.arange(4),
    }


def rewritten(path: Path, compression: int) -> None:
    """The same archive, compressed."""
    with zipfile.ZipFile(path) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)


@pytest.mark.parametrize(
    "how", ["in place", "no zip", "compressed", "packed anew", "torch tells no places"]
)
@pytest.mark.parametrize("use_scratch", [True, False])
def test_every_tensor_as_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, use_scratch: bool
) -> None:
    path, tensors = tmp_path / "a.bin", samples()
    torch.save(tensors, path, _use_new_zipfile_serialization=how != "no zip")
    if how == "compressed":
        rewritten(path, compression=zipfile.ZIP_DEFLATED)
    if how == "packed anew":  # without the alignment from which torch computes the places
        rewritten(path, compression=zipfile.ZIP_STORED)
    if how == "torch tells no places":
        monkeypatch.setattr(pickledfiles, "_places", lambda *_: {})
    scratch = Scratch() if use_scratch else None
    with closing(PickledFile(path)) as file:
        if how != "packed anew":
            assert bool(file._places) == (how == "in place")
        assert file.entries.keys() == tensors.keys()
        for name, tensor in tensors.items():
            read, own = file.read(name, scratch)
            assert read.device.type == "cpu"
            assert read.dtype == tensor.dtype
            assert torch.equal(read, tensor.detach()), name
            if how == "in place":
                assert own is not use_scratch


def test_a_file_of_the_other_byte_order_is_left_to_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"a": torch.tensor([1.0])}, path)
    with zipfile.ZipFile(path) as archive:
        members = [(m.filename, archive.read(m)) for m in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            if name.endswith("byteorder"):
                data = b"big"
            archive.writestr(name, data[::-1] if "/data/" in name else data)
    with closing(PickledFile(path)) as file:
        assert file._places == {}
        assert file.read("a")[0].tolist() == [1.0]


@pytest.mark.parametrize("layout", ["nanogpt", "mingpt"])
def test_models_load_the_same_where_torch_tells_no_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    model = tiny_model(activation_function="gelu" if layout == "nanogpt" else "gelu_new")
    model.save_pretrained(tmp_path, layout=layout)
    monkeypatch.setattr(pickledfiles, "_places", lambda *_: {})
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"a": torch.zeros(1000), "b": torch.ones(1000)}, path)
    with closing(PickledFile(path)) as file:
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(FileFormatError, match="ended inside the tensor 'b'"):
            file.read("b")


def test_an_optimizer_is_not_read(tmp_path: Path) -> None:
    """Its bytes may even be nonsense."""
    path = tmp_path / "ckpt.pt"
    content = foreign.nanogpt(tiny_model(activation_function="gelu"))
    content["optimizer"] = {"state": {0: {"exp_avg": torch.full((999,), 12345.0)}}}
    torch.save(content, path)
    data = path.read_bytes()
    values = torch.full((999,), 12345.0).numpy().tobytes()
    assert values in data
    path.write_bytes(data.replace(values, b"?" * len(values)))
    model = GPT2LMHeadModel.from_pretrained(path)
    assert torch.equal(model(IDS).logits, tiny_model(activation_function="gelu")(IDS).logits)


PEAK = """
    import sys
    from pathlib import Path
    import torch
    from gpt2.storage.hub import open_repository
    from tests.checkpoints.tiny import load_tensors

    def peak():  # MB of memory that the process has had at once
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    directory = Path(sys.argv[1])
    shapes = {f"h.{n}.attn.c_proj.weight": (1024, 1024) for n in range(30)}  # 4 MB each, 120 MB
    load_tensors(open_repository(directory / "small"), {"a": (1,)})
    before = peak()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[sys.argv[2]]
    loaded = load_tensors(open_repository(directory), shapes, dtype=dtype)
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_peak_memory(tmp_path: Path) -> None:
    """The model and one tensor, whatever stands beside it: an optimizer has twice its size."""
    (tmp_path / "small").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "small" / "pytorch_model.bin")
    weights = {f"h.{n}.attn.c_proj.weight": torch.ones(1024, 1024) for n in range(30)}
    state = {n: {"exp_avg": 0 * w, "exp_avg_sq": 1 * w} for n, w in enumerate(weights.values())}
    torch.save({"model": weights, "optimizer": state}, tmp_path / "ckpt.pt")
    for dtype, size in (("float32", 120), ("bfloat16", 60)):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path), dtype],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        # torch takes some 20 MB more for code and buffers that it loads at first use.
        assert float(done.stdout) < size + 4 + 30
