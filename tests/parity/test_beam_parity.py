"""Beam search and beam sampling give the ids that transformers gives, under the same seed."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.record import compare, count
from tests.parity.reference import BACKENDS, SIZES, Pairs, random_ids, transformers

pytestmark = [
    pytest.mark.parity,
    # Golden files hold what is 4.48.3's: diverse and constrained beams.
    pytest.mark.skipif(
        transformers.__version__.startswith("4."),
        reason="5.x scores and ends beams by other rules than 4.x, and they are ours",
    ),
    # the reference advises to set a length; leaving it out is what some settings are about
    pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning"),
]

LM, VOCAB = "GPT2LMHeadModel", SIZES["vocab_size"]
CONFIG = {"n_positions": 48}
MODELS: tuple[dict[str, Any], ...] = (CONFIG, {**CONFIG, "n_layer": 3, "n_head": 2})
TIE = 1e-5  # sequences whose scores are nearer than this: either may be kept


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("checkpoints"))


def both(
    pairs: Pairs, backend: str, model: dict[str, Any], seed: int, **arguments: Any
) -> tuple[Any, Any]:
    """(ours, theirs) for the same arguments and the same seed of torch, scores included."""
    arguments |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    torch.manual_seed(seed)
    ours = pairs.ours(LM, backend, **model).generate(**arguments)
    torch.manual_seed(seed)
    theirs = pairs.theirs(LM, **model).generate(**arguments)
    return ours, theirs


def check(pairs: Pairs, backend: str, model: dict[str, Any], seed: int, **arguments: Any) -> Tensor:
    """Equal ids, beams and scores, but where two sequences tie; those are counted."""
    ours, theirs = both(pairs, backend, model, seed, **arguments)
    kind = "beam sampling" if arguments.get("do_sample") else "beam search"
    shown = {k: v for k, v in arguments.items() if not isinstance(v, Tensor)}
    count(f"settings of {kind}")
    count(f"ids compared, {kind}", theirs.sequences.numel())
    count("rows of beams parted by a tie", 0)
    if ours.sequences.shape != theirs.sequences.shape or not torch.equal(
        ours.sequences, theirs.sequences
    ):
        detail = f"{shown}: ours {ours.sequences.tolist()}, theirs {theirs.sequences.tolist()}"
        near = torch.isclose(ours.sequences_scores, theirs.sequences_scores, rtol=TIE, atol=TIE)
        assert near.all(), f"{detail}; {ours.sequences_scores} {theirs.sequences_scores}"
        assert not arguments.get("do_sample"), detail
        count("rows of beams parted by a tie")
        return theirs.sequences
    where = f"{shown}"
    compare("sequences_scores", ours.sequences_scores, theirs.sequences_scores, where=where)
    assert torch.equal(ours.beam_indices, theirs.beam_indices.long()), where
    assert len(ours.scores) == len(theirs.scores)
    for mine, reference in zip(ours.logits, theirs.logits, strict=True):
        # Beams that are out of the running may be copies of any; the ones in it come first.
        compare("logits of beams", mine[:1], reference[:1], where=where)
    return theirs.sequences


def test_plain_beams(pairs: Pairs) -> None:
    for num_beams in (2, 3, 5):
        check(
            pairs, "eager", CONFIG, 0, input_ids=random_ids(1, 2, 5), num_beams=num_beams,
            max_new_tokens=12, attention_mask=torch.ones(2, 5, dtype=torch.long),
        )  # fmt: skip


def prompt(rng: random.Random, padded: bool) -> dict[str, Tensor]:
    rows, width = rng.randint(1, 3), rng.randint(1, 9)
    ids = random_ids(rng.randrange(10**6), rows, width)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(rows - 1):
            mask[row, : rng.randrange(width)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def likely_eos(pairs: Pairs, model: dict[str, Any], how_many: int, **given: Any) -> list[int]:
    """Ids that the reference does produce, so that sequences end, at different times."""
    free = pairs.theirs(LM, **model).generate(max_new_tokens=9, num_beams=4, **given)
    seen = free[:, -8:].flatten().unique().tolist()
    return seen[:: max(1, len(seen) // how_many)][:how_many]


def controls(rng: random.Random, padded: bool, eos: bool) -> dict[str, Any]:
    """Processors; none that reads the prompt where it is padded, since the reference would."""
    chosen: dict[str, Any] = {}
    if not padded:
        if rng.random() < 0.25:
            chosen["repetition_penalty"] = rng.choice((0.8, 1.2, 2.0))
        if rng.random() < 0.2:
            chosen["no_repeat_ngram_size"] = rng.choice((1, 2, 3))
        if rng.random() < 0.15:
            chosen["bad_words_ids"] = [[rng.randrange(VOCAB)], [3, rng.randrange(VOCAB)]]
        if rng.random() < 0.1:
            chosen["sequence_bias"] = {(rng.randrange(VOCAB),): 4.0, (5, 7): -3.0}
    if rng.random() < 0.15:
        chosen["suppress_tokens"] = rng.sample(range(VOCAB), 5)
    if rng.random() < 0.1:
        chosen["renormalize_logits"] = True
    if eos and rng.random() < 0.3:
        chosen["min_new_tokens"] = rng.randint(1, 4)
    if eos and rng.random() < 0.15:
        chosen["exponential_decay_length_penalty"] = (2, 1.2)
    return chosen


def random_settings(rng: random.Random, pairs: Pairs, model: dict[str, Any]) -> dict[str, Any]:
    padded = rng.random() < 0.4
    arguments: dict[str, Any] = prompt(rng, padded)
    ends = rng.choice((0, 1, 1, 2, 4))
    if ends:
        eos = likely_eos(pairs, model, ends, **arguments)
        arguments["eos_token_id"] = eos if ends > 1 else eos[0]
        arguments["pad_token_id"] = rng.randrange(1, VOCAB)  # it takes pad token 0 for none
    arguments["num_beams"] = rng.choice((2, 2, 3, 4, 6))
    arguments["max_new_tokens"] = rng.randint(4, 14)
    if rng.random() < 0.6:
        arguments["length_penalty"] = rng.choice((-2.0, -0.5, 0.0, 0.7, 2.0))
    if rng.random() < 0.6:
        arguments["early_stopping"] = rng.choice((True, "never"))
    if rng.random() < 0.5:
        arguments["num_return_sequences"] = rng.randint(1, arguments["num_beams"])
    arguments["use_cache"] = rng.random() < 0.9
    if rng.random() < 0.4:
        arguments["do_sample"] = True
        arguments["temperature"] = rng.choice((0.5, 1.0, 1.4))
        arguments["top_k"] = rng.choice((0, 1, 5, 50))
        arguments["top_p"] = rng.choice((1.0, 0.9, 0.3))
    return {**arguments, **controls(rng, padded, bool(ends))}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", range(8))
def test_random_settings(pairs: Pairs, block: int, backend: str) -> None:
    rng = random.Random(f"{block} {backend}")
    for _ in range(20):
        model = rng.choice(MODELS)
        arguments = random_settings(rng, pairs, model)
        check(pairs, backend, model, rng.randrange(10**6), **arguments)
