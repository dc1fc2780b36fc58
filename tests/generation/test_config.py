"""GenerationConfig: documented defaults, what contradicts itself, and its file."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GenerationConfig
from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError, FileFormatError
from tests.helpers import tiny_config


def test_defaults() -> None:
    settings = GenerationConfig()
    expected = {
        "max_length": None, "max_new_tokens": None, "do_sample": False, "temperature": 1.0,
        "top_k": 50, "top_p": 1.0, "num_return_sequences": 1, "use_cache": True,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in expected} == expected
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
    ({"dola_layers": "low"}, "dola_layers='low' cannot be honoured.*leave it out or at None"),
    ({"token_healing": True}, "token_healing=True cannot be honoured"),
    ({"cache_implementation": "static"}, "cache_implementation='static' cannot be honoured"),
]


@pytest.mark.parametrize(("settings", "words"), IMPOSSIBLE, ids=lambda v: str(v)[:40])
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        GenerationConfig(**settings)
    with pytest.raises(ArgumentError, match=words):
        GenerationConfig().replaced(**settings)


def can_be_wrong_in_a_file(settings: dict[str, Any]) -> bool:
    """Not where null means the default, max_new_tokens wins, or the value is no JSON."""
    odd = (None, float("inf"))
    return len(settings) == 1 and not any(v in odd or v != v for v in settings.values())


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


def test_sampling_settings_without_sampling_are_refused_in_a_call() -> None:
    for name, value in {"temperature": 0.5, "top_k": 3, "top_p": 0.9}.items():
        with pytest.raises(ArgumentError, match=f"{name}={value} has no effect without do_sample"):
            GenerationConfig().replaced(**{name: value})
        assert getattr(GenerationConfig(do_sample=True).replaced(**{name: value}), name) == value
    GenerationConfig().replaced(temperature=1.0, top_k=50, top_p=1.0)  # nothing said
    kept = GenerationConfig(temperature=0.5)  # in a config or a file, for a later do_sample=True
    assert kept.replaced(do_sample=True).temperature == 0.5


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
    with pytest.raises(ArgumentError, match="max_length=5 leaves no room behind a prompt of 5"):
        count(5, max_length=5)


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


def test_null_in_a_file_means_the_default() -> None:
    names = ("temperature", "top_p", "do_sample", "use_cache", "num_return_sequences")
    assert GenerationConfig.from_dict(dict.fromkeys(names)) == GenerationConfig()


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
        extra={"max_length": 20, "do_sample": True, "top_p": 0.9, "task": "x"},
    )
    settings = GenerationConfig.from_model_config(config)
    assert settings == GenerationConfig(bos_token_id=1, eos_token_id=[2], do_sample=True, top_p=0.9)
    config.extra["max_length"] = 50
    assert GenerationConfig.from_model_config(config).max_length == 50
