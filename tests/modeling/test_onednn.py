"""oneDNN's products in place of MKL's: where they are taken, where not, and that nothing shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from gpt2 import GPT2ForSequenceClassification, GPT2Model
from gpt2.modeling import onednn
from gpt2.training.lora import LoraConfig, add_lora
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 96, (3, 9), generator=torch.Generator().manual_seed(3))
LINEARS = 2 * 4  # layers, and linear layers in each


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the inputs of every product that oneDNN computes."""
    shapes: list[torch.Size] = []

    def product(x: Tensor, *rest: Any) -> Tensor:
        shapes.append(x.shape)
        return original(x, *rest)

    original = onednn.product
    monkeypatch.setattr(onednn, "product", product)
    return shapes


def test_without_gradients_every_product_is_onednns(taken: list[torch.Size]) -> None:
    model = tiny_model()
    wanted = model(IDS).logits  # with gradients: torch's
    assert taken == []
    with torch.no_grad():
        found = model(IDS).logits
    assert len(taken) == LINEARS + 1  # and the head
    assert_close(found, wanted, 1e-6)
    taken.clear()
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, found)
    assert len(taken) == LINEARS + 1
    taken.clear()
    model.generate(IDS, do_sample=False, max_new_tokens=3, eos_token_id=None)
    assert len(taken) == 3 * (LINEARS + 1)
    assert taken[-1] == (3, 1, 32)


@pytest.mark.parametrize("cls", [GPT2Model, GPT2ForSequenceClassification])
def test_in_every_class(cls: Any, taken: list[torch.Size]) -> None:
    model = tiny_model(cls, pad_token_id=95)
    wanted = model(IDS)[0]
    with torch.no_grad():
        assert_close(model(IDS)[0], wanted, 1e-6)
    assert len(taken) >= LINEARS


def test_an_adapter_is_applied_as_ever(taken: list[torch.Size]) -> None:
    model = tiny_model()
    add_lora(model, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    wanted = model(IDS).logits
    with torch.no_grad():
        assert_close(model(IDS).logits, wanted, 1e-5)
    assert len(taken) == 3 * LINEARS + 1


def test_what_is_not_its_own_is_torchs(
    taken: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(IDS)
        tiny_model().double()(IDS)
        tiny_model().bfloat16()(IDS)
        model.prepare_for_inference(weights="int8")(IDS)
        inputs = torch.randn(2, 3, 4, 32)
        eager = tiny_model(attn_implementation="eager")
        torch.func.vmap(lambda x: eager(inputs_embeds=x, use_cache=False).logits)(inputs)
        monkeypatch.setattr(onednn, "ON_CPU", False)
        model(IDS)
    assert taken == []


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch's, of flags()
def test_switched_off_it_is_not_used(taken: list[torch.Size]) -> None:
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        tiny_model()(IDS)
    assert taken == []


def test_flops_are_counted_as_ever() -> None:
    model = tiny_model()
    counts = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            model(IDS)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_it_ends_with_the_pass_whatever_happens(taken: list[torch.Size]) -> None:
    model = tiny_model()

    def fail(*_: Any) -> None:
        raise RuntimeError("from a hook")

    handle = model.transformer.h[1].register_forward_hook(fail)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="from a hook"):
            model(IDS)
        handle.remove()
        taken.clear()
        F.linear(torch.ones(1, 4), torch.ones(4, 4))
        assert taken == []
        model(IDS)
    assert len(taken) == LINEARS + 1


def test_weights_that_are_no_rows_are_left_to_torch() -> None:
    x, weight = torch.randn(5, 8), torch.randn(8, 6).t()
    with torch.no_grad(), onednn.products(x):
        assert_close(F.linear(x, weight), x @ weight.t(), 1e-6)
        assert_close(F.linear(x[0], weight.contiguous()), x[0] @ weight.t(), 1e-6)


def test_other_dtypes_and_devices_do_not_pay_for_it() -> None:
    with torch.no_grad():
        for x in (torch.ones(1), torch.ones(1).bfloat16(), torch.ones(1, device="meta")):
            plain = x.dtype == torch.float32 and x.device.type == "cpu"
            assert isinstance(onednn.products(x), TorchFunctionMode) == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_the_product_is_the_layer(dtype: Any, rows: int, bias: bool, gelu: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 33, bias=bias)
    layer.weight.data = layer.weight.data.to(dtype)
    x = torch.randn(2, rows, 48).to(dtype)
    wanted = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    wanted = F.gelu(wanted, approximate="tanh") if gelu else wanted
    ordered = onednn.blocked(layer.weight.detach())
    assert ordered is not None
    with torch.no_grad():
        for weight in (layer.weight.detach(), ordered):
            found = onednn.product(x, weight, layer.bias, gelu)
            assert (found.shape, found.dtype) == (wanted.shape, dtype)
            assert_close(found, wanted, {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype])
