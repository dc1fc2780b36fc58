"""Initialisation, and the tie of embedding and head: one parameter, whatever is done to it."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gpt2 import GPT2Config, GPT2LMHeadModel, GPT2Model
from gpt2.errors import ArgumentTypeError, ConfigError, StateDictError
from tests.helpers import assert_close, tiny_config, tiny_model

IDS = torch.randint(0, 97, (2, 5), generator=torch.Generator().manual_seed(1))

# -- initialisation -----------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_standard_deviations(spread: float) -> None:
    """N(0, σ) for matrices, σ/√(2·n_layer) for what writes to the residual stream."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1000, n_positions=300, n_embd=128, n_layer=3, n_head=4,
        initializer_range=spread, add_cross_attention=True, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    kinds = set()
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
            kinds.add("bias")
        elif isinstance(owner, nn.LayerNorm):
            assert (parameter == 1).all(), name
            kinds.add("norm")
        else:
            residual = ".c_proj." in name
            expected = spread / math.sqrt(2 * 3) if residual else spread
            # of n draws, the deviation is off by about 1/√(2n): take five times that
            tolerance = 5 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=tolerance), name
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name
            kinds.add("residual" if residual else "matrix")
    assert kinds == {"bias", "norm", "residual", "matrix"}


@pytest.mark.parametrize("cls", [GPT2Model, GPT2LMHeadModel])
def test_initialisation_is_seeded(cls: type[GPT2Model]) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return cls(tiny_config()).state_dict()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_model_keeps_its_own_config() -> None:
    config = tiny_config()
    model = GPT2LMHeadModel(config)
    model.config.n_positions = 5
    model.config.extra["note"] = 1
    assert config == tiny_config()
    assert model.transformer.wpe.num_embeddings == 32


def test_what_is_no_config_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"takes a GPT2Config, not dict.*from_pretrained"):
        GPT2LMHeadModel({"n_embd": 32})  # type: ignore[arg-type]
    config = tiny_config()
    config.n_head = 5
    with pytest.raises(ConfigError, match=r"n_embd \(32\) must be a multiple of n_head \(5\)"):
        GPT2Model(config)


def test_base_model_is_the_core() -> None:
    model = tiny_model()
    assert model.base_model is model.transformer
    assert model.transformer.base_model is model.transformer


def test_num_parameters_counts_a_tied_weight_once() -> None:
    model = GPT2LMHeadModel(tiny_config())
    count = 97 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert model.num_parameters() == count
    model.transformer.wte.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == count - 97 * 32
    untied = GPT2LMHeadModel(tiny_config(tie_word_embeddings=False))
    assert untied.num_parameters() == count + 97 * 32


# -- the tie ------------------------------------------------------------------------------------

HEAD, TABLE = "lm_head.weight", "transformer.wte.weight"


def is_tied(model: GPT2LMHeadModel) -> bool:
    return model.lm_head.weight is model.transformer.wte.weight


def reloaded(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    fresh = GPT2LMHeadModel(model.config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    return fresh


def through_meta(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    with torch.device("meta"):
        empty = GPT2LMHeadModel(model.config)
    assert is_tied(empty)
    moved = empty.to_empty(device="cpu")
    moved.load_state_dict(model.state_dict())
    return moved


SURVIVES: dict[str, Callable[[GPT2LMHeadModel], GPT2LMHeadModel]] = {
    "nothing": lambda m: m,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "half": lambda m: m.half(),
    "bfloat16 and back": lambda m: m.to(torch.bfloat16).float(),
    "double": lambda m: m.to(dtype=torch.float64),
    "to_empty": through_meta,
    "load with assign": reloaded,
    "share_memory": lambda m: m.share_memory(),
    "deepcopy of a deepcopy, in half": lambda m: copy.deepcopy(copy.deepcopy(m).half()),
    "future swap": lambda m: swapped(m),
}


def swapped(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """torch's other way to convert, which makes new parameters."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize("how", SURVIVES)
def test_the_tie_survives(how: str) -> None:
    original = tiny_model()
    expected = original(IDS).logits.detach().double()
    model = SURVIVES[how](original).eval()
    assert is_tied(model)
    assert HEAD not in model.state_dict()
    assert TABLE in model.state_dict()
    assert [n for n, _ in model.named_parameters()].count(TABLE) == 1
    assert sum(p is model.lm_head.weight for p in model.parameters()) == 1
    rounded = torch.finfo(model.dtype).bits == 16 or how == "bfloat16 and back"
    assert_close(model(IDS).logits.double(), expected, 5e-2 if rounded else 1e-5)
    # and it is a tie, not two equal tensors: a step moves both
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)


def test_copies_share_nothing_with_the_original() -> None:
    model = tiny_model()
    for twin in (copy.deepcopy(model), reloaded(copy.deepcopy(model))):
        with torch.no_grad():
            twin.lm_head.weight.zero_()
        assert model.lm_head.weight.abs().sum() > 0


def test_state_dict_round_trip_is_strict() -> None:
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    result = other.load_state_dict(model.state_dict())
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    assert is_tied(other)
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    with pytest.raises(RuntimeError, match=r"Missing key.*wpe"):
        other.load_state_dict({k: v for k, v in model.state_dict().items() if "wpe" not in k})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*nothing"):
        other.load_state_dict({**model.state_dict(), "nothing": IDS})


def test_the_tie_holds_inside_another_module() -> None:
    class Wrapper(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.policy, self.other = tiny_model(seed=seed), tiny_model(seed=seed + 1)

    wrapper = Wrapper(1)
    state = wrapper.state_dict()
    assert "policy.lm_head.weight" not in state
    assert "policy.transformer.wte.weight" in state
    target = Wrapper(5)
    target.load_state_dict(state)
    assert is_tied(target.policy)
    assert torch.equal(target.policy(IDS).logits, wrapper.policy(IDS).logits)
    assert torch.equal(target.other(IDS).logits, wrapper.other(IDS).logits)


@pytest.mark.parametrize("assign", [True, False])
def test_both_names_load_where_they_agree(assign: bool) -> None:
    model = tiny_model(seed=1)
    state = {**model.state_dict(), HEAD: model.state_dict()[TABLE].clone()}
    before = dict(state)
    other = tiny_model(seed=2)
    other.load_state_dict(state, assign=assign)
    assert is_tied(other)
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    assert state.keys() == before.keys()  # the caller's dict is not changed
    state[TABLE][3, 5] = state[HEAD][3, 5] = torch.nan
    tiny_model(seed=2).load_state_dict(state)  # NaN agrees with NaN


@pytest.mark.parametrize("assign", [True, False])
def test_tied_weights_that_differ_are_refused(assign: bool) -> None:
    model = tiny_model(seed=1)
    kept = model(IDS).logits.detach()
    for head in (model.lm_head.weight.detach() + 1, torch.zeros(5, 32), torch.zeros(97, 32).half()):
        state = {**tiny_model(seed=2).state_dict(), HEAD: head}
        with pytest.raises(StateDictError) as caught:
            model.load_state_dict(state, assign=assign)
        for part in (HEAD, TABLE, "differ", "tie_word_embeddings=False"):
            assert part in str(caught.value)
        assert torch.equal(model(IDS).logits, kept)  # nothing was loaded


def test_untied_weights_are_two() -> None:
    model = tiny_model(tie_word_embeddings=False)
    assert not is_tied(model)
    assert {HEAD, TABLE} <= set(model.state_dict())
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    for twin in (copy.deepcopy(model), model.float(), reloaded(model)):
        assert not is_tied(twin)
    other = tiny_model(seed=3, tie_word_embeddings=False)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    with pytest.raises(RuntimeError, match=r"Missing key.*lm_head"):
        other.load_state_dict(tiny_model().state_dict())


def test_embeddings_by_their_documented_getters() -> None:
    model = tiny_model()
    assert model.get_input_embeddings() is model.transformer.wte
    assert model.get_output_embeddings() is model.lm_head
    core = tiny_model(GPT2Model)
    assert core.get_input_embeddings() is core.wte
    assert core.get_output_embeddings() is None
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.half().dtype == torch.float16
