"""The peak memory of the training step of benchmark_train.py: a new process for every sample.

"peak" is the most that the process had resident (VmHWM of Linux), after two steps: in the second
one the optimizer's moments are there while forward and backward run. "standing" is what it had
before the first step, with the library imported, the model loaded and every weight read; "on top"
is the difference, which gradients, moments and activations make. The goals are of the peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import benchmark_train
from benchmark_common import Goals, Options, make_checkpoint, median, progress, ratio

STATUS = Path("/proc/self/status")
MEGABYTE = 1e6
STEPS = 2


def run(options: Options) -> None:
    """Print the table and the goals."""
    if not STATUS.exists():
        raise SystemExit(f"memory: the peak is read from {STATUS}, which only Linux has")
    names = [
        name
        for name in benchmark_train.NAMES
        if name != benchmark_train.PEER or name in options.against
    ]
    chosen = options.chosen({name: name for name in names})
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made) / "work"
        make_checkpoint(directory, options.shape)
        for number in range(options.rounds):
            for name in chosen:
                progress(f"process {number + 1}/{options.rounds}: {name}")
                samples[name].append(_in_new_process(name, directory, options))
    progress("")
    peaks = {name: median(s["peak"] for s in taken) for name, taken in samples.items()}
    peer = peaks.get(benchmark_train.PEER)
    shape = f"{benchmark_train.ROWS}×{benchmark_train.LENGTH}"
    print(f"\n{shape}, float32, after {STEPS} steps, {options.rounds} processes each; MB")
    print(f"{'':28}{'peak':>10}{'standing':>10}{'on top':>10}{'/' + benchmark_train.PEER:>16}")
    for name, taken in samples.items():
        standing = median(s["standing"] for s in taken)
        line = f"{name:28}{peaks[name]:10,.0f}{standing:10,.0f}{peaks[name] - standing:10,.0f}"
        print(line + (f"{peaks[name] / peer:15.2f}x" if peer else ""))
    goals = Goals()
    for name, most in ((benchmark_train.WITHOUT, 0.45), (benchmark_train.WITH_LOGITS, 0.7)):
        figure = ratio(peaks.get(name), peer)
        goals.add(f"peak memory, {name}", figure, "<=", most, f"x {benchmark_train.PEER}'s")
    goals.show()


def _in_new_process(name: str, directory: Path, options: Options) -> dict[str, float]:
    """Megabytes that the process had before the steps, and at most."""
    command = [sys.executable, __file__, name, str(directory), options.shape, str(options.threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"memory, {name}: the process failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _sample(name: str, directory: Path, shape: str, threads: int) -> None:
    """What each of the new processes does."""
    step = benchmark_train.Step(name, directory, shape, threads)
    for parameter in step.model.parameters():
        parameter.sum().item()  # a file that is only mapped becomes resident when it is read
    standing = _resident("VmRSS")
    for _ in range(STEPS):
        step()
    print(json.dumps({"standing": standing, "peak": _resident("VmHWM")}))


def _resident(field: str) -> float:
    """A line of the process's status, in megabytes; VmHWM begins anew with each exec."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / MEGABYTE


if __name__ == "__main__":
    _sample(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
