"""Matching of names, shapes, dtypes and ties; one error that lists everything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from gpt2.checkpoints.load import LoadedTensors
from gpt2.checkpoints.save import write_checkpoint
from gpt2.errors import ArgumentError, FileFormatError, StateDictError
from gpt2.storage.hub import open_repository
from tests.checkpoints.tiny import (
    TIED,
    D,
    Tensors,
    V,
    as_conv1d,
    assert_same,
    core_shapes,
    lm_shapes,
    load_tensors,
    normalize_state_dict,
    random_tensors,
)

if TYPE_CHECKING:
    from pathlib import Path

FORMS = ["state dict", "safetensors", "safetensors shards", "bin", "bin shards"]


@pytest.fixture(params=FORMS)
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Load tensors through each of the forms that they can come in."""

    def through(tensors: Tensors, shapes: Any, **options: Any) -> LoadedTensors:
        if request.param == "state dict":
            return normalize_state_dict(tensors, shapes, **options)
        safe = "safetensors" in request.param
        size = 300 if "shards" in request.param else "5GB"
        write_checkpoint(tmp_path, tensors, max_shard_size=size, safe_serialization=safe)
        return load_tensors(open_repository(tmp_path), shapes, **options)

    return through


def test_plain(load: Any) -> None:
    shapes = lm_shapes()
    tensors = random_tensors(shapes)
    loaded = load(tensors, shapes, tied=TIED)
    assert_same(loaded.tensors, tensors)
    report = loaded.report
    assert report.loaded == len(tensors)
    assert (report.missing_keys, report.unexpected_keys, report.mismatched_keys) == ([], [], [])
    assert report.dtype == torch.float32
    assert f"loaded {len(tensors)} tensors as float32" in report.summary()


@pytest.mark.parametrize("into_head", [True, False])
@pytest.mark.parametrize("from_head", [True, False])
def test_with_and_without_prefix(load: Any, into_head: bool, from_head: bool) -> None:
    core = random_tensors(core_shapes())
    prefixed = {f"transformer.{name}": tensor for name, tensor in core.items()}
    given, wanted = (prefixed if from_head else core), (prefixed if into_head else core)
    shapes = lm_shapes() if into_head else core_shapes()
    assert_same(load(given, shapes, tied=TIED if into_head else {}).tensors, wanted)


def test_with_and_without_prefix_at_once_is_an_error(load: Any) -> None:
    tensors = random_tensors(core_shapes())
    tensors["transformer.ln_f.bias"] = torch.zeros(D)
    with pytest.raises(StateDictError, match=r"stored twice \(1\): .*ln_f\.bias"):
        load(tensors, core_shapes())


def test_old_mask_buffers_are_ignored(load: Any) -> None:
    tensors = random_tensors(core_shapes())
    given = tensors | {
        "h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "h.1.attn.masked_bias": torch.tensor(-1e4),
    }
    loaded = load(given, core_shapes(), dtype="auto")
    assert_same(loaded.tensors, tensors)
    assert sorted(loaded.report.ignored) == ["h.0.attn.bias", "h.1.attn.masked_bias"]
    assert "ignored 2 mask buffers" in loaded.report.summary()


# ---------------------------------------------------------------- what does not fit


def test_all_that_does_not_fit_is_in_one_error(load: Any) -> None:
    tensors = random_tensors(core_shapes())
    del tensors["h.1.ln_2.bias"], tensors["wpe.weight"]
    tensors["wte.weight"] = torch.zeros(V + 1, D)
    tensors["extra.weight"] = torch.zeros(3, 5)
    tensors["ln_f.bias"] = torch.zeros(D, dtype=torch.int64)
    with pytest.raises(StateDictError) as caught:
        load(tensors, core_shapes())
    for part in (
        "missing (2): 'wpe.weight' [6, 4], 'h.1.ln_2.bias' [4]",
        "unexpected (1): 'extra.weight' [3, 5]",
        f"'wte.weight' [{V + 1}, {D}] instead of [{V}, {D}]",
        "ignore_mismatched_sizes=True",
        "not of floating point (1): 'ln_f.bias' torch.int64",
    ):
        assert part in str(caught.value)


def test_long_lists_are_cut_and_counted() -> None:
    with pytest.raises(StateDictError) as caught:
        normalize_state_dict({"a": torch.zeros(1)}, core_shapes(layers=4))
    message = str(caught.value)
    assert f"missing ({len(core_shapes(layers=4))})" in message
    assert f"and {len(core_shapes(layers=4)) - 20} more" in message
    assert "no stored name fits" in message


@pytest.mark.parametrize(("stored", "wanted"), [(2, 3), (3, 2)])
def test_wrong_number_of_blocks_is_said(load: Any, stored: int, wanted: int) -> None:
    with pytest.raises(StateDictError, match=f"has {stored} blocks, the config n_layer={wanted}"):
        load(random_tensors(core_shapes(stored)), core_shapes(wanted))


def test_declared_gaps_are_reported(load: Any) -> None:
    shapes = {f"transformer.{n}": s for n, s in core_shapes().items()} | {"score.weight": (3, D)}
    tensors = random_tensors(lm_shapes())
    given = tensors | {"lm_head.weight": torch.zeros(V, D), "classifier.bias": torch.zeros(2)}
    loaded = load(given, shapes, may_initialize=["score.*"], may_drop=["lm_head.*", "classifier.*"])
    assert_same(loaded.tensors, tensors)
    assert loaded.report.missing_keys == ["score.weight"]
    assert sorted(loaded.report.dropped) == ["classifier.bias", "lm_head.weight"]
    assert "newly initialised: score.weight" in loaded.report.summary()
    assert "left out: " in loaded.report.summary()
    with pytest.raises(StateDictError, match=r"missing \(1\): 'score\.weight'"):
        load(given, shapes, may_drop=["lm_head.*", "classifier.*"])
    with pytest.raises(StateDictError, match=r"unexpected \(1\): 'classifier\.bias'"):
        load(given, shapes, may_initialize=["score.*"], may_drop=["lm_head.*"])


def test_mismatched_sizes_left_out_when_asked(load: Any) -> None:
    shapes = lm_shapes()
    tensors = random_tensors(shapes)
    given = dict(tensors)
    given["transformer.wpe.weight"] = torch.zeros(99, D)
    given["transformer.h.0.mlp.c_fc.weight"] = torch.zeros(3, 5)
    loaded = load(given, shapes, tied=TIED, ignore_mismatched_sizes=True)
    assert sorted(loaded.report.mismatched_keys) == [
        ("transformer.h.0.mlp.c_fc.weight", (3, 5), (8, D)),
        ("transformer.wpe.weight", (99, D), (6, D)),
    ]
    assert loaded.report.missing_keys == []
    for name, _, _ in loaded.report.mismatched_keys:
        del tensors[name]
    assert_same(loaded.tensors, tensors)


# ---------------------------------------------------------------- ties


def test_tied_copy_may_be_stored_too(load: Any) -> None:
    shapes = lm_shapes()
    tensors = random_tensors(shapes)
    given = tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    loaded = load(given, shapes, tied=TIED)
    assert_same(loaded.tensors, tensors)
    assert loaded.report.tied == TIED


def test_tied_copy_may_be_the_same_memory(load: Any) -> None:
    shapes = lm_shapes()
    tensors = random_tensors(shapes)
    given = tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}
    assert_same(load(given, shapes, tied=TIED).tensors, tensors)


def test_tied_copy_may_stand_in_for_its_twin(load: Any) -> None:
    shapes = lm_shapes()
    tensors = random_tensors(shapes)
    given = dict(tensors)
    given["lm_head.weight"] = given.pop("transformer.wte.weight")
    assert_same(load(given, shapes, tied=TIED).tensors, tensors)


def test_tied_weights_that_differ(load: Any) -> None:
    shapes = lm_shapes()
    tensors = random_tensors(shapes)
    other = tensors["transformer.wte.weight"].clone()
    other[-1, -1] += 1e-6
    given = tensors | {"lm_head.weight": other}
    with pytest.raises(StateDictError, match="tie_word_embeddings=False") as caught:
        load(given, shapes, tied=TIED)
    assert "'lm_head.weight' and 'transformer.wte.weight'" in str(caught.value)
    assert_same(load(given, shapes).tensors, given)  # untied: both are loaded
    with pytest.raises(StateDictError, match=r"missing \(1\): 'lm_head\.weight'"):
        load(tensors, shapes)


def test_tied_copy_of_another_shape(load: Any) -> None:
    shapes = lm_shapes()
    given = random_tensors(shapes) | {"lm_head.weight": torch.zeros(V + 1, D)}
    with pytest.raises(StateDictError, match=r"'lm_head\.weight' \[12, 4\] instead of \[11, 4\]"):
        load(given, shapes, tied=TIED)
    loaded = load(given, shapes, tied=TIED, ignore_mismatched_sizes=True)
    assert "transformer.wte.weight" in loaded.tensors


def test_tied_copy_with_nan_is_equal_and_loads_as_it_is(load: Any) -> None:
    shapes = lm_shapes()
    tensors = random_tensors(shapes)
    tensors["transformer.wte.weight"][0, 0] = math.nan
    tensors["transformer.wte.weight"][0, 1] = math.inf
    given = tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    weight = load(given, shapes, tied=TIED).tensors["transformer.wte.weight"]
    assert weight[0, 0].isnan()
    assert weight[0, 1] == math.inf


# ---------------------------------------------------------------- dtype and memory


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("asked", [None, "auto", torch.bfloat16, torch.float16])
def test_dtype(load: Any, stored: torch.dtype, asked: Any) -> None:
    tensors = random_tensors(core_shapes(), dtype=stored)
    result = {None: torch.float32, "auto": stored}.get(asked, asked)
    loaded = load(tensors, core_shapes(), dtype=asked)
    assert loaded.report.dtype == result
    assert_same(loaded.tensors, {name: tensor.to(result) for name, tensor in tensors.items()})


def test_auto_with_two_dtypes_stored(load: Any) -> None:
    tensors = random_tensors(core_shapes())
    tensors["ln_f.bias"] = tensors["ln_f.bias"].half()
    with pytest.raises(ArgumentError, match=r"torch\.float16, torch\.float32"):
        load(tensors, core_shapes(), dtype="auto")
    assert load(tensors, core_shapes()).tensors["ln_f.bias"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int8, "float32", 3])
def test_unusable_dtype(dtype: Any) -> None:
    tensors = random_tensors(core_shapes())
    with pytest.raises(ArgumentError, match="must be a floating-point"):
        normalize_state_dict(tensors, core_shapes(), dtype=dtype)


@pytest.mark.parametrize("stored", ["conv1d", "linear"])
def test_every_tensor_has_memory_of_its_own(load: Any, stored: str) -> None:
    shapes = lm_shapes()
    tensors = random_tensors(shapes)
    given = as_conv1d(tensors) if stored == "conv1d" else dict(tensors)
    big = torch.cat([torch.zeros(5), given["transformer.ln_f.bias"]])
    given["transformer.ln_f.bias"] = big[5:]  # a view of more than itself
    given["transformer.ln_f.weight"] = given["transformer.h.0.ln_1.weight"]  # one memory, two names
    loaded = load(given, shapes, tied=TIED).tensors
    storages = [tensor.untyped_storage() for tensor in loaded.values()]
    assert len({storage.data_ptr() for storage in storages}) == len(loaded)
    for tensor, storage in zip(loaded.values(), storages, strict=True):
        assert storage.nbytes() == tensor.nbytes
    for tensor in loaded.values():
        tensor.fill_(7)
    assert not any(bool((tensor == 7).any()) for tensor in given.values())


def test_state_dict_of_other_things() -> None:
    for given in ({"wte.weight": 3}, {3: torch.zeros(1)}):
        with pytest.raises(StateDictError, match="must map names to tensors"):
            normalize_state_dict(given, core_shapes())  # type: ignore[arg-type]
    with pytest.raises(StateDictError, match="without values"):
        normalize_state_dict({"wte.weight": torch.zeros(V, D, device="meta")}, core_shapes())


def test_loaded_tensors_outlive_their_file(tmp_path: Path) -> None:
    """The file is cut, then removed: a memory map would end the process here."""
    shapes = core_shapes()
    tensors = random_tensors(shapes)
    write_checkpoint(tmp_path, tensors)
    loaded = load_tensors(open_repository(tmp_path), shapes, dtype="auto")
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(16)
    assert_same(loaded.tensors, tensors)
    (tmp_path / "model.safetensors").unlink()
    assert_same(loaded.tensors, tensors)


def test_nothing_is_read_before_all_names_fit(tmp_path: Path) -> None:
    """A checkpoint that does not fit is refused by its header: the data need not even be sound."""
    shapes = core_shapes()
    write_checkpoint(tmp_path, random_tensors(shapes) | {"extra": torch.zeros(1)})
    with pytest.raises(StateDictError, match="extra"):
        load_tensors(open_repository(tmp_path), shapes)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match="truncated"):
        load_tensors(open_repository(tmp_path), shapes)
