"""On a CUDA device: the documented attention tables redone, decoding, and training.

``tables``: gpt2-large in float16 with SDPA and with FlashAttention beside eager attention, laid
beside the percentages that transformers 4.x documented on an RTX 3080 Ti (16 GB, torch 2.2.1). As
there: a training step is forward, backward and clearing of the gradients, without an optimizer,
its loss the sum of the logits, the attention mask all ones, ten steps to warm up; memory is the
allocator's peak; a speed-up is eager / other − 1, and so is a saving of memory. Inference is the
latency per new token of generate.
``decode``: bfloat16, a prompt of 32 and 256 new tokens, B=1; steps as in benchmark_decode.py.
``train``: 124M, bfloat16 autocast over float32 weights, fused AdamW, no logits returned; with the
vocabulary as it is and padded to 50304; and a step of nanoGPT's size beside what its README says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import benchmark_limits as limits
import torch
from benchmark_common import (
    Goals,
    Options,
    config_of,
    in_turns,
    load_transformers,
    make_checkpoint,
    median,
    progress,
    ratio,
    seconds,
    synchronize,
)
from torch import Tensor

from gpt2 import GPT2LMHeadModel
from gpt2.errors import BackendError

PARTS = ("tables", "decode", "train")
BACKENDS = ("eager", "sdpa", "flash_attention_2")
BATCHES = (1, 2, 4)
LENGTHS = {"training": (128, 256, 512, 1024), "inference": (128, 256, 512, 768)}
# (batch, length) -> speed-up and memory saved by SDPA in %; None where eager was out of memory.
# From the page of GPT-2 in transformers' 4.4x documentation.
DOCUMENTED: dict[str, dict[tuple[int, int], tuple[float, float] | None]] = {
    "training": {
        (1, 128): (23.042, -0.352), (1, 256): (25.15, -0.167), (1, 512): (30.96, 15.4),
        (1, 1024): (50.839, 77.875), (2, 128): (15.324, 0.335), (2, 256): (16.53, 6.666),
        (2, 512): (25.626, 44.822), (2, 1024): None, (4, 128): (4.412, 0.742),
        (4, 256): (12.292, 25.839), (4, 512): (21.687, 53.858), (4, 1024): None,
    },
    "inference": {
        (1, 128): (14.681, -0.947), (1, 256): (17.536, -1.428), (1, 512): (10.529, -0.708),
        (1, 768): (8.791, -1.701), (2, 128): (1.861, -0.418), (2, 256): (1.294, -0.714),
        (2, 512): (-1.071, -0.951), (2, 768): (-2.873, -1.074), (4, 128): (2.709, -2.16),
        (4, 256): (1.764, -0.937), (4, 512): (1.411, -0.7), (4, 768): (1.299, -0.506),
    },
}  # fmt: skip
# Dense bfloat16 FLOP/s with float32 accumulation, by a part of the device's name: data sheets.
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "H20": 148e12, "B200": 2250e12}
# Milliseconds per iteration in nanoGPT's README (github.com/karpathy/nanoGPT, "efficiency notes" of
# December 2022), by whether torch.compile was used. It names neither device nor batch there; the
# repository trains 124M without dropout on 12 × 1024 tokens at a time, V = 50304, on A100 40GB.
NANOGPT = {False: 250.0, True: 135.0}
# Its README, "reproducing GPT-2": 8 × A100 40GB go down to a loss of about 2.85 in about 4 days; by
# config/train_gpt2.py that is 600 000 iterations of 5 such batches on each device.
NANOGPT_RUN = 1000 * 4 * 24 * 3600 / (600_000 * 5)  # ms of a batch: 115
NEW = 64  # new tokens of an inference sample
DECODE_PROMPT, DECODE_NEW = 32, 256
EAGER, COMPILED = "gpt2-eager", "gpt2-compiled"


@dataclass
class Cost:
    """Seconds of a piece of work, and the allocator's peak in MB (0 where nobody counts)."""

    seconds: float
    megabytes: float


def run(options: Options) -> None:
    """Print the tables of the parts that are asked for; exits where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit(
            f"gpu: this needs a CUDA device, and torch {torch.__version__} finds none; the other "
            "benchmarks run on the CPU"
        )
    device = "cuda"
    peak = peak_flops(torch.cuda.get_device_name())
    print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    read = limits.Stream(device, 2**32)()
    rate = limits.gemm_rate(torch.bfloat16, device, 8192)
    known = "not in the table" if peak is None else f"{peak / 1e12:.0f} TFLOP/s"
    print(f"limits measured here: stream read {read / 1e9:,.0f} GB/s; bfloat16 GEMM "
          f"{rate / 1e12:.0f} TFLOP/s; data sheet {known}")  # fmt: skip
    goals = Goals()
    if options.has("tables"):
        tables(device, "gpt2-large", torch.float16, goals, rounds=options.rounds)
    if options.has("decode"):
        for shape in ("gpt2", "gpt2-xl"):
            decode(device, shape, read, options, goals)
    if options.has("train"):
        train(device, "gpt2", rate, peak, goals, rounds=options.rounds)
    goals.show()


def peak_flops(name: str) -> float | None:
    """What the data sheet says of a device; the longest name that fits."""
    fitting = [part for part in PEAKS if part in name]
    return PEAKS[max(fitting, key=len)] if fitting else None


def cost(work: Callable[[], object], device: str, *, times: int, warmups: int) -> Cost:
    """Seconds of one work, the mean of so many in a row; and the peak over all of them."""
    for _ in range(warmups):
        work()
    counts = torch.device(device).type == "cuda"
    synchronize(device)
    if counts:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def repeated() -> None:
        for _ in range(times):
            work()

    took = seconds(repeated, device) / times
    return Cost(took, torch.cuda.max_memory_allocated() / 1e6 if counts else 0.0)


# --------------------------------------------------------------------------------- the tables


def tables(
    device: str,
    shape: str,
    dtype: torch.dtype,
    goals: Goals,
    *,
    rounds: int,
    backends: Sequence[str] = BACKENDS,
    lengths: dict[str, tuple[int, ...]] = LENGTHS,
    batches: Sequence[int] = BATCHES,
) -> None:
    """Time and memory per backend, and the documented percentages."""
    costs: dict[str, dict[tuple[int, int], dict[str, Cost | None]]] = {
        kind: {(b, t): {} for b in batches for t in lengths[kind]} for kind in lengths
    }
    for backend in backends:
        try:
            model = _random_model(shape, device, dtype, attn_implementation=backend)
        except BackendError as error:
            print(f"{backend} is left out: {error}")
            continue
        for kind, cells in costs.items():
            work = _training if kind == "training" else _inference
            for (batch, length), found in cells.items():
                progress(f"{backend}, {kind}, {batch}×{length}")
                try:
                    found[backend] = work(model, batch, length, device, rounds)
                except torch.cuda.OutOfMemoryError:
                    found[backend] = None
        model = None  # before the next one is made
    progress("")
    for kind, cells in costs.items():
        print(f"\n{kind}, {shape}, {str(dtype).removeprefix('torch.')}: eager against the others; "
              "in brackets what is documented for SDPA")  # fmt: skip
        print(f"{'B×T':9}{'':18}{'ms':>10}{'peak MB':>10}{'speed-up %':>12}{'':12}{'saved %':>12}")
        for (batch, length), found in cells.items():
            _print_cell(kind, batch, length, found)
    cell = costs.get("training", {}).get((1, 1024), {})
    for backend in backends[1:]:
        faster, smaller = _gains(cell.get("eager"), cell.get(backend))
        task = f"training 1×1024, {backend} over eager"
        goals.add(f"{task}, speed-up", faster, ">=", 50.8, " %")
        goals.add(f"{task}, memory saved", smaller, ">=", 77.9, " %")


def _print_cell(kind: str, batch: int, length: int, found: dict[str, Cost | None]) -> None:
    documented = DOCUMENTED[kind].get((batch, length), ())
    said = ["(eager OOM)"] * 2 if documented is None else [f"({x:+.1f})" for x in documented]
    for backend, one in found.items():
        line = f"{f'{batch}×{length}':9}{backend:18}"
        if one is None:
            print(f"{line}  out of memory")
            continue
        line += f"{1000 * one.seconds:10.2f}{one.megabytes:10,.0f}"
        if backend != "eager":
            gains = _gains(found.get("eager"), one)
            for gain, known in zip_longest(gains, said, fillvalue=""):
                line += f"{'/' if gain is None else f'{gain:+.1f}':>12}{known:>12}"
        print(line)


def _gains(eager: Cost | None, other: Cost | None) -> tuple[float | None, float | None]:
    """By how many percent the eager way takes longer, and more memory; None where it is unknown."""
    if eager is None or other is None:
        return None, None
    time, memory = eager.seconds / other.seconds, ratio(eager.megabytes, other.megabytes or None)
    return 100 * (time - 1), None if memory is None else 100 * (memory - 1)


def _training(model: GPT2LMHeadModel, batch: int, length: int, device: str, rounds: int) -> Cost:
    ids = _ids(model, batch, length, device)
    mask = torch.ones_like(ids)
    model.train()

    def step() -> None:
        model(ids, attention_mask=mask).logits.sum().backward()
        model.zero_grad()

    return cost(step, device, times=10 * rounds, warmups=10)


def _inference(model: GPT2LMHeadModel, batch: int, length: int, device: str, rounds: int) -> Cost:
    ids = _ids(model, batch, length, device)
    mask = torch.ones_like(ids)
    model.eval()

    def generate() -> Tensor:
        return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)

    whole = cost(generate, device, times=rounds, warmups=1)
    return Cost(whole.seconds / NEW, whole.megabytes)


# ------------------------------------------------------------------------------------ decoding


def decode(device: str, shape: str, read: float, options: Options, goals: Goals) -> None:
    """Tokens per second in bfloat16: prepared and compiled, plain, and transformers."""
    config = config_of(shape)
    makers: dict[str, Callable[[], Any]] = {
        EAGER: lambda: _random_model(shape, device, torch.bfloat16),
        COMPILED: lambda: _compiled_model(shape, device),
    }
    if "transformers" in options.against:
        makers["transformers"] = lambda: _their_model(shape, device)
    models = {name: make() for name, make in options.chosen(makers).items()}
    ids = torch.randint(config.vocab_size - 1, (1, DECODE_PROMPT), device=device)
    mask = torch.ones_like(ids)

    def generate(model: Any, new: int) -> Tensor:
        return model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)

    first = {
        name: seconds(lambda m=m: generate(m, DECODE_NEW), device) for name, m in models.items()
    }
    samples = in_turns(
        {
            name: lambda model=model: (
                seconds(lambda: generate(model, DECODE_NEW), device),
                seconds(lambda: generate(model, 1), device),
            )
            for name, model in models.items()
        },
        options.rounds,
    )
    print(f"\ndecode, {shape}, bfloat16, B=1, {DECODE_PROMPT} + {DECODE_NEW} tokens")
    print(f"{'':18}{'tok/s steps':>12}{'tok/s call':>12}{'of bandwidth':>14}{'first call s':>14}")
    for name, taken in samples.items():
        step = median(call - one for call, one in taken) / (DECODE_NEW - 1)
        call = median(call for call, _ in taken)
        share = limits.read_per_step(config, 2) / read / step
        print(f"{name:18}{1 / step:12.1f}{DECODE_NEW / call:12.1f}{share:14.2f}{first[name]:14.1f}")
        if name == COMPILED and shape == "gpt2":
            goals.add("decode bf16, gpt2, compiled", 1 / step, ">=", 2000, " tok/s")
        if name == COMPILED and shape == "gpt2-xl":
            goals.add("decode bf16, gpt2-xl, compiled, share of bandwidth", share, ">=", 0.65)


# ------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Step:
    """A training step to be timed: a row of the table."""

    batch: int
    length: int
    compiled: bool
    padded: bool  # the vocabulary, to a multiple of 64
    as_nanogpt: bool = False  # no dropout; the published figure stands beside it

    @property
    def name(self) -> str:
        how = "compiled" if self.compiled else "eager"
        size = f"{'nanoGPT ' if self.as_nanogpt else ''}{self.batch}×{self.length}"
        return f"{size}, {how}{', V padded' if self.padded else ''}"


STEPS = (
    Step(32, 1024, compiled=True, padded=False),
    Step(32, 1024, compiled=True, padded=True),
    Step(12, 1024, compiled=False, padded=False, as_nanogpt=True),
    Step(12, 1024, compiled=False, padded=True, as_nanogpt=True),
    Step(12, 1024, compiled=True, padded=True, as_nanogpt=True),
)


def train(
    device: str,
    shape: str,
    rate: float,
    peak: float | None,
    goals: Goals,
    *,
    rounds: int,
    steps: Sequence[Step] = STEPS,
) -> None:
    """Time, memory and model FLOP utilisation of training steps.

    The FLOP are those that PaLM counts (arXiv:2204.02311, appendix B): per token 6 for each
    parameter but wpe's, and 12 · L · D · T of attention; nothing for what is computed twice, or
    for the padding.
    """
    print(f"\ntrain, {shape}, bfloat16 autocast, fused AdamW, return_logits=False")
    print(f"{'':36}{'ms':>9}{'nanoGPT ms':>12}{'tok/s':>11}{'peak MB':>9}{'TFLOP/s':>9}"
          f"{'of GEMM':>9}{'MFU':>6}{'first s':>9}")  # fmt: skip
    for step in steps:
        progress(step.name)
        one, first, flop = _training_step(step, device, shape, rounds)
        tokens = step.batch * step.length
        done = flop * tokens / one.seconds
        mfu = ratio(done, peak)
        said = f"~{NANOGPT[step.compiled]:.0f}" if step.as_nanogpt else ""
        print(f"{step.name:36}{1000 * one.seconds:9.1f}{said:>12}{tokens / one.seconds:11,.0f}"
              f"{one.megabytes:9,.0f}{done / 1e12:9.2f}{done / rate:9.2f}"
              f"{'/' if mfu is None else f'{mfu:.2f}':>6}{first:9.1f}")  # fmt: skip
        if not step.as_nanogpt:
            goals.add(f"train {shape} bf16, {step.name}: MFU", mfu, ">=", 0.5)
    print(
        "nanoGPT ms: published in its README in December 2022, device and batch not named; this is "
        "the\nsize of its training, on A100 40GB. Its run of about 4 days on 8 of them makes "
        f"{NANOGPT_RUN:.0f} ms a batch."
    )


def _training_step(step: Step, device: str, shape: str, rounds: int) -> tuple[Cost, float, int]:
    """Its cost, the seconds of the first one, and the FLOP of a token."""
    dropout = 0.0 if step.as_nanogpt else None
    model = _random_model(shape, device, torch.float32, dropout=dropout).train()
    model.pad_vocabulary(64 if step.padded else None)
    config = model.config
    parameters = sum(p.numel() for p in model.parameters()) - model.transformer.wpe.weight.numel()
    flop = 6 * parameters + 12 * config.n_layer * config.n_embd * step.length
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = _ids(model, step.batch, step.length, device)
    torch._dynamo.reset()  # the graphs of the row before
    forward: Callable[..., Any] = torch.compile(model) if step.compiled else model

    def work() -> None:
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = forward(ids, labels=ids, return_logits=False, check_inputs=False).loss
        loss.backward()
        optimizer.step()

    first = seconds(work, device)
    return cost(work, device, times=5 * rounds, warmups=3), first, flop


# ------------------------------------------------------------------------------------- helpers


def _random_model(
    shape: str,
    device: str,
    dtype: torch.dtype,
    attn_implementation: str = "sdpa",
    dropout: float | None = None,
) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = config_of(shape)
    config.attn_implementation = attn_implementation
    if dropout is not None:
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    model = GPT2LMHeadModel(config).to(device=device, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    return model


def _compiled_model(shape: str, device: str) -> GPT2LMHeadModel:
    plain = _random_model(shape, device, torch.bfloat16)
    fast = plain.prepare_for_inference(weights="bfloat16", compile=True)
    fast.generation_config.eos_token_id = None
    return fast


def _their_model(shape: str, device: str) -> Any:
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made) / "work"
        make_checkpoint(directory, shape)
        return load_transformers(directory, dtype=torch.bfloat16).to(device)


def _ids(model: GPT2LMHeadModel, batch: int, length: int, device: str) -> Tensor:
    return torch.randint(model.config.vocab_size - 1, (batch, length), device=device)
