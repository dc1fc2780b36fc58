"""Caches beside transformers': the same columns, each readable by us, the same facts of a model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2.modeling.cache import KVCache
from gpt2.modeling.static_cache import StaticCache
from tests.helpers import assert_close
from tests.parity.record import compare, count
from tests.parity.reference import BACKENDS, Pairs

pytestmark = pytest.mark.parity

GENERATOR = torch.Generator().manual_seed(1)
IDS = torch.randint(0, 97, (2, 12), generator=GENERATOR)
STATES = torch.randn(2, 5, 32, generator=GENERATOR)
ENCODER_MASK = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
LM = "GPT2LMHeadModel"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def columns(cache: Any) -> list[list[Tensor]]:
    """The tensors of each layer, whatever kind of cache it is."""
    return [[t for t in layer if t is not None] for layer in cache]


@pytest.mark.parametrize("kind", ["growing", "static", "theirs"])
@pytest.mark.parametrize("cross", [False, True], ids=["plain", "cross"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_and_columns(pairs: Pairs, backend: str, cross: bool, kind: str) -> None:
    overrides = {"add_cross_attention": True} if cross else {}
    theirs, ours = pairs.theirs(LM, **overrides), pairs.ours(LM, backend, **overrides)
    encoder = {}
    if cross:
        encoder = {"encoder_hidden_states": STATES, "encoder_attention_mask": ENCODER_MASK}
    past = StaticCache(ours.config, 2, 16) if kind == "static" else None
    their_past = None
    for chunk in IDS.split([5, 1, 1, 5], dim=1):
        if kind == "theirs" and their_past is not None:  # continue what transformers began
            past = KVCache.from_legacy_cache(
                [tuple(t.clone() for t in c) for c in columns(their_past)]
            )
        wanted = theirs(chunk, past_key_values=their_past, use_cache=True, **encoder)
        found = ours(chunk, past_key_values=past, use_cache=True, **encoder)
        their_past, past = wanted.past_key_values, found.past_key_values
        where = f"{kind}, {backend}, {'cross' if cross else 'plain'}"
        compare("cached logits", found.logits, wanted.logits, where=where)
        for mine, other in zip(columns(past), columns(their_past), strict=True):
            for a, b in zip(mine, other, strict=len(other) == len(mine)):
                compare("cached keys and values", a, b, where=where)
        count("caches compared")


def test_their_cache_is_read_as_it_is(pairs: Pairs) -> None:
    theirs, ours = pairs.theirs(LM), pairs.ours(LM, "sdpa")
    past = theirs(IDS[:, :8], use_cache=True).past_key_values
    found = ours(IDS[:, 8:], past_key_values=past)
    compare("cached logits", found.logits, theirs(IDS).logits[:, 8:], where="their object")


@pytest.mark.parametrize("cls", [LM, "GPT2Model", "GPT2DoubleHeadsModel"])
def test_facts_of_a_model(pairs: Pairs, cls: str) -> None:
    theirs, ours = pairs.theirs(cls), pairs.ours(cls, "sdpa")
    for arguments in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert ours.num_parameters(**arguments) == theirs.num_parameters(**arguments)
    assert ours.get_input_embeddings().weight.shape == theirs.get_input_embeddings().weight.shape
    assert (ours.device, ours.dtype) == (theirs.device, theirs.dtype)


def test_resized_rows_follow_the_same_distribution(pairs: Pairs) -> None:
    """Both draw around the mean of the old rows, so closely that the mean is what they give."""
    theirs, ours = copy.deepcopy(pairs.theirs(LM)), copy.deepcopy(pairs.ours(LM, "sdpa"))
    for model in (theirs, ours):
        assert model.resize_token_embeddings(100, pad_to_multiple_of=8).num_embeddings == 104
    a, b = ours.transformer.wte.weight, theirs.transformer.wte.weight
    assert torch.equal(a[:97], b[:97])
    assert_close(a[97:], b[97:], 1e-3)
    theirs.resize_token_embeddings(90)
    ours.resize_token_embeddings(90)
    compare("resized logits", ours(IDS % 90).logits, theirs(IDS % 90).logits, where="fewer tokens")
