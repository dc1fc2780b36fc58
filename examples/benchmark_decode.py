"""Decoding with a cache, greedily: transformers, CTranslate2, this library plain and prepared.

torchao, where it is asked for, is in this library's model: int8 weights with bfloat16 activations
("weights") or with activations that it makes int8 at each call ("dynamic").

A prompt of 32 tokens and 64 new ones; nobody stops earlier. "steps" are what the 63 steps after
the first new token take, that is the whole call less the same call for one token, timed in the
same round; "call" is the whole of it. Ratios and goals are of both. Every row has a process of its
own, and they take turns; figures are medians of the rounds.
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
    Worker,
    config_of,
    in_turns,
    load_ours,
    load_transformers,
    make_checkpoint,
    median,
    progress,
    ratio,
    seconds,
    workers,
)
from torch import Tensor

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer

PARTS = ("b1", "b8", "positions", "perplexity")
PROMPT, NEW = 32, 64
EARLY, LATE, STEPS = 64, 960, 8  # the step's cost at these positions, over so many steps
WEIGHTS = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes of a weight
# row -> bytes of each weight that a step reads
PEER_ROWS = {
    "transformers": 4,
    "transformers-loop": 4,
    "ctranslate2-float32": 4,
    "ctranslate2-int8": 1,
    "torchao-weights": 1,
    "torchao-weights-compiled": 1,
    "torchao-dynamic": 1,
    "torchao-dynamic-compiled": 1,
}
# Without a streamer, and torchao's, which would be compiled again for each length of the cache.
NO_POSITIONS = {"transformers-loop", *(n for n in PEER_ROWS if n.startswith(("ctr", "torchao")))}
PREPARED = {f"{w}-{how}": size for w, size in WEIGHTS.items() for how in ("prepared", "compiled")}
ROWS = {**PEER_ROWS, "eager": 4, **PREPARED}
STORIES = Path(__file__).resolve().parent / "stories-gpt2"

Generate = Callable[[Tensor, int], Tensor]  # prompts (B, T), how many new tokens -> their ids


@dataclass
class Row:
    """One way of decoding, in a process of its own."""

    generate: Generate
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


def make_row(name: str, directory: Path, threads: int) -> Row:
    """One row of ROWS."""
    torch.set_num_threads(threads)
    if name == "transformers":
        return _transformers(directory)
    if name == "transformers-loop":
        return _transformers_loop(directory)
    kind, _, how = name.partition("-")
    if kind == "ctranslate2":
        return _ctranslate2(directory, how, threads)
    if kind == "torchao":
        return _torchao(directory, how)
    model = load_ours(directory)
    if name == "eager":
        return _ours(model)
    began = time.perf_counter()
    fast = model.prepare_for_inference(weights=kind, compile=how == "compiled")
    took = time.perf_counter() - began
    fast.generation_config.eos_token_id = None
    return replace(_ours(fast), prepared_in=took)


def _ours(model: GPT2LMHeadModel) -> Row:
    def generate(ids: Tensor, new: int) -> Tensor:
        return model.generate(ids, max_new_tokens=new, do_sample=False)[:, ids.shape[1] :]

    return Row(generate, model)


def _transformers(directory: Path) -> Row:
    model = load_transformers(directory)

    def generate(ids: Tensor, new: int) -> Tensor:
        mask = torch.ones_like(ids)
        whole = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)
        return whole[:, ids.shape[1] :]

    return Row(generate, model)


def _transformers_loop(directory: Path) -> Row:
    """For reference: its forward pass in a loop of three lines, without its generate."""
    model = load_transformers(directory)

    @torch.no_grad()
    def generate(ids: Tensor, new: int) -> Tensor:
        cache, found = None, []
        for _ in range(new):
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            found.append(ids)
        return torch.cat(found, dim=1)

    return Row(generate)


def _converted(directory: Path) -> Path:
    """Where the checkpoint is in CTranslate2's format."""
    return directory.parent / "ctranslate2"


def _ctranslate2(directory: Path, kind: str, threads: int) -> Row:
    import ctranslate2

    generator = ctranslate2.Generator(
        str(_converted(directory)),
        device="cpu",
        compute_type=kind,
        inter_threads=1,
        intra_threads=threads,
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

    return Row(generate)


def _torchao(directory: Path, how: str) -> Row:
    """Either scheme in the dtype that it is faster with; compiled is the whole step."""
    import torch._inductor.config as compiler
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    dtype, scheme = {
        "weights": (torch.bfloat16, Int8WeightOnlyConfig),
        "dynamic": (torch.float32, Int8DynamicActivationInt8WeightConfig),
    }[how.partition("-")[0]]
    model = load_ours(directory, dtype=dtype)
    quantize_(model, scheme())
    if how.endswith("-compiled"):
        # The weights as constants: steps of 8 ms, not 18, with "dynamic", and 11, not 12.
        compiler.freezing = True
        model.step_compile_mode = "default"
    return _ours(model)


# --------------------------------------------------------------------- what a row's process does


def first_call(row: Row, ids: Tensor) -> tuple[Tensor, float, float]:
    """The new ids, and the seconds of preparing the model and of this call."""
    began = time.perf_counter()
    found = row.generate(ids, NEW)
    return found, row.prepared_in, time.perf_counter() - began


def sample(row: Row, ids: Tensor) -> Sample:
    return Sample(
        first=seconds(lambda: row.generate(ids, 1)), call=seconds(lambda: row.generate(ids, NEW))
    )


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to show."""


def step_costs(row: Row, vocab_size: int) -> tuple[float, float]:
    """Seconds of a step around the EARLY position and around the LATE one."""
    costs = []
    for position in (EARLY, LATE):
        ids = torch.randint(vocab_size - 1, (1, position - STEPS // 2))
        clock = Clock()
        row.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS + 1, do_sample=False,
            streamer=clock,
        )  # fmt: skip
        times = clock.times[1:]  # the first is the prompt's; the next token comes with its pass
        costs.append(median(b - a for a, b in pairwise(times)))
    return costs[0], costs[1]


# ---------------------------------------------------------------------------------- the parts


def run(options: Options) -> None:
    """Print the tables of the parts that are asked for, and the goals."""
    torch.set_num_threads(options.threads)
    limits.print_gemm_rates(torch.float32, torch.bfloat16, threads=options.threads)
    goals = Goals()
    peers = {name.partition("-")[0] for name in PEER_ROWS} - set(options.against)
    names = options.chosen({n: n for n in ROWS if n.partition("-")[0] not in peers})
    if options.has("b1") or options.has("b8") or options.has("positions"):
        with tempfile.TemporaryDirectory() as made:
            directory = Path(made) / "work"
            make_checkpoint(directory, options.shape)
            if any(name.startswith("ctranslate2") for name in names):
                from ctranslate2.converters import TransformersConverter

                TransformersConverter(str(directory)).convert(str(_converted(directory)))
            with workers(names, make_row, directory, options.threads) as rows:
                for batch in (1, 8):
                    if options.has(f"b{batch}"):
                        speed(rows, batch, options, goals)
                if options.has("positions"):
                    positions(rows, options, goals)
    if options.has("perplexity"):
        perplexities(goals)
    goals.show()


def speed(rows: dict[str, Worker], batch: int, options: Options, goals: Goals) -> None:
    """Tokens per second of every row at one batch size."""
    config = config_of(options.shape)
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(config.vocab_size - 1, (batch, PROMPT), generator=generator)
    first = {}
    for name, row in rows.items():
        progress(f"first call: {name}")
        first[name] = row(first_call, ids)
        found = first[name][0].shape
        if found != (batch, NEW):
            raise SystemExit(f"{name} made {tuple(found)} tokens, not {(batch, NEW)}")
    expected = next(iter(first.values()))[0]
    takers: dict[str, Callable[[], Any]] = {
        name: lambda row=row: row(sample, ids) for name, row in rows.items()
    }
    samples = in_turns({limits.READ: limits.Stream(), **takers}, options.rounds)
    reads = samples.pop(limits.READ)
    read = median(reads)
    print(f"\nB={batch}, {PROMPT} + {NEW} tokens, {options.rounds} rounds")
    print(
        f"stream read, in the same rounds: {read / limits.GIGA:.1f} GB/s "
        f"({min(reads) / limits.GIGA:.1f} to {max(reads) / limits.GIGA:.1f})"
    )
    steps = {name: median(s.steps for s in taken) for name, taken in samples.items()}
    calls = {name: median(s.call for s in taken) for name, taken in samples.items()}
    peers = [peer for peer in ("transformers", "ctranslate2-int8") if peer in rows]
    print(
        f"{'':26}{'tok/s steps':>12}{'tok/s call':>12}{'ms/step':>9}{'of limit':>10}"
        + "".join(f"{'/' + peer:>18}{'(call)':>8}" for peer in peers)
        + f"{'prepare s':>11}{'first call':>12}{'same ids':>10}"
    )
    shares = {}
    for name in rows:
        found, prepared_in, call = first[name]
        step = steps[name] / (NEW - 1)
        shares[name] = limits.read_per_step(config, ROWS[name]) / read / step
        line = f"{name:26}{batch / step:12.1f}{batch * NEW / calls[name]:12.1f}{1000 * step:9.2f}"
        line += f"{shares[name]:10.2f}"
        for peer in peers:
            line += f"{steps[peer] / steps[name]:17.2f}x{calls[peer] / calls[name]:7.2f}x"
        same = (found == expected).float().mean().item()
        print(line + f"{prepared_in:11.2f}{call:12.2f}{same:10.0%}", flush=True)
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


def positions(rows: dict[str, Worker], options: Options, goals: Goals) -> None:
    """What a step costs late in the context, over what it costs early."""
    vocab_size = config_of(options.shape).vocab_size
    timed = {name: row for name, row in rows.items() if name not in NO_POSITIONS}
    samples = in_turns(
        {name: lambda row=row: row(step_costs, vocab_size) for name, row in timed.items()},
        options.rounds,
    )
    print(f"\nms of a step around a position, B=1{'':6}{EARLY:>10}{LATE:>10}     ratio")
    for name, taken in samples.items():
        early, late = (1000 * median(one[i] for one in taken) for i in (0, 1))
        print(f"{name:41}{early:10.2f}{late:10.2f}{late / early:10.2f}")
        if name not in PEER_ROWS:
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
