"""A tokenizer's tables and settings -> files, in every form that others look for.

vocab.json + merges.txt (+ added_tokens.json), tokenizer.json, and the two files that name special
tokens and settings: so that every version of transformers and the tokenizers library find theirs.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.storage.atomic import staged_directory
from gpt2.storage.jsonfiles import write_json
from gpt2.tokenization.lookup import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpt2.tokenization.vocabulary import Tables


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
