"""Repositories laid out as OPT, DialoGPT and CodeParrot are: the ids that transformers gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GPT2Tokenizer

END = "<|endoftext|>"
CORPUS = ["def fox(hat):\n    return hat  # the hen's\n", "The fox had a hat, and a pen. é"] * 3
TEXTS = [
    "The fox's hat",
    "",
    " two  spaces\n\n\tand a tab",
    "a</s>b<pad> c<s>",
    f"one{END}two",
    "naïve 日本 \U0001f600",
    "<unk> madeupword0000",
]

pytestmark = pytest.mark.parity

transformers = pytest.importorskip("transformers")
AT_LEAST_5 = int(transformers.__version__.split(".")[0]) >= 5


def learnt(special_tokens: list[str]) -> tuple[dict[str, int], list[str]]:
    tokenizer = GPT2Tokenizer.train(CORPUS, 320, special_tokens=special_tokens, show_progress=False)
    return tokenizer.get_vocab(), tokenizer._vocabulary.merges


def write(directory: Path, vocab: dict[str, int], merges: list[str], **files: Any) -> None:
    (directory / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = "".join(f"{line}\n" for line in ("#version: 0.2", *merges))
    (directory / "merges.txt").write_text(lines, encoding="utf-8")
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def opt(directory: Path) -> None:
    """</s> is BOS, EOS and unknown token, and stands before every text; fillers at the end."""
    vocab, merges = learnt(["<s>", "<pad>", "</s>", "<unk>"])
    vocab |= {f"madeupword{number:04}": len(vocab) + number for number in range(3)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    end = {"content": "</s>", **flags}
    pad = {"content": "<pad>", **flags}
    written = {"__type": "AddedToken"}
    write(
        directory,
        vocab,
        merges,
        special_tokens_map={"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": pad},
        tokenizer_config={
            "errors": "replace",
            "unk_token": {**written, **end},
            "bos_token": {**written, **end},
            "eos_token": {**written, **end},
            "pad_token": {**written, **pad},
            "add_prefix_space": False,
            "add_bos_token": True,
            "special_tokens_map_file": None,
            "name_or_path": "somewhere/opt",
            "tokenizer_class": "GPT2Tokenizer",
        },
    )


def dialogue(directory: Path) -> None:
    """GPT-2's files, the end of text last, and turns that the template separates by it."""
    vocab, merges = learnt([])
    vocab[END] = len(vocab)
    config = {"model_max_length": 1024, "chat_template": "{{ eos_token }}"}
    write(directory, vocab, merges, tokenizer_config=config, config={"model_type": "gpt2"})


def code(directory: Path) -> None:
    """A vocabulary that was learnt anew, with the end of text first; settings that name GPT-2."""
    vocab, merges = learnt([END])
    roles = {"unk_token": END, "bos_token": END, "eos_token": END}
    write(
        directory,
        vocab,
        merges,
        special_tokens_map=roles,
        tokenizer_config={
            **roles,
            "add_prefix_space": False,
            "model_max_length": 1024,
            "special_tokens_map_file": None,
            "name_or_path": "gpt2",
            "tokenizer_class": "GPT2Tokenizer",
        },
    )


@pytest.fixture(params=[opt, dialogue, code])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    build: Callable[[Path], None] = request.param
    directory = tmp_path / build.__name__
    directory.mkdir()
    build(directory)
    return directory


def check(ours: GPT2Tokenizer, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(ours, role) == getattr(theirs, role)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == ids
        if AT_LEAST_5:  # transformers 4 puts no BOS before the second text of a pair
            assert ours(text, "pair")["input_ids"] == theirs(text, "pair")["input_ids"]
        assert (
            ours(text, add_special_tokens=False)["input_ids"]
            == (theirs(text, add_special_tokens=False)["input_ids"])
        )
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == (
            theirs.decode(ids, skip_special_tokens=True)
        )
    if theirs.pad_token is not None:
        batch, expected = (each(TEXTS, padding=True) for each in (ours, theirs))
        assert batch["input_ids"] == expected["input_ids"]
        assert batch["attention_mask"] == expected["attention_mask"]


def test_ids_and_text(repository: Path) -> None:
    check(
        GPT2Tokenizer.from_pretrained(repository),
        transformers.AutoTokenizer.from_pretrained(repository),
    )


def test_what_either_saves_the_other_reads(repository: Path, tmp_path: Path) -> None:
    ours = GPT2Tokenizer.from_pretrained(repository)
    theirs = transformers.AutoTokenizer.from_pretrained(repository)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    check(ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"))
    check(GPT2Tokenizer.from_pretrained(tmp_path / "theirs"), theirs)
