"""Time this library beside a peer: the same work in turn, in one run; medians and ratios.

    python examples/benchmark.py import
    python examples/benchmark.py load --rounds 7
    python examples/benchmark.py tokenizer --against tiktoken,transformers --vocabulary DIR
    python examples/benchmark.py decode --parts b1 --only transformers,eager
    python examples/benchmark.py prefill
    python examples/benchmark.py train
    python examples/benchmark.py memory
    python examples/benchmark.py gpu --parts tables

Every sample of import and load is a new process; the other benchmarks have files of their own,
benchmark_*.py, each of which says how it measures. A peer that is not installed is left out. To add
a benchmark of new processes: write one more Benchmark; of the model: one more file, and its line in
OF_MODEL.
"""

from __future__ import annotations

import argparse
import importlib
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
PEERS = ("transformers", "tiktoken", "ctranslate2", "torchao")
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


@dataclass(frozen=True)
class OfModel:
    """A benchmark of the model: the file that has its ``run``; ``rounds`` if none are asked for."""

    help: str
    module: str
    rounds: int
    against: str = "transformers"


OF_MODEL = {
    "decode": OfModel(
        "greedy decoding with a cache, plain and prepared",
        "benchmark_decode",
        rounds=5,
        against="transformers,ctranslate2",
    ),
    "prefill": OfModel("the pass over a long prompt", "benchmark_prefill", rounds=5),
    "train": OfModel("training steps", "benchmark_train", rounds=3),
    "memory": OfModel("peak memory of a training step", "benchmark_memory", rounds=1),
    "gpu": OfModel("attention tables, decoding, training on CUDA", "benchmark_gpu", rounds=5),
}


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
    """Run the code in a new process and return its figures, in seconds.

    Bytecode is kept, as it is of whatever pip has installed: else a library that runs from its
    checkout would be compiled anew each time.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + EPILOGUE, str(directory)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
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


def run_of_model(name: str, arguments: argparse.Namespace, against: list[str]) -> None:
    """Run a benchmark of the model; exits where a part or a row has no such name."""
    import torch  # the other benchmarks do not need it
    from benchmark_common import SHAPES, Options

    found = OF_MODEL[name]
    module = importlib.import_module(found.module)
    parts = _names(arguments.parts)
    known = getattr(module, "PARTS", ())
    for part in parts:
        if part not in known:
            sys.exit(
                f"--parts names {part!r}; the parts of {name} are: {', '.join(known) or 'none'}"
            )
    if arguments.shape not in SHAPES:
        sys.exit(f"--shape is {arguments.shape!r}; it may be {', '.join(SHAPES)}")
    threads = arguments.threads or torch.get_num_threads()
    options = Options(
        rounds=arguments.rounds or found.rounds,
        threads=threads,
        against=against,
        shape=arguments.shape,
        parts=parts,
        only=_names(arguments.only),
    )
    print(f"{name}: {found.help}; {arguments.shape} shape, {threads} threads")
    module.run(options)


def _names(given: str) -> list[str]:
    return [name for name in given.split(",") if name]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("benchmark", choices=[*BENCHMARKS, "tokenizer", *OF_MODEL], help="what to time")
    add("--rounds", type=int, help="counted runs of each (default 5; train 3, memory 1)")
    add(
        "--against",
        help="peers with commas between: transformers (default), tiktoken, ctranslate2 (default of "
        "decode), torchao (of decode); or nothing",
    )
    add(
        "--vocabulary",
        type=Path,
        help="tokenizer: directory of vocab.json and merges.txt (default: GPT-2's, from the cache)",
    )
    add("--text", type=Path, help="tokenizer: a file of English prose")
    add("--size", type=int, default=1_000_000, help="tokenizer: characters per text")
    add("--threads", type=int, help="of the model: threads of every library (default: torch's own)")
    add("--shape", default="gpt2", help="of the model: gpt2 (default), gpt2-medium …, or tiny")
    add("--parts", default="", help="of the model: parts, with commas between (default: all)")
    add("--only", default="", help="of the model: rows of the table, with commas between")
    arguments = parser.parse_args()
    for name in ("rounds", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, not {value}")
    if arguments.against is None:
        found = OF_MODEL.get(arguments.benchmark)
        arguments.against = found.against if found else "transformers"
    peers = [] if arguments.against == "nothing" else _names(arguments.against)
    for peer in peers:
        if peer not in PEERS:
            parser.error(f"--against names {peer!r}; the peers are {', '.join(PEERS)}, or nothing")
    arguments.peers = peers
    return arguments


def main() -> None:
    arguments = parse_arguments()
    against = [peer for peer in arguments.peers if importlib.util.find_spec(peer)]
    for peer in set(arguments.peers) - set(against):
        print(f"{peer} is not installed: nothing to compare with")
    packages = ["torch", "numpy", *PEERS]
    found = [f"{p} {version(p)}" for p in packages if importlib.util.find_spec(p)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join([f"gpt2 {gpt2.__version__}", *found]))
    name, rounds = arguments.benchmark, arguments.rounds or 5
    if name in OF_MODEL:
        run_of_model(name, arguments, against)
    elif name == "tokenizer":
        benchmark_tokenizer.run(
            arguments.vocabulary, against, arguments.text, rounds, arguments.size
        )
    else:
        print(f"{name}: {BENCHMARKS[name].help}")
        run(BENCHMARKS[name], rounds, against)


if __name__ == "__main__":
    main()
