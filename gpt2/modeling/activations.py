"""The activation functions that a config can name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.errors import ConfigError

Activation = Callable[[Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    """0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))), as one kernel.

    The approximation of arXiv:1606.08415 §2, which GPT-2 was trained with.
    """
    return F.gelu(x, approximate="tanh")


def unchanged(x: Tensor) -> Tensor:
    """x, where the layer before has applied the activation already."""
    return x


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702·x), the sigmoid approximation of arXiv:1606.08415 §2."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}


def get_activation(name: str) -> Activation:
    """The function called ``name``; ConfigError with the list where there is none."""
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise ConfigError(
            f"activation_function is {name!r}; it may be {', '.join(ACTIVATIONS)}"
        ) from None
