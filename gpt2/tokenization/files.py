"""A tokenizer's files <-> its tables and settings, in both of the forms that repositories hold.

The old form is vocab.json + merges.txt (+ added_tokens.json); the new one is tokenizer.json, which
has all of that in one file. Beside either, tokenizer_config.json and special_tokens_map.json name
the special tokens and the settings. All are written, so that every version of transformers and
the tokenizers library find what they look for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError, FileFormatError
from gpt2.storage.atomic import staged_directory
from gpt2.storage.jsonfiles import read_json_object, write_json
from gpt2.tokenization.added import AddedToken
from gpt2.tokenization.lookup import ROLES
from gpt2.tokenization.vocabulary import Tables, collector_paused

if TYPE_CHECKING:
    from collections.abc import Callable

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
        tables = read_vocab_and_merges(
            repository.require("vocab.json"), repository.require("merges.txt")
        )
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
        merges_source=f"{merges_file}, line",
        first_merge=1 + header,
        from_files=True,
    )


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
        merges_source=f"{path}, model.merges, entry",
        from_files=True,
    )
    for entry in document.get("added_tokens") or []:
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


# ---------------------------------------------------------------------------------- writing


FILE_NAMES = (
    "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json",
)  # fmt: skip


def write_files(
    stage: Path,
    tables: Tables,
    settings: dict[str, Any],
    *,
    before: str | None,
    after: str | None,
) -> list[str]:
    """Write every form of the files into a directory that is being staged; returns their names.

    Args:
        tables: what to write, unchecked.
        settings: the fields of tokenizer_config.json, special tokens as plain text.
        before: the added token that is put before every text, if one is.
        after: the one that is put behind it.

    Raises:
        FileAccessError: one cannot be written.
    """
    contents = _contents(tables, settings, before, after)
    for name, write in contents.items():
        write(stage / name)
    return list(contents)


def write_vocabulary(
    directory: str | os.PathLike[str], tables: Tables, prefix: str
) -> tuple[str, str]:
    """Write vocab.json and merges.txt alone, ``prefix`` before their names; returns their paths.

    Raises:
        FileAccessError: the directory cannot be written; it is then as it was.
    """
    vocab, merges = f"{prefix}vocab.json", f"{prefix}merges.txt"
    with staged_directory(directory, replaces=(vocab, merges)) as stage:
        write_json(stage / vocab, _by_id(tables))
        _write_text(stage / merges, _merge_lines(tables))
    return os.path.join(directory, vocab), os.path.join(directory, merges)


def _by_id(tables: Tables) -> dict[str, int]:
    return dict(sorted(tables.vocab.items(), key=lambda entry: entry[1]))


def _merge_lines(tables: Tables) -> str:
    return "".join(f"{line}\n" for line in ("#version: 0.2", *tables.merges))


def _contents(
    tables: Tables, settings: dict[str, Any], before: str | None, after: str | None
) -> dict[str, Callable[[Path], None]]:
    """File name -> what writes it."""
    added = {id_: asdict(token) for id_, token in sorted(tables.added.items())}
    flags = {entry["content"]: entry for entry in added.values()}
    special_map: dict[str, Any] = {
        role: flags[settings[role]] for role in ROLES if settings.get(role) is not None
    }
    additional = [flags[content] for content in settings.get("additional_special_tokens") or []]
    if additional:
        special_map["additional_special_tokens"] = additional
    config = {"added_tokens_decoder": {str(id_): entry for id_, entry in added.items()}, **settings}
    vocab = _by_id(tables)
    beyond = {
        token: id_ for id_, entry in added.items() if (token := entry["content"]) not in vocab
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, **entry} for id_, entry in added.items()],
        "normalizer": None,
        "pre_tokenizer": {**_BYTE_LEVEL, "add_prefix_space": settings["add_prefix_space"]},
        "post_processor": _post_processor(added, before, after),
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True},
        "model": {**_MODEL, "vocab": vocab, "merges": tables.merges},
    }
    return {
        "vocab.json": lambda path: write_json(path, vocab),
        "merges.txt": lambda path: _write_text(path, _merge_lines(tables)),
        **({"added_tokens.json": lambda path: write_json(path, beyond)} if beyond else {}),
        "tokenizer.json": lambda path: write_json(path, document),
        "tokenizer_config.json": lambda path: write_json(path, config),
        "special_tokens_map.json": lambda path: write_json(path, special_map),
    }


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))


_BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}

_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def _post_processor(
    added: dict[int, dict[str, Any]], before: str | None, after: str | None
) -> dict[str, Any]:
    if before is None and after is None:
        return {**_BYTE_LEVEL, "add_prefix_space": True, "trim_offsets": False}
    ids = {entry["content"]: id_ for id_, entry in added.items()}

    def template(name: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": type_id}}
        first, last = (
            [] if token is None else [{"SpecialToken": {"id": token, "type_id": type_id}}]
            for token in (before, after)
        )
        return [*first, text, *last]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]}
            for token in (before, after)
            if token is not None
        },
    }
