"""Where weights are to go: the dtype and device that arguments ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gpt2.checkpoints.load import Dtype
from gpt2.errors import ArgumentError


def chosen_dtype(dtype: Any, torch_dtype: Any) -> Dtype:
    """The dtype that the arguments ask for, whichever of the two names it was given under."""
    both = dtype is not None and torch_dtype is not None
    if both and chosen_dtype(dtype, None) != chosen_dtype(torch_dtype, None):
        raise ArgumentError(
            f"dtype={dtype!r} and torch_dtype={torch_dtype!r} contradict each other"
        )
    chosen = torch_dtype if dtype is None else dtype
    if isinstance(chosen, str) and chosen != "auto":
        named = getattr(torch, chosen.removeprefix("torch."), None)
        if not isinstance(named, torch.dtype):
            raise ArgumentError(f"dtype is {chosen!r}; give 'auto', a torch dtype or its name")
        chosen = named
    if chosen is None or chosen == "auto":
        return chosen  # type: ignore[no-any-return]
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ArgumentError(f"dtype is {chosen!r}; give 'auto' or a floating torch dtype")
    return chosen


def chosen_device(device: Any, device_map: Any) -> torch.device:
    """The device that the arguments ask for, which is there; torch's default one without."""
    if device is not None and device_map is not None:
        raise ArgumentError("give device or device_map, not both")
    chosen = device_map if device is None else device
    if isinstance(chosen, Mapping):
        if set(chosen) != {""}:
            raise ArgumentError(
                f"device_map is {dict(chosen)!r}; it may be one device or 'auto': a GPT-2 is not "
                "spread over several devices by this library"
            )
        chosen = chosen[""]
    if chosen is None:
        return torch.get_default_device()
    if chosen == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        found: torch.device = torch.device(chosen)
        torch.empty(0, device=found)  # fails here, before the files are read, if it is not there
    except (RuntimeError, TypeError, AssertionError):
        raise ArgumentError(
            f"device is {chosen!r}, which this machine or this torch does not have; give one "
            "device such as 'cpu', 'cuda:0' or 'mps', or 'auto'"
        ) from None
    return found
