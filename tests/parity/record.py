"""The errors that the parity tests measure, kept so that the session's end can state them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tests.helpers import assert_close, relative_error

TOLERANCE = 1e-5


@dataclass
class Worst:
    """How many comparisons of one kind there were, and the largest error among them."""

    comparisons: int = 0
    error: float = 0.0
    where: str = ""


ERRORS: dict[str, Worst] = {}
COUNTS: dict[str, int] = {}


def compare(
    kind: str, actual: Tensor, expected: Tensor, *, where: str, tolerance: float = TOLERANCE
) -> None:
    """Fail where the two are further apart than ``tolerance``; remember the error by its kind."""
    worst = ERRORS.setdefault(kind, Worst())
    worst.comparisons += 1
    error = relative_error(actual, expected)
    if error >= worst.error:
        worst.error, worst.where = error, where
    assert_close(actual, expected, tolerance, what=f"{kind} ({where})")


def count(what: str, times: int = 1) -> None:
    """Add to a number that the summary prints."""
    COUNTS[what] = COUNTS.get(what, 0) + times


def summary_lines() -> list[str]:
    """The table, one line per kind."""
    if not ERRORS and not COUNTS:
        return []
    lines = [f"{'kind':<24}{'comparisons':>12}{'largest error':>15}  where"]
    for kind, worst in sorted(ERRORS.items()):
        lines.append(f"{kind:<24}{worst.comparisons:>12}{worst.error:>15.1e}  {worst.where}")
    lines.append(f"{'all':<24}{sum(w.comparisons for w in ERRORS.values()):>12}")
    lines.extend(f"{what}: {times}" for what, times in sorted(COUNTS.items()))
    return lines
