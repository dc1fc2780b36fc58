"""100 000 damaged configs, headers, indexes, vocabularies and merges: only our errors come out.

Each case is read the way a user's call reads it. What loads in spite of the
damage is fine; anything but a GPT2Error is not. The process runs under a limit
of memory, so that a field that asks for a terabyte would be seen.

By default one case in twenty runs; GPT2_FAULT_CASES=all, as .ci/run sets it, runs them all.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from gpt2 import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from gpt2.checkpoints.tensorfiles import SafetensorsFile
from gpt2.checkpoints.weightfiles import WeightFiles
from gpt2.errors import GPT2Error
from gpt2.generation.config import GenerationConfig
from gpt2.storage.hub import open_repository
from tests.fault.counted import TOLD
from tests.fault.mutations import as_json, damaged, damaged_bytes
from tests.helpers import tiny_config, tiny_model

CASES = {
    "config": 25_000, "generation_config": 15_000, "header": 25_000, "index": 15_000,
    "vocabulary": 10_000, "merges": 10_000, "tokenizer.json": 5_000, "checkpoint": 400,
}  # fmt: skip
SHARE = 1 if os.environ.get("GPT2_FAULT_CASES") == "all" else 20
SECONDS_PER_CASE = 2.0  # a bound on hangs, no measurement: the usual case takes a millisecond

Read = Callable[[bytes], Any]


@pytest.fixture(scope="module", autouse=True)
def limited_memory() -> Iterator[None]:
    """At most 4 GiB more than now; a field that makes us allocate by its value would exceed it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**32, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def replace(path: Path, data: bytes) -> None:
    """Write a new file: a journalling disk flushes one that is emptied and written again."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def config_case(folder: Path) -> tuple[Any, Read]:
    path = folder / "config.json"
    good = {**tiny_config().to_dict(), "id2label": {"0": "a", "1": "b"}, "pruned_heads": {"0": [1]}}

    def read(data: bytes) -> Any:
        replace(path, data)
        return GPT2Config.from_pretrained(folder)

    return good, read


def generation_case(folder: Path) -> tuple[Any, Read]:
    path = folder / "generation_config.json"
    good = {
        "max_length": 20, "do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9,
        "eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": 3, "num_beams": 1,
        "bad_words_ids": [[1, 2], [3]], "suppress_tokens": [1], "min_length": 1,
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "early_stopping": False,
    }  # fmt: skip

    def read(data: bytes) -> Any:
        replace(path, data)
        return GenerationConfig.from_pretrained(folder)

    return good, read


def header_case(folder: Path) -> tuple[Any, Read]:
    """A header is JSON too, but its length stands before it and its offsets count the bytes."""
    path = folder / "model.safetensors"
    good = {
        "__metadata__": {"format": "pt"},
        "wte.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
        "ln_f.bias": {"dtype": "F16", "shape": [6], "data_offsets": [32, 44]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [44, 52]},
    }
    body, random = bytes(52), Random(5)

    def read(data: bytes) -> Any:
        length = len(data) if random.random() < 0.9 else random.choice((0, 7, 2**40, len(data) + 9))
        content = struct.pack("<Q", length) + data + body
        if random.random() < 0.1:
            content = damaged_bytes(content, random)
        replace(path, content)
        file = SafetensorsFile(path)
        try:
            return [file.read(name) for name in file.entries]
        finally:
            file.close()

    return good, read


def index_case(folder: Path) -> tuple[Any, Read]:
    model = tiny_model(n_layer=1, n_embd=8, n_head=2)
    model.save_pretrained(folder, max_shard_size=3000)
    path = folder / "model.safetensors.index.json"
    good = json.loads(path.read_text())

    def read(data: bytes) -> Any:
        replace(path, data)
        with WeightFiles(open_repository(folder)) as files:
            return [sorted(source.entries) for source in files.sources]

    return good, read


def _trained(folder: Path) -> None:
    tokenizer = GPT2Tokenizer.train(["the old goat and the lamp"] * 2, 268, show_progress=False)
    tokenizer.save_pretrained(folder)


def vocabulary_case(folder: Path) -> tuple[Any, Read]:
    _trained(folder)
    path = folder / "vocab.json"
    good = json.loads(path.read_text(encoding="utf-8"))

    def read(data: bytes) -> Any:
        replace(path, data)
        return GPT2Tokenizer(path, folder / "merges.txt").encode("the goat")

    return good, read


def merges_case(folder: Path) -> tuple[Any, Read]:
    _trained(folder)
    path = folder / "merges.txt"
    good = path.read_text(encoding="utf-8").split("\n")

    def read(data: bytes) -> Any:
        try:
            lines = [str(line) for line in json.loads(data)]
            data = "\n".join(lines).encode("utf-8", "surrogatepass")
        except (ValueError, TypeError):
            data = data.replace(b'", "', b"\n")
        replace(path, data)
        return GPT2Tokenizer(folder / "vocab.json", path).encode("the goat")

    return good, read


def tokenizer_case(folder: Path) -> tuple[Any, Read]:
    _trained(folder)
    path = folder / "tokenizer.json"
    for other in folder.iterdir():
        if other != path:
            other.unlink()
    good = json.loads(path.read_text(encoding="utf-8"))
    good["model"]["vocab"] = dict(list(good["model"]["vocab"].items()))

    def read(data: bytes) -> Any:
        replace(path, data)
        return GPT2Tokenizer.from_pretrained(folder).encode("the goat")

    return good, read


def checkpoint_case(folder: Path) -> tuple[Any, Read]:
    """A whole model behind a damaged config: the weights must not fit by accident."""
    tiny_model(n_layer=1, n_embd=8, n_head=2).save_pretrained(folder)
    path = folder / "config.json"
    good = json.loads(path.read_text())

    def read(data: bytes) -> Any:
        replace(path, data)
        model = GPT2LMHeadModel.from_pretrained(folder)
        with torch.no_grad():
            return model(torch.tensor([[1, 2, 3]])).logits

    return good, read


MAKERS: dict[str, Callable[[Path], tuple[Any, Read]]] = {
    "config": config_case,
    "generation_config": generation_case,
    "header": header_case,
    "index": index_case,
    "vocabulary": vocabulary_case,
    "merges": merges_case,
    "tokenizer.json": tokenizer_case,
    "checkpoint": checkpoint_case,
}


def test_the_number_is_the_one_that_is_stated() -> None:
    assert sum(CASES.values()) >= 100_000


@pytest.mark.parametrize("kind", MAKERS)
def test_only_our_errors_come_out(kind: str, tmp_path: Path) -> None:
    good, read = MAKERS[kind](tmp_path)
    random, cases = Random(kind), CASES[kind] // SHARE
    read(json.dumps(good).encode())  # the good one loads
    refused, slowest = 0, 0.0
    for number in range(cases):
        data = as_json(damaged(good, random), random)
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(data)
        except GPT2Error:
            refused += 1
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise AssertionError(f"case {number}: {what}; {data!r:.2000}") from error
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < SECONDS_PER_CASE
    # Most damage is seen; a test that refused nothing would be reading something else.
    assert refused > cases // 5
    TOLD.append(f"{kind}: {cases} cases, {refused} refused, slowest {slowest * 1000:.0f} ms")
