"""Guidance and sliding windows against the same steps taken by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2LMHeadModel
from gpt2.errors import ArgumentError, SequenceLengthError, TokenIdError
from gpt2.generation.decoder import Decoder
from gpt2.generation.prompt import Prompt, prepare_prompt
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
NEGATIVE = torch.randint(0, 97, (3, 4), generator=torch.Generator().manual_seed(2))
MASK = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1, 1, 1, 0, 0]])
ENDLESS: dict[str, Any] = {"eos_token_id": None, "max_new_tokens": 8}


@torch.no_grad()
def logits_behind(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits[:, -1]


# -- guidance -------------------------------------------------------------------------------------


def guided_by_hand(
    model: GPT2LMHeadModel, ids: Tensor, negative: Tensor, scale: float, steps: int
) -> Tensor:
    for _ in range(steps):
        wanted = logits_behind(model, ids).log_softmax(-1)
        unwanted = logits_behind(model, negative).log_softmax(-1)
        token = (unwanted + scale * (wanted - unwanted)).argmax(-1, keepdim=True)
        ids, negative = torch.cat([ids, token], 1), torch.cat([negative, token], 1)
    return ids


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.7, -1.0])
def test_guidance_leads_away_from_the_negative_prompt(scale: float, use_cache: bool) -> None:
    model = tiny_model()
    settings = {**ENDLESS, "guidance_scale": scale, "use_cache": use_cache}
    for negative, given in ((NEGATIVE, {"negative_prompt_ids": NEGATIVE}), (IDS[:, -1:], {})):
        expected = guided_by_hand(model, IDS, negative, scale, 8)
        assert torch.equal(model.generate(IDS, **settings, **given), expected)
    plain = model.generate(IDS, **ENDLESS)
    assert torch.equal(model.generate(IDS, **{**settings, "guidance_scale": 1.0}), plain)


def test_padding_of_the_negative_prompt_is_not_seen() -> None:
    model = tiny_model()
    expected = guided_by_hand(model, IDS[:1], NEGATIVE[:1], 1.7, 8)
    for side in ("left", "right"):
        pad = (3, 0) if side == "left" else (0, 3)
        ids = torch.nn.functional.pad(NEGATIVE[:1], pad, value=11)
        mask = torch.nn.functional.pad(torch.ones_like(NEGATIVE[:1]), pad)
        found = model.generate(
            IDS[:1], guidance_scale=1.7, negative_prompt_ids=ids,
            negative_prompt_attention_mask=mask, **ENDLESS,
        )  # fmt: skip
        assert torch.equal(found, expected)


def test_guided_rows_may_end_and_come_several_times() -> None:
    model = tiny_model()
    settings = {**ENDLESS, "guidance_scale": 1.7, "negative_prompt_ids": NEGATIVE}
    free = model.generate(IDS, **settings)
    eos = int(free[0, 7])
    found = model.generate(IDS, **{**settings, "eos_token_id": eos})
    for row, whole in zip(found[:, 5:].tolist(), free[:, 5:].tolist(), strict=True):
        length = whole.index(eos) + 1 if eos in whole else 8
        assert row[:length] == whole[: min(length, len(row))]
    seeds = [1, 2, 3, 4, 5, 6]
    several = model.generate(IDS, do_sample=True, num_return_sequences=2, seed=seeds, **settings)
    repeated = {**settings, "negative_prompt_ids": NEGATIVE.repeat_interleave(2, 0)}
    again = model.generate(IDS.repeat_interleave(2, 0), do_sample=True, seed=seeds, **repeated)
    assert torch.equal(several, again)


def test_guided_beams_of_one_are_greedy() -> None:
    """Beams go by log-probabilities that sum to one; the best of one beam is the greedy token."""
    model = tiny_model()
    settings = {**ENDLESS, "guidance_scale": 1.7, "negative_prompt_ids": NEGATIVE}
    best = model.generate(IDS, num_beams=4, **settings)

    def log_probability(rows: Tensor) -> Tensor:
        total = torch.zeros(3)
        negative = torch.cat([NEGATIVE, rows[:, 5:]], 1)
        for n in range(8):
            wanted = logits_behind(model, rows[:, : 5 + n]).log_softmax(-1)
            unwanted = logits_behind(model, negative[:, : 4 + n]).log_softmax(-1)
            guided = (unwanted + 1.7 * (wanted - unwanted)).log_softmax(-1)
            total += guided.gather(1, rows[:, 5 + n, None])[:, 0]
        return total

    greedy = model.generate(IDS, **settings)
    assert (log_probability(best) >= log_probability(greedy) - 1e-4).all()


# -- sliding --------------------------------------------------------------------------------------


def slid_by_hand(model: GPT2LMHeadModel, ids: list[int], steps: int) -> list[int]:
    """The rule: where the next token would find no position, go on from the last n // 2 tokens."""
    n = model.config.n_positions
    context, new = list(ids), []
    for _ in range(steps):
        if len(context) > n:
            context = context[-max(1, n // 2) :]
        new.append(int(logits_behind(model, torch.tensor([context])).argmax()))
        context.append(new[-1])
    return new


@pytest.mark.parametrize("n_positions", [1, 2, 7, 16])
@pytest.mark.parametrize("length", [1, 6, 16, 17, 40])
def test_sliding_equals_calling_by_hand_on_the_window(length: int, n_positions: int) -> None:
    model = tiny_model(n_positions=n_positions)
    ids = torch.randint(0, 97, (1, length), generator=torch.Generator().manual_seed(length))
    found = model.generate(ids, long_context="slide", max_new_tokens=30, eos_token_id=None)
    assert found[0, :length].tolist() == ids[0].tolist()
    assert found[0, length:].tolist() == slid_by_hand(model, ids[0].tolist(), 30)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_slide_each_at_its_own_time(side: str) -> None:
    model = tiny_model(n_positions=12)
    lengths, width = (3, 11, 20, 7), 20
    ids, mask = torch.full((4, width), 11), torch.zeros(4, width, dtype=torch.int64)
    rows = []
    for i, n in enumerate(lengths):
        row = torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(i))
        at = slice(width - n, width) if side == "left" else slice(n)
        ids[i, at], mask[i, at] = row, 1
        rows.append(row.tolist())
    found = model.generate(
        ids, attention_mask=mask, long_context="slide", max_new_tokens=25, eos_token_id=None
    )
    for i, row in enumerate(rows):
        assert found[i, width:].tolist() == slid_by_hand(model, row, 25)


def test_what_sliding_costs() -> None:
    """Between two windows one token at a time; a window is n_positions // 2 tokens."""
    model, fed = tiny_model(n_positions=16), []
    model.transformer.wte.register_forward_hook(lambda m, args, out: fed.append(args[0].shape[1]))
    model.generate(IDS, long_context="slide", max_new_tokens=40, eos_token_id=None)
    assert fed == [5, *[1] * 11, 8, *[1] * 8, 8, *[1] * 8, 8, *[1] * 8, 8]
    assert sum(fed) / len(fed) < 2


def test_without_sliding_nothing_is_longer_than_the_model() -> None:
    model = tiny_model(n_positions=16)
    assert model.generate(IDS, max_new_tokens=11, eos_token_id=None).shape == (3, 16)
    with pytest.raises(SequenceLengthError, match=r'17.*n_positions = 16; long_context="slide"'):
        model.generate(IDS, max_new_tokens=12)
    whole = model.generate(IDS, max_new_tokens=12, eos_token_id=None, long_context="slide")
    same = model.generate(IDS, max_new_tokens=11, eos_token_id=None)
    assert torch.equal(whole[:, :16], same)
    ended = model.generate(IDS, eos_token_id=int(same[0, 6]), long_context="slide")
    assert ended.shape == (3, 25)  # some do not end: 20 new tokens are the default there too


def test_sliding_checks_its_ids() -> None:
    model = tiny_model()
    with pytest.raises(TokenIdError, match=r"input_ids\[.*\] is 100"):
        model.generate(torch.full((1, 3), 100), long_context="slide")
    with pytest.raises(TokenIdError, match=r"input_ids\[.*\] is -1"):
        model.generate(torch.full((1, 3), -1), long_context="slide")
    with pytest.raises(ArgumentError, match="long_context='slide' needs input_ids"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 32), long_context="slide")


# -- the decoder itself ---------------------------------------------------------------------------


def decoder_for(model: GPT2LMHeadModel, **settings: Any) -> tuple[Decoder, Prompt]:
    prompt = prepare_prompt(model, model.generation_config, IDS, MASK, None)
    return Decoder(model, prompt, 8, **settings), prompt


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_prefill_one_and_many_agree(use_cache: bool) -> None:
    model = tiny_model()
    new = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    one, _ = decoder_for(model, use_cache=use_cache)
    many, _ = decoder_for(model, use_cache=use_cache)
    assert torch.equal(one.prefill(), many.prefill())
    together = many.decode_many(new, new)  # (B, 3, V)
    for n in range(3):
        step = one.decode_one(new[:, n], new[:, : n + 1])
        assert_close(together[:, n], step)
    assert one.columns == many.columns == 8
    one.keep_rows(torch.tensor([2, 0, 2]))
    tokens = torch.tensor([1, 2, 3])
    so_far = torch.cat([new[[2, 0, 2]], tokens[:, None]], 1)
    many_rows = many.decode_many(
        tokens[[1, 0, 0]][:, None], torch.cat([new, tokens[[1, 0, 0], None]], 1)
    )
    found = one.decode_one(tokens, so_far)
    assert_close(found[1], many_rows[0, -1])
    assert found.shape == (3, 97)


@torch.no_grad()
def test_hidden_columns_are_padding_and_cropped_ones_forgotten() -> None:
    model = tiny_model()
    decoder, _ = decoder_for(model)
    decoder.prefill()
    drafted = torch.tensor([[1, 50, 51], [4, 5, 52], [7, 8, 9]])
    decoder.decode_many(drafted, drafted)
    decoder.hide(torch.tensor([[True, False, False], [True, True, False], [True, True, True]]))
    found = decoder.decode_one(torch.tensor([2, 6, 3]), torch.zeros(3, 4, dtype=torch.int64))
    kept = ([1, 2], [4, 5, 6], [7, 8, 9, 3])
    for row, new in enumerate(kept):
        ids = torch.cat([IDS[row][MASK[row].bool()], torch.tensor(new)])
        assert_close(found[row], logits_behind(model, ids[None])[0])
    held = decoder.cache_of([2, 3, 4])  # side by side, as the ids would be
    assert held is not None
    assert held.mask is not None
    assert held.mask[:, 5:].tolist() == [[n < k for n in range(4)] for k in (2, 3, 4)]
    ids = torch.zeros(3, 10, dtype=torch.int64)
    for row, new in enumerate(kept):
        ids[row, 5 : 5 + len(new)] = torch.tensor(new)
    ids[:, :5], ids[:, 9] = IDS, 33
    mask = torch.cat([held.mask.long(), torch.ones(3, 1, dtype=torch.int64)], 1)
    again = model(ids[:, 9:], past_key_values=held, attention_mask=mask).logits[:, -1]
    assert_close(again, model(ids, attention_mask=mask).logits[:, -1])


def test_the_prompt_as_processors_see_it() -> None:
    model = tiny_model()
    prompt = prepare_prompt(model, model.generation_config, IDS, MASK, None)
    seen = prompt.tokens().tolist()
    for row, (ids, mask) in enumerate(zip(IDS, MASK.bool(), strict=True)):
        real = ids[mask].tolist()
        assert seen[row] == [-1] * (5 - len(real)) + real
    assert prompt.lengths == [3, 5, 3]
    assert prompt.last_tokens(2) == [IDS[0, 3:].tolist(), IDS[1, 3:].tolist(), IDS[2, 1:3].tolist()]
    embeds = torch.zeros(3, 5, 32)
    nameless = prepare_prompt(model, model.generation_config, None, MASK, embeds)
    assert nameless.tokens().tolist() == [[-1, -1, -2, -2, -2], [-2] * 5, [-1, -1, -2, -2, -2]]
    assert nameless.last_tokens(2) == [[], [], []]


# -- cross-attention ------------------------------------------------------------------------------

STATES = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(3))
SEEN = torch.tensor([[1, 1, 1, 0], [1] * 4, [0, 1, 1, 1]])
WITH_ENCODER: tuple[dict[str, Any], ...] = (
    {}, {"use_cache": False}, {"guidance_scale": 1.5}, {"long_context": "slide"},
    {"do_sample": True, "num_return_sequences": 2, "seed": [1, 1, 2, 2, 3, 3]},
    {"num_beams": 3, "num_return_sequences": 2}, {"penalty_alpha": 0.5, "top_k": 3},
    {"prompt_lookup_num_tokens": 2},
)  # fmt: skip


@pytest.mark.parametrize("settings", WITH_ENCODER, ids=str)
def test_a_row_attends_to_its_own_encoder_states(settings: dict[str, Any]) -> None:
    model = tiny_model(add_cross_attention=True, n_positions=16)
    encoder = {"encoder_hidden_states": STATES, "encoder_attention_mask": SEEN}
    most = {"max_new_tokens": 14 if "long_context" in settings else 9, "pad_token_id": 90}
    free = model.generate(
        IDS, attention_mask=MASK, eos_token_id=None, **encoder, **settings, **most
    )
    eos = int(free[0, 7])  # so that rows leave the batch
    found = model.generate(
        IDS, attention_mask=MASK, eos_token_id=eos, **encoder, **settings, **most
    )
    times = len(found) // 3
    for row in range(3):
        own = dict(settings)
        if "seed" in own:
            own["seed"] = own["seed"][times * row : times * (row + 1)]
        ids = IDS[row][MASK[row].bool()][None]
        states = STATES[row][SEEN[row].bool()][None]
        alone = model.generate(
            ids, encoder_hidden_states=states, eos_token_id=eos, **own, **most
        )[:, ids.shape[1] :]  # fmt: skip
        here = found[times * row : times * (row + 1), 5:]
        width = min(alone.shape[1], here.shape[1])
        assert torch.equal(here[:, :width], alone[:, :width])
        assert (here[:, width:] == 90).all()
    other = model.generate(IDS, attention_mask=MASK, eos_token_id=None, **settings, **most,
                           encoder_hidden_states=STATES.flip(0))  # fmt: skip
    assert not torch.equal(other, free)


def test_encoder_states_need_cross_attention() -> None:
    with pytest.raises(ArgumentError, match="the model has no cross-attention"):
        tiny_model().generate(IDS, encoder_hidden_states=STATES)


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 3}], ids=str
)
def test_the_encoder_is_computed_once(settings: dict[str, Any]) -> None:
    model, calls = tiny_model(add_cross_attention=True), []
    for block in model.transformer.h:
        block.crossattention.c_attn.register_forward_hook(lambda *_: calls.append(1))
    model.generate(IDS, encoder_hidden_states=STATES, max_new_tokens=8, **settings)
    assert len(calls) == 2  # one per layer
