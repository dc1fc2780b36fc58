"""Packed rows give what transformers gives: 5.x reads documents out of positions that begin anew.

It does so only where it gets no mask. (4.x sees the whole row, and is left out.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parity.record import compare, count
from tests.parity.reference import BACKENDS, Pairs, in_our_orientation, random_ids, transformers

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        transformers.__version__.startswith("4."), reason="transformers 5 packs by positions"
    ),
]

LENGTHS = ((4, 1, 5), (10,), (2, 3, 5))
DOCUMENTS = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in LENGTHS])
POSITIONS = torch.tensor([[p for n in row for p in range(n)] for row in LENGTHS])
IDS = random_ids(11, 3, 10)
# In theirs the label of a document's first token has to be left out by hand.
LABELS = IDS.masked_fill(POSITIONS == 0, -100)
FLAGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no-scale": {"scale_attn_weights": False},
    "inverse-layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_rows(pairs: Pairs, backend: str, flags: str) -> None:
    name, where = "GPT2LMHeadModel", f"{backend} {flags}"
    theirs = pairs.theirs(name, **FLAGS[flags])
    ours = pairs.ours(name, backend, **FLAGS[flags])
    theirs.zero_grad()
    ours.zero_grad()
    expected = theirs(IDS, position_ids=POSITIONS, labels=LABELS)
    found = ours(IDS, document_ids=DOCUMENTS, labels=IDS)
    expected.loss.backward()
    found.loss.backward()
    compare("packed logits", found.logits, expected.logits, where=where)
    compare("packed loss", found.loss, expected.loss, where=where)
    mine = dict(ours.named_parameters())
    for parameter, (value, turned) in in_our_orientation(theirs).items():
        gradient = value.grad.T if turned else value.grad
        compare("packed gradients", mine[parameter].grad, gradient, where=f"{where} {parameter}")
    count("packed cases")
