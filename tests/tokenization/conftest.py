"""A small vocabulary, trained in a moment, and GPT-2's own where it lies beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2 import GPT2Tokenizer

VOCAB = Path(__file__).parents[3] / "shared" / "gpt2-vocab"

CORPUS = [
    "The fox had a red hat. The hen had a blue hat, and the fox's hat was old.",
    "Where is the hat? I don't know, said the hen; they've gone to the river.",
    "In 1987 the river froze: 12 hens walked over it.\n\n\tThe end.",
]


@pytest.fixture
def tokenizer() -> GPT2Tokenizer:
    """300 tokens; <|endoftext|> has the id 0."""
    return GPT2Tokenizer.train(CORPUS * 2, 300, show_progress=False)


@pytest.fixture(scope="session")
def vocabulary_directory() -> Path:
    if not VOCAB.is_dir():
        pytest.skip("needs ../shared/gpt2-vocab")
    return VOCAB


@pytest.fixture(scope="session")
def gpt2_tokenizer(vocabulary_directory: Path) -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(vocabulary_directory)
