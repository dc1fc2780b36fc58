"""examples/train_distributed.py under torchrun: two processes, then one, and the same losses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_distributed.py"
SMALL = ("--batch-size", "4", "--width", "32", "--stories", "20", "--save-every", "2")


def command(ranks: int, run: Path, *more: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = [str(EXAMPLE), "--output", str(run), *SMALL, *more]
    return [*torchrun, "--nproc-per-node", str(ranks), *script]


def torchrun(ranks: int, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ranks, run, *more), env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def alone(run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """One process, as torchrun starts it, without the seconds that torchrun itself takes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    return subprocess.run(
        [sys.executable, str(EXAMPLE), "--output", str(run), *SMALL, *more],
        env={
            **os.environ, **place, "MASTER_ADDR": "localhost", "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "losses.jsonl").read_text().splitlines()]


def test_two_processes_train_and_another_number_goes_on(tmp_path: Path) -> None:
    done = torchrun(2, tmp_path / "run", "--steps", "4")
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu (2 dp × 1 tp), float32" in done.stdout
    assert len(losses(tmp_path / "run")) == 4
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "run" / "model")
    assert len(GPT2Tokenizer.from_pretrained(tmp_path / "run" / "model")) == model.config.vocab_size

    done = alone(tmp_path / "run", "--steps", "6")
    assert done.returncode == 0, done.stderr
    assert "steps 5 to 6" in done.stdout
    assert len(losses(tmp_path / "run")) == 6

    done = alone(tmp_path / "run", "--steps", "8", "--lr", "1", "--seed", "7")
    assert done.returncode == 1
    assert "checkpoint was made with other settings (lr, seed); give those" in done.stderr


def test_tensor_parallel_gives_the_losses_of_one_process(tmp_path: Path) -> None:
    more = ("--steps", "3", "--fresh")
    for start, name in ((alone, "one"), (partial(torchrun, 2), "two")):
        done = start(tmp_path / name, *more, *(("--tp", "2") if name == "two" else ()))
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert losses(tmp_path / "one")[0] > 6.5  # the fresh weights know nothing: ln 1024 = 6.93


def test_what_does_not_divide_is_refused(tmp_path: Path) -> None:
    for options, words in (
        (("--tp", "3"), "--tp 3 does not divide the 1 processes"),
        (("--tp", "0"), "--tp 0 does not divide"),
    ):
        done = alone(tmp_path, *options)
        assert done.returncode == 1
        assert words in done.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_losses_it_would_have_had(tmp_path: Path) -> None:
    whole = torchrun(1, tmp_path / "whole", "--steps", "12")
    assert whole.returncode == 0, whole.stderr
    killed = subprocess.Popen(
        command(2, tmp_path / "killed", "--steps", "12"), start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint").exists() and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "losses.jsonl").exists()  # it did not come to its end
    done = torchrun(4, tmp_path / "killed", "--steps", "12", "--tp", "2")
    assert done.returncode == 0, done.stderr
    assert "steps 1 to 12" not in done.stdout
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
