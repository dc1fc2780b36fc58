"""When a row ends: stop strings in bytes, time, the caller's criteria, several rules at once."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.generation.stopping import Stopping, StopStrings
from tests.helpers import tiny_model

CPU = torch.device("cpu")
TEXT = "the fox’s hat. É là, ναι 🦊 the hat 🦊🦔 the end.\n"
TOKENIZER = GPT2Tokenizer.train([TEXT] * 4, 300, show_progress=False)


def strings_for(strings: str | list[str], prompt: list[int]) -> StopStrings:
    found = StopStrings(strings, TOKENIZER)
    found.prompts = [prompt]
    return found


# -- stop strings ---------------------------------------------------------------------------------


def test_stop_strings_end_at_the_token_that_completes_one() -> None:
    """Against the text itself: the first token after which it has an occurrence that is new."""
    rng = random.Random(0)
    hits = 0
    for _ in range(300):
        ids = [rng.randrange(len(TOKENIZER)) for _ in range(4)] + TOKENIZER.encode(TEXT)
        rng.shuffle(ids)
        prompt, new = ids[: rng.randrange(len(ids))], ids[-10:]
        start = rng.randrange(len(TEXT))
        strings = [TEXT[start : start + rng.randint(1, 4)], "hat"][: rng.randint(1, 2)]
        stop = strings_for(strings, prompt)
        for n in range(1, len(new) + 1):
            before = b"".join(map(stop.bytes_of, prompt + new[: n - 1]))
            after = before + stop.bytes_of(new[n - 1])
            ends = {i + len(s) for s in stop.strings for i in range(len(after))
                    if after.startswith(s, i)}  # fmt: skip
            expected = any(end > len(before) for end in ends)
            assert stop.ended(0, new[:n]) == expected
            hits += expected
    assert hits > 100


def test_stop_strings_within_a_character_and_over_tokens() -> None:
    fox = "🦊".encode()
    pieces = [TOKENIZER.convert_tokens_to_ids(t) for t in TOKENIZER.tokenize("🦊")]
    stop = strings_for("🦊", [])
    assert b"".join(map(stop.bytes_of, pieces)) == fox
    assert [stop.ended(0, pieces[: n + 1]) for n in range(len(pieces))][-1]
    assert not stop.ended(0, pieces[:-1]) or len(pieces) == 1
    # it may begin in the prompt, but not end there
    assert strings_for("🦊", pieces[:-1]).ended(0, pieces[-1:])
    (letter,) = TOKENIZER.encode("x")
    assert not strings_for("🦊", pieces).ended(0, [letter])
    # and a token may go on behind it
    long = max(range(len(TOKENIZER)), key=lambda i: len(stop.bytes_of(i)))
    text = stop.bytes_of(long).decode()
    assert strings_for(text[:-1], []).ended(0, [long])
    assert strings_for(text[0], []).ended(0, [long])


def test_added_tokens_and_ids_beyond_the_tokenizer() -> None:
    end = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
    assert strings_for("<|end", []).ended(0, [end])
    beyond = strings_for("a", [])
    assert beyond.bytes_of(len(TOKENIZER) + 5) == b""
    assert not beyond.ended(0, [len(TOKENIZER) + 5])


# -- the other rules ------------------------------------------------------------------------------


def test_eos_and_limits() -> None:
    stopping = Stopping([3, 5], [4, 2], device=CPU)
    tokens = torch.tensor([3, 4])
    assert stopping.ended(tokens, 0).tolist() == [True, False]
    assert stopping.ended(tokens, 1).tolist() == [True, True]  # the second row may have two
    assert stopping.ended(tokens, 1, torch.tensor([1, 0])).tolist() == [True, False]
    assert stopping.ended(torch.tensor([1, 1]), 3).tolist() == [True, True]
    assert not Stopping([], [4], device=CPU).ended(torch.tensor([0]), 0).any()


def test_time_runs_out() -> None:
    assert not Stopping([], [4], device=CPU).out_of_time()
    assert not Stopping([], [4], device=CPU, max_time=60.0).out_of_time()
    stopping = Stopping([], [4], device=CPU, max_time=1e-4)
    time.sleep(0.01)
    assert stopping.out_of_time()


def test_what_criteria_may_return() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)

    def told(*criteria: Any) -> list[bool]:
        return Stopping([], [4], device=CPU, criteria=criteria).told(ids, None).tolist()

    assert told(lambda i, s: False) == [False, False]
    assert told(lambda i, s: True) == [True, True]
    rows = torch.tensor([True, False])
    assert told(lambda i, s: rows, lambda i, s: torch.tensor(False)) == [True, False]
    with pytest.raises(ArgumentTypeError, match=r"stopping_criteria: .*, not NoneType"):
        told(lambda i, s: None)
    with pytest.raises(ArgumentError, match=r"stopping_criteria: .* shape \(3,\); expected \(2,\)"):
        told(lambda i, s: torch.zeros(3))


# -- in generate ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return tiny_model(vocab_size=len(TOKENIZER), n_positions=64, bos_token_id=0, eos_token_id=0)


IDS = torch.randint(1, 250, (3, 4), generator=torch.Generator().manual_seed(1))
FREE: dict[str, Any] = {"eos_token_id": None, "max_new_tokens": 12, "pad_token_id": 7}


def lengths(free: Tensor, ends: Any) -> list[int]:
    """Up to the first position at which ``ends(row, n)`` holds for the first n new ids."""
    return [
        next((n for n in range(1, 13) if ends(i, row[: n])), 12)
        for i, row in enumerate(free[:, 4:].tolist())
    ]  # fmt: skip


def check(found: Tensor, free: Tensor, wanted: list[int]) -> None:
    assert found.shape[1] == 4 + max(wanted)
    for row, whole, n in zip(found[:, 4:].tolist(), free[:, 4:].tolist(), wanted, strict=True):
        assert row == whole[:n] + [7] * (len(row) - n)


@pytest.mark.parametrize(("do_sample", "times"), [(False, 1), (True, 1), (True, 2)])
def test_generate_stops_at_strings(model: GPT2LMHeadModel, do_sample: bool, times: int) -> None:
    settings = {**FREE, "do_sample": do_sample, "num_return_sequences": times}
    torch.manual_seed(0)
    free = model.generate(IDS, **settings)
    stop = StopStrings("x", TOKENIZER)
    pieces = [stop.bytes_of(int(free[0, 6])), stop.bytes_of(int(free[-1, 9]))]
    texts = [p.decode("utf-8", "ignore")[:2] for p in pieces]
    texts = [t for t in texts if t] or ["e"]
    stop = StopStrings(texts, TOKENIZER)
    stop.prompts = IDS.tolist()
    wanted = lengths(free, lambda i, new: stop.ended(i // times, new))
    assert min(wanted) < 12
    torch.manual_seed(0)
    found = model.generate(IDS, stop_strings=texts, tokenizer=TOKENIZER, **settings)
    check(found, free, wanted)
    one = model.generate(IDS[:1], stop_strings=texts[0], tokenizer=TOKENIZER, **FREE)
    assert one.shape[1] <= 16


def test_generate_stops_where_the_caller_says(model: GPT2LMHeadModel) -> None:
    free = model.generate(IDS, **FREE)
    seen = []

    def odd(input_ids: Tensor, scores: Any) -> Tensor:
        seen.append((input_ids.shape, scores))
        return input_ids[:, -1] % 3 == 0

    wanted = lengths(free, lambda i, new: new[-1] % 3 == 0)
    assert min(wanted) < max(wanted)
    check(model.generate(IDS, stopping_criteria=[odd], **FREE), free, wanted)
    # rows that have ended stay in the batch that it sees
    assert [shape for shape, _ in seen] == [(3, 5 + n) for n in range(max(wanted))]
    assert all(scores is None for _, scores in seen)
    seen.clear()
    model.generate(
        IDS, stopping_criteria=[odd], return_dict_in_generate=True, output_scores=True, **FREE
    )
    assert [len(scores) for _, scores in seen] == list(range(1, max(wanted) + 1))


def test_generate_stops_in_time(model: GPT2LMHeadModel) -> None:
    def slow(input_ids: Tensor, scores: Tensor) -> Tensor:
        time.sleep(0.03)
        return scores

    for method in ({}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 4}):
        found = model.generate(IDS, logits_processor=[slow], max_time=0.02, **FREE, **method)
        assert 5 <= found.shape[1] < 16


def test_rules_at_once(model: GPT2LMHeadModel) -> None:
    """EOS, a string, a criterion and the length, each ending another row."""
    free = model.generate(IDS, **FREE)
    new = free[:, 4:].tolist()
    eos, asked = new[0][3], new[2][7]
    wanted = lengths(free, lambda i, ids: ids[-1] in (eos, asked))
    found = model.generate(
        IDS,
        **{**FREE, "eos_token_id": eos},
        stopping_criteria=[lambda ids, scores: ids[:, -1] == asked],
        stop_strings=["no such thing"],
        tokenizer=TOKENIZER,
    )
    check(found, free, wanted)


def test_refusals(model: GPT2LMHeadModel) -> None:
    with pytest.raises(ArgumentTypeError, match=r"stop_strings='a' needs tokenizer="):
        model.generate(IDS, stop_strings="a")
    with pytest.raises(ArgumentTypeError, match="stopping_criteria must be a list of functions"):
        model.generate(IDS, stopping_criteria=[3])
    with pytest.raises(ArgumentTypeError, match="logits_processor must be a list of functions"):
        model.generate(IDS, logits_processor=["x"])
    with pytest.raises(ArgumentTypeError, match="logits_processor must be a list"):
        model.generate(IDS, logits_processor=lambda ids, scores: scores)
