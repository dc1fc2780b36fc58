"""What every test needs: a tiny model with nothing left at zero, and one comparison of tensors."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gpt2 import GPT2Config, GPT2LMHeadModel, GPT2PreTrainedModel

Model = TypeVar("Model", bound=GPT2PreTrainedModel)

_SMALLEST = torch.finfo(torch.float64).tiny


def tiny_config(**overrides: Any) -> GPT2Config:
    """V=97, 32 positions, D=32, L=2, H=4, no dropout; special tokens inside the vocabulary."""
    settings: dict[str, Any] = {
        "vocab_size": 97,
        "n_positions": 32,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "summary_first_dropout": 0.0,
        "bos_token_id": 96,
        "eos_token_id": 96,
    }
    return GPT2Config(**{**settings, **overrides})


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter random values, in place.

    A fresh GPT-2 has zero biases and layer norms of one, which would hide a
    bias that is never added or a norm that is applied twice. The values are
    large enough for attention weights that differ from one another.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(0.15 * noise + float(is_norm_weight))


def tiny_model(
    cls: type[Model] = GPT2LMHeadModel,  # type: ignore[assignment]
    seed: int = 0,
    **overrides: Any,
) -> Model:
    """A `tiny_config` model in eval mode, all of its parameters random."""
    model = cls(tiny_config(**overrides))
    randomise(model, seed)
    return model.eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max|actual - expected| / max|expected|, in float64; inf where only one of them is finite."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes {tuple(actual.shape)} and {tuple(expected.shape)} differ")
    if actual.numel() == 0:
        return 0.0
    difference = _difference(actual, expected).max().item()
    finite = expected[expected.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    return difference / max(largest, _SMALLEST)


def assert_close(
    actual: Tensor, expected: Tensor, tolerance: float = 1e-5, *, what: str = "tensor"
) -> float:
    """Fail where `relative_error` is above ``tolerance``, and say where; returns the error."""
    error = relative_error(actual, expected)
    if not error <= tolerance:
        actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
        worst = int(_difference(actual, expected).argmax())
        where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape))
        raise AssertionError(
            f"{what} of shape {tuple(expected.shape)}: relative error {error:.2e} is above "
            f"{tolerance:.0e}; worst at {where}: {actual.flatten()[worst].item():.8g} "
            f"for {expected.flatten()[worst].item():.8g}"
        )
    return error


def _difference(actual: Tensor, expected: Tensor) -> Tensor:
    """|actual - expected|; 0 where both are the same infinity or NaN, inf where only one is."""
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    return (actual - expected).abs().nan_to_num(nan=torch.inf).masked_fill(same, 0.0)


def at_attended(x: Tensor, mask: Tensor | None) -> Tensor:
    """The rows (N, ...) of ``x`` (B, T, ...) at which ``mask`` (B, T) is 1; all of them without."""
    return x.flatten(0, 1) if mask is None else x[mask.bool()]
