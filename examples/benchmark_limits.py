"""What the machine can do: bytes read and multiplications per second, measured where it stands.

The benchmarks take the limits in turn with what they time: on a virtual machine the neighbours'
load moves the memory's speed by a third from one minute to the next.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from benchmark_common import seconds
from torch import Tensor

from gpt2 import GPT2Config

GIGA = 1e9
STREAM = 2**29  # bytes, far beyond what the caches hold
SQUARE = 2048  # side of the matrices of print_gemm_rates
READ = "stream read"
PRODUCTS = "products alone"


def best(work: Callable[[], object], device: str = "cpu", tries: int = 5) -> float:
    """The shortest of several times, in seconds, after one that warms up."""
    seconds(work, device)
    return min(seconds(work, device) for _ in range(tries))


class Stream:
    """A call gives the bytes per second that a stream of reads gets just now.

    The faster of two ways to read ``size`` bytes of float32, of each the median of five.
    """

    def __init__(self, device: str = "cpu", size: int | None = None) -> None:
        self.device = device
        self.x = torch.ones((size or STREAM) // 4, device=device)

    def __call__(self) -> float:
        ways = (self.x.sum, self.x.max)
        times = [statistics.median(seconds(w, self.device) for _ in range(5)) for w in ways]
        return self.x.nbytes / min(times)


def gemm_rate(dtype: torch.dtype, device: str, size: int) -> float:
    """FLOP per second of a product of two square matrices, (size, size) each."""
    a, b, out = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
    return 2 * size**3 / best(lambda: torch.mm(a, b, out=out), device, tries=15)


def matrices(config: GPT2Config) -> list[tuple[int, int, int]]:
    """(how often, in, out) of every linear layer of the model, its head included."""
    width, inner = config.n_embd, config.inner_dim
    return [
        (config.n_layer, width, 3 * width),
        (config.n_layer, width, width),
        (config.n_layer, width, inner),
        (config.n_layer, inner, width),
        (1, width, config.vocab_size),
    ]


def read_per_step(config: GPT2Config, bytes_per_weight: int) -> int:
    """Bytes of the weights that one decoding step has to read: the matrices; not the cache."""
    return bytes_per_weight * sum(times * ins * outs for times, ins, outs in matrices(config))


class Products:
    """A call gives the seconds that the model's linear layers alone take just now; ``flop`` theirs.

    Each product goes into memory that is there already, without bias, attention, or anything
    between. With ``backward`` the two products of each gradient are added: g W and gᵀ x.
    """

    def __init__(
        self,
        config: GPT2Config,
        tokens: int,
        *,
        head_tokens: int,
        dtype: torch.dtype = torch.float32,
        backward: bool = False,
    ) -> None:
        self.work: list[tuple[int, tuple[Tensor, Tensor, Tensor]]] = []  # how often, a b = out
        self.flop = 0
        for times, ins, outs in matrices(config):
            rows = head_tokens if outs == config.vocab_size else tokens
            x, w, g = (
                torch.randn(size, dtype=dtype) for size in ((rows, ins), (outs, ins), (rows, outs))
            )
            products = [(x, w.t(), torch.empty_like(g))]
            if backward:
                products += [(g, w, torch.empty_like(x)), (g.t(), x, torch.empty_like(w))]
            self.work += [(times, product) for product in products]
            self.flop += times * 2 * rows * ins * outs * len(products)

    def __call__(self) -> float:
        return sum(
            times * seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
            for times, (a, b, out) in self.work
        )


def print_gemm_rates(*dtypes: torch.dtype, threads: int) -> None:
    """Measure and print what large square products reach."""
    rates = (
        f"{str(d).removeprefix('torch.')} {gemm_rate(d, 'cpu', SQUARE) / GIGA:,.0f}" for d in dtypes
    )
    print(f"GEMM {SQUARE}³ here, GFLOP/s on {threads} threads: {', '.join(rates)}", flush=True)
