"""The loss: equal to torch's cross-entropy, in chunks, and right for micro-batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.modeling import losses
from gpt2.modeling.losses import causal_lm_loss, next_token_targets, summed_cross_entropy
from tests.helpers import assert_close, relative_error, tiny_model

V = 13
GENERATOR = torch.Generator().manual_seed(4)
LOGITS = 3 * torch.randn(4, 9, V, generator=GENERATOR)
LABELS = torch.randint(0, V, (4, 9), generator=GENERATOR)
LABELS[0, :3], LABELS[2, 5] = -100, -100


@pytest.fixture(params=[1, 2, 7, 35, 36, 1000], ids=lambda rows: f"{rows} rows a chunk")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks that divide the 36 rows, that do not, and one larger than all of them."""
    monkeypatch.setattr(losses, "_CHUNK_NUMBERS", request.param * V)
    return int(request.param)


def reference(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(
        logits[:, :-1].float().reshape(-1, V), labels[:, 1:].reshape(-1), ignore_index=-100
    )


def test_chunks_cover_every_row_once(chunk: int) -> None:
    flat = LOGITS.flatten(0, 1)
    rows = [i for piece in losses._chunks(flat) for i in range(36)[piece]]
    assert rows == list(range(36))
    assert len(losses._chunks(flat)) == -(-36 // chunk)


def test_value_and_gradient_equal_cross_entropy(chunk: int) -> None:
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    loss, expected = causal_lm_loss(ours, LABELS), reference(theirs, LABELS)
    assert_close(loss, expected, 1e-6)
    (2.5 * loss).backward()
    (2.5 * expected).backward()
    assert_close(ours.grad, theirs.grad, 1e-6)


def test_gradient_is_that_of_finite_differences() -> None:
    """In float64 logits; the function itself computes in float32, hence the coarse step."""
    logits = LOGITS[0].double().requires_grad_()
    targets = next_token_targets(LABELS[:1])[0]
    torch.autograd.gradcheck(
        lambda x: summed_cross_entropy(x, targets), logits, eps=1e-2, atol=2e-3, rtol=1e-3
    )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(chunk: int, kind: torch.dtype) -> None:
    """Exact for the logits as they are; only the gradient is rounded, once, to their dtype."""
    ours, theirs = LOGITS.to(kind).requires_grad_(), LOGITS.to(kind).requires_grad_()
    loss, expected = causal_lm_loss(ours, LABELS), reference(theirs, LABELS)
    assert loss.dtype == torch.float32
    assert_close(loss, expected, 1e-6)
    loss.backward()
    expected.backward()
    assert ours.grad.dtype == kind
    assert relative_error(ours.grad, theirs.grad) <= torch.finfo(kind).eps


def test_extreme_logits_neither_overflow_nor_vanish() -> None:
    logits = torch.full((1, 3, V), -1e4)
    logits[0, :, 0] = 1e4
    labels = torch.tensor([[0, 0, 1]])
    assert causal_lm_loss(logits, labels).item() == pytest.approx(1e4)
    logits.fill_(torch.finfo(torch.float32).min)
    assert causal_lm_loss(logits, labels).item() == pytest.approx(torch.tensor(V).log().item())


def test_a_common_offset_costs_no_digits() -> None:
    """Real GPT-2 logits lie around −100, where float32 numbers are 1e-5 apart."""
    near = (LOGITS * 1024).round() / 1024  # so that the offset itself is exact
    far = (near - 1000).requires_grad_()
    near.requires_grad_()
    losses_ = [causal_lm_loss(x, LABELS) for x in (near, far)]
    assert_close(losses_[1], losses_[0], 1e-7)
    torch.stack(losses_).sum().backward()
    assert_close(far.grad, near.grad, 1e-7)


def test_nan_where_no_term_counts_does_not_spread(chunk: int) -> None:
    logits = LOGITS.clone()
    logits[0, :2] = torch.nan  # sources of labels that are -100
    logits[:, -1] = torch.nan  # no label behind them
    logits.requires_grad_()
    loss = causal_lm_loss(logits, LABELS)
    assert_close(loss, reference(LOGITS, LABELS), 1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_without_terms_loss_and_gradients_are_zero() -> None:
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3]])
    for arguments in (
        {"labels": torch.full_like(ids, -100)},
        {"labels": torch.full_like(ids, -100), "num_items_in_batch": 0},
        {"labels": torch.full_like(ids, -100), "num_items_in_batch": torch.tensor(0)},
        {"labels": ids, "attention_mask": torch.zeros_like(ids)},
        {"labels": torch.tensor([[5, -100, -100]])},  # only the first, which nobody predicts
    ):
        model.zero_grad()
        loss = model(ids, **arguments).loss
        assert loss.item() == 0.0
        loss.backward()
        assert all(p.grad.abs().max() == 0 for p in model.parameters())
    assert model(ids[:, :1], labels=ids[:, :1]).loss.item() == 0.0


def test_targets_are_the_labels_moved_left() -> None:
    labels = torch.tensor([[5, 6, -100, 8, 9]], dtype=torch.int32)
    x = -100
    assert next_token_targets(labels).tolist() == [[6, x, 8, 9, x]]
    left = torch.tensor([[False, True, True, True, True]])
    assert next_token_targets(labels, left).tolist() == [[x, x, 8, 9, x]]
    hole = torch.tensor([[True, True, True, False, True]])
    assert next_token_targets(labels, hole).tolist() == [[6, x, x, x, x]]
    three = torch.stack([labels, labels + 1])  # (2, 1, 5): still along the tokens
    assert next_token_targets(three)[:, 0].tolist() == [[6, x, 8, 9, x], [7, -99, 9, 10, x]]


@pytest.mark.parametrize("count", [int, torch.tensor], ids=["number", "tensor"])
def test_micro_batches_add_up_to_one_batch(count: type) -> None:
    """With rows that count 1 to 7 terms, so that a mean of means would be wrong."""
    model = tiny_model()
    ids = torch.randint(0, 97, (6, 8), generator=torch.Generator().manual_seed(6))
    labels = ids.clone()
    for i in range(6):
        labels[i, : 1 + i] = -100
    terms = count(int((labels[:, 1:] != -100).sum()))

    def gradients(parts: list[slice], items: object) -> tuple[float, dict[str, Tensor]]:
        model.zero_grad()
        total = 0.0
        for part in parts:
            loss = model(ids[part], labels=labels[part], num_items_in_batch=items).loss
            loss.backward()
            total += loss.item()
        return total, {n: p.grad.clone() for n, p in model.named_parameters()}

    whole_loss, whole = gradients([slice(0, 6)], None)
    parts_loss, parts = gradients([slice(0, 1), slice(1, 3), slice(3, 6)], terms)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-6)
    for name, gradient in parts.items():
        assert_close(gradient, whole[name], 1e-6, what=name)
    means = gradients([slice(0, 1), slice(1, 3), slice(3, 6)], None)[0] / 3
    assert means != pytest.approx(whole_loss, rel=1e-4)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ArgumentError, match="num_items_in_batch must be at least 0, not -1"):
        causal_lm_loss(LOGITS, LABELS, num_items_in_batch=-1)
    with pytest.raises(ArgumentTypeError, match=r"num_items_in_batch must be a number .*not str"):
        causal_lm_loss(LOGITS, LABELS, num_items_in_batch="3")  # type: ignore[arg-type]


TERMS = [(0.1, 0.0), (0.0, 1e-2), (0.3, 1e-3), (1.0, 0.0)]


@pytest.mark.parametrize(("smoothing", "z"), TERMS)
def test_smoothing_and_z_loss_are_those_of_torch_and_of_the_formula(
    chunk: int, smoothing: float, z: float
) -> None:
    ours, theirs = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    loss = causal_lm_loss(ours, LABELS, label_smoothing=smoothing, z_loss=z)
    x, targets = theirs[:, :-1].reshape(-1, V), LABELS[:, 1:].reshape(-1)
    x = x[targets != -100]
    expected = F.cross_entropy(x, targets[targets != -100], label_smoothing=smoothing)
    expected = expected + z * x.logsumexp(-1).square().mean()
    assert_close(loss, expected, 1e-6)
    (2.5 * loss).backward()
    (2.5 * expected).backward()
    assert_close(ours.grad, theirs.grad, 2e-6)
    items = causal_lm_loss(
        LOGITS, LABELS, label_smoothing=smoothing, z_loss=z, num_items_in_batch=2 * len(x)
    )
    assert_close(items, expected / 2, 1e-6)


def test_terms_out_of_range_or_without_labels_are_refused() -> None:
    model, ids = tiny_model(), torch.tensor([[1, 2, 3]])
    for name, bad in (("label_smoothing", 1.5), ("label_smoothing", -0.1), ("z_loss", -1.0)):
        with pytest.raises(ArgumentError, match=f"{name} must be a number from 0 to .*not {bad}"):
            model(ids, labels=ids, **{name: bad})
    for name in ("label_smoothing", "z_loss"):
        with pytest.raises(ArgumentError, match=f"{name} is a term of the loss, which needs label"):
            model(ids, **{name: 0.1})
