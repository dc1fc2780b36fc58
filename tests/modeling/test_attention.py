"""Attention beyond the backends: scales, upcasting, head masks, dropout in train mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2Model
from gpt2.errors import ArgumentError
from gpt2.modeling.attention import GPT2Attention
from gpt2.modeling.backends import BACKENDS
from gpt2.modeling.masks import Visibility
from tests.helpers import assert_close, randomise, tiny_config, tiny_model

DENSE = ("eager", "sdpa")  # flash_attention_2 has its own tests: test_flash.py
X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(0, 97, (2, 5), generator=torch.Generator().manual_seed(2))


def attention(**settings: Any) -> GPT2Attention:
    layer_idx = settings.pop("layer_idx", 0)
    module = GPT2Attention(tiny_config(**settings), layer_idx=layer_idx)
    randomise(module)
    return module.eval()


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 8**-0.5),
        ({"scale_attn_weights": False}, 1.0),
        ({"layer_idx": 3, "scale_attn_by_inverse_layer_idx": True}, 8**-0.5 / 4),
        (
            {
                "layer_idx": 1,
                "scale_attn_weights": False,
                "scale_attn_by_inverse_layer_idx": True,
            },
            0.5,
        ),
    ],
)
def test_scores_are_scaled_as_the_config_says(settings: dict[str, Any], scale: float) -> None:
    assert attention(n_layer=4, **settings).scale == pytest.approx(scale)


@pytest.mark.parametrize("backend", DENSE)
def test_head_mask_scales_each_heads_output(backend: str) -> None:
    """Equal to scaling the columns of c_proj that read the head."""
    module = attention(attn_implementation=backend)
    factors = torch.tensor([1.0, 0.0, 0.5, -2.0])
    masked, weights = module(
        X, Visibility(), head_mask=factors[:, None, None], output_attentions=True
    )
    plain, unmasked = module(X, Visibility(), output_attentions=True)
    assert_close(weights, unmasked * factors[:, None, None])
    assert_close(module(X, Visibility(), head_mask=factors[:, None, None])[0], masked)
    with torch.no_grad():
        module.c_proj.weight *= factors.repeat_interleave(8)
    assert_close(masked, module(X, Visibility())[0])
    assert_close(
        module(X, Visibility(), head_mask=torch.ones(4, 1, 1))[0], module(X, Visibility())[0]
    )
    assert (masked - plain).abs().max() > 1e-2


def test_head_mask_per_layer() -> None:
    model = tiny_model(GPT2Model)
    mask = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    out = model(IDS, head_mask=mask, output_attentions=True)
    assert [[bool(a[:, h].any()) for h in range(4)] for a in out.attentions] == [
        [True, False, True, True],
        [True, True, False, True],
    ]
    same = mask[:1].expand(2, 4)
    assert_close(
        model(IDS, head_mask=mask[0]).last_hidden_state,
        model(IDS, head_mask=same).last_hidden_state,
    )
    with pytest.raises(ArgumentError, match="head_mask names 3 heads; layer 0 has 4"):
        model(IDS, head_mask=torch.ones(2, 3))


class Recorded:
    """Stands in for a backend, and keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        self.calls.append({"dtypes": {q.dtype, k.dtype, v.dtype}, **options})
        return BACKENDS["sdpa"](q, k, v, **options)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    backend = Recorded()
    monkeypatch.setitem(BACKENDS, "recorded", backend)
    return backend


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_an_additive_mask_stays_finite_under_autocast(
    recorded: Recorded, kind: torch.dtype
) -> None:
    """float32's lowest number is −inf in half precision; a row of it gives NaN in some kernels."""
    model = tiny_model(GPT2Model, attn_implementation="recorded")
    mask = torch.zeros(1, 1, 5, 5)
    mask[0, 0, 2] = -torch.inf
    with torch.no_grad(), torch.autocast("cpu", dtype=kind):
        out = model(IDS, attention_mask=mask).last_hidden_state
    assert out.isfinite().all()
    for call in recorded.calls:
        assert call["mask"].dtype == kind
        assert call["dtypes"] == {kind}
        assert call["mask"].isfinite().all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_query_that_an_additive_mask_hides_sees_all_keys_alike(kind: torch.dtype) -> None:
    """As with the lowest number in the reference; −inf gives that, and not NaN, or zeros."""
    lowest = torch.zeros(1, 1, 5, 5, dtype=kind)
    lowest[0, 0, 2] = torch.finfo(kind).min
    infinite = lowest.clone()
    infinite[0, 0, 2] = -torch.inf
    outs = [
        tiny_model(GPT2Model, attn_implementation=name).to(kind)(IDS, attention_mask=mask)
        for name in DENSE
        for mask in (lowest, infinite)
    ]
    for other in outs[1:]:
        tolerance = 1e-5 if kind == torch.float32 else 3e-2
        assert_close(other.last_hidden_state, outs[0].last_hidden_state, tolerance)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("backend", ["recorded", "eager"])
def test_upcasting_computes_scores_in_float32(
    recorded: Recorded, backend: str, autocast: bool
) -> None:
    kind = torch.bfloat16
    found = {}
    for upcast in (True, False):
        module = attention(attn_implementation=backend, reorder_and_upcast_attn=upcast)
        x = X if autocast else X.to(kind)
        module = module if autocast else module.to(kind)
        with torch.no_grad(), torch.autocast("cpu", dtype=kind, enabled=autocast):
            projected = module.c_attn(x)
            out, found[upcast] = module(x, Visibility(), output_attentions=True)
            assert_close(module(x, Visibility())[0].float(), out.float(), 2e-2)
    q, k, _ = (module.split_heads(part).float() for part in projected.chunk(3, -1))
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(hidden, -torch.inf)
    exact = scores.softmax(-1).to(kind)
    assert torch.equal(found[True], exact)
    assert not torch.equal(found[False].to(kind), exact)
    if backend == "recorded":
        assert [call["dtypes"] for call in recorded.calls] == [{torch.float32}, {kind}]


@pytest.mark.parametrize("backend", DENSE)
@pytest.mark.parametrize("weights", [True, False])
def test_dropout_acts_in_training_only(backend: str, weights: bool) -> None:
    model = tiny_model(GPT2Model, attn_implementation=backend, attn_pdrop=0.5)

    def run() -> Tensor:
        return model(IDS, output_attentions=weights).last_hidden_state.detach()

    assert torch.equal(run(), run())
    still = run()
    model.train()
    torch.manual_seed(0)
    one, other = run(), run()
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(run(), one)
    model.h.requires_grad_(False)
    # only attention is dropped: what the first token computes from one key is 0 or twice itself
    out = model(IDS, output_attentions=True)
    assert set(out.attentions[0][:, :, 0, 0].flatten().tolist()) <= {0.0, 2.0}
    assert (still - one).abs().max() > 1e-3


@pytest.mark.parametrize("backend", DENSE)
def test_dropout_in_training_keeps_the_mean_of_a_layer(backend: str) -> None:
    """Over 4 000 rows in one batch: the layer is linear in its weights."""
    module = attention(attn_implementation=backend, attn_pdrop=0.3, resid_pdrop=0.2)
    expected = module(X[:1], Visibility())[0][0]
    module.train()
    torch.manual_seed(0)
    draws = module(X[:1].expand(4000, -1, -1), Visibility())[0]
    error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - expected).abs() <= 5 * error).all()
    # a fifth of the outputs is dropped, all else is scaled by 1 / 0.8
    assert (draws == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("backend", DENSE)
@pytest.mark.parametrize("upcast", [False, True])
def test_attentions_in_training_are_those_that_made_the_output(backend: str, upcast: bool) -> None:
    """The weights given are after dropout, and the layer's output is made of them, all of it."""
    module = attention(
        attn_implementation=backend, attn_pdrop=0.4, reorder_and_upcast_attn=upcast
    ).train()
    factors = torch.tensor([1.0, 0.5, 0.0, 2.0])
    torch.manual_seed(0)
    out, weights = module(X, Visibility(), head_mask=factors[:, None, None], output_attentions=True)
    assert weights is not None
    v = module.split_heads(module.c_attn(X).chunk(3, -1)[2])
    assert_close(out, module.c_proj(module.merge_heads(weights @ v)))
    lower = torch.ones(5, 5).tril().bool().expand_as(weights)[:, :2]
    dropped = (weights[:, :2][lower] == 0).float().mean().item()
    assert dropped == pytest.approx(0.4, abs=0.15)
    assert (weights[:, 2] == 0).all()
    # what is left is scaled by 1 / (1 - p), and by the head's factor
    still = module.eval()(X, Visibility(), output_attentions=True)[1]
    kept = weights != 0
    expected = (still * factors[:, None, None] / 0.6).expand_as(weights)
    assert_close(weights[kept], expected[kept])


@pytest.mark.parametrize("backend", DENSE)
@pytest.mark.parametrize("weights", [True, False])
def test_head_mask_in_training_scales_each_heads_output(backend: str, weights: bool) -> None:
    """With the same draws it is c_proj's columns scaled, dropout and all."""
    module = attention(attn_implementation=backend, attn_pdrop=0.4).train()
    factors = torch.tensor([1.0, 0.0, 0.5, -2.0])
    torch.manual_seed(0)
    masked = module(X, Visibility(), head_mask=factors[:, None, None], output_attentions=weights)[0]
    with torch.no_grad():
        module.c_proj.weight *= factors.repeat_interleave(8)
    torch.manual_seed(0)
    assert_close(masked, module(X, Visibility(), output_attentions=weights)[0])
    torch.manual_seed(1)
    assert (masked - module(X, Visibility(), output_attentions=weights)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("backend", DENSE)
def test_a_whole_model_in_training_has_the_mean_of_its_linear_part(backend: str) -> None:
    """One layer's attention from the model itself: 3 000 equal rows in one batch."""
    model = tiny_model(GPT2Model, n_layer=1, attn_implementation=backend, attn_pdrop=0.3).train()
    found: list[Tensor] = []
    model.h[0].attn.register_forward_hook(lambda _m, _i, out: found.append(out[0].detach()))
    torch.manual_seed(0)
    with torch.no_grad():
        model(IDS[:1].expand(3000, -1), attention_mask=torch.tensor([[0, 1, 1, 1, 1]] * 3000))
        model.eval()(IDS[:1], attention_mask=torch.tensor([[0, 1, 1, 1, 1]]))
    draws, expected = found[0][:, 1:], found[1][0, 1:]
    error = draws.std(0) / 3000**0.5
    assert ((draws.mean(0) - expected).abs() <= 5 * error).all()
    assert (draws.std(0) > 0.01).all()


def test_cross_attention_reads_the_encoder_through_its_mask() -> None:
    model = tiny_model(GPT2Model, add_cross_attention=True)
    states = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 7)
    mask[0, 4:] = 0
    with torch.no_grad():
        out = model(
            IDS, encoder_hidden_states=states, encoder_attention_mask=mask, output_attentions=True
        )
        alone = model(IDS[:1], encoder_hidden_states=states[:1, :4]).last_hidden_state
        assert_close(out.last_hidden_state[:1], alone)
        assert out.cross_attentions[0].shape == (2, 4, 5, 7)
        assert (out.cross_attentions[0][0, :, :, 4:] == 0).all()
        for layer in model(IDS, output_attentions=True), model(IDS):
            assert layer.cross_attentions is None
        mask[0] = 0
        hidden = model(IDS, encoder_hidden_states=states, encoder_attention_mask=mask)
        assert hidden.last_hidden_state.isfinite().all()
