"""A row gets the ids that it gets alone, by every method, wherever its padding stands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2LMHeadModel
from tests.helpers import tiny_model
from tests.parity.record import compare, count

LENGTHS = (7, 3, 1, 5)
WIDTH = 9
GARBAGE = 11  # the id at padding columns: any id will do, and none may matter
PAD = 90
EOS = [3, 14, 40, 77]
SIDES = ("left", "right", "both", "holes", "mixed")
BATCHES = ((0, 1, 2, 3), (3, 1), (2, 2, 0))  # which rows are together

METHODS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy without a cache": {"use_cache": False},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "sampling in every way": {
        "do_sample": True, "temperature": 1.4, "top_k": 60, "top_p": 0.97, "min_p": 0.005,
        "typical_p": 0.97, "epsilon_cutoff": 1e-4, "eta_cutoff": 1e-4, "num_return_sequences": 2,
    },
    "repetition": {
        "repetition_penalty": 1.4, "encoder_repetition_penalty": 1.3, "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 2,
    },
    "words": {
        "bad_words_ids": [[5], [19, 14]], "sequence_bias": {(14, 19): 3.0, (2,): 1.0},
        "suppress_tokens": [7, 8], "begin_suppress_tokens": [14, 52, 67], "do_sample": True,
    },
    "lengths": {
        "min_length": 8, "max_length": 12, "forced_bos_token_id": 1, "forced_eos_token_id": 3,
        "exponential_decay_length_penalty": (2, 1.2),
    },
    "fewest new tokens": {"min_new_tokens": 7, "do_sample": True, "top_k": 0},
    "default length": {"default length": True, "do_sample": True},
    "guidance": {"guidance_scale": 1.7, "do_sample": True},
    "prefix": {"prefix_allowed_tokens_fn": lambda row, ids: [(7 * len(ids) + k) % 97
                                                             for k in range(11)]},
    "slide": {"long_context": "slide", "max_new_tokens": 12, "do_sample": True},
    "guided beams": {"num_beams": 2, "guidance_scale": 1.5},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "penalised beams": {
        "num_beams": 3, "early_stopping": "never", "length_penalty": 0.6, "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2, "min_new_tokens": 3,
    },
    "short beams": {"num_beams": 2, "max_length": 11, "early_stopping": True},
    "sampled beams": {"num_beams": 3, "do_sample": True, "temperature": 1.2},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "constrained beams": {"num_beams": 4, "force_words_ids": [[21], [5, 6]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "sampled prompt lookup": {"prompt_lookup_num_tokens": 3, "do_sample": True},
}  # fmt: skip


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 97, (n,), generator=generator) for n in LENGTHS]


def columns(side: str, row: int, length: int) -> Tensor:
    """Where a row's real tokens stand, in order."""
    if side == "mixed":
        side = ("left", "right", "holes", "both")[row % 4]
    if side == "left":
        return torch.arange(WIDTH - length, WIDTH)
    if side == "right":
        return torch.arange(length)
    if side == "both":
        return torch.arange(length) + (WIDTH - length) // 2
    generator = torch.Generator().manual_seed(row)
    return torch.randperm(WIDTH, generator=generator)[:length].sort().values


def padded(side: str, chosen: tuple[int, ...]) -> dict[str, Tensor]:
    ids = torch.full((len(chosen), WIDTH), GARBAGE)
    mask = torch.zeros(len(chosen), WIDTH, dtype=torch.int64)
    for place, row in enumerate(chosen):
        at = columns(side, row, LENGTHS[row])
        ids[place, at], mask[place, at] = rows()[row], 1
    return {"input_ids": ids, "attention_mask": mask}


def continued(
    model: GPT2LMHeadModel, prompt: dict[str, Tensor], settings: dict[str, Any], chosen: Any
) -> Any:
    """The new ids, with a seed for each row that is its number's, wherever it stands."""
    given = {"eos_token_id": EOS, "pad_token_id": PAD, **settings}
    if not (given.pop("default length", False) or "max_length" in given):
        given.setdefault("max_new_tokens", 10)
    if given.get("do_sample"):
        times = 1 if "num_beams" in given else given.get("num_return_sequences", 1)
        given["seed"] = [100 * row + i for row in chosen for i in range(times)]
    return model.generate(**prompt, return_only_new_tokens=True, **given)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_gets_the_ids_that_it_gets_alone(method: str) -> None:
    model, settings = tiny_model(n_positions=16 if method == "slide" else 32), METHODS[method]
    times, ended = settings.get("num_return_sequences", 1), 0
    alone = [
        continued(model, {"input_ids": ids[None]}, settings, [row])
        for row, ids in enumerate(rows())
    ]
    for side in SIDES:
        for chosen in BATCHES:
            found = continued(model, padded(side, chosen), settings, chosen)
            assert len(found) == times * len(chosen)
            for place, row in enumerate(chosen):
                here, there = found[times * place : times * (place + 1)], alone[row]
                width = min(here.shape[1], there.shape[1])
                assert torch.equal(here[:, :width], there[:, :width]), (side, chosen, row)
                assert (here[:, width:] == PAD).all(), (side, chosen, row)
                assert (there[:, width:] == PAD).all(), (side, chosen, row)
                ended += there.shape[1] < 10
                count("rows of padded batches compared with the row alone", times)
    never = ("fewest new tokens", "slide", "contrastive", "constrained beams")
    assert ended or method in never, "no row ends before the others: the test is too easy"


@pytest.mark.parametrize(
    "settings",
    [{"return_dict_in_generate": True}, {"num_beams": 2}, {"num_beams": 2, "use_cache": False},
     {"num_beams": 2, "num_beam_groups": 2}, {"num_beams": 2, "force_words_ids": [[5]]},
     {"penalty_alpha": 0.6, "top_k": 4}, {"prompt_lookup_num_tokens": 3}, {"guidance_scale": 1.5},
     {"cache_implementation": "static"}],
    ids=str,
)  # fmt: skip
def test_a_full_row_waits_for_the_others(settings: dict[str, Any]) -> None:
    """It has no position left, and stays in the batch while the others go on to the end."""
    model = tiny_model(n_positions=9)
    settings = {"max_length": 9, "eos_token_id": None, **settings}
    chosen = (0, 1, 2, 3)
    found = continued(model, padded("left", chosen), settings, chosen)
    found = found if isinstance(found, Tensor) else found.sequences
    for place, ids in enumerate(rows()):
        alone = continued(model, {"input_ids": ids[None]}, settings, [place])
        alone = alone if isinstance(alone, Tensor) else alone.sequences
        assert torch.equal(found[place, : 9 - len(ids)], alone[0])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("method", ["greedy", "sampling", "repetition", "guidance", "contrastive"])
def test_log_probabilities_are_those_of_the_row_alone(method: str, side: str) -> None:
    model = tiny_model()
    settings = {**METHODS[method], "return_dict_in_generate": True, "output_scores": True}
    chosen = BATCHES[0]
    together = continued(model, padded(side, chosen), settings, chosen)
    for place, ids in enumerate(rows()):
        alone = continued(model, {"input_ids": ids[None]}, settings, [place])
        length = alone.sequences.shape[1]
        assert torch.equal(together.sequences[place, :length], alone.sequences[0])
        for step in range(length):
            here, there = (x.scores[step].log_softmax(-1) for x in (together, alone))
            compare(
                "log-probabilities in padded batches",
                here[place], there[0], where=f"{method}, {side}, step {step}",
            )  # fmt: skip
