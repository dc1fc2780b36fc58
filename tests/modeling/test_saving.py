"""Saving a model with its tokenizer; save_pretrained itself is tested in test_pretrained.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError
from tests.helpers import tiny_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_tokenizer_is_saved_in_the_same_step(tmp_path: Path) -> None:
    tokenizer = GPT2Tokenizer.train(["a hen and a hat"] * 9, vocab_size=270, show_progress=False)
    model = tiny_model(vocab_size=len(tokenizer))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "added_tokens.json").write_text('{"of another": 9}')
    model.save_pretrained(tmp_path / "m", tokenizer=tokenizer)
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "vocab.json", "merges.txt",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    }  # fmt: skip
    assert GPT2Tokenizer.from_pretrained(tmp_path / "m").get_vocab() == tokenizer.get_vocab()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_tokenizer_that_fails_leaves_the_old_model(saved: Path) -> None:
    class Broken:
        file_names = ("vocab.json",)

        def __len__(self) -> int:
            return 5

        def write_to(self, stage: Path) -> None:
            (stage / "vocab.json").write_text("half of it")
            raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(FileAccessError, match="No space left on device"):
        tiny_model(seed=3).save_pretrained(saved, tokenizer=Broken())
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tokenizer = GPT2Tokenizer.train(["a hen and a hat"] * 9, vocab_size=270, show_progress=False)
    with pytest.raises(ArgumentError, match=r"tokens and the model vocab_size 97.*resize_token"):
        tiny_model().save_pretrained(tmp_path / "m", tokenizer=tokenizer)
    with pytest.raises(ArgumentTypeError, match="must be a GPT2Tokenizer, not a str"):
        tiny_model().save_pretrained(tmp_path / "m", tokenizer="gpt2")  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()
