"""The activation functions, against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gpt2.configchecks import ACTIVATION_NAMES
from gpt2.errors import ConfigError
from gpt2.modeling.activations import ACTIVATIONS, get_activation

X = torch.linspace(-6, 6, 241, dtype=torch.float64)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def normal_cdf(x: Tensor) -> Tensor:
    return (1 + torch.erf(x / math.sqrt(2))) / 2


def tanh_gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


FORMULAS = {
    "relu": lambda x: (x + x.abs()) / 2,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * normal_cdf(x),
    "tanh": lambda x: 2 * sigmoid(2 * x) - 1,
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
}


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_equals_its_formula(name: str) -> None:
    torch.testing.assert_close(get_activation(name)(X), FORMULAS[name](X), rtol=0, atol=1e-12)


def test_every_name_that_a_config_may_have_has_a_function() -> None:
    assert set(ACTIVATIONS) == set(ACTIVATION_NAMES)


def test_the_three_gelus_differ() -> None:
    """So that a swapped pair cannot pass for rounding."""
    found = {name: get_activation(name)(X) for name in ("gelu", "gelu_new", "quick_gelu")}
    assert (found["gelu"] - found["gelu_new"]).abs().max() > 1e-4
    assert (found["gelu"] - found["quick_gelu"]).abs().max() > 1e-2


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="'gelu2'; it may be relu, silu"):
        get_activation("gelu2")
