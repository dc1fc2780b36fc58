"""Calls of generate that cannot be: an error that names the argument, before any forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt2 import GenerationConfig
from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    GPT2Error,
    SequenceLengthError,
    TokenIdError,
)
from gpt2.modeling.static_cache import StaticCache
from tests.generation.test_config import IMPOSSIBLE
from tests.helpers import tiny_config, tiny_model

IDS = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
EMBEDS = torch.zeros(3, 5, 32)

CASES: list[tuple[dict[str, Any], type[GPT2Error], str]] = [
    # what belongs to another method
    ({"num_beams": 2, "streamer": object()}, ArgumentError, "streamer .* num_beams=2"),
    ({"synced_gpus": True}, ArgumentError, "synced_gpus=True"),
    ({"inputs": IDS, "input_ids": IDS}, ArgumentTypeError, "inputs and input_ids"),
    ({"num_beams": 2, "prompt_lookup_num_tokens": 3}, ArgumentError, "prompt_lookup_num_tokens"),
    ({"num_beams": 2, "assistant_model": "own"}, ArgumentError, "assistant_model .* 'beam'"),
    ({"assistant_model": "own", "long_context": "slide"}, ArgumentError, "assistant_model .*slide"),
    ({"assistant_model": "own", "prompt_lookup_num_tokens": 3}, ArgumentError, "assistant_model"),
    ({"assistant_model": 3}, ArgumentTypeError, "assistant_model must be"),
    # arguments of forward
    ({"token_type_ids": IDS}, ArgumentTypeError, "token_type_ids is an argument of forward"),
    ({"position_ids": IDS}, ArgumentTypeError, "position_ids is .* attention_mask"),
    ({"head_mask": torch.ones(2, 4)}, ArgumentTypeError, "head_mask is .* prune_heads"),
    # lengths that cannot be
    ({"max_length": 8, "min_new_tokens": 4}, ArgumentError, "min_new_tokens=4 .* room for 3"),
    ({"max_new_tokens": 3, "min_length": 9}, ArgumentError, "min_length=9 .* room for 3"),
    ({"min_new_tokens": 28}, ArgumentError, "min_new_tokens=28 .* room for 20"),
    ({"max_new_tokens": 28}, SequenceLengthError, "n_positions = 32"),
    ({"num_beams": 2, "max_new_tokens": 28}, SequenceLengthError, "n_positions = 32"),
    ({"penalty_alpha": 0.5, "max_new_tokens": 28}, SequenceLengthError, "n_positions = 32"),
    # ids outside of the vocabulary
    ({"eos_token_id": 97}, TokenIdError, "eos_token_id has the id 97; .* from 0 to 96"),
    ({"pad_token_id": 100}, TokenIdError, "pad_token_id has the id 100"),
    ({"bad_words_ids": [[1], [2, 97]]}, TokenIdError, "bad_words_ids has the id 97"),
    ({"sequence_bias": {(1, 98): 2.0}}, TokenIdError, "sequence_bias has the id 98"),
    ({"suppress_tokens": [99]}, TokenIdError, "suppress_tokens has the id 99"),
    ({"begin_suppress_tokens": [99]}, TokenIdError, "begin_suppress_tokens has the id 99"),
    ({"forced_bos_token_id": 99}, TokenIdError, "forced_bos_token_id has the id 99"),
    ({"forced_eos_token_id": [1, 99]}, TokenIdError, "forced_eos_token_id has the id 99"),
    ({"num_beams": 2, "force_words_ids": [[99]]}, TokenIdError, "force_words_ids has the id 99"),
    # guidance
    ({"negative_prompt_ids": IDS}, ArgumentError, "negative_prompt_ids .* guidance_scale=None"),
    ({"negative_prompt_ids": IDS, "guidance_scale": 1.0}, ArgumentError, r"guidance_scale=1\.0"),
    ({"guidance_scale": 2.0, "negative_prompt_ids": IDS[:2]}, ArgumentError, "2 rows, the prom"),
    ({"guidance_scale": 2.0, "negative_prompt_ids": IDS[0]}, ArgumentError, "negative_prompt_ids"),
    ({"guidance_scale": 2.0, "negative_prompt_ids": [1]}, ArgumentTypeError, "negative_prompt_ids"),
    ({"guidance_scale": 2.0, "negative_prompt_attention_mask": IDS}, ArgumentError, "needs negati"),
    ({"guidance_scale": 2.0, "negative_prompt_ids": IDS.repeat(1, 5)}, SequenceLengthError,
     "negative_prompt_ids and the new tokens make 45"),
    ({"guidance_scale": 2.0, "input_ids": None, "inputs_embeds": EMBEDS}, ArgumentError,
     "guidance_scale with inputs_embeds needs negative_prompt_ids"),
    ({"guidance_scale": 2.0, "penalty_alpha": 0.5}, ArgumentError, r"guidance_scale=2\.0 .* con"),
    ({"guidance_scale": 2.0, "prompt_lookup_num_tokens": 2}, ArgumentError, "guidance_scale"),
    # what needs ids, or a tokenizer, or a sensible function
    ({"input_ids": None, "inputs_embeds": EMBEDS, "encoder_repetition_penalty": 1.2},
     ArgumentError, r"encoder_repetition_penalty=1\.2 needs input_ids"),
    ({"input_ids": None, "inputs_embeds": EMBEDS, "encoder_no_repeat_ngram_size": 2},
     ArgumentError, "encoder_no_repeat_ngram_size=2 needs input_ids"),
    ({"stop_strings": "x"}, ArgumentTypeError, "stop_strings='x' needs tokenizer="),
    ({"logits_processor": [1]}, ArgumentTypeError, "logits_processor must be .* it has 1"),
    ({"stopping_criteria": 1}, ArgumentTypeError, "stopping_criteria must be a list"),
    ({"past_key_values": 3}, ArgumentTypeError, "past_key_values"),
    ({"past_key_values": StaticCache(tiny_config(), 3, 9)}, ArgumentError,
     "is a StaticCache; generate makes its own"),
    ({"cache_implementation": "static", "assistant_model": "own"}, ArgumentError,
     "cache_implementation='static' does not go with assistant_model"),
    ({"cache_implementation": "static", "guidance_scale": 2.0}, ArgumentError, "guidance_scale=2"),
    ({"seed": [1, 2, True], "do_sample": True}, ArgumentError, "seed .* True"),
    ({"seed": [1, 2, 3], "do_sample": True, "num_return_sequences": 2}, ArgumentError,
     r"returned row \(6\)"),
    ({"seed": [1], "do_sample": True, "num_beams": 2}, ArgumentError, r"row of the prompt \(3\)"),
    ({"encoder_outputs": 3}, ArgumentTypeError, "no argument 'encoder_outputs'"),
    # a config whose settings are void in itself
    ({"generation_config": {"top_k": 5}}, ArgumentTypeError,
     r"generation_config must be a gpt2\.GenerationConfig, not builtins\.dict"),
    ({"generation_config": GenerationConfig(temperature=0.5)}, ArgumentError,
     r"generation_config: temperature=0\.5 has no effect without do_sample=True"),
    ({"input_ids": IDS[:, :0]}, ArgumentError, r"input_ids has shape \(3, 0\)"),
    ({"input_ids": None, "bos_token_id": None}, ArgumentError, "needs bos_token_id, and none is"),
]  # fmt: skip


def refused(arguments: dict[str, Any], kind: type[GPT2Error], words: str) -> None:
    model = tiny_model()
    passes: list[object] = []
    model.transformer.h[0].register_forward_hook(lambda *call: passes.append(call))
    if arguments.get("assistant_model") == "own":
        arguments = {**arguments, "assistant_model": model}
    with pytest.raises(kind, match=words):
        model.generate(**{"input_ids": IDS, **arguments})
    assert passes == []


@pytest.mark.parametrize(("arguments", "kind", "words"), CASES, ids=[c[2][:50] for c in CASES])
def test_bad_calls(arguments: dict[str, Any], kind: type[GPT2Error], words: str) -> None:
    refused(arguments, kind, words)


@pytest.mark.parametrize(
    ("settings", "words"), IMPOSSIBLE, ids=[str(case[0])[:50] for case in IMPOSSIBLE]
)
def test_bad_settings(settings: dict[str, Any], words: str) -> None:
    refused({"bos_token_id": 1, "eos_token_id": None, **settings}, ArgumentError, words)


def test_a_given_config_may_be_completed_by_the_call() -> None:
    model = tiny_model()
    config = GenerationConfig(temperature=0.5, max_new_tokens=3)
    model.generate(IDS, config, do_sample=True)
    model.generation_config.temperature = 0.5  # the model's own is for later calls
    model.generate(IDS, max_new_tokens=2)


def test_a_small_models_own_special_tokens_may_be_beyond_it() -> None:
    """GPT2Config's defaults are 50256, also where vocab_size is 97; nobody has asked for them."""
    model = tiny_model(bos_token_id=50256, eos_token_id=[50256, 5])
    model.generation_config.pad_token_id = 50257
    for settings in ({}, {"min_new_tokens": 2}, {"num_beams": 2}, {"max_length": 8}):
        found = model.generate(IDS, **settings)
        assert int(found.max()) < 97
    with pytest.raises(TokenIdError, match="eos_token_id has the id 50256"):
        model.generate(IDS, eos_token_id=50256)
    with pytest.raises(TokenIdError, match="pad_token_id has the id 50257"):
        model.generate(IDS, GenerationConfig(pad_token_id=50257))
    with pytest.raises(ArgumentError, match="needs bos_token_id, and none is set"):
        model.generate()


METHODS: tuple[dict[str, Any], ...] = (
    {}, {"do_sample": True}, {"num_beams": 2}, {"penalty_alpha": 0.5},
    {"prompt_lookup_num_tokens": 2},
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_scores_that_leave_no_token_are_refused(method: dict[str, Any]) -> None:
    model = tiny_model()
    with pytest.raises(
        ArgumentError, match=r"processors leave no token .* new token 0: .*bad_words"
    ):
        model.generate(IDS, suppress_tokens=list(range(97)), **method)
    broken = lambda ids, scores: scores * torch.nan  # noqa: E731
    with pytest.raises(ArgumentError, match="processors leave no token"):
        model.generate(IDS, logits_processor=[broken], **method)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_logits_that_are_no_numbers_are_refused(method: dict[str, Any], value: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[5, 3] = value
    with pytest.raises(ArgumentError, match="logits are NaN or infinite at new token 0"):
        model.generate(IDS, **method)


def test_invalid_values_may_be_removed() -> None:
    model = tiny_model()
    embeds = model.get_input_embeddings()(IDS).detach()
    embeds[0, 2] = torch.nan
    found = model.generate(
        inputs_embeds=embeds, remove_invalid_values=True, max_new_tokens=3, eos_token_id=None
    )
    assert found[0].tolist() == [0, 0, 0]
    clean = model.generate(IDS, max_new_tokens=3, eos_token_id=None)
    assert torch.equal(found[1:], clean[1:, 5:])


def test_a_model_that_recomputes_its_blocks_is_to_be_put_into_eval_mode() -> None:
    model = tiny_model()
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(ArgumentError, match=r"model\.eval\(\)"):
        model.generate(IDS, max_new_tokens=2)
    assert model.eval().generate(IDS, max_new_tokens=2).shape == (3, 7)
