"""GenerationConfig: documented defaults, what contradicts itself, and its file."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GenerationConfig
from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError, FileFormatError
from tests.helpers import tiny_config

DOCUMENTED: dict[str, Any] = {
    "max_length": None, "max_new_tokens": None, "min_length": 0, "min_new_tokens": None,
    "early_stopping": False, "max_time": None, "stop_strings": None, "do_sample": False,
    "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None, "use_cache": True,
    "cache_implementation": None,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "diversity_penalty": 0.0,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None,
    "force_words_ids": None, "renormalize_logits": False, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False,
    "exponential_decay_length_penalty": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "sequence_bias": None, "guidance_scale": None,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False,
    "output_scores": False, "output_logits": False, "return_dict_in_generate": False,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    "num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4, "prompt_lookup_num_tokens": None,
    "max_matching_ngram_size": None,
}  # fmt: skip
OURS = {"long_context": None, "return_only_new_tokens": False}


def test_defaults() -> None:
    settings = GenerationConfig()
    names = {f.name for f in fields(settings)} - {"extra"}
    assert {name: getattr(settings, name) for name in names} == {**DOCUMENTED, **OURS}
    assert settings.to_dict() == {}


NAN = float("nan")
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0}, "temperature must be a number above 0, not 0; .*do_sample=False"),
    ({"temperature": 0.0, "do_sample": True}, r"temperature must be .* not 0\.0"),
    ({"temperature": -1.0}, r"temperature must be .* not -1\.0"),
    ({"temperature": NAN}, "temperature must be .* not nan"),
    ({"temperature": float("inf")}, "temperature must be .* not inf"),
    ({"temperature": "1"}, "temperature must be .* not '1'"),
    ({"temperature": True}, "temperature must be .* not True"),
    ({"top_p": 0.0}, r"top_p must be above 0 and at most 1, not 0\.0"),
    ({"top_p": 1.1}, r"top_p must be .* not 1\.1"),
    ({"top_p": NAN}, "top_p must be .* not nan"),
    ({"top_p": None}, "top_p must be .* not None"),
    ({"top_k": -1}, "top_k must be a whole number of at least 0, not -1"),
    ({"top_k": 2.5}, r"top_k must be .* not 2\.5"),
    ({"max_length": 0}, "max_length must be .* at least 1, not 0"),
    ({"max_new_tokens": -3}, "max_new_tokens must be .* at least 1, not -3"),
    ({"max_new_tokens": 2.0}, r"max_new_tokens must be .* not 2\.0"),
    ({"max_length": 5, "max_new_tokens": 6}, "max_length=5 and max_new_tokens=6 say the same"),
    ({"num_return_sequences": 0}, "num_return_sequences must be .* not 0"),
    ({"num_return_sequences": None}, "num_return_sequences must be .* not None"),
    ({"num_return_sequences": 3}, "num_return_sequences=3 without do_sample=True"),
    ({"do_sample": 1}, "do_sample must be True or False, not 1"),
    ({"use_cache": "no"}, "use_cache must be True or False, not 'no'"),
    ({"eos_token_id": -1}, "eos_token_id must be .* at least 0, not -1"),
    ({"eos_token_id": [1, 2.5]}, r"eos_token_id must be .* not 2\.5"),
    ({"pad_token_id": "x"}, "pad_token_id must be .* not 'x'"),
    ({"min_length": -1}, "min_length must be .* at least 0, not -1"),
    ({"min_new_tokens": -1}, "min_new_tokens must be .* at least 0, not -1"),
    ({"max_time": 0}, "max_time must be a number above 0, not 0"),
    ({"max_time": NAN}, "max_time must be a number above 0, not nan"),
    ({"stop_strings": []}, r"stop_strings must be .* not \[\]"),
    ({"stop_strings": ["a", ""]}, r"stop_strings must be .* none empty, not \['a', ''\]"),
    ({"stop_strings": [1]}, r"stop_strings must be .* not \[1\]"),
    ({"long_context": "drop"}, "long_context is 'drop'; it may be slide"),
    ({"num_beams": 0}, "num_beams must be .* at least 1, not 0"),
    ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is above num_beams=2"),
    ({"num_beams": 4, "num_beam_groups": 3}, "num_beams=4 .* num_beam_groups=3"),
    ({"num_beam_groups": 2}, "num_beams=1 .* num_beam_groups=2"),
    ({"num_beams": 4, "num_beam_groups": 2, "do_sample": True}, "num_beam_groups=2 .* do_sample"),
    ({"early_stopping": "soon"}, "early_stopping must be True, False or 'never', not 'soon'"),
    ({"early_stopping": 1}, "early_stopping must be True, False or 'never', not 1"),
    ({"length_penalty": NAN}, "length_penalty must be a finite number, not nan"),
    ({"diversity_penalty": -1.0}, r"diversity_penalty must be .* at least 0, not -1\.0"),
    ({"force_words_ids": [[1]]}, "force_words_ids needs num_beams above 1"),
    ({"force_words_ids": [], "num_beams": 2}, r"force_words_ids must be .* it is \[\]"),
    ({"force_words_ids": [[[]]], "num_beams": 2}, "force_words_ids must be .* not empty"),
    ({"penalty_alpha": 1.5}, r"penalty_alpha must be a number from 0 to 1, not 1\.5"),
    ({"penalty_alpha": 0.6, "do_sample": True}, r"penalty_alpha=0\.6 .* do_sample=True"),
    ({"penalty_alpha": 0.6, "num_beams": 2}, r"penalty_alpha=0\.6 .* num_beams=2"),
    ({"penalty_alpha": 0.6, "top_k": 1}, r"penalty_alpha=0\.6 .* top_k of at least 2, not 1"),
    ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens must be .* not 0"),
    ({"prompt_lookup_num_tokens": 2, "num_beams": 2}, "prompt_lookup_num_tokens=2 goes with"),
    ({"num_assistant_tokens_schedule": "slow"}, "num_assistant_tokens_schedule is 'slow'"),
    ({"assistant_confidence_threshold": 2}, "assistant_confidence_threshold .* not 2"),
    ({"min_p": -0.1}, r"min_p must be a number from 0 to 1, not -0\.1"),
    ({"typical_p": 0}, "typical_p must be above 0 and at most 1, not 0"),
    ({"epsilon_cutoff": 1.0}, r"epsilon_cutoff must be at least 0 and below 1, not 1\.0"),
    ({"eta_cutoff": -0.1}, r"eta_cutoff must be at least 0 and below 1, not -0\.1"),
    ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0, not 0"),
    ({"encoder_repetition_penalty": -1}, "encoder_repetition_penalty .* above 0, not -1"),
    ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size must be .* at least 0, not -2"),
    ({"encoder_no_repeat_ngram_size": 1.5}, r"encoder_no_repeat_ngram_size .* not 1\.5"),
    ({"bad_words_ids": []}, r"bad_words_ids must be a list of lists .* it is \[\]"),
    ({"bad_words_ids": [5]}, "bad_words_ids must be a list of token ids, not empty; it is 5"),
    ({"bad_words_ids": [[-5]]}, "bad_words_ids must be .* not -5"),
    ({"sequence_bias": {}}, r"sequence_bias must be a dict .* it is \{\}"),
    ({"sequence_bias": {(): 1.0}}, "sequence_bias must be a list of token ids, not empty"),
    ({"sequence_bias": [[[1], "x"]]}, "sequence_bias must be a dict .* 'x'"),
    ({"sequence_bias": [[[1], NAN]]}, "sequence_bias must be a dict .* nan"),
    ({"suppress_tokens": []}, "suppress_tokens must be a list of token ids, not empty"),
    ({"begin_suppress_tokens": [True]}, "begin_suppress_tokens must be .* not True"),
    ({"forced_bos_token_id": -1}, "forced_bos_token_id must be .* not -1"),
    ({"forced_eos_token_id": [1, -1]}, "forced_eos_token_id must be .* not -1"),
    ({"exponential_decay_length_penalty": (1, 2, 3)}, r"exponential_decay.* not \(1, 2, 3\)"),
    ({"exponential_decay_length_penalty": (-1, 1.1)}, r"exponential_decay.* not \(-1, 1\.1\)"),
    ({"exponential_decay_length_penalty": [1, 1.1]}, "exponential_decay.* eos_token_id is None"),
    ({"guidance_scale": NAN}, "guidance_scale must be a finite number, not nan"),
    ({"renormalize_logits": 1}, "renormalize_logits must be True or False, not 1"),
    ({"output_scores": "yes"}, "output_scores must be True or False, not 'yes'"),
    ({"min_length": 9, "max_length": 8}, "min_length=9 is above max_length=8"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 is above max_new_tokens=8"),
    ({"long_context": "slide", "num_beams": 2}, "long_context='slide' goes with greedy"),
    ({"long_context": "slide", "use_cache": False}, "long_context='slide' needs use_cache"),
    ({"long_context": "slide", "guidance_scale": 2}, "long_context='slide' .* guidance_scale=2"),
    ({"long_context": "slide", "prompt_lookup_num_tokens": 2}, "long_context='slide' .*lookup"),
    ({"long_context": "slide", "output_attentions": True}, "long_context='slide' .*attentions"),
    ({"dola_layers": "low"}, "dola_layers='low' cannot be honoured.*leave it out or at None"),
    ({"token_healing": True}, "token_healing=True cannot be honoured"),
    (
        {"cache_implementation": "quantized"},
        "cache_implementation is 'quantized'; it may be static, dynamic",
    ),
    (
        {"cache_implementation": "static", "use_cache": False},
        "cache_.*'static' does not .* use_cache=F",
    ),
    (
        {"cache_implementation": "static", "penalty_alpha": 0.5},
        r"cache_.*'static' .* penalty_alpha=0\.5",
    ),
    (
        {"cache_implementation": "static", "prompt_lookup_num_tokens": 2},
        "cache_.*'static' .* prompt_look",
    ),
    (
        {"cache_implementation": "static", "guidance_scale": 2},
        "cache_.*'static' .* guidance_scale=2",
    ),
    (
        {"cache_implementation": "static", "long_context": "slide"},
        "cache_.*'static' .* long_context='sl",
    ),
    (
        {"cache_implementation": "static", "output_attentions": True},
        "cache_.*'static' .* output_attenti",
    ),
    (
        {"cache_implementation": "static", "output_hidden_states": True},
        "cache_.*'static' .*hidden_states",
    ),
]


@pytest.mark.parametrize(("settings", "words"), IMPOSSIBLE, ids=lambda v: str(v)[:40])
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        GenerationConfig(**settings)
    with pytest.raises(ArgumentError, match=words):
        GenerationConfig().replaced(**settings)


def can_be_wrong_in_a_file(settings: dict[str, Any]) -> bool:
    """Not where null means the default, max_new_tokens wins, or the value is no JSON."""
    try:
        text = json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return "null" not in text and json.loads(text) == settings and "max_new_tokens" not in settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [case for case in IMPOSSIBLE if can_be_wrong_in_a_file(case[0])],
    ids=lambda v: str(v)[:40],
)
def test_impossible_settings_of_a_file_name_the_file(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArgumentError, match=rf"generation_config\.json: {words}"):
        GenerationConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "near"), [("temprature", "temperature"), ("max_tokens", "max_"), ("beams", "")]
)
def test_unknown_settings_are_refused_with_the_nearest(name: str, near: str) -> None:
    words = f"no argument '{name}'; did you mean '{near}" if near else f"no argument '{name}'"
    with pytest.raises(ArgumentTypeError, match=words):
        GenerationConfig(**{name: 1})
    with pytest.raises(ArgumentTypeError, match=words):
        GenerationConfig().replaced(**{name: 1})
    with pytest.raises(ArgumentTypeError, match=words):
        setattr(GenerationConfig(), name, 1)


def test_settings_without_effect_are_taken() -> None:
    neutral: dict[str, Any] = {"dola_layers": None, "token_healing": False}
    assert GenerationConfig(**neutral) == GenerationConfig()
    assert GenerationConfig().replaced(**neutral) == GenerationConfig()
    settings = GenerationConfig()
    settings.token_healing = False  # type: ignore[attr-defined]
    with pytest.raises(ArgumentError, match="token_healing=True"):
        settings.token_healing = True  # type: ignore[attr-defined]


VOID: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"temperature": 0.5}, {"do_sample": True}, "do_sample=True"),
    ({"top_k": 3}, {"do_sample": True}, "do_sample=True or penalty_alpha"),
    ({"top_k": 3}, {"penalty_alpha": 0.5}, "do_sample=True or penalty_alpha"),
    ({"top_p": 0.9}, {"do_sample": True}, "do_sample=True"),
    ({"min_p": 0.1}, {"do_sample": True}, "do_sample=True"),
    ({"typical_p": 0.9}, {"do_sample": True}, "do_sample=True"),
    ({"epsilon_cutoff": 0.1}, {"do_sample": True}, "do_sample=True"),
    ({"eta_cutoff": 0.1}, {"do_sample": True}, "do_sample=True"),
    ({"early_stopping": True}, {"num_beams": 2}, "num_beams above 1"),
    ({"length_penalty": 2.0}, {"num_beams": 2}, "num_beams above 1"),
    ({"diversity_penalty": 0.5}, {"num_beams": 2, "num_beam_groups": 2}, "num_beam_groups above 1"),
    ({"output_scores": True}, {"return_dict_in_generate": True}, "return_dict_in_generate=True"),
    ({"output_logits": True}, {"return_dict_in_generate": True}, "return_dict_in_generate=True"),
    ({"output_attentions": True}, {"return_dict_in_generate": True}, "return_dict_in_generate"),
    ({"output_hidden_states": True}, {"return_dict_in_generate": True}, "return_dict_in_generate"),
    ({"max_matching_ngram_size": 3}, {"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
]


@pytest.mark.parametrize(("said", "needed", "words"), VOID, ids=lambda v: str(v)[:40])
def test_settings_that_others_make_void_are_refused_in_a_call(
    said: dict[str, Any], needed: dict[str, Any], words: str
) -> None:
    ((name, value),) = said.items()
    message = f"{name}={value!r} has no effect without {words}"
    with pytest.raises(ArgumentError, match=message):
        GenerationConfig().replaced(**said)
    assert getattr(GenerationConfig(**needed).replaced(**said), name) == value
    assert getattr(GenerationConfig().replaced(**said, **needed), name) == value
    kept = GenerationConfig(**said)  # in a config or a file, for a later call
    assert any(m.startswith(f"{name}={value!r}") for m in kept.void())
    assert kept.replaced(**needed).void() == []
    default = getattr(GenerationConfig(), name)
    GenerationConfig().replaced(**{name: default})  # nothing said


def test_one_length_takes_the_place_of_the_other() -> None:
    new = GenerationConfig(max_length=30).replaced(max_new_tokens=5)
    assert (new.max_length, new.max_new_tokens) == (None, 5)
    old = GenerationConfig(max_new_tokens=5).replaced(max_length=30)
    assert (old.max_length, old.max_new_tokens) == (30, None)
    with pytest.raises(ArgumentError, match="max_length=3 and max_new_tokens=4"):
        GenerationConfig().replaced(max_length=3, max_new_tokens=4)


@pytest.mark.parametrize("order", [1, -1])
def test_in_a_file_max_new_tokens_wins(order: int) -> None:
    pairs = [("max_length", 30), ("max_new_tokens", 5)][::order]
    settings = GenerationConfig.from_dict(dict(pairs))
    assert (settings.max_length, settings.max_new_tokens) == (None, 5)


def test_number_of_new_tokens() -> None:
    def count(length: int, **settings: Any) -> int:
        return GenerationConfig(**settings).new_tokens(length, 32)

    assert count(5) == 20
    assert count(20) == 12  # up to n_positions
    assert count(5, max_new_tokens=7) == 7
    assert count(5, max_length=9) == 4
    assert count(40, long_context="slide") == 20
    with pytest.raises(ArgumentError, match="max_length=5 leaves no room behind a prompt of 5"):
        count(5, max_length=5)
    with pytest.raises(
        ArgumentError, match=r"min_new_tokens=9 asks for 9 .* prompt of 5, .* for 4"
    ):
        count(5, max_length=9, min_new_tokens=9)
    with pytest.raises(
        ArgumentError, match=r"min_length=9 asks for 4 .* prompt of 5, .* room for 3"
    ):
        count(5, max_new_tokens=3, min_length=9)


def test_replaced_leaves_the_original() -> None:
    settings = GenerationConfig(eos_token_id=[1, 2], extra={"a": [1]})
    changed = settings.replaced(pad_token_id=3)
    changed.eos_token_id.append(4)  # type: ignore[union-attr]
    changed.extra["a"].append(2)
    assert settings == GenerationConfig(eos_token_id=[1, 2], extra={"a": [1]})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_equal(copied: Any) -> None:
    settings = GenerationConfig(do_sample=True, top_k=3, extra={"a": 1})
    assert copied(settings) == settings


def test_file_round_trip(tmp_path: Path) -> None:
    settings = GenerationConfig(
        do_sample=True, top_k=3, eos_token_id=[1, 2], extra={"transformers_version": "4.48.3"}
    )
    settings.save_pretrained(tmp_path / "g")
    written = json.loads((tmp_path / "g" / "generation_config.json").read_text())
    assert written == {
        "do_sample": True,
        "eos_token_id": [1, 2],
        "top_k": 3,
        "transformers_version": "4.48.3",
    }
    assert GenerationConfig.from_pretrained(tmp_path / "g") == settings
    assert GenerationConfig.from_dict(settings.to_dict()) == settings


EVERY: list[dict[str, Any]] = [
    {
        "max_length": 30, "min_length": 3, "min_new_tokens": 2, "max_time": 1.5,
        "stop_strings": ["."], "do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9,
        "min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1,
        "repetition_penalty": 1.2, "encoder_repetition_penalty": 1.1, "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[1], [2, 3]],
        "sequence_bias": [[[1, 2], 0.5]], "suppress_tokens": [4], "begin_suppress_tokens": [5],
        "forced_bos_token_id": 6, "forced_eos_token_id": [7, 8],
        "exponential_decay_length_penalty": [1, 1.1], "guidance_scale": 1.5,
        "renormalize_logits": True, "remove_invalid_values": True, "num_return_sequences": 2,
        "return_only_new_tokens": True, "return_dict_in_generate": True, "output_scores": True,
        "output_logits": True, "output_attentions": True, "output_hidden_states": True,
        "bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": 0, "use_cache": False,
        "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 4, "num_assistant_tokens": 5,
        "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.1,
    },
    {
        "max_new_tokens": 9, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5,
        "length_penalty": 0.8, "early_stopping": "never",
    },
    {"num_beams": 4, "force_words_ids": [[1], [[2, 3], [4]]]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"long_context": "slide"},
    {"cache_implementation": "static"},
]  # fmt: skip


def test_every_setting_is_among_them_and_checked() -> None:
    checked = {f.name for f in fields(GenerationConfig) if "check" in f.metadata}
    assert checked == {f.name for f in fields(GenerationConfig)} - {"extra"}
    named = {name for settings in EVERY for name in settings}
    assert named == {f.name for f in fields(GenerationConfig)} - {"extra"}


@pytest.mark.parametrize("settings", EVERY, ids=lambda v: str(v)[:40])
def test_every_setting_goes_through_a_file(settings: dict[str, Any], tmp_path: Path) -> None:
    config = GenerationConfig(**settings)
    config.save_pretrained(tmp_path / "g")
    assert json.loads((tmp_path / "g" / "generation_config.json").read_text()) == settings
    assert GenerationConfig.from_pretrained(tmp_path / "g") == config


def test_what_json_has_no_form_for_gets_one() -> None:
    config = GenerationConfig(sequence_bias={(1, 2): 0.5}, do_sample=True, top_k=None)
    written = json.loads(json.dumps(config.to_dict()))
    assert written == {"sequence_bias": [[[1, 2], 0.5]], "do_sample": True, "top_k": 0}
    assert GenerationConfig.from_dict({"top_k": None}).top_k is None


def test_null_in_a_file_means_the_default() -> None:
    names = [f.name for f in fields(GenerationConfig) if f.name not in ("top_k", "extra")]
    assert GenerationConfig.from_dict(dict.fromkeys(names)) == GenerationConfig()


def test_unknown_settings_of_a_file_are_refused(tmp_path: Path) -> None:
    notes = {"transformers_version": "4.48.3", "_from_model_config": True, "of_the_future": None}
    assert GenerationConfig.from_dict(notes) == GenerationConfig(extra=notes)
    (tmp_path / "generation_config.json").write_text('{"temprature": 0.7}')
    words = r"generation_config\.json: temprature=0\.7 is no setting .* did you mean 'temperature'"
    with pytest.raises(ArgumentError, match=words):
        GenerationConfig.from_pretrained(tmp_path)


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(FileFormatError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)


def test_a_models_config_gives_the_special_tokens_and_old_settings() -> None:
    config = tiny_config(
        bos_token_id=1,
        eos_token_id=[2, -1],
        pad_token_id=-1,  # some configs say "none" so
        extra={
            "max_length": 20,
            "do_sample": True,
            "top_p": 0.9,
            "repetition_penalty": 1.2,
            "task": "x",
        },
    )
    settings = GenerationConfig.from_model_config(config)
    assert settings == GenerationConfig(
        bos_token_id=1, eos_token_id=[2], do_sample=True, top_p=0.9, repetition_penalty=1.2
    )
    config.extra["max_length"] = 50
    assert GenerationConfig.from_model_config(config).max_length == 50
