"""Which files are taken for the weights, and what an index may say."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.checkpoints.save import WEIGHT_FILE_PATTERNS, weight_file_patterns, write_checkpoint
from gpt2.checkpoints.weightfiles import PICKLED, SAFETENSORS, WeightFiles
from gpt2.errors import ArgumentError, FileAccessError, FileFormatError
from gpt2.storage.hub import open_repository
from tests.checkpoints.tiny import load_tensors


def put(directory: Path, value: float, **options: Any) -> None:
    """Save two one-element tensors of this value."""
    directory.mkdir(exist_ok=True)
    tensors = {"a": torch.full((1,), float(value)), "b": torch.full((1,), float(value))}
    write_checkpoint(directory, tensors, **options)


def taken(directory: Path, **options: Any) -> float:
    """Which of the values is loaded."""
    shapes = {"a": (1,), "b": (1,)}
    return float(load_tensors(open_repository(directory), shapes, **options).tensors["b"])


def test_order_of_preference(tmp_path: Path) -> None:
    put(tmp_path, 4, safe_serialization=False, max_shard_size=4)
    assert taken(tmp_path) == 4
    put(tmp_path, 3, safe_serialization=False)
    assert taken(tmp_path) == 3
    put(tmp_path, 2, max_shard_size=4)
    assert taken(tmp_path) == 2
    put(tmp_path, 1)
    assert taken(tmp_path) == 1
    assert taken(tmp_path, use_safetensors=True) == 1
    assert taken(tmp_path, use_safetensors=False) == 3


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["5GB", 4])
def test_variant(tmp_path: Path, safe: bool, size: Any) -> None:
    put(tmp_path, 1)
    put(tmp_path, 2, variant="fp16", safe_serialization=safe, max_shard_size=size)
    assert taken(tmp_path) == 1
    assert taken(tmp_path, variant="fp16") == 2


def test_index_with_the_variant_in_front(tmp_path: Path) -> None:
    put(tmp_path, 2, variant="fp16", max_shard_size=4)
    index = tmp_path / "model.safetensors.index.fp16.json"
    index.rename(tmp_path / "model.fp16.safetensors.index.json")
    assert taken(tmp_path, variant="fp16") == 2


def test_none_there(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError) as caught:
        taken(tmp_path)
    for name in (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        str(tmp_path),
    ):
        assert name in str(caught.value)
    put(tmp_path, 1)
    with pytest.raises(FileAccessError, match="use_safetensors=None prefers"):
        taken(tmp_path, use_safetensors=False)
    with pytest.raises(FileAccessError, match=r"no model\.fp16\.safetensors .*leave variant out"):
        taken(tmp_path, variant="fp16")
    (tmp_path / "model.safetensors").unlink()
    put(tmp_path, 1, safe_serialization=False)
    with pytest.raises(FileAccessError, match="use_safetensors=None allows"):
        taken(tmp_path, use_safetensors=True)


@pytest.mark.parametrize("variant", ["", "../x", "a/b", "a.b", "a b", 3])
def test_unusable_variant(tmp_path: Path, variant: Any) -> None:
    with pytest.raises(ArgumentError, match="variant="):
        taken(tmp_path, variant=variant)
    with pytest.raises(ArgumentError, match="variant="):
        put(tmp_path, 1, variant=variant)
    with pytest.raises(ArgumentError, match="variant="):
        weight_file_patterns(variant)


def test_unusable_use_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="use_safetensors"):
        taken(tmp_path, use_safetensors="yes")


# ---------------------------------------------------------------- the index


def indexed(directory: Path, index: Any, kind: Any = SAFETENSORS) -> None:
    """Two shards, a in 1 and b in 2, with this index."""
    put(directory, 1, max_shard_size=4, safe_serialization=kind is SAFETENSORS)
    text = index if isinstance(index, str) else json.dumps(index)
    (directory / kind.index(None)).write_text(text)


ONE, TWO = SAFETENSORS.shard(None, 1, 2), SAFETENSORS.shard(None, 2, 2)

BAD_INDEXES = {
    "not JSON": ("{", "not valid JSON"),
    "list": ([], "must hold a JSON object"),
    "no map": ({"metadata": {}}, "weight_map must be an object"),
    "map is a list": ({"weight_map": [ONE, TWO]}, "weight_map must be an object"),
    "empty map": ({"weight_map": {}}, "weight_map must be an object"),
    "number": ({"weight_map": {"a": 1}}, "not a string"),
    "null": ({"weight_map": {"a": None}}, "not a string"),
    "up": ({"weight_map": {"a": f"../{ONE}"}}, "only plain file names"),
    "absolute": ({"weight_map": {"a": f"/{ONE}"}}, "only plain file names"),
    "folder": ({"weight_map": {"a": f"x/{ONE}"}}, "only plain file names"),
    "backslash": ({"weight_map": {"a": f"..\\{ONE}"}}, "only plain file names"),
    "drive": ({"weight_map": {"a": f"c:{ONE}"}}, "only plain file names"),
    "NUL": ({"weight_map": {"a": f"\0{ONE}"}}, "only plain file names"),
    "empty name": ({"weight_map": {"a": ""}}, "only plain file names"),
    "bin": ({"weight_map": {"a": "pytorch_model.bin"}}, "may name only .safetensors"),
    "duplicate": ('{"weight_map": {"a": "x", "a": "y"}}', "given twice"),
    "swapped": ({"weight_map": {"a": TWO, "b": ONE}}, f"{ONE} lacks, though"),
    "too much": ({"weight_map": {"a": ONE, "b": TWO, "c": TWO}}, "says it has, 'c'"),
    "too little": ({"weight_map": {"a": ONE, "c": TWO}}, "'c'"),
    "too large": ('{"weight_map": {}}' + " " * 10_000_000, "too large"),
}


@pytest.mark.parametrize(
    ("index", "message"),
    BAD_INDEXES.values(),
    ids=BAD_INDEXES.keys(),
)
def test_bad_index(tmp_path: Path, index: Any, message: str) -> None:
    indexed(tmp_path, index)
    with pytest.raises(FileFormatError) as caught:
        taken(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert message in str(caught.value)


def test_bin_index_names_only_bin(tmp_path: Path) -> None:
    indexed(tmp_path, {"weight_map": {"a": ONE}}, PICKLED)
    with pytest.raises(FileFormatError, match=r"may name only \.bin files"):
        taken(tmp_path)


def test_tensor_in_a_shard_that_the_index_does_not_have(tmp_path: Path) -> None:
    put(tmp_path, 1, max_shard_size=4)
    write_checkpoint(tmp_path, {"b": torch.zeros(1), "c": torch.zeros(1)}, variant="x")
    (tmp_path / "model.x.safetensors").rename(tmp_path / TWO)
    with pytest.raises(FileFormatError, match=r"has, though .* does not say so, 'c'"):
        taken(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    put(tmp_path, 1, max_shard_size=4)
    (tmp_path / TWO).unlink()
    with pytest.raises(FileAccessError, match=f"names the shard '{TWO}'"):
        taken(tmp_path)


def test_shard_that_is_a_link_to_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "model", 1, max_shard_size=4)
    (tmp_path / "model" / TWO).rename(tmp_path / "secret")
    (tmp_path / "model" / TWO).symlink_to("../secret")
    with pytest.raises(FileAccessError, match="leads outside"):
        taken(tmp_path / "model")


def test_files_are_closed(tmp_path: Path) -> None:
    put(tmp_path, 1, max_shard_size=4)
    with WeightFiles(open_repository(tmp_path)) as weights:
        sources = weights.sources
        for source in sources:
            source.read(next(iter(source.entries)))
    for source in sources:
        with pytest.raises(ValueError, match="closed"):
            source.read(next(iter(source.entries)))


def test_patterns_cover_what_is_written_and_no_more(tmp_path: Path) -> None:
    written: dict[str | None, set[str]] = {}
    for variant in (None, "fp16"):
        for safe in (True, False):
            for size in ("5GB", 4):
                before = set(tmp_path.iterdir())
                put(tmp_path, 1, variant=variant, safe_serialization=safe, max_shard_size=size)
                new = {path.name for path in set(tmp_path.iterdir()) - before}
                written.setdefault(variant, set()).update(new)

    def covered(patterns: tuple[str, ...]) -> set[str]:
        names = {path.name for path in tmp_path.iterdir()}
        return {name for name in names if any(fnmatchcase(name, p) for p in patterns)}

    for name in ("config.json", "models.safetensors", "model.py", "adapter_model.safetensors"):
        (tmp_path / name).write_text("")
    assert covered(WEIGHT_FILE_PATTERNS) == written[None] | written["fp16"]
    assert covered(weight_file_patterns(None)) == written[None] | written["fp16"]
    assert covered(weight_file_patterns("fp16")) == written["fp16"]
