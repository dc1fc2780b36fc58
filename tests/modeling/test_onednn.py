"""oneDNN's products in place of MKL's: where they are taken, where not, and that nothing shows."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from gpt2.modeling import onednn
from gpt2.modeling.attention import GPT2Attention
from gpt2.modeling.mlp import GPT2MLP
from gpt2.modeling.transformer import GPT2Block
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


def by_torch(model: nn.Module, *arguments: Any, **settings: Any) -> Any:
    """What the model gives with torch's own products."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "ON_CPU", False)
        return model(*arguments, **settings)


def test_without_gradients_every_product_is_onednns(taken: list[torch.Size]) -> None:
    model = tiny_model()
    wanted = by_torch(model, IDS).logits
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
    wanted = by_torch(model, IDS)[0]
    with torch.no_grad():
        assert_close(model(IDS)[0], wanted, 1e-6)
    assert len(taken) >= LINEARS


def adapted(std: float) -> GPT2LMHeadModel:
    """A model with an adapter on every linear layer of its blocks, which adds something."""
    model = tiny_model()
    add_lora(model, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=std, generator=torch.Generator().manual_seed(0))
    return model


def test_an_adapter_is_applied_as_ever(taken: list[torch.Size]) -> None:
    model = adapted(std=1.0)
    wanted = by_torch(model, IDS).logits
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


def gradients(model: nn.Module, **settings: Any) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, after a step's backward pass."""
    model.zero_grad()
    torch.manual_seed(5)  # of dropout
    model(IDS, labels=IDS, **settings).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


RECOMPUTED = (None, {"use_reentrant": False}, {"use_reentrant": True})


@pytest.mark.parametrize("return_logits", [True, False])
@pytest.mark.parametrize("checkpointing", RECOMPUTED)
def test_gradients_are_the_same(
    return_logits: bool, checkpointing: Any, taken: list[torch.Size]
) -> None:
    model = tiny_model(resid_pdrop=0.1).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(checkpointing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "ON_CPU", False)
        wanted = gradients(model, return_logits=return_logits)
    assert taken == []
    found = gradients(model, return_logits=return_logits)
    # forward, once more where blocks are computed again, and dx; in the chunked loss the head's dx
    # is torch's
    passes = 2 if checkpointing is None else 3
    assert len(taken) == passes * LINEARS + (2 if return_logits else 1)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert_close(gradient, wanted[name], 1e-6, what=name)


def test_adapters_learn_as_ever(taken: list[torch.Size]) -> None:
    model = adapted(std=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "ON_CPU", False)
        wanted = gradients(model)
    found = gradients(model)
    assert len(taken) > 3 * LINEARS
    assert found.keys() == wanted.keys() == {n for n in wanted if "lora_" in n}
    for name, gradient in found.items():
        assert_close(gradient, wanted[name], 1e-5, what=name)


def kept(x: Tensor, *parameters: Tensor) -> list[tuple[torch.Size, tuple[int, ...]]]:
    """Shapes and strides of what F.linear keeps for its backward pass, in order."""
    found = []

    def pack(tensor: Tensor) -> Tensor:
        found.append((tensor.shape, tensor.stride()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.linear(x, *parameters)
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it
def test_blocks_compiled_by_themselves_are_torchs(taken: list[torch.Size]) -> None:
    model = tiny_model().train()
    wanted = gradients(model)
    taken.clear()
    for block in model.transformer.h:
        block.compile(backend="aot_eager")
    found = gradients(model)
    assert len(taken) == 2  # the head's, forward and backward
    for name, gradient in found.items():
        assert_close(gradient, wanted[name], 1e-6, what=name)


@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8), (2, 1, 5, 8)])
@pytest.mark.parametrize("biased", [True, False])
def test_what_torch_would_keep_is_kept(
    learns: tuple[bool, bool], shape: tuple[int, ...], biased: bool
) -> None:
    x = torch.randn(shape, requires_grad=learns[0])
    parameters = [torch.randn(s, requires_grad=learns[1]) for s in ((6, 8), (6,))[: 1 + biased]]
    wanted = kept(x, *parameters)
    with onednn.products(x)():
        assert kept(x, *parameters) == wanted


@pytest.mark.parametrize("part", [GPT2Block, GPT2MLP, GPT2Attention])
def test_parts_may_be_checkpointed_from_outside(part: Any, taken: list[torch.Size]) -> None:
    model = tiny_model().train()
    wanted = gradients(model)
    once = len(taken)
    for module in [m for m in model.modules() if isinstance(m, part)]:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    found = gradients(model)
    assert len(taken) == 2 * once  # what is computed again is by torch: outside of the model's pass
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert_close(gradient, wanted[name], 1e-6, what=name)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 1, 3, 8)])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_of_a_product(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(shape), torch.randn(6, 8), torch.randn(6)][: 2 + biased]
    for leaf in leaves:
        leaf.requires_grad_()
    x = leaves[0]
    results = []
    for context in (nullcontext, onednn.products(x)):
        with context():
            y = F.linear(*leaves)
        # of the sum the gradient is one number, expanded: the strides that kernels stumble over
        of_sum = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        with context():
            y = F.linear(*leaves)
        directions = torch.stack([torch.ones_like(y), y.detach()])
        batched = torch.autograd.grad(y, leaves, directions, is_grads_batched=True)
        results.append([*of_sum, *first, *second, *batched])
    for found, wanted in zip(results[1], results[0], strict=True):
        assert_close(found, wanted, 1e-6)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids, check_inputs=False).logits
        return logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_forward_mode_and_traces_are_torchs(taken: list[torch.Size]) -> None:
    model = tiny_model(attn_implementation="eager", use_cache=False)
    x, direction = torch.randn(2, 1, 4, 32).unbind()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)
        tangent = forward_ad.unpack_dual(model(inputs_embeds=dual).logits).tangent
    step = 1e-3
    up, down = (by_torch(model, inputs_embeds=x + s * direction).logits for s in (step, -step))
    assert_close(tangent, (up - down) / (2 * step), 1e-2)
    traced = torch.jit.trace(_Logits(model), IDS, check_trace=False)
    assert_close(traced(IDS), by_torch(model, IDS).logits, 1e-6)
    assert taken == []
    assert "PythonOp" not in str(traced.graph)


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
    with torch.no_grad(), onednn.products(x)():
        assert_close(F.linear(x, weight), x @ weight.t(), 1e-6)
        assert_close(F.linear(x[0], weight.contiguous()), x[0] @ weight.t(), 1e-6)


def test_other_dtypes_and_devices_do_not_pay_for_it() -> None:
    with torch.no_grad():
        for x in (torch.ones(1), torch.ones(1).bfloat16(), torch.ones(1, device="meta")):
            plain = x.dtype == torch.float32 and x.device.type == "cpu"
            assert (onednn.products(x) is onednn.Products) == plain


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
