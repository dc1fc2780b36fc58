"""score, perplexity, choose: what one computes by hand from transformers' logits, text by text.

And the streamer: the text that transformers' streamer makes of the same ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2Tokenizer, TextIteratorStreamer
from tests.parity.cases import BATCH, LENGTH, MASKS
from tests.parity.record import compare, count
from tests.parity.reference import BACKENDS, SIZES, Pairs, random_ids, transformers

pytestmark = pytest.mark.parity

LM, BOS, N_POSITIONS = "GPT2LMHeadModel", SIZES["bos_token_id"], SIZES["n_positions"]
STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories-gpt2"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("checkpoints"))


def by_hand(theirs: Any, ids: list[int]) -> Tensor:
    """log p of each token but the first, (N − 1,), alone and unpadded."""
    with torch.no_grad():
        logits = theirs(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("padding", MASKS)
def test_score(pairs: Pairs, padding: str, add_bos: bool, backend: str) -> None:
    theirs, ours = pairs.theirs(LM), pairs.ours(LM, backend)
    ids, mask = random_ids(0, BATCH, LENGTH), torch.tensor(MASKS[padding])
    out = ours.score(ids, attention_mask=mask, add_bos=add_bos)
    for i in range(BATCH):
        row = [BOS] * add_bos + ids[i][mask[i].bool()].tolist()
        expected, where = by_hand(theirs, row), f"{padding}-{add_bos}-{backend}-row{i}"
        compare("score", out.log_probs[i][out.mask[i]], expected, where=where)
        compare("score sum", out.sum[i], expected.sum(), where=where)
        compare("score mean", out.mean[i], expected.mean(), where=where)


@pytest.mark.parametrize("stride", [1, 5, 16, N_POSITIONS - 1])
@pytest.mark.parametrize("length", [2, N_POSITIONS, N_POSITIONS + 1, 100])
def test_perplexity_by_the_guides_recipe(pairs: Pairs, length: int, stride: int) -> None:
    theirs, ids = pairs.theirs(LM), random_ids(length, 1, length)
    total, terms, before = 0.0, 0, 0
    for start in range(0, length, stride):
        stop = min(start + N_POSITIONS, length)
        window = ids[:, start:stop]
        labels = window.clone()
        labels[:, : before - start] = -100
        with torch.no_grad():
            loss = theirs(input_ids=window, labels=labels).loss.item()
        new = int((labels[:, 1:] != -100).sum())
        total, terms, before = total + loss * new, terms + new, stop
        if stop == length:
            break
    assert terms == length - 1  # each token once
    found = pairs.ours(LM, "sdpa").perplexity(ids, stride=stride)
    compare(
        "perplexity",
        torch.tensor(found),
        torch.tensor(total / terms).exp(),
        where=f"{length} tokens, stride {stride}",
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("normalize", ["sum", "mean", "unconditional"])
def test_choose(pairs: Pairs, normalize: str, add_bos: bool, backend: str) -> None:
    theirs, ours = pairs.theirs(LM), pairs.ours(LM, backend)
    for seed in range(5):
        prompt = random_ids(seed, 3 + 4 * seed).tolist()
        choices = [random_ids(10 * seed + n, n).tolist() for n in (1, 4, 2, 9, 4)]
        out = ours.choose(prompt, choices, normalize=normalize, add_bos=add_bos)
        expected, largest = [], 0.0
        for choice in choices:
            terms = by_hand(theirs, [BOS] * add_bos + prompt + choice)[-len(choice) :]
            alone = by_hand(theirs, [BOS, *choice])
            score = {
                "sum": terms.sum(),
                "mean": terms.mean(),
                "unconditional": terms.sum() - alone.sum(),
            }
            expected.append(score[normalize])
            largest = max(largest, -terms.sum().item())
        # a difference of sums is as exact as the sums are
        shift = largest if normalize == "unconditional" else 0.0
        where = f"{normalize}-{add_bos}-{backend}-{seed}"
        compare("choose", out.scores - shift, torch.stack(expected) - shift, where=where)
        assert out.index == torch.stack(expected).argmax()
        count("choices made as by hand with transformers")


def test_the_stream_is_the_references_stream() -> None:
    mine = GPT2Tokenizer.from_pretrained(STORIES)
    theirs = transformers.AutoTokenizer.from_pretrained(STORIES, local_files_only=True)
    for seed, text in enumerate(
        ["Mia saw 日本.\nIt was é\u0301 😀😀, said Tom.", "One day 👩‍👩‍👧 \t a hen"]
    ):
        ids = mine.encode(text) + random_ids(seed, 20, vocab_size=len(mine)).tolist()
        streams = [
            TextIteratorStreamer(mine, True, 10.0),
            transformers.TextIteratorStreamer(theirs, True, 10.0),
        ]
        for streamer in streams:
            streamer.put(torch.tensor([[1, 2, 3]]))
            for id_ in ids:
                streamer.put(torch.tensor([id_]))
            streamer.end()
        ours, reference = ("".join(streamer) for streamer in streams)
        assert ours == reference == mine.decode(ids)
