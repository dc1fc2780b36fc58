"""Ours against generation.json of make_golden_generation.py: needs no transformers.

It holds what transformers 4.48.3 gave by diverse beams, constrained beams and
contrastive search, under random settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GenerationConfig, GPT2LMHeadModel
from tests.parity.record import count

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "generation.json").read_text())
METHODS = ("diverse", "constrained", "contrastive")
BACKENDS = ("eager", "sdpa")


@pytest.fixture(scope="module", params=BACKENDS)
def model(request: pytest.FixtureRequest) -> GPT2LMHeadModel:
    loaded = GPT2LMHeadModel.from_pretrained(
        HERE / "models" / GOLDEN["about"]["model"],
        attn_implementation=request.param,
        local_files_only=True,
    )
    loaded.generation_config = GenerationConfig()  # no EOS but a case's own
    return loaded


def test_the_file_is_what_it_should_be() -> None:
    assert GOLDEN["about"]["transformers"] == "4.48.3"
    for method in METHODS:
        assert sum(case["method"] == method for case in GOLDEN["cases"]) == 80


def with_first_eos(output: Any, prompt_width: int, eos: list[int]) -> Tensor:
    """The ids of beams, their last token written as that release writes it: as the first EOS."""
    ids: Tensor = output.sequences.clone()
    for row, length in enumerate((output.beam_indices >= 0).sum(-1).tolist()):
        last = prompt_width + length - 1
        if ids[row, last].item() in eos:
            ids[row, last] = eos[0]
    return ids


def parted_by_ties(output: Any, ours: Tensor, expected: Tensor) -> int:
    """Rows that differ, where the same sequences stand in another order of equal scores; −1: else.

    Sequences with a forbidden token have a score of −inf, and so tie.
    """
    if ours.shape != expected.shape or sorted(ours.tolist()) != sorted(expected.tolist()):
        return -1
    differ = (ours != expected).any(-1).nonzero()[:, 0].tolist()
    return len(differ) if len({float(output.sequences_scores[row]) for row in differ}) == 1 else -1


@pytest.mark.parametrize("method", METHODS)
def test_same_ids(model: GPT2LMHeadModel, method: str) -> None:
    count("rows of golden beams parted by a tie", 0)
    for number, case in enumerate(GOLDEN["cases"]):
        if case["method"] != method:
            continue
        settings, expected = case["settings"], torch.tensor(case["expected"])
        output = model.generate(
            torch.tensor(case["ids"]),
            attention_mask=torch.tensor(case["mask"]),
            return_dict_in_generate=True,
            **settings,
        )
        eos = settings.get("eos_token_id", [])
        ours: Tensor = output.sequences
        if method != "contrastive":
            ours = with_first_eos(
                output, len(case["ids"][0]), eos if isinstance(eos, list) else [eos]
            )
        if not torch.equal(ours, expected):
            tied = parted_by_ties(output, ours, expected) if method != "contrastive" else -1
            # An EOS that was forced as a word looks like an end in `with_first_eos`.
            forced = output.sequences.shape == expected.shape and torch.equal(
                output.sequences, expected
            )
            assert tied > 0 or forced, (
                f"case {number}: {settings}\nours {ours.tolist()}\nexpected {expected.tolist()}"
            )
            count("rows of golden beams parted by a tie", max(tied, 0))
        count(f"golden settings of {method}")
        count("golden ids compared", expected.numel())
