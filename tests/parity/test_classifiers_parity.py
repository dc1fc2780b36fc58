"""The heads that label or choose give what transformers gives: logits, losses, gradients.

Padding is told to transformers by its pad token and by our position ids; its
question answering lets padding into the softmax, so losses of padded rows are
compared for the other heads only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import at_attended
from tests.parity.cases import BATCH, LENGTH, MASKS
from tests.parity.record import compare, count
from tests.parity.reference import (
    BACKENDS,
    Pairs,
    in_our_orientation,
    random_ids,
    random_states,
    transformers,
)

pytestmark = pytest.mark.parity

PAD = 95  # never among the prompts' own ids


@dataclass(frozen=True)
class Task:
    """A head with a kind of labels; ``overrides`` are config fields."""

    name: str
    cls: str
    labels: dict[str, Tensor]
    overrides: dict[str, Any] = field(default_factory=dict)


def _numbers(seed: int, high: int, *shape: int) -> Tensor:
    return random_ids(seed, *shape, vocab_size=high)


SEQUENCE, TOKEN, SPAN = (
    "GPT2ForSequenceClassification", "GPT2ForTokenClassification", "GPT2ForQuestionAnswering",
)  # fmt: skip
TASKS = [
    Task("single", SEQUENCE, {"labels": _numbers(1, 3, BATCH)}, {"num_labels": 3}),
    Task("multi", SEQUENCE, {"labels": _numbers(2, 2, BATCH, 3).float()}, {"num_labels": 3}),
    # Far from the logits, so that the rows' errors do not cancel one another in the gradients.
    Task("regression-1", SEQUENCE, {"labels": random_states(3, BATCH) + 9}, {"num_labels": 1}),
    Task(
        "regression-3", SEQUENCE, {"labels": random_states(4, BATCH, 3) + 9},
        {"num_labels": 3, "problem_type": "regression"},
    ),
    Task(
        "multi by name", SEQUENCE, {"labels": _numbers(5, 2, BATCH, 2).float()},
        {"problem_type": "multi_label_classification"},
    ),
    Task(
        "tokens", TOKEN, {"labels": _numbers(6, 4, BATCH, LENGTH)},
        {"num_labels": 4, "classifier_dropout": 0.0},
    ),
    Task(
        "span", SPAN,
        {"start_positions": torch.tensor([1, 4, 20]), "end_positions": torch.tensor([3, -7, 8])},
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("padding", [None, "right", "left"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_forward_and_backward(pairs: Pairs, task: Task, backend: str, padding: str | None) -> None:
    if not hasattr(transformers, task.cls):
        pytest.skip(f"this transformers has no {task.cls}")
    overrides = {**task.overrides, "pad_token_id": PAD}
    ours, theirs = pairs.ours(task.cls, backend, **overrides), pairs.theirs(task.cls, **overrides)
    where = f"{task.name} {backend} {padding}"
    ids, mask = random_ids(7, BATCH, LENGTH, vocab_size=PAD), None
    their_inputs: dict[str, Any] = dict(task.labels)
    inputs: dict[str, Any] = {"input_ids": ids}
    if padding is not None:
        mask = torch.tensor(MASKS[padding])
        inputs = {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}
        their_inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if task.cls == TOKEN:
            their_inputs["labels"] = task.labels["labels"].masked_fill(mask == 0, -100)
    theirs.config.problem_type = task.overrides.get("problem_type")  # it keeps what it inferred
    result = ours(**inputs, **task.labels)
    expected = theirs(**inputs, **their_inputs)

    if task.cls == SEQUENCE:
        compare(f"{SEQUENCE} logits", result.logits, expected.logits, where=where)
    for name in ("logits", "start_logits", "end_logits"):
        if task.cls != SEQUENCE and name in expected:
            compare(
                f"{task.cls} logits",
                at_attended(result[name], mask),
                at_attended(expected[name], mask),
                where=f"{where} {name}",
            )
    if task.cls == SPAN and padding is not None:
        return
    compare(f"{task.cls} loss", result.loss, expected.loss, where=where)
    for model, loss in ((ours, result.loss), (theirs, expected.loss)):
        model.zero_grad()
        loss.backward()
    parameters = dict(ours.named_parameters())
    reference = in_our_orientation(theirs)
    largest = max(float(parameter.grad.abs().max()) for parameter, _ in reference.values())
    for name, (parameter, turned) in reference.items():
        wanted = parameter.grad.T if turned else parameter.grad
        if wanted.abs().max() < 1e-6 * largest:
            # Zero but for rounding: a softmax does not see what is added to all of its logits.
            assert parameters[name].grad.abs().max() < 1e-6 * largest, name
            continue
        compare(f"{task.cls} gradients", parameters[name].grad, wanted, where=f"{where} {name}")
    count("cells of the classifiers")


DOUBLE = "GPT2DoubleHeadsModel"
SUMMARIES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "tanh": {"summary_activation": "tanh"},
    "untied": {"tie_word_embeddings": False},
    "wide": {"summary_proj_to_labels": False},
    "no projection": {"summary_use_proj": False},
}


@pytest.mark.parametrize("named", [False, True], ids=["last token", "mc_token_ids"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("flags", SUMMARIES)
def test_double_heads(pairs: Pairs, flags: str, backend: str, named: bool) -> None:
    ours = pairs.ours(DOUBLE, backend, **SUMMARIES[flags])
    theirs = pairs.theirs(DOUBLE, **SUMMARIES[flags])
    where = f"double heads {flags} {backend} {'named' if named else 'last'}"
    ids = random_ids(8, BATCH, 2, LENGTH)
    inputs: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if named:
        inputs["mc_token_ids"] = torch.tensor([[0, 3], [8, 5], [1, 1]])
    if flags not in ("wide", "no projection"):
        inputs["mc_labels"] = torch.tensor([1, 0, 1])
    result, expected = ours(**inputs), theirs(**inputs)
    compare(f"{DOUBLE} logits", result.logits, expected.logits, where=where)
    compare(f"{DOUBLE} mc_logits", result.mc_logits, expected.mc_logits, where=where)
    compare(f"{DOUBLE} loss", result.loss, expected.loss, where=where)
    losses = [result.loss, expected.loss]
    if "mc_labels" in inputs:
        compare(f"{DOUBLE} mc_loss", result.mc_loss, expected.mc_loss, where=where)
        losses = [result.loss + result.mc_loss, expected.loss + expected.mc_loss]
    for model, loss in zip((ours, theirs), losses, strict=True):
        model.zero_grad()
        loss.backward()
    parameters = dict(ours.named_parameters())
    for name, (parameter, turned) in in_our_orientation(theirs).items():
        if parameter.grad is None:  # no choice was asked for
            assert parameters[name].grad is None, name
        elif flags == "tanh" or not name.endswith("summary.bias"):  # else it moves all logits alike
            wanted = parameter.grad.T if turned else parameter.grad
            compare(f"{DOUBLE} gradients", parameters[name].grad, wanted, where=f"{where} {name}")
    count("cells of the double heads")
