"""What foreign decoding loops call: prepare_inputs_for_generation, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt2 import GPT2DoubleHeadsModel, GPT2LMHeadModel, StaticCache
from gpt2.errors import ArgumentError
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 96, (2, 6), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])


@pytest.mark.parametrize("start", ["ids", "embeddings", "legacy tuples"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_greedy_loop_as_others_write_it(use_cache: bool, start: str) -> None:
    model = tiny_model()
    expected = model.generate(IDS, attention_mask=MASK, max_new_tokens=5, eos_token_id=None)
    ids, mask, past = IDS, MASK, None
    embeds = model.transformer.wte(IDS) if start == "embeddings" and use_cache else None
    with torch.no_grad():
        for _ in range(5):
            inputs = model.prepare_inputs_for_generation(
                ids,
                past_key_values=past,
                attention_mask=mask,
                inputs_embeds=embeds,
                use_cache=use_cache,
                cache_position=torch.arange(ids.shape[1]),
            )
            given = inputs["input_ids"] if inputs["input_ids"] is not None else embeds
            assert given is not None
            assert given.shape[1] == (1 if past is not None else ids.shape[1])
            out = model(**inputs)
            past = out.past_key_values
            if past is not None and start == "legacy tuples":
                past = past.to_legacy_cache()
            ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
            mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
    assert torch.equal(ids, expected)


def test_what_goes_along_is_cut_with_the_ids() -> None:
    model = tiny_model()
    types, positions = IDS.flip(1), torch.arange(6)[None] + 4
    more = {"token_type_ids": types, "position_ids": positions}
    with torch.no_grad():
        past = model(IDS[:, :4], token_type_ids=types[:, :4], position_ids=positions[:, :4])
        inputs = model.prepare_inputs_for_generation(IDS, past.past_key_values, **more)
        assert inputs["input_ids"].shape == inputs["token_type_ids"].shape == (2, 2)
        assert_close(model(**inputs).logits, model(IDS, **more).logits[:, 4:])
    # A cache that holds all there is: the last token, as documented.
    full = model(IDS).past_key_values
    assert model.prepare_inputs_for_generation(IDS, full)["input_ids"].shape == (2, 1)


def test_with_a_static_cache() -> None:
    model = tiny_model()
    cache = StaticCache(model.config, 2, 9)
    with torch.no_grad():
        for columns in (4, 6):
            inputs = model.prepare_inputs_for_generation(IDS[:, :columns], cache)
            logits = model(**inputs).logits
        assert_close(logits, model(IDS).logits[:, 4:])


@pytest.mark.parametrize("cls", [GPT2LMHeadModel, GPT2DoubleHeadsModel])
def test_a_replaced_one_is_not_silently_ignored(cls: Any) -> None:
    model = tiny_model(cls)
    own = model.prepare_inputs_for_generation
    model.prepare_inputs_for_generation = lambda *a, **k: own(*a, **k)
    with pytest.raises(ArgumentError, match="generate does not call prepare_inputs_for_generation"):
        model.generate(IDS)
    model.prepare_inputs_for_generation = own
    assert model.generate(IDS, max_new_tokens=1).shape == (2, 7)

    class Mine(cls):  # type: ignore[misc, valid-type]
        def prepare_inputs_for_generation(self, *args: Any, **inputs: Any) -> dict[str, Any]:
            return {}

    with pytest.raises(ArgumentError, match="which was replaced"):
        tiny_model(Mine).generate(IDS)
