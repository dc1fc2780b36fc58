"""document_ids: a packed row gives what its documents give one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)
from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError
from gpt2.modeling.losses import next_token_targets
from gpt2.modeling.masks import (
    numbered_documents,
    padded_causal_visibility,
    positions_from_mask,
)
from tests.helpers import assert_close, at_attended, tiny_model

BACKENDS = ("eager", "sdpa")  # flash_attention_2: test_flash.py
LAYOUTS = ("full", "left", "right", "both", "between")
GARBAGE, NOBODY = 11, -5  # the id and the document at padding: any will do
LENGTHS = ((4, 1, 5), (10,), (2, 2, 3), (1, 1, 1, 1))
NAMES = ((7, 3, 40), (0,), (2, 1, 0), (5, 6, 7, 8))  # ids need not begin at 0, nor rise


def documents() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [[torch.randint(0, 97, (n,), generator=generator) for n in row] for row in LENGTHS]


Placed = tuple[int, Tensor, Tensor]  # row, columns, ids of one document


def packed(layout: str) -> tuple[Tensor, Tensor | None, Tensor, list[Placed]]:
    """ids, mask and document_ids (B, 13 or 10), and where each document stands."""
    rows = [r for r, row in zip(documents(), LENGTHS, strict=True)
            if layout != "full" or sum(row) == 10]  # fmt: skip
    names = [n for n, row in zip(NAMES, LENGTHS, strict=True) if layout != "full" or sum(row) == 10]
    width = 10 if layout == "full" else 15
    ids = torch.full((len(rows), width), GARBAGE)
    owners = torch.full((len(rows), width), NOBODY)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    placed = []
    for r, row in enumerate(rows):
        room = width - sum(len(d) for d in row)
        at = {"left": room, "both": room // 2}.get(layout, 0)
        for d, document in enumerate(row):
            columns = torch.arange(at, at + len(document))
            ids[r, columns], owners[r, columns], mask[r, columns] = document, names[r][d], 1
            placed.append((r, columns, document))
            at += len(document) + int(layout == "between")
    return ids, None if layout == "full" else mask, owners, placed


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


# -- what a document sees -----------------------------------------------------------------------


def drawn(seen: Tensor) -> list[str]:
    return ["".join("x" if s else "." for s in row) for row in seen.tolist()]


def test_documents_are_numbered_in_their_order() -> None:
    ids = torch.tensor([[7, 7, 3, 3], [9, 5, 9, 9], [5, 5, 9, 5], [1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0]]).bool()
    numbers, in_order = numbered_documents(ids, mask)
    assert numbers.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert in_order.all()
    _, in_order = numbered_documents(torch.tensor([[4, 4, 2, 4], [1, 2, 1, 2]]), mask[:2] | True)
    assert in_order.tolist() == [False, False]
    assert numbered_documents(ids.int(), mask)[0].tolist() == numbers.tolist()


def test_a_token_sees_its_document_and_positions_begin_anew() -> None:
    numbers = torch.tensor([[0, 0, 1, 1, 1]])
    real = torch.ones(1, 5).bool()
    expected = ["x....", "xx...", "..x..", "..xx.", "..xxx"]
    assert drawn(padded_causal_visibility(real, 5, numbers)[0, 0]) == expected
    assert positions_from_mask(real, 5, numbers).tolist() == [[0, 1, 0, 1, 2]]
    real[0, [0, 3]] = False
    expected = ["x....", ".x...", "..x..", "..xx.", "..x.x"]
    assert drawn(padded_causal_visibility(real, 5, numbers)[0, 0]) == expected
    assert positions_from_mask(real, 5, numbers).tolist() == [[0, 0, 0, 0, 1]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("checked", [True, False])
def test_hidden_states_and_attentions_are_those_of_the_documents(
    backend: str, layout: str, checked: bool
) -> None:
    model = tiny_model(GPT2Model, attn_implementation=backend)
    ids, mask, owners, placed = packed(layout)
    asked: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        batch = model(ids, attention_mask=mask, document_ids=owners, check_inputs=checked, **asked)
        fused = model(ids, attention_mask=mask, document_ids=owners).last_hidden_state
        for row, columns, document in placed:
            alone = model(document[None], **asked)
            assert_close(fused[row, columns], alone.last_hidden_state[0])
            for here, there in zip(batch.hidden_states, alone.hidden_states, strict=True):
                assert_close(here[row, columns], there[0])
            for here, there in zip(batch.attentions, alone.attentions, strict=True):
                assert_close(here[row][:, columns][:, :, columns], there[0])
                assert_close(here[row][:, columns].sum(-1), there[0].sum(-1))
        assert fused.isfinite().all()
        together = model(ids, attention_mask=mask).last_hidden_state
        assert (at_attended(together, mask) - at_attended(fused, mask)).abs().max() > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [False, True])
def test_loss_and_gradients_are_those_of_the_documents(
    backend: str, layout: str, training: bool
) -> None:
    model = tiny_model(attn_implementation=backend).train(training)
    ids, mask, owners, placed = packed(layout)
    out = model(ids, attention_mask=mask, document_ids=owners, labels=ids)
    out.loss.backward()
    found = gradients(model)
    model.zero_grad()
    terms = [
        F.cross_entropy(model(d[None]).logits[0, :-1], d[1:], reduction="sum")
        for _, _, d in placed
        if len(d) > 1
    ]
    expected = torch.stack(terms).sum() / sum(len(d) - 1 for _, _, d in placed)
    expected.backward()
    assert_close(out.loss, expected)
    for here, there in zip(found, gradients(model), strict=True):
        assert_close(here, there)


def test_no_target_is_in_another_document() -> None:
    labels = torch.tensor([[1, 2, 3, 4, 5]])
    owners = torch.tensor([[0, 0, 4, 4, 9]])
    x = -100
    assert next_token_targets(labels, None, owners).tolist() == [[2, x, 4, x, x]]
    attended = torch.tensor([[True, True, True, False, True]])
    assert next_token_targets(labels, attended, owners).tolist() == [[2, x, x, x, x]]


def test_micro_batches_of_packed_rows_add_up() -> None:
    model = tiny_model()
    ids, mask, owners, placed = packed("both")
    arguments = [
        {"attention_mask": mask[at], "document_ids": owners[at], "labels": ids[at]}
        for at in (slice(0, 4), slice(0, 1), slice(1, 4))
    ]
    terms = sum(len(d) - 1 for _, _, d in placed)
    losses = [
        model(a["labels"], num_items_in_batch=terms if i else None, **a).loss
        for i, a in enumerate(arguments)
    ]
    assert_close(losses[1] + losses[2], losses[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_embeddings_types_head_mask_checkpointing_and_an_encoder(backend: str) -> None:
    """Whatever else is given goes along with the document's own tokens."""
    model = tiny_model(GPT2Model, attn_implementation=backend, add_cross_attention=True)
    ids, mask, owners, placed = packed("between")
    generator = torch.Generator().manual_seed(8)
    types = torch.randint(0, 97, ids.shape, generator=generator)
    states = torch.randn(len(ids), 3, 32, generator=generator)
    heads = torch.tensor([1.0, 0.5, 0.0, 2.0])
    model.gradient_checkpointing_enable()
    out = model.train()(
        inputs_embeds=model.wte(ids), attention_mask=mask, document_ids=owners,
        token_type_ids=types, head_mask=heads, encoder_hidden_states=states,
    ).last_hidden_state  # fmt: skip
    for row, columns, document in placed:
        alone = model.eval()(
            document[None], token_type_ids=types[row, columns][None], head_mask=heads,
            encoder_hidden_states=states[row : row + 1],
        )  # fmt: skip
        assert_close(out[row, columns], alone.last_hidden_state[0])


def test_a_caller_s_own_positions_are_taken_as_they_are() -> None:
    model = tiny_model(GPT2Model)
    ids, _, owners, placed = packed("full")
    own = torch.arange(10).flip(0)[None].expand(len(ids), -1)
    out = model(ids, document_ids=owners, position_ids=own).last_hidden_state
    for row, columns, document in placed:
        alone = model(document[None], position_ids=own[row, columns][None]).last_hidden_state
        assert_close(out[row, columns], alone[0])


def test_n_positions_limits_each_document() -> None:
    model = tiny_model(GPT2Model, n_positions=5)
    ids = torch.randint(0, 97, (1, 12))
    owners = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]])
    out = model(ids, document_ids=owners).last_hidden_state
    assert_close(out[:, 5:10], model(ids[:, 5:10]).last_hidden_state)
    owners[0, 5] = 0
    with pytest.raises(SequenceLengthError, match=r"longest document has 6 .* n_positions = 5"):
        model(ids, document_ids=owners)


def test_dropout_differs_and_stays_within_documents() -> None:
    for backend in BACKENDS:
        model = tiny_model(GPT2Model, attn_implementation=backend, attn_pdrop=0.5).train()
        ids, _, owners, placed = packed("full")
        weights = model(ids, document_ids=owners, output_attentions=True).attentions[0]
        for row, columns, _ in placed:
            others = [c for c in range(10) if c not in columns]
            assert (weights[row][:, columns][:, :, others] == 0).all()
        one, other = (model(ids, document_ids=owners).last_hidden_state for _ in range(2))
        assert not torch.equal(one, other)


# -- the other heads ----------------------------------------------------------------------------


def test_token_classification_is_that_of_the_documents() -> None:
    model = tiny_model(GPT2ForTokenClassification, num_labels=3, classifier_dropout=0.0)
    ids, mask, owners, placed = packed("both")
    labels = ids % 3
    out = model(ids, attention_mask=mask, document_ids=owners, labels=labels)
    out.loss.backward()
    found = gradients(model)
    model.zero_grad()
    terms = []
    for row, columns, document in placed:
        alone = model(document[None]).logits[0]
        assert_close(out.logits[row, columns], alone)
        terms.append(F.cross_entropy(alone, document % 3, reduction="sum"))
    expected = torch.stack(terms).sum() / sum(len(d) for _, _, d in placed)
    expected.backward()
    assert_close(out.loss, expected)
    for here, there in zip(found, gradients(model), strict=True):
        assert_close(here, there)


@pytest.mark.parametrize("layout", ["both", "left", "between"])
def test_one_answer_per_row_is_that_of_the_last_document(layout: str) -> None:
    ids, mask, owners, placed = packed(layout)
    last = {row: document for row, _, document in placed}  # the last one stays
    model = tiny_model(GPT2ForSequenceClassification, num_labels=3)
    logits = model(ids, attention_mask=mask, document_ids=owners).logits
    for row, document in last.items():
        assert_close(logits[row], model(document[None]).logits[0])
    for kind in ("cls_index", "last", "first", "mean"):
        double = tiny_model(GPT2DoubleHeadsModel, summary_type=kind)
        for given in (mask, None):
            if given is None and layout != "left":
                continue  # without a mask, padding is a document of its own
            out = double(
                ids[:, None],
                attention_mask=None if given is None else given[:, None],
                document_ids=owners[:, None],
            )
            alone = [double(last[row][None, None]).mc_logits[0] for row in range(len(ids))]
            assert_close(out.mc_logits, torch.stack(alone))


def test_double_heads_losses_are_those_of_the_documents() -> None:
    ids, mask, owners, _ = packed("right")
    double, single = tiny_model(GPT2DoubleHeadsModel), tiny_model(GPT2LMHeadModel)
    shaped = [t.view(2, 2, -1) for t in (ids, mask, owners)]
    single.load_state_dict(double.state_dict(), strict=False)
    out = double(shaped[0], attention_mask=shaped[1], document_ids=shaped[2], labels=shaped[0])
    expected = single(ids, attention_mask=mask, document_ids=owners, labels=ids)
    assert_close(out.logits.flatten(0, 1), expected.logits)
    assert_close(out.loss, expected.loss)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_answer_is_sought_in_its_own_document(layout: str) -> None:
    model = tiny_model(GPT2ForQuestionAnswering)
    ids, mask, owners, placed = packed(layout)
    for chosen in (0, -1):  # of each row, its first document, its last
        of_row = [[p for p in placed if p[0] == row][chosen] for row in range(len(ids))]
        start, end = (torch.tensor([int(c[i]) for _, c, _ in of_row]) for i in (0, -1))
        out = model(ids, mask, document_ids=owners, start_positions=start, end_positions=end)
        losses = [
            model(
                document[None],
                start_positions=torch.tensor([0]),
                end_positions=torch.tensor([len(document) - 1]),
            ).loss
            for _, _, document in of_row
        ]
        assert_close(out.loss, torch.stack(losses).mean())


# -- what is refused ----------------------------------------------------------------------------

IDS = torch.arange(10).view(2, 5)
OWNERS = torch.tensor([[0, 0, 1, 1, 2], [3, 3, 3, 4, 4]])
BAD: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "shape": ({"document_ids": OWNERS[:, :4]}, ArgumentError, ["document_ids", "(2, 4)", "(2, 5)"]),
    "rows": ({"document_ids": OWNERS[:1]}, ArgumentError, ["document_ids", "(1, 5)", "(2, 5)"]),
    "floats": ({"document_ids": OWNERS.float()}, ArgumentTypeError, ["document_ids", "float32"]),
    "bools": ({"document_ids": OWNERS > 0}, ArgumentTypeError, ["document_ids", "bool", "int64"]),
    "list": ({"document_ids": OWNERS.tolist()}, ArgumentTypeError, ["document_ids", "list"]),
    "in pieces": (
        {"document_ids": torch.tensor([[0, 0, 1, 1, 2], [3, 4, 3, 3, 4]])},
        ArgumentError,
        ["document_ids", "row 1", "[3, 4, 3, 3, 4]", "stand together"],
    ),
    "4-D mask": (
        {"document_ids": OWNERS, "attention_mask": torch.ones(2, 1, 5, 5).bool()},
        ArgumentError,
        ["document_ids", "4-D attention_mask"],
    ),
    "cache wanted": (
        {"document_ids": OWNERS, "use_cache": True},
        ArgumentError,
        ["use_cache=True", "document_ids"],
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize(
    "cls", [GPT2Model, GPT2LMHeadModel, GPT2ForTokenClassification, GPT2ForSequenceClassification]
)
def test_bad_documents_are_refused(cls: Any, case: str) -> None:
    arguments, kind, parts = BAD[case]
    with pytest.raises(kind) as caught:
        tiny_model(cls)(IDS, **arguments)
    for part in parts:
        assert part in str(caught.value)


def test_no_cache_goes_with_documents() -> None:
    model = tiny_model()
    assert model(IDS, document_ids=OWNERS).past_key_values is None
    past = model(IDS).past_key_values
    with pytest.raises(ArgumentError, match="document_ids cannot be given together with past_key"):
        model(IDS, past_key_values=past, document_ids=OWNERS)
