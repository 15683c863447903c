"""Time and progress by phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from workers.channel.messages import Computing, Progress, Report


class Stopwatch:
    """Reports each phase as it begins, and adds up the seconds of each. A phase that goes on is reported once."""

    def __init__(self, report: Report) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._told = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to the phase `name`, whether or not the block succeeds."""
        if name != self._told:
            self._report(Progress(name))
            self._told = name
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def under_deadline(report: Report, what: Literal["verification", "run"]) -> Iterator[None]:
    """Have the worker's deadline for a verification or a run hold for the block: it kills this process then."""
    report(Computing(what))
    try:
        yield
    finally:
        report(Computing(None))
