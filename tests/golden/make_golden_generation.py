"""Writes generation.json: what transformers 4.48.3 generates by methods that have left it since.

Run from the root of the repository, where transformers 4.48.3 is installed:

    python tests/golden/make_golden_generation.py

Random settings of diverse (group) beam search, constrained beam search and
contrastive search, drawn from a seeded generator, on the tiny model of
make_golden.py; each case has its prompt, its settings and the ids that came
out. tests/golden/test_golden_generation.py reads them and needs no transformers.

Words to force never share a first token within one disjunction: that release
counts the progress of such words wrongly (copies of a state share one list).
Where several words end a sequence (several EOS ids), it writes the first EOS in
place of the one that was chosen; the test reads it so.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

VERSION = "4.48.3"
HERE = Path(__file__).parent
PATH = HERE / "generation.json"
V, N_POSITIONS = 61, 24
CASES = 80  # of each method

Settings = dict[str, Any]


def prompts(rng: random.Random) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, mask), left-padded where the rows differ in length."""
    rows = rng.randint(1, 3)
    same = rng.random() < 0.5
    width = rng.randint(1, 7)
    lengths = [width if same else rng.randint(1, width) for _ in range(rows)]
    lengths[0] = width
    ids = [
        [0] * (width - n) + [rng.randrange(1, V) for _ in range(n)]  # padded with 0
        for n in lengths
    ]
    mask = [[0] * (width - n) + [1] * n for n in lengths]
    return ids, mask


def endings(rng: random.Random, model: Any, case: Settings) -> Settings:
    """EOS ids that do occur, so that rows end early; and a pad token."""
    wanted = rng.choice((0, 1, 1, 3))
    if not wanted:
        return {}
    width = len(case["ids"][0])
    free = generate(model, {**case, "settings": {"num_beams": 4, "max_new_tokens": 9}})
    seen = sorted({token for row in free for token in row[width + 1 :]})
    eos = rng.sample(seen, min(wanted, len(seen)))
    return {"eos_token_id": eos if len(eos) > 1 else eos[0], "pad_token_id": rng.randrange(1, V)}


def controls(rng: random.Random, padded: bool, eos: bool) -> Settings:
    """Some processors; none that reads the prompt where it is padded, since that release would."""
    chosen: Settings = {}
    if rng.random() < 0.3 and not padded:
        chosen["repetition_penalty"] = rng.choice((0.8, 1.3, 2.0))
    if rng.random() < 0.2 and not padded:
        chosen["no_repeat_ngram_size"] = rng.choice((1, 2, 3))
    if rng.random() < 0.3 and eos:
        chosen["min_new_tokens"] = rng.randint(1, 6)
    if rng.random() < 0.2:
        chosen["suppress_tokens"] = rng.sample(range(V), 4)
    return chosen


def beams(rng: random.Random, num_beams: int) -> Settings:
    chosen: Settings = {"num_beams": num_beams}
    if rng.random() < 0.6:
        chosen["length_penalty"] = rng.choice((-1.0, 0.0, 0.5, 2.0))
    if rng.random() < 0.6:
        chosen["early_stopping"] = rng.choice((True, "never"))
    if rng.random() < 0.5:
        chosen["num_return_sequences"] = rng.randint(1, num_beams)
    return chosen


def diverse(rng: random.Random) -> Settings:
    num_beams = rng.choice((2, 3, 4, 4, 6, 8))
    groups = rng.choice([n for n in range(2, num_beams + 1) if num_beams % n == 0])
    penalty = rng.choice((0.1, 0.5, 1.0, 3.0))
    return {**beams(rng, num_beams), "num_beam_groups": groups, "diversity_penalty": penalty}


def constrained(rng: random.Random) -> Settings:
    words: list[Any] = []
    for _ in range(rng.randint(1, 3)):
        word = [rng.randrange(1, V) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.4:
            firsts = rng.sample(range(1, V), rng.randint(2, 3))
            tails = [[rng.randrange(1, V) for _ in range(rng.randint(0, 2))] for _ in firsts]
            words.append([[first, *tail] for first, tail in zip(firsts, tails, strict=True)])
        else:
            words.append(word)
    return {**beams(rng, rng.choice((2, 3, 4, 6))), "force_words_ids": words}


def contrastive(rng: random.Random) -> Settings:
    alpha = rng.choice((0.1, 0.3, 0.6, 0.6, 0.9, 1.0))
    return {"penalty_alpha": alpha, "top_k": rng.choice((2, 4, 4, 8, V))}


def least_tokens(words: list[Any]) -> int:
    """How many new tokens the words to force need at least."""
    return sum(min(map(len, w)) if isinstance(w[0], list) else len(w) for w in words)


def generate(model: Any, case: Settings) -> list[list[int]]:
    ids = model.generate(
        torch.tensor(case["ids"]), attention_mask=torch.tensor(case["mask"]), **case["settings"]
    )
    return ids.tolist()  # type: ignore[no-any-return]


def make_case(
    rng: random.Random, model: Any, method: Callable[[random.Random], Settings]
) -> Settings:
    ids, mask = prompts(rng)
    case: Settings = {"method": method.__name__, "ids": ids, "mask": mask}
    end = endings(rng, model, case)
    padded = any(0 in row for row in mask)
    settings = {**method(rng), **end, **controls(rng, padded, bool(end))}
    least = least_tokens(settings.get("force_words_ids", []))
    least = max(1, least, settings.get("min_new_tokens", 0))
    settings["max_new_tokens"] = rng.randint(least, max(least, 14))
    case["settings"] = settings
    case["expected"] = generate(model, case)
    return case


def main() -> None:
    if transformers.__version__ != VERSION:
        sys.exit(
            f"generation.json is made by transformers {VERSION}, which still has group beams, "
            f"constrained beams and contrastive search; this is {transformers.__version__}. "
            f"Install transformers=={VERSION}."
        )
    transformers.logging.set_verbosity_error()
    model = transformers.GPT2LMHeadModel.from_pretrained(
        HERE / "models" / "plain", attn_implementation="eager", local_files_only=True
    ).eval()
    model.generation_config = transformers.GenerationConfig()  # no EOS but a case's own
    rng = random.Random(5)
    cases = []
    for method in (diverse, constrained, contrastive):
        while sum(case["method"] == method.__name__ for case in cases) < CASES:
            cases.append(make_case(rng, model, method))
    about = {"transformers": VERSION, "torch": torch.__version__, "model": "plain"}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    PATH.write_text(f'{{"about":{json.dumps(about)},"cases":[\n{lines}\n]}}\n')
    print(f"{len(cases)} cases, {PATH.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
