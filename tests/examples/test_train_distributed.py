"""examples/train_distributed.py: any number of processes, a kill, and the losses of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from tests.examples.scripts import EXAMPLES, run_here
from tests.processes import forkserver, run_script

SMALL = ("--batch-size", "4", "--width", "32", "--stories", "20", "--save-every", "2", "--fresh")
SCRIPT = EXAMPLES / "train_distributed.py"


def options(run: Path, *more: str) -> list[str]:
    return ["--output", str(run), *SMALL, *more]


def places(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each process in its environment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def start(place: dict[str, str], run: Path, *more: str) -> tuple[BaseProcess, Path]:
    """A process as torchrun would start it, and where it prints to."""
    output = run.with_name(f"{run.name}-{time.monotonic_ns()}.txt")
    arguments = (SCRIPT, options(run, *more), place, output)
    process = forkserver().Process(target=run_script, args=arguments)
    process.start()
    return process, output


def alone(run: Path, *more: str) -> str:
    process, output = start(places(1)[0], run, *more)
    process.join(150)
    assert process.exitcode == 0, output.read_text()
    return output.read_text()


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "losses.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_with_the_losses_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process that nothing happens to; two, killed; two in tensor parallel; one again."""
    alone(tmp_path / "whole", "--steps", "12")
    run = tmp_path / "killed"
    killed = [start(place, run, "--steps", "12") for place in places(2)]
    until = time.monotonic() + 120
    while not (run / "checkpoint").exists() and time.monotonic() < until:
        time.sleep(0.01)
    for process, _ in killed:
        process.kill()
        process.join()
    assert "2 processes on cpu (2 dp × 1 tp), float32" in killed[0][1].read_text()
    assert (run / "checkpoint").exists()
    assert not (run / "losses.jsonl").exists()  # it did not come to its end

    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(SCRIPT), *options(run, "--steps", "12", "--tp", "2")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu (1 dp × 2 tp), float32" in done.stdout
    assert "steps 1 to 12" not in done.stdout
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert losses(run)[0] > 6.5  # the fresh weights know nothing: ln 1024 = 6.93
    model = GPT2LMHeadModel.from_pretrained(run / "model")
    assert len(GPT2Tokenizer.from_pretrained(run / "model")) == model.config.vocab_size

    assert "steps 13 to 14" in alone(run, "--steps", "14")
    assert len(losses(run)) == 14

    for name, value in places(1)[0].items():
        monkeypatch.setenv(name, value)
    changed = ("--steps", "16", "--lr", "1", "--seed", "7")
    done = run_here("train_distributed.py", *options(run, *changed))
    assert done.returncode == 1
    assert "checkpoint was made with other settings (lr, seed); give those" in done.stderr


def test_what_does_not_divide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in places(1)[0].items():
        monkeypatch.setenv(name, value)
    for wrong, words in (
        (("--tp", "3"), "--tp 3 does not divide the 1 processes"),
        (("--tp", "0"), "--tp 0 does not divide"),
    ):
        done = run_here("train_distributed.py", *options(tmp_path, *wrong))
        assert done.returncode == 1
        assert words in done.stderr
