"""Ids equal to tiktoken's and transformers', code point by code point and on generated text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gpt2 import GPT2Tokenizer
from gpt2.tokenization.byte_alphabet import to_bytes
from gpt2.tokenization.pretokenization import split_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Encode = Callable[[str], list[int]]

SHARED = Path(__file__).parents[3] / "shared"
VOCAB = SHARED / "gpt2-vocab"
END = "<|endoftext|>"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not VOCAB.is_dir(), reason="needs ../shared/gpt2-vocab"),
]

# The pattern that tiktoken's "gpt2" encoding names.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@pytest.fixture(scope="module")
def ours() -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(VOCAB)


@pytest.fixture(scope="module")
def encode_tiktoken(ours: GPT2Tokenizer) -> Encode:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {to_bytes(token): id_ for token, id_ in ours.get_vocab().items() if token != END}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END: 50256}
    )
    return lambda text: encoding.encode(text, allowed_special="all")


@pytest.fixture(scope="module")
def transformers_tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    files = [str(VOCAB / "vocab.json"), str(VOCAB / "merges.txt")]
    return transformers.GPT2TokenizerFast(*files)


@pytest.fixture(scope="module")
def encode_transformers(transformers_tokenizer: Any) -> Encode:
    backend = transformers_tokenizer.backend_tokenizer  # without the cost of the Python layer
    return lambda text: backend.encode(text).ids


def chunks(code_points: Iterable[int]) -> Iterator[list[str]]:
    characters = [chr(c) for c in code_points if not 0xD800 <= c < 0xE000]
    return (characters[start : start + 8192] for start in range(0, len(characters), 8192))


def test_every_code_point_is_cut_as_tokenizers_cuts_it() -> None:
    pre_tokenizers = pytest.importorskip("tokenizers.pre_tokenizers")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for characters in chunks(range(0x110000)):
        # A letter, a number, white space and anything else each cut this in its own way.
        text = "".join(f"a{c}1{c}!{c}" for c in characters)
        theirs = [text[start:end] for _, (start, end) in byte_level.pre_tokenize_str(text)]
        assert split_words(text) == theirs


ASSIGNED = [*range(0x40000), *range(0xE0000, 0xE1000)]
UNASSIGNED = [*range(0x40000, 0xE0000), *range(0xE1000, 0x110000)]


@pytest.mark.parametrize(
    "code_points",
    [
        pytest.param(ASSIGNED, id="planes-with-characters"),
        pytest.param(UNASSIGNED[::97], id="a-sample-of-the-rest"),
        pytest.param(UNASSIGNED, id="the-rest", marks=pytest.mark.slow),
    ],
)
def test_every_code_point_alone_and_in_company(
    ours: GPT2Tokenizer,
    encode_tiktoken: Encode,
    encode_transformers: Encode,
    code_points: list[int],
) -> None:
    for characters in chunks(code_points):
        text = "".join(f"{END}{c}{END}x{c} {c}" for c in characters)
        ids = ours.encode(text)
        assert ids == encode_tiktoken(text)
        assert ids == encode_transformers(text)
        assert ours.decode(ids) == text
