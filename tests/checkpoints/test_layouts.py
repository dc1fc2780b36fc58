"""The table of names and orientations. The first test catches a missed transpose."""

from __future__ import annotations

import pytest
import torch

from gpt2.checkpoints.gpt2_tables import HUGGING_FACE
from gpt2.checkpoints.layouts import block_numbers, core_name, model_name
from gpt2.errors import StateDictError
from tests.checkpoints.tiny import (
    CROSS_PROJECTIONS,
    PROJECTIONS,
    TIED,
    as_conv1d,
    assert_same,
    core_shapes,
    lm_shapes,
    normalize_state_dict,
    random_tensors,
)


@pytest.mark.parametrize("stored", ["conv1d", "linear"])
def test_square_projections_are_turned_with_the_rest(stored: str) -> None:
    """attn.c_proj is square: its shape cannot tell that it has to be transposed."""
    shapes = lm_shapes(cross=True)
    tensors = random_tensors(shapes)
    square = tensors["transformer.h.1.attn.c_proj.weight"]
    assert square.shape[0] == square.shape[1]
    assert not torch.equal(square, square.t())
    given = as_conv1d(tensors) if stored == "conv1d" else tensors
    loaded = normalize_state_dict(given, shapes, tied=TIED)
    assert torch.equal(loaded.tensors["transformer.h.1.attn.c_proj.weight"], square)
    assert loaded.report.orientation == stored
    assert_same(loaded.tensors, tensors)


@pytest.mark.parametrize("stored", ["conv1d", "linear"])
@pytest.mark.parametrize("odd", ["attn.c_attn", "mlp.c_fc", "mlp.c_proj", "crossattention.c_attn"])
@pytest.mark.parametrize("ignore", [False, True])
def test_one_transposed_tensor_is_an_error(stored: str, odd: str, ignore: bool) -> None:
    shapes = lm_shapes(cross=True)
    tensors = random_tensors(shapes)
    given = as_conv1d(tensors) if stored == "conv1d" else tensors
    name = f"transformer.h.1.{odd}.weight"
    given[name] = given[name].t().contiguous()
    with pytest.raises(StateDictError) as caught:
        normalize_state_dict(given, shapes, tied=TIED, ignore_mismatched_sizes=ignore)
    message = str(caught.value)
    assert "transposed against the rest (1)" in message
    assert name in message
    assert "[in, out]" in message if stored == "conv1d" else "[out, in]" in message
    assert "missing" not in message
    assert "another shape" not in message


def test_orientation_is_read_past_what_cannot_tell() -> None:
    """Where h.0.attn.c_attn is square (pruned heads) or absent, the next one decides."""
    shapes = core_shapes()
    shapes |= {"h.0.attn.c_attn.weight": (4, 4), "h.0.attn.c_attn.bias": (4,)}
    tensors = random_tensors(shapes)
    for given, orientation in ((as_conv1d(tensors), "conv1d"), (tensors, "linear")):
        loaded = normalize_state_dict(given, shapes)
        assert loaded.report.orientation == orientation
        assert_same(loaded.tensors, tensors)
        partial = {name: tensor for name, tensor in given.items() if not name.startswith("h.0")}
        loaded = normalize_state_dict(partial, shapes, may_initialize=["h.0.*"])
        assert loaded.report.orientation == orientation


@pytest.mark.parametrize("module", PROJECTIONS + CROSS_PROJECTIONS)
def test_table_reads_both_ways(module: str) -> None:
    for prefix in ("", "transformer."):
        bare = f"h.12.{module}.weight"
        row = HUGGING_FACE.to_ours(f"{prefix}{bare}")
        assert (row.ours, row.transposed) == (bare, True)
        (row,) = HUGGING_FACE.to_stored(f"{prefix}{bare}")
        assert (row.stored, row.ours, row.transposed) == (prefix + bare, prefix + bare, True)
        assert not HUGGING_FACE.to_ours(f"{prefix}h.12.{module}.bias").transposed


@pytest.mark.parametrize(
    "name",
    [
        "wte.weight",
        "transformer.wpe.weight",
        "h.0.ln_1.weight",
        "lm_head.weight",
        "score.weight",
        "h.x.attn.c_attn.weight",
        "h.00.attn.c_attn.weight",
        "h.0.attn.c_attn.weight.more",
        "other.h.0.attn.c_attn.weight",
        "attn.c_attn.weight",
    ],
)
def test_other_names_stand_as_they_are(name: str) -> None:
    row = HUGGING_FACE.to_ours(name)
    assert (row.ours, row.transposed) == (core_name(name), False)
    (row,) = HUGGING_FACE.to_stored(name)
    assert (row.stored, row.ours, row.transposed) == (name, name, False)


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("h.0.attn.bias", True),
        ("transformer.h.11.attn.masked_bias", True),
        ("h.3.crossattention.bias", True),
        ("transformer.h.3.crossattention.masked_bias", True),
        ("h.0.attn.c_attn.bias", False),
        ("h.0.attn.bias.more", False),
        ("h.0.mlp.bias", False),
        ("attn.bias", False),
        ("h.a.attn.bias", False),
        ("x.h.0.attn.bias", False),
    ],
)
def test_exactly_the_old_mask_buffers_are_ignored(name: str, ignored: bool) -> None:
    assert HUGGING_FACE.ignores(name) is ignored


def test_prefix() -> None:
    assert core_name("transformer.h.0.ln_1.bias") == "h.0.ln_1.bias"
    assert core_name("transformer.other") == "transformer.other"
    assert core_name("lm_head.weight") == "lm_head.weight"
    assert model_name("wte.weight", prefixed=True) == "transformer.wte.weight"
    assert model_name("transformer.wte.weight", prefixed=False) == "wte.weight"
    assert model_name("lm_head.weight", prefixed=True) == "lm_head.weight"
    assert block_numbers(["h.0.a", "transformer.h.7.b", "wte.weight", "h.x.a"]) == {0, 7}
