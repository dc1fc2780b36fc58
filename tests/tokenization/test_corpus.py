"""Whole corpora: several processes, arrays, the order of texts, and what cannot be encoded."""

from __future__ import annotations

import io
import multiprocessing
import sys
import tracemalloc
from typing import Any

import numpy
import pytest

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.progress import Progress
from gpt2.tokenization import corpus
from gpt2.tokenization.byte_alphabet import BYTE_CHARACTERS

END = "<|endoftext|>"
TEXTS = [f"{'The hen. ' * (n % 7)}{n} fox{END * (n % 3)}é" for n in range(200)] + ["", "a"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_CHUNK", 300)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("start_method", [None, *multiprocessing.get_all_start_methods()])
def test_workers_give_what_encode_gives_in_order(
    tokenizer: GPT2Tokenizer, start_method: str | None
) -> None:
    expected = [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS) == expected
    tokenizer.add_tokens(["fox"])
    tokenizer.add_bos_token = True
    changed = [tokenizer.encode(text) for text in TEXTS]
    assert changed != expected
    batch = tokenizer.encode_batch(iter(TEXTS), workers=2, start_method=start_method)
    assert batch == changed


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("workers", [1, 2])
def test_array_has_texts_with_an_end_behind_each(tokenizer: GPT2Tokenizer, workers: int) -> None:
    ids = tokenizer.encode_to_array(TEXTS, workers=workers)
    assert ids.dtype == numpy.uint16
    assert ids.tolist() == [i for text in TEXTS for i in [*tokenizer.encode(text), 0]]
    ids = tokenizer.encode_to_array(TEXTS, append_eos=False, workers=workers)
    assert ids.tolist() == [i for text in TEXTS for i in tokenizer.encode(text)]


def test_array_has_no_second_end() -> None:
    tokenizer = GPT2Tokenizer.train(["ab"], 257)
    tokenizer.add_eos_token = True
    assert tokenizer.encode_to_array(["a", ""]).tolist() == [*tokenizer.encode("a"), 0]


@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing(tokenizer: GPT2Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [[] for _ in texts]
    ids = tokenizer.encode_to_array(texts, append_eos=False)
    assert ids.shape == (0,)
    assert ids.dtype == numpy.uint16


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, numpy.uint16), (70_000, numpy.uint32)])
def test_dtype_is_that_of_the_largest_id(size: int, dtype: type) -> None:
    tokens = [*BYTE_CHARACTERS, *(f"Ā{number}" for number in range(256, size))]
    tokens[-1], tokens[0] = tokens[0], tokens[-1]
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    tokenizer = GPT2Tokenizer(vocab, [], unk_token=None, bos_token=None, eos_token=None)
    ids = tokenizer.encode_to_array(["\0"], append_eos=False)  # the first byte has the last id
    assert ids.dtype == dtype
    assert ids.tolist() == [size - 1]


def test_special_text_is_read_as_told(tokenizer: GPT2Tokenizer) -> None:
    text = f"a{END}"
    plain = tokenizer.encode_batch([text], special_text="plain")
    assert plain == [tokenizer.encode(text, special_text="plain")] != [tokenizer.encode(text)]
    with pytest.raises(ArgumentError, match=r"texts\[1\]: .*has the special token"):
        tokenizer.encode_batch(["", text], special_text="error")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_that_cannot_be_encoded_is_named(tokenizer: GPT2Tokenizer, workers: int) -> None:
    texts = [*TEXTS, "x\ud800"]
    with pytest.raises(ArgumentError, match=rf"texts\[{len(TEXTS)}\]: .*lone surrogate"):
        tokenizer.encode_batch(texts, workers=workers)
    with pytest.raises(
        ArgumentTypeError, match=rf"texts\[{len(TEXTS)}\] must be a string, not int"
    ):
        tokenizer.encode_to_array([*TEXTS, 3], workers=workers)  # type: ignore[list-item]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one"}, r"texts must be an iterable of texts, not str; .* \[text\]"),
        ({"texts": b"one"}, "not bytes"),
        ({"texts": 3}, "not int"),
        ({"workers": 0}, "workers must be an integer from 1 up, not 0"),
        ({"workers": True}, "not True"),
        ({"start_method": "thread"}, "start_method must be one of .*spawn.*, not 'thread'"),
        ({"special_text": "keep"}, "special_text must be"),
    ],
)
def test_bad_arguments(tokenizer: GPT2Tokenizer, arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"texts": ["a"], **arguments}
    for method in (tokenizer.encode_batch, tokenizer.encode_to_array):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
            method(**given)


def test_no_end_to_append() -> None:
    tokenizer = GPT2Tokenizer.train(["ab"], 256, special_tokens=[])
    with pytest.raises(ArgumentError, match="append_eos=True, but the tokenizer has no eos_token"):
        tokenizer.encode_to_array(["ab"])


@pytest.mark.usefixtures("small_chunks")
def test_progress_is_told_where_it_takes_long(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    tokenizer.encode_batch(TEXTS)
    assert stderr.getvalue() == ""
    monkeypatch.setattr(Progress, "SILENT", 0.0)
    tokenizer.encode_batch(TEXTS, show_progress=False)
    assert stderr.getvalue() == ""
    tokenizer.encode_batch(TEXTS)
    assert "encoding: [" in stderr.getvalue()
    assert f"/{len(TEXTS)} texts" in stderr.getvalue()


def test_an_array_is_never_in_memory_twice(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_CHUNK", 1000)
    text = "the hat and the hen " * 50
    tokenizer.encode(text)
    tracemalloc.start()
    try:
        ids = tokenizer.encode_to_array((text for _ in range(1000)), show_progress=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ids.nbytes > 500_000
    assert peak < 1.25 * ids.nbytes + 100_000
