"""Attention over a prompt in bfloat16 on a CPU: as near to the equation as torch's own kernel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import GPT2LMHeadModel
from gpt2.modeling import backends, bfloat16_attention
from gpt2.modeling.backends import attend_sdpa, attention_weights
from gpt2.modeling.bfloat16_attention import attend_in_blocks, suits_blocks
from tests.helpers import tiny_model

B, H, DH = 2, 3, 16
PLAIN: dict[str, Any] = {"mask": None, "causal": True, "dropout_p": 0.0}


def qkv(queries: int, keys: int, factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """As the model makes them: the heads of a token side by side."""
    generator = torch.Generator().manual_seed(queries + keys)
    q, k, v = (
        torch.randn(B, n, H, DH, generator=generator).transpose(1, 2).to(torch.bfloat16)
        for n in (queries, keys, keys)
    )
    return q * factor, k, v


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The equation in float64, of the same rounded numbers."""
    q, k, v = q.double(), k.double(), v.double()
    return attention_weights(q, k, mask=None, scale=scale, causal=True) @ v


def deviation(x: Tensor, other: Tensor) -> float:
    return float((x.double() - other).pow(2).mean().sqrt())


@pytest.fixture(params=[(128, 2**21), (16, 2**21), (128, H * 50 * 7)], ids=str)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as they are; short ones; ones that the number of scores shortens."""
    monkeypatch.setattr(bfloat16_attention, "_BLOCK", request.param[0])
    monkeypatch.setattr(bfloat16_attention, "_BLOCK_NUMBERS", request.param[1])


@pytest.mark.parametrize("sizes", [(128, 128), (300, 300), (130, 257), (1, 50), (49, 50)], ids=str)
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_it_is_the_equation(blocks: None, sizes: tuple[int, int], wide: bool, scale: float) -> None:
    q, k, v = qkv(*sizes)
    expected = exact(q, k, v, scale)
    if wide:
        q, k, v = q.float(), k.float(), v.float()
    found = attend_in_blocks(q, k, v, scale=scale)
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    assert found.transpose(1, 2).is_contiguous()  # merging the heads is a view
    assert (found.double() - expected).abs().max() <= 2**-7 * v.abs().max()


def test_large_scores_lose_no_more_than_in_torchs_kernel() -> None:
    """In bfloat16 a score of 60 would be known to within 0.12."""
    q, k, v = qkv(256, 256, factor=8.0)
    expected = exact(q, k, v, 0.25)
    own = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25)
    found = attend_in_blocks(q, k, v, scale=0.25)
    assert deviation(found, expected) <= 1.3 * deviation(own, expected)


def test_what_does_not_suit_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(128, 130)
    assert suits_blocks(q, k, v, **PLAIN)
    seen = torch.ones(1, 1, 128, 130, dtype=torch.bool)
    for other in ({"mask": seen}, {"causal": False}, {"dropout_p": 0.1}):
        assert not suits_blocks(q, k, v, **{**PLAIN, **other})
    assert not suits_blocks(q[:, :, 1:], k, v, **PLAIN)
    assert not suits_blocks(q, k[:, :, :100], v[:, :, :100], **PLAIN)
    assert not suits_blocks(q.clone().requires_grad_(), k, v, **PLAIN)
    assert not suits_blocks(*(t.to("meta") for t in (q, k, v)), **PLAIN)
    with torch.no_grad():
        assert suits_blocks(q.clone().requires_grad_(), k, v, **PLAIN)
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits_blocks(q, k, v, **PLAIN)
    found = []
    torch.func.vmap(lambda x: found.append(suits_blocks(x, x, x, **PLAIN)) or x)(torch.stack([q]))
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        found.append(suits_blocks(q, k, v, **PLAIN))
    monkeypatch.setattr(bfloat16_attention, "IN_BLOCKS_ON_CPU", False)
    found.append(suits_blocks(q, k, v, **PLAIN))
    assert found == [False] * 3


def test_a_prompt_in_bfloat16_uses_it_alone_and_behind_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, int]] = []

    def counted(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        calls.append((q.shape[2], k.shape[2]))
        return attend_in_blocks(q, k, v, scale=scale)

    monkeypatch.setattr(backends, "attend_in_blocks", counted)
    wide = tiny_model(n_positions=300)
    ids = torch.randint(0, 96, (2, 290), generator=torch.Generator().manual_seed(0))
    narrow: GPT2LMHeadModel = tiny_model(n_positions=300).to(torch.bfloat16)
    with torch.no_grad():
        wanted = wide(ids).logits
        assert calls == []  # float32 keeps torch's kernel
        found = narrow(ids).logits
        assert calls == [(290, 290)] * 2
        past = narrow(ids[:, :100]).past_key_values
        chunk = narrow(ids[:, 100:], past_key_values=past).logits
        assert calls[2:] == [(190, 290)] * 2
        step = narrow(ids[:, :1], past_key_values=past).logits
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        narrow(ids, attention_mask=mask)
        assert len(calls) == 4
        mask = mask.flip(1)  # right padding hides nothing that matters
        narrow(ids, attention_mask=mask)
        assert len(calls) == 6
    assert step.shape[1] == 1
    bound = 2e-2 * wanted.abs().max()
    assert (found - wanted).abs().max() <= bound
    assert (chunk - wanted[:, 100:]).abs().max() <= bound


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_prepared_model_uses_it_where_its_weights_are_narrow(
    monkeypatch: pytest.MonkeyPatch, weights: Any, backend: str
) -> None:
    calls: list[torch.dtype] = []

    def counted(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        calls.append(q.dtype)
        return attend_in_blocks(q, k, v, scale=scale)

    monkeypatch.setattr(backends, "attend_in_blocks", counted)
    model = tiny_model(n_positions=200, attn_implementation=backend)
    prepared = model.prepare_for_inference(weights=weights)
    ids = torch.randint(0, 96, (2, 130), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = model(ids).logits, prepared(ids).logits
        past = prepared(ids[:, :129]).past_key_values
        step = prepared(ids[:, 129:], past_key_values=past).logits
    used = weights != "float32" and backend == "sdpa"
    assert calls == [torch.float32] * 4 * used
    error = {"float32": 1e-6, "bfloat16": 2e-2, "int8": 5e-2}[weights]
    assert (found - wanted).abs().max() <= error * wanted.abs().max()
    assert (step[:, 0] - wanted[:, -1]).abs().max() <= error * wanted.abs().max()


def test_the_room_is_used_again_in_every_mode_and_by_one_thread_alone() -> None:
    small, large = qkv(128, 128), qkv(140, 200)
    bfloat16_attention._held.__dict__.clear()
    with torch.inference_mode():
        first = attend_in_blocks(*small, scale=0.25)
    assert torch.equal(attend_in_blocks(*small, scale=0.25), first)
    held = bfloat16_attention._room(1)
    attend_in_blocks(*large, scale=0.25)
    assert torch.equal(attend_in_blocks(*small, scale=0.25), first)
    assert len(bfloat16_attention._room(1)[0]) > len(held[0])
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(bfloat16_attention._room, 1).result()
    assert other[0].data_ptr() != bfloat16_attention._room(1)[0].data_ptr()


def test_training_keeps_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "attend_in_blocks", None)  # would not be callable
    q, k, v = (t.requires_grad_() for t in qkv(128, 128))
    attend_sdpa(q, k, v, scale=0.25, **PLAIN).sum().backward()
    assert q.grad is not None
