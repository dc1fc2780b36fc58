"""The heads that label or choose give what transformers gives: logits, losses, gradients.

head × flags × backend × way of calling; those of the text heads are in
test_model_parity.py. Padding is told to transformers by its pad token, its
mask and our position ids. Its question answering lets padding into the softmax, so
that losses of padded rows are compared for the other heads only; its summaries
"last", "first" and "mean" take the axis of the choices for that of the tokens,
so that it is asked for one choice at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.cases import BATCH, LENGTH, MASKS, D
from tests.parity.record import compare, count
from tests.parity.reference import (
    BACKENDS,
    SIZES,
    Pairs,
    in_our_orientation,
    random_ids,
    random_states,
    transformers,
)
from tests.parity.test_model_parity import ACTIVATIONS, FLAGS

pytestmark = pytest.mark.parity

PAD = 95  # never among the prompts' own ids
CHOICES = 2


@dataclass(frozen=True)
class Task:
    """A head with a kind of labels; ``overrides`` are config fields."""

    name: str
    cls: str
    labels: dict[str, Tensor]
    overrides: dict[str, Any] = field(default_factory=dict)
    per_token: tuple[str, ...] = ()  # outputs (…, T, ·); others are per sequence
    per_sequence: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the ids: (B, T), or (B, choices, T)."""
        return (BATCH, CHOICES, LENGTH) if self.cls == DOUBLE else (BATCH, LENGTH)


def _numbers(seed: int, high: int, *shape: int) -> Tensor:
    return random_ids(seed, *shape, vocab_size=high)


SEQUENCE, TOKEN, SPAN, DOUBLE = (
    "GPT2ForSequenceClassification", "GPT2ForTokenClassification", "GPT2ForQuestionAnswering",
    "GPT2DoubleHeadsModel",
)  # fmt: skip
LABELLED = {"labels": _numbers(9, PAD, BATCH, CHOICES, LENGTH)}
CHOSEN = {**LABELLED, "mc_labels": torch.tensor([1, 0, 1])}
# Real tokens also where rows are padded on the left
NAMED = {**CHOSEN, "mc_token_ids": torch.tensor([[8, 7], [3, 5], [7, 8]])}
SPAN_ENDS = ("start_logits", "end_logits")


def _sequence(name: str, labels: Tensor, **overrides: Any) -> Task:
    return Task(name, SEQUENCE, {"labels": labels}, overrides, per_sequence=("logits",))


def _double(name: str, labels: dict[str, Tensor], **overrides: Any) -> Task:
    return Task(name, DOUBLE, labels, overrides, ("logits",), ("mc_logits",))


TASKS = [
    _sequence("single", _numbers(1, 3, BATCH), num_labels=3),
    _sequence("multi", _numbers(2, 2, BATCH, 3).float(), num_labels=3),
    # Far from the logits, so that the rows' errors do not cancel one another in the gradients.
    _sequence("regression-1", random_states(3, BATCH) + 9, num_labels=1),
    _sequence(
        "regression-3", random_states(4, BATCH, 3) + 9, num_labels=3, problem_type="regression"
    ),
    _sequence(
        "multi by name",
        _numbers(5, 2, BATCH, 2).float(),
        problem_type="multi_label_classification",
    ),
    Task(
        "tokens", TOKEN, {"labels": _numbers(6, 4, BATCH, LENGTH)},
        {"num_labels": 4, "classifier_dropout": 0.0}, ("logits",),
    ),
    Task(
        "span", SPAN,
        {"start_positions": torch.tensor([4, 4, 20]), "end_positions": torch.tensor([5, -7, 8])},
        per_token=SPAN_ENDS,
    ),
    _double("choice", CHOSEN),
    _double("choice named", NAMED),
    _double("choice last", CHOSEN, summary_type="last"),
    _double("choice first", CHOSEN, summary_type="first"),
    _double("choice mean", CHOSEN, summary_type="mean"),
    _double("choice tanh", NAMED, summary_activation="tanh"),
    # What follows is no score per choice: there is no loss of the choices to compare.
    _double("choice wide", LABELLED, summary_proj_to_labels=False),
    _double("choice no projection", LABELLED, summary_use_proj=False),
]  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How the head is called."""

    name: str
    padding: str | None = None
    extras: tuple[str, ...] = ()
    cached: bool = False  # the last four columns behind a cache of the others


ALL_EXTRAS = ("position_ids", "token_type_ids", "inputs_embeds")
WAYS = [
    Way("plain"),
    Way("left", "left"),
    Way("right", "right"),
    Way("mixed", "mixed"),
    Way("token_type_ids", extras=("token_type_ids",)),
    Way("position_ids", extras=("position_ids",)),
    Way("inputs_embeds", extras=("inputs_embeds",)),
    Way("all-extras", extras=ALL_EXTRAS),
    Way("head_mask", extras=("head_mask",)),
    Way("cached", cached=True),
    Way("cached-left", "left", cached=True),
]
FEW_WAYS = [way for way in WAYS if way.name in ("plain", "left")]


def comparable(task: Task, way: Way) -> bool:
    """Whether the reference can be asked for it."""
    summary = task.overrides.get("summary_type", "cls_index")
    if summary != "cls_index" and (way.cached or way.padding):
        return False  # its summaries see padding, and only the chunk
    if "mc_token_ids" in task.labels and way.padding not in (None, "left"):
        return False  # the tokens that are named stand at padding
    if task.cls == DOUBLE and "inputs_embeds" in way.extras:
        return False  # it takes them for one sequence
    # Of these two the reference hands out no cache.
    return not way.cached or (task.cls not in (SPAN, TOKEN) and "mc_token_ids" not in task.labels)


CELLS = [
    (task, flags, way)
    for task, flags, way in (
        *((task, flags, way) for task in TASKS for flags in FLAGS for way in FEW_WAYS),
        *((task, "defaults", way) for task in TASKS for way in WAYS if way not in FEW_WAYS),
        *((task, activation, WAYS[0]) for task in TASKS[::3] for activation in ACTIVATIONS),
    )
    if comparable(task, way)
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("task", "flags", "way"), CELLS, ids=lambda cell: getattr(cell, "name", cell)
)
def test_forward_and_backward(pairs: Pairs, task: Task, flags: str, way: Way, backend: str) -> None:
    overrides = {**(FLAGS | ACTIVATIONS)[flags], **task.overrides, "pad_token_id": PAD}
    if not hasattr(transformers, task.cls):
        pytest.skip(f"this transformers has no {task.cls}")
    ours, theirs = pairs.ours(task.cls, backend, **overrides), pairs.theirs(task.cls, **overrides)
    if (
        "head_mask" in way.extras
        and "head_mask" not in inspect.signature(theirs.forward).parameters
    ):
        pytest.skip("this transformers has no head_mask; golden files stand in for it")
    if overrides.get("activation_function", "gelu_new") not in transformers.activations.ACT2FN:
        pytest.skip("this transformers does not have this activation")
    theirs.config.problem_type = task.overrides.get("problem_type")  # it keeps what it inferred

    mask = masks_for(task, way)
    inputs = inputs_for(task, way, mask)
    where = f"{task.name} {backend} {flags} {way.name}"
    mine, loss = run_ours(ours, task, way, inputs, mask)
    wanted, wanted_loss = run_theirs(theirs, task, way, inputs, mask)
    seen = mask if mask is None or not way.cached else mask[..., -CHUNK:]
    for name, expected in wanted.items():
        actual = mine[name]
        if name in task.per_token:
            real = torch.ones(actual.shape[: len(task.shape)]) if seen is None else seen
            actual, expected = actual[real.bool()], expected[real.bool()]
        compare(f"{task.cls} logits", actual, expected, where=f"{where} {name}")
    count("cells of the heads' matrix")
    if loss is not None and wanted_loss is not None:
        compare(f"{task.cls} loss", loss, wanted_loss, where=where)
        same_gradients(ours, theirs, loss, wanted_loss, f"{task.cls} gradients", where)


CHUNK = 4


def masks_for(task: Task, way: Way) -> Tensor | None:
    """(B, T), or (B, choices, T) with the choices padded differently."""
    if way.padding is None:
        return None
    mask = torch.tensor(MASKS[way.padding])
    return torch.stack([mask, mask.flip(0)], dim=1) if task.cls == DOUBLE else mask


def inputs_for(task: Task, way: Way, mask: Tensor | None) -> dict[str, Tensor]:
    """What both sides get, labels and mask aside."""
    inputs: dict[str, Tensor] = {}
    if "inputs_embeds" in way.extras:
        inputs["inputs_embeds"] = 0.3 * random_states(11, *task.shape, D)
    else:
        ids = random_ids(7, *task.shape, vocab_size=PAD)
        inputs["input_ids"] = ids if mask is None else ids.masked_fill(mask == 0, PAD)
    if "token_type_ids" in way.extras:
        inputs["token_type_ids"] = random_ids(12, *task.shape)
    if "position_ids" in way.extras:
        inputs["position_ids"] = random_ids(13, *task.shape, vocab_size=SIZES["n_positions"])
    return inputs


def run_ours(
    model: Any, task: Task, way: Way, inputs: Mapping[str, Tensor], mask: Tensor | None
) -> tuple[Any, Tensor | None]:
    """The outputs, and the loss where there is one to compare."""
    given = dict(inputs) if mask is None else {**inputs, "attention_mask": mask}
    if way.cached:
        return in_two_chunks(model, given), None
    if "head_mask" in way.extras:
        given["head_mask"] = HEAD_MASK
    output = model(**given, **task.labels)
    if task.cls == SPAN and mask is not None:
        return output, None
    return output, output.loss + output.mc_loss if "mc_labels" in task.labels else output.loss


HEAD_MASK = torch.tensor([1.0, 0.0, 0.5, -0.3])


def run_theirs(
    model: Any, task: Task, way: Way, inputs: Mapping[str, Tensor], mask: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The same of the reference, told about padding in the ways that it understands."""
    real = torch.ones(task.shape, dtype=torch.long) if mask is None else mask
    given: dict[str, Any] = {**inputs, "attention_mask": real}
    given.setdefault("position_ids", (real.cumsum(-1) - 1).clamp(min=0))
    for name in ("position_ids", "attention_mask"):
        given[name] = given[name].flatten(0, -2)
    if way.cached:
        output = in_two_chunks(model, given)
        return {name: output[name] for name in (*task.per_token, *task.per_sequence)}, None
    if "head_mask" in way.extras:
        given["head_mask"] = HEAD_MASK
    labels = dict(task.labels)
    choice = labels.pop("mc_labels", None)
    if task.cls in (TOKEN, DOUBLE):
        hidden = real == 0
        if task.cls == DOUBLE:  # next tokens: nothing is predicted from padding, either
            hidden = hidden | (torch.nn.functional.pad(real[..., :-1], (1, 0), value=1) == 0)
        labels["labels"] = labels["labels"].masked_fill(hidden, -100)
    last_real = (real * torch.arange(LENGTH)).argmax(-1)
    if task.cls == DOUBLE:
        labels.setdefault("mc_token_ids", last_real)
    output = model(**given, **labels, output_hidden_states=True)
    wanted = {name: output[name] for name in task.per_token}
    loss = None if task.cls == SPAN and mask is not None else output.loss
    for name in task.per_sequence:
        wanted[name] = output[name]
        if name == "mc_logits" and "summary_type" in task.overrides:
            states = output.hidden_states[-1].flatten(0, 1)  # (B · choices, T, D)
            wanted[name] = model.multiple_choice_head(states).view(BATCH, CHOICES)
    if choice is not None:
        loss = loss + torch.nn.functional.cross_entropy(wanted["mc_logits"], choice)
    return wanted, loss


def in_two_chunks(model: Any, given: Mapping[str, Tensor]) -> Any:
    """The output of the last CHUNK columns, behind a cache of those before."""
    past, output = None, None
    start = 0
    for stop in (LENGTH - CHUNK, LENGTH):
        chunk = {k: v[..., start:stop] for k, v in given.items() if k != "attention_mask"}
        if "attention_mask" in given:
            chunk["attention_mask"] = given["attention_mask"][..., :stop]
        output = model(**chunk, past_key_values=past, use_cache=True)
        past, start = output.past_key_values, stop
    return output


def same_gradients(
    ours: Any, theirs: Any, loss: Tensor, wanted_loss: Tensor, kind: str, where: str
) -> None:
    """Compare the gradients of every parameter."""
    for model, objective in ((ours, loss), (theirs, wanted_loss)):
        model.zero_grad()
        objective.backward()
    parameters = dict(ours.named_parameters())
    reference = in_our_orientation(theirs)
    largest = max(float(p.grad.abs().max()) for p, _ in reference.values() if p.grad is not None)
    for name, (parameter, turned) in reference.items():
        mine = parameters[name].grad
        if parameter.grad is None:  # cross-attention that nothing is given to, say
            assert mine is None or not mine.any(), name
            continue
        wanted = parameter.grad.T if turned else parameter.grad
        assert mine is not None, name
        if parameter.numel() == 1:
            # A bias of one number: its gradient is a small difference of terms as large as those
            # of its weight, and rounding is to be seen beside them.
            beside = name.replace("bias", "weight")
            mine = torch.cat([mine, parameters[beside].grad.flatten()])
            wanted = torch.cat([wanted, reference[beside][0].grad.flatten()])
        if wanted.abs().max() < 1e-6 * largest:
            # Zero but for rounding: a softmax does not see what is added to all of its logits.
            assert mine.abs().max() < 1e-6 * largest, name
            continue
        compare(kind, mine, wanted, where=f"{where} {name}")
