"""The outputs: attribute, key, index and slice; None left out; visible to torch's pytree."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gpt2 import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)
from gpt2.errors import ArgumentError
from gpt2.modeling.cache import KVCache
from gpt2.modeling.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 97, (2, 5), generator=torch.Generator().manual_seed(1))


def output(**arguments: Any) -> CausalLMOutputWithCrossAttentions:
    with torch.no_grad():
        found = tiny_model()(IDS, **arguments)
    assert isinstance(found, CausalLMOutputWithCrossAttentions)
    return found


def test_reads_like_a_mapping_and_a_tuple() -> None:
    out = output(labels=IDS)
    assert list(out) == out.keys() == ["loss", "logits", "past_key_values"]
    assert len(out) == 3
    assert out["logits"] is out.logits is out[1] is out.get("logits")
    assert out[0] is out.loss
    assert out[-1] is out.past_key_values
    assert out[1:] == (out.logits, out.past_key_values)
    assert out[:2] == (out.loss, out.logits)
    assert out.to_tuple() == tuple(out.values())
    assert dict(out.items()).keys() == set(out.keys())
    assert "logits" in out
    assert "attentions" not in out
    assert out.attentions is None
    assert out.get("attentions", 7) == 7
    loss, logits, past = out.to_tuple()
    assert (loss, logits, past) == (out.loss, out.logits, out.past_key_values)


def test_what_is_none_takes_no_place() -> None:
    out = output(use_cache=False, output_hidden_states=True)
    assert out.keys() == ["logits", "hidden_states"]
    assert out[0] is out.logits
    assert out[1] is out.hidden_states
    with pytest.raises(KeyError, match=r"'loss'; .* has logits, hidden_states"):
        out["loss"]
    with pytest.raises(IndexError):
        out[2]


@pytest.mark.parametrize("by", ["argument", "config"])
@pytest.mark.parametrize("cls", [GPT2Model, GPT2LMHeadModel])
def test_return_dict_false_gives_the_tuple(cls: Any, by: str) -> None:
    model = tiny_model(cls)
    expected = model(IDS, output_attentions=True)
    if by == "config":
        model.config.return_dict = False
        found = model(IDS, output_attentions=True)
        assert not isinstance(model(IDS, return_dict=True), tuple)
    else:
        found = model(IDS, output_attentions=True, return_dict=False)
    assert isinstance(found, tuple)
    assert len(found) == len(expected) == 3
    assert torch.equal(found[0], expected[0])
    assert isinstance(found[1], KVCache)
    assert torch.equal(found[2][1], expected.attentions[1])


@pytest.mark.parametrize("by", ["argument", "config"])
def test_what_is_asked_for_is_given(by: str) -> None:
    asked = {"output_attentions": True, "output_hidden_states": True}
    model = tiny_model(GPT2Model, **(asked if by == "config" else {}))
    out = model(IDS, **(asked if by == "argument" else {}))
    assert isinstance(out, BaseModelOutputWithPastAndCrossAttentions)
    assert [h.shape for h in out.hidden_states] == [(2, 5, 32)] * 3
    assert [a.shape for a in out.attentions] == [(2, 4, 5, 5)] * 2
    embedded = model.wte(IDS) + model.wpe.weight[:5]
    assert torch.equal(out.hidden_states[0], embedded)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    one, _, _ = model.h[0](embedded, visibility())
    assert_close(out.hidden_states[1], one)
    refused = dict.fromkeys(asked, False)
    out = model(IDS, **refused)
    assert out.keys() == ["last_hidden_state", "past_key_values"]


def visibility() -> Any:
    from gpt2.modeling.masks import Visibility

    return Visibility()


def test_pytree_finds_every_tensor() -> None:
    """So that DDP, FSDP and compile do."""
    out = output(labels=IDS, output_hidden_states=True, output_attentions=True)
    tensors = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
    assert len(tensors) == 1 + 1 + 2 * 2 + 3 + 2
    doubled = pytree.tree_map_only(Tensor, lambda t: 2 * t, out)
    assert type(doubled) is type(out)
    assert torch.equal(doubled.logits, 2 * out.logits)
    assert torch.equal(doubled.hidden_states[2], 2 * out.hidden_states[2])
    assert torch.equal(doubled.past_key_values[1][0], 2 * out.past_key_values[1][0])
    assert doubled.cross_attentions is None


HEADS = [
    GPT2Model,
    GPT2LMHeadModel,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2ForQuestionAnswering,
]
COPIES = [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]


def leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("cls", HEADS)
def test_models_configs_and_outputs_copy_and_pickle(cls: Any, copied: Any) -> None:
    model = tiny_model(cls, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    ids = IDS[None] if cls is GPT2DoubleHeadsModel else IDS
    with torch.no_grad():
        out = model(ids, output_attentions=True, output_hidden_states=True)
        twin = copied(out)
        assert type(twin) is type(out)
        assert twin.keys() == out.keys()
        other = copied(model)
        for found in (twin, other(ids, output_attentions=True, output_hidden_states=True)):
            for mine, theirs in zip(leaves(found), leaves(out), strict=True):
                assert torch.equal(mine, theirs)
    assert other.config == model.config
    assert copied(model.config) == model.config
    if hasattr(model, "lm_head"):
        assert other.lm_head.weight is other.transformer.wte.weight
    assert other.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("cls", HEADS)
def test_every_output_is_a_pytree(cls: Any) -> None:
    model = tiny_model(cls)
    ids = IDS[None] if cls is GPT2DoubleHeadsModel else IDS
    out = model(ids, output_attentions=True, output_hidden_states=True)
    found, spec = pytree.tree_flatten(out)
    tensors = {id(t) for t in found if isinstance(t, Tensor)}
    for name in out:
        value = out[name]
        for t in value if isinstance(value, tuple) else [value]:
            assert isinstance(t, KVCache) or id(t) in tensors, name
    again = pytree.tree_unflatten(found, spec)
    assert type(again) is type(out)
    assert again.keys() == out.keys()
    json_form = pytree.treespec_dumps(spec)  # what an exported program is stored with
    assert pytree.treespec_loads(json_form) == spec


# -- logits_to_keep -----------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, IDS])
def test_logits_to_keep_picks_positions(labels: Tensor | None) -> None:
    whole = output(labels=labels)
    for keep, columns in [
        (0, range(5)),
        (1, [4]),
        (3, [2, 3, 4]),
        (9, range(5)),
        (torch.tensor([0, 3]), [0, 3]),
        (torch.tensor([-1]), [4]),
    ]:
        out = output(labels=labels, logits_to_keep=keep)
        assert_close(out.logits, whole.logits[:, list(columns)])
        if labels is not None:
            assert torch.equal(out.loss, whole.loss)
    each = torch.tensor([[4, 0], [1, 1]])
    out = output(labels=labels, logits_to_keep=each)
    assert_close(out.logits[0], whole.logits[0, [4, 0]])
    assert_close(out.logits[1], whole.logits[1, [1, 1]])


def test_a_negative_number_of_logits_is_refused() -> None:
    with pytest.raises(ArgumentError, match="logits_to_keep must be at least 0, not -1"):
        output(logits_to_keep=-1)
