"""A good checkpoint to damage, and the count of the generated cases at the session's end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpt2 import GPT2Tokenizer
from tests.fault.counted import TOLD
from tests.helpers import tiny_model

TEXT = "the old goat and the lamp"


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config, weights and tokenizer of a tiny model; not to be written to."""
    folder = tmp_path_factory.mktemp("good")
    tokenizer = GPT2Tokenizer.train([TEXT] * 2, 268, show_progress=False)
    tiny_model(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(good: Path, tmp_path: Path) -> Path:
    """A copy of the good checkpoint, to be damaged."""
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOLD:
        terminalreporter.section("generated faults")
        for line in TOLD:
            terminalreporter.write_line(line)
