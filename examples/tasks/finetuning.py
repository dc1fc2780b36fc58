"""What the task examples share: the command line, batches, a training loop, the last line.

Each example says what is special about its task in a function ``step(stories)``, which returns
the loss of a batch and which of its answers are right; this file calls it for training and for
the held-out set.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gpt2
from gpt2.training.lora import LoraConfig, adapted_layers, add_lora, drop_lora, merge_lora

EXAMPLES = Path(__file__).resolve().parents[1]
CHECKPOINT = EXAMPLES / "stories-gpt2"
sys.path.insert(0, str(EXAMPLES))  # the stories are modules beside this directory

from stories import Story, held_out_stories, training_stories  # noqa: E402

# A batch -> its loss, and for each thing to be told whether it was told right (bool, any shape).
Step = Callable[[list[Story]], tuple[Tensor, Tensor]]

_START = time.perf_counter()


@dataclass(frozen=True)
class Lora:
    """What ``--lora`` stands for in a task: adapters below 2 % of the parameters, head included.

    ``targets`` are layers by commas, or all-linear. ``lr`` is that of each linear adapter's B,
    several times that of whole weights; A and the head learn at ``lr / ratio`` (as A does in
    LoRA+, arXiv:2402.12354), an embedding's A, which is the half that begins at 0, in between.
    """

    lr: float
    steps: int
    rank: int = 8
    targets: str = "c_attn"
    ratio: float = 1.0


def parse_options(
    description: str | None,
    *,
    steps: int,
    lr: float = 1e-3,
    batch_size: int = 16,
    held_out: int = 1000,
    lora: Lora | None = None,
    more: Callable[[argparse.ArgumentParser], Any] | None = None,
) -> argparse.Namespace:
    """The options of the command line; seeds torch and says what runs.

    ``steps``, ``lr``, ``batch_size`` and ``held_out`` (stories to measure on) are those of a full
    run; ``lora`` is what differs with adapters, None where there is nothing to adapt; ``more``
    may add options.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a few steps, in seconds, to see that it runs")
    add("--seed", type=_seed, default=0, help="of the stories, the new head and dropout")
    add("--steps", type=_positive, help=f"optimizer steps (default: {steps}{_with(lora, 'steps')})")
    add("--lr", type=float, help=f"highest learning rate (default: {lr:g}{_with(lora, 'lr')})")
    add("--save", type=Path, metavar="DIR", help="write model and tokenizer there")
    if lora is not None:
        add("--lora", action="store_true", help="train adapters and the new head, nothing else")
        add("--rank", type=_positive, default=lora.rank, help="of the adapters (%(default)s)")
        add("--targets", default=lora.targets, help="layers to adapt, by commas (%(default)s)")
    if more is not None:
        more(parser)
    options = parser.parse_args()
    if lora is not None and options.lora:
        steps, lr, options.ratio = lora.steps, lora.lr, lora.ratio
    options.steps = options.steps or (3 if options.quick else steps)
    options.lr = lr if options.lr is None else options.lr
    options.batch_size = 4 if options.quick else batch_size
    options.held_out = 16 if options.quick else held_out
    torch.manual_seed(options.seed)
    print(
        f"gpt2 {gpt2.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU "
        f"threads, float32, seed {options.seed}: {options.steps} steps of {options.batch_size} "
        "stories",
        file=sys.stderr,
    )
    return options


def _with(lora: Lora | None, name: str) -> str:
    return "" if lora is None else f", with --lora {getattr(lora, name):g}"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 900_000:
        raise argparse.ArgumentTypeError(f"must be from 0 to 899999, not {number}")
    return number


# Batches ---------------------------------------------------------------------------------


def batches(stories: Iterable[Story], size: int, pool: int = 32) -> Iterator[list[Story]]:
    """Batches of stories of about the same length, so that little is padded.

    ``pool`` batches at a time are sorted by length, cut, and given in random order.
    """
    stories = iter(stories)
    order = random.Random(0)
    while some := list(itertools.islice(stories, size * pool)):
        some.sort(key=lambda story: len(story.text))
        cut = [some[start : start + size] for start in range(0, len(some), size)]
        order.shuffle(cut)
        yield from cut


# Training and measuring ------------------------------------------------------------------


def train(
    model: nn.Module,
    step: Step,
    options: argparse.Namespace,
    head: str | None = None,
) -> None:
    """AdamW over new stories, with warm-up, a linear decay to 0 and clipped gradients.

    ``head`` is the new part of the model, which LoRA trains as a whole.
    """
    if getattr(options, "lora", False):
        adapt(model, options, head)
    groups = rates(model, options.lr, getattr(options, "ratio", 1.0))
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01)
    steps, warmup = options.steps, max(1, options.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / warmup, (steps - done) / (steps - warmup + 1))
    )
    # Seed 0 is what the checkpoint was trained on.
    stories = batches(training_stories(seed=options.seed + 1), options.batch_size)
    bar = Bar(options.steps)
    model.train()
    for number, batch in enumerate(itertools.islice(stories, options.steps), 1):
        loss, right = step(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.show(number, loss.item(), right.float().mean().item())


def rates(model: nn.Module, lr: float, ratio: float) -> list[dict[str, Any]]:
    """What trains, as groups for the optimizer, with their learning rates; see `Lora`."""
    shares = {"lora_B": 1.0, "lora_embedding_A": ratio**-0.5, "": 1 / ratio}  # the first that fits
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in shares}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[next(part for part in shares if part in name)].append(parameter)
    return [{"params": groups[part], "lr": lr * share} for part, share in shares.items()]


def adapt(model: nn.Module, options: argparse.Namespace, head: str | None) -> None:
    """Give the model adapters, as the command line says, and freeze all else but the head."""
    targets = options.targets if options.targets == "all-linear" else options.targets.split(",")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        target_modules=targets,
        modules_to_save=[] if head is None else [head],
    )
    whole, note = sum(p.numel() for p in model.parameters()), ""
    if hasattr(model, "lm_head") and model.lm_head.weight is not model.transformer.wte.weight:
        whole -= model.lm_head.weight.numel()  # so that untying does not make the share look small
        note = "; the head's copy of the embedding is not counted"
    add_lora(model, config)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"  LoRA of rank {options.rank} in {options.targets}: {count:,} of {whole:,} parameters "
        f"train ({count / whole:.2%}){note}"
    )


@torch.inference_mode()
def evaluate(model: nn.Module, step: Step, stories: Sequence[Story]) -> tuple[float, Tensor]:
    """Mean loss of the batches, and all that ``step`` found right or wrong, end to end."""
    model.eval()
    results = [step(batch) for batch in batches(stories, 32)]
    losses, rights = zip(*results, strict=True)
    return torch.stack(losses).mean().item(), torch.cat(rights)


def majority(truths: Iterable[Hashable]) -> float:
    """The accuracy of always saying what is most often true of these."""
    counts = Counter(truths)
    return max(counts.values()) / counts.total()


class Bar:
    """Progress on stderr: a bar on a terminal, elsewhere a line every 10 seconds."""

    def __init__(self, steps: int) -> None:
        self.steps, self.start, self.last = steps, time.perf_counter(), 0.0
        self.loss, self.accuracy = 0.0, 0.0

    def show(self, step: int, loss: float, accuracy: float) -> None:
        """Report after ``step`` (from 1), unless the last report was a moment ago.

        Loss and accuracy are smoothed over about 20 steps.
        """
        weight = max(0.05, 1 / step)
        self.loss += weight * (loss - self.loss)
        self.accuracy += weight * (accuracy - self.accuracy)
        terminal, now = sys.stderr.isatty(), time.perf_counter()
        if now - self.last < (0.2 if terminal else 10) and step < self.steps:
            return
        self.last = now
        done = 20 * step // self.steps
        left = round((now - self.start) / step * (self.steps - step))
        text = (
            f"[{'#' * done}{'.' * (20 - done)}] step {step}/{self.steps}  loss {self.loss:.3f}  "
            f"accuracy {self.accuracy:.1%}  {left // 60}:{left % 60:02d} left"
        )
        end = "\n" if step == self.steps or not terminal else ""
        print(f"\r{text:<90}" if terminal else text, end=end, file=sys.stderr, flush=True)


def report(task: str, accuracy: float, baseline: float, what: str) -> None:
    """The last line: the accuracy on the held-out set beside that of the baseline ``what``."""
    print(
        f"{task}: held-out accuracy {accuracy:.1%}, baseline {baseline:.1%} ({what}), "
        f"{time.perf_counter() - _START:.0f} s, torch {torch.__version__}"
    )


def save(options: argparse.Namespace, *parts: Any) -> None:
    """Write model, adapters merged, and tokenizer, if the command line says where."""
    if options.save is not None:
        for part in parts:
            if isinstance(part, nn.Module) and adapted_layers(part):
                merge_lora(part)
                drop_lora(part)
            part.save_pretrained(options.save)


def held_out(options: argparse.Namespace) -> list[Story]:
    """The stories to measure on, the same ones whatever the seed; none is ever trained on."""
    return list(held_out_stories(options.held_out))
