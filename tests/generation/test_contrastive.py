"""Contrastive search: against its definition without a cache, in batches, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import GenerationConfig, GPT2LMHeadModel
from gpt2.errors import ArgumentError
from gpt2.generation.contrastive import penalised
from gpt2.modeling.cache import KVCache
from tests.helpers import assert_close, tiny_model


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> GPT2LMHeadModel:
    made = tiny_model(n_positions=48, attn_implementation=request.param)
    made.generation_config = GenerationConfig()
    return made


def ids(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 90, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_definition(
    model: GPT2LMHeadModel, prompt: list[int], steps: int, k: int, alpha: float
) -> list[int]:
    """Each candidate in a forward pass of its own, over the whole text."""
    text = list(prompt)
    for _ in range(steps):
        probabilities, candidates = model(torch.tensor([text])).logits[0, -1].softmax(-1).topk(k)
        scores = []
        for p, candidate in zip(probabilities.tolist(), candidates.tolist(), strict=True):
            output = model(torch.tensor([[*text, candidate]]), output_hidden_states=True)
            states = output.hidden_states[-1][0]
            likeness = F.cosine_similarity(states[:-1], states[-1:], dim=-1).max().item()
            scores.append((1 - alpha) * p - alpha * likeness)
        text.append(candidates[scores.index(max(scores))].item())
    return text[len(prompt) :]


@pytest.mark.parametrize(("k", "alpha"), [(2, 0.6), (4, 0.3), (7, 0.9), (5, 1.0)])
def test_the_definition(model: GPT2LMHeadModel, k: int, alpha: float) -> None:
    for seed in range(3):
        prompt = ids(seed, 1, 2 + 2 * seed)
        found = model.generate(
            prompt, penalty_alpha=alpha, top_k=k, max_new_tokens=9, return_only_new_tokens=True
        )
        assert found[0].tolist() == by_definition(model, prompt[0].tolist(), 9, k, alpha)


def test_penalised() -> None:
    context = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    ahead = torch.tensor([[[0.0, 1.0], [0.8, 0.6]]])
    p = torch.tensor([[0.5, 0.3]])
    seen = torch.tensor([[True, False, True]])
    each = penalised(p, ahead, context, seen, 0.25)
    assert_close(each, torch.tensor([[0.75 * 0.5 - 0.25 * 0.8, 0.75 * 0.3 - 0.25 * 0.96]]))


LENGTHS = (4, 7, 1)


@pytest.mark.parametrize("side", ["left", "right", "mixed"])
def test_a_row_gives_what_it_gives_alone(model: GPT2LMHeadModel, side: str) -> None:
    rows = [ids(20 + i, n) for i, n in enumerate(LENGTHS)]
    width = max(LENGTHS) + 2
    batch, mask = torch.full((3, width), 5), torch.zeros(3, width, dtype=torch.long)
    for i, row in enumerate(rows):
        columns = torch.randperm(width, generator=torch.Generator().manual_seed(i))[: len(row)]
        columns = columns.sort().values
        if side != "mixed":
            first = 0 if side == "right" else width - len(row)
            columns = torch.arange(first, first + len(row))
        batch[i, columns], mask[i, columns] = row, 1
    settings: dict[str, Any] = {
        "penalty_alpha": 0.5, "top_k": 5, "max_new_tokens": 12, "repetition_penalty": 1.2,
        "pad_token_id": 9, "return_only_new_tokens": True,
    }  # fmt: skip
    free = model.generate(rows[0][None], **settings)
    settings["eos_token_id"] = free[0, 4].item()  # the first row ends there at the latest
    together = model.generate(batch, attention_mask=mask, **settings)
    lengths = []
    for i, row in enumerate(rows):
        alone = model.generate(row[None], **settings)[0]
        lengths.append(len(alone))
        assert torch.equal(together[i, : len(alone)], alone)
        assert (together[i, len(alone) :] == 9).all()
    assert len(set(lengths)) > 1


def test_what_is_returned(model: GPT2LMHeadModel) -> None:
    """Scores, states and weights of the chosen tokens alone; a cache to go on from."""
    prompt = ids(3, 2, 5)
    settings: dict[str, Any] = {"penalty_alpha": 0.6, "top_k": 4, "max_new_tokens": 6}
    output = model.generate(
        prompt, **settings, return_dict_in_generate=True, output_scores=True, output_logits=True,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    text = output.sequences
    assert torch.equal(text, model.generate(prompt, **settings))
    with torch.no_grad():
        whole = model(text, output_hidden_states=True, output_attentions=True)
    assert len(output.scores) == len(output.hidden_states) == len(output.attentions) == 6
    for step in range(6):
        column = prompt.shape[1] + step - 1  # the last one that the step has read
        first = 0 if step == 0 else column
        assert_close(output.logits[step], whole.logits[:, column])
        assert_close(output.scores[step], whole.logits[:, column])
        for mine, states in zip(output.hidden_states[step], whole.hidden_states, strict=True):
            assert_close(mine, states[:, first : column + 1])
        for mine, weights in zip(output.attentions[step], whole.attentions, strict=True):
            assert_close(mine, weights[:, :, first : column + 1, : column + 1])
    with torch.no_grad():
        fresh = model(text[:, :-1], use_cache=True).past_key_values
    for mine, theirs in zip(output.past_key_values, fresh, strict=True):
        assert_close(mine[0], theirs[0])
        assert_close(mine[1], theirs[1])
    more = model.generate(text, past_key_values=output.past_key_values, max_new_tokens=3)
    assert torch.equal(more, model.generate(text, max_new_tokens=3))


def test_one_cache_for_all_candidates(
    model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copies: the cache is allocated once, candidates are columns and not rows."""
    made, passes = [], []
    allocate, forward = KVCache._reallocate, model.forward
    monkeypatch.setattr(
        KVCache,
        "_reallocate",
        lambda *a: made.append(1) or allocate(*a),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: passes.append(tuple(a[0].shape)) or forward(*a, **k)
    )
    monkeypatch.setattr(KVCache, "select", lambda *_a: pytest.fail("the cache was copied"))
    model.generate(ids(1, 2, 5), penalty_alpha=0.6, top_k=6, max_new_tokens=8)
    assert len(made) == model.config.n_layer
    assert passes == [(2, 5)] + [(2, 6)] * 8


def test_up_to_the_last_position(model: GPT2LMHeadModel) -> None:
    """Candidates share a position, so that they need none past n_positions."""
    found = model.generate(ids(1, 1, 40), penalty_alpha=0.6, top_k=9, max_new_tokens=8)
    assert found.shape == (1, 48)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_sample": True}, "penalty_alpha=0.6.*do_sample=True"),
        ({"num_beams": 2}, "penalty_alpha=0.6.*num_beams=2"),
        ({"top_k": 1}, "penalty_alpha=0.6.*top_k of at least 2, not 1"),
        ({"penalty_alpha": 1.5}, "penalty_alpha.*1.5"),
        ({"use_cache": False}, "use_cache=False"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens=2"),
    ],
)
def test_refused_before_the_first_pass(
    model: GPT2LMHeadModel,
    settings: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "forward", lambda *_a, **_k: pytest.fail("a forward pass was made"))
    with pytest.raises(ArgumentError, match=words):
        model.generate(ids(1, 1, 3), **{"penalty_alpha": 0.6, "top_k": 4, **settings})


def test_a_cache_without_states_is_refused(model: GPT2LMHeadModel) -> None:
    prompt = ids(1, 1, 6)
    with torch.no_grad():
        past = model(prompt[:, :4], use_cache=True).past_key_values
    with pytest.raises(ArgumentError, match="past_key_values holds no hidden states"):
        model.generate(prompt, past_key_values=past, penalty_alpha=0.6, top_k=4)


def test_nan(model: GPT2LMHeadModel) -> None:
    embeds = torch.full((1, 3, 32), torch.nan)
    with pytest.raises(ArgumentError, match="NaN or infinite at new token 0"):
        model.generate(inputs_embeds=embeds, penalty_alpha=0.6, top_k=4, max_new_tokens=3)
