"""Masks and positions, on examples small enough to read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpt2.modeling.masks import (
    causal_visibility,
    finite_bias,
    padded_causal_visibility,
    positions_from_mask,
)


def drawn(seen: Tensor) -> list[str]:
    return ["".join("x" if s else "." for s in row) for row in seen.tolist()]


def real(*rows: str) -> Tensor:
    return torch.tensor([[c == "1" for c in row] for row in rows])


CPU = torch.device("cpu")


def test_causality_is_aligned_to_the_end_of_the_keys() -> None:
    assert drawn(causal_visibility(3, 3, CPU)) == ["x..", "xx.", "xxx"]
    assert drawn(causal_visibility(2, 4, CPU)) == ["xxx.", "xxxx"]
    assert drawn(causal_visibility(1, 4, CPU)) == ["xxxx"]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("1111", ["x...", "xx..", "xxx.", "xxxx"]),
        ("0011", ["x...", ".x..", "..x.", "..xx"]),
        ("1100", ["x...", "xx..", "xxx.", "xx.x"]),
        ("1010", ["x...", "xx..", "x.x.", "x.xx"]),
        ("0000", ["x...", ".x..", "..x.", "...x"]),
    ],
)
def test_padding_is_seen_by_itself_only(mask: str, expected: list[str]) -> None:
    seen = padded_causal_visibility(real(mask), 4)
    assert seen.shape == (1, 1, 4, 4)
    assert drawn(seen[0, 0]) == expected
    assert drawn(padded_causal_visibility(real(mask), 2)[0, 0]) == expected[2:]


def test_positions_count_real_tokens() -> None:
    mask = real("1111", "0011", "1100", "1011", "0000")
    expected = [[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2], [0, 0, 0, 0]]
    assert positions_from_mask(mask, 4).tolist() == expected
    assert positions_from_mask(mask, 2).tolist() == [row[2:] for row in expected]


def test_a_bias_has_no_infinity() -> None:
    bias = torch.tensor([0.0, -1.5, -torch.inf])
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        found = finite_bias(bias, kind)
        assert found.dtype == kind
        assert found.isfinite().all()
        assert found[:2].tolist() == [0.0, -1.5]
