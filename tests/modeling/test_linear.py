"""The packed linear layers: what a weight loses, and that every way of the product is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gpt2.modeling.linear import (
    PackedEmbedding,
    PackedLinear,
    quantized,
    reduced_product,
)


def test_quantized_loses_at_most_half_a_scale() -> None:
    torch.manual_seed(0)
    weight = torch.randn(500, 64) * torch.logspace(-8, 4, 500)[:, None]
    weight[7] = 0
    steps, scale = quantized(weight)
    assert (steps.dtype, scale.dtype) == (torch.int8, torch.bfloat16)
    error = (weight - steps * scale.float()[:, None]).abs()
    assert (error <= scale.float()[:, None] * (0.5 + 1e-6)).all()
    largest = weight.abs().amax(-1)
    assert (scale.float() <= largest.where(largest > 0, 127.0) / 127 * (1 + 2**-7)).all()
    assert steps.abs().max() == 127
    assert not steps[7].any()


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("sizes", [(96, 32), (32, 96)])
@pytest.mark.parametrize("keep_rows", [True, False])
def test_a_packed_layer_is_the_layer(
    storage: Any, rows: int, sizes: tuple[int, int], keep_rows: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(sizes[0], sizes[1])
    packed = PackedLinear.pack(layer, storage, keep_rows=keep_rows)
    packed.in_float32 = True
    x = torch.randn(2, rows, sizes[0])[:1]
    with torch.no_grad():
        wanted, found = layer(x), packed(x)
    bound = {"float32": 1e-6, "bfloat16": 1e-2, "int8": 2e-2}[storage]
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() / wanted.abs().max() < bound


@pytest.mark.parametrize("rows", [48, 49, 3, 1])  # in four parts, in five, and too few
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_the_reduction_is_the_product(storage: Any, rows: int) -> None:
    torch.manual_seed(0)
    packed = PackedLinear.pack(nn.Linear(64, rows), storage, keep_rows=True)
    assert packed.weight is not None
    x = torch.randn(64)
    one = reduced_product(packed.weight, packed.scale, packed.bias, x)
    other = packed(x[None])[0].float()
    assert one.dtype == torch.float32
    exact = packed.weight.double() @ x.double()
    if packed.scale is not None:
        exact = exact * packed.scale.double()
    assert packed.bias is not None
    exact = exact + packed.bias.double()
    assert (one - exact).abs().max() < 1e-5  # activations stay float32
    assert (other - exact).abs().max() < (1e-5 if storage == "float32" else 3e-2)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_the_embedding_reads_the_same_rows(storage: Any) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(50, 16)
    ids = torch.tensor([[3, 49], [0, 3]])
    found = PackedEmbedding.pack(table, storage)(ids)
    bound = {"float32": 0.0, "bfloat16": 2**-8, "int8": 1 / 250}[storage]
    assert found.shape == (2, 2, 16)
    assert (found - table(ids)).abs().max() <= bound * table.weight.abs().max()
