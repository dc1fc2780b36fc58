"""Continue a text with GPT-2, printing it as it comes.

    python examples/generate.py
    python examples/generate.py --prompt "Mia found a lamp" --seed 7 --temperature 0.7
    python examples/generate.py --model openai-community/gpt2 --prompt "Hello, I'm a language"

Without --model it uses the small checkpoint beside this script and needs no network.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

EMBEDDED = Path(__file__).resolve().parent / "stories-gpt2"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=str(EMBEDDED), help="hub name or directory (default: the stories model)")
    add("--prompt", help="text to continue (default: nothing for the stories model)")
    add("--max-new-tokens", type=int, help="at most so many (default: 150, or what fits)")
    add("--temperature", type=float, default=0.7, help="above 0; lower is more predictable")
    add("--top-k", type=int, default=50, help="sample among the k most probable tokens; 0: all")
    add("--top-p", type=float, default=0.95, help="sample among tokens of this total probability")
    add("--greedy", action="store_true", help="always the most probable token, no sampling")
    add("--seed", type=int, help="the same seed gives the same text")
    add("--device", default="auto", help="cpu, cuda, mps … (default: the best one)")
    add("--dtype", default="float32", help="float32, bfloat16, float16 or auto (as stored)")
    add("--revision", help="branch, tag or commit of a hub repository")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # torch takes seconds to import: after the arguments, so that --help and typing errors do not
    import torch

    from gpt2 import GPT2Error, GPT2LMHeadModel, GPT2Tokenizer, TextStreamer

    sampling = {
        "do_sample": True,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
    }
    try:
        tokenizer = GPT2Tokenizer.from_pretrained(arguments.model, revision=arguments.revision)
        model = GPT2LMHeadModel.from_pretrained(
            arguments.model,
            revision=arguments.revision,
            device=arguments.device if arguments.device != "auto" else None,
            device_map="auto" if arguments.device == "auto" else None,
            dtype=arguments.dtype,
        )
        prompt = arguments.prompt or tokenizer.bos_token  # a story begins behind the end of another
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        width = inputs["input_ids"].shape[1]
        room = max(1, min(150, model.config.n_positions - width))
        if arguments.seed is not None:
            torch.manual_seed(arguments.seed)
        streamer = TextStreamer(tokenizer, skip_special_tokens=True)
        start = time.perf_counter()
        ids = model.generate(
            **inputs,
            max_new_tokens=arguments.max_new_tokens or room,
            streamer=streamer,
            **({} if arguments.greedy else sampling),
        )
    except GPT2Error as error:
        sys.exit(f"error: {error}")
    seconds = time.perf_counter() - start
    count = ids.shape[1] - width
    print(
        f"[{count} tokens in {seconds:.1f} s, {count / seconds:.0f} tok/s; {model.device}, "
        f"{model.dtype}, torch {torch.__version__}]",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
