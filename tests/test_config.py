"""GPT2Config: the documented fields and defaults, aliases, files, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GPT2Config
from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConfigError,
    FileAccessError,
    FileFormatError,
)
from tests.helpers import tiny_config

# The documented reference (4.4x), with the output fields of every config.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "n_inner": None, "activation_function": "gelu_new",
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
    "summary_type": "cls_index", "summary_use_proj": True, "summary_activation": None,
    "summary_proj_to_labels": True, "summary_first_dropout": 0.1,
    "scale_attn_weights": True, "use_cache": True,
    "bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": None,
    "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
    "add_cross_attention": False, "tie_word_embeddings": True,
    "output_attentions": False, "output_hidden_states": False, "return_dict": True,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "num_labels": 2, "problem_type": None, "pruned_heads": {},
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 1024, "model_type": "gpt2",
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_documented_defaults(name: str) -> None:
    assert getattr(GPT2Config(), name) == DEFAULTS[name]


def test_positional_order_is_the_documented_one() -> None:
    order = [f.name for f in fields(GPT2Config)]
    last = ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"]
    assert order[:23] == [*list(DEFAULTS)[:21], *last]
    assert GPT2Config(97, 32, 16, 2, 4).n_head == 4


ALIASES = {
    "hidden_size": ("n_embd", 24),
    "num_hidden_layers": ("n_layer", 3),
    "num_attention_heads": ("n_head", 3),
    "max_position_embeddings": ("n_positions", 7),
    "dtype": ("torch_dtype", "float16"),
}


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases(alias: str) -> None:
    name, value = ALIASES[alias]
    base = {"n_embd": 48, "n_head": 2, "n_layer": 1}
    base.pop(name, None)
    made = GPT2Config(**base, **{alias: value})
    assert getattr(made, name) == getattr(made, alias) == value
    changed = GPT2Config(n_embd=48, n_head=2)
    setattr(changed, alias, value)
    assert getattr(changed, name) == value
    assert getattr(GPT2Config(n_embd=48, n_head=2).replaced(**{alias: value}), name) == value
    assert getattr(GPT2Config.from_dict({**base, alias: value}), name) == value
    assert alias not in made.to_dict()
    with pytest.raises(ArgumentError, match=f"both '{alias}' and its alias '{name}'"):
        GPT2Config(**{name: value, alias: value})
    with pytest.raises(ArgumentError, match=f"both '{alias}' and its alias '{name}'"):
        GPT2Config().replaced(**{name: value, alias: value})


def test_names_in_a_file_may_not_contradict_each_other() -> None:
    assert GPT2Config.from_dict({"n_embd": 24, "hidden_size": 24}).n_embd == 24
    with pytest.raises(ConfigError, match=r"hidden_size is 48.*24"):
        GPT2Config.from_dict({"n_embd": 24, "hidden_size": 48})
    with pytest.raises(ConfigError, match=r"n_embd is 48.*24"):
        GPT2Config.from_dict({"hidden_size": 24, "n_embd": 48})


def test_derived_sizes() -> None:
    config = GPT2Config()
    assert config.head_dim == 64
    assert config.inner_dim == 3072
    assert GPT2Config(n_inner=100).inner_dim == 100


def test_labels() -> None:
    three = GPT2Config(num_labels=3)
    assert three.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert three.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    moods = GPT2Config(id2label={0: "sad", "1": "happy", 2: "calm"})  # JSON has text keys
    assert moods.id2label == {0: "sad", 1: "happy", 2: "calm"}
    assert moods.label2id == {"sad": 0, "happy": 1, "calm": 2}
    assert moods.num_labels == 3
    moods.num_labels = 3  # nothing to rename
    assert moods.id2label[0] == "sad"
    moods.num_labels = 4
    assert moods.id2label[3] == "LABEL_3"
    assert moods.label2id == {f"LABEL_{i}": i for i in range(4)}
    assert GPT2Config().replaced(id2label={0: "a"}).label2id == {"a": 0}
    assert GPT2Config(id2label=None, num_labels=1).num_labels == 1
    with pytest.raises(ConfigError, match="num_labels is 3, but id2label has 2"):
        GPT2Config(num_labels=3, id2label={0: "a", 1: "b"})
    with pytest.raises(ConfigError, match="num_labels is 3, but id2label has 2"):
        GPT2Config.from_dict({"num_labels": 3, "id2label": {"0": "a", "1": "b"}})


# -- refusals -----------------------------------------------------------------------------------

IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 0}, "vocab_size must be a whole number from 1 .* not 0"),
    ({"vocab_size": 2**40}, "vocab_size must be .* 2147483647, not 1099511627776"),
    ({"n_layer": -2}, "n_layer must be .* not -2"),
    ({"n_layer": 10**9}, "n_layer must be .* 10000, not 1000000000"),
    ({"n_positions": 1.5}, r"n_positions must be .* not 1\.5"),
    ({"n_positions": True}, "n_positions must be .* not True"),
    ({"n_embd": "768"}, "n_embd must be .* not '768'"),
    ({"n_embd": None}, "n_embd must be .* not None"),
    ({"n_head": 5}, r"n_embd \(768\) must be a multiple of n_head \(5\)"),
    ({"n_inner": 0}, "n_inner must be .* not 0"),
    ({"n_embd": 2**30, "n_head": 1}, r"n_embd 1073741824.*e\+\d+ parameters"),
    ({"resid_pdrop": 1.5}, r"resid_pdrop must be a number from 0\.0 to 1\.0, not 1\.5"),
    ({"embd_pdrop": -0.1}, r"embd_pdrop must be .* not -0\.1"),
    ({"attn_pdrop": float("nan")}, "attn_pdrop must be .* not nan"),
    ({"classifier_dropout": 2}, "classifier_dropout must be .* not 2"),
    ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be .* not -1e-05"),
    ({"initializer_range": float("inf")}, "initializer_range must be .* not inf"),
    ({"initializer_range": "0.02"}, "initializer_range must be .* not '0.02'"),
    ({"activation_function": "gelu_nwe"}, "'gelu_nwe'; it may be relu.*did you mean 'gelu_new'"),
    ({"activation_function": None}, "activation_function is None; it may be"),
    ({"summary_type": "average"}, "summary_type is 'average'; it may be last, first, mean"),
    ({"summary_activation": "gelu3"}, "summary_activation is 'gelu3'"),
    ({"problem_type": "ranking"}, "problem_type is 'ranking'; it may be regression"),
    ({"use_cache": "false"}, "use_cache must be True or False, not 'false'"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be True or False, not 1"),
    ({"bos_token_id": 1.0}, r"bos_token_id must be .* not 1\.0"),
    ({"eos_token_id": [1, "2"]}, "eos_token_id must be .* not '2'"),
    ({"id2label": ["a", "b"]}, r"id2label must be an object, not \['a', 'b'\]"),
    ({"id2label": {"x": "a"}}, "id2label must have whole numbers as keys, not 'x'"),
    ({"label2id": 3}, "label2id must be an object, not 3"),
    ({"num_labels": -1}, "num_labels must be .* not -1"),
    ({"num_labels": "3"}, "num_labels must be .* not '3'"),
    ({"pruned_heads": [1]}, r"pruned_heads must be an object, not \[1\]"),
    ({"pruned_heads": {0: 1}}, r"pruned_heads\[0\] must be a list of heads, not 1"),
    ({"pruned_heads": {0: ["1"]}}, r"pruned_heads\[0\] must be a list"),
    ({"pruned_heads": {12: [0]}}, "pruned_heads: layer must be .* from 0 to 11, not 12"),
    ({"pruned_heads": {0: [12]}}, r"pruned_heads\[0\]: head must be .* from 0 to 11, not 12"),
    ({"pruned_heads": {0: list(range(12))}}, r"pruned_heads\[0\] names all 12 heads"),
]


@pytest.mark.parametrize(("values", "words"), IMPOSSIBLE, ids=lambda v: str(v)[:40])
def test_impossible_values_are_refused(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    """When made, from a dict, as an override, and (with the file's name) from a file."""
    with pytest.raises(ConfigError, match=words):
        GPT2Config(**values)
    with pytest.raises(ConfigError, match=words):
        GPT2Config().replaced(**values)
    path = tmp_path / "config.json"
    try:
        path.write_text(json.dumps(values, allow_nan=False))
    except ValueError:  # NaN and infinity are not JSON
        return
    with pytest.raises(ConfigError, match=rf"config\.json: .*{words}"):
        GPT2Config.from_pretrained(tmp_path)


@pytest.mark.parametrize("values", [{"n_head": 5}, {"resid_pdrop": 2.0}, {"use_cache": None}])
def test_values_set_later_are_refused_when_used(values: dict[str, Any], tmp_path: Path) -> None:
    config = GPT2Config()
    for name, value in values.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=next(iter(values))):
        config.validate()
    with pytest.raises(ConfigError, match=next(iter(values))):
        config.save_pretrained(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ArgumentTypeError, match="no argument 'n_heads'; did you mean 'n_head'"):
        GPT2Config(n_heads=12)  # type: ignore[call-arg]
    with pytest.raises(ArgumentTypeError, match="did you mean 'num_labels'"):
        GPT2Config().replaced(num_label=3)
    with pytest.raises(ArgumentTypeError, match="did you mean 'n_layer'"):
        GPT2Config.from_dict({}, n_layers=3)
    config = GPT2Config()
    with pytest.raises(ConfigError, match=r"no field 'n_heads'; did you mean 'n_head'.*extra"):
        config.n_heads = 3  # type: ignore[attr-defined]
    with pytest.raises(ArgumentTypeError, match="config_dict must be a dict, not list"):
        GPT2Config.from_dict([("n_layer", 2)])  # type: ignore[arg-type]


def test_another_architecture_is_refused() -> None:
    for found in ("llama", None, 3):
        with pytest.raises(ConfigError, match=f"model_type is {found!r}, .*'gpt2'"):
            GPT2Config.from_dict({"model_type": found})


# -- copies and files ---------------------------------------------------------------------------


def odd_config() -> GPT2Config:
    return tiny_config(
        n_inner=48,
        id2label={0: "a", 1: "b", 2: "c"},
        eos_token_id=[3, 4],
        pruned_heads={1: [2, 0]},
        problem_type="regression",
        torch_dtype="bfloat16",
        extra={"n_ctx": 32, "task_specific_params": {"x": [1, None]}},
    )


def test_dict_and_json_round_trip() -> None:
    config = odd_config()
    plain = config.to_dict()
    assert GPT2Config.from_dict(plain) == config
    assert GPT2Config.from_dict(json.loads(config.to_json_string())) == config
    assert plain["model_type"] == "gpt2"
    assert plain["n_ctx"] == 32
    assert plain["pruned_heads"] == {1: [0, 2]}
    assert "extra" not in plain
    assert "attn_implementation" not in plain
    plain["task_specific_params"]["x"].append(2)
    plain["id2label"][0] = "changed"
    assert config == odd_config()  # a deep copy
    keys = list(json.loads(config.to_json_string()))
    assert keys == sorted(keys)


def test_file_round_trip(tmp_path: Path) -> None:
    odd_config().save_pretrained(tmp_path / "c")
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["config.json"]
    assert GPT2Config.from_pretrained(tmp_path / "c") == odd_config()
    assert GPT2Config.from_json_file(tmp_path / "c" / "config.json") == odd_config()
    changed = GPT2Config.from_pretrained(tmp_path / "c", n_layer=1, pruned_heads={})
    assert changed.n_layer == 1
    assert (tmp_path / "c" / "config.json").read_text() == odd_config().to_json_string()


def test_a_torch_dtype_itself_may_be_given() -> None:
    import torch

    assert GPT2Config(torch_dtype=torch.float16).to_dict()["torch_dtype"] == "float16"  # type: ignore[arg-type]
    assert '"torch_dtype"' not in GPT2Config().to_json_string()


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copies_are_equal(copied: Any) -> None:
    assert copied(odd_config()) == odd_config()
    assert copied(odd_config()) != tiny_config()


def test_replaced_changes_nothing_in_place() -> None:
    config = odd_config()
    other = config.replaced(n_layer=3, num_labels=5, extra={})
    assert (other.n_layer, other.num_labels, other.extra) == (3, 5, {})
    other = config.replaced(n_layer=3)
    other.pruned_heads[1].append(1)
    other.extra["task_specific_params"]["x"].append(1)
    other.eos_token_id.append(1)  # type: ignore[union-attr]
    assert config == odd_config()


def test_unknown_fields_of_a_file_are_kept_and_do_nothing() -> None:
    hostile = {
        "attn_implementation": "eager",
        "_attn_implementation": "flash_attention_2",
        "auto_map": {"AutoConfig": "evil.Config"},
        "extra": {"n_layer": 99},
        "validate": "not a method",
        "head_dim": 3,
    }
    config = GPT2Config.from_dict({**tiny_config().to_dict(), **hostile})
    assert config.attn_implementation == config._attn_implementation == "sdpa"
    assert config.extra == hostile
    assert config.n_layer == 2
    assert config.head_dim == 8
    assert {name: config.to_dict()[name] for name in hostile} == hostile
    config.validate()


def test_null_in_a_file_means_the_default() -> None:
    nulls = {"id2label": None, "label2id": None, "pruned_heads": None, "n_inner": None}
    assert GPT2Config.from_dict(nulls) == GPT2Config()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '"gpt2"', '{"n_layer": NaN}', '{"n_layer": 1, "n_layer": 2}', "[" * 5000],
)
def test_broken_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"config\.json"):
        GPT2Config.from_pretrained(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"config\.json"):
        GPT2Config.from_pretrained(tmp_path)
    with pytest.raises(FileAccessError, match="absent"):
        GPT2Config.from_json_file(tmp_path / "absent")


# -- the reference's further methods ------------------------------------------------------------


def test_update_changes_all_or_nothing() -> None:
    config = tiny_config()
    config.update({"n_layer": 3, "hidden_size": 64})
    assert (config.n_layer, config.n_embd) == (3, 64)
    with pytest.raises(ConfigError, match="n_embd"):
        config.update({"n_layer": 5, "n_embd": 63})
    with pytest.raises(ArgumentTypeError, match="did you mean 'n_layer'"):
        config.update({"n_layr": 5})
    with pytest.raises(ArgumentTypeError, match="config_dict must be a dict, not list"):
        config.update([("n_layer", 5)])  # type: ignore[arg-type]
    assert (config.n_layer, config.n_embd) == (3, 64)


def test_the_difference_from_the_defaults(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=3, extra={"mine": 1})
    assert config.to_diff_dict() == {"model_type": "gpt2", "n_layer": 3, "mine": 1}
    assert json.loads(config.to_json_string(use_diff=True)) == config.to_diff_dict()
    config.to_json_file(tmp_path / "full.json")
    config.to_json_file(tmp_path / "diff.json", use_diff=True)
    assert json.loads((tmp_path / "diff.json").read_text()) == config.to_diff_dict()
    for name in ("full.json", "diff.json"):
        assert GPT2Config.from_json_file(tmp_path / name) == config


def test_use_return_dict_is_return_dict() -> None:
    assert GPT2Config().use_return_dict is True
    assert GPT2Config(return_dict=False).use_return_dict is False


def test_the_content_of_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": 3, "mine": 1}')
    content, unused = GPT2Config.get_config_dict(tmp_path, revision="main", n_head=2)
    assert content == {"n_layer": 3, "mine": 1}
    assert unused == {"n_head": 2}
