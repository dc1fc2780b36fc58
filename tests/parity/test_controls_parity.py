"""generate() under every control gives transformers' ids, and returns what it returns."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2Tokenizer
from tests.parity.record import compare, count
from tests.parity.reference import (
    SIZES,
    Pairs,
    cache_layers,
    random_ids,
    transformers,
)

pytestmark = pytest.mark.parity

LM = "GPT2LMHeadModel"
VOCAB, N_POSITIONS = SIZES["vocab_size"], 48
CONFIG = {"n_positions": N_POSITIONS}
RULES_OF_5 = pytest.mark.skipif(
    transformers.__version__.startswith("4."),
    reason="transformers 4 has other rules: NaN where a suppressed EOS is favoured, biases of "
    "sequences as long as the prompt left out, stop strings matched on characters",
)
TIE = 1e-5  # where the two best scores are nearer than this to each other, either id is right


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("checkpoints"))


def left_mask(lengths: list[int]) -> Tensor:
    width = max(lengths)
    return torch.tensor([[0] * (width - n) + [1] * n for n in lengths])


# -- every processor and stopping rule ------------------------------------------------------------


class Shift:
    """A processor of the caller's: favours the token behind the last one."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bonus = torch.zeros_like(scores)
        bonus[torch.arange(len(scores)), (input_ids[:, -1] + 1) % scores.shape[-1]] = 1.5
        return scores + bonus


class Sum:
    """A stopping criterion of the caller's: the last two ids add up to a multiple of seven."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return input_ids[:, -2:].sum(-1) % 7 == 0


def tokens_of(rng: random.Random, seen: list[int], low: int = 1, high: int = 4) -> list[int]:
    """Some ids, those that are likely to matter among them."""
    pool = [*seen, *(rng.randrange(VOCAB) for _ in range(4))]
    return [rng.choice(pool) for _ in range(rng.randint(low, high))]


def a_bias(rng: random.Random, seen: list[int]) -> list[Any]:
    lists = {tuple(tokens_of(rng, seen, 1, 3)) for _ in range(rng.randint(1, 4))}
    pairs = [[list(ids), rng.choice((-4.0, -1.0, 0.7, 3.0))] for ids in sorted(lists)]
    start = rng.randrange(max(1, len(seen) - 2))
    known = seen[start : start + 2]  # what the reference would generate
    if tuple(known) not in lists:
        pairs.append([known, -5.0])
    return pairs


# name -> a random value, given the ids that the reference generates without any control
CONTROLS: dict[str, Any] = {
    "min_length": lambda rng, seen: rng.randint(1, 16),
    "min_new_tokens": lambda rng, seen: rng.randint(1, 12),
    "repetition_penalty": lambda rng, seen: rng.choice((0.6, 1.1, 1.5, 3.0)),
    "encoder_repetition_penalty": lambda rng, seen: rng.choice((0.5, 1.2, 2.0)),
    "no_repeat_ngram_size": lambda rng, seen: rng.randint(1, 4),
    "encoder_no_repeat_ngram_size": lambda rng, seen: rng.randint(1, 3),
    "bad_words_ids": lambda rng, seen: [tokens_of(rng, seen, 1, 2) for _ in range(3)],
    "sequence_bias": a_bias,
    "suppress_tokens": lambda rng, seen: tokens_of(rng, seen),
    "begin_suppress_tokens": lambda rng, seen: tokens_of(rng, seen),
    "forced_bos_token_id": lambda rng, seen: rng.randrange(VOCAB),
    "forced_eos_token_id": lambda rng, seen: rng.choice((3, [5, 6])),
    "exponential_decay_length_penalty": lambda rng, seen: (
        rng.randint(0, 6), rng.choice((1.01, 1.2, 2.0, 0.7)),
    ),
    "renormalize_logits": lambda rng, seen: True,
    "remove_invalid_values": lambda rng, seen: True,
    "guidance_scale": lambda rng, seen: rng.choice((0.5, 1.5, 3.0)),
    "logits_processor": lambda rng, seen: [Shift()],
    "stopping_criteria": lambda rng, seen: [Sum()],
    "prefix_allowed_tokens_fn": lambda rng, seen: (
        lambda row, ids: [(7 * int(ids[-1]) + row + k) % VOCAB for k in range(11)]
    ),
}  # fmt: skip
SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (0.2, 0.7, 1.3, 2.5),
    "top_k": (0, 1, 3, 10, 96, 500),
    "top_p": (0.99, 0.9, 0.5, 0.1),
    "min_p": (0.0, 0.02, 0.2, 0.9),
    "typical_p": (0.95, 0.5, 0.2),
    "epsilon_cutoff": (0.001, 0.02, 0.3),
    "eta_cutoff": (0.001, 0.02, 0.3),
}


def controlled(rng: random.Random, pairs: Pairs) -> dict[str, Any]:
    rows, width, seed = rng.randint(1, 3), rng.choice((1, 2, 4, 7)), rng.randrange(10**6)
    prompt = random_ids(seed, rows, width)
    arguments: dict[str, Any] = {
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
        "use_cache": rng.random() < 0.85,
    }
    torch.manual_seed(0)
    theirs = pairs.theirs(LM, **CONFIG)
    free = theirs.generate(prompt, attention_mask=arguments["attention_mask"], max_new_tokens=12)
    seen = free[rng.randrange(rows), -12:].tolist()
    if rng.random() < 0.5:
        arguments["max_length"] = width + rng.randint(2, 14)
    else:
        arguments["max_new_tokens"] = rng.randint(1, 14)
    ends = rng.choice((0, 1, 1, 2))
    eos = [rng.choice(seen[2:]) for _ in range(ends)]
    if ends:
        arguments["eos_token_id"] = eos if ends > 1 else eos[0]
    if rng.random() < 0.4:
        arguments["pad_token_id"] = rng.randrange(VOCAB)
    names = rng.sample(sorted(CONTROLS), rng.choice((1, 1, 2, 3, 4)))
    for name in names:
        arguments[name] = CONTROLS[name](rng, seen)
    if "min_length" in arguments:
        longest = arguments.get("max_length", width + arguments.get("max_new_tokens", 0))
        arguments["min_length"] = min(arguments["min_length"], longest)
    if "min_new_tokens" in arguments:
        arguments.pop("min_length", None)  # the reference takes one of them
        most = arguments.get("max_new_tokens", arguments.get("max_length", 0) - width)
        arguments["min_new_tokens"] = min(arguments["min_new_tokens"], most)
    if "guidance_scale" in arguments and rng.random() < 0.6:
        arguments["negative_prompt_ids"] = random_ids(seed + 1, rows, rng.randint(1, 6))
    if rng.random() < 0.5:
        arguments["do_sample"] = True
        arguments["num_return_sequences"] = 1
        for name in rng.sample(sorted(SAMPLING), rng.choice((0, 1, 2, 3))):
            arguments[name] = rng.choice(SAMPLING[name])
        # the reference numbers the repeated rows, and does not repeat a negative prompt
        alone = {"prefix_allowed_tokens_fn", "guidance_scale"} & set(arguments)
        if rng.random() < 0.3 and not alone:
            arguments["num_return_sequences"] = 2
    return arguments


def assert_same_under_controls(pairs: Pairs, seed: int, **arguments: Any) -> None:
    """Equal ids; a greedy row may part where the best two processed scores tie."""
    torch.manual_seed(seed)
    ours = pairs.ours(LM, "sdpa", **CONFIG).generate(**arguments)
    torch.manual_seed(seed)
    told = pairs.theirs(LM, **CONFIG).generate(
        **arguments, return_dict_in_generate=True, output_scores=True
    )
    theirs = told.sequences
    count("settings of generate")
    count("ids compared", theirs.numel())
    count("settings of generate that differ", 0)
    count("rows parted by a tie", 0)
    for name in {*CONTROLS, *SAMPLING} & set(arguments):
        count(f"settings with {name}")
    if ours.shape == theirs.shape and torch.equal(ours, theirs):
        return
    count("settings of generate that differ")
    shown = {k: v for k, v in arguments.items() if k not in ("attention_mask", "use_cache")}
    message = f"{shown}: ours {ours.tolist()}, theirs {theirs.tolist()}"
    assert ours.shape == theirs.shape, message
    assert not arguments.get("do_sample"), message
    width = arguments["input_ids"].shape[1]
    for row in (ours != theirs).any(-1).nonzero()[:, 0].tolist():
        first = int((ours[row] != theirs[row]).nonzero()[0])
        best, second = told.scores[first - width][row].topk(2).values.tolist()
        assert best - second <= TIE * max(abs(best), 1.0), message
        count("rows parted by a tie")
    count("settings of generate that differ", -1)  # in nothing but ties


@RULES_OF_5
@pytest.mark.parametrize("block", range(20))
def test_random_controls(pairs: Pairs, block: int) -> None:
    rng = random.Random(f"controls {block}")
    for _ in range(25):
        arguments = controlled(rng, pairs)
        assert_same_under_controls(pairs, rng.randrange(10**6), **arguments)


# -- stop strings ---------------------------------------------------------------------------------

TEXT_SIZES = {"n_positions": N_POSITIONS, "vocab_size": 320}
STORY = [
    "The fox had a red hat. The hen had a blue hat, and the fox's hat was old.",
    "Où est le café? «Là», dit-elle; ναι, είπε. 🦊🦔 The hat went to the river.",
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(ours, theirs) with one vocabulary of 320 tokens."""
    directory = tmp_path_factory.mktemp("tokenizer")
    ours = GPT2Tokenizer.train(STORY * 3, 320, show_progress=False)
    ours.save_pretrained(directory)
    return ours, transformers.GPT2TokenizerFast.from_pretrained(directory, local_files_only=True)


def a_stop_string(rng: random.Random, tokenizer: Any, free: Tensor) -> str:
    """A piece of what comes without stopping, cut anywhere between two characters."""
    row = free[rng.randrange(len(free))].tolist()
    text = tokenizer.decode(row[rng.randrange(len(row) - 4) :])
    text = max(text.split("\ufffd"), key=len)
    start = rng.randrange(max(1, len(text) - 4))
    return text[start : start + rng.randint(1, 5)] or "x"


@RULES_OF_5
@pytest.mark.parametrize("block", range(4))
def test_stop_strings(pairs: Pairs, tokenizers: tuple[Any, Any], block: int) -> None:
    rng, stopped = random.Random(f"strings {block}"), 0
    mine, other = tokenizers
    ours, theirs = pairs.ours(LM, "sdpa", **TEXT_SIZES), pairs.theirs(LM, **TEXT_SIZES)
    for _ in range(15):
        rows, width, seed = rng.randint(1, 4), rng.randint(1, 6), rng.randrange(10**6)
        prompt = random_ids(seed, rows, width, vocab_size=320)
        settings: dict[str, Any] = {
            "attention_mask": torch.ones_like(prompt), "do_sample": rng.random() < 0.5,
            "max_new_tokens": 20, "eos_token_id": 0, "pad_token_id": rng.choice((0, 5)),
            "use_cache": True,
        }  # fmt: skip
        torch.manual_seed(seed)
        free = theirs.generate(prompt, **settings)
        strings = [a_stop_string(rng, mine, free) for _ in range(rng.randint(1, 3))]
        settings["stop_strings"] = strings if rng.random() < 0.7 else strings[0]
        torch.manual_seed(seed)
        expected = theirs.generate(prompt, tokenizer=other, **settings)
        for tokenizer in (mine, other):
            torch.manual_seed(seed)
            found = ours.generate(prompt, tokenizer=tokenizer, **settings)
            assert torch.equal(found, expected), (strings, found.tolist(), expected.tolist())
        count("settings of generate")
        count("settings with stop_strings")
        count("ids compared", expected.numel())
        stopped += not torch.equal(expected, free)
    assert stopped >= 8


# -- what is returned -----------------------------------------------------------------------------


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_returned_fields(pairs: Pairs, padded: bool, do_sample: bool) -> None:
    mask = left_mask([5, 3]) if padded else torch.ones(2, 5, dtype=torch.long)
    prompt = random_ids(3, 2, 5)
    arguments: dict[str, Any] = {
        "input_ids": prompt, "attention_mask": mask, "do_sample": do_sample, "max_new_tokens": 7,
        "eos_token_id": [], "return_dict_in_generate": True, "output_scores": True,
        "output_logits": True, "output_attentions": True, "output_hidden_states": True,
        "suppress_tokens": [4, 5], "use_cache": True,
    }  # fmt: skip
    torch.manual_seed(4)
    ours = pairs.ours(LM, "eager", **CONFIG).generate(**arguments)
    theirs_arguments = {**arguments, "eos_token_id": None}
    model = pairs.theirs(LM, **CONFIG)
    torch.manual_seed(4)
    theirs = model.generate(**theirs_arguments)
    assert type(ours).__name__ == type(theirs).__name__
    assert ours.keys() == list(theirs.keys())
    assert torch.equal(ours.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        assert len(ours[name]) == len(theirs[name]) == 7
        for step, (a, b) in enumerate(zip(ours[name], theirs[name], strict=True)):
            compare(f"generate's {name}", a, b, where=f"step {step}")
    for name in ("attentions", "hidden_states"):
        real = mask.bool()
        assert len(ours[name]) == len(theirs[name]) == 7
        for step, (mine, other) in enumerate(zip(ours[name], theirs[name], strict=True)):
            assert len(mine) == len(other)
            for a, b in zip(mine, other, strict=True):
                assert a.shape == b.shape
                if step == 0:  # the prompt: padding's own values are unspecified
                    a = a.transpose(1, 2) if name == "attentions" else a
                    b = b.transpose(1, 2) if name == "attentions" else b
                    a, b = a[real], b[real]
                compare(f"generate's {name}", a, b, where=f"step {step}")
    for normalize in (False, True):
        compare(
            "transition scores",
            pairs.ours(LM, "eager", **CONFIG).compute_transition_scores(
                ours.sequences, ours.scores, normalize_logits=normalize
            ),
            model.compute_transition_scores(
                theirs.sequences, theirs.scores, normalize_logits=normalize
            ),
            where=f"normalize {normalize}",
        )
    for (keys, values), (theirs_keys, theirs_values) in zip(
        ours.past_key_values, cache_layers(theirs.past_key_values), strict=True
    ):
        real = torch.cat([mask.bool(), torch.ones(2, 6, dtype=torch.bool)], dim=1)
        for a, b in ((keys, theirs_keys), (values, theirs_values)):
            a, b = a.transpose(1, 2)[real], b.transpose(1, 2)[real]
            compare("generate's cache", a, b, where="keys and values")


@pytest.mark.parametrize("do_sample", [False, True])
def test_continuing_from_a_cache(pairs: Pairs, do_sample: bool) -> None:
    """Two turns of a conversation, the second with the first one's cache."""
    results = []
    for model in (pairs.ours(LM, "sdpa", **CONFIG), pairs.theirs(LM, **CONFIG)):
        torch.manual_seed(1)
        settings = {
            "do_sample": do_sample, "max_new_tokens": 6, "return_dict_in_generate": True,
            "use_cache": True,
        }  # fmt: skip
        first = model.generate(
            random_ids(1, 2, 5), attention_mask=torch.ones(2, 5, dtype=torch.long), **settings
        )
        said = torch.cat([first.sequences, random_ids(2, 2, 3)], dim=1)
        second = model.generate(
            said, attention_mask=torch.ones_like(said), past_key_values=first.past_key_values,
            **settings,
        )  # fmt: skip
        results.append(second.sequences)
    assert torch.equal(*results)
    count("settings of generate")
