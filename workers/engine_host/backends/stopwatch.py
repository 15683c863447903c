"""Time, bytes and progress by phase."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from workers.channel.messages import Computing, Progress, Report, Spent


class Stopwatch:
    """Reports each phase as it begins, and adds up the seconds and bytes of each. One that goes on is reported once."""

    def __init__(self, report: Report) -> None:
        self.stages: dict[str, Spent] = {}
        self._report = report
        self._told = ""

    @contextmanager
    def phase(self, name: str, nbytes: int = 0) -> Iterator[None]:
        """Add the block's time, and `nbytes`, to the phase `name`, whether or not the block succeeds."""
        if name != self._told:
            self._report(Progress(name))
            self._told = name
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started, nbytes)

    def add(self, name: str, seconds: float, nbytes: int = 0) -> None:
        """Add seconds and bytes to a phase."""
        before = self.stages.get(name, Spent(0.0))
        self.stages[name] = Spent(before.seconds + seconds, before.nbytes + nbytes)


def seconds_of(stages: Mapping[str, Spent]) -> dict[str, float]:
    """Return the seconds of each stage."""
    return {name: one.seconds for name, one in stages.items()}


@contextmanager
def under_deadline(report: Report, what: Literal["verification", "run"]) -> Iterator[None]:
    """Have the worker's deadline for a verification or a run hold for the block: it kills this process then."""
    report(Computing(what))
    try:
        yield
    finally:
        report(Computing(None))
