"""Files in both forms: read, written, and what is wrong with the broken ones."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError, FileFormatError
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
    for dotted, value in fields.items():
        *parents, name = dotted.split("__")
        holder = document
        for parent in parents:
            holder = holder[parent]
        holder[name] = value
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
    with pytest.raises(ArgumentTypeError, match="'trust_remote_code'"):
        GPT2Tokenizer.from_pretrained(tmp_path, trust_remote_code=True)


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
    edit(tmp_path / "tokenizer.json", **fields)
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
def test_the_fast_way_of_reading_a_vocabulary_is_as_strict(
    tmp_path: Path, vocab: bytes, message: str
) -> None:
    (tmp_path / "vocab.json").write_bytes(vocab)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(FileFormatError, match=message):
        GPT2Tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")


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


@pytest.mark.parametrize(
    "merges",
    [["ab", "a b c"], ["a b\nb c"], ["a b", "b c\na b"], ["a  b"], [" "], ["a\nb c"], ["a b", 3]],
)
def test_merges_that_are_no_pairs(merges: list[Any]) -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "aba": 5}
    with pytest.raises((ArgumentError, TypeError), match=r"merges, entry|sequence|iterable"):
        GPT2Tokenizer(vocab, merges, unk_token=None, bos_token=None, eos_token=None)


def test_ids_in_any_order_and_merges_out_of_the_order_of_ids() -> None:
    vocab = {"bc": 4, "a": 2, "b": 0, "ab": 3, "c": 1}
    none = {"unk_token": None, "bos_token": None, "eos_token": None}
    tokenizer = GPT2Tokenizer(vocab, ["b c", "a b"], **none)  # type: ignore[arg-type]
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["b", "c", "a", "ab", "bc"]
    assert tokenizer.encode("abc") == [2, 4]
    ordered = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    assert GPT2Tokenizer(ordered, ["a b", "b c"], **none).encode("abc") == [3, 2]  # type: ignore[arg-type]
    assert GPT2Tokenizer(ordered, ["b c", "a b"], **none).encode("abc") == [0, 4]  # type: ignore[arg-type]


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
