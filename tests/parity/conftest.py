"""Prints what the parity tests measured."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.parity.record import summary_lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = summary_lines()
    if not lines:
        return
    try:
        against = f"transformers {version('transformers')}"
    except PackageNotFoundError:
        against = "golden files only"
    terminalreporter.section(f"parity ({against})")
    for line in lines:
        terminalreporter.write_line(line)
