"""What generate returns with return_dict_in_generate, and what can be done with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gpt2.errors import ArgumentError
from gpt2.generation.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    transition_scores,
)
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1, 1, 1, 0, 0]])
ALL: dict[str, Any] = {
    "eos_token_id": None, "max_new_tokens": 6, "return_dict_in_generate": True,
    "output_scores": True, "output_logits": True, "output_attentions": True,
    "output_hidden_states": True,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padded", [False, True])
def test_fields_and_shapes(method: str, padded: bool) -> None:
    model = tiny_model()
    mask = {"attention_mask": MASK} if padded else {}
    asked = dict(ALL)
    if method == "prompt lookup":  # its passes hold several tokens
        del asked["output_attentions"], asked["output_hidden_states"]
    out = model.generate(IDS, **mask, **asked, **METHODS[method])
    rows = 6 if method == "sampling" else 3
    assert type(out) is GenerateDecoderOnlyOutput
    steps = [name.removeprefix("output_") for name in asked if name.startswith("output_")]
    assert out.keys() == ["sequences", *steps, "past_key_values"]
    assert out.sequences.shape == (rows, 11)
    assert [s.shape for s in out.scores] == [(rows, 97)] * 6
    assert [s.shape for s in out.logits] == [(rows, 97)] * 6
    for step in range(6 if "attentions" in out else 0):
        assert len(out.attentions) == len(out.hidden_states) == 6
        fed, seen = (5, 5) if step == 0 else (1, 5 + step)
        assert [a.shape for a in out.attentions[step]] == [(rows, 4, fed, seen)] * 2
        assert [h.shape for h in out.hidden_states[step]] == [(rows, fed, 32)] * 3
    assert out.past_key_values.get_seq_length() == 10
    # the scores are those that a forward pass over the whole finds
    again = pytree.tree_map(lambda t: t, out)
    assert torch.equal(again.sequences, out.sequences)
    if not padded:
        with torch.no_grad():
            logits = model(out.sequences).logits
        for step, found in enumerate(out.logits):
            assert_close(found, logits[:, 4 + step])


def test_only_what_is_asked_for() -> None:
    out = tiny_model().generate(IDS, max_new_tokens=3, return_dict_in_generate=True)
    assert out.keys() == ["sequences", "past_key_values"]
    plain = tiny_model().generate(
        IDS, max_new_tokens=3, return_dict_in_generate=True, use_cache=False, output_scores=True
    )
    assert plain.keys() == ["sequences", "scores"]
    beams = tiny_model().generate(IDS, max_new_tokens=3, num_beams=2, return_dict_in_generate=True)
    assert type(beams) is GenerateBeamDecoderOnlyOutput


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"return_dict_in_generate": True}])
def test_only_new_tokens(settings: dict[str, Any]) -> None:
    model = tiny_model()
    whole = model.generate(IDS, max_new_tokens=4, **settings)
    new = model.generate(IDS, max_new_tokens=4, return_only_new_tokens=True, **settings)
    if settings.get("return_dict_in_generate"):
        whole, new = whole.sequences, new.sequences
    assert torch.equal(whole[:, 5:], new)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_end_early_do_not_change_the_others(method: str) -> None:
    """They stay in the batch where states are returned, and nobody sees what is fed to them."""
    settings: dict[str, Any] = {
        **METHODS[method], "max_new_tokens": 8, "return_dict_in_generate": True,
        "output_scores": True,
    }  # fmt: skip
    model = tiny_model(seed=4)
    torch.manual_seed(0)
    free = model.generate(IDS, eos_token_id=None, **settings)
    new = free.sequences[:, 5:].tolist()

    def lengths(eos: int) -> list[int]:
        return [row.index(eos) + 1 if eos in row else 8 for row in new]

    eos = max({token for row in new for token in row}, key=lambda e: len(set(lengths(e))))
    ends = lengths(eos)
    assert len(set(ends)) > 1, "the test needs rows that end at different times"
    torch.manual_seed(0)
    found = model.generate(IDS, eos_token_id=eos, pad_token_id=90, **settings)
    assert found.sequences.shape[1] == 5 + max(ends)
    for place, (row, whole) in enumerate(zip(found.sequences[:, 5:].tolist(), new, strict=True)):
        assert row == whole[: ends[place]] + [90] * (max(ends) - ends[place])
        for step in range(ends[place]):
            assert_close(found.scores[step][place], free.scores[step][place])
    held = found.past_key_values  # and its mask tells what is filler
    fed = max(ends) - 1
    assert held.get_seq_length() == 5 + fed
    assert held.mask[:, 5:].tolist() == [[n < end for n in range(fed)] for end in ends]


# -- the cache, to go on with ---------------------------------------------------------------------


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("method", ["greedy", "sampling", "prompt lookup", "beams"])
def test_going_on_from_a_cache_gives_what_starting_anew_gives(method: str, side: str) -> None:
    model = tiny_model(n_positions=48)
    settings = {**METHODS, "beams": {"num_beams": 3}}[method]
    settings = {k: v for k, v in settings.items() if k != "num_return_sequences"}
    mask = torch.ones_like(IDS)
    if side != "none":
        mask = MASK if side == "right" else MASK.flip(1)
    first = model.generate(IDS, attention_mask=mask, max_new_tokens=6, eos_token_id=None,
                           return_dict_in_generate=True, do_sample=False)  # fmt: skip
    more = torch.randint(0, 97, (3, 4), generator=torch.Generator().manual_seed(2))
    said = torch.cat([first.sequences, more], dim=1)
    whole = torch.cat([mask, torch.ones(3, 10, dtype=mask.dtype)], dim=1)
    settings = {**settings, "max_new_tokens": 6, "eos_token_id": None}
    fed: list[int] = []
    hook = model.transformer.wte.register_forward_hook(lambda m, a, o: fed.append(a[0].shape[1]))
    results, room = [], first.past_key_values.capacity
    for arguments in (
        {"attention_mask": whole},
        {"attention_mask": whole, "past_key_values": first.past_key_values},
        {"past_key_values": first.past_key_values},  # it remembers its mask, and can be used twice
        {"past_key_values": tuple(first.past_key_values), "attention_mask": whole},
    ):
        fed.clear()
        torch.manual_seed(3)
        results.append(model.generate(said, **arguments, **settings))
        assert fed[0] == (5 if "past_key_values" in arguments else 15)
    hook.remove()
    assert first.past_key_values.capacity == room
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert first.past_key_values.get_seq_length() == 10  # as it was


def test_a_cache_that_does_not_fit_is_refused() -> None:
    model = tiny_model()
    out = model.generate(IDS, max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True)
    past = out.past_key_values
    with pytest.raises(ArgumentError, match=r"past_key_values holds 8 columns of 3 rows, .* 8 col"):
        model.generate(out.sequences[:, :8], past_key_values=past)
    with pytest.raises(ArgumentError, match=r"past_key_values holds 8 columns of 3 rows, .* 2 row"):
        model.generate(out.sequences[:2], past_key_values=past)
    mask = torch.ones_like(out.sequences)
    mask[1, 8:] = 0
    with pytest.raises(ArgumentError, match="row 1 of the prompt has no real token behind the 8"):
        model.generate(out.sequences, past_key_values=past, attention_mask=mask)
    with pytest.raises(ArgumentError, match="past_key_values were given with use_cache=False"):
        model.generate(out.sequences, past_key_values=past, use_cache=False)
    with pytest.raises(ArgumentError, match="long_context='slide' does not go with past_key"):
        model.generate(out.sequences, past_key_values=past, long_context="slide")


# -- transition scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
def test_transition_scores_of_samples(normalize: bool) -> None:
    model = tiny_model()
    out = model.generate(IDS, do_sample=True, num_return_sequences=2, **ALL)
    found = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=normalize)
    assert found.shape == (6, 6)
    for row in range(6):
        for step in range(6):
            scores = out.scores[step][row]
            scores = scores.log_softmax(-1) if normalize else scores
            assert found[row, step] == scores[out.sequences[row, 5 + step]]


@pytest.mark.parametrize("length_penalty", [1.0, 0.4])
def test_transition_scores_of_beams_add_up(length_penalty: float) -> None:
    model = tiny_model()
    free = model.generate(IDS, num_beams=3, eos_token_id=None, max_new_tokens=6)
    out = model.generate(
        IDS, num_beams=3, num_return_sequences=3, length_penalty=length_penalty,
        **{**ALL, "eos_token_id": int(free[0, 7])},
    )  # fmt: skip
    found = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    assert found.shape == out.beam_indices.shape
    lengths = (out.beam_indices >= 0).sum(-1)
    assert lengths.min() < lengths.max()
    assert_close(found.sum(-1) / lengths**length_penalty, out.sequences_scores)
    assert (found[out.beam_indices < 0] == 0).all()


def test_transition_scores_refuse_what_does_not_fit() -> None:
    sequences, scores = torch.zeros(2, 3, dtype=torch.int64), [torch.zeros(2, 7)] * 2
    assert transition_scores(sequences, scores).shape == (2, 2)
    with pytest.raises(ArgumentError, match="scores is empty; generate with output_scores"):
        transition_scores(sequences, ())
    with pytest.raises(ArgumentError, match="sequences has 1 columns, fewer than the 2 steps"):
        transition_scores(sequences[:, :1], scores)
    with pytest.raises(ArgumentError, match="sequences has 1 rows, scores 2; with beams give"):
        transition_scores(sequences[:1], scores)


def test_ids_of_the_right_kind() -> None:
    found: Tensor = tiny_model().generate(IDS.int(), max_new_tokens=2)
    assert found.dtype == torch.int64
