"""One thread per process: the test models are tiny, and threads that wait for one another on a
busy machine make the suite many times slower. Set before torch is imported, for subprocesses too.

Tests marked slow run where GPT2_FAULT_CASES=all, as .ci/run sets it. At the end, what the tests
have measured is printed (tests/parity/record.py).
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("GPT2_FAULT_CASES") == "all":
        return
    skip = pytest.mark.skip(reason="slow: GPT2_FAULT_CASES=all runs it")
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    record = sys.modules.get("tests.parity.record")
    lines = record.summary_lines() if record is not None else []
    if not lines:
        return
    try:
        against = f"transformers {version('transformers')}"
    except PackageNotFoundError:
        against = "golden files only"
    terminalreporter.section(f"parity ({against})")
    for line in lines:
        terminalreporter.write_line(line)
