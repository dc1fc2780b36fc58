"""The pass over a prompt of 1024 tokens that ends in the logits of its last position.

transformers is timed as its own generate calls it (logits_to_keep=1), which is the same work as
here, and the ratio and the goal are of that; and as its forward is by default, with the logits of
all positions. Everybody builds a cache, as is everybody's default. Of this library there are the
model in that dtype, and the one prepared for inference with such weights, which the goal is for.
Each row has a process of its own, and they take turns; figures are medians.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_limits as limits
import torch
from benchmark_common import (
    Goals,
    Options,
    config_of,
    in_turns,
    load_ours,
    load_transformers,
    make_checkpoint,
    median,
    ratio,
    seconds,
    workers,
)
from torch import Tensor

PARTS = ("float32", "bfloat16")
LENGTH = 1024
PEER = "transformers"
PEER_ALL = "transformers, all logits"
PLAIN = "gpt2"
PREPARED = "gpt2, prepared"
NAMES = (PREPARED, PLAIN, PEER, PEER_ALL)


def run(options: Options) -> None:
    """Print a table per dtype, and the goals."""
    torch.set_num_threads(options.threads)
    dtypes = tuple(getattr(torch, part) for part in PARTS if options.has(part))
    limits.print_gemm_rates(*dtypes, threads=options.threads)
    goals = Goals()
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made) / "work"
        make_checkpoint(directory, options.shape)
        for dtype in dtypes:
            _one_dtype(directory, dtype, options, goals)
    goals.show()


def make_row(name: str, directory: Path, dtype: torch.dtype, threads: int) -> Callable[[], Any]:
    """The pass of one row; made, and then called, in its own process."""
    torch.set_num_threads(threads)
    if name == PREPARED:
        storage: Any = str(dtype).removeprefix("torch.")
        model: Any = load_ours(directory).prepare_for_inference(weights=storage)
    else:
        model = (load_ours if name == PLAIN else load_transformers)(directory, dtype=dtype)
    ids = torch.randint(model.config.vocab_size - 1, (1, LENGTH))
    settings = {} if name == PEER_ALL else {"logits_to_keep": 1}

    @torch.no_grad()
    def forward() -> Tensor:
        return model(ids, **settings).logits

    return forward


def _one_dtype(directory: Path, dtype: torch.dtype, options: Options, goals: Goals) -> None:
    config = config_of(options.shape)
    names = options.chosen(
        {n: n for n in NAMES if n in (PREPARED, PLAIN) or PEER in options.against}
    )
    products = limits.Products(config, LENGTH, head_tokens=1, dtype=dtype)
    with workers(names, make_row, directory, dtype, options.threads) as rows:
        takers: dict[str, Callable[[], float]] = {
            name: lambda row=row: row(seconds) for name, row in rows.items()
        }
        samples = in_turns({limits.PRODUCTS: products, **takers}, options.rounds)
    alone = median(samples.pop(limits.PRODUCTS))
    taken = {name: median(times) for name, times in samples.items()}
    name = str(dtype).removeprefix("torch.")
    print(f"\n{name}, 1×{LENGTH}, {options.rounds} rounds")
    print(f"the products alone: {alone:.3f} s, {products.flop / alone / limits.GIGA:.0f} GFLOP/s")
    print(f"{'':30}{'s':>9}{'of limit':>10}{'prepared/this':>15}{'gpt2/this':>12}")
    for row, time in taken.items():
        ratios = [f"{taken[n] / time:.2f}" if n in taken else "" for n in (PREPARED, PLAIN)]
        print(f"{row:30}{time:9.3f}{alone / time:10.2f}{ratios[0]:>15}{ratios[1]:>12}")
    of_peer = ratio(taken.get(PREPARED), taken.get(PEER))
    goals.add(f"prefill 1×{LENGTH}, {name}", of_peer, "<=", 0.85, f"x {PEER}")
