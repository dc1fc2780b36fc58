"""Rows 14 to 18: broken or hostile config.json, vocabularies, and text that is hard to read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from gpt2.errors import ArgumentError, FileFormatError, GPT2Error

ROOT = Path(__file__).resolve().parents[2]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content = change(content) or content
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"not JSON {", "JSON"),
        (b'{"n_layer": NaN}', "NaN"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deep"),
        (b"[1, 2]", "object"),
        (b'"gpt2"', "object"),
        (b"\xff\xfe{\x00}\x00", "UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
    ],
    ids=["no JSON", "NaN", "nested", "list", "string", "UTF-16", "BOM"],
)
def test_row_14_config_that_is_no_json_object(checkpoint: Path, content: bytes, word: str) -> None:
    (checkpoint / "config.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"config\.json") as caught:
        GPT2LMHeadModel.from_pretrained(checkpoint)
    assert word.lower() in str(caught.value).lower()


SIZES = """
    import resource, sys
    from gpt2 import GPT2LMHeadModel
    from gpt2.errors import GPT2Error
    pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + 2**29, pages + 2**29))  # 512 MB more
    for checkpoint in sys.argv[1:]:
        try:
            GPT2LMHeadModel.from_pretrained(checkpoint)
        except GPT2Error as error:
            print(type(error).__name__, error)
"""
IMPOSSIBLE: list[tuple[dict[str, int | None], list[str]]] = [
    ({"n_layer": -1}, ["n_layer", "-1"]),
    ({"n_embd": 33}, ["n_embd", "33", "n_head", "4"]),
    ({"n_head": 0}, ["n_head", "0"]),
    ({"n_embd": 10**9 * 4}, ["n_embd"]),
    ({"vocab_size": 10**12}, ["vocab_size"]),
    ({"n_positions": 10**11}, ["n_positions"]),
    ({"n_layer": 10**7}, ["n_layer"]),
    ({"num_labels": 10**9, "id2label": None}, ["num_labels", "1000000000"]),
]


def test_row_15_sizes_that_cannot_be_are_refused_before_anything_is_allocated(
    checkpoint: Path, tmp_path: Path
) -> None:
    copies = []
    for number, (fields, _) in enumerate(IMPOSSIBLE):
        copies.append(shutil.copytree(checkpoint, tmp_path / str(number)))
        edit(Path(copies[-1]) / "config.json", lambda c, fields=fields: {**c, **fields})
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SIZES), *copies],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (_, words), told in zip(IMPOSSIBLE, done.stdout.splitlines(), strict=True):
        assert told.startswith(("ConfigError", "StateDictError"))
        for word in words:
            assert word in told


def test_row_16_a_config_selects_no_code_no_backend_and_no_trust(checkpoint: Path) -> None:
    mark = checkpoint / "ran"
    (checkpoint / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    asked = {
        "auto_map": {"AutoModelForCausalLM": "evil--evil.Model"}, "trust_remote_code": True,
        "_attn_implementation": "flash_attention_2", "attn_implementation": "evil",
        "_attn_implementation_internal": "evil", "custom_pipelines": {"x": {"impl": "evil.x"}},
    }  # fmt: skip
    edit(checkpoint / "config.json", lambda c: {**c, **asked})
    edit(checkpoint / "tokenizer_config.json", lambda c: {**c, "auto_map": {"x": "evil.T"}})
    model = GPT2LMHeadModel.from_pretrained(checkpoint)
    GPT2Tokenizer.from_pretrained(checkpoint)
    assert model.config.attn_implementation == GPT2Config().attn_implementation == "sdpa"
    assert not mark.exists()
    assert "evil" not in sys.modules


def renumber(vocab: dict[str, int], **ids: int) -> dict[str, int]:
    return {**vocab, **ids}


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (
            "vocab.json",
            lambda v: renumber(v, e=v["t"]),
            ["vocab.json", "line 1", "given to two tokens"],
        ),
        ("vocab.json", lambda v: renumber(v, e=10**6), ["vocab.json"]),
        ("vocab.json", lambda v: renumber(v, e=-1), ["vocab.json", "'e'"]),
        ("vocab.json", lambda v: renumber(v, e="5"), ["vocab.json", "'e'"]),
        ("merges.txt", "#version: 0.2\nt h\nq zz\n", ["merges.txt", "line 2", "'th'"]),
        ("merges.txt", "#version: 0.2\nt h e\n", ["merges.txt", "line 2"]),
    ],
    ids=["duplicate", "gap", "negative", "no number", "unknown token", "three parts"],
)
def test_row_17_vocabularies_that_contradict_themselves(
    checkpoint: Path, file: str, change: Any, words: list[str]
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    path = checkpoint / file
    if callable(change):
        edit(path, change)
    else:
        path.write_text(change)
    with pytest.raises(GPT2Error) as caught:
        GPT2Tokenizer.from_pretrained(checkpoint)
    for word in words:
        assert word in str(caught.value)


def test_row_17_more_ids_than_embeddings(checkpoint: Path) -> None:
    import gpt2

    tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(checkpoint)
    check = next(c for c in gpt2.verify_checkpoint(checkpoint).checks if c.name == "vocabulary")
    assert check.passed is False
    model = GPT2LMHeadModel.from_pretrained(checkpoint)
    ids = tokenizer(["<new>"], return_tensors="pt")["input_ids"]
    with pytest.raises(ArgumentError, match="ids must be from 0 to"):
        model(ids)


HARD = {
    "empty": "", "NULs": "\0\0a\0", "mixed directions": "abc \u202eשלום\u202c عربي \u200f!",
    "combining": "e\u0301\u0302\u0303" * 20, "one long word": "x" * 1_000_000,
    "repeated": "ab" * 500_000, "no space": "".join(map(chr, range(33, 127))) * 10_000,
}  # fmt: skip


@pytest.mark.parametrize("kind", HARD)
def test_row_18_hard_text_is_exact_and_linear(checkpoint: Path, kind: str) -> None:
    """A word of a megabyte would take days, were merging quadratic: the limit sees that."""
    tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)
    text, began = HARD[kind], time.monotonic()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.monotonic() - began < 60


def test_row_18_lone_surrogates_are_refused_or_replaced_as_one_argument_says(
    checkpoint: Path,
) -> None:
    with pytest.raises(ArgumentError, match="surrogate"):
        GPT2Tokenizer.from_pretrained(checkpoint).encode("a\ud800b")
    replacing = GPT2Tokenizer.from_pretrained(checkpoint, surrogates="replace")
    assert replacing.decode(replacing.encode("a\ud800b")) == "a\ufffdb"


def test_the_limit_of_memory_is_a_real_one() -> None:
    """Row 15's subprocess would notice: an allocation of a gigabyte fails under its limit."""
    script = SIZES.replace("GPT2LMHeadModel.from_pretrained(checkpoint)", "bytearray(2**30)")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), "once"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "MemoryError" in done.stderr
