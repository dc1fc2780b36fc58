"""examples/train_distributed.py: any number of processes, a kill, and the losses of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from tests.examples.scripts import EXAMPLES, run_here

SMALL = ("--batch-size", "4", "--width", "32", "--stories", "20", "--save-every", "2", "--fresh")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def script(run: Path, *more: str) -> list[str]:
    return [str(EXAMPLES / "train_distributed.py"), "--output", str(run), *SMALL, *more]


def places(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each process in its environment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def start(place: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, **place, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def said_by(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    return out


def alone(run: Path, *more: str) -> str:
    """One process without torchrun, which takes some seconds itself."""
    return said_by(start(places(1)[0], *script(run, *more)))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "losses.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_with_the_losses_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process that nothing happens to; two, killed; two in tensor parallel; one again."""
    alone(tmp_path / "whole", "--steps", "12")
    run = tmp_path / "killed"
    killed = [start(place, *script(run, "--steps", "12")) for place in places(2)]
    until = time.monotonic() + 120
    while not (run / "checkpoint").exists() and time.monotonic() < until:
        time.sleep(0.01)
    for process in killed:
        process.kill()
    said, _ = [process.communicate()[0] for process in killed]
    assert "2 processes on cpu (2 dp × 1 tp), float32" in said
    assert (run / "checkpoint").exists()
    assert not (run / "losses.jsonl").exists()  # it did not come to its end

    said = said_by(start({}, *TORCHRUN, "2", *script(run, "--steps", "12", "--tp", "2")))
    assert "2 processes on cpu (1 dp × 2 tp), float32" in said
    assert "steps 1 to 12" not in said
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert losses(run)[0] > 6.5  # the fresh weights know nothing: ln 1024 = 6.93
    model = GPT2LMHeadModel.from_pretrained(run / "model")
    assert len(GPT2Tokenizer.from_pretrained(run / "model")) == model.config.vocab_size

    assert "steps 13 to 14" in alone(run, "--steps", "14")
    assert len(losses(run)) == 14

    for name, value in places(1)[0].items():
        monkeypatch.setenv(name, value)
    _, *options = script(run, "--steps", "16", "--lr", "1", "--seed", "7")
    done = run_here("train_distributed.py", *options)
    assert done.returncode == 1
    assert "checkpoint was made with other settings (lr, seed); give those" in done.stderr


def test_what_does_not_divide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in places(1)[0].items():
        monkeypatch.setenv(name, value)
    for wrong, words in (
        (("--tp", "3"), "--tp 3 does not divide the 1 processes"),
        (("--tp", "0"), "--tp 0 does not divide"),
    ):
        _, *options = script(tmp_path, *wrong)
        done = run_here("train_distributed.py", *options)
        assert done.returncode == 1
        assert words in done.stderr
