"""Checks of single configuration values, shared by the configs; each names the field and value."""

from __future__ import annotations

import math
from typing import Any

from gpt2.errors import ArgumentError, ConfigError, did_you_mean

ErrorClass = type[ConfigError] | type[ArgumentError]


def check_whole(
    error: ErrorClass, name: str, value: Any, low: int, high: int | None = None
) -> None:
    """Raise ``error`` unless ``value`` is an int, no bool, from ``low`` to ``high``."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not low <= value <= (value if high is None else high)
    ):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise error(f"{name} must be a whole number {span}, not {value!r}")


def check_number(error: ErrorClass, name: str, value: Any, low: float, high: float) -> None:
    """Raise ``error`` unless ``value`` is a finite number from ``low`` to ``high``."""
    # Comparisons alone, which a compiler can follow; NaN fails the first.
    if not is_number(value) or not low <= value <= high or value == math.inf:
        raise error(f"{name} must be a number from {low} to {high}, not {value!r}")


def check_bool(error: ErrorClass, name: str, value: Any) -> None:
    """Raise ``error`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise error(f"{name} must be True or False, not {value!r}")


def check_choice(error: ErrorClass, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ``error`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise error(f"{name} is {value!r}; it may be {', '.join(choices)}{hint}")


def take_no_ops(arguments: dict[str, Any], advice: dict[str, str]) -> None:
    """Take documented arguments out of ``arguments`` that may only be False, which does nothing.

    ``advice``: name -> what to do where it was given another value; ArgumentError says it.
    """
    for name, instead in advice.items():
        value = arguments.pop(name, False)
        if value is not None and value is not False:
            raise ArgumentError(f"{name}={value!r:.200} cannot be honoured: {instead}")


def is_number(value: Any) -> bool:
    """Whether ``value`` is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
