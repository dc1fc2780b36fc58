"""generate() gives the ids that transformers gives: greedy, and sampled under the same seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GenerationConfig
from tests.parity.record import count
from tests.parity.reference import (
    BACKENDS,
    SIZES,
    Pairs,
    load_ours,
    make_theirs,
    random_ids,
    random_states,
    transformers,
)

pytestmark = [
    pytest.mark.parity,
    # the reference advises to set a length; leaving it out is what some tests are about
    pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning"),
]

LM = "GPT2LMHeadModel"
VOCAB, D, N_POSITIONS = SIZES["vocab_size"], SIZES["n_embd"], 48
CONFIG = {"n_positions": N_POSITIONS}
TIE = 1e-5  # where the two best logits are nearer than this to each other, either id is right


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("checkpoints"))


def left_mask(lengths: list[int]) -> Tensor:
    width = max(lengths)
    return torch.tensor([[0] * (width - n) + [1] * n for n in lengths])


def generate_both(
    pairs: Pairs, backend: str = "sdpa", *, seed: int = 0, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """(ours, theirs) for the same arguments and the same seed of torch."""
    torch.manual_seed(seed)
    ours = pairs.ours(LM, backend, **CONFIG).generate(**arguments)
    given = dict(arguments)
    prompt = given.get("input_ids", given.get("inputs_embeds"))
    if prompt is not None and given.get("pad_token_id") is None:
        # without a mask the reference takes EOS for padding in some releases
        given.setdefault("attention_mask", torch.ones(prompt.shape[:2], dtype=torch.long))
    torch.manual_seed(seed)
    theirs = pairs.theirs(LM, **CONFIG).generate(**given)
    return ours, theirs


def assert_same(pairs: Pairs, ours: Tensor, theirs: Tensor, arguments: dict[str, Any]) -> None:
    """Equal ids, but for greedy rows that part where two logits tie; those are counted."""
    count("settings of generate")
    count("ids compared", theirs.numel())
    count("rows parted by a tie", 0)
    if ours.shape == theirs.shape and torch.equal(ours, theirs):
        return
    shown = {k: v for k, v in arguments.items() if not isinstance(v, Tensor)}
    if arguments.get("do_sample") or "input_ids" not in arguments or ours.shape != theirs.shape:
        raise AssertionError(f"{shown}: ours {ours.tolist()}, theirs {theirs.tolist()}")
    mask = arguments.get("attention_mask")
    for row in (ours != theirs).any(-1).nonzero()[:, 0].tolist():
        first = int((ours[row] != theirs[row]).nonzero()[0])
        start = 0 if mask is None else int(mask[row].argmax())
        with torch.no_grad():
            logits = pairs.ours(LM, "eager", **CONFIG)(ours[row : row + 1, start:first]).logits
        best, second = logits[0, -1].topk(2).values.tolist()
        if best - second > TIE * max(abs(best), 1.0):
            raise AssertionError(
                f"{shown}: row {row} parts at {first} where the best logits are {best} and "
                f"{second}; ours {ours[row].tolist()}, theirs {theirs[row].tolist()}"
            )
        count("rows parted by a tie")


def check(pairs: Pairs, backend: str = "sdpa", *, seed: int = 0, **arguments: Any) -> Tensor:
    ours, theirs = generate_both(pairs, backend, seed=seed, **arguments)
    assert_same(pairs, ours, theirs, arguments)
    return theirs


def likely_eos(pairs: Pairs, how_many: int, **arguments: Any) -> list[int]:
    """Ids that the reference does produce, so that rows end, at different times."""
    torch.manual_seed(0)
    free = pairs.theirs(LM, **CONFIG).generate(max_new_tokens=12, **arguments)
    return free[:, -9:].flatten().unique()[:: max(1, 9 // how_many)][:how_many].tolist()


# -- one thing at a time --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(pairs: Pairs, backend: str, use_cache: bool) -> None:
    for seed in range(8):
        prompt = random_ids(seed, 3, 1 + seed)
        check(pairs, backend, input_ids=prompt, max_new_tokens=24, use_cache=use_cache)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.6, 1e-9])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.4, 1.7])
def test_sampled(pairs: Pairs, backend: str, temperature: float, top_k: int, top_p: float) -> None:
    check(
        pairs, backend, seed=11, input_ids=random_ids(1, 3, 4), do_sample=True, max_new_tokens=16,
        temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip


def test_default_sampling_settings(pairs: Pairs) -> None:
    """top_k is 50 unless told."""
    check(pairs, seed=3, input_ids=random_ids(1, 4, 3), do_sample=True)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("pad", [None, 7])
@pytest.mark.parametrize("how_many", [1, 3])
def test_rows_end_at_eos(pairs: Pairs, how_many: int, pad: int | None, do_sample: bool) -> None:
    ended_early = 0
    for seed in range(6):
        prompt = random_ids(20 + seed, 4, 5)
        eos = likely_eos(pairs, how_many, input_ids=prompt)
        theirs = check(
            pairs, seed=seed, input_ids=prompt, max_new_tokens=12, do_sample=do_sample,
            eos_token_id=eos if how_many > 1 else eos[0], pad_token_id=pad,
            attention_mask=torch.ones_like(prompt),
        )  # fmt: skip
        ended_early += int(torch.isin(theirs[:, 5:-1], torch.tensor(eos)).any())
    assert ended_early >= (1 if do_sample else 3), "the test has no row that ends before the others"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("with_eos", [False, True])
def test_left_padding(pairs: Pairs, backend: str, do_sample: bool, with_eos: bool) -> None:
    for seed in range(4):
        mask = left_mask([3 + seed, 8, 1])
        prompt = random_ids(40 + seed, *mask.shape)
        given: dict[str, Any] = {"input_ids": prompt, "attention_mask": mask}
        eos = likely_eos(pairs, 2, **given) if with_eos else None
        more = {"eos_token_id": eos} if eos else {}
        check(pairs, backend, seed=seed, max_new_tokens=15, do_sample=do_sample, **given, **more)


def test_padding_read_off_the_ids(pairs: Pairs) -> None:
    """No mask, but a declared pad token that is not EOS and occurs: padding, as documented."""
    mask = left_mask([3, 6])
    prompt = random_ids(50, *mask.shape, vocab_size=50).masked_fill(mask == 0, 60)
    check(pairs, input_ids=prompt, pad_token_id=60, max_new_tokens=10)


@pytest.mark.parametrize("do_sample", [False, True])
def test_promptless(pairs: Pairs, do_sample: bool) -> None:
    check(pairs, seed=1, do_sample=do_sample, max_new_tokens=10)
    check(pairs, seed=1, do_sample=do_sample, max_new_tokens=10, bos_token_id=5)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("do_sample", [False, True])
def test_from_embeddings(pairs: Pairs, do_sample: bool, use_cache: bool) -> None:
    """Only the new ids come back."""
    embeds = 0.3 * random_states(1, 2, 5, D)
    given = {"inputs_embeds": embeds, "do_sample": do_sample, "use_cache": use_cache}
    theirs = check(pairs, seed=2, max_new_tokens=9, **given)
    assert theirs.shape == (2, 9)
    check(pairs, seed=2, max_new_tokens=9, attention_mask=left_mask([5, 2]), **given)
    check(pairs, seed=2, **given)


def test_max_length_from_embeddings(pairs: Pairs) -> None:
    embeds = 0.3 * random_states(1, 2, 5, D)
    ours, theirs = generate_both(pairs, inputs_embeds=embeds, max_length=12)
    if theirs.shape[1] == 12:
        pytest.skip("this transformers leaves embeddings out of max_length; later ones count them")
    assert_same(pairs, ours, theirs, {"inputs_embeds": embeds})


@pytest.mark.parametrize("times", [2, 3])
def test_num_return_sequences(pairs: Pairs, times: int) -> None:
    mask = left_mask([4, 2])
    for given in (
        {"input_ids": random_ids(1, 2, 4), "attention_mask": mask},
        {"inputs_embeds": 0.3 * random_states(1, 2, 4, D), "attention_mask": mask},
        {},
    ):
        theirs = check(
            pairs, seed=5, do_sample=True, num_return_sequences=times, max_new_tokens=8, **given
        )
        assert len(theirs) == times * (2 if given else 1)


def test_default_length(pairs: Pairs) -> None:
    """20 new tokens, or as many as there are positions left."""
    assert check(pairs, input_ids=random_ids(1, 2, 6)).shape[1] == 26
    assert check(pairs, input_ids=random_ids(1, 2, 40)).shape[1] == N_POSITIONS


def test_max_length(pairs: Pairs) -> None:
    for length in (7, 12, N_POSITIONS):
        theirs = check(pairs, input_ids=random_ids(1, 2, 6), max_length=length)
        assert theirs.shape[1] == length


# -- everything at once ---------------------------------------------------------------------------


def random_settings(rng: random.Random, pairs: Pairs) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    rows, kind = rng.randint(1, 4), rng.choice(("ids", "ids", "padded", "padded", "embeds", "none"))
    width, seed = rng.randint(1, 9), rng.randrange(10**6)
    if kind == "padded":
        mask = left_mask([rng.randint(1, width) for _ in range(rows)])
        width = mask.shape[1]
        arguments["attention_mask"] = mask
    if kind in ("ids", "padded"):
        arguments["input_ids"] = random_ids(seed, rows, width)
        arguments.setdefault("attention_mask", torch.ones(rows, width, dtype=torch.long))
    elif kind == "embeds":
        arguments["inputs_embeds"] = 0.3 * random_states(seed, rows, width, D)
    length = rng.choice(("new", "new", "max", "default"))
    if length == "max" and kind not in ("embeds", "padded"):  # padding counts in theirs
        arguments["max_length"] = width + rng.randint(1, 15)
    elif length != "default":
        arguments["max_new_tokens"] = rng.randint(1, 15)
    ends = rng.choice((0, 0, 1, 2, 5))
    if ends:
        prompt = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
        eos = likely_eos(pairs, ends, **prompt)
        arguments["eos_token_id"] = eos if ends > 1 else eos[0]
    if rng.random() < 0.4:
        arguments["pad_token_id"] = rng.randrange(VOCAB)
    arguments["use_cache"] = rng.random() < 0.8
    if rng.random() < 0.6:
        arguments["do_sample"] = True
        arguments["temperature"] = rng.choice((0.2, 0.5, 0.9, 1.0, 1.3, 2.5))
        arguments["top_k"] = rng.choice((0, 1, 2, 10, 50, 96, 97, 500))
        arguments["top_p"] = rng.choice((1.0, 0.99, 0.9, 0.5, 0.1, 1e-9))
        arguments["num_return_sequences"] = rng.choice((1, 1, 2, 3))
    return arguments


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", range(8))
def test_random_settings(pairs: Pairs, block: int, backend: str) -> None:
    rng = random.Random(f"{block} {backend}")
    for _ in range(20):
        arguments = random_settings(rng, pairs)
        check(pairs, backend, seed=rng.randrange(10**6), **arguments)


# -- generation_config.json -----------------------------------------------------------------------

FILE_SETTINGS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 7},
    {"max_length": 11, "eos_token_id": [3, 4], "pad_token_id": 5},
    {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.8, "max_new_tokens": 12},
    {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 5, "eos_token_id": 12},
    {"do_sample": True, "top_k": 0, "max_new_tokens": 10, "bos_token_id": 8},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "min_length": 9, "max_length": 12},
    {"bad_words_ids": [[3], [4, 5]], "sequence_bias": [[[7], 1.5], [[8, 9], -2.0]]},
    {"do_sample": True, "min_p": 0.05, "typical_p": 0.8, "epsilon_cutoff": 0.01},
    {"suppress_tokens": [1, 2], "begin_suppress_tokens": [3], "forced_eos_token_id": 6},
    {"exponential_decay_length_penalty": [2, 1.3], "renormalize_logits": True},
    {"num_beams": 3, "length_penalty": 0.7, "early_stopping": "never", "max_new_tokens": 6},
)


@pytest.mark.parametrize("settings", FILE_SETTINGS, ids=lambda s: "-".join(s))
def test_their_generation_config_rules_ours(tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = make_theirs(LM, **CONFIG)
    theirs.generation_config = transformers.GenerationConfig(
        **{"bos_token_id": 96, "eos_token_id": 96, **settings}
    )
    theirs.save_pretrained(tmp_path)
    ours = load_ours(LM, tmp_path)
    for prompt in ({"input_ids": random_ids(1, 2, 5)}, {}):
        torch.manual_seed(9)
        mine = ours.generate(**prompt)
        torch.manual_seed(9)
        mask = {"attention_mask": torch.ones(2, 5, dtype=torch.long)} if prompt else {}
        assert torch.equal(mine, theirs.generate(**prompt, **mask))
        count("settings of generate")


@pytest.mark.parametrize("settings", FILE_SETTINGS, ids=lambda s: "-".join(s))
def test_our_generation_config_rules_theirs(tmp_path: Path, settings: dict[str, Any]) -> None:
    make_theirs(LM, **CONFIG).save_pretrained(tmp_path / "theirs")
    ours = load_ours(LM, tmp_path / "theirs")
    ours.generation_config = GenerationConfig(
        **{"bos_token_id": 96, "eos_token_id": 96, **settings}
    )
    ours.save_pretrained(tmp_path / "ours")
    theirs = getattr(transformers, LM).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", local_files_only=True
    )
    for name, value in settings.items():
        assert getattr(theirs.generation_config, name) == value
    for prompt in ({"input_ids": random_ids(1, 2, 5)}, {}):
        torch.manual_seed(9)
        mine = ours.generate(**prompt)
        torch.manual_seed(9)
        mask = {"attention_mask": torch.ones(2, 5, dtype=torch.long)} if prompt else {}
        assert torch.equal(mine, theirs.generate(**prompt, **mask))
        count("settings of generate")
