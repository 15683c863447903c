"""Checks of what may hang: each is waited for a few seconds, however long it takes."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from threading import Lock, Thread
from typing import Any

Check = Callable[[], object]


class Hangs(Exception):
    """A check that has not ended in time."""


class BoundedChecks:
    """Runs checks in threads of their own, each at most once at a time.

    A check that hangs keeps its thread. As long as it does, it is not begun again: however many callers there are, one
    thread waits.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._lock = Lock()
        self._running: dict[str, Future[object]] = {}

    def run(self, checks: Mapping[str, Check]) -> dict[str, Any]:
        """Return what each check returned, or the exception that it raised: Hangs if it has not ended."""
        futures = {name: self._begun(name, check) for name, check in checks.items()}
        deadline = time.monotonic() + self.timeout_s
        return {name: _outcome(future, deadline) for name, future in futures.items()}

    def _begun(self, name: str, check: Check) -> Future[object]:
        with self._lock:
            future = self._running.get(name)
            if future is None or future.done():
                future = self._running[name] = Future()
                Thread(target=_carry_out, args=(check, future), name=f"check-{name}", daemon=True).start()
            return future


def _carry_out(check: Check, future: Future[object]) -> None:
    try:
        future.set_result(check())
    except Exception as error:  # noqa: BLE001 - whoever asked is told
        future.set_exception(error)


def _outcome(future: Future[object], deadline: float) -> object:
    if not wait([future], max(0.0, deadline - time.monotonic())).done:
        return Hangs()
    return future.exception() or future.result()
