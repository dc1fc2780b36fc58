"""GPT2Model and GPT2LMHeadModel give what transformers gives: outputs, losses, gradients.

Every config flag × class × backend × way of calling. Compared at attended
positions only: what stands at padding is nobody's contract.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2.configchecks import ACTIVATION_NAMES
from tests.helpers import at_attended
from tests.parity.cases import CASES, Case, Inputs, calls, labels_without_padding, make_inputs
from tests.parity.record import compare, count
from tests.parity.reference import (
    BACKENDS,
    Pairs,
    cache_layers,
    in_our_orientation,
    random_states,
    transformers,
)

pytestmark = pytest.mark.parity

FLAGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no-scale": {"scale_attn_weights": False},
    "inverse-layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "n_inner": {"n_inner": 48},
    "untied": {"tie_word_embeddings": False},
    "cross": {"add_cross_attention": True},
    "all-flags": {
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
        "n_inner": 48,
        "tie_word_embeddings": False,
        "add_cross_attention": True,
        "layer_norm_epsilon": 1e-3,
        "activation_function": "silu",
        "n_layer": 3,
        "n_head": 2,
    },
}
ACTIVATIONS = {n: {"activation_function": n} for n in ACTIVATION_NAMES if n != "gelu_new"}
# an activation meets the way of calling nowhere: a few ways are enough
FEW_CASES = [case for case in CASES if case.name in ("plain", "left", "several-chunks-extras")]
CLASSES = ("GPT2Model", "GPT2LMHeadModel")


@dataclass
class Result:
    """What one side gave, over all chunks; tensors (B, T, ...) unless said otherwise."""

    states: dict[str, Tensor]
    attentions: list[list[Tensor]]  # per chunk, per layer: (B, H, T, S)
    cross_attentions: list[list[Tensor]]
    cache: list[tuple[Tensor, Tensor]]  # per layer: keys and values (B, H, S, Dh)
    objective: Tensor
    loss: Tensor | None
    gradients: dict[str, Tensor | None] = field(default_factory=dict)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def expected() -> dict[Any, Result]:
    """The reference's results, which all backends share."""
    return {}


def run(
    model: Any, case: Case, inputs: Inputs, *, for_theirs: bool, attentions: bool = True
) -> Result:
    """Call the model as the case says, and reduce everything to one objective."""
    past, outputs = None, []
    is_lm = type(model).__name__ == "GPT2LMHeadModel"
    for arguments in calls(case, inputs, for_theirs=for_theirs):
        if is_lm and not case.cached:
            own = not for_theirs
            arguments["labels"] = inputs.labels if own else labels_without_padding(inputs)
        output = model(
            **arguments,
            past_key_values=past,
            use_cache=case.cached,
            output_attentions=attentions,
            output_hidden_states=True,
        )
        past = output.past_key_values
        outputs.append(output)

    states = {}
    for name in ("last_hidden_state", "logits"):
        if name in outputs[0]:
            states[name] = torch.cat([o[name] for o in outputs], dim=1)
    for layer in range(len(outputs[0].hidden_states)):
        states[f"hidden_states.{layer}"] = torch.cat([o.hidden_states[layer] for o in outputs], 1)
    loss = outputs[0].loss if is_lm and not case.cached else None
    if loss is not None:
        objective = loss
    else:
        final = at_attended(states["logits" if is_lm else "last_hidden_state"], inputs.mask)
        objective = (final * random_states(7, *final.shape)).mean()
    return Result(
        states=states,
        attentions=[list(o.attentions or ()) for o in outputs],
        cross_attentions=[list(o.cross_attentions or ()) for o in outputs],
        cache=cache_layers(past) if case.cached else [],
        objective=objective,
        loss=loss,
    )


def run_backwards(
    model: Any, case: Case, config: dict[str, Any], *, for_theirs: bool, attentions: bool = True
) -> Result:
    """`run`, and the gradients of every parameter and every floating-point input."""
    inputs = make_inputs(case, cross_attention=config.get("add_cross_attention", False))
    floating = {
        name: tensor.requires_grad_()
        for name, tensor in (inputs.columns | inputs.whole).items()
        if tensor.is_floating_point()
    }
    result = run(model, case, inputs, for_theirs=for_theirs, attentions=attentions)
    model.zero_grad()
    result.objective.backward()
    for name, (parameter, turned) in in_our_orientation(model).items():
        gradient = parameter.grad
        result.gradients[name] = gradient.t() if turned and gradient is not None else gradient
    result.gradients |= {name: tensor.grad for name, tensor in floating.items()}
    model.zero_grad()
    return result


def same(ours: Result, theirs: Result, mask: Tensor | None, case: Case, where: str) -> None:
    """Compare everything but the gradients, and attentions only where ours gave them."""
    assert ours.states.keys() == theirs.states.keys()
    for name, tensor in theirs.states.items():
        kind = name.partition(".")[0]
        mine = at_attended(ours.states[name], mask)
        compare(kind, mine, at_attended(tensor, mask), where=f"{where} {name}")
    start = 0
    for chunk, length in enumerate(case.chunks):
        queries = None if mask is None else mask[:, start : start + length]
        for kind in ("attentions", "cross_attentions"):
            if ours.attentions[chunk]:
                same_layers(
                    kind, getattr(ours, kind)[chunk], getattr(theirs, kind)[chunk], queries, where
                )
        start += length
    for part in (0, 1):
        same_layers(
            "cache", [kv[part] for kv in ours.cache], [kv[part] for kv in theirs.cache], mask, where
        )
    if theirs.loss is not None:
        assert ours.loss is not None
        compare("loss", ours.loss, theirs.loss, where=where)


def same_layers(
    kind: str, ours: list[Tensor], theirs: list[Tensor], mask: Tensor | None, where: str
) -> None:
    """Per layer (B, H, T, ...), at the T that ``mask`` (B, T) attends to."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        a, b = at_attended(a.transpose(1, 2), mask), at_attended(b.transpose(1, 2), mask)
        compare(kind, a, b, where=where)


def same_gradients(ours: Result, theirs: Result, where: str) -> None:
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        mine = ours.gradients[name]
        assert (mine is None) == (gradient is None), f"{name}: {where}"
        if gradient is not None and mine is not None:
            kind = "gradients" if "." in name else "input gradients"
            compare(kind, mine, gradient, where=f"{where} {name}")


def check(
    pairs: Pairs,
    expected: dict[Any, Result],
    cls: str,
    backend: str,
    config: dict[str, Any],
    case: Case,
    where: str,
) -> None:
    """One cell of the matrix, along every path that a call can take here.

    A backend's own kernel runs only where nobody asks for the weights, and the
    cache grows in place only without autograd.
    """
    key = (cls, repr(config), case)
    if key not in expected:
        expected[key] = run_backwards(pairs.theirs(cls, **config), case, config, for_theirs=True)
    theirs, model = expected[key], pairs.ours(cls, backend, **config)
    cross_attention = config.get("add_cross_attention", False)
    mask = make_inputs(case).mask
    for attentions, backwards in ((False, True), (True, False), (False, False), (True, True)):
        if attentions and backwards and config != FLAGS["all-flags"]:
            continue  # the gradient of the explicit path needs no more than one config
        if not attentions and not backwards and not case.cached:
            continue
        if backwards:
            ours = run_backwards(model, case, config, for_theirs=False, attentions=attentions)
        else:
            inputs = make_inputs(case, cross_attention=cross_attention)
            with torch.no_grad():
                ours = run(model, case, inputs, for_theirs=False, attentions=attentions)
        assert bool(ours.attentions[0]) == attentions
        path = f"{where}{', weights shown' * attentions}{', no grad' * (not backwards)}"
        same(ours, theirs, mask, case, path)
        if backwards:
            same_gradients(ours, theirs, path)
    count("cells of the matrix")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("flags", FLAGS)
def test_forward_and_backward(
    pairs: Pairs, expected: dict[Any, Result], flags: str, cls: str, backend: str, case: Case
) -> None:
    where = f"{cls} {backend} {flags} {case.name}"
    check(pairs, expected, cls, backend, FLAGS[flags], case, where)


@pytest.mark.parametrize("case", FEW_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(
    pairs: Pairs, expected: dict[Any, Result], activation: str, cls: str, backend: str, case: Case
) -> None:
    if activation not in transformers.activations.ACT2FN:
        pytest.skip(f"this transformers has no activation {activation}")
    where = f"{cls} {backend} {activation} {case.name}"
    check(pairs, expected, cls, backend, ACTIVATIONS[activation], case, where)
