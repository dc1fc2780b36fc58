"""Dropout from cheap random bits: the same distribution as torch's, and torch's own elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2 import GPT2LMHeadModel
from gpt2.modeling import dropout as dropout_module
from gpt2.modeling.dropout import Dropout, dropout, is_cheap, kept
from tests.helpers import assert_close, tiny_model

N = 2**20


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_each_number_is_kept_by_itself_with_the_probability_asked_for(p: float) -> None:
    torch.manual_seed(0)
    keep = kept(N + 3, p)  # no multiple of the four that one random number decides
    assert keep.shape == (N + 3,)
    assert set(keep.unique().tolist()) == {0, 1}
    x = keep[:N].double() - (1 - p)
    bound = 5 * (p * (1 - p) / N) ** 0.5
    assert abs(x.mean()) <= bound
    for apart in (1, 2, 3, 4, 8, 64, 512, 768, 4096):  # neighbours, heads, rows
        together = (x[apart:] * x[:-apart]).mean()
        assert abs(together) <= 5 * p * (1 - p) / N**0.5, apart
    assert not torch.equal(kept(N, p), keep[:N])  # the next step draws anew
    for place in range(4):  # none of the four is favoured
        assert abs(x[place::4].mean()) <= 2 * bound


def test_what_is_kept_grows_so_that_the_mean_stays() -> None:
    torch.manual_seed(0)
    x = torch.full((64, 1024), 3.0, requires_grad=True)
    y = dropout(x, 0.1)
    values = y.detach().unique()
    assert values.tolist() == [0.0, pytest.approx(3 / 0.9, rel=1e-7)]
    assert y.mean().item() == pytest.approx(3.0, rel=5 * (0.1 / 0.9 / x.numel()) ** 0.5)
    y.backward(torch.ones_like(y))
    assert_close(x.grad, y.detach() / 3)  # the same mask


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_stays(kind: torch.dtype) -> None:
    x = torch.ones(7, 5, dtype=kind, requires_grad=True)
    y = dropout(x, 0.5)
    assert y.dtype == kind
    y.sum().backward()
    assert x.grad.dtype == kind


def test_the_global_generator_decides_the_mask() -> None:
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(x, 0.1), dropout(x, 0.1)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.1), first)
    assert not torch.equal(first, second)


def test_it_is_off_where_it_must_be_and_torchs_own_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.ones(1000)
    assert dropout(x, 0.1, training=False) is x
    assert torch.equal(Dropout(0.1).eval()(x), x)
    assert is_cheap(x, 0.1)
    assert not is_cheap(x.to("meta"), 0.1)
    assert not is_cheap(x, 0.001)
    assert not is_cheap(x, 1.0)
    assert dropout(x, 0.0).eq(1).all()
    assert dropout(x, 1.0).eq(0).all()
    assert dropout(x.to("meta"), 0.1).device.type == "meta"
    drawn = torch.vmap(lambda row: dropout(row, 0.5), randomness="different")(torch.ones(8, 99))
    assert set(drawn.unique().tolist()) == {0.0, 2.0}
    monkeypatch.setattr(dropout_module, "CHEAP_ON_CPU", False)
    torch.manual_seed(0)
    ours = dropout(x, 0.1)
    torch.manual_seed(0)
    assert torch.equal(ours, F.dropout(x, 0.1))


def test_modules_are_dropouts_of_torch() -> None:
    model = tiny_model(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    names = {name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert names == {"drop", "attn_dropout", "resid_dropout", "dropout"}
    x = torch.ones(1000)
    assert Dropout(0.5, inplace=True)(x) is x
    assert set(x.unique().tolist()) == {0.0, 2.0}


def gradients(model: GPT2LMHeadModel, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    model(ids, labels=ids).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [{"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_checkpointed_blocks_draw_the_same_masks_again(settings: dict[str, Any]) -> None:
    model = tiny_model(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2).train()
    ids = torch.arange(24).view(2, 12)
    plain = gradients(model, ids)
    model.gradient_checkpointing_enable(settings)
    again = gradients(model, ids)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert_close(again[name], gradient, what=name)


def test_a_checkpoint_of_the_function_alone() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = checkpoint(dropout, x, 0.3, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_graphs_keep_torchs_own() -> None:
    compiled = torch.compile(Dropout(0.5).train(), fullgraph=True, backend="aot_eager")
    assert set(compiled(torch.ones(1000)).unique().tolist()) == {0.0, 2.0}
