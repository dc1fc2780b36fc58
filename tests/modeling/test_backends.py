"""The attention backends: one contract, held by each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2LMHeadModel, GPT2Model
from gpt2.errors import BackendError
from gpt2.modeling.backends import attention_weights, get_backend
from tests.helpers import assert_close, relative_error, tiny_config, tiny_model

B, H, DH = 2, 3, 8
DENSE = ("eager", "sdpa")  # flash_attention_2 has its own tests: test_flash.py


def qkv(query_length: int, key_length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(B, H, n, DH, generator=generator)
        for n in (query_length, key_length, key_length)
    )
    return q, k, v


def one_by_one(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """The contract, spelt out: each query over exactly the keys it sees, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys = seen.expand(B, H, *seen.shape[-2:])[b, h, i]
        scores = (k[b, h, keys].double() @ q[b, h, i].double()) * scale
        if bias is not None:
            scores = scores + bias.expand(B, H, *bias.shape[-2:])[b, h, i, keys].double()
        out[b, h, i] = scores.softmax(0) @ v[b, h, keys].double()
    return out


def causal(query_length: int, key_length: int) -> Tensor:
    ones = torch.ones(query_length, key_length, dtype=torch.bool)
    return ones.tril(key_length - query_length)[None, None]


@pytest.mark.parametrize("backend", DENSE)
@pytest.mark.parametrize("sizes", [(5, 5), (1, 5), (3, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kind", ["none", "bool", "additive", "per head"])
@pytest.mark.parametrize("scale", [DH**-0.5, 1.0, 0.1])
def test_equals_the_definition(
    backend: str, sizes: tuple[int, int], is_causal: bool, kind: str, scale: float
) -> None:
    q, k, v = qkv(*sizes)
    generator = torch.Generator().manual_seed(1)
    seen = causal(*sizes) if is_causal else torch.ones(1, 1, *sizes, dtype=torch.bool)
    mask, bias = None, None
    if kind == "bool":
        mask = torch.rand(B, 1, *sizes, generator=generator) > 0.4
        mask[..., 0] = True  # no query without a key
        seen = seen & mask
    elif kind != "none":
        heads = H if kind == "per head" else 1
        mask = bias = torch.randn(B, heads, *sizes, generator=generator)
    out = get_backend(backend)(q, k, v, mask=mask, scale=scale, causal=is_causal, dropout_p=0.0)
    assert_close(out, one_by_one(q, k, v, seen, bias, scale))


@pytest.mark.parametrize("backend", DENSE)
def test_a_query_that_sees_nothing_stays_finite(backend: str) -> None:
    q, k, v = qkv(4, 4)
    hidden = torch.ones(B, 1, 4, 4, dtype=torch.bool)
    hidden[0, 0, 2] = False
    lowest = torch.zeros(B, 1, 4, 4).masked_fill(~hidden, torch.finfo(torch.float32).min)
    for mask in (hidden, lowest):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        out = get_backend(backend)(*leaves, mask=mask, scale=0.3, causal=False, dropout_p=0.0)
        out.sum().backward()
        assert out.isfinite().all()
        assert all(t.grad.isfinite().all() for t in leaves)


@pytest.mark.parametrize("backend", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_scores_under_the_lowest_mask_stay_finite(backend: str, dtype: torch.dtype) -> None:
    """In float16 the lowest number less 100 is −inf, and a row of that would be NaN."""
    q, k = torch.ones(1, 1, 3, 8, dtype=dtype), torch.full((1, 1, 3, 8), -12.5, dtype=dtype)
    v = torch.arange(24, dtype=dtype).view(1, 1, 3, 8)
    mask = torch.full((1, 1, 3, 3), torch.finfo(dtype).min, dtype=dtype)
    out = get_backend(backend)(q, k, v, mask=mask, scale=1.0, causal=False, dropout_p=0.0)
    assert_close(out, v.mean(-2, keepdim=True).expand_as(v), 2e-2)


@pytest.mark.parametrize("backend", DENSE)
@pytest.mark.parametrize("masked", [True, False])
def test_dropout_keeps_the_mean(backend: str, masked: bool) -> None:
    """20 000 draws at once; their mean is without dropout, up to five standard errors."""
    q, k, v = (t[:1, :1].expand(20_000, 1, -1, -1) for t in qkv(4, 4))
    mask = causal(4, 4) if masked else None
    settings: dict[str, Any] = {"mask": mask, "scale": 0.3, "causal": not masked}
    torch.manual_seed(0)
    draws = get_backend(backend)(q, k, v, dropout_p=0.3, **settings)
    expected = get_backend(backend)(q[:1], k[:1], v[:1], dropout_p=0.0, **settings)[0]
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() <= 5 * error + 1e-6).all()
    assert (draws.std(0) > 0.05).all()
    assert not draws[:, :, 0].eq(expected[:, 0]).all()
    # the first query sees one key: dropped with p, else scaled by 1 / (1 - p)
    ratio = draws[:, 0, 0, 0] / v[0, 0, 0, 0]
    assert (ratio == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert_close(ratio[ratio != 0].mean(), torch.tensor(1 / 0.7), 1e-5)


@pytest.mark.parametrize("backend", DENSE)
@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("sizes", [(5, 5), (2, 6)], ids=str)
def test_dropout_has_the_mean_and_the_variance_of_theory(
    backend: str, p: float, sizes: tuple[int, int]
) -> None:
    """out = Σ_j w_j m_j v_j / (1 − p) with m_j = 1 in 1 − p of the cases, each drawn by itself.

    So the mean is Σ_j w_j v_j and the variance p / (1 − p) · Σ_j (w_j v_j)²; no
    two outputs of different queries go together. Over 20 000 draws.
    """
    draws, scale = 20_000, 0.3
    q, k, v = (t[:1] for t in qkv(*sizes))
    weights = attention_weights(q, k, mask=None, scale=scale, causal=True)  # (1, H, T, S)
    mean, variance = weights @ v, p / (1 - p) * weights.square() @ v.square()
    torch.manual_seed(0)
    many = (t.expand(draws, -1, -1, -1) for t in (q, k, v))
    out = get_backend(backend)(*many, mask=None, scale=scale, causal=True, dropout_p=p)
    assert ((out.mean(0) - mean[0]).abs() <= 5 * (variance[0] / draws).sqrt() + 1e-6).all()
    assert relative_error(out.var(0), variance[0]) <= 0.1
    centred = (out - mean)[:, 0, :, 0] / variance[0, 0, :, 0].sqrt()  # (draws, T)
    together = (centred.T @ centred / draws - torch.eye(sizes[0])).fill_diagonal_(0)
    assert together.abs().max() <= 5 / draws**0.5


def test_weights_are_a_distribution_over_visible_keys() -> None:
    q, k, _ = qkv(3, 5)
    weights = attention_weights(q, k, mask=None, scale=0.3, causal=True)
    assert_close(weights.sum(-1), torch.ones(B, H, 3))
    assert (weights.masked_select(~causal(3, 5)) == 0).all()
    assert (weights.masked_select(causal(3, 5)) > 0).all()


@pytest.mark.parametrize("name", ["spda", "flash", "", ["sdpa"], None])
def test_unknown_names_are_refused_with_the_list(name: Any) -> None:
    with pytest.raises(BackendError, match="it may be eager, sdpa"):
        get_backend(name)


@pytest.mark.parametrize("cls", [GPT2Model, GPT2LMHeadModel])
def test_an_unknown_backend_is_refused_when_the_model_is_built(cls: Any) -> None:
    with pytest.raises(BackendError, match=r"'spda'.*eager, sdpa; did you mean 'sdpa'"):
        cls(tiny_config(attn_implementation="spda"))


FLAGS: list[dict[str, Any]] = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(f) or "default")
@pytest.mark.parametrize("training", [False, True])
def test_every_backend_honours_every_flag(flags: dict[str, Any], training: bool) -> None:
    """Loss, logits and gradients of all backends agree; and each flag does something."""
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 9)
    mask[0, :4] = 0
    head_mask = torch.tensor([[1.0, 0.0, 0.5, 1.0], [1.0, 2.0, 1.0, 0.0]])
    results = []
    for backend in DENSE:
        for weights in (False, True):  # asked for, they are computed explicitly
            model = tiny_model(attn_implementation=backend, **flags).train(training)
            out = model(
                ids,
                attention_mask=mask,
                head_mask=head_mask,
                labels=ids,
                output_attentions=weights,
            )
            out.loss.backward()
            results.append((out.logits[1], out.logits[0, 4:], out.loss, *grads(model)))
            assert (out.attentions is not None) == weights
    for found in results[1:]:
        for here, there in zip(found, results[0], strict=True):
            assert_close(here, there)
    if set(flags) & {"scale_attn_weights", "scale_attn_by_inverse_layer_idx"}:
        plain = tiny_model().train(training)(ids, attention_mask=mask, head_mask=head_mask)
        assert (plain.logits[1] - results[0][0]).abs().max() > 1e-3


def grads(model: GPT2LMHeadModel) -> list[Tensor]:
    return [p.grad for p in model.parameters()]
