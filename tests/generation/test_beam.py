"""Beam methods: against brute force, against themselves in batches, and their refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GenerationConfig, GPT2LMHeadModel
from gpt2.errors import ArgumentError
from gpt2.generation.beam import sampled_candidates
from gpt2.generation.constraints import Progress, parse_words
from gpt2.modeling.cache import KVCache
from tests.helpers import assert_close, tiny_model

SMALL = 5  # tokens of the model whose sequences are all counted


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    made = tiny_model(n_positions=48)
    made.generation_config = GenerationConfig()
    return made


@pytest.fixture(scope="module")
def small() -> GPT2LMHeadModel:
    made = tiny_model(seed=3, vocab_size=SMALL, bos_token_id=0, eos_token_id=0)
    made.generation_config = GenerationConfig()
    return made


def ids(seed: int, *shape: int, below: int = 90) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def log_probability(model: GPT2LMHeadModel, prompt: Sequence[int], new: Sequence[int]) -> float:
    row = torch.tensor([[*prompt, *new]])
    each = model(row).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    return float(each.gather(-1, row[0, len(prompt) :, None]).sum())


# -- what is found --------------------------------------------------------------------------------


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("eos", [None, 2])
def test_with_enough_beams_the_best_of_all_sequences(
    small: GPT2LMHeadModel, eos: int | None, length_penalty: float
) -> None:
    """Every sequence of 3 tokens is tried; early_stopping="never" lets none of them go."""
    prompt, n = [1, 4, 3], 3
    sequences = set()
    for tokens in itertools.product(range(SMALL), repeat=n):
        end = tokens.index(eos) + 1 if eos in tokens else n
        sequences.add(tokens[:end])
    by_score = sorted(
        ((log_probability(small, prompt, s) / len(s) ** length_penalty, s) for s in sequences),
        reverse=True,
    )
    output = small.generate(
        torch.tensor([prompt]), num_beams=SMALL**2, num_return_sequences=4, max_new_tokens=n,
        length_penalty=length_penalty, early_stopping="never", eos_token_id=eos, pad_token_id=0,
        return_dict_in_generate=True, return_only_new_tokens=True,
    )  # fmt: skip
    for i, (score, sequence) in enumerate(by_score[:4]):
        assert output.sequences[i, : len(sequence)].tolist() == list(sequence)
        assert output.sequences_scores[i].item() == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_scores_say_what_the_model_says(model: GPT2LMHeadModel, groups: int) -> None:
    """sequences_scores, and compute_transition_scores by way of scores and beam_indices."""
    prompt = ids(1, 2, 4)
    diverse = {"num_beam_groups": groups} if groups > 1 else {}
    output = model.generate(
        prompt, num_beams=4, num_return_sequences=3, max_new_tokens=7, eos_token_id=[7, 30, 41],
        pad_token_id=5, length_penalty=0.5, return_dict_in_generate=True, output_scores=True,
        return_only_new_tokens=True, **diverse,
    )  # fmt: skip
    each = model.compute_transition_scores(
        output.sequences, output.scores, output.beam_indices, normalize_logits=False
    )
    for row, (new, beams) in enumerate(zip(output.sequences, output.beam_indices, strict=True)):
        length = int((beams >= 0).sum())
        total = log_probability(model, prompt[row // 3].tolist(), new[:length].tolist())
        assert each[row, :length].sum().item() == pytest.approx(total, abs=1e-4)
        assert output.sequences_scores[row].item() == pytest.approx(total / length**0.5, abs=1e-4)
        assert (beams // 4 == row // 3)[:length].all()  # beams of its own prompt


def test_groups_keep_away_from_each_other(model: GPT2LMHeadModel) -> None:
    """A penalty that outdoes every score: no two groups begin alike."""
    output = model.generate(
        ids(2, 2, 5), num_beams=6, num_beam_groups=6, num_return_sequences=6, max_new_tokens=3,
        diversity_penalty=1000.0, return_only_new_tokens=True,
    )  # fmt: skip
    for row in (output[:6], output[6:]):
        for column in row.T.tolist():
            assert len(set(column)) == 6


def test_sampled_beams_draw_as_multinomial_does() -> None:
    totals = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    expected = torch.multinomial(totals.softmax(-1), 6)
    torch.manual_seed(1)
    assert torch.equal(sampled_candidates(totals, 6, None), expected)
    generators = [torch.Generator().manual_seed(s) for s in (4, 5, 6)]
    drawn = sampled_candidates(totals, 6, generators)
    alone = sampled_candidates(totals[1:2], 6, [torch.Generator().manual_seed(5)])
    assert torch.equal(drawn[1:2], alone)


def test_early_stopping(model: GPT2LMHeadModel) -> None:
    """True stops at num_beams ended sequences; "never" finds a score at least as good as False."""
    settings: dict[str, Any] = {
        "num_beams": 3, "max_new_tokens": 20, "length_penalty": 2.0, "pad_token_id": 0,
        "eos_token_id": list(range(0, 90, 6)), "return_dict_in_generate": True,
    }  # fmt: skip
    lengths, scores = [], []
    for early in (True, False, "never"):
        output = model.generate(ids(3, 4, 5), early_stopping=early, **settings)
        lengths.append(output.sequences.shape[1])
        scores.append(output.sequences_scores)
    assert lengths[0] < lengths[2]
    assert (scores[2] >= scores[1]).all()
    assert (scores[2] >= scores[0]).all()
    assert (scores[2] > scores[0]).any()


def test_stop_rules_end_a_single_sequence(model: GPT2LMHeadModel) -> None:
    """A rule of the caller's is asked for every candidate, not for the batch."""
    prompt = ids(4, 2, 5)
    free = model.generate(prompt, num_beams=3, max_new_tokens=9, return_only_new_tokens=True)
    word = free[0, 4].item()

    def says_the_word(seen: Tensor, _scores: Any) -> Tensor:
        assert seen.shape[1] > 5, "the prompt and at least one new token"
        return seen[:, -1] == word

    by_rule = model.generate(
        prompt, num_beams=3, max_new_tokens=9, stopping_criteria=[says_the_word], pad_token_id=1
    )
    by_eos = model.generate(
        prompt, num_beams=3, max_new_tokens=9, eos_token_id=word, pad_token_id=1
    )
    assert torch.equal(by_rule, by_eos)


def test_time_ends_all(model: GPT2LMHeadModel) -> None:
    prompt = ids(5, 2, 5)
    for more in ({}, {"num_beam_groups": 2}, {"force_words_ids": [[5]]}):
        output = model.generate(prompt, num_beams=2, max_new_tokens=30, max_time=1e-9, **more)
        assert output.shape == (2, 6)


# -- words that must come -------------------------------------------------------------------------


def contains(row: Sequence[int], word: Sequence[int]) -> bool:
    return any(list(row[i : i + len(word)]) == list(word) for i in range(len(row)))


def test_forced_words_come(model: GPT2LMHeadModel) -> None:
    for seed in range(6):
        words: list[Any] = [[11, 12, 13], [44], [[50, 51], [60, 61, 62], [70]]]
        output = model.generate(
            ids(seed, 2, 4, below=10), num_beams=6, max_new_tokens=16, force_words_ids=words,
            eos_token_id=3, pad_token_id=3,
        )  # fmt: skip
        for row in output[:, 4:].tolist():
            assert contains(row, words[0])
            assert contains(row, words[1])
            assert any(contains(row, word) for word in words[2])


def test_progress() -> None:
    words = parse_words([[1, 2, 3], [[4, 5], [4, 6, 7], [8]]])
    start = Progress.start(words, [])
    assert start.next_tokens() == [1, 4, 8]
    assert (start.bank(), start.least_tokens()) == (0, 4)
    begun = start.after(4)
    assert begun.next_tokens() == [5, 6]
    assert (begun.bank(), begun.least_tokens()) == (1, 4)
    assert begun.after(6).next_tokens() == [7]  # and another beam of the same beginning
    assert begun.after(5).done == 1
    assert begun.after(5).next_tokens() == [1]
    lost = begun.after(1)  # gives the word up, and begins none
    assert (lost.current, lost.bank()) == (None, 0)
    assert lost.pending == (words[0], words[1])
    assert Progress.start(words, [1, 9]).pending == (
        words[1],
        words[0],
    )  # given up: behind the other
    whole = Progress.start(words, [9, 1, 2, 3, 0, 8])
    assert whole.complete
    assert whole.next_tokens() == []
    assert whole.after(1) == whole
    assert (whole.bank(), whole.least_tokens()) == (6, 0)


def test_words_in_the_prompt_count(model: GPT2LMHeadModel) -> None:
    prompt = torch.tensor([[1, 2, 3, 4]])
    plain = model.generate(prompt, num_beams=3, max_new_tokens=6)
    assert torch.equal(
        model.generate(prompt, num_beams=3, max_new_tokens=6, force_words_ids=[[2, 3]]), plain
    )


# -- batches --------------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam, early": {"num_beams": 4, "early_stopping": True, "length_penalty": 0.3},
    "beam, never": {"num_beams": 2, "early_stopping": "never", "length_penalty": -0.5},
    "beam, processors": {
        "num_beams": 3, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_new_tokens": 3,
    },
    "beam, no cache": {"num_beams": 2, "use_cache": False},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "words": {"num_beams": 4, "force_words_ids": [[11, 12], [[20], [21, 22]]]},
    "words, early": {
        "num_beams": 6, "force_words_ids": [[[21], [23, 25]]], "early_stopping": True,
        "eos_token_id": list(range(0, 97, 2)),
    },
    "sampled beams": {"num_beams": 3, "do_sample": True, "temperature": 1.3},
}  # fmt: skip
LENGTHS = (3, 6, 1, 5)
SIDES = ("left", "right", "mixed")


def padded_batch(rows: Sequence[Tensor], side: str, extra: int = 2) -> tuple[Tensor, Tensor]:
    """(ids, mask): padding on one side, or on both and in between."""
    width = max(map(len, rows)) + extra
    batch, mask = torch.full((len(rows), width), 33), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        if side == "left":
            columns = torch.arange(width - len(row), width)
        elif side == "right":
            columns = torch.arange(len(row))
        else:
            columns = torch.randperm(width, generator=torch.Generator().manual_seed(i))
            columns = columns[: len(row)].sort().values
        batch[i, columns] = row
        mask[i, columns] = 1
    return batch, mask.long()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_a_row_gives_what_it_gives_alone(model: GPT2LMHeadModel, method: str, side: str) -> None:
    settings = {
        **METHODS[method], "pad_token_id": 9, "max_new_tokens": 10, "return_dict_in_generate": True,
        "return_only_new_tokens": True, "output_scores": True,
    }  # fmt: skip
    rows = [ids(10 + i, n) for i, n in enumerate(LENGTHS)]
    batch, mask = padded_batch(rows, side)
    sampled = bool(settings.get("do_sample"))
    seeds = {"seed": [5, 6, 7, 8]} if sampled else {}
    free = model.generate(batch, attention_mask=mask, **settings, **seeds).sequences
    likely = set(free[:3, 2:6].flatten().tolist()) - {11, 12, 20, 21, 22}
    settings.setdefault("eos_token_id", sorted(likely)[:5])  # so that rows end, some early
    together = model.generate(batch, attention_mask=mask, **settings, **seeds)
    times = settings.get("num_return_sequences", 1)
    ended = 0
    for i, row in enumerate(rows):
        seed = {"seed": [seeds["seed"][i]]} if sampled else {}
        alone = model.generate(row[None], **settings, **seed)
        mine = slice(i * times, (i + 1) * times)
        n = alone.sequences.shape[1]
        ended += n < together.sequences.shape[1]
        assert torch.equal(together.sequences[mine, :n], alone.sequences)
        assert (together.sequences[mine, n:] == 9).all()
        assert_close(together.sequences_scores[mine], alone.sequences_scores)
    assert ended or method == "words", "no row ends before the others"


# -- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["beam", "groups", "words"])
def test_the_cache_is_allocated_once_and_read_once_a_step(
    model: GPT2LMHeadModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, passes = [], []
    allocate, forward = KVCache._reallocate, model.forward
    monkeypatch.setattr(
        KVCache,
        "_reallocate",
        lambda *a: made.append(1) or allocate(*a),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: passes.append(a[0].shape) or forward(*a, **k)
    )
    model.generate(ids(1, 2, 5), max_new_tokens=12, **METHODS[method])
    assert len(made) == model.config.n_layer
    beams = METHODS[method]["num_beams"]
    assert passes == [(2, 5)] + [(2 * beams, 1)] * 11  # the prompt once for each row


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3.*num_beams=2"),
        ({"num_beams": 5, "num_beam_groups": 2}, "num_beams=5.*num_beam_groups=2"),
        ({"num_beams": 4, "num_beam_groups": 2, "do_sample": True}, "num_beam_groups=2.*do_sample"),
        ({"num_beams": 2, "diversity_penalty": 1.0}, "diversity_penalty.*num_beam_groups"),
        ({"force_words_ids": [[1]]}, "force_words_ids.*num_beams"),
        ({"num_beams": 2, "force_words_ids": [[1, 2], [3] * 9]}, "force_words_ids.* 11 .*only 8"),
        ({"num_beams": 2, "force_words_ids": [[[1, 2], [1, 2, 3]]]}, r"\[1, 2\] begins.*2, 3\]"),
        ({"num_beams": 2, "force_words_ids": [[1], [97]]}, "force_words_ids.*97"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping.*'soon'"),
        ({"num_beams": 0}, "num_beams.*0"),
        ({"length_penalty": 2.0}, "length_penalty.*num_beams"),
    ],
)  # fmt: skip
def test_refused_before_the_first_pass(
    model: GPT2LMHeadModel,
    settings: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "forward", lambda *_a, **_k: pytest.fail("a forward pass was made"))
    with pytest.raises(ArgumentError, match=words):
        model.generate(ids(1, 1, 3), max_new_tokens=8, **settings)


@pytest.mark.parametrize("method", ["beam", "groups", "words", "sampled beams"])
def test_scores_that_nobody_can_choose_from(model: GPT2LMHeadModel, method: str) -> None:
    def nan(_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(torch.arange(scores.shape[-1]) == 4, math.nan)

    def nothing(_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -math.inf)

    for process in (nan, nothing):
        with pytest.raises(ArgumentError, match="no token to choose at new token 0"):
            model.generate(
                ids(1, 2, 3), max_new_tokens=6, logits_processor=[process], **METHODS[method]
            )


def test_a_dead_end_of_one_beam_is_no_error(model: GPT2LMHeadModel) -> None:
    """Other beams go on; what has ended stays."""

    def only_eos_then_nothing(seen: Tensor, scores: Tensor) -> Tensor:
        if seen.shape[1] == 4:
            return scores.masked_fill(torch.arange(scores.shape[-1]) != 7, -math.inf)
        return torch.full_like(scores, -math.inf)

    output = model.generate(
        ids(1, 1, 4), num_beams=2, max_new_tokens=6, eos_token_id=7, pad_token_id=0,
        logits_processor=[only_eos_then_nothing], return_only_new_tokens=True,
    )  # fmt: skip
    assert output.tolist() == [[7]]
