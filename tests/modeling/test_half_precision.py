"""Half precision: bfloat16 within stated bounds of float32, and nothing infinite under any mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)
from tests.helpers import at_attended, tiny_model
from tests.parity.record import compare

BACKENDS = ("eager", "sdpa")  # flash_attention_2: test_flash.py, on a GPU
HALVES = (torch.float16, torch.bfloat16)
HEADS: dict[str, Any] = {
    "GPT2Model": GPT2Model,
    "GPT2LMHeadModel": GPT2LMHeadModel,
    "GPT2DoubleHeadsModel": GPT2DoubleHeadsModel,
    "GPT2ForQuestionAnswering": GPT2ForQuestionAnswering,
    "GPT2ForSequenceClassification": GPT2ForSequenceClassification,
    "GPT2ForTokenClassification": GPT2ForTokenClassification,
}
# Largest error against float32 with the same (rounded) weights, relative to the largest entry of
# the tensor: bfloat16 keeps 8 bits, float16 11, and every layer rounds some ten times.
BOUNDS = {torch.bfloat16: (2e-2, 4e-2), torch.float16: (3e-3, 8e-3)}  # outputs, gradients

IDS = torch.randint(0, 97, (3, 9), generator=torch.Generator().manual_seed(1))
MASKS = {
    "none": None,
    "left": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9, [0] * 7 + [1] * 2]),
    "right": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 9, [1] * 2 + [0] * 7]),
}
FLAGS: list[dict[str, Any]] = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(f) or "default")
@pytest.mark.parametrize("side", MASKS)
def test_half_precision_is_near_float32(
    dtype: torch.dtype, backend: str, flags: dict[str, Any], side: str
) -> None:
    """Logits, loss and gradients of the language model, alone and in two cached chunks."""
    mask = MASKS[side]
    outputs, gradients = BOUNDS[dtype]
    name = str(dtype).removeprefix("torch.")
    kinds = {}
    for kind in (dtype, torch.float32):
        model = tiny_model(attn_implementation=backend, **flags).to(dtype).to(kind)
        out = model(IDS, attention_mask=mask, labels=IDS)
        out.loss.backward()
        with torch.no_grad():
            first = None if mask is None else mask[:, :5]
            past = model(IDS[:, :5], attention_mask=first).past_key_values
            cached = model(IDS[:, 5:], attention_mask=mask, past_key_values=past).logits
        late = None if mask is None else mask[:, 5:]
        assert out.logits.dtype == kind
        kinds[kind] = (
            [at_attended(out.logits, mask), out.loss, at_attended(cached, late)],
            [p.grad for p in model.parameters()],
        )
    where = f"{backend} {'+'.join(flags) or 'default'} {side}"
    for i, bound in enumerate((outputs, gradients)):
        what = ("outputs", "gradients")[i]
        for here, there in zip(kinds[dtype][i], kinds[torch.float32][i], strict=True):
            compare(f"{name} {what} {backend}", here, there, where=where, tolerance=bound)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_near_float32(dtype: torch.dtype, backend: str, name: str) -> None:
    mask = MASKS["left"]
    found = []
    for kind in (dtype, torch.float32):
        model = tiny_model(HEADS[name], attn_implementation=backend).to(dtype).to(kind)
        ids, given = (IDS[:, None], mask[:, None]) if "Double" in name else (IDS, mask)
        out = model(ids, attention_mask=given)
        found.append([t for t in out.values() if isinstance(t, Tensor)])
    for here, there in zip(*found, strict=True):
        seen, expected = (
            t.masked_fill(mask == 0, 0.0) if "QuestionAnswering" in name else t
            for t in (here, there)
        )
        if seen.shape[:2] == mask.shape:
            seen, expected = at_attended(seen, mask), at_attended(expected, mask)
        elif "Double" in name and seen.dim() == 4:
            seen, expected = (at_attended(t[:, 0], mask) for t in (seen, expected))
        kind = f"{str(dtype).removeprefix('torch.')} {name}"
        compare(kind, seen, expected, where=backend, tolerance=BOUNDS[dtype][0])


def hidden_rows(kind: str, dtype: torch.dtype) -> Tensor:
    """A mask under which some queries, or a whole row of the batch, see nothing at all."""
    if kind == "2-D":
        mask = MASKS["left"].clone()
        mask[2] = 0
        return mask
    seen = torch.ones(9, 9, dtype=torch.bool).tril().repeat(3, 1, 1, 1)
    seen[0, 0, 4] = False
    seen[1] = False
    if kind == "4-D bool":
        return seen
    wide = "float32" in kind
    number = torch.finfo(torch.float32 if wide else dtype).min if "lowest" in kind else -torch.inf
    return torch.zeros(seen.shape, dtype=torch.float32 if wide else dtype).masked_fill(
        ~seen, number
    )


HIDING = (
    "2-D",
    "4-D bool",
    "4-D -inf",
    "4-D -inf float32",
    "4-D lowest",
    "4-D lowest float32",
)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hiding", HIDING)
@pytest.mark.parametrize("name", HEADS)
def test_everything_is_finite_where_all_is_hidden(
    dtype: torch.dtype, backend: str, hiding: str, name: str
) -> None:
    """Values at padding, attentions and gradients too; with and without asking for attentions."""
    mask: Tensor = hidden_rows(hiding, dtype)
    model = tiny_model(HEADS[name], attn_implementation=backend).to(dtype)
    ids = IDS
    if "Double" in name:
        ids = IDS[:, None]
        mask = mask[:, None] if mask.dim() == 2 else mask
    for upcast in (False, True):
        for block in model.modules():
            if hasattr(block, "upcast"):
                block.upcast = upcast
        for weights in (False, True):
            out = model(ids, attention_mask=mask, output_attentions=weights)
            tensors = [t for t in out.values() if isinstance(t, Tensor)]
            assert all(t.isfinite().all() for t in (*tensors, *(out.attentions or ())))
            model.zero_grad()
            sum(t.float().clamp(-1e4, 1e4).sum() for t in tensors).backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            assert len(grads) > 10
            assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [False, True])
def test_documents_and_encoders_stay_finite(
    dtype: torch.dtype, backend: str, training: bool
) -> None:
    model = tiny_model(attn_implementation=backend, add_cross_attention=True, attn_pdrop=0.2)
    model = model.to(dtype).train(training)
    mask = hidden_rows("2-D", dtype)
    out = model(
        IDS,
        attention_mask=mask,
        document_ids=torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2]]).expand(3, -1),
        encoder_hidden_states=torch.randn(3, 4, 32, dtype=dtype),
        encoder_attention_mask=torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]]),
        labels=IDS,
    )
    out.loss.backward()
    assert out.logits.isfinite().all()
    assert out.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
