"""Files in both forms: read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError
from gpt2.tokenization.added import AddedToken

TEXT = "The fox's <x> hat<|endoftext|> <pad>é"


@pytest.fixture
def full(tokenizer: GPT2Tokenizer) -> GPT2Tokenizer:
    """A tokenizer with something in every file."""
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<s>"]})
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, normalized=False)])
    tokenizer.add_bos_token = True
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 64
    return tokenizer


def edit(path: Path, **fields: Any) -> None:
    document = json.loads(path.read_text())
    document |= fields
    path.write_text(json.dumps(document))


def assert_same(one: GPT2Tokenizer, other: GPT2Tokenizer) -> None:
    assert one.get_vocab() == other.get_vocab()
    assert one.get_added_vocab() == other.get_added_vocab()
    assert one.special_tokens_map == other.special_tokens_map
    assert one(TEXT) == other(TEXT)
    assert one.padding_side == other.padding_side
    assert one.model_max_length == other.model_max_length


@pytest.mark.parametrize(
    "absent",
    [
        (),
        ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
        ("tokenizer.json",),
        ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"),
    ],
    ids=["all", "tokenizer.json", "vocab+merges", "vocab+merges+config"],
)
def test_round_trip(full: GPT2Tokenizer, tmp_path: Path, absent: tuple[str, ...]) -> None:
    paths = full.save_pretrained(tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    for name in absent:
        (tmp_path / name).unlink()
    again = GPT2Tokenizer.from_pretrained(tmp_path)
    assert_same(again, full)
    assert again.name_or_path == str(tmp_path)


def test_the_files_are_the_documented_ones(full: GPT2Tokenizer, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "added_tokens.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {
        "<pad>": 300,
        "<s>": 301,
        "<x>": 302,
    }
    assert (tmp_path / "merges.txt").read_text().startswith("#version: 0.2\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "GPT2Tokenizer"
    assert config["model_max_length"] == 64


def test_the_real_vocabulary_survives_exactly(
    gpt2_tokenizer: GPT2Tokenizer, vocabulary_directory: Path, tmp_path: Path
) -> None:
    gpt2_tokenizer.save_pretrained(tmp_path)
    original = (vocabulary_directory / "merges.txt").read_bytes()
    assert (tmp_path / "merges.txt").read_bytes() == original
    vocab = json.loads((vocabulary_directory / "vocab.json").read_text())
    assert json.loads((tmp_path / "vocab.json").read_text()) == vocab


def test_saving_again_leaves_nothing_stale(full: GPT2Tokenizer, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    plain = GPT2Tokenizer.train(["a"], 257)
    plain.save_pretrained(tmp_path)
    assert not (tmp_path / "added_tokens.json").exists()
    assert (tmp_path / "config.json").exists()
    assert len(GPT2Tokenizer.from_pretrained(tmp_path)) == 257


def test_unknown_settings_survive_a_round_trip(full: GPT2Tokenizer, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path)
    edit(tmp_path / "tokenizer_config.json", chat_template="{{ x }}", auto_map={"A": "b.C"})
    GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ x }}"
    assert "auto_map" not in config  # the name of code to run, which nothing here does


def test_old_repositories_ask_for_a_clean_up_that_is_not_done(
    tokenizer: GPT2Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    edit(tmp_path / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    again = GPT2Tokenizer.from_pretrained(tmp_path)
    assert again.decode(again.encode("a . b")) == "a . b"
    asked = GPT2Tokenizer.from_pretrained(tmp_path, clean_up_tokenization_spaces=True)
    assert asked.decode(asked.encode("a . b")) == "a. b"


def test_overrides_win(full: GPT2Tokenizer, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path)
    changed = GPT2Tokenizer.from_pretrained(
        tmp_path, padding_side="right", pad_token="<|endoftext|>", add_bos_token=False
    )
    assert (changed.padding_side, changed.pad_token_id, changed.add_bos_token) == (
        "right",
        0,
        False,
    )
    with pytest.raises(ArgumentTypeError, match="'pad_tokn'; did you mean 'pad_token'"):
        GPT2Tokenizer.from_pretrained(tmp_path, pad_tokn="<pad>")


def test_subfolder(full: GPT2Tokenizer, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path / "inner")
    assert_same(GPT2Tokenizer.from_pretrained(tmp_path, subfolder="inner"), full)


def test_constructor_from_files_and_contents(full: GPT2Tokenizer, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path)
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    from_files = GPT2Tokenizer(str(vocab), str(merges))
    assert len(from_files) == 300
    pairs = [line.split() for line in merges.read_text().splitlines()[1:]]
    from_contents = GPT2Tokenizer(json.loads(vocab.read_text()), pairs)
    assert from_contents("The fox") == from_files("The fox")
    alone = GPT2Tokenizer(tokenizer_file=tmp_path / "tokenizer.json")
    assert alone.add_bos_token
    assert alone(TEXT) == full(TEXT)
    for arguments, message in (
        ({}, "needs vocab_file and merges_file, or tokenizer_file"),
        ({"vocab_file": str(vocab)}, "needs vocab_file and merges_file"),
        ({"vocab_file": {}, "merges_file": str(merges)}, "both be paths, or both contents"),
        ({"vocab_file": str(vocab), "merges_file": []}, "both be paths, or both contents"),
        ({"vocab_file": "v", "tokenizer_file": "t"}, "not both"),
    ):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
            GPT2Tokenizer(**arguments)  # type: ignore[arg-type]


def test_a_new_special_token_gets_the_next_id(full: GPT2Tokenizer, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path)
    opt_style = GPT2Tokenizer(
        str(tmp_path / "vocab.json"),
        str(tmp_path / "merges.txt"),
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    assert (opt_style.bos_token_id, opt_style.pad_token_id, len(opt_style)) == (300, 301, 302)
    assert opt_style.unk_token_id == 0


# -------------------------------------------------------------------------- in others' words


def test_special_tokens_map_with_flags_of_the_old_form(
    tokenizer: GPT2Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    flags = {"content": "the", "lstrip": True, "rstrip": False, "single_word": True}
    (tmp_path / "added_tokens.json").write_text('{"the": 300, "<p>": 301}')
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"mask_token": flags, "pad_token": "<p>", "eos_token": None})
    )
    again = GPT2Tokenizer.from_pretrained(tmp_path)
    assert (again.mask_token_id, again.pad_token_id, len(again)) == (300, 301, 302)
    assert again.eos_token is None
    assert again.encode("x the") == [*again.encode("x"), 300]
    assert 300 not in again.encode("x then")


def test_flags_of_a_special_token_without_an_id(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    flags = {"content": "<mask>", "lstrip": True}
    edit(tmp_path / "tokenizer_config.json", mask_token=flags)
    again = GPT2Tokenizer.from_pretrained(tmp_path)
    assert again.mask_token_id == 300
    assert again.encode("x  <mask>") == [*again.encode("x"), 300]


def test_extra_special_tokens_of_transformers_5(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    edit(
        tmp_path / "tokenizer_config.json",
        extra_special_tokens=["<e>"],
        additional_special_tokens=[],
    )
    assert GPT2Tokenizer.from_pretrained(tmp_path).additional_special_tokens == ["<e>"]
    edit(tmp_path / "tokenizer_config.json", extra_special_tokens={"image_token": "<i>"})
    assert GPT2Tokenizer.from_pretrained(tmp_path).additional_special_tokens == ["<i>"]


def test_windows_line_ends_and_a_missing_header(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    merges = tmp_path / "merges.txt"
    text = merges.read_text()
    for variant in (text.replace("\n", "\r\n"), text.partition("\n")[2], text.rstrip("\n")):
        merges.write_bytes(variant.encode())
        assert GPT2Tokenizer.from_pretrained(tmp_path)("The fox") == tokenizer("The fox")


def test_the_huge_limit_of_other_versions_is_no_limit(
    tokenizer: GPT2Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    edit(tmp_path / "tokenizer_config.json", model_max_length=1e30)
    again = GPT2Tokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == int(1e30)
    with pytest.raises(ArgumentError, match="needs a length"):
        again("the", truncation=True)


# ------------------------------------------------------------------------------ broken files


@pytest.mark.parametrize(("prefix", "names"), [(None, ""), ("new", "new-")])
def test_the_vocabulary_alone(
    full: GPT2Tokenizer, tmp_path: Path, prefix: str | None, names: str
) -> None:
    (tmp_path / "other.txt").write_text("stays")
    paths = full.save_vocabulary(tmp_path, prefix)
    assert paths == (str(tmp_path / f"{names}vocab.json"), str(tmp_path / f"{names}merges.txt"))
    assert {path.name for path in tmp_path.iterdir()} == {
        "other.txt",
        f"{names}vocab.json",
        f"{names}merges.txt",
    }
    again = GPT2Tokenizer(*paths)
    assert again._vocabulary.base == full._vocabulary.base
    assert again._vocabulary.merges == full._vocabulary.merges
    with pytest.raises(ArgumentError, match=r"filename_prefix must be part .* '\.\./new'"):
        full.save_vocabulary(tmp_path, "../new")


def test_quotes_and_backslashes_in_a_vocabulary(tmp_path: Path) -> None:
    # "\" ends with an escaped backslash, so that the quote behind it is not escaped
    tokens = ['"', "\\", '\\"', '"\\', '\\\\"', "\u0022\u005c"[::-1]]
    vocab = {token: id_ for id_, token in enumerate(dict.fromkeys(tokens))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text('#version: 0.2\n\\ "\n')
    tokenizer = GPT2Tokenizer(
        tmp_path / "vocab.json",
        tmp_path / "merges.txt",
        unk_token=None,
        bos_token=None,
        eos_token=None,
    )
    assert tokenizer.get_vocab() == vocab
    assert tokenizer.encode('\\"') == [vocab['\\"']]


def test_ids_in_any_order_and_merges_out_of_the_order_of_ids() -> None:
    vocab = {"bc": 4, "a": 2, "b": 0, "ab": 3, "c": 1}
    none = {"unk_token": None, "bos_token": None, "eos_token": None}
    tokenizer = GPT2Tokenizer(vocab, ["b c", "a b"], **none)  # type: ignore[arg-type]
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["b", "c", "a", "ab", "bc"]
    assert tokenizer.encode("abc") == [2, 4]
    ordered = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    assert GPT2Tokenizer(ordered, ["a b", "b c"], **none).encode("abc") == [3, 2]  # type: ignore[arg-type]
    assert GPT2Tokenizer(ordered, ["b c", "a b"], **none).encode("abc") == [0, 4]  # type: ignore[arg-type]


def test_documented_arguments_that_ask_for_nothing(full: GPT2Tokenizer, tmp_path: Path) -> None:
    full.save_pretrained(tmp_path / "one", legacy_format=None, filename_prefix=None)
    for use_fast in (True, False):
        same = GPT2Tokenizer.from_pretrained(
            tmp_path / "one", use_fast=use_fast, trust_remote_code=False
        )
        assert_same(same, full)
    with pytest.raises(ArgumentError, match="trust_remote_code=True"):
        GPT2Tokenizer.from_pretrained(tmp_path / "one", trust_remote_code=True)
    with pytest.raises(ArgumentError, match="use_fast must be True or False, not 'x'"):
        GPT2Tokenizer.from_pretrained(tmp_path / "one", use_fast="x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"legacy_format": True}, "legacy_format=True: .*both"),
        ({"legacy_format": False}, "legacy_format=False: .*both"),
        ({"filename_prefix": "a"}, "filename_prefix='a': .*save_vocabulary"),
        ({"push_to_hub": True}, "push_to_hub=True: .*push_to_hub"),
        ({"legacy_formt": None}, "no argument 'legacy_formt'; did you mean 'legacy_format'"),
    ],
)
def test_what_save_pretrained_cannot_do(
    full: GPT2Tokenizer, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        full.save_pretrained(tmp_path / "one", **arguments)
    assert not (tmp_path / "one").exists()


def test_an_empty_directory_lacks_either_form(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"vocab\.json.*tokenizer\.json"):
        GPT2Tokenizer.from_pretrained(tmp_path)
