"""One thread per process: the test models are tiny, and threads that wait for one another on a
busy machine make the suite many times slower. Set before torch is imported, for subprocesses too.

At the end, what the tests have measured is printed (tests/parity/record.py).
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


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
