"""A line on stderr that tells how far a long piece of work is."""

from __future__ import annotations

import sys
import time


class Progress:
    """Silent for the first seconds, so that short work shows nothing.

    Args:
        work: what is being done.
        unit: what is counted.
        total: how many there will be; None where that is not known.
        enabled: False shows nothing at all.
    """

    SILENT = 2.0  # seconds

    def __init__(self, work: str, unit: str, total: int | None, enabled: bool) -> None:
        self._work, self._unit, self._total = work, unit, total
        self._enabled = enabled and sys.stderr is not None  # a program without a console has none
        self._live = self._enabled and sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began + self.SILENT
        self._shown = False

    def show(self, done: int) -> None:
        """Tell that so many are done, if it is time to tell again."""
        now = time.monotonic()
        if not self._enabled or now < self._next:
            return
        # On a terminal the line is written over; in a log each is a new one, so there are few.
        self._next = now + (0.1 if self._live else 10.0)
        bar = f"{done:,}"
        if self._total:
            filled = 30 * min(done, self._total) // self._total
            bar = f"[{'#' * filled}{'.' * (30 - filled)}] {done:,}/{self._total:,}"
        line = f"{self._work}: {bar} {self._unit}, {now - self._began:.0f} s"
        print(f"\r{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr)
        sys.stderr.flush()
        self._shown = True

    def close(self) -> None:
        """End the line."""
        if self._shown and self._live:
            print(file=sys.stderr)


def announce(line: str) -> None:
    """Tell on stderr of one long piece of work that cannot say how far it is."""
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)
