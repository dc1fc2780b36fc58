"""What a GPT-2 looks at, and how surprised it is: attention and log-probabilities as a PNG.

    python examples/attention_map.py
    python examples/attention_map.py --text "The cat sat" --model openai-community/gpt2 --layer 5

Above, the attention weights of one layer, a map per head: row i shows what token i looks at.
Below, the log-probability of each token given those before it. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EMBEDDED = Path(__file__).resolve().parent / "stories-gpt2"
TEXT = (
    "On a cold day, a girl named Mia came to the lake. She was carrying a red kite. A boy named "
    "Leo sat there and waved. Leo wanted to play with it too, so Mia lent Leo the kite."
)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", default=TEXT, help="what to read (default: the beginning of a story)")
    add("--model", default=str(EMBEDDED), help="hub name or directory (default: the stories model)")
    add("--layer", type=int, default=-1, help="which layer's attention (default: the last)")
    add("--output", type=Path, default=Path("attention.png"), help="default: attention.png")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    if importlib.util.find_spec("matplotlib") is None:
        print("The maps are drawn with matplotlib: pip install matplotlib", file=sys.stderr)
        return 2
    # torch takes seconds to import: after the arguments, so that mistakes in them do not.
    import torch

    from gpt2 import GPT2Error, GPT2LMHeadModel, GPT2Tokenizer

    try:
        tokenizer = GPT2Tokenizer.from_pretrained(options.model)
        model = GPT2LMHeadModel.from_pretrained(options.model)
        # The token that texts begin with, so that the first word has something to follow from
        ids = [tokenizer.bos_token_id, *tokenizer.encode(options.text)]
        with torch.inference_mode():
            output = model(torch.tensor([ids]), output_attentions=True)
    except GPT2Error as error:
        print(error, file=sys.stderr)
        return 1
    layers = len(output.attentions)
    if not -layers <= options.layer < layers:
        print(
            f"--layer must be from {-layers} to {layers - 1}, not {options.layer}", file=sys.stderr
        )
        return 1
    chances = output.logits[0, :-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    names = [tokenizer.decode([i]).replace("\n", "\\n") for i in ids]
    draw(names, output.attentions[options.layer][0], chances, options)
    print(
        f"{len(ids) - 1} tokens, {chances.mean():.3f} nats per token on average; the most "
        f"surprising: {names[1 + int(chances.argmin())]!r} ({chances.min():.2f}); {options.output}"
    )
    return 0


def draw(
    names: list[str], weights: torch.Tensor, chances: torch.Tensor, options: argparse.Namespace
) -> None:
    """``weights`` (H, T, T) of one layer and ``chances`` (T − 1,) in nats, as one PNG."""
    from matplotlib.figure import Figure

    heads, length = weights.shape[:2]
    columns = min(heads, 4)
    rows = -(-heads // columns)
    side = max(3.0, 0.11 * length)
    figure = Figure(figsize=(side * columns, side * rows + 2.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[side * rows, 2.5])
    for head, axes in enumerate(above.subplots(rows, columns, squeeze=False).flat):
        if head >= heads:
            axes.set_axis_off()
            continue
        axes.imshow(weights[head].numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"head {head}", fontsize=9)
        axes.set_xticks(range(length), names, rotation=90, fontsize=5)
        axes.set_yticks(range(length), names, fontsize=5)
    above.suptitle(f"attention, layer {options.layer}")
    axes = below.subplots()
    axes.bar(range(1, length), chances.numpy(), color="steelblue")
    axes.set_xticks(range(1, length), names[1:], rotation=90, fontsize=6)
    axes.set_ylabel("log-probability (nats)")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(options.output, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
