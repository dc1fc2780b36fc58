"""The processors against brute force on vectors small enough to enumerate."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from gpt2 import GenerationConfig
from gpt2.generation.processors import processors_for, temperature, top_k, top_p

IDS = torch.zeros(1, 0, dtype=torch.int64)
GENERATOR = torch.Generator().manual_seed(0)
ROWS = [torch.randn(7, generator=GENERATOR) * 2 for _ in range(20)]


def kept(scores: Tensor) -> set[int]:
    return set(scores.isfinite().nonzero().flatten().tolist())


@pytest.mark.parametrize("k", [1, 2, 5, 7, 50])
def test_top_k_keeps_the_k_best(k: int) -> None:
    for row in ROWS:
        found = top_k(IDS, row[None], k=k)[0]
        best = sorted(range(7), key=lambda i: -row[i].item())[:k]
        assert kept(found) == set(best)
        assert torch.equal(found[best], row[best])  # what stays is unchanged


def test_top_k_keeps_ties_with_the_kth() -> None:
    assert kept(top_k(IDS, torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]]), k=2)[0]) == {0, 2, 3}


@pytest.mark.parametrize("p", [0.001, 0.3, 0.6, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float) -> None:
    for row in ROWS:
        probability = row.double().softmax(0)
        reaching = (
            set(chosen)
            for size in range(1, 8)
            for chosen in combinations(range(7), size)
            if probability[list(chosen)].sum() >= p
        )
        smallest = next(reaching)
        smallest = max(  # of those with as few tokens, the most probable one
            (
                set(chosen)
                for chosen in combinations(range(7), len(smallest))
                if probability[list(chosen)].sum() >= p
            ),
            key=lambda chosen: probability[list(chosen)].sum().item(),
        )
        found = top_p(IDS, row[None], p=p)[0]
        assert kept(found) == smallest
        assert torch.equal(found[sorted(smallest)], row[sorted(smallest)])


def test_top_p_always_keeps_one() -> None:
    assert kept(top_p(IDS, torch.tensor([[0.0, 9.0, 0.0]]), p=1e-9)[0]) == {1}
    equal = top_p(IDS, torch.zeros(1, 4), p=0.5)[0]
    assert len(kept(equal)) == 2
    assert kept(top_p(IDS, torch.tensor([[0.0, -torch.inf, 1.0]]), p=0.99)[0]) == {0, 2}


def test_temperature_divides() -> None:
    for row in ROWS:
        assert torch.equal(temperature(IDS, row[None], value=0.5)[0], row * 2)


def test_rows_do_not_mix() -> None:
    batch = torch.stack(ROWS)
    for process in processors_for(
        GenerationConfig(do_sample=True, temperature=0.7, top_k=4, top_p=0.8)
    ):
        together = process(IDS.expand(20, 0), batch)
        alone = torch.cat([process(IDS, row[None]) for row in batch])
        assert torch.equal(together, alone)
        batch = together


def test_scores_that_are_given_are_not_changed() -> None:
    scores = torch.stack(ROWS)
    before = scores.clone()
    top_k(IDS, scores, k=2), top_p(IDS, scores, p=0.5), temperature(IDS, scores, value=2.0)
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"do_sample": True}, ["top_k"]),
        ({"do_sample": True, "top_k": None}, []),
        ({"do_sample": True, "top_k": 0, "temperature": 1.0, "top_p": 1.0}, []),
        (
            {"do_sample": True, "temperature": 0.5, "top_p": 0.9},
            ["temperature", "top_k", "top_p"],
        ),
    ],
)
def test_settings_choose_processors_in_order(settings: dict[str, object], names: list[str]) -> None:
    chosen = processors_for(GenerationConfig(**settings))  # type: ignore[arg-type]
    assert [p.func.__name__ for p in chosen] == names  # type: ignore[attr-defined]
