"""A tokenizer's files -> its tables and settings, from both of the forms that repositories hold.

The old form is vocab.json + merges.txt (+ added_tokens.json); the new one is tokenizer.json, which
has all of that in one file. Beside either, tokenizer_config.json and special_tokens_map.json name
the special tokens and the settings. `gpt2.tokenization.saving` writes them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError, FileFormatError
from gpt2.storage.jsonfiles import read_json_object
from gpt2.tokenization.added import AddedToken
from gpt2.tokenization.lookup import ROLES
from gpt2.tokenization.vocabulary import Tables, collector_paused

if TYPE_CHECKING:
    from gpt2.storage.hub import Repository

MAX_BYTES = 100_000_000  # the largest real ones have under 20 MB

# Fields of tokenizer_config.json that tell of the program that wrote it, or of what other
# fields and files say as well; they are neither settings nor carried into what is saved.
_OF_THE_WRITER = frozenset(
    {
        "added_tokens_decoder",
        "auto_map",
        "backend",
        "is_local",
        "local_files_only",
        "merges_file",
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_class",
        "tokenizer_file",
        "vocab_file",
    }
)


def read_repository(repository: Repository) -> tuple[Tables, dict[str, Any]]:
    """The tables and the settings of a repository; tokenizer.json first, as AutoTokenizer does.

    The settings are the fields of tokenizer_config.json, special tokens as text (as an
    `AddedToken` where they are spelt out with flags and no file gives them an id).

    Raises:
        FileAccessError: it has neither tokenizer.json nor vocab.json and merges.txt.
        FileFormatError: a file is broken, or describes another kind of tokenizer.
    """
    settings: dict[str, Any] = {}
    if (path := repository.find("tokenizer.json")) is not None:
        tables, settings = read_tokenizer_json(path)
    else:
        try:
            vocab, merges = repository.require("vocab.json"), repository.require("merges.txt")
        except FileAccessError as error:
            needed = "a tokenizer is vocab.json and merges.txt, or tokenizer.json"
            raise type(error)(f"{error}; {needed}") from error
        tables = read_vocab_and_merges(vocab, merges)
        if (path := repository.find("added_tokens.json")) is not None:
            for content, id_ in read_json_object(path, max_bytes=MAX_BYTES).items():
                _put(tables, id_, AddedToken(content), path)
    special: dict[str, AddedToken] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := repository.find(name)) is not None:
            settings |= _read_settings(path, tables, special)
    _apply_flags(tables, special)
    # What no file gives an id gets one from the constructor, and keeps its flags that way.
    known = tables.vocab.keys() | {token.content for token in tables.added.values()}
    new = {content: token for content, token in special.items() if content not in known}
    settings |= {role: new[settings[role]] for role in ROLES if settings.get(role) in new}
    return tables, settings


def read_arguments(
    vocab_file: Any, merges_file: Any, tokenizer_file: Any
) -> tuple[Tables, dict[str, Any]]:
    """The tables of the constructor's arguments, and the settings that come with them.

    Raises:
        ArgumentTypeError, ArgumentError: too few arguments, or too many.
        FileAccessError, FileFormatError: a file that they name is missing, or broken.
    """
    if tokenizer_file is not None:
        if vocab_file is not None or merges_file is not None:
            raise ArgumentError("give tokenizer_file, or vocab_file and merges_file, not both")
        return read_tokenizer_json(Path(tokenizer_file))
    if vocab_file is None or merges_file is None:
        raise ArgumentTypeError(
            "GPT2Tokenizer needs vocab_file and merges_file, or tokenizer_file; to load one by "
            "name, GPT2Tokenizer.from_pretrained(name)"
        )
    if isinstance(vocab_file, str | os.PathLike) and isinstance(merges_file, str | os.PathLike):
        return read_vocab_and_merges(Path(vocab_file), Path(merges_file)), {}
    if not isinstance(vocab_file, Mapping) or isinstance(merges_file, str | os.PathLike):
        raise ArgumentTypeError("vocab_file and merges_file must both be paths, or both contents")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges_file]
    return Tables(dict(vocab_file), merges), {}


@collector_paused()
def read_vocab_and_merges(vocab_file: Path, merges_file: Path) -> Tables:
    """The tables of vocab.json and merges.txt.

    Raises:
        FileAccessError: one cannot be read.
        FileFormatError: vocab.json is no JSON object, or merges.txt is not UTF-8.
    """
    vocab = read_json_object(vocab_file, max_bytes=MAX_BYTES)
    try:
        text = merges_file.read_bytes().decode("utf-8")
    except OSError as error:
        raise FileAccessError(f"cannot read {merges_file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{merges_file} is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    lines = text.replace("\r\n", "\n").split("\n")
    header = int(lines[0].startswith("#version"))
    while len(lines) > header and not lines[-1]:
        lines.pop()
    return Tables(
        vocab,
        lines[header:],
        vocab_source=str(vocab_file),
        vocab_line=partial(_line_of, vocab_file),
        merges_source=f"{merges_file}, line",
        first_merge=1 + header,
        from_files=True,
    )


def _line_of(path: Path, token: str, id_: Any) -> int | None:
    """The line of a file on which a token of its vocabulary is given an id, for messages."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r'("(?:[^"\\]|\\.)*")\s*:\s*([^\s,}]+)', text):
        if found[2] == json.dumps(id_) and json.loads(found[1]) == token:
            return text.count("\n", 0, found.start()) + 1
    return None


@collector_paused()
def read_tokenizer_json(path: Path) -> tuple[Tables, dict[str, Any]]:
    """The tables of a tokenizer.json, and the settings that it implies (spaces, BOS, EOS).

    Raises:
        FileAccessError: it cannot be read.
        FileFormatError: it is broken, or not GPT-2's byte-level BPE; names the field.
    """
    document = read_json_object(path, max_bytes=MAX_BYTES)
    model = _field(path, document, "model", dict)
    _expect(path, "model.type", model.get("type", "BPE"), ("BPE",))
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        _expect(path, f"model.{name}", model.get(name), (None, 0.0, ""))
    for name in ("byte_fallback", "ignore_merges"):
        _expect(path, f"model.{name}", model.get(name, False), (False,))
    _expect(path, "normalizer", document.get("normalizer"), (None,))
    splitter = _field(path, document, "pre_tokenizer", dict)
    _expect(path, "pre_tokenizer.type", splitter.get("type"), ("ByteLevel",))
    _expect(path, "pre_tokenizer.use_regex", splitter.get("use_regex", True), (True,))
    merges = _field(path, model, "merges", list, within="model.")
    tables = Tables(
        _field(path, model, "vocab", dict, within="model."),
        [" ".join(map(str, merge)) if isinstance(merge, list) else merge for merge in merges],
        vocab_source=f"{path}, model.vocab",
        vocab_line=partial(_line_of, path),
        merges_source=f"{path}, model.merges, entry",
        from_files=True,
    )
    if document.get("added_tokens") is None:
        document["added_tokens"] = []
    for entry in _field(path, document, "added_tokens", list):
        if not isinstance(entry, dict) or "id" not in entry:
            raise FileFormatError(
                f"{path}: added_tokens has an entry without an id: {entry!r:.200}"
            )
        _put(tables, entry["id"], _added_token(path, "added_tokens", entry), path)
    settings = {"add_prefix_space": bool(splitter.get("add_prefix_space", False))}
    return tables, settings | _template(path, document.get("post_processor"))


def _template(path: Path, processor: Any) -> dict[str, Any]:
    """Whether the post-processor puts a token before or behind the text, and which."""
    if processor is None or (isinstance(processor, dict) and processor.get("type") == "ByteLevel"):
        return {}
    if not isinstance(processor, dict):
        raise FileFormatError(f"{path}: post_processor must be an object, not {processor!r:.200}")
    settings: dict[str, Any] = {}
    if processor.get("type") == "Sequence":
        for member in processor.get("processors") or []:
            settings |= _template(path, member)
        return settings
    _expect(path, "post_processor.type", processor.get("type"), ("TemplateProcessing",))
    try:
        parts = [
            entry["SpecialToken"]["id"] if "SpecialToken" in entry else None
            for entry in processor["single"]
        ]
        at = parts.index(None)
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(f"{path}: post_processor.single is not a template") from None
    before, after = parts[:at], parts[at + 1 :]
    if len(before) > 1 or len(after) > 1:
        raise FileFormatError(
            f"{path}: post_processor puts {before} before and {after} behind a text; "
            "one BOS token before it and one EOS token behind it can be honoured, no more"
        )
    if before:
        settings |= {"add_bos_token": True, "bos_token": before[0]}
    if after:
        settings |= {"add_eos_token": True, "eos_token": after[0]}
    return settings


def _read_settings(path: Path, tables: Tables, special: dict[str, AddedToken]) -> dict[str, Any]:
    """The fields of a settings file; its tokens go to ``tables.added`` and ``special``."""
    fields = read_json_object(path, max_bytes=MAX_BYTES)
    decoder = fields.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise FileFormatError(
            f"{path}: added_tokens_decoder must be an object, not {decoder!r:.200}"
        )
    for key, entry in decoder.items():
        if not key.isdecimal():
            raise FileFormatError(
                f"{path}: added_tokens_decoder has the key {key!r:.200}, not an id"
            )
        _put(tables, int(key), _added_token(path, "added_tokens_decoder", entry), path)
    settings: dict[str, Any] = {}

    def text(name: str, value: Any) -> str:
        token = _added_token(path, name, value)
        if isinstance(value, dict):
            special[token.content] = token
        return token.content

    for name, value in fields.items():
        if name in ROLES:
            settings[name] = None if value is None else text(name, value)
        elif name in ("additional_special_tokens", "extra_special_tokens"):
            # transformers 5 calls them extra; 4.48 has an object of named ones under that name.
            values = list(value.values()) if isinstance(value, dict) else value or []
            if not isinstance(values, list):
                raise FileFormatError(
                    f"{path}: {name} must be a list of tokens, not {value!r:.200}"
                )
            contents = [text(name, entry) for entry in values]
            known = settings.get("additional_special_tokens", [])
            settings["additional_special_tokens"] = list(dict.fromkeys([*known, *contents]))
        elif name not in _OF_THE_WRITER:
            settings[name] = value
    return settings


def _apply_flags(tables: Tables, special: dict[str, AddedToken]) -> None:
    """Give special tokens that are spelt out with flags those flags, where no id came with any."""
    added_ids = {token.content: id_ for id_, token in tables.added.items()}
    for content, token in special.items():
        id_ = added_ids.get(content, tables.vocab.get(content))
        if id_ is not None and tables.added.get(id_, AddedToken(content)) == AddedToken(content):
            tables.added[id_] = token


def _added_token(path: Path, field: str, entry: Any) -> AddedToken:
    if isinstance(entry, str):
        return AddedToken(entry, normalized=False, special=True)
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content:
        raise FileFormatError(f"{path}: {field} has a token without text: {entry!r:.200}")
    flags = {
        name: entry[name]
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        if name in entry
    }
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise FileFormatError(
                f"{path}: {field}, {content!r:.200}: {name} must be true or false"
            )
    if field in (*ROLES, "additional_special_tokens", "extra_special_tokens"):
        flags["special"] = True
    return AddedToken(content, **flags)


def _put(tables: Tables, id_: Any, token: AddedToken, path: Path) -> None:
    if type(id_) is not int or id_ < 0:
        raise FileFormatError(
            f"{path}: {token.content!r:.200} has the id {id_!r:.200}, not an integer"
        )
    if not token.content:
        raise FileFormatError(f"{path}: the added token with the id {id_} is empty")
    known = tables.added.get(id_)
    if known is not None and known.content != token.content:
        raise FileFormatError(
            f"{path}: the id {id_} is given to {token.content!r:.200}, "
            f"but another file gives it to {known.content!r:.200}"
        )
    tables.added[id_] = token


def _field(path: Path, holder: dict[str, Any], name: str, kind: type, *, within: str = "") -> Any:
    value = holder.get(name)
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise FileFormatError(f"{path}: {within}{name} must be {expected}, not {value!r:.200}")
    return value


def _expect(path: Path, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    # Types count: 0.0 may stand for no dropout, but False for None is somebody's mistake.
    if (type(value), value) not in [(type(choice), choice) for choice in allowed]:
        raise FileFormatError(
            f"{path}: {name} is {value!r:.200}; GPT-2's tokenizer has "
            f"{' or '.join(map(repr, allowed))} there, and nothing else can be honoured"
        )
