"""Attention with dropout on a CPU: equal to its equation under the same mask, and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2LMHeadModel
from gpt2.modeling import dropout as dropout_module
from gpt2.modeling import dropped_attention
from gpt2.modeling.backends import attend_eager, attend_sdpa, attention_weights
from gpt2.modeling.dropped_attention import attend_with_dropout
from tests.helpers import assert_close, tiny_config, tiny_model

B, H, DH, P = 3, 2, 4, 0.3


def qkv(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """As the model makes them: views of one tensor with all heads of a token side by side."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, n, H, DH) for n in (queries, keys, keys)]
    drawn = [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]
    return [t.requires_grad_().transpose(1, 2) for t in drawn]


def grad_of(views: list[Tensor]) -> list[Tensor]:
    return [v._base.grad for v in views]  # type: ignore[union-attr]


def masks(queries: int, keys: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(B, 1, queries, keys, generator=generator) > 0.4
    seen[..., 0] = True
    return {
        "none": None,
        "bool": seen,
        "one row": seen[:1],
        "additive": torch.randn(B, 1, queries, keys, generator=generator),
        "per head": torch.randn(1, H, queries, keys, generator=generator),
    }


@pytest.fixture(params=[1, 12, 60, 2**20], ids=lambda numbers: f"{numbers} numbers a block")
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query at a time, several, a row of the batch, all rows together."""
    monkeypatch.setattr(dropped_attention, "_BLOCK_NUMBERS", request.param)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The mask (B, H, T, S) of zeros and ones that every draw gives, whatever the blocks."""
    keep = torch.rand(B, H, 16, 16, generator=torch.Generator().manual_seed(2)) > P

    real = dropped_attention._Blocks

    class Recorded(real):  # type: ignore[valid-type, misc]
        def __iter__(self) -> Any:
            for rows, queries, seen in real.__iter__(self):
                part[:] = [keep[rows, :, queries, :seen].flatten().to(torch.uint8)]
                yield rows, queries, seen

    part: list[Tensor] = []

    def arranged(count: int, p: float, generator: torch.Generator) -> Tensor:
        assert p == P
        assert part[0].numel() == count
        return part[0]

    monkeypatch.setattr(dropped_attention, "_Blocks", Recorded)
    monkeypatch.setattr(dropped_attention, "kept", arranged)
    return keep


SIZES = [(7, 7), (3, 8), (1, 6), (16, 16)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["none", "bool", "one row", "additive", "per head"])
def test_output_and_gradients_are_the_equations_under_the_same_mask(
    block: None, pinned: Tensor, sizes: tuple[int, int], causal: bool, kind: str
) -> None:
    mask = masks(*sizes)[kind]
    ours, theirs = qkv(*sizes), qkv(*sizes)
    settings: dict[str, Any] = {"mask": mask, "scale": 0.4, "causal": causal}
    out = attend_with_dropout(*ours, **settings, dropout_p=P)
    q, k, v = theirs
    weights = attention_weights(q, k, **settings)
    keep = pinned[:, :, : sizes[0], : sizes[1]]
    expected = (weights * keep / (1 - P)) @ v
    assert_close(out, expected)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    out.backward(gradient)
    expected.backward(gradient)
    for name, one, other in zip("qkv", grad_of(ours), grad_of(theirs), strict=True):
        assert_close(one, other, what=name)


@pytest.mark.parametrize("causal", [True, False])
def test_the_gradient_is_that_of_finite_differences(
    block: None, pinned: Tensor, causal: bool
) -> None:
    inputs = [t.detach().requires_grad_() for t in qkv(3, 4, torch.float64)]
    for kind in ("none", "bool", "additive"):
        mask = masks(3, 4)[kind]
        mask = mask.double() if mask is not None and mask.is_floating_point() else mask

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = mask) -> Tensor:
            return attend_with_dropout(q, k, v, mask=mask, scale=0.5, causal=causal, dropout_p=P)

        assert torch.autograd.gradcheck(attend, inputs)


def test_every_weight_is_dropped_by_itself_and_the_mean_stays() -> None:
    """With v the identity the output is the dropped weights themselves."""
    rows, heads, length = 16, 4, 64
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(rows, heads, length, length, generator=generator) for _ in range(2))
    v = torch.eye(length).expand(rows, heads, -1, -1)
    settings: dict[str, Any] = {"mask": None, "scale": 0.1, "causal": True}
    weights = attention_weights(q, k, **settings)
    torch.manual_seed(0)
    out = attend_sdpa(q, k, v, dropout_p=0.1, **settings)
    ratio = out / weights
    visible = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, heads, -1, -1)
    assert not out[~visible].any()
    drawn = ratio[visible]
    kept = drawn > 0.5
    assert_close(drawn[kept], torch.full_like(drawn[kept], 1 / 0.9))
    assert not drawn[~kept].any()
    n = kept.numel()
    assert abs(kept.float().mean() - 0.9) <= 5 * (0.09 / n) ** 0.5
    x = torch.where(visible, (ratio > 0.5).float() - 0.9, 0.0)
    for one, other in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[:, :, 1:], x[:, :, :-1])):
        pairs = (one * other)[(one != 0) & (other != 0)]  # rows, heads, queries
        assert abs(pairs.mean()) <= 5 * 0.09 / pairs.numel() ** 0.5
    again = attend_sdpa(q, k, v, dropout_p=0.1, **settings)
    assert not torch.equal(again, out)
    torch.manual_seed(0)
    assert torch.equal(attend_sdpa(q, k, v, dropout_p=0.1, **settings), out)


def test_it_is_used_in_training_on_a_cpu_and_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        "gpt2.modeling.backends.attend_with_dropout",
        lambda *a, **k: calls.append(1) or attend_with_dropout(*a, **k),
    )
    ids = torch.arange(10)[None]
    model = tiny_model(attn_pdrop=0.1)
    model(ids)
    assert calls == []
    model.train()
    model(ids)
    assert len(calls) == 2  # layers
    monkeypatch.setattr(dropout_module, "CHEAP_ON_CPU", False)
    model(ids)
    assert len(calls) == 2


def test_a_mask_that_learns_is_left_to_torch() -> None:
    q, k, v = qkv(5, 5)
    bias = torch.zeros(1, H, 5, 5, requires_grad=True)
    attend_sdpa(q, k, v, mask=bias, scale=1.0, causal=True, dropout_p=0.1).sum().backward()
    assert bias.grad is not None
    assert bias.grad.any()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision(block: None, pinned: Tensor, kind: torch.dtype) -> None:
    exact = qkv(7, 7)
    halves = [t.detach().to(kind).requires_grad_() for t in exact]
    settings: dict[str, Any] = {"mask": None, "scale": 0.4, "causal": True, "dropout_p": P}
    expected, out = (
        attend_with_dropout(*exact, **settings),
        attend_with_dropout(*halves, **settings),
    )
    assert out.dtype == kind
    assert_close(out.float(), expected, 8 * torch.finfo(kind).eps)
    out.sum().backward()
    expected.sum().backward()
    for half, whole in zip(halves, grad_of(exact), strict=True):
        bound = 16 * torch.finfo(kind).eps
        assert_close(half.grad.float(), whole.transpose(1, 2), bound)


def test_autocast_and_a_frozen_trunk() -> None:
    model = tiny_model(attn_pdrop=0.1, resid_pdrop=0.1).train()
    ids = torch.arange(10)[None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
        loss.backward()  # inside too
    assert all(p.grad.isfinite().all() for p in model.parameters())
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    model(ids, labels=ids).loss.backward()


@pytest.mark.parametrize(
    "mask", [None, [[1] * 10 + [0] * 2, [1] * 12], [[0] * 3 + [1] * 9, [1] * 12]]
)
def test_a_whole_model_under_pinned_masks_equals_the_eager_one(
    mask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing dropped, but everything divided by 1 − p."""
    for module in (dropped_attention, dropout_module):
        monkeypatch.setattr(
            module, "kept", lambda count, p, generator=None: torch.ones(count, dtype=torch.uint8)
        )
    ids = torch.arange(24).view(2, 12)
    attention_mask = None if mask is None else torch.tensor(mask)
    results = []
    for backend in ("sdpa", "eager"):
        model = tiny_model(
            GPT2LMHeadModel, attn_pdrop=0.1, resid_pdrop=0.2, attn_implementation=backend
        ).train()
        loss = model(ids, labels=ids, attention_mask=attention_mask).loss
        loss.backward()
        results.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert_close(gradient, results[1][1][name], what=name)


def test_the_eager_backend_drops_alike() -> None:
    q, k, v = qkv(5, 5)
    settings: dict[str, Any] = {"mask": None, "scale": 1.0, "causal": True, "dropout_p": 0.1}
    torch.manual_seed(0)
    first = attend_eager(q, k, v, **settings)
    torch.manual_seed(0)
    assert torch.equal(attend_eager(q, k, v, **settings), first)
    assert tiny_config(attn_pdrop=0.1).attn_pdrop == 0.1
