"""What the benchmarks of the model share: the checkpoint, taking turns, and tables.

The weights are random, in the shape of a published GPT-2: speed and memory do not depend on their
values. One checkpoint is made per run, and every library loads that one.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from gpt2 import GPT2Config, GPT2LMHeadModel
from gpt2.tokenization.byte_alphabet import to_characters

OURS = "gpt2"
END = "<|endoftext|>"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 512},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-large": {"n_layer": 36, "n_embd": 1280, "n_head": 20},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
# An idle pool of OpenMP threads spins for up to 0.2 s before it sleeps (KMP_BLOCKTIME of the
# runtime that CTranslate2 brings): the next library would have to share the cores with it.
PAUSE = 0.3

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What a benchmark of the model is asked for; ``parts`` and ``only`` empty: everything."""

    rounds: int
    threads: int
    against: Sequence[str] = ()
    shape: str = "gpt2"
    parts: Sequence[str] = ()
    only: Sequence[str] = ()

    def has(self, part: str) -> bool:
        """Whether this part of the benchmark is to be run."""
        return not self.parts or part in self.parts

    def chosen(self, rows: dict[str, T]) -> dict[str, T]:
        """The rows to be run, by name; exits where there is no such row."""
        for name in self.only:
            if name not in rows:
                raise SystemExit(f"--only names {name!r}; the rows are: {', '.join(rows)}")
        return {name: row for name, row in rows.items() if not self.only or name in self.only}


def config_of(shape: str) -> GPT2Config:
    """The configuration of a shape; the last id of the vocabulary ends a text."""
    settings = SHAPES[shape]
    end = settings.get("vocab_size", 50257) - 1
    return GPT2Config(**settings, bos_token_id=end, eos_token_id=end)


def make_checkpoint(directory: Path, shape: str = "gpt2") -> None:
    """A random checkpoint as save_pretrained writes it, with a vocabulary of made-up pairs.

    The vocabulary is for CTranslate2's converter: 256 bytes, pairs of them, and the end of a text.
    """
    torch.manual_seed(0)
    config = config_of(shape)
    GPT2LMHeadModel(config).save_pretrained(directory)
    letters = [to_characters(bytes([byte])) for byte in range(256)]
    merges = [(a, b) for a in letters for b in letters][: config.vocab_size - 257]
    tokens = [*letters, *(a + b for a, b in merges), END]
    written = {
        "vocab.json": json.dumps({token: number for number, token in enumerate(tokens)}),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer"}),
    }
    for name, text in written.items():
        (directory / name).write_text(text, encoding="utf-8")
    for file in directory.iterdir():
        file.read_bytes()  # into the page cache


def load_ours(directory: Path, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """This library's model of the checkpoint; generate never stops at the end of a text."""
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=dtype)
    model.generation_config.eos_token_id = None
    return model


def load_transformers(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model of the checkpoint, which does not stop either."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # 4.x calls the argument torch_dtype, and 5.x dtype
    model = transformers.GPT2LMHeadModel.from_pretrained(directory).to(dtype)
    model.generation_config.eos_token_id = None
    return model.eval()


# ------------------------------------------------------------------------------------- timing


def synchronize(device: str | torch.device) -> None:
    """Wait for what the device has been given to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: str | torch.device = "cpu") -> float:
    """How long the work takes; what it returns is let go outside of the time."""
    synchronize(device)
    began = time.perf_counter()
    result = work()
    synchronize(device)
    took = time.perf_counter() - began
    del result
    return took


def in_turns(samples: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """``rounds`` samples of each, taken in turn; a round before them warms up, uncounted."""
    taken: dict[str, list[T]] = {name: [] for name in samples}
    for number in range(-1, rounds):
        for name, sample in samples.items():
            progress(f"round {number + 1}/{rounds}: {name}")
            gc.collect()
            time.sleep(PAUSE)
            one = sample()
            if number >= 0:
                taken[name].append(one)
    progress("")
    return taken


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def progress(text: str) -> None:
    """A line that the next one overwrites, on a terminal's stderr."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------- processes


class Worker:
    """A process that makes one thing, keeps it, and does work with it when it is its turn.

    Libraries and models that share a process do disturb each other: a prepared model of 124M took
    11.4 ms per step beside five others, and 7.3 alone. A worker that waits takes no core.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        # A new interpreter, not a fork of this one with its pools of threads.
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._made = self._pool.submit(_make, make, arguments)

    def __call__(self, work: Callable[..., T], *arguments: Any) -> T:
        """``work(thing, *arguments)``, computed there; functions are of a module's top level."""
        self._made.result()  # what went wrong in making it is told here
        return self._pool.submit(_work, work, arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def workers(
    names: Iterable[str], make: Callable[..., Any], *arguments: Any
) -> Iterator[dict[str, Worker]]:
    """A worker for each name, which has made ``make(name, *arguments)``."""
    started = {name: Worker(make, name, *arguments) for name in names}
    try:
        for name, worker in started.items():
            progress(f"making {name}")
            worker(_ready)
        yield started
    finally:
        for worker in started.values():
            worker.close()


_held: list[Any] = []  # in a worker: what it has made


def _make(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _held.append(make(*arguments))


def _work(work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    gc.collect()
    return work(_held[0], *arguments)


def _ready(held: Any) -> bool:
    return held is not None


# ------------------------------------------------------------------------------------- tables


@dataclass
class Goals:
    """What the library is asked for (issue 7), beside what was measured."""

    lines: list[tuple[str, float, str, float, str]] = field(default_factory=list)

    def add(self, task: str, figure: float | None, sign: str, goal: float, unit: str = "") -> None:
        """A figure that shall be >= or <= the goal; None where the run did not measure it."""
        if figure is not None:
            self.lines.append((task, figure, sign, goal, unit))

    def show(self) -> None:
        if self.lines:
            print(f"\n{'asked for':58}{'goal':>26}{'measured':>10}")
        for task, figure, sign, goal, unit in self.lines:
            met = figure >= goal if sign == ">=" else figure <= goal
            print(
                f"{task:58}{f'{sign} {goal:g}{unit}':>26}{figure:10.2f}  {'yes' if met else 'NO'}"
            )


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b, or None where one of them was not measured."""
    return None if a is None or b is None else a / b
