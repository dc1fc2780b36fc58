"""generate(): greedy and sampled, stopping, filling, streaming, refusing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GenerationConfig, GPT2LMHeadModel
from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    GPT2Error,
    SequenceLengthError,
    TokenIdError,
)
from gpt2.generation.decoding import draw
from tests.helpers import tiny_model

IDS = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
ENDLESS: dict[str, Any] = {"eos_token_id": None, "max_new_tokens": 8}


def greedy_by_hand(model: GPT2LMHeadModel, ids: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        with torch.no_grad():
            best = model(ids, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, best[:, None]], dim=1)
    return ids


# -- greedy and sampling ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_takes_the_most_probable(backend: str, use_cache: bool) -> None:
    model = tiny_model(attn_implementation=backend)
    found = model.generate(IDS, use_cache=use_cache, **ENDLESS)
    assert torch.equal(found, greedy_by_hand(model, IDS, 8))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("vocabulary", [2, 97, 5000])
def test_a_draw_is_torchs_multinomial(batch: int, vocabulary: int) -> None:
    for seed in range(20):
        scores = torch.randn(batch, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
        scores[:, 0] = -torch.inf
        torch.manual_seed(seed)
        expected = torch.multinomial(scores.softmax(-1), 1)[:, 0]
        after = torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(draw(scores, batch, None, None), expected)
        assert torch.equal(torch.rand(1), after)  # and the generator stands where it would


def test_a_draw_follows_the_probabilities() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(20_000, 3)
    torch.manual_seed(0)
    shares = torch.bincount(draw(scores, 20_000, None, None), minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.015, rtol=0)


def test_a_rows_luck_does_not_hang_on_who_is_still_there() -> None:
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([1, 4, 5])
    for seed in range(20):
        torch.manual_seed(seed)
        everybody = draw(scores, 6, None, None)
        torch.manual_seed(seed)
        assert torch.equal(draw(scores[rows], 6, rows, None), everybody[rows])


@pytest.mark.parametrize("use_cache", [True, False])
def test_sampling_equals_multinomial_step_by_step(use_cache: bool) -> None:
    model = tiny_model()
    torch.manual_seed(3)
    found = model.generate(IDS, do_sample=True, top_k=0, use_cache=use_cache, **ENDLESS)
    torch.manual_seed(3)
    ids = IDS
    for _ in range(8):
        with torch.no_grad():
            probabilities = model(ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
    assert torch.equal(found, ids)


def first_end(rows: Tensor, eos: list[int]) -> list[int]:
    """For each row of new ids, the number up to its first end, that included."""
    ends = torch.isin(rows, torch.tensor(eos))
    return [(row.nonzero()[0, 0].item() + 1 if row.any() else len(row)) for row in ends]


def test_rows_that_finish_do_not_change_the_luck_of_the_others() -> None:
    model = tiny_model()
    settings: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 12}
    torch.manual_seed(0)
    free = model.generate(IDS, eos_token_id=None, **settings)[:, 5:]
    eos = [int(free[0, 3]), int(free[2, 6])]
    lengths = first_end(free, eos)
    assert min(lengths) < 12
    torch.manual_seed(0)
    found = model.generate(IDS, eos_token_id=eos, pad_token_id=90, **settings)[:, 5:]
    assert found.shape[1] == max(lengths)
    for row, whole, length in zip(found, free, lengths, strict=True):
        assert row.tolist() == whole[:length].tolist() + [90] * (len(row) - length)


def test_a_seed_per_row_makes_it_independent_of_its_batch() -> None:
    model = tiny_model()
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.3, **ENDLESS}
    together = model.generate(IDS, seed=[7, 8, 7], **settings)
    for i, seed in enumerate([7, 8, 7]):
        torch.manual_seed(i)  # the global generator has no say, and is left alone
        before = torch.get_rng_state()
        alone = model.generate(IDS[i : i + 1], seed=[seed], **settings)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(alone[0], together[i])
    same = model.generate(IDS[:1].expand(3, -1), seed=[5, 5, 6], **settings)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


def test_seeded_rows_that_finish_do_not_disturb_the_others() -> None:
    model = tiny_model()
    settings: dict[str, Any] = {"do_sample": True, "seed": [1, 2, 3], "max_new_tokens": 12}
    free = model.generate(IDS, eos_token_id=None, **settings)[:, 5:]
    eos = [int(free[0, 2])]
    lengths = first_end(free, eos)
    assert lengths[0] == 3
    assert max(lengths) > 3
    found = model.generate(IDS, eos_token_id=eos, **settings)[:, 5:]
    for row, whole, length in zip(found, free, lengths, strict=True):
        assert row[:length].tolist() == whole[:length].tolist()


def test_settings_shape_the_samples() -> None:
    model = tiny_model()
    torch.manual_seed(0)
    cold = model.generate(IDS, do_sample=True, temperature=1e-4, **ENDLESS)
    assert torch.equal(cold, model.generate(IDS, **ENDLESS))
    one = model.generate(IDS, do_sample=True, top_k=1, **ENDLESS)
    narrow = model.generate(IDS, do_sample=True, top_p=1e-6, **ENDLESS)
    assert torch.equal(one, cold)
    assert torch.equal(narrow, cold)
    wide = model.generate(IDS, do_sample=True, temperature=50.0, top_k=0, **ENDLESS)
    assert not torch.equal(wide, cold)


def test_several_sequences_per_row_stand_side_by_side() -> None:
    model = tiny_model()
    settings: dict[str, Any] = {"do_sample": True, **ENDLESS}
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1, 1, 1, 0, 0]])
    seeds = [1, 2, 3, 4, 5, 6]
    found = model.generate(IDS, attention_mask=mask, num_return_sequences=2, seed=seeds, **settings)
    repeated = model.generate(
        IDS.repeat_interleave(2, 0),
        attention_mask=mask.repeat_interleave(2, 0),
        seed=seeds,
        **settings,
    )
    assert found.shape == (6, 13)
    assert torch.equal(found, repeated)


# -- beginnings and ends ------------------------------------------------------------------------


def test_rows_end_at_eos_and_are_filled() -> None:
    model = tiny_model()
    free = model.generate(IDS, **ENDLESS)[:, 5:]
    eos = [int(free[0, 2]), int(free[1, 4])]
    lengths = first_end(free, eos)
    settings: dict[str, Any] = {"eos_token_id": eos, "max_new_tokens": 8}
    for pad, filler in ((90, 90), (0, 0), (None, eos[0])):
        found = model.generate(IDS, pad_token_id=pad, **settings)
        assert found.shape[1] == 5 + max(lengths)
        assert torch.equal(found[:, :5], IDS)
        for row, whole, length in zip(found[:, 5:], free, lengths, strict=True):
            assert row.tolist() == whole[:length].tolist() + [filler] * (len(row) - length)
    one = model.generate(IDS[:1], eos_token_id=eos[0], max_new_tokens=8)
    assert one[0, 5:].tolist() == free[0, :3].tolist()  # all ended: no more steps


def test_without_a_prompt_it_starts_at_bos() -> None:
    model = tiny_model()
    found = model.generate(**ENDLESS)
    assert torch.equal(found, model.generate(torch.tensor([[96]]), **ENDLESS))
    other = model.generate(bos_token_id=5, **ENDLESS)
    assert torch.equal(other, model.generate(torch.tensor([[5]]), **ENDLESS))
    with pytest.raises(ArgumentError, match="bos_token_id, and none is set"):
        tiny_model(bos_token_id=None).generate()


@pytest.mark.parametrize("use_cache", [True, False])
def test_embeddings_start_gives_only_new_ids(use_cache: bool) -> None:
    model = tiny_model()
    embeds = model.get_input_embeddings()(IDS)
    found = model.generate(inputs_embeds=embeds, use_cache=use_cache, **ENDLESS)
    assert torch.equal(found, model.generate(IDS, **ENDLESS)[:, 5:])


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({}, 25),
        ({"max_new_tokens": 3}, 8),
        ({"max_length": 9}, 9),
        ({"max_new_tokens": 27}, 32),
        ({"max_length": 32}, 32),
    ],
)
def test_lengths(settings: dict[str, Any], columns: int) -> None:
    assert tiny_model().generate(IDS, eos_token_id=None, **settings).shape == (3, columns)


def test_the_default_length_stops_at_n_positions() -> None:
    ids = torch.randint(0, 97, (1, 20))
    assert tiny_model().generate(ids, eos_token_id=None).shape == (1, 32)


def test_a_config_object_comes_before_the_models_own() -> None:
    model = tiny_model()
    model.generation_config = GenerationConfig(max_new_tokens=2, eos_token_id=[])
    assert model.generate(IDS).shape == (3, 7)
    given = GenerationConfig(max_new_tokens=4)
    assert model.generate(IDS, given).shape == (3, 9)
    assert model.generate(IDS, given, max_length=8).shape == (3, 8)
    assert given == GenerationConfig(max_new_tokens=4)
    assert model.generation_config == GenerationConfig(max_new_tokens=2, eos_token_id=[])
    # special tokens that it leaves open are the model's own
    end = int(model.generate(IDS[:1])[0, 5])
    model.generation_config.eos_token_id = end
    assert model.generate(IDS[:1], given).shape == (1, 6)


def test_config_flags_of_the_forward_do_not_disturb() -> None:
    expected = tiny_model().generate(IDS, **ENDLESS)
    for flags in (
        {"return_dict": False},
        {"use_cache": False},
        {"output_attentions": True, "output_hidden_states": True},
    ):
        assert torch.equal(tiny_model(**flags).generate(IDS, **ENDLESS), expected)


def test_generate_leaves_no_graph_and_works_in_inference_mode() -> None:
    model = tiny_model()
    expected = model.generate(IDS, **ENDLESS)
    assert not expected.requires_grad
    with torch.inference_mode():
        assert torch.equal(model.generate(IDS, **ENDLESS), expected)
    model(IDS, labels=IDS).loss.backward()  # gradients are on again
    assert model.lm_head.weight.grad is not None


# -- streaming ----------------------------------------------------------------------------------


class Streamer:
    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.values.append(value.clone())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_gets_the_prompt_each_step_and_the_end() -> None:
    model, streamer = tiny_model(), Streamer()
    free = model.generate(IDS, **ENDLESS)[:, 5:]
    found = model.generate(
        IDS, streamer=streamer, eos_token_id=int(free[0, 2]), pad_token_id=90, max_new_tokens=8
    )
    assert torch.equal(streamer.values[0], IDS)
    assert all(value.shape == (3,) for value in streamer.values[1:])
    streamed, new = torch.stack(streamer.values[1:], dim=1), found[:, 5:]
    behind = (new == free[0, 2]).long().cumsum(-1) - (new == free[0, 2]).long() > 0
    assert behind.any()
    assert torch.equal(streamed, new.masked_fill(behind, -1))
    assert streamer.ended == 1


def test_a_streamer_without_prompt_ids_gets_none() -> None:
    model, streamer = tiny_model(), Streamer()
    embeds = model.get_input_embeddings()(IDS)
    found = model.generate(inputs_embeds=embeds, streamer=streamer, **ENDLESS)
    assert streamer.values[0].shape == (3, 0)
    assert torch.equal(torch.stack(streamer.values[1:], dim=1), found)
    assert streamer.ended == 1


# -- refusals -----------------------------------------------------------------------------------

EMBEDS = torch.zeros(3, 5, 32)
REFUSED: list[tuple[dict[str, Any], type[GPT2Error], list[str]]] = [
    ({"input_ids": IDS.repeat(1, 5)[:, :24], "max_new_tokens": 9}, SequenceLengthError,
     ["24 tokens", "9 new", "33", "n_positions = 32"]),
    ({"input_ids": IDS, "max_length": 33}, SequenceLengthError, ["33", "n_positions = 32"]),
    ({"input_ids": IDS.repeat(1, 7)}, SequenceLengthError, ["35 tokens", "n_positions = 32"]),
    ({"input_ids": IDS[:, :0]}, ArgumentError, ["input_ids", "(3, 0)"]),
    ({"input_ids": IDS[:0]}, ArgumentError, ["input_ids", "(0, 5)"]),
    ({"input_ids": IDS[0]}, ArgumentError, ["input_ids", "(5,)", "(batch, length)"]),
    ({"input_ids": [[1, 2]]}, ArgumentTypeError, ["input_ids", "list"]),
    ({"input_ids": IDS.float()}, ArgumentTypeError, ["input_ids", "float32"]),
    ({"input_ids": IDS + 90}, TokenIdError, ["input_ids[", "0 to 96"]),
    ({"input_ids": IDS - 97}, TokenIdError, ["input_ids[", "is -"]),
    ({"input_ids": IDS, "inputs_embeds": EMBEDS}, ArgumentError, ["input_ids", "both"]),
    ({"inputs_embeds": EMBEDS[0]}, ArgumentError, ["inputs_embeds", "(5, 32)"]),
    ({"inputs_embeds": EMBEDS[..., :30]}, ArgumentError, ["inputs_embeds", "30", "32"]),
    ({"input_ids": IDS, "attention_mask": torch.ones(3, 4)}, ArgumentError,
     ["attention_mask", "(3, 4)", "(3, 5)"]),
    ({"input_ids": IDS, "attention_mask": 2 * torch.ones(3, 5)}, ArgumentError,
     ["attention_mask", "0", "1", "row 0"]),
    ({"input_ids": IDS, "attention_mask": [[1] * 5] * 3}, ArgumentTypeError,
     ["attention_mask", "list"]),
    ({"input_ids": IDS, "attention_mask": torch.tensor([[1] * 5, [0] * 5, [1] * 5])},
     ArgumentError, ["row 1", "all padding"]),
    ({"input_ids": IDS, "temprature": 1}, ArgumentTypeError,
     ["generate has no argument 'temprature'", "did you mean 'temperature'"]),
    ({"input_ids": IDS, "temperature": 0.5}, ArgumentError, ["temperature=0.5", "do_sample"]),
    ({"input_ids": IDS, "do_sample": True, "temperature": 0}, ArgumentError, ["temperature"]),
    ({"input_ids": IDS, "do_sample": True, "top_p": 0.0}, ArgumentError, ["top_p", "0.0"]),
    ({"input_ids": IDS, "max_length": 9, "max_new_tokens": 3}, ArgumentError,
     ["max_length=9", "max_new_tokens=3"]),
    ({"input_ids": IDS, "max_length": 4}, ArgumentError, ["max_length=4", "5 tokens"]),
    ({"input_ids": IDS, "seed": [1, 2, 3]}, ArgumentError, ["seed", "do_sample=True"]),
    ({"input_ids": IDS, "do_sample": True, "seed": [1, 2]}, ArgumentError,
     ["seed", "(3)", "[1, 2]"]),
    ({"input_ids": IDS, "do_sample": True, "seed": 1}, ArgumentError, ["seed", "manual_seed"]),
    ({"input_ids": IDS, "do_sample": True, "seed": [1, 2, None]}, ArgumentError, ["seed", "None"]),
    ({"input_ids": IDS, "generation_config": {}}, ArgumentTypeError,
     ["generation_config", "GenerationConfig", "dict"]),
    ({"input_ids": IDS, "num_beams": 2, "num_return_sequences": 3}, ArgumentError,
     ["num_return_sequences=3", "num_beams=2"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"), REFUSED, ids=["; ".join(case[2]) for case in REFUSED]
)
def test_bad_calls_are_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    kind: type[GPT2Error],
    parts: list[str],
) -> None:
    model = tiny_model()
    blocks: list[object] = []
    model.transformer.h[0].register_forward_hook(lambda *call: blocks.append(call))
    with pytest.raises(kind) as caught:
        model.generate(**arguments)
    for part in parts:
        assert part in str(caught.value)
    assert blocks == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("row", [0, 2])
def test_logits_that_are_no_numbers_are_refused(value: float, do_sample: bool, row: int) -> None:
    model = tiny_model()
    embeds = model.get_input_embeddings()(IDS).detach()
    embeds[row, 2] = value
    with pytest.raises(ArgumentError, match="logits are NaN or infinite at new token 0"):
        model.generate(inputs_embeds=embeds, do_sample=do_sample)


@pytest.mark.parametrize("do_sample", [True, False])
def test_logits_that_overflow_are_refused(do_sample: bool) -> None:
    """One logit is +inf, all others are finite: its softmax would be NaN."""
    model = tiny_model()
    with torch.no_grad():
        model.transformer.wte.weight[5, 0] = 10.0
        model.transformer.ln_f.bias[0] = 3e38
    logits = model(IDS[:, :1]).logits[:, -1]
    assert logits.isposinf().sum(-1).tolist() == [1, 1, 1]
    assert not logits.isnan().any()
    with pytest.raises(ArgumentError, match=r"infinite at new token 0.*overflow in this dtype"):
        model.generate(IDS[:, :1], do_sample=do_sample)
