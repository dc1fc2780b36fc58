"""Examples run in this process, where torch is imported already: that saves seconds for each.

What only a process of its own shows (a kill, a closed stdin, several ranks) is
tested with one; and so is one script of each kind, as a user starts it.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_here(script: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What ``python examples/script arguments`` prints, and the code that it ends with.

    The script imports other examples afresh, from its own directory and from where it looks for
    them itself. An exception that would end the process with a traceback is raised.
    """
    path = EXAMPLES / script
    elsewhere = [entry for entry in sys.path if not entry.startswith(str(EXAMPLES))]
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    imported = _take_examples()
    with (
        mock.patch.object(sys, "path", [str(path.parent), *elsewhere]),
        mock.patch.object(sys, "argv", [str(path), *arguments]),
        mock.patch.object(sys, "stdin", _stdin_of(stdin)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            _take_examples()
            sys.modules.update(imported)
    if isinstance(code, str):  # Python prints it, and ends with 1
        err.write(f"{code}\n")
        code = 1
    number = code if isinstance(code, int) else 0
    return subprocess.CompletedProcess([script, *arguments], number, out.getvalue(), err.getvalue())


def _stdin_of(text: str) -> io.TextIOWrapper:
    """A lone surrogate stands for a byte that is no text."""
    return io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape")), encoding="utf-8")


def _take_examples() -> dict[str, object]:
    """The modules of the examples, which are taken from those that Python knows."""
    names = [
        name
        for name, module in sys.modules.items()
        if str(getattr(module, "__file__", None)).startswith(str(EXAMPLES))
    ]
    return {name: sys.modules.pop(name) for name in names}
