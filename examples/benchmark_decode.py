"""Decoding with a cache, greedily: transformers, CTranslate2, this library plain and prepared.

A prompt of 32 tokens and 64 new ones; nobody stops earlier. "steps" are what the 63 steps after
the first new token take, that is the whole call less the same call for one token, timed in the
same round; "call" is the whole of it. Ratios and goals are of the steps, the work that is named
decode; the call's stand beside them. Figures are medians of the rounds.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import benchmark_limits as limits
import torch
from benchmark_common import (
    END,
    Goals,
    Options,
    config_of,
    in_turns,
    load_ours,
    load_transformers,
    make_checkpoint,
    median,
    progress,
    ratio,
    seconds,
)
from torch import Tensor

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer

PARTS = ("b1", "b8", "positions", "perplexity")
PROMPT, NEW = 32, 64
EARLY, LATE, STEPS = 64, 960, 8  # the step's cost at these positions, over so many steps
WEIGHTS = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes of a weight
STORIES = Path(__file__).resolve().parent / "stories-gpt2"

Generate = Callable[[Tensor, int], Tensor]  # prompts (B, T), how many new tokens -> their ids


@dataclass
class Row:
    """One way of decoding: ``generate``, and the bytes of each weight that a step reads."""

    generate: Generate
    bytes_per_weight: int
    model: Any = None  # with a generate that takes a streamer: position costs are timed by it
    prepared_in: float = 0.0  # seconds of prepare_for_inference


@dataclass
class Sample:
    """Seconds of one call for NEW tokens, and of one for a single token."""

    call: float
    first: float

    @property
    def steps(self) -> float:
        return self.call - self.first


# --------------------------------------------------------------------------------------- rows


def row_makers(directory: Path, options: Options) -> dict[str, Callable[[], Row]]:
    """Every row by name, made when it is asked for; peers as far as they are wanted."""
    makers: dict[str, Callable[[], Row]] = {}
    if "transformers" in options.against:
        makers["transformers"] = lambda: _transformers(directory)
        makers["transformers-loop"] = lambda: _transformers_loop(directory)
    if "ctranslate2" in options.against:
        for kind in ("float32", "int8"):
            makers[f"ctranslate2-{kind}"] = lambda kind=kind: _ctranslate2(
                directory, kind, options.threads
            )
    makers["eager"] = lambda: _ours(load_ours(directory), 4)
    for weights, size in WEIGHTS.items():
        for compiled in (False, True):
            name = f"{weights}-{'compiled' if compiled else 'prepared'}"
            makers[name] = lambda weights=weights, size=size, compiled=compiled: _prepared(
                directory, weights, size, compiled
            )
    return options.chosen(makers)


def _prepared(directory: Path, weights: str, size: int, compiled: bool) -> Row:
    model = load_ours(directory)
    began = time.perf_counter()
    fast = model.prepare_for_inference(weights=weights, compile=compiled)
    took = time.perf_counter() - began
    fast.generation_config.eos_token_id = None
    return replace(_ours(fast, size), prepared_in=took)


def _ours(model: GPT2LMHeadModel, size: int) -> Row:
    def generate(ids: Tensor, new: int) -> Tensor:
        return model.generate(ids, max_new_tokens=new, do_sample=False)[:, ids.shape[1] :]

    return Row(generate, size, model)


def _transformers(directory: Path) -> Row:
    model = load_transformers(directory, dtype=torch.float32)

    def generate(ids: Tensor, new: int) -> Tensor:
        mask = torch.ones_like(ids)
        whole = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)
        return whole[:, ids.shape[1] :]

    return Row(generate, 4, model)


def _transformers_loop(directory: Path) -> Row:
    """For reference: its forward pass in a loop of three lines, without its generate."""
    model = load_transformers(directory, dtype=torch.float32)

    @torch.no_grad()
    def generate(ids: Tensor, new: int) -> Tensor:
        cache, found = None, []
        for _ in range(new):
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            found.append(ids)
        return torch.cat(found, dim=1)

    return Row(generate, 4)


def _ctranslate2(directory: Path, kind: str, threads: int) -> Row:
    import ctranslate2

    converted = directory.parent / "ctranslate2"
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(str(directory)).convert(str(converted))
    generator = ctranslate2.Generator(
        str(converted), device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads
    )
    tokenizer = GPT2Tokenizer.from_pretrained(directory)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))

    def generate(ids: Tensor, new: int) -> Tensor:
        results = generator.generate_batch(
            [[tokens[i] for i in row] for row in ids.tolist()],
            beam_size=1,
            sampling_topk=1,
            max_length=new,
            min_length=new,  # the end of a text does not stop it
            include_prompt_in_result=False,  # and so the prompt is one pass, as everywhere here
        )
        return torch.tensor([result.sequences_ids[0] for result in results])

    return Row(generate, WEIGHTS[kind])


# ---------------------------------------------------------------------------------- the parts


def run(options: Options) -> None:
    """Print the tables of the parts that are asked for, and the goals."""
    torch.set_num_threads(options.threads)
    limits.print_gemm_rates(torch.float32, torch.bfloat16, threads=options.threads)
    goals = Goals()
    if options.has("b1") or options.has("b8") or options.has("positions"):
        with tempfile.TemporaryDirectory() as made:
            directory = Path(made) / "work"
            makers = row_makers(directory, options)
            make_checkpoint(directory, options.shape)
            rows = {name: make() for name, make in makers.items()}
            for batch in (1, 8):
                if options.has(f"b{batch}"):
                    speed(rows, batch, options, goals)
            if options.has("positions"):
                positions(rows, options, goals)
    if options.has("perplexity"):
        perplexities(goals)
    goals.show()


def speed(rows: dict[str, Row], batch: int, options: Options, goals: Goals) -> None:
    """Tokens per second of every row at one batch size."""
    config = config_of(options.shape)
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(config.vocab_size - 1, (batch, PROMPT), generator=generator)
    print(f"\nB={batch}, {PROMPT} + {NEW} tokens, {options.rounds} rounds")
    setup, found = {}, {}
    for name, row in rows.items():
        progress(f"first call: {name}")
        began = time.perf_counter()
        found[name] = row.generate(ids, NEW)
        setup[name] = time.perf_counter() - began
        if found[name].shape != (batch, NEW):
            raise SystemExit(f"{name} made {tuple(found[name].shape)} tokens, not {(batch, NEW)}")
    expected = next(iter(found.values()))
    takers: dict[str, Callable[[], Any]] = {
        name: lambda row=row: Sample(
            first=seconds(lambda: row.generate(ids, 1)),
            call=seconds(lambda: row.generate(ids, NEW)),
        )
        for name, row in rows.items()
    }
    samples = in_turns({limits.READ: limits.Stream(), **takers}, options.rounds)
    reads = samples.pop(limits.READ)
    read = median(reads)
    print(
        f"stream read, in the same rounds: {read / limits.GIGA:.1f} GB/s "
        f"({min(reads) / limits.GIGA:.1f} to {max(reads) / limits.GIGA:.1f})"
    )
    steps = {name: median(s.steps for s in taken) for name, taken in samples.items()}
    calls = {name: median(s.call for s in taken) for name, taken in samples.items()}
    peers = [peer for peer in ("transformers", "ctranslate2-int8") if peer in rows]
    print(
        f"{'':20}{'tok/s steps':>12}{'tok/s call':>12}{'ms/step':>9}{'of limit':>10}"
        + "".join(f"{'/' + peer:>18}{'(call)':>8}" for peer in peers)
        + f"{'prepare s':>11}{'first call':>12}{'same ids':>10}"
    )
    shares = {}
    for name, row in rows.items():
        step = steps[name] / (NEW - 1)
        shares[name] = limits.read_per_step(config, row.bytes_per_weight) / read / step
        line = f"{name:20}{batch / step:12.1f}{batch * NEW / calls[name]:12.1f}{1000 * step:9.2f}"
        line += f"{shares[name]:10.2f}"
        for peer in peers:
            line += f"{steps[peer] / steps[name]:17.2f}x{calls[peer] / calls[name]:7.2f}x"
        same = (found[name] == expected).float().mean().item()
        print(line + f"{row.prepared_in:11.2f}{setup[name]:12.2f}{same:10.0%}", flush=True)
    print("of limit: the weights' bytes, read once per step, at the stream's speed / the step")
    print("same ids: as the first row's; where weights are rounded, random ones make other ids")
    print(
        "prepare, first call: seconds, with compiling or reading torch's cache; no part of the rest"
    )
    speed_goals(goals, batch, steps, calls, shares)


def speed_goals(
    goals: Goals,
    batch: int,
    steps: dict[str, float],
    calls: dict[str, float],
    shares: dict[str, float],
) -> None:
    """Each goal of the issue for this batch size: of the steps, and of the whole call."""
    by_weights = {weights: [f"{weights}-compiled", f"{weights}-prepared"] for weights in WEIGHTS}
    fastest = [name for names in by_weights.values() for name in names] + ["eager"]
    if batch == 1:
        wanted = [
            ("fp32 eager", ["eager"], "transformers", 1.4),
            ("fp32 compiled", ["float32-compiled"], "transformers", 2.0),
            ("bf16 weights", by_weights["bfloat16"], "ctranslate2-int8", 1.4),
            ("int8 weights", by_weights["int8"], "ctranslate2-int8", 2.0),
            ("int8 weights", by_weights["int8"], "transformers", 5.0),
        ]
    else:
        wanted = [("best dtype", fastest, "ctranslate2-int8", 1.5)]
    for what, names, peer, least in wanted:
        for way, taken in (("steps", steps), ("call", calls)):
            ours = min((taken[name] for name in names if name in taken), default=None)
            task = f"decode B={batch}, {what}, {way}"
            goals.add(task, ratio(taken.get(peer), ours), ">=", least, f"x {peer}")
    if batch == 1:
        task = "decode B=1, fp32 compiled, share of the bandwidth limit"
        goals.add(task, shares.get("float32-compiled"), ">=", 0.85)


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to show."""


def positions(rows: dict[str, Row], options: Options, goals: Goals) -> None:
    """What a step costs late in the context, over what it costs early."""
    vocab_size = config_of(options.shape).vocab_size
    timed = {name: row for name, row in rows.items() if row.model is not None}

    def step(row: Row, position: int) -> float:
        # The first new token comes with the prompt's pass; the steps behind it are timed.
        ids = torch.randint(vocab_size - 1, (1, position - STEPS // 2))
        clock = Clock()
        row.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS + 1, do_sample=False,
            streamer=clock,
        )  # fmt: skip
        times = clock.times[1:]  # the first is the prompt's
        return median(b - a for a, b in pairwise(times))

    samples = in_turns(
        {name: lambda row=row: (step(row, EARLY), step(row, LATE)) for name, row in timed.items()},
        options.rounds,
    )
    print(f"\nms of a step around a position, B=1{'':6}{EARLY:>10}{LATE:>10}     ratio")
    for name, taken in samples.items():
        early, late = (1000 * median(one[i] for one in taken) for i in (0, 1))
        print(f"{name:41}{early:10.2f}{late:10.2f}{late / early:10.2f}")
        if not name.startswith("transformers"):
            task = f"decode, step at {LATE} over step at {EARLY}, {name}"
            goals.add(task, late / early, "<=", 1.3, "x")


def perplexities(
    goals: Goals, *, stories: int = 200, one_by_one: int = 8, compiled: bool = True
) -> None:
    """The embedded model's perplexity on stories it has not seen, by kind of weights.

    Of many stories, each in one pass; and of a few token by token, as decoding computes them.
    """
    from stories import held_out_stories

    tokenizer = GPT2Tokenizer.from_pretrained(STORIES)
    model = GPT2LMHeadModel.from_pretrained(STORIES)
    texts = [story.text for story in held_out_stories(stories)]
    few = [tokenizer(END + text, return_tensors="pt")["input_ids"] for text in texts[:one_by_one]]

    def whole(of: GPT2LMHeadModel) -> float:
        scored = of.score(texts, tokenizer=tokenizer, add_bos=True)
        return (-scored.sum.sum() / scored.count.sum()).exp().item()

    plain, plain_few = whole(model), _token_by_token(model, few)
    print(f"\nperplexity of {STORIES.name} on {stories} held-out stories, each in one pass; "
          f"and on {one_by_one} of them token by token")  # fmt: skip
    print(f"{'plain':12}{plain:10.4f}{'':10}{plain_few:10.4f}")
    for weights in WEIGHTS:
        fast = model.prepare_for_inference(weights=weights, compile=compiled)
        found, found_few = whole(fast), _token_by_token(fast, few)
        change, change_few = 100 * (found / plain - 1), 100 * (found_few / plain_few - 1)
        print(f"{weights:12}{found:10.4f}{change:+8.3f} %{found_few:10.4f}{change_few:+8.3f} %")
        worst = max(abs(change), abs(change_few))
        goals.add(f"perplexity with {weights} weights, change", worst, "<=", 1.0, " %")


@torch.no_grad()
def _token_by_token(model: GPT2LMHeadModel, texts: list[Tensor]) -> float:
    """Perplexity of texts (1, T), computed with a cache, one step per token."""
    lost, count = 0.0, 0
    for ids in texts:
        cache = None
        for i in range(ids.shape[1] - 1):
            output = model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            lost -= output.logits[0, -1].float().log_softmax(-1)[ids[0, i + 1]].item()
            count += 1
    return math.exp(lost / count)
