"""Prints how many generated cases ran."""

from __future__ import annotations

import pytest

from tests.fault.counted import TOLD


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOLD:
        terminalreporter.section("generated faults")
        for line in TOLD:
            terminalreporter.write_line(line)
