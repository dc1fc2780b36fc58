"""train_new_from_iterator beside transformers': the same tokens, ids and special tokens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gpt2 import GPT2Tokenizer

SHARED = Path(__file__).parents[3] / "shared"
VOCAB = SHARED / "gpt2-vocab"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared"),
]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"new_special_tokens": ["<|new|>"]},
        {"special_tokens_map": {"<|endoftext|>": "<|end|>"}},
    ],
)
def test_the_same_vocabulary_is_learnt(arguments: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    files = [str(VOCAB / "vocab.json"), str(VOCAB / "merges.txt")]
    lines = (SHARED / "text" / "shakespeare.txt").read_text(encoding="utf-8").splitlines()[:4000]
    batches = [lines[start:end] for start, end in pairwise(range(0, 4001, 1000))]
    ours, theirs = (
        cls(*files).train_new_from_iterator(batches, 1500, show_progress=False, **arguments)
        for cls in (GPT2Tokenizer, transformers.GPT2TokenizerFast)
    )
    assert ours.get_vocab() == theirs.get_vocab()
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    assert ours.eos_token == theirs.eos_token
    assert ours(lines[:200])["input_ids"] == theirs(lines[:200])["input_ids"]
