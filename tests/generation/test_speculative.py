"""Assisted decoding: the tokens of plain decoding, in fewer passes, for any batch."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GenerationConfig, GPT2LMHeadModel
from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError
from gpt2.generation.drafting import LookupDraft
from gpt2.generation.speculative import Noise
from gpt2.modeling.cache import KVCache
from tests.helpers import assert_close, tiny_model


def without_eos(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    model.generation_config = GenerationConfig()
    return model


def nearly(model: GPT2LMHeadModel, noise: float = 0.02) -> GPT2LMHeadModel:
    """A draft model that is often right: the model itself, a little off."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return draft


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return without_eos(tiny_model(n_positions=64))


@pytest.fixture(scope="module")
def draft(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    return nearly(model)


def ids(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 90, shape, generator=torch.Generator().manual_seed(seed))


def count_passes(model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The columns of every forward pass from now on."""
    passes: list[int] = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *a, **k: passes.append(a[0].shape[1]) or forward(*a, **k)
    )
    return passes


# -- the same tokens ------------------------------------------------------------------------------


def random_call(rng: random.Random) -> dict[str, Any]:
    rows, width = rng.randint(1, 4), rng.randint(1, 9)
    given = {"input_ids": ids(rng.randrange(10**6), rows, width)}
    mask = torch.ones(rows, width, dtype=torch.long)
    for row in range(1, rows):  # padding before, behind or within
        hidden = rng.sample(range(width), rng.randrange(width))
        mask[row, hidden] = 0
    given["attention_mask"] = mask
    settings: dict[str, Any] = {"max_new_tokens": rng.randint(1, 24), "pad_token_id": 9}
    if rng.random() < 0.4:
        settings["repetition_penalty"] = 1.3
        settings["no_repeat_ngram_size"] = 3
    if rng.random() < 0.5:
        settings |= {"do_sample": True, "temperature": 0.8}
        settings["num_return_sequences"] = rng.randint(1, 2)
        if rng.random() < 0.5:
            returned = rows * settings["num_return_sequences"]
            settings["seed"] = [rng.randrange(100) for _ in range(returned)]
    if rng.random() < 0.6:
        settings["eos_token_id"] = rng.sample(range(90), 5)
    return {**given, **settings}


def random_assistance(rng: random.Random, draft: GPT2LMHeadModel) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {
            "prompt_lookup_num_tokens": rng.randint(1, 6),
            "max_matching_ngram_size": rng.choice((None, 1, 3)),
        }
    return {
        "assistant_model": draft,
        "num_assistant_tokens": rng.randint(1, 6),
        "assistant_confidence_threshold": rng.choice((0.0, 0.3)),
        "num_assistant_tokens_schedule": rng.choice(("constant", "heuristic")),
    }


@pytest.mark.parametrize("block", range(4))
def test_the_tokens_of_plain_decoding(
    model: GPT2LMHeadModel, draft: GPT2LMHeadModel, block: int
) -> None:
    """Greedy, and sampled under the same seed; any batch, any padding."""
    rng = random.Random(block)
    for _ in range(20):
        call, seed = random_call(rng), rng.randrange(1000)
        torch.manual_seed(seed)
        plain = model.generate(**call)
        torch.manual_seed(seed)
        assistance = random_assistance(rng, draft)
        assisted = model.generate(**call, **assistance)
        assert torch.equal(assisted, plain), f"{call} {list(assistance)}"


@pytest.mark.parametrize("assistance", ["lookup", "draft"])
def test_a_row_gives_what_it_gives_alone(
    model: GPT2LMHeadModel, draft: GPT2LMHeadModel, assistance: str
) -> None:
    more: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if assistance == "draft":
        more = {"assistant_model": draft, "num_assistant_tokens": 4}
    more |= {"max_new_tokens": 15, "return_only_new_tokens": True}
    rows = [ids(i, n) for i, n in enumerate((6, 2, 9))]
    for side in ("left", "right"):
        batch, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
        for i, row in enumerate(rows):
            columns = slice(9 - len(row), 9) if side == "left" else slice(0, len(row))
            batch[i, columns], mask[i, columns] = row, 1
        together = model.generate(batch, attention_mask=mask, **more)
        for i, row in enumerate(rows):
            assert torch.equal(together[i], model.generate(row[None], **more)[0])


def test_the_distribution_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens drawn 4000 times with a poor draft: each pair as often as its probability says."""
    model = without_eos(tiny_model(seed=1, vocab_size=6, bos_token_id=0, eos_token_id=0))
    draft = without_eos(tiny_model(seed=2, vocab_size=6, bos_token_id=0, eos_token_id=0))
    prompt, size = torch.tensor([[1, 4, 2]]), 4000
    torch.manual_seed(0)
    with torch.no_grad():
        first = model(prompt).logits[0, -1].softmax(-1)
        pairs = torch.cat([prompt.expand(6, -1), torch.arange(6)[:, None]], dim=1)
        second = model(pairs).logits[:, -1].softmax(-1)
        guess = draft(pairs).logits[:, -1].softmax(-1)
    assert (second - guess).abs().sum(-1).max() > 0.3, "the draft must be wrong to tell"
    expected = (first[:, None] * second).flatten() * size
    for assistance in (
        {"assistant_model": draft, "num_assistant_tokens": 2},
        {"prompt_lookup_num_tokens": 2},
    ):
        drawn = model.generate(
            prompt, do_sample=True, top_k=0, max_new_tokens=2, num_return_sequences=size,
            return_only_new_tokens=True, **assistance,
        )  # fmt: skip
        seen = torch.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36)
        enough = expected >= 5
        chi2 = ((seen - expected)[enough] ** 2 / expected[enough]).sum().item()
        # Within 5 standard deviations of what chance alone gives.
        free = int(enough.sum())
        assert chi2 < free + 5 * math.sqrt(2 * free), (chi2, free)


# -- fewer passes ---------------------------------------------------------------------------------


def test_a_draft_that_is_always_right(
    model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = copy.deepcopy(model)
    passes = count_passes(model, monkeypatch)
    for sampling in ({}, {"do_sample": True, "top_k": 20}):
        passes.clear()
        model.generate(
            ids(1, 3, 5), max_new_tokens=21, assistant_model=twin, num_assistant_tokens=4,
            assistant_confidence_threshold=0.0, **sampling,
        )  # fmt: skip
        assert passes == [5, 5, 5, 5, 5]  # the prompt, then 4 guesses and one more each


def test_lookup_reads_what_repeats(model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that goes round in circles is followed after one round."""

    def round_and_round(seen: Tensor, scores: Tensor) -> Tensor:
        following = (seen[:, -1] + 1) % 5
        return torch.full_like(scores, -1e4).scatter(1, following[:, None], 0.0)

    passes = count_passes(model, monkeypatch)
    settings: dict[str, Any] = {"max_new_tokens": 29, "logits_processor": [round_and_round]}
    prompt = torch.tensor([[0, 1, 2, 3, 4, 0]])
    plain = model.generate(prompt, **settings)
    assert len(passes) == 29
    passes.clear()
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=6, **settings), plain)
    assert len(passes) == 5  # 1 + 7 + 7 + 7 + 7


def test_unlike_rows_do_not_wait_for_each_other(
    model: GPT2LMHeadModel, draft: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch takes no more passes than its slowest row."""
    settings: dict[str, Any] = {
        "max_new_tokens": 20, "assistant_model": draft, "num_assistant_tokens": 3,
        "assistant_confidence_threshold": 0.0,
    }  # fmt: skip
    passes = count_passes(model, monkeypatch)
    prompt, alone = ids(4, 4, 5), []
    for row in prompt:
        passes.clear()
        model.generate(row[None], **settings)
        alone.append(len(passes))
    passes.clear()
    model.generate(prompt, **settings)
    assert len(set(alone)) > 1
    assert len(passes) == max(alone)


def test_the_cache_is_allocated_once(
    model: GPT2LMHeadModel, draft: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    allocate = KVCache._reallocate
    monkeypatch.setattr(
        KVCache,
        "_reallocate",
        lambda *a: made.append(1) or allocate(*a),  # type: ignore[func-returns-value]
    )
    model.generate(ids(1, 1, 5), max_new_tokens=20, prompt_lookup_num_tokens=4)
    assert len(made) == model.config.n_layer
    made.clear()
    model.generate(ids(1, 1, 5), max_new_tokens=20, assistant_model=draft, num_assistant_tokens=4)
    assert len(made) == 2 * model.config.n_layer


def test_up_to_the_last_position(model: GPT2LMHeadModel, draft: GPT2LMHeadModel) -> None:
    prompt = ids(3, 2, 50)
    plain = model.generate(prompt, max_new_tokens=14)
    for more in ({"prompt_lookup_num_tokens": 9}, {"assistant_model": draft}):
        assert torch.equal(model.generate(prompt, max_new_tokens=14, **more), plain)


# -- guesses --------------------------------------------------------------------------------------


def test_lookup() -> None:
    draft = LookupDraft([[5, 6, 7, 8, 6], [1], [], [3]], longest=2)
    wanted = [2, 2, 2, 3]
    assert draft.propose([[7], [2], [], [3, 3]], wanted) == [[8, 6], [], [], [3, 3, 3]]
    # the last place counts, and the longer n-gram before the shorter
    assert draft.propose([[7, 9, 6], [2, 1], [], [3, 3]], [2, 3, 2, 0]) == [
        [7, 9],
        [2, 1, 2],
        [],
        [],
    ]
    assert draft.propose([[7, 9, 6, 7], [2, 1], [], [3, 3]], [1, 0, 0, 0]) == [[9], [], [], []]


def test_noise_comes_in_the_order_of_the_tokens() -> None:
    like = torch.zeros(2, 5)
    torch.manual_seed(3)
    plain = [torch.empty_like(like).exponential_(1) for _ in range(4)]
    torch.manual_seed(3)
    noise = Noise(None)
    assert torch.equal(noise.at(2, like), plain[2])
    assert torch.equal(noise.at(0, like), plain[0])
    noise.forget_before(2)
    assert torch.equal(noise.at(3, like), plain[3])


# -- what is returned -----------------------------------------------------------------------------


def test_scores_and_the_cache(model: GPT2LMHeadModel, draft: GPT2LMHeadModel) -> None:
    prompt = ids(5, 1, 6)
    settings: dict[str, Any] = {
        "max_new_tokens": 12, "repetition_penalty": 1.2, "return_dict_in_generate": True,
        "output_scores": True, "output_logits": True,
    }  # fmt: skip
    plain = model.generate(prompt, **settings)
    found = model.generate(prompt, assistant_model=draft, num_assistant_tokens=3, **settings)
    assert torch.equal(found.sequences, plain.sequences)
    for name in ("scores", "logits"):
        assert len(found[name]) == 12
        for mine, theirs in zip(found[name], plain[name], strict=True):
            assert_close(mine, theirs)
    assert found.past_key_values.length == plain.past_key_values.length == 17
    for mine, theirs in zip(found.past_key_values, plain.past_key_values, strict=True):
        assert_close(mine[0], theirs[0])
        assert_close(mine[1], theirs[1])


def test_scores_of_a_batch(model: GPT2LMHeadModel, draft: GPT2LMHeadModel) -> None:
    """Step by step, though the rows went on at their own pace; 0 behind a row's end."""
    prompt = ids(6, 3, 4)
    settings: dict[str, Any] = {"max_new_tokens": 10, "pad_token_id": 0}
    free = model.generate(prompt, **settings)
    settings |= {"eos_token_id": free[1, 8].item(), "return_dict_in_generate": True}
    plain = model.generate(prompt, output_scores=True, **settings)
    found = model.generate(
        prompt, output_scores=True, assistant_model=draft, num_assistant_tokens=3, **settings
    )
    assert torch.equal(found.sequences, plain.sequences)
    going = torch.ones(3, dtype=torch.bool)
    for step, (mine, theirs) in enumerate(zip(found.scores, plain.scores, strict=True)):
        assert_close(mine[going], theirs[going])
        assert (mine[~going] == 0).all()
        going &= found.sequences[:, 4 + step] != settings["eos_token_id"]
    assert not going.all()


class Heard:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[list[Any]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.got.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


def test_streams_what_plain_decoding_streams(
    model: GPT2LMHeadModel, draft: GPT2LMHeadModel
) -> None:
    prompt = ids(6, 3, 4)
    free = model.generate(prompt, max_new_tokens=10)
    settings = {"max_new_tokens": 10, "eos_token_id": free[1, 8].item(), "pad_token_id": 0}
    plain, found = Heard(), Heard()
    model.generate(prompt, streamer=plain, **settings)
    model.generate(
        prompt, streamer=found, assistant_model=draft, num_assistant_tokens=3, **settings
    )
    assert found.got == plain.got
    assert found.ended == plain.ended == 1


def test_rules_of_the_callers(model: GPT2LMHeadModel) -> None:
    """Processors and stopping rules see one row at a time, with the ids as they would be."""
    prompt = ids(7, 2, 4)
    free = model.generate(prompt, max_new_tokens=12)
    word = free[0, 9].item()
    rules: dict[str, Any] = {
        "stopping_criteria": [lambda seen, _scores: seen[:, -1] == word],
        "logits_processor": [lambda seen, scores: scores + 0.01 * seen.shape[1]],
        "max_new_tokens": 12,
        "pad_token_id": 0,
    }
    plain = model.generate(prompt, **rules)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **rules), plain)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"num_beams": 2}, ArgumentError, "greedy decoding and sampling only"),
        ({"use_cache": False}, ArgumentError, "use_cache=False"),
        ({"prompt_lookup_num_tokens": 3}, ArgumentError, "assistant_model and prompt_lookup"),
        ({"guidance_scale": 1.5}, ArgumentError, "guidance_scale=1.5"),
        ({"num_assistant_tokens": 0}, ArgumentError, "num_assistant_tokens.*0"),
        ({"num_assistant_tokens_schedule": "x"}, ArgumentError, "num_assistant_tokens_schedule"),
        (
            {"output_hidden_states": True, "return_dict_in_generate": True},
            ArgumentError,
            "output_hidden_states=True",
        ),
        ({"assistant_model": "gpt2"}, ArgumentTypeError, "assistant_model must be.*not str"),
        (
            {"assistant_model": tiny_model(vocab_size=98)},
            ArgumentError,
            "vocab_size 98, the model 97",
        ),
        (
            {"assistant_model": tiny_model(n_positions=10)},
            SequenceLengthError,
            "make 11, but assistant_model has n_positions = 10",
        ),
        (
            {"input_ids": None, "inputs_embeds": torch.zeros(1, 3, 32)},
            ArgumentError,
            "assistant_model needs input_ids",
        ),
    ],
)
def test_refused_before_the_first_pass(
    model: GPT2LMHeadModel,
    draft: GPT2LMHeadModel,
    settings: dict[str, Any],
    error: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for each in (model, draft):
        monkeypatch.setattr(
            each, "forward", lambda *_a, **_k: pytest.fail("a forward pass was made")
        )
    call: dict[str, Any] = {"input_ids": ids(1, 1, 3), "assistant_model": draft}
    with pytest.raises(error, match=words):
        model.generate(max_new_tokens=8, **{**call, **settings})


def test_ngram_size_alone_is_refused(model: GPT2LMHeadModel) -> None:
    with pytest.raises(ArgumentError, match=r"max_matching_ngram_size.*prompt_lookup_num_tokens"):
        model.generate(ids(1, 1, 3), max_matching_ngram_size=2)


def test_nan(model: GPT2LMHeadModel) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.transformer.wpe.weight[6] = math.nan
    with pytest.raises(ArgumentError, match="NaN or infinite at new token 2"):
        broken.generate(ids(1, 1, 5), max_new_tokens=8, prompt_lookup_num_tokens=3)
