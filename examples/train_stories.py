"""Train the small GPT-2 that the examples start from: tokenizer, model, loss curve.

    python examples/train_stories.py

learns a vocabulary and a 1.4-million-parameter model from the made-up stories of ``stories.py``
(every training story is seen once) and writes both to ``examples/stories-gpt2``, in Hugging
Face format, weights in float16. About a quarter of an hour on two CPU cores; ``--quick`` runs
the whole of it in seconds, to see that it works.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stories import Story, held_out_stories, training_stories

if TYPE_CHECKING:
    import torch

    from gpt2 import GPT2LMHeadModel, GPT2Tokenizer

END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """The sizes of a run; ``width`` is the length of a training row in tokens."""

    steps: int = 9000
    batch_size: int = 4
    vocab_size: int = 1024
    width: int = 256
    n_embd: int = 160
    n_layer: int = 4
    n_head: int = 4
    learning_rate: float = 3e-3
    warmup: int = 200
    corpus: int = 5000  # stories that the vocabulary is learnt from
    held_out: int = 256  # rows of the held-out set
    evaluations: int = 10


FULL = Recipe()
QUICK = Recipe(
    steps=6, batch_size=4, vocab_size=400, n_embd=32, n_layer=2, n_head=2, warmup=2, corpus=100,
    held_out=8, evaluations=2,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training; returns the exit status."""
    options = _parse(argv)
    base = QUICK if options.quick else FULL
    recipe = Recipe(**{
        **vars(base),
        "steps": options.steps or base.steps,
        "batch_size": options.batch_size or base.batch_size,
        "vocab_size": options.vocab_size or base.vocab_size,
    })  # fmt: skip
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        print(
            "The loss curve is drawn with matplotlib, which is not installed.\n"
            "Install it (pip install matplotlib), or pass --no-plot.",
            file=sys.stderr,
        )
        return 2
    # torch takes seconds to import: after the arguments, so that mistakes in them do not.
    import torch

    import gpt2

    began = time.perf_counter()
    torch.manual_seed(options.seed)
    print(
        f"gpt2 {gpt2.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU "
        f"threads, float32, seed {options.seed}"
    )
    corpus = training_stories(recipe.corpus, seed=options.seed)
    tokenizer = gpt2.GPT2Tokenizer.train(
        (story.text for story in corpus),
        vocab_size=recipe.vocab_size,
        special_tokens=(END,),
        show_progress=True,
        model_max_length=recipe.width,
    )
    model = _new_model(tokenizer, recipe)
    print(f"{len(tokenizer)} tokens, {model.num_parameters() / 1e6:.2f} million parameters")
    curve = _train(model, tokenizer, recipe, options.seed)
    tokenizer.save_pretrained(options.output)
    model.half().save_pretrained(options.output)
    if options.plot:
        curve.draw(options.output / "loss.png")

    # What counts is what was written: read it back and measure that.
    stored = gpt2.GPT2LMHeadModel.from_pretrained(options.output)
    held_out = _rows(tokenizer, held_out_stories(), recipe.width, recipe.held_out)
    loss = _held_out_loss(stored, held_out)
    print(f"held-out loss {loss:.4f} nats per token, perplexity {math.exp(loss):.3f}")
    print(f"a sample:\n\n{_sample(stored, tokenizer)}\n")
    size = sum(file.stat().st_size for file in options.output.iterdir() if file.is_file())
    print(f"{size / 1e6:.2f} MB in {options.output}, {time.perf_counter() - began:.0f} s in all")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = Path(__file__).resolve().parent / "stories-gpt2"
    add("--output", type=Path, default=default, help="directory to write (default: stories-gpt2)")
    add("--steps", type=_positive, help=f"optimizer steps (default: {FULL.steps})")
    add("--batch-size", type=_positive, help=f"rows per step (default: {FULL.batch_size})")
    add("--vocab-size", type=_positive, help=f"tokens (default: {FULL.vocab_size})")
    add("--seed", type=int, default=0, help="of the stories and of the weights (default: 0)")
    add("--quick", action="store_true", help="a tiny model and a few steps, in seconds")
    add("--no-plot", dest="plot", action="store_false", help="no loss curve, no matplotlib")
    options = parser.parse_args(argv)
    if options.vocab_size is not None and options.vocab_size < 257:
        parser.error(f"--vocab-size must be at least 257 (256 bytes, {END}), not "
                     f"{options.vocab_size}")  # fmt: skip
    if options.quick and options.output == default:
        parser.error("--quick would write a toy over the embedded model: give an --output")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


# Data ------------------------------------------------------------------------------------


def _rows(
    tokenizer: GPT2Tokenizer, stories: Iterator[Story], width: int, count: int
) -> torch.Tensor:
    """``count`` rows of ``width`` ids (int64), each ``<|endoftext|>`` story ``<|endoftext|>`` ….

    A row begins with a whole story, as a text does that the model is asked to continue; its
    last story is cut off where the row is full.
    """
    import torch

    end: list[int] = tokenizer.encode(END)
    rows: list[list[int]] = []
    while len(rows) < count:
        ids = list(end)
        while len(ids) < width:
            ids += [*tokenizer.encode(next(stories).text), *end]
        rows.append(ids[:width])
    return torch.tensor(rows)


# Training --------------------------------------------------------------------------------


def _new_model(tokenizer: GPT2Tokenizer, recipe: Recipe) -> GPT2LMHeadModel:
    import gpt2

    config = gpt2.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.width,
        n_embd=recipe.n_embd,
        n_layer=recipe.n_layer,
        n_head=recipe.n_head,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # No story is seen twice, so there is nothing to guard against by dropout.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return gpt2.GPT2LMHeadModel(config)


def _train(
    model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, recipe: Recipe, seed: int
) -> LossCurve:
    """AdamW, decay on matrices only, cosine schedule after a warm-up, clipped gradients."""
    import torch

    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step, recipe)
    )
    held_out = _rows(tokenizer, held_out_stories(), recipe.width, recipe.held_out)
    stories = training_stories(seed=seed)
    curve = LossCurve()
    progress = Progress(recipe.steps, recipe.batch_size * recipe.width)
    interval = max(1, recipe.steps // recipe.evaluations)
    model.train()
    for step in range(1, recipe.steps + 1):
        ids = _rows(tokenizer, stories, recipe.width, recipe.batch_size)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        curve.training.append((step, loss.item()))
        if step % interval == 0 or step == recipe.steps:
            curve.held_out.append((step, _held_out_loss(model, held_out)))
            model.train()
        progress.show(step, curve)
    progress.end()
    return curve


def _learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear from 0 to 1 over the warm-up, then half a cosine down to 0.02."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, done))) / 2


def _held_out_loss(model: GPT2LMHeadModel, rows: torch.Tensor, batch_size: int = 32) -> float:
    """Mean loss in nats per token over rows of equal length; leaves the model in eval mode."""
    import torch

    model.eval()
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            ids = rows[start : start + batch_size]
            total += model(input_ids=ids, labels=ids).loss.item() * len(ids)
    return total / len(rows)


def _sample(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer) -> str:
    import torch

    start = torch.tensor([[tokenizer.eos_token_id]])
    ids = model.generate(
        start, max_length=model.config.n_positions, do_sample=True, temperature=0.7, top_k=50
    )
    return tokenizer.decode(ids[0], skip_special_tokens=True)


# What is seen of it ----------------------------------------------------------------------


@dataclass
class LossCurve:
    """(step, loss in nats per token) of the training batches and of the held-out set."""

    training: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)

    def draw(self, path: Path) -> None:
        """Write the curve as a PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*self.training, strict=True), linewidth=0.6, label="training batch")
        axes.plot(*zip(*self.held_out, strict=True), "o-", markersize=4, label="held out")
        axes.set(xlabel="step", ylabel="loss (nats per token)", title="Stories: loss")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=100)


@dataclass
class Progress:
    """Progress on stderr: a bar on a terminal, elsewhere a line every ``every`` seconds."""

    steps: int
    tokens_per_step: int
    every: float = 20.0
    began: float = field(default_factory=time.perf_counter)
    last: float = -math.inf

    def show(self, step: int, curve: LossCurve) -> None:
        """Report after ``step``, unless the last report was a moment ago."""
        terminal = sys.stderr.isatty()
        now = time.perf_counter()
        if now - self.last < (0.2 if terminal else self.every) and step < self.steps:
            return
        self.last = now
        seconds = now - self.began
        recent = [loss for _, loss in curve.training[-20:]]
        done = int(20 * step / self.steps)
        text = (
            f"[{'#' * done}{'.' * (20 - done)}] step {step}/{self.steps}  "
            f"loss {sum(recent) / len(recent):.3f}  "
            + (f"held out {curve.held_out[-1][1]:.3f}  " if curve.held_out else "")
            + f"{step * self.tokens_per_step / seconds:,.0f} tokens/s  "
            f"{_minutes(seconds / step * (self.steps - step))} left"
        )
        print(f"\r{text:<100}" if terminal else text, end="" if terminal else "\n",
              file=sys.stderr, flush=True)  # fmt: skip

    def end(self) -> None:
        """Leave the bar's line."""
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    sys.exit(main())
