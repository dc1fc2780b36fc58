"""Fine-tune GPT-2 on prompts and completions, in a loop that may be killed at any moment.

    python examples/finetune.py --run runs/quizzes
    python examples/finetune.py --run runs/mine --data mine.jsonl --model openai-community/gpt2

Each line of the data is {"prompt": …, "completion": …}; without --data the rows are questions
about the stories, and the model is the embedded one. Only completions are learned. The
directory --run holds everything: state.pt, from which the same command goes on after a kill, with
the losses that it would have had; losses.jsonl; loss.png; best/, the checkpoint with the lowest
held-out loss so far. Training ends early when that has not fallen for --patience evaluations.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from gpt2 import GPT2LMHeadModel
    from gpt2.training.collate import CompletionCollator

Rows = list[dict[str, str]]

EMBEDDED = Path(__file__).resolve().parent / "stories-gpt2"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="directory of this run; there already: go on")
    add("--model", default=str(EMBEDDED), help="hub name or directory (default: the stories)")
    add("--data", type=Path, help="JSON lines with prompt and completion")
    add("--held-out", type=int, default=200, help="rows at the end of the data to measure on")
    add("--steps", type=int, default=300, help="optimizer steps (default: 300)")
    add("--batch-size", type=int, default=16, help="rows per step (default: 16)")
    add("--micro-batches", type=int, default=1, help="backward passes per step (default: 1)")
    add("--lr", type=float, default=1e-3, help="learning rate at its highest (default: 0.001)")
    add("--evaluate-every", type=int, default=50, help="steps (default: 50)")
    add("--save-every", type=int, default=50, help="steps (default: 50)")
    add("--patience", type=int, default=3, help="evaluations without a new best (default: 3)")
    add("--seed", type=int, default=0, help="of the order of the rows, and of dropout")
    add("--no-plot", dest="plot", action="store_false", help="no loss curve, no matplotlib")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("the loss curve needs matplotlib: pip install matplotlib, or --no-plot")
    if options.batch_size % options.micro_batches:
        parser.error(f"--batch-size {options.batch_size} is no multiple of --micro-batches")
    return options


def read_rows(options: argparse.Namespace) -> tuple[Rows, Rows]:
    """Training rows and held-out rows."""
    if options.data is not None:
        lines = options.data.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    else:
        from itertools import islice

        from stories import held_out_stories, training_stories

        def quiz(story: Any) -> dict[str, str]:
            prompt = f"<|endoftext|>{story.text} Question: {story.question} Answer:"
            return {"prompt": prompt, "completion": f" {story.answer}."}

        # Seed 0 is what the embedded model was trained on.
        rows = [quiz(story) for story in islice(training_stories(seed=options.seed + 1), 4000)]
        rows += [quiz(story) for story in held_out_stories(options.held_out)]
    if len(rows) <= options.held_out:
        sys.exit(f"{len(rows)} rows leave none to train on behind --held-out {options.held_out}")
    return rows[: -options.held_out], rows[-options.held_out :]


def batch_of(rows: Rows, step: int, size: int, seed: int) -> Rows:
    """The rows of one step: every epoch has its own order, which follows from the seed alone."""
    places = (divmod(place, len(rows)) for place in range(step * size, (step + 1) * size))
    return [rows[order(len(rows), seed, epoch)[number]] for epoch, number in places]


@cache
def order(count: int, seed: int, epoch: int) -> list[int]:
    shuffled = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(shuffled)
    return shuffled


def main() -> int:
    options = parse_options()
    # torch takes seconds to import: after the arguments, so that mistakes in them do not.
    import torch

    import gpt2
    from gpt2.training.collate import CompletionCollator
    from gpt2.training.optim import cosine_with_warmup, parameter_groups

    options.run.mkdir(parents=True, exist_ok=True)
    state_file = options.run / "state.pt"
    settings = {k: str(v) for k, v in vars(options).items() if k not in ("run", "plot")}
    state = torch.load(state_file, weights_only=True) if state_file.exists() else None
    if state is not None and state["settings"] != settings:
        changed = [k for k in settings if state["settings"].get(k) != settings[k]]
        sys.exit(
            f"{state_file} was made with other settings ({', '.join(changed)}); give those, or "
            "another --run"
        )
    torch.manual_seed(options.seed)
    training, held_out = read_rows(options)
    tokenizer = gpt2.GPT2Tokenizer.from_pretrained(options.model)
    model = gpt2.GPT2LMHeadModel.from_pretrained(options.model)
    collate = CompletionCollator(
        tokenizer, max_length=model.config.n_positions, truncation="prompt"
    )
    # fused: one pass over the parameters, without a second copy of them
    optimizer = torch.optim.AdamW(
        parameter_groups(model), lr=options.lr, betas=(0.9, 0.95), fused=True
    )
    schedule = cosine_with_warmup(
        optimizer, warmup_steps=options.steps // 20, total_steps=options.steps
    )
    begun, best, since_best = 0, float("inf"), 0
    losses: list[dict[str, float]] = []
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        begun, best, since_best = state["step"], state["best"], state["since_best"]
        losses = state["losses"]
    print(
        f"gpt2 {gpt2.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU "
        f"threads, float32; {len(training)} rows, steps {begun + 1} to {options.steps}",
        file=sys.stderr,
    )

    bar = Bar(begun, options.steps)
    over = since_best >= options.patience
    for step in range(begun + 1, begun + 1 if over else options.steps + 1):
        rows = batch_of(training, step - 1, options.batch_size, options.seed)
        loss, tokens = train_step(model, optimizer, collate, rows, options.micro_batches)
        schedule.step()
        losses.append({"step": step, "loss": loss})
        if step % options.evaluate_every == 0 or step == options.steps:
            held = held_out_loss(model, collate, held_out)
            losses[-1]["held_out"] = held
            since_best = 0 if held < best else since_best + 1
            if held < best:
                best = held
                model.save_pretrained(options.run / "best", tokenizer=tokenizer)
        bar.show(step, losses, tokens)
        ended = step == options.steps or since_best >= options.patience
        if step % options.save_every == 0 or ended:
            write_whole(
                state_file,
                {
                    "settings": settings, "step": step, "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                    "rng": torch.get_rng_state(), "losses": losses, "best": best,
                    "since_best": since_best,
                },
            )  # fmt: skip
            lines = "".join(json.dumps(entry) + "\n" for entry in losses)
            (options.run / "losses.jsonl").write_text(lines)
        if ended:
            break
    if options.plot:
        draw(losses, options.run / "loss.png")
    print(f"best held-out loss {best:.4f} nats per token of a completion, in {options.run}/best")
    return 0


def train_step(
    model: GPT2LMHeadModel,
    optimizer: torch.optim.Optimizer,
    collate: CompletionCollator,
    rows: Rows,
    micro_batches: int,
) -> tuple[float, int]:
    """One optimizer step; returns the loss of the whole batch and its number of real tokens.

    The micro-batches add up to that batch exactly: each sum of losses is divided by the number
    of completion tokens in all of them, not by its own.
    """
    import torch

    size = len(rows) // micro_batches
    batches = [collate(rows[start : start + size]) for start in range(0, len(rows), size)]
    items = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    model.train()
    total = 0.0
    for batch in batches:
        loss = model(**batch, num_items_in_batch=items, return_logits=False).loss
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total, sum(int(batch["attention_mask"].sum()) for batch in batches)


def held_out_loss(model: GPT2LMHeadModel, collate: CompletionCollator, rows: Rows) -> float:
    """Mean over all completion tokens of the rows; leaves the random numbers as they were."""
    import torch

    model.eval()
    total, items = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(rows), 32):
            batch = collate(rows[start : start + 32])
            count = int((batch["labels"][:, 1:] != -100).sum())
            total += model(**batch).loss.item() * count
            items += count
    return total / items


def write_whole(path: Path, state: dict[str, Any]) -> None:
    """Write the state so that a kill leaves the old one or the new one, and no half of either."""
    import torch

    new = path.with_suffix(".new")
    with open(new, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


class Bar:
    """Progress on stderr: a bar on a terminal, elsewhere a line every 10 seconds."""

    def __init__(self, begun: int, steps: int) -> None:
        self.begun, self.steps, self.tokens = begun, steps, 0
        self.start, self.last = time.perf_counter(), 0.0

    def show(self, step: int, losses: list[dict[str, float]], tokens: int) -> None:
        self.tokens += tokens
        now, terminal = time.perf_counter(), sys.stderr.isatty()
        if now - self.last < (0.2 if terminal else 10) and step < self.steps:
            return
        self.last = now
        seconds, done = now - self.start, 20 * step // self.steps
        left = round(seconds / (step - self.begun) * (self.steps - step))
        held = next(
            (f"held out {e['held_out']:.3f}  " for e in losses[::-1] if "held_out" in e), ""
        )
        recent = [entry["loss"] for entry in losses[-20:]]
        text = (
            f"[{'#' * done}{'.' * (20 - done)}] step {step}/{self.steps}  "
            f"loss {sum(recent) / len(recent):.3f}  {held}{self.tokens / seconds:,.0f} tokens/s  "
            f"{left // 60}:{left % 60:02d} left"
        )
        end = "\n" if step == self.steps or not terminal else ""
        print(f"\r{text:<100}" if terminal else text, end=end, file=sys.stderr, flush=True)


def draw(losses: list[dict[str, float]], path: Path) -> None:
    """The loss curve as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([e["step"] for e in losses], [e["loss"] for e in losses], lw=0.6, label="batch")
    held: Iterator[tuple[float, float]] = (
        (e["step"], e["held_out"]) for e in losses if "held_out" in e
    )
    axes.plot(*zip(*held, strict=True), "o-", ms=4, label="held out")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Fine-tuning")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
