"""Progress: silent at first, then a line on stderr: written over on a terminal, new in a log."""

from __future__ import annotations

import io
import sys

import pytest

from gpt2 import progress
from gpt2.progress import Progress


class Clock:
    """Stands in for the module ``time``."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def run(clock: Clock, total: int | None, enabled: bool = True, seconds: float = 0.5) -> None:
    """40 units of half a second each."""
    told = Progress("counting", "sheep", total, enabled)
    for done in range(1, 41):
        clock.now += seconds
        told.show(done)
    told.close()


def test_short_work_shows_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 40, seconds=0.04)
    assert capsys.readouterr() == ("", "")


def test_in_a_log_few_lines_appear(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 40)
    assert capsys.readouterr().err.splitlines() == [
        "counting: [###...........................] 4/40 sheep, 2 s",
        "counting: [##################............] 24/40 sheep, 12 s",
    ]


def test_without_a_total_it_counts(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, None)
    assert capsys.readouterr().err.splitlines()[0] == "counting: 4 sheep, 2 s"


def test_on_a_terminal_one_line_is_written_over(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(clock, 40)
    shown = terminal.getvalue()
    assert shown.count("\n") == 1
    assert shown.endswith(f"\rcounting: [{'#' * 30}] 40/40 sheep, 20 s\n")
    assert shown.count("\r") == 37


def test_it_can_be_switched_off_and_needs_no_stderr(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(clock, 40, enabled=False)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    run(clock, 40)
    assert capsys.readouterr().out == ""
