"""The processors against definitions written out on vectors small enough to enumerate."""

from __future__ import annotations

import inspect
import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GenerationConfig
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.generation import processors
from gpt2.generation.callers import OfRows, callers_processor, prefix_allowed
from gpt2.generation.processors import (
    encoder_no_repeat_ngram,
    encoder_repetition_penalty,
    epsilon_cutoff,
    eta_cutoff,
    exponential_decay,
    forced_bos,
    forced_eos,
    min_length,
    min_new_tokens,
    min_p,
    no_repeat_ngram,
    processors_for,
    remove_invalid_values,
    renormalize,
    repetition_penalty,
    suppress,
    suppress_at_begin,
    temperature,
    top_k,
    top_p,
    typical_p,
)

V = 7
IDS = torch.zeros(1, 0, dtype=torch.int64)
GENERATOR = torch.Generator().manual_seed(0)
ROWS = [torch.randn(V, generator=GENERATOR) * 2 for _ in range(20)]
EOS = torch.tensor([6])


def ids(*tokens: int) -> Tensor:
    return torch.tensor([tokens])


def kept(scores: Tensor) -> set[int]:
    return set(scores.isfinite().nonzero().flatten().tolist())


def chosen_for(**settings: Any) -> list[Any]:
    return processors_for(
        GenerationConfig(**settings),
        width=2,
        vocab_size=V,
        n_positions=32,
        device=torch.device("cpu"),
    )


# -- which tokens are sampled ---------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 7, 50])
def test_top_k_keeps_the_k_best(k: int) -> None:
    for row in ROWS:
        found = top_k(IDS, row[None], k=k)[0]
        best = sorted(range(V), key=lambda i: -row[i].item())[:k]
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
            for chosen in combinations(range(V), size)
            if probability[list(chosen)].sum() >= p
        )
        smallest = next(reaching)
        smallest = max(  # of those with as few tokens, the most probable one
            (
                set(chosen)
                for chosen in combinations(range(V), len(smallest))
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


@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 1.0])
def test_min_p_keeps_what_has_that_share_of_the_best(p: float) -> None:
    for row in ROWS:
        probability = row.softmax(0).tolist()
        expected = {i for i in range(V) if probability[i] >= p * max(probability)}
        assert kept(min_p(IDS, row[None], p=p)[0]) == expected


@pytest.mark.parametrize("p", [0.05, 0.4, 0.8])
def test_typical_p_keeps_the_least_surprising_of_that_mass(p: float) -> None:
    for row in ROWS:
        probability = row.double().softmax(0).tolist()
        entropy = -sum(q * math.log(q) for q in probability)
        order = sorted(range(V), key=lambda i: abs(-math.log(probability[i]) - entropy))
        expected, mass = set(), 0.0
        for i in order:
            expected.add(i)
            mass += probability[i]
            if mass >= p:
                break
        assert kept(typical_p(IDS, row[None], p=p)[0]) == expected


@pytest.mark.parametrize("epsilon", [0.001, 0.05, 0.3])
def test_epsilon_and_eta_cut_at_a_probability(epsilon: float) -> None:
    for row in ROWS:
        probability = row.double().softmax(0).tolist()
        best = probability.index(max(probability))
        expected = {i for i in range(V) if probability[i] >= epsilon} | {best}
        assert kept(epsilon_cutoff(IDS, row[None], epsilon=epsilon)[0]) == expected
        entropy = -sum(q * math.log(q) for q in probability)
        eta = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
        expected = {i for i in range(V) if probability[i] >= eta} | {best}
        assert kept(eta_cutoff(IDS, row[None], epsilon=epsilon)[0]) == expected


@pytest.mark.parametrize(
    ("process", "argument"),
    [(top_p, "p"), (min_p, "p"), (typical_p, "p"), (epsilon_cutoff, "epsilon"),
     (eta_cutoff, "epsilon")],
)  # fmt: skip
def test_a_number_of_tokens_always_stays(process: Any, argument: str) -> None:
    """Beams need one beside EOS to go on with."""
    sharp = torch.tensor([[9.0, 5.0, 3.0, 1.0, 0.0, -1.0, -2.0]])
    value = 0.99 if process in (min_p, epsilon_cutoff, eta_cutoff) else 0.01
    found = kept(process(IDS, sharp, **{argument: value}, keep=3)[0])
    assert len(found) >= 3
    assert 0 in found


def test_what_is_hidden_stays_hidden_and_harms_nobody() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, 0.5, -torch.inf, 0.0, 2.0, -torch.inf]])
    for process, settings in (
        (top_p, {"p": 0.9}), (min_p, {"p": 0.1}), (typical_p, {"p": 0.9}),
        (epsilon_cutoff, {"epsilon": 0.01}), (eta_cutoff, {"epsilon": 0.01}), (top_k, {"k": 5}),
        (renormalize, {}),
    ):  # fmt: skip
        found = process(IDS, scores, **settings)[0]
        assert not found.isnan().any()
        assert kept(found)
        assert kept(found) <= {1, 2, 4, 5}


# -- repetition -----------------------------------------------------------------------------------


def test_repetition_penalty_divides_what_is_positive_and_multiplies_the_rest() -> None:
    scores = torch.tensor([[2.0, -2.0, 1.0, 0.0, 3.0, -1.0, 5.0]])
    found = repetition_penalty(ids(0, 1, 1, 6), scores, penalty=2.0)[0]
    assert found.tolist() == [1.0, -4.0, 1.0, 0.0, 3.0, -1.0, 2.5]


def test_encoder_repetition_penalty_favours_the_prompt() -> None:
    scores = torch.tensor([[2.0, -2.0, 1.0, 0.0, 3.0, -1.0, 5.0]])
    found = encoder_repetition_penalty(ids(0, 1, 6), scores, penalty=2.0, width=2)[0]
    assert found.tolist() == [4.0, -1.0, 1.0, 0.0, 3.0, -1.0, 5.0]


def banned(scores: Tensor) -> set[int]:
    return set(range(V)) - kept(scores)


def test_no_ngram_comes_twice() -> None:
    free = torch.zeros(1, V)
    assert banned(no_repeat_ngram(ids(1, 2, 3, 1, 2), free, size=3)[0]) == {3}
    assert banned(no_repeat_ngram(ids(1, 2, 3, 1, 4, 1), free, size=2)[0]) == {2, 4}
    assert banned(no_repeat_ngram(ids(1, 2, 3), free, size=1)[0]) == {1, 2, 3}
    assert banned(no_repeat_ngram(ids(1, 2), free, size=3)[0]) == set()
    assert banned(no_repeat_ngram(ids(3, 3), free, size=2)[0]) == {3}


def test_no_ngram_of_the_prompt_comes_again() -> None:
    free = torch.zeros(1, V)
    prompt_and_new = ids(1, 2, 3, 4, 2)
    assert banned(encoder_no_repeat_ngram(prompt_and_new, free, size=2, width=4)[0]) == {3}
    assert banned(encoder_no_repeat_ngram(ids(1, 2, 4, 2, 4), free, size=2, width=2)[0]) == set()
    assert banned(no_repeat_ngram(ids(1, 2, 4, 2), free, size=2)[0]) == {4}


# -- words, beginnings and ends -------------------------------------------------------------------


def test_sequences_are_favoured_where_they_would_be_completed() -> None:
    (bias,) = chosen_for(sequence_bias={(1,): 2.0, (2, 3): 4.0, (5, 2, 3): 8.0, (0, 4): 16.0})
    assert bias(ids(5, 2), torch.zeros(1, V))[0].tolist() == [0, 2, 0, 12, 0, 0, 0]
    assert bias(ids(2), torch.zeros(1, V))[0].tolist() == [0, 2, 0, 4, 0, 0, 0]
    assert bias(ids(0), torch.zeros(1, V))[0].tolist() == [0, 2, 0, 0, 16, 0, 0]
    (pairs,) = chosen_for(sequence_bias=[[[1], 2.0], [[2, 3], 4.0]])
    assert pairs(ids(5, 2), torch.zeros(1, V))[0].tolist() == [0, 2, 0, 4, 0, 0, 0]


def test_bad_words_do_not_come() -> None:
    (words,) = chosen_for(bad_words_ids=[[1], [2, 3], [6]], eos_token_id=6)
    assert banned(words(ids(0, 2), torch.zeros(1, V))[0]) == {1, 3}  # EOS alone is no bad word
    assert banned(words(ids(2, 0), torch.zeros(1, V))[0]) == {1}


def test_suppressed_tokens() -> None:
    assert banned(suppress(IDS, torch.zeros(1, V), tokens=torch.tensor([1, 4]))[0]) == {1, 4}


@pytest.mark.parametrize(
    ("so_far", "width", "forced", "expected"),
    [
        ((1, 2), 2, False, {3}), ((1, 2, 5), 2, False, set()), ((1,), 1, False, {3}),
        ((1,), 1, True, set()), ((1, 5), 1, True, {3}), ((1, 5, 5), 1, True, set()),
        ((-1, 1), 2, True, set()), ((-1, 1, 5), 2, True, {3}), ((1, 2), 2, True, {3}),
    ],
)  # fmt: skip
def test_suppressed_at_the_beginning(
    so_far: tuple[int, ...], width: int, forced: bool, expected: set[int]
) -> None:
    found = suppress_at_begin(
        ids(*so_far), torch.zeros(1, V), tokens=torch.tensor([3]), width=width, forced_bos=forced
    )
    assert banned(found[0]) == expected


def test_no_end_before_a_length() -> None:
    free = torch.zeros(1, V)
    assert banned(min_length(ids(1, 2), free, length=3, eos=EOS)[0]) == {6}
    assert banned(min_length(ids(1, 2, 3), free, length=3, eos=EOS)[0]) == set()
    assert banned(min_length(ids(-1, 2, 3), free, length=3, eos=EOS)[0]) == {6}  # padding
    assert banned(min_length(ids(-2, -2, 3), free, length=3, eos=EOS)[0]) == set()  # embeddings
    assert banned(min_new_tokens(ids(1, 2, 3), free, count=2, width=2, eos=EOS)[0]) == {6}
    assert banned(min_new_tokens(ids(1, 2, 3, 4), free, count=2, width=2, eos=EOS)[0]) == set()


def test_forced_tokens() -> None:
    free, tokens = torch.randn(1, V), torch.tensor([5, 6])
    assert kept(forced_bos(ids(3), free, tokens=tokens)[0]) == {5, 6}
    assert kept(forced_bos(ids(-1, 3), free, tokens=tokens)[0]) == {5, 6}
    assert torch.equal(forced_bos(ids(3, 3), free, tokens=tokens), free)
    at = {"tokens": tokens, "width": 2}
    assert kept(forced_eos(ids(1, 2, 3), free, longest=4, most=9, **at)[0]) == {5, 6}
    assert kept(forced_eos(ids(1, 2, 3), free, longest=9, most=2, **at)[0]) == {5, 6}
    assert torch.equal(forced_eos(ids(1, 2), free, longest=4, most=2, **at), free)
    assert torch.equal(forced_eos(ids(-1, 2, 3), free, longest=4, most=9, **at), free)


def test_the_end_is_favoured_more_and_more() -> None:
    scores = torch.tensor([[0.0, 0, 0, 0, 0, 0, -2.0]])
    at = {"start": 1, "factor": 1.5, "width": 2, "eos": EOS}
    assert torch.equal(exponential_decay(ids(1, 2, 3), scores, **at), scores)
    found = [exponential_decay(ids(1, 2, *[3] * n), scores, **at)[0, 6].item() for n in (2, 3)]
    assert found == [-2.0 + 2 * (1.5 - 1), -2.0 + 2 * (1.5**2 - 1)]
    hidden = scores.masked_fill(scores < 0, -torch.inf)
    assert torch.equal(exponential_decay(ids(1, 2, 3, 3), hidden, **at), hidden)


def test_invalid_values_are_replaced_and_scores_renormalised() -> None:
    odd = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0, 0, 0, 0]])
    largest = torch.finfo(torch.float32).max
    found = remove_invalid_values(IDS, odd)[0].tolist()
    assert found == pytest.approx([0.0, largest, -largest, 1.0, 0, 0, 0])
    for row in ROWS:
        assert renormalize(IDS, row[None])[0].exp().sum().item() == pytest.approx(1.0)


# -- the caller's own -----------------------------------------------------------------------------


def test_a_callers_processor_gets_the_documented_ids_and_may_work_in_place() -> None:
    def in_place(input_ids: Tensor, scores: Tensor) -> Tensor:
        assert torch.equal(input_ids, ids(9, 3))
        scores[:, 2] = 5.0
        return scores

    scores = torch.zeros(1, V)
    found = callers_processor(in_place).apply(ids(9, 3), ids(-1, 3), scores, None)
    assert found[0, 2] == 5
    assert torch.equal(scores, torch.zeros(1, V))
    with pytest.raises(ArgumentTypeError, match=r"logits_processor: .* \(1, 7\), not NoneType"):
        callers_processor(lambda i, s: None).apply(IDS, IDS, scores, None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ArgumentTypeError, match=r"logits_processor: .* \(1, 7\), not \(1, 3\)"):
        callers_processor(lambda i, s: s[:, :3]).apply(IDS, IDS, scores, None)


def test_prefix_allowed_tokens() -> None:
    asked = []

    def allowed(row: int, tokens: Tensor) -> list[int]:
        asked.append((row, tokens.tolist()))
        return [row, 5]

    rows = torch.tensor([[-1, 2, 3], [4, 5, 6]])
    process = prefix_allowed(allowed, 1)
    found = process.apply(rows, rows, torch.zeros(2, V), None)
    assert asked == [(0, [2, 3]), (1, [4, 5, 6])]
    assert [kept(row) for row in found] == [{0, 5}, {1, 5}]
    found = process.apply(rows, rows, torch.zeros(2, V), torch.tensor([3, 3]))
    assert asked[2:] == [(3, [2, 3]), (3, [4, 5, 6])]
    hidden = torch.zeros(2, V).index_fill(1, torch.tensor([0, 5]), -torch.inf)
    assert [kept(row) for row in process.apply(rows, rows, hidden, None)] == [{0, 5}, {1}]
    # of the beams of one row, one that can go on is enough
    beams = prefix_allowed(lambda row, tokens: [int(tokens[-1]) % V, 5], 2)
    found = beams.apply(rows, rows, hidden, torch.tensor([0, 0]))
    assert [kept(row) for row in found] == [{3}, {6}]
    hopeless = torch.full((2, V), -torch.inf)
    assert [kept(r) for r in beams.apply(rows, rows, hopeless, torch.tensor([0, 0]))] == [
        {3, 5},
        {5, 6},
    ]
    for nothing in ([], [7], [-1]):
        with pytest.raises(ArgumentError, match=r"prefix_allowed_tokens_fn .* row 0 it returned"):
            prefix_allowed(lambda row, tokens, n=nothing: n, 1).apply(
                rows, rows, torch.zeros(2, V), None
            )


# -- all of them ----------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "sequence_bias": {(1,): 0.3, (2, 3): 0.7},
    "encoder_repetition_penalty": 1.2,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 4,
    "bad_words_ids": [[4, 5]],
    "min_length": 6,
    "min_new_tokens": 2,
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 6,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (0, 1.1),
    "suppress_tokens": [0],
    "begin_suppress_tokens": [2],
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 6,
    "top_p": 0.95,
    "min_p": 0.01,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.001,
    "eta_cutoff": 0.001,
    "renormalize_logits": True,
    "eos_token_id": 6,
    "max_length": 30,
}
ORDER = [
    "sequence_bias", "encoder_repetition_penalty", "repetition_penalty",
    "no_repeat_ngram", "encoder_no_repeat_ngram", "sequence_bias",
    "min_length", "min_new_tokens", "forced_bos",
    "forced_eos", "remove_invalid_values", "exponential_decay",
    "suppress", "suppress_at_begin", "temperature",
    "top_k", "top_p", "min_p",
    "typical_p", "epsilon_cutoff", "eta_cutoff",
    "renormalize",
]  # fmt: skip


def name_of(process: Any) -> str:
    return getattr(process, "func", process).__name__


def test_settings_choose_processors_in_the_references_order() -> None:
    assert [name_of(p) for p in chosen_for(**EVERYTHING)] == ORDER
    assert chosen_for() == []
    assert [name_of(p) for p in chosen_for(do_sample=True)] == ["top_k"]
    assert chosen_for(do_sample=True, top_k=None) == []
    assert chosen_for(do_sample=True, top_k=0, temperature=1.0, top_p=1.0) == []
    assert chosen_for(min_length=3, min_new_tokens=2) == []  # no EOS to hold back


def test_the_callers_own_stand_between() -> None:
    def own(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores

    chosen = processors_for(
        GenerationConfig(forced_bos_token_id=1, min_new_tokens=1, eos_token_id=6, do_sample=True,
                         suppress_tokens=[1]),
        width=1, vocab_size=V, n_positions=32, device=torch.device("cpu"),
        logits_processor=[own, own], prefix_allowed_tokens_fn=lambda row, tokens: [1],
    )  # fmt: skip
    kinds = ["own" if isinstance(p, OfRows) else name_of(p) for p in chosen]
    assert kinds == ["min_new_tokens", "own", "forced_bos", "suppress", "own", "own", "top_k"]


def test_every_function_of_the_module_is_in_the_order() -> None:
    public = {
        name
        for name, f in vars(processors).items()
        if inspect.isfunction(f) and f.__module__ == processors.__name__ and name[0] != "_"
    }
    assert public - {"processors_for", "force"} == set(ORDER)


HISTORIES = torch.tensor(
    [[1, 2, 3, 1, 2, 4, 5], [2, 3, 2, 3, 2, 3, 2], [3, 3, 3, 3, 1, 1, 4], [0, 6, 2, 4, 4, 2, 5]]
)


def chain(history: Tensor, scores: Tensor, width: int) -> Tensor:
    for process in processors_for(
        GenerationConfig(**EVERYTHING), width=width, vocab_size=V, n_positions=32,
        device=torch.device("cpu"),
    ):  # fmt: skip
        scores = process(history, scores)  # type: ignore[operator]
    return scores


@pytest.mark.parametrize("new", [0, 1, 3])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_rows_do_not_mix_and_padding_is_nobodys_token(padding: int, new: int) -> None:
    """Each row of a left-padded batch gets, to the bit, what it gets alone without padding."""
    batch = torch.stack(ROWS[:4])
    width = HISTORIES.shape[1] - new
    lengths = [width, width - 1, width - 2, 1]
    padded = torch.nn.functional.pad(HISTORIES, (padding, 0), value=-1)
    for row, length in enumerate(lengths):
        padded[row, : padding + width - length] = -1
    together = chain(padded, batch, padding + width)
    for row, length in enumerate(lengths):
        alone = chain(HISTORIES[row : row + 1, width - length :], batch[row : row + 1], length)
        assert torch.equal(together[row], alone[0])


def test_scores_that_are_given_are_not_changed() -> None:
    scores = torch.stack(ROWS[:4])
    before = scores.clone()
    for process in chosen_for(**EVERYTHING):
        process(HISTORIES, scores)
        assert torch.equal(scores, before), name_of(process)
