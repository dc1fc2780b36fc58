"""The tokenizer's part of benchmark.py: every task done by each library in turn, in one process.

One thread everywhere. A figure is the median of the rounds; a library's caches are warm, except
that "encode cold" starts with a tokenizer that was just loaded. A ratio is this library's speed
over the peer's: above 1, this library is faster. Below the table stands what this library is asked
for, beside what was measured.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import sysconfig
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2 import GPT2Tokenizer
from gpt2.errors import FileAccessError
from gpt2.storage.hub import open_repository
from gpt2.tokenization.byte_alphabet import to_bytes
from gpt2.tokenization.words import MAX_WORDS

OURS = "gpt2"
END = "<|endoftext|>"
# The pattern that tiktoken's own "gpt2" encoding has.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
MEGABYTE = 1_000_000
# First and last letter, and the most letters of a word: Cyrillic, Greek, Chinese, Japanese, Latin
# with accents, Hebrew.
SCRIPTS = [
    ("а", "я", 9),
    ("α", "ω", 9),
    ("一", "鿋", 2),
    ("ぁ", "ん", 4),
    ("à", "ö", 6),
    ("א", "ת", 6),
]


@dataclass
class Library:
    """What is timed of one library; each makes a tokenizer, or uses the one that it is given."""

    load: Callable[[], Any]
    encode: Callable[[Any, str], list[int]]
    batch: Callable[[Any, list[str]], list[list[int]]]
    decode: Callable[[Any, list[int]], str]


def libraries(directory: Path, against: list[str]) -> dict[str, Library]:
    """This library and the peers, all with the vocabulary of the directory."""
    known = {
        OURS: _ours,
        "tiktoken": _tiktoken,
        "transformers": _transformers,
    }
    return {name: known[name](directory) for name in [OURS, *against]}


def _ours(directory: Path) -> Library:
    return Library(
        load=lambda: GPT2Tokenizer(directory / "vocab.json", directory / "merges.txt"),
        encode=lambda tokenizer, text: tokenizer.encode(text),
        batch=lambda tokenizer, texts: tokenizer(texts)["input_ids"],
        decode=lambda tokenizer, ids: tokenizer.decode(ids),
    )


def _tiktoken(directory: Path) -> Library:
    import tiktoken

    tokenizer = GPT2Tokenizer(directory / "vocab.json", directory / "merges.txt")
    special = tokenizer.get_added_vocab()
    ranks = {to_bytes(t): i for t, i in tokenizer.get_vocab().items() if t not in special}
    return Library(
        # Without reading a file: tiktoken has a format of its own for it.
        load=lambda: tiktoken.Encoding(
            "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
        ),
        encode=lambda encoding, text: encoding.encode_ordinary(text),
        batch=lambda encoding, texts: encoding.encode_ordinary_batch(texts, num_threads=1),
        decode=lambda encoding, ids: encoding.decode(ids),
    )


def _transformers(directory: Path) -> Library:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    import transformers

    transformers.logging.set_verbosity_error()  # it warns of texts longer than 1024 tokens
    files = [str(directory / name) for name in ("vocab.json", "merges.txt")]
    return Library(
        load=lambda: transformers.GPT2TokenizerFast(*files),
        encode=lambda tokenizer, text: tokenizer(text)["input_ids"],
        batch=lambda tokenizer, texts: tokenizer(texts)["input_ids"],
        decode=lambda tokenizer, ids: tokenizer.decode(ids),
    )


# ------------------------------------------------------------------------------------- texts


def prose(path: Path | None, size: int) -> str:
    """English: the file's text, else stories of the embedded world."""
    if path is not None:
        return path.read_text(encoding="utf-8")[:size]
    from stories import training_stories

    return _fill(size, (f"{story.text}\n\n" for story in training_stories()))


def python_code(size: int) -> str:
    """Sources of the running Python's standard library."""
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return _fill(size, (path.read_text(encoding="utf-8") for path in library))


def other_scripts(size: int, seed: int = 0) -> str:
    """Words of six scripts, as frequent as words of a language are (1 / rank; Zipf 1935)."""
    draw = random.Random(seed)
    words = [
        "".join(chr(draw.randint(ord(first), ord(last))) for _ in range(draw.randint(1, longest)))
        for first, last, longest in SCRIPTS
        for _ in range(3000)
    ]
    draw.shuffle(words)
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    chosen = draw.choices(words, weights, k=size // 3)
    ends = draw.choices([" ", ", ", ". ", ".\n"], [12, 2, 1, 1], k=len(chosen))
    return _fill(size // 2, map("".join, zip(chosen, ends, strict=True)))


def _fill(size: int, parts: Iterable[str]) -> str:
    """The parts put together, up to so many characters."""
    text: list[str] = []
    length = 0
    for part in parts:
        text.append(part)
        length += len(part)
        if length >= size:
            break
    return "".join(text)[:size]


EXTREMES: dict[str, Callable[[int], str]] = {
    "letters, no space": lambda size: "".join(random.Random(1).choices("etaoinshr", k=size)),
    "one character": lambda size: "a" * size,
    "white space": lambda size: " \n\t " * (size // 4),
}


# ------------------------------------------------------------------------------------ timing


@dataclass
class Bench:
    """Times the libraries in turn and prints one line per task."""

    libraries: dict[str, Library]
    rounds: int
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)  # label -> library -> median

    def __post_init__(self) -> None:
        self.loaded = {name: library.load() for name, library in self.libraries.items()}
        heads = [*self.libraries, *(f"/{name}" for name in self.libraries if name != OURS)]
        print(f"{'':40}" + "".join(f"{head:>14}" for head in heads))

    def task(
        self,
        label: str,
        work: Callable[[Library, Any], object],
        *,
        megabytes: float | None = None,
        cold: bool = False,
        only: str | None = None,
        rounds: int | None = None,
    ) -> None:
        """Time ``work(library, tokenizer)``; in MB/s where ``megabytes`` is given, else in ms.

        Args:
            cold: with a tokenizer that was just loaded.
            only: the one library that can do it.
            rounds: how often, in place of the number for all tasks.
        """
        counted = rounds or self.rounds
        libraries = self.libraries if only is None else {only: self.libraries[only]}
        samples: dict[str, list[float]] = {name: [] for name in libraries}
        for number in range(-1 if counted > 1 else 0, counted):  # round -1 warms up
            for name, library in libraries.items():
                tokenizer = library.load() if cold else self.loaded[name]
                gc.collect()
                began = time.perf_counter()
                result = work(library, tokenizer)
                took = time.perf_counter() - began
                del result  # outside of what is timed
                if number >= 0:
                    samples[name].append(took)
        medians = {name: statistics.median(taken) for name, taken in samples.items()}
        self.seconds[label] = medians
        unit = "MB/s" if megabytes else "ms"
        line = f"{label:34} {unit:>5}"
        for taken in medians.values():
            line += f"{megabytes / taken if megabytes else 1000 * taken:14.1f}"
        for name, taken in medians.items():
            line += "" if name == OURS else f"{taken / medians[OURS]:13.2f}x"
        print(line, flush=True)

    def ratio(self, label: str, peer: str) -> float | None:
        """How many times as fast as the peer this library did a task; None without the peer."""
        medians = self.seconds[label]
        return medians[peer] / medians[OURS] if peer in medians else None


def run(
    vocabulary: Path | None,
    against: list[str],
    text: Path | None,
    rounds: int,
    size: int = MEGABYTE,
) -> None:
    """Print the table, and what is asked for beside what was measured.

    Args:
        vocabulary: directory of vocab.json and merges.txt; None for GPT-2's from the hub's cache.
        against: the peers, by name.
        text: a file of English prose; None for the stories.
        rounds: how often each task is timed.
        size: of each text, in characters; the linearity shows at half, all and twice of it.
    """
    directory = cached_vocabulary() if vocabulary is None else vocabulary
    print("one thread; ratio: how many times as fast as the peer this library is")
    bench = Bench(libraries(directory, against), rounds)
    bench.task("load vocab.json, merges.txt", lambda library, _: library.load())
    with tempfile.TemporaryDirectory() as saved:
        bench.loaded[OURS].save_pretrained(saved)
        file = Path(saved) / "tokenizer.json"
        bench.task("load tokenizer.json", lambda *_: GPT2Tokenizer(tokenizer_file=file), only=OURS)
    texts = {
        "English prose": prose(text, size),
        "Python code": python_code(size),
        "non-ASCII prose": other_scripts(size),
    }
    for temperature in ("warm", "cold"):
        for label, one in texts.items():
            bench.task(
                f"encode {temperature}, {label}",
                lambda library, tokenizer, one=one: library.encode(tokenizer, one),
                megabytes=_megabytes(one),
                cold=temperature == "cold",
            )
    lines = [line for line in texts["English prose"].splitlines() if line]
    bench.task(
        f"call, batch of {len(lines):,} lines",
        lambda library, tokenizer: library.batch(tokenizer, lines),
        megabytes=_megabytes("".join(lines)),
    )
    for label, one in texts.items():
        ids = bench.loaded[OURS].encode(one)
        bench.task(
            f"decode, {label}",
            lambda library, tokenizer, ids=ids: library.decode(tokenizer, ids),
            megabytes=_megabytes(one),
        )
    for label, make in EXTREMES.items():
        for length in (size // 2, size, 2 * size):
            one = make(length)
            bench.task(
                f"{label}, {length / MEGABYTE} MB",
                lambda library, tokenizer, one=one: library.encode(tokenizer, one),
                rounds=min(rounds, 3),
            )
    print_demands(bench, f"call, batch of {len(lines):,} lines", texts["English prose"], size)
    print_table_memory(bench.libraries[OURS].load, min(MAX_WORDS, size // 7))


def print_demands(bench: Bench, batch: str, text: str, size: int) -> None:
    """What this library is asked for (issue 3), what it does, and whether that is enough."""
    demands: list[tuple[str, float | None, str, float, str]] = [
        (task, bench.ratio(task, peer), ">=", least, f"x {peer}'s speed")
        for task, peer, least in (
            ("encode warm, English prose", "tiktoken", 1.2),
            ("encode warm, Python code", "tiktoken", 1.2),
            ("encode warm, non-ASCII prose", "tiktoken", 1.0),
            (batch, "transformers", 3.5),
            ("encode cold, English prose", "transformers", 1.0),
            ("encode cold, Python code", "transformers", 1.0),
            ("encode cold, non-ASCII prose", "transformers", 1.0),
        )
    ]
    for task in ("load vocab.json, merges.txt", "load tokenizer.json"):
        demands.append((task, 1000 * bench.seconds[task][OURS], "<=", 60, " ms"))
    speed = _megabytes(text) / bench.seconds["decode, English prose"][OURS]
    demands.append(("decode, English prose", speed, ">=", 50, " MB/s"))
    for label in EXTREMES:
        once, twice = (
            bench.seconds[f"{label}, {length / MEGABYTE} MB"][OURS] for length in (size, 2 * size)
        )
        demands.append((f"{label}: time of twice the text", twice / once, "<=", 2.4, "x"))
    print(f"\n{'asked for':40}{'goal':>28}{'measured':>10}")
    for task, figure, sign, goal, unit in demands:
        if figure is not None:
            met = figure >= goal if sign == ">=" else figure <= goal
            wanted = f"{sign} {goal}{unit}"
            print(f"{task:40}{wanted:>28}{figure:10.2f}  {'yes' if met else 'NO'}")


def print_table_memory(load: Callable[[], Any], count: int) -> None:
    """What the table of known words takes when it has so many, English ones and the largest."""
    draw = random.Random(0)
    kinds = {
        "of 3 to 12 letters": lambda: "".join(draw.choices("etaoinshrdlu", k=draw.randint(3, 12))),
        # A letter beyond U+FFFF makes Python keep every character in four bytes.
        "as large as it keeps": lambda: "".join(draw.choices("bcdfgkpqvwxz", k=27)) + "\U00010400",
    }
    print()
    for kind, make in kinds.items():
        words: set[str] = set()
        while len(words) < count - 1:  # the pattern makes a word of a line's end, too
            words.add(make())
        text = " " + "\n ".join(words)
        tokenizer = load()
        tracemalloc.start()
        tokenizer.encode(text)
        taken = tracemalloc.get_traced_memory()[0] / MEGABYTE
        tracemalloc.stop()
        print(f"table of {count:,} words {kind}: {taken:.1f} MB")
    print(f"it is emptied at {MAX_WORDS:,} words")


def cached_vocabulary() -> Path:
    """Where the hub's cache has GPT-2's vocabulary; exits where it has not."""
    try:
        repository = open_repository("openai-community/gpt2", local_files_only=True)
        return Path(repository.require("merges.txt")).parent
    except FileAccessError as error:
        raise SystemExit(
            f"{error}\nor name a directory with vocab.json and merges.txt: --vocabulary DIR"
        ) from None


def _megabytes(text: str) -> float:
    return len(text.encode()) / MEGABYTE
