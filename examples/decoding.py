"""Every way to decode, side by side: one prompt, many methods, a line on what each is good for.

    python examples/decoding.py
    python examples/decoding.py --only greedy --only beams --max-new-tokens 80
    python examples/decoding.py --model openai-community/gpt2 --prompt "Life is" --force " love"

Beside each method stand the forward passes that it took: beams and candidates are rows of one
pass, prompt-lookup accepts several tokens in one. Without --model it uses the small checkpoint
beside this script and needs no network.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).resolve().parent / "stories-gpt2"
STORY = "<|endoftext|>One day a girl named Mia was at the mill. There she met a boy named Tom."

# name -> (what it does, settings of generate)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("the most probable token each time; the same every time, and fond of repeating", {}),
    "sampling": ("a token drawn as the model's probabilities say; now and then an unlikely one",
                 {"do_sample": True, "top_k": 0}),
    "temperature": ("sampling from sharper probabilities (0.7): surer, less varied",
                    {"do_sample": True, "top_k": 0, "temperature": 0.7}),
    "top-k": ("sampling among the 5 most probable tokens, however sure the model is",
              {"do_sample": True, "top_k": 5}),
    "top-p": ("sampling among the most probable tokens that make up 90 % together",
              {"do_sample": True, "top_k": 0, "top_p": 0.9}),
    "min-p": ("sampling among tokens at least a tenth as probable as the best",
              {"do_sample": True, "top_k": 0, "min_p": 0.1}),
    "typical": ("sampling among tokens about as surprising as the model expects (80 %)",
                {"do_sample": True, "top_k": 0, "typical_p": 0.8}),
    "no repeats": ("greedy, but no three tokens may come twice", {"no_repeat_ngram_size": 3}),
    "beams": ("the most probable whole text among 4 that are followed at once", {"num_beams": 4}),
    "sampled beams": ("4 texts followed at once, their next tokens drawn",
                      {"num_beams": 4, "do_sample": True, "top_k": 0}),
    "diverse beams": ("3 beams that lose points for saying the same; all 3 are shown",
                      {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 1.0,
                       "num_return_sequences": 3}),
    "contrastive": ("of the 4 most probable tokens the one least like what stands there already",
                    {"penalty_alpha": 0.6, "top_k": 4}),
    "prompt lookup": ("greedy, with guesses copied from the text so far, checked in one pass",
                      {"prompt_lookup_num_tokens": 8}),
    "constrained": ("beams that must say {force!r} somewhere", {"num_beams": 8}),
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=str(EMBEDDED), help="hub name or directory (default: the stories model)")
    add("--prompt", default=STORY, help="text to continue (default: the beginning of a story)")
    add("--max-new-tokens", type=int, default=60, help="new tokens of each (default: 60)")
    add("--only", action="append", choices=METHODS, help="this method only; may be repeated")
    add("--force", default=" spade", help="what constrained decoding must say (default: ' spade')")
    add("--seed", type=int, default=0, help="of the methods that sample (default: 0)")
    add("--device", default="auto", help="cpu, cuda, mps … (default: the best one)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # torch takes seconds to import: after the arguments, so that --help and typing errors do not
    import torch

    from gpt2 import GPT2Error, GPT2LMHeadModel, GPT2Tokenizer

    try:
        tokenizer = GPT2Tokenizer.from_pretrained(arguments.model)
        model = GPT2LMHeadModel.from_pretrained(
            arguments.model,
            device=arguments.device if arguments.device != "auto" else None,
            device_map="auto" if arguments.device == "auto" else None,
        )
        passes = 0

        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1

        model.register_forward_hook(count)
        inputs = tokenizer(arguments.prompt, return_tensors="pt").to(model.device)
        print(f"prompt: {tokenizer.decode(inputs['input_ids'][0], skip_special_tokens=True)}")
        greedy = None
        for name in arguments.only or METHODS:
            meaning, settings = METHODS[name]
            if name == "constrained":
                settings = {**settings, "force_words_ids": [tokenizer.encode(arguments.force)]}
            torch.manual_seed(arguments.seed)
            passes, start = 0, time.perf_counter()
            ids = model.generate(
                **inputs,
                **settings,
                max_new_tokens=arguments.max_new_tokens,
                return_only_new_tokens=True,
            )
            seconds = time.perf_counter() - start
            note = f"{ids.shape[1]} tokens, {passes} forward passes, {seconds:.2f} s"
            if name == "greedy":
                greedy = ids
            elif name == "prompt lookup" and greedy is not None:
                note += f"; the ids of greedy: {'yes' if torch.equal(ids, greedy) else 'no'}"
            print(f"\n{name}: {meaning.format(force=arguments.force)}\n  [{note}]")
            for row in ids:
                text = tokenizer.decode(row, skip_special_tokens=True)
                print(textwrap.fill(text.strip(), 96, initial_indent="  ", subsequent_indent="  "))
    except GPT2Error as error:
        sys.exit(f"error: {error}")
    print(f"\n[{model.device}, {model.dtype}, torch {torch.__version__}]", file=sys.stderr)


if __name__ == "__main__":
    main()
