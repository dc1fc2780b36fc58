"""Time this library beside a peer: the same work in turn, in one run; medians and ratios.

    python examples/benchmark.py import
    python examples/benchmark.py load --rounds 7
    python examples/benchmark.py tokenizer --against tiktoken,transformers --vocabulary DIR

Every sample is a new process, except in the tokenizer's benchmark, which has a file of its own:
benchmark_tokenizer.py. A peer that is not installed is left out. To add a benchmark of new
processes: write one more Benchmark.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import benchmark_tokenizer

import gpt2

OURS = "gpt2"
PEERS = ("transformers", "tiktoken")
# Prints one JSON object: what was measured -> seconds. `mark` is the time since the last mark.
PRELUDE = """
import json, sys, time
_last = time.perf_counter()
figures = {}
def mark(name):
    global _last
    now = time.perf_counter()
    figures[name] = now - _last
    _last = time.perf_counter()
"""
EPILOGUE = "\nprint(json.dumps(figures))"


@dataclass
class Benchmark:
    """Code per library, run in a new process; ``prepare`` makes what it needs in a directory."""

    help: str
    code: dict[str, str]
    prepare: Callable[[Path], None] = field(default=lambda directory: None)


def _make_checkpoint(directory: Path) -> None:
    """A random checkpoint in the shape of the 124M GPT-2, as save_pretrained writes it."""
    from gpt2 import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
    for file in directory.iterdir():
        file.read_bytes()  # into the page cache


BENCHMARKS = {
    "import": Benchmark(
        "import of the library, and of its tokenizer alone",
        {
            OURS: """
import gpt2; mark("import")
from gpt2 import GPT2Tokenizer; mark("+ tokenizer class")
import torch; mark("+ torch")
from gpt2 import GPT2LMHeadModel; mark("+ model class")
""",
            "transformers": """
import transformers; mark("import")
from transformers import GPT2Tokenizer; mark("+ tokenizer class")
import torch; mark("+ torch")
from transformers import GPT2LMHeadModel; mark("+ model class")
""",
        },
    ),
    "load": Benchmark(
        "import and load of a 124M-shape float32 checkpoint from a warm page cache",
        {
            name: f"""
from {name} import GPT2LMHeadModel; mark("import")
model = GPT2LMHeadModel.from_pretrained(sys.argv[1]); mark("load")
assert sum(p.numel() for p in model.parameters()) == 124_439_808
figures["import + load"] = figures["import"] + figures["load"]
"""
            for name in (OURS, "transformers")
        },
        prepare=_make_checkpoint,
    ),
}


def sample(code: str, directory: Path) -> dict[str, float]:
    """Run the code in a new process and return its figures, in seconds."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + EPILOGUE, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        sys.exit(f"benchmark failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run(benchmark: Benchmark, rounds: int, against: list[str]) -> None:
    """Warm up once, then time the libraries in turn; print medians and ratios."""
    names = [OURS, *(name for name in against if name in benchmark.code)]
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made) / "work"
        directory.mkdir()
        benchmark.prepare(directory)
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(-1, rounds):  # round -1 warms the caches up
            for name in names:
                figures = sample(benchmark.code[name], directory)
                if number >= 0:
                    samples[name].append(figures)
            print(f"\rround {max(number + 1, 0)}/{rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{'seconds (median)':24}" + "".join(f"{name:>14}" for name in names) + "    ratio")
    for key in samples[OURS][0]:
        medians = [statistics.median(s[key] for s in samples[name]) for name in names]
        ratio = f"{medians[0] / medians[1]:9.3f}" if len(medians) > 1 else ""
        print(f"{key:24}" + "".join(f"{m:14.4f}" for m in medians) + ratio)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=[*BENCHMARKS, "tokenizer"], help="what to time")
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument(
        "--against",
        default="transformers",
        help="peers with commas between: transformers (default), tiktoken; or nothing",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        help="tokenizer: directory of vocab.json and merges.txt (default: GPT-2's, from the cache)",
    )
    parser.add_argument("--text", type=Path, help="tokenizer: a file of English prose")
    parser.add_argument(
        "--size", type=int, default=1_000_000, help="tokenizer: characters per text (default 10**6)"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {arguments.rounds}")
    peers = [] if arguments.against == "nothing" else arguments.against.split(",")
    for peer in peers:
        if peer not in PEERS:
            parser.error(f"--against names {peer!r}; the peers are {', '.join(PEERS)}, or nothing")
    against = [peer for peer in peers if importlib.util.find_spec(peer)]
    for peer in set(peers) - set(against):
        print(f"{peer} is not installed: nothing to compare with")
    packages = ["torch", "numpy", *PEERS]
    found = [f"{p} {version(p)}" for p in packages if importlib.util.find_spec(p)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join([f"gpt2 {gpt2.__version__}", *found]))
    if arguments.benchmark == "tokenizer":
        benchmark_tokenizer.run(
            arguments.vocabulary, against, arguments.text, arguments.rounds, arguments.size
        )
        return
    benchmark = BENCHMARKS[arguments.benchmark]
    print(f"{arguments.benchmark}: {benchmark.help}")
    run(benchmark, arguments.rounds, against)


if __name__ == "__main__":
    main()
