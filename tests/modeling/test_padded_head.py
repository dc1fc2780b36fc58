"""A padded vocabulary changes which products are computed, and nothing that can be seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import GPT2DoubleHeadsModel, GPT2LMHeadModel
from gpt2.errors import ArgumentError, TokenIdError
from gpt2.modeling import linear_loss, padded_head
from gpt2.training.lora import LoraConfig, add_lora, drop_lora, merge_lora
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 97, (3, 12), generator=torch.Generator().manual_seed(1))
LABELS = IDS.masked_fill(torch.arange(12) < 3, -100)
MASK = torch.tensor([[0, 0, *[1] * 10], [1] * 12, [*[1] * 9, 0, 0, 0]])
V, PADDED = 97, 128
TERMS = {"label_smoothing": 0.2, "z_loss": 1e-2}
EXACT = 1e-6
#: what torch's compiler itself does with a Function, and with its own modules
COMPILES = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated",
    "ignore:`torch.jit.script:DeprecationWarning",
)


@pytest.fixture(autouse=True)
def few_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padded_head, "_FEWEST_ROWS", 2)


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The numbers of rows that weights have had in products and copies of the head."""
    seen: set[int] = set()
    pad = F.pad

    def noted(x: Tensor, sides: Any) -> Tensor:
        made = pad(x, sides)
        seen.add(len(made))
        return made

    monkeypatch.setattr(padded_head.F, "pad", noted)
    return seen


def results(model: Any, call: Callable[..., Any] | None = None, **inputs: Any) -> dict[str, Tensor]:
    """Loss, logits and every gradient."""
    model.zero_grad()
    output = (model if call is None else call)(**inputs)
    loss = output.loss + output.mc_loss if "mc_labels" in inputs else output.loss
    (1.7 * loss).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    found = {"loss": loss.detach(), **gradients}
    if output.logits is not None:
        assert output.logits.is_contiguous()
        found["logits"] = output.logits.detach()
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = EXACT) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype
        assert_close(other[name], tensor, tolerance, what=name)


def with_and_without(model: Any, tolerance: float = EXACT, **inputs: Any) -> None:
    model.pad_vocabulary(None)
    plain = results(model, **inputs)
    model.pad_vocabulary()
    same(plain, results(model, **inputs), tolerance)


@pytest.mark.parametrize("rows", [1, 5, 1000], ids=lambda rows: f"{rows} rows a chunk")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("logits", [True, False], ids=["logits", "loss alone"])
def test_loss_logits_and_gradients_are_those_without(
    rows: int, tied: bool, logits: bool, monkeypatch: pytest.MonkeyPatch, columns: set[int]
) -> None:
    monkeypatch.setattr(linear_loss, "_CHUNK_NUMBERS", rows * PADDED)
    model = tiny_model(tie_word_embeddings=tied)
    for more in ({}, TERMS, {"num_items_in_batch": 40}):
        with_and_without(
            model, input_ids=IDS, labels=LABELS, attention_mask=MASK, return_logits=logits, **more
        )
    assert columns == {PADDED}


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "loss alone"])
def test_the_double_heads_have_it_too(logits: bool, columns: set[int]) -> None:
    model = tiny_model(GPT2DoubleHeadsModel)
    ids = torch.stack([IDS, IDS.flip(1)], 1)
    inputs = {"input_ids": ids, "labels": ids, "mc_labels": torch.tensor([1, 0, 0])}
    with_and_without(model, **inputs, return_logits=logits)
    with_and_without(model, **inputs, return_logits=logits, **TERMS)
    assert columns == {PADDED}


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "loss alone"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(kind: torch.dtype, logits: bool, columns: set[int]) -> None:
    model = tiny_model().to(kind)
    # As the products' order of additions: a rounding of the last place.
    bound = 4 * torch.finfo(kind).eps
    with_and_without(model, bound, input_ids=IDS, labels=LABELS, return_logits=logits, **TERMS)
    assert columns == {PADDED}


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "loss alone"])
def test_autocast(logits: bool, columns: set[int]) -> None:
    model = tiny_model()
    inputs = {"input_ids": IDS, "labels": LABELS, "return_logits": logits, **TERMS}
    with torch.autocast("cpu", torch.bfloat16):
        with_and_without(model, 2e-2, **inputs)
        if logits:
            assert model(**inputs).logits.dtype == torch.bfloat16
    assert columns == {PADDED}


@COMPILES
@pytest.mark.parametrize("logits", [True, False], ids=["logits", "loss alone"])
@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "float32"])
def test_it_compiles_whole(logits: bool, cast: bool) -> None:
    model = tiny_model()
    inputs = {"input_ids": IDS, "labels": LABELS, "return_logits": logits, **TERMS}
    plain = results(model, **inputs)
    model.pad_vocabulary()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        found = results(model, compiled, **inputs)
    for name, tensor in plain.items():
        assert found[name].shape == tensor.shape
        assert_close(found[name].float(), tensor, 5e-2 if cast else 1e-5, what=name)
    torch._dynamo.reset()


def test_of_what_is_asked_for(columns: set[int]) -> None:
    """logits_to_keep, a cache, tuples; and any multiple."""
    model = tiny_model()
    with torch.no_grad():
        plain = model(IDS, attention_mask=MASK, logits_to_keep=4, use_cache=True)
        for multiple in (1, 2, 97, 100, 50304):
            model.pad_vocabulary(multiple)
            found = model(IDS, attention_mask=MASK, logits_to_keep=4, use_cache=True)
            assert found.logits.shape == (3, 4, V)
            assert_close(found.logits, plain.logits, EXACT)
            step = model(IDS[:, :2], past_key_values=found.past_key_values, return_dict=False)
            assert step[0].shape == (3, 2, V)
    assert columns == {98, 100, 50304}


def test_a_batch_without_targets_and_ids_out_of_the_vocabulary() -> None:
    model = tiny_model()
    model.pad_vocabulary()
    for logits in (True, False):
        nothing = results(
            model, input_ids=IDS, labels=torch.full_like(IDS, -100), return_logits=logits
        )
        assert not nothing["loss"].any()
        assert not nothing["transformer.wte.weight"].any()
    beyond = torch.full_like(IDS, V)  # an id that only the padding would have
    for inputs in ({"input_ids": beyond}, {"input_ids": IDS, "labels": beyond}):
        with pytest.raises(TokenIdError, match="97"):
            model(**inputs)


def test_gradients_are_whole_tensors_of_the_weights_shape() -> None:
    """An optimizer's step, and gradients asked for twice."""
    model = tiny_model()
    model.pad_vocabulary()
    loss = model(IDS, labels=IDS, return_logits=False).loss
    loss.backward(retain_graph=True)
    head = model.lm_head.weight
    assert head.grad is not None
    assert head.grad.shape == (V, 32)
    assert head.grad.is_contiguous()
    once = head.grad.clone()
    loss.backward()
    assert_close(head.grad, 2 * once)
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_nothing_of_it_is_in_parameters_files_or_copies(tmp_path: Path) -> None:
    model, plain = tiny_model(), tiny_model()
    model.pad_vocabulary()
    model(IDS, labels=IDS)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.transformer.wte.weight.shape == model.lm_head.weight.shape == (V, 32)
    assert model.config == plain.config
    for name, one in (("padded", model), ("plain", plain)):
        one.save_pretrained(tmp_path / name)
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "padded" / file.name).read_bytes() == file.read_bytes()
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "padded").vocabulary_multiple is None
    clone = copy.deepcopy(model)
    assert clone.vocabulary_multiple == 64
    assert clone.lm_head.weight is clone.transformer.wte.weight
    model.pad_vocabulary(None)
    assert_close(clone(IDS).logits, model(IDS).logits, EXACT)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_vocabulary_may_change_its_size(tied: bool, columns: set[int]) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    model.pad_vocabulary()
    for size, wide in ((130, 192), (64, 64), (60, 64)):
        columns.clear()
        model.resize_token_embeddings(size)
        ids = IDS % 60
        with_and_without(model, input_ids=ids, labels=ids)
        assert model(ids).logits.shape == (3, 12, size)
        assert columns == ({wide} if wide != size else set())


def test_generate_gives_the_same_ids(columns: set[int]) -> None:
    model = tiny_model()
    asked: list[dict[str, Any]] = [
        {}, {"num_beams": 3}, {"do_sample": True, "seed": [1, 2, 3]},
        {"cache_implementation": "static"},
    ]  # fmt: skip
    mask = torch.ones_like(IDS)
    for settings in asked:
        model.pad_vocabulary(None)
        plain = model.generate(IDS, attention_mask=mask, max_new_tokens=6, **settings)
        model.pad_vocabulary()
        found = model.generate(IDS, attention_mask=mask, max_new_tokens=6, **settings)
        assert torch.equal(found, plain)
    assert columns == {PADDED}


def test_few_rows_are_computed_over_the_weight_as_it_is(
    monkeypatch: pytest.MonkeyPatch, columns: set[int]
) -> None:
    model = tiny_model()
    model.pad_vocabulary()
    monkeypatch.setattr(padded_head, "_FEWEST_ROWS", 37)
    model(IDS)
    assert not columns
    model(torch.cat([IDS, IDS]))
    assert columns == {PADDED}


# -- what passes by the head's module is refused --------------------------------------------------


def hooked(model: GPT2LMHeadModel) -> None:
    model.lm_head.register_forward_hook(lambda *_: None)


def replaced(model: GPT2LMHeadModel) -> None:
    forward = model.lm_head.forward
    vars(model.lm_head)["forward"] = lambda x: forward(x)


def adapted(model: GPT2LMHeadModel) -> None:
    add_lora(model, LoraConfig(target_modules=["lm_head"]))


def biased(model: GPT2LMHeadModel) -> None:
    model.lm_head.bias = nn.Parameter(torch.zeros(V))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (hooked, "it is one with hooks"),
        (replaced, "it is one with hooks"),
        (adapted, "it is a Lora"),
        (biased, "it is one with a bias"),
    ],
)
def test_heads_that_are_more_than_a_product_are_refused(
    change: Callable[[GPT2LMHeadModel], None], says: str
) -> None:
    model = tiny_model(tie_word_embeddings=False)
    model.pad_vocabulary()
    change(model)
    words = rf"pad_vocabulary\(64\).*{says}.*pad_vocabulary\(None\)"
    for inputs in ({}, {"labels": IDS}, {"labels": IDS, "return_logits": False}):
        with pytest.raises(ArgumentError, match=words):
            model(IDS, **inputs)
    model.pad_vocabulary(None)
    assert model(IDS).logits.shape == (3, 12, V)


def test_a_merged_adapter_leaves_a_plain_head(columns: set[int]) -> None:
    model = tiny_model(tie_word_embeddings=False)
    model.pad_vocabulary()
    adapted(model)
    merge_lora(model)
    drop_lora(model)
    with_and_without(model, input_ids=IDS, labels=IDS)
    assert columns == {PADDED}


def test_numbers_that_cannot_be() -> None:
    model = tiny_model()
    for multiple in (0, -64, 2.0, True, "64"):
        with pytest.raises(ArgumentError, match="multiple must be a whole number of at least 1"):
            model.pad_vocabulary(multiple)
    assert model.vocabulary_multiple is None


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_prepared_models_are_not_padded(weights: Any, columns: set[int]) -> None:
    model = tiny_model()
    plain = model.prepare_for_inference(weights=weights)
    model.pad_vocabulary()
    fast = model.prepare_for_inference(weights=weights)
    assert fast.vocabulary_multiple is None
    assert model.vocabulary_multiple == 64
    assert torch.equal(fast(IDS).logits, plain(IDS).logits)
    assert not columns
    with pytest.raises(ArgumentError, match="pad_vocabulary needs plain weights"):
        fast.pad_vocabulary()
    fast.pad_vocabulary(None)


# -- on a GPU -------------------------------------------------------------------------------------


@COMPILES
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("logits", [True, False], ids=["logits", "loss alone"])
def test_on_a_gpu(compiled: bool, logits: bool) -> None:
    """GPT-2's own vocabulary: float32 as exactly as its kernels add, bfloat16 within its steps."""
    model = tiny_model(vocab_size=50257, n_positions=512).cuda()
    ids = torch.randint(0, 50257, (2, 512), device="cuda")
    inputs = {"input_ids": ids, "labels": ids, "return_logits": logits, **TERMS}
    for cast, bound in ((False, 1e-5), (True, 3e-2)):
        with torch.autocast("cuda", torch.bfloat16, enabled=cast):
            model.pad_vocabulary(None)
            plain = results(model, **inputs)
            model.pad_vocabulary()
            found = results(model, torch.compile(model) if compiled else None, **inputs)
        same(plain, found, bound)
    torch._dynamo.reset()
