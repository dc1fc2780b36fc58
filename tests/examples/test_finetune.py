"""examples/finetune.py: what a kill leaves, and what goes on behind it.

Runs whose losses must be the same to the last bit are processes of their own: where memory lies
decides over the last bit. The others run in the tests' process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from tests.examples.scripts import EXAMPLES, run_here

SMALL = ("--steps", "9", "--batch-size", "4", "--held-out", "6", "--save-every", "2",
         "--evaluate-every", "3", "--no-plot")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"prompt": f"Mia has {n} lamps. How many?", "completion": f" {n} lamps."} for n in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def options(run: Path, data: Path, *more: str) -> list[str]:
    return ["--run", str(run), "--data", str(data), *SMALL, *more]


def start(run: Path, data: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / "finetune.py"), *options(run, data)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def losses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole")
    assert "best held-out loss" in finish(start(run, data))
    return run


def test_a_killed_run_goes_on_with_the_same_losses(whole: Path, data: Path, tmp_path: Path) -> None:
    process = start(tmp_path, data)
    until = time.monotonic() + 90
    while not (tmp_path / "state.pt").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # it did not come to its end
    finish(start(tmp_path, data))
    assert losses(tmp_path) == losses(whole)
    ours = GPT2LMHeadModel.from_pretrained(tmp_path / "best").state_dict()
    theirs = GPT2LMHeadModel.from_pretrained(whole / "best").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_best_checkpoint_is_whole_and_learned(whole: Path) -> None:
    held = [entry["held_out"] for entry in losses(whole) if "held_out" in entry]
    assert len(held) == 3
    assert held[-1] < held[0]
    assert len(GPT2Tokenizer.from_pretrained(whole / "best")) == 1024


def test_micro_batches_add_up_to_the_batch(whole: Path, data: Path, tmp_path: Path) -> None:
    done = run_here("finetune.py", *options(tmp_path, data, "--micro-batches", "4", "--steps", "3"))
    assert done.returncode == 0, done.stderr
    # The first step's loss; later ones follow another schedule, as there are fewer steps.
    assert losses(tmp_path)[0]["loss"] == pytest.approx(losses(whole)[0]["loss"], rel=1e-6)


def test_other_settings_are_refused_and_change_nothing(whole: Path, data: Path) -> None:
    before = (whole / "state.pt").read_bytes()
    done = run_here("finetune.py", *options(whole, data, "--lr", "0.5"))
    assert done.returncode == 1
    assert "other settings (lr)" in done.stderr
    assert (whole / "state.pt").read_bytes() == before
