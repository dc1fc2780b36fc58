"""Write a story together with GPT-2: a line of yours, then some of its own, and so forth.

    python examples/chat.py
    printf 'One day Mia was at the mill.\\n\\nThen a dog came.\\n' | python examples/chat.py
    python examples/chat.py --model openai-community/gpt2 --max-new-tokens 60

An empty line lets it go on by itself. Ctrl-C stops it in the middle of a turn, and ends the
program between two; Ctrl-D, or the end of a pipe, ends it too. The story goes to stdout; stderr
tells how many tokens of each turn were read from the cache instead of being computed again.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).resolve().parent / "stories-gpt2"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=str(EMBEDDED), help="hub name or directory (default: the stories model)")
    add("--max-new-tokens", type=int, default=40, help="tokens of a turn, at most (default: 40)")
    add("--temperature", type=float, default=0.7, help="above 0; lower is more predictable")
    add("--top-p", type=float, default=0.95, help="sample among tokens of this total probability")
    add("--greedy", action="store_true", help="always the most probable token, no sampling")
    add("--seed", type=int, help="the same seed and lines give the same story")
    add("--device", default="auto", help="cpu, cuda, mps … (default: the best one)")
    return parser.parse_args()


def tell(message: str) -> None:
    print(f"[{message}]", file=sys.stderr, flush=True)


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Inside, Ctrl-C adds an entry to the list instead of ending the program."""
    pressed: list[bool] = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Story:
    """The ids so far, and the cache of all but the last of what the model has read or written."""

    def __init__(self, model: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.begin()

    def begin(self) -> None:
        self.ids: list[int] = [self.tokenizer.bos_token_id]
        self.cache = None

    def add(self, line: str) -> None:
        """Append a line of the user's; special tokens that it spells out are plain text."""
        space = " " if len(self.ids) > 1 and line else ""
        self.ids += self.tokenizer.encode(space + line, special_text="plain")

    def make_room(self) -> None:
        """Forget the beginning where the next turn would exceed the positions of the model."""
        most = self.model.config.n_positions - self.settings["max_new_tokens"]
        if len(self.ids) > most:
            # Half of the window, so that this happens seldom: positions change with it, and the
            # cache, which knows the old ones, has to go.
            kept = min(most, self.model.config.n_positions // 2)
            tell(
                f"{len(self.ids)} tokens and a turn are more than the model's "
                f"{self.model.config.n_positions} positions: it goes on from the last {kept}"
            )
            self.ids, self.cache = self.ids[-kept:], None

    def go_on(self, streamer: Any) -> None:
        """Let the model write a turn, from the cache of the last one."""
        import torch

        self.make_room()
        reused = 0 if self.cache is None else self.cache.get_seq_length()
        given = len(self.ids)
        with interruptible() as pressed:
            output = self.model.generate(
                torch.tensor([self.ids], device=self.model.device),
                past_key_values=self.cache,
                return_dict_in_generate=True,
                stopping_criteria=[lambda _ids, _scores: bool(pressed)],
                streamer=streamer,
                **self.settings,
            )
        self.ids, self.cache = output.sequences[0].tolist(), output.past_key_values
        tell(
            f"{'stopped; ' if pressed else ''}{reused} tokens reused from the cache, "
            f"{given - reused} read, {len(self.ids) - given} written"
        )
        if self.ids[-1] == self.tokenizer.eos_token_id:
            tell("the story has ended; the next line begins a new one")
            self.begin()


def main() -> None:
    arguments = parse_arguments()
    # torch takes seconds to import: after the arguments, so that --help and typing errors do not
    import torch

    from gpt2 import GPT2Error, GPT2LMHeadModel, GPT2Tokenizer, TextStreamer

    settings: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens}
    if not arguments.greedy:
        settings |= {"do_sample": True, "temperature": arguments.temperature}
        settings |= {"top_k": 0, "top_p": arguments.top_p}
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    interactive = sys.stdin.isatty()
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        tokenizer = GPT2Tokenizer.from_pretrained(arguments.model)
        model = GPT2LMHeadModel.from_pretrained(
            arguments.model,
            device=arguments.device if arguments.device != "auto" else None,
            device_map="auto" if arguments.device == "auto" else None,
        )
        if not 0 < arguments.max_new_tokens < model.config.n_positions:
            sys.exit(
                f"error: --max-new-tokens must be from 1 to {model.config.n_positions - 1}, not "
                f"{arguments.max_new_tokens}"
            )
        story = Story(model, tokenizer, settings)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        tell(f"{model.device}, {model.dtype}, torch {torch.__version__}; Ctrl-D ends")
        while True:
            line = input("> " if interactive else "").strip()
            if not interactive and line:
                print(line)  # on a terminal it stands there already
            story.add(line)
            story.go_on(streamer)
    except (EOFError, KeyboardInterrupt):
        tell("goodbye")
    except GPT2Error as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
