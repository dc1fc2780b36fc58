"""A training step: forward with loss, backward, AdamW; 4 rows of 512 tokens, float32.

Dropout as the config has it (0.1 everywhere), torch's fused AdamW for everybody, labels the inputs.
This library with return_logits=False, and with the logits returned; transformers as its defaults
make it. Each in a process of its own, in turns; figures are medians of the rounds.
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

ROWS, LENGTH = 4, 512
PEER = "transformers"
WITH_LOGITS = "gpt2, logits returned"
WITHOUT = "gpt2, return_logits=False"
NAMES = (PEER, WITH_LOGITS, WITHOUT)


class Step:
    """One training step per call, on the same batch; ``losses`` has what came out."""

    def __init__(self, name: str, directory: Path, shape: str, threads: int) -> None:
        torch.set_num_threads(threads)
        load = load_transformers if name == PEER else load_ours
        self.model: Any = load(directory, dtype=torch.float32).train()
        self.settings = {"return_logits": False} if name == WITHOUT else {}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        size = (ROWS, LENGTH)
        self.ids = torch.randint(config_of(shape).vocab_size, size, generator=generator)
        self.losses: list[float] = []

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        output = self.model(self.ids, labels=self.ids, **self.settings)
        output.loss.backward()
        self.optimizer.step()
        self.losses.append(output.loss.item())


def losses(step: Step) -> list[float]:
    """Asked of the process that has taken the steps."""
    return step.losses


def run(options: Options) -> None:
    """Print the table and the goals."""
    torch.set_num_threads(options.threads)
    limits.print_gemm_rates(torch.float32, threads=options.threads)
    tokens = ROWS * LENGTH
    config = config_of(options.shape)
    products = limits.Products(config, tokens, head_tokens=tokens, backward=True)
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made) / "work"
        make_checkpoint(directory, options.shape)
        names = options.chosen({n: n for n in NAMES if n != PEER or PEER in options.against})
        with workers(names, Step, directory, options.shape, options.threads) as steps:
            takers: dict[str, Callable[[], float]] = {
                name: lambda step=step: step(seconds) for name, step in steps.items()
            }
            samples = in_turns({limits.PRODUCTS: products, **takers}, options.rounds)
            all_losses = {name: step(losses) for name, step in steps.items()}
    alone = median(samples.pop(limits.PRODUCTS))
    taken = {name: median(times) for name, times in samples.items()}
    print(f"\n{ROWS}×{LENGTH}, float32, dropout {config.resid_pdrop}, {options.rounds} rounds")
    print(
        f"the products alone (linear layers, forward and backward): {alone:.2f} s, "
        f"{products.flop / alone / limits.GIGA:.0f} GFLOP/s, {tokens / alone:.0f} tok/s"
    )
    print(f"{'':28}{'s':>8}{'tok/s':>9}{'of limit':>10}{'/' + PEER:>16}{'loss, first to last':>22}")
    for name, time in taken.items():
        line = f"{name:28}{time:8.2f}{tokens / time:9.1f}{alone / time:10.2f}"
        line += f"{taken[PEER] / time:15.2f}x" if PEER in taken else f"{'':16}"
        print(f"{line}{all_losses[name][0]:14.3f}{all_losses[name][-1]:8.3f}")
    goals = Goals()
    of_peer = ratio(taken.get(PEER), taken.get(WITHOUT))
    goals.add(f"train step, {WITHOUT}", of_peer, ">=", 1.4, f"x {PEER}'s tok/s")
    goals.show()
