"""What messages say of broken files: which file, which line or entry, and what is wrong."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, FileAccessError, FileFormatError


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match=r"vocab\.json"):
        GPT2Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileAccessError, match="nowhere"):
        GPT2Tokenizer(str(tmp_path / "nowhere.json"), str(tmp_path / "merges.txt"))


def small(tmp_path: Path, vocab: Any, merges: str | bytes) -> Path:
    text = vocab if isinstance(vocab, str) else json.dumps(vocab)
    (tmp_path / "vocab.json").write_text(text, encoding="utf-8")
    data = merges if isinstance(merges, bytes) else merges.encode()
    (tmp_path / "merges.txt").write_bytes(data)
    return tmp_path


GOOD = {"a": 0, "b": 1, "c": 2, "ab": 3, "<|endoftext|>": 4}


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("{", "", r"vocab\.json is not valid JSON: .* line 1, column 2"),
        ("[1]", "", r"vocab\.json must hold a JSON object"),
        ({}, "", r"vocab\.json: the vocabulary is empty"),
        (
            GOOD | {"d": 3},
            "",
            r"vocab\.json, line 1: the id 3 is given to two tokens, 'ab' and 'd'",
        ),
        (GOOD | {"d": 6}, "", r"vocab\.json, line 1: no token has the id 5, but 'd' has 6"),
        (GOOD | {"d": -1}, "", r"vocab\.json, line 1: token 'd' has the id -1; an id is"),
        (GOOD | {"d": 5.0}, "", r"token 'd' has the id 5.0"),
        (GOOD | {"d": True}, "", r"token 'd' has the id True"),
        (GOOD | {"d": "5"}, "", r"token 'd' has the id '5'"),
        (GOOD | {"d": None}, "", r"token 'd' has the id None"),
        (GOOD | {"d": 10**30}, "", r"no token has the id 5"),
        (GOOD, "#version: 0.2\na b\na d\n", r"merges\.txt, line 3: 'a d' needs the token 'd'"),
        (GOOD, "a b\nb c\n", r"merges\.txt, line 2: 'b c' needs the token 'bc'"),
        (GOOD, "#version: 0.2\na b c\n", r"line 2: 'a b c' is not two tokens with one space"),
        (GOOD, "#version: 0.2\na\n", r"line 2: 'a' is not two tokens"),
        (GOOD, "#version: 0.2\na  b\n", r"line 2: 'a  b' is not two tokens"),
        (GOOD, "#version: 0.2\n\na b\n", r"line 2: '' is not two tokens"),
        (GOOD, "#version: 0.2\na b\na b\n", r"line 3: 'a b' was given before, as 2"),
        (GOOD, b"#version: 0.2\na \xff\n", r"merges\.txt is not UTF-8: .* at byte 16"),
    ],
)
def test_broken_vocab_and_merges(tmp_path: Path, vocab: Any, merges: Any, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        GPT2Tokenizer.from_pretrained(small(tmp_path, vocab, merges))


@pytest.mark.parametrize(
    ("token", "id_", "message"),
    [
        ('\\"ab: é', 3, "the id 3 is given to two tokens, 'ab' and "),
        ("d", 9, "no token has the id 5, but 'd' has 9"),
        ("d", "5", "token 'd' has the id '5'"),
        ("d", True, "token 'd' has the id True"),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_messages_name_the_line_of_a_vocabulary(
    tmp_path: Path, token: str, id_: Any, message: str, ascii_only: bool
) -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, token: id_}
    for indent, line in ((2, 7), (None, 1)):
        text = json.dumps(vocab, indent=indent, ensure_ascii=ascii_only)
        directory = small(tmp_path, text, "a b\n")
        with pytest.raises(FileFormatError, match=rf"vocab\.json, line {line}: {message}"):
            GPT2Tokenizer.from_pretrained(directory)


def test_broken_contents_are_the_arguments_fault() -> None:
    with pytest.raises(
        ArgumentError, match="merges, entry 1: 'a d' needs the token 'd', which vocab"
    ):
        GPT2Tokenizer(GOOD, ["a b", "a d"])
    with pytest.raises(ArgumentError, match="vocab: no token has the id 0"):
        GPT2Tokenizer({"a": 1}, [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", {"<x>": 9}, "no token has the id 5, but '<x>' has 9"),
        ("added_tokens.json", {"<x>": 4}, "id 4 is given to two tokens, '<x>' and '<|endoftext|>'"),
        ("added_tokens.json", {"ab": 5}, "'ab' has the id 3, but the id 5 as an added token"),
        ("added_tokens.json", {"<x>": "5"}, r"added_tokens\.json: '<x>' has the id '5'"),
        ("added_tokens.json", {"": 5}, "the added token with the id 5 is empty"),
        ("added_tokens.json", [], r"added_tokens\.json must hold a JSON object"),
        ("tokenizer_config.json", {"pad_token": 3}, r"config\.json: pad_token has a token without"),
        ("tokenizer_config.json", {"pad_token": {"content": ""}}, "pad_token has a token without"),
        ("tokenizer_config.json", {"padding_side": "up"}, r"config\.json: padding_side must be"),
        ("tokenizer_config.json", {"split_special_tokens": 1}, "split_special_tokens must be True"),
        ("tokenizer_config.json", {"special_text": "no"}, 'special_text must be "allow"'),
        ("tokenizer_config.json", {"errors": "maybe"}, "errors must be"),
        ("tokenizer_config.json", {"model_max_length": -3}, "model_max_length must be"),
        ("tokenizer_config.json", {"add_prefix_space": "no"}, "add_prefix_space must be"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder must be an"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {}}},
            "has the key 'x', not an id",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {}}}, "a token without text"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"5": {"content": "<x>", "lstrip": 1}}},
            "'<x>': lstrip must be true or false",
        ),
        ("special_tokens_map.json", {"additional_special_tokens": 5}, "must be a list"),
    ],
)
def test_broken_companions(tmp_path: Path, name: str, content: Any, message: str) -> None:
    directory = small(tmp_path, GOOD, "a b\n")
    GPT2Tokenizer.from_pretrained(directory)
    (directory / name).write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match=message):
        GPT2Tokenizer.from_pretrained(directory)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": None}, "model must be an object, not None"),
        ({"model__type": "WordPiece"}, r"model\.type is 'WordPiece'"),
        ({"model__byte_fallback": True}, r"model\.byte_fallback is True"),
        ({"model__ignore_merges": True}, r"model\.ignore_merges is True"),
        ({"model__dropout": 0.1}, r"model\.dropout is 0\.1"),
        ({"model__continuing_subword_prefix": "##"}, "continuing_subword_prefix is '##'"),
        ({"model__vocab": ["a"]}, r"model\.vocab must be an object"),
        ({"model__merges": {}}, r"model\.merges must be a list"),
        (
            {"model__merges": ["a b", "a z"]},
            r"tokenizer\.json, model\.merges, entry 0: 'a b' needs",
        ),
        ({"model__merges": [["t", "h", "e"]]}, "entry 0: 't h e' is not two tokens"),
        ({"model__merges": [7]}, "entry 0: 7 is not two tokens"),
        ({"normalizer": {"type": "NFC"}}, "normalizer is {'type': 'NFC'}"),
        ({"pre_tokenizer": None}, "pre_tokenizer must be an object"),
        ({"pre_tokenizer__type": "Whitespace"}, r"pre_tokenizer\.type is 'Whitespace'"),
        ({"pre_tokenizer__use_regex": False}, r"pre_tokenizer\.use_regex is False"),
        ({"added_tokens": [{"content": "<x>"}]}, "added_tokens has"),
        ({"added_tokens": [{"content": "<x>", "id": 0}]}, "the id 0 is given to"),
        (
            {"post_processor": {"type": "BertProcessing"}},
            r"post_processor\.type is 'BertProcessing'",
        ),
        ({"post_processor": {"type": "TemplateProcessing"}}, "single is not a template"),
        ({"post_processor": 3}, "post_processor must be an object, not 3"),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "a"}}] * 2 + [{"Sequence": {"id": "A"}}],
                }
            },
            "one BOS token before it",
        ),
    ],
)
def test_broken_tokenizer_json(
    tokenizer: GPT2Tokenizer, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    for dotted, value in fields.items():
        parent, _, name = dotted.rpartition("__")
        (document[parent] if parent else document)[name] = value
    path.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match=message):
        GPT2Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (b'{"a": 0, "a": 0}', "the key 'a' is given twice"),
        (b'{"\\"": 0, "\\\\": 1, "\\"": 0}', "is given twice"),
        (b'{"a": 0, "b": true}', "token 'b' has the id True"),
        (b'{"a": 0, "b": 1.0}', "token 'b' has the id 1.0"),
        (b'{"a": 0, "b": [["c"]]}', r"token 'b' has the id \[\['c'\]\]"),
        (b'\xef\xbb\xbf{"a": 0}', "byte order mark"),
        ('{"a": 0}'.encode("utf-16"), "byte order mark"),
    ],
)
def test_what_is_no_vocabulary(tmp_path: Path, vocab: bytes, message: str) -> None:
    (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(FileFormatError, match=message):
        GPT2Tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")


@pytest.mark.parametrize(
    "merges",
    [["ab", "a b c"], ["a b\nb c"], ["a b", "b c\na b"], ["a  b"], [" "], ["a\nb c"], ["a b", 3]],
)
def test_merges_that_are_no_pairs(merges: list[Any]) -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "aba": 5}
    with pytest.raises((ArgumentError, TypeError), match=r"merges, entry|sequence|iterable"):
        GPT2Tokenizer(vocab, merges, unk_token=None, bos_token=None, eos_token=None)


def test_the_collector_is_left_as_it_was(tmp_path: Path) -> None:
    gc.disable()
    try:
        GPT2Tokenizer({"a": 0}, [], unk_token=None, bos_token=None, eos_token=None)
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ArgumentError):
        GPT2Tokenizer({"a": 1}, [])
    assert gc.isenabled()
