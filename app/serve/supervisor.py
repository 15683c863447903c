"""Keeps children running, and takes them down in order."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import typer

from app.serve.child import Child, describe
from app.serve.errors import CannotStart
from app.serve.restarts import MAX_QUICK_DEATHS, Restarts
from app.serve.signals import Signals, StopRequested

START_S = 150.0  # a GPU's driver takes half a minute after a reboot, a compiler's libraries several seconds
POLL_S = 0.1
LOG_CHECK_S = 10.0


@dataclass
class Charge:
    """A child under supervision, when it was started and when its restart is due (seconds, monotonic)."""

    child: Child
    restarts: Restarts = field(default_factory=Restarts)
    started_at: float = 0.0
    due_at: float | None = None

    def start(self) -> None:
        """Start the child now."""
        self.child.start()
        self.started_at, self.due_at = time.monotonic(), None


class Supervisor:
    """Children in the order of their start; they are stopped in the opposite order."""

    def __init__(self, logs: Path, signals: Signals) -> None:
        self._logs = logs
        self._signals = signals
        self._charges: list[Charge] = []

    def start(self, child: Child) -> None:
        """Start a child that runs until the service ends."""
        charge = Charge(child)
        self._charges.append(charge)
        charge.start()

    def run(self, child: Child) -> None:
        """Run a child that ends by itself; raises CannotStart "NAME_failed" if it fails."""
        child.start()
        try:
            while (status := child.ended()) is None:
                self._signals.wait(LOG_CHECK_S)
                self._none_died()
        finally:
            child.kill()
        if status:
            raise CannotStart(f"{child.name}_failed", f"{child.name} {describe(status)}:\n{child.log.tail()}")

    def wait_until(self, missing: Callable[[], str | None]) -> None:
        """Wait until `missing` returns None; until then it returns what is missing.

        Raises CannotStart "NAME_died", with the end of its log, if a child dies meanwhile, or "start_timeout".
        """
        deadline = time.monotonic() + START_S
        while (reason := missing()) is not None:
            if time.monotonic() > deadline:
                raise CannotStart(
                    "start_timeout", f"After {START_S:.0f} s {reason}. The logs in {self._logs} tell more."
                )
            self._signals.wait(POLL_S)
            self._none_died()

    def watch(self) -> NoReturn:
        """Restart each child that dies, until StopRequested; raises CannotStart "crash_loop" if a child keeps dying."""
        while True:
            now = time.monotonic()
            due = [charge.due_at - now for charge in self._charges if charge.due_at is not None]
            self._signals.wait(min([LOG_CHECK_S, *due]))
            for charge in self._charges:
                self._tend(charge)

    def stop(self) -> int:
        """End all children, the last started first; return 0 if each ended within its grace, else 1.

        A second stopping signal ends this with 1; `kill` then ends the children that still run.
        """
        try:
            ended = [self._end(charge.child) for charge in reversed(self._charges)]
        except StopRequested:
            notice("Killing what still runs")
            return 1
        return 0 if all(ended) else 1

    def kill(self) -> None:
        """Kill all children that still run."""
        for charge in reversed(self._charges):
            charge.child.kill()

    def _none_died(self) -> None:
        for child in (charge.child for charge in self._charges):
            if (status := child.ended()) is not None:
                raise CannotStart(
                    f"{child.name}_died", f"{child.name} {describe(status)} while starting:\n{child.log.tail()}"
                )

    def _tend(self, charge: Charge) -> None:
        child = charge.child
        if (status := child.ended()) is not None:
            self._plan_restart(charge, status)
        elif charge.due_at is not None and time.monotonic() >= charge.due_at:
            charge.start()
            notice(f"{child.name} started again with process id {child.pid}")
        child.log.rotate()

    def _plan_restart(self, charge: Charge, status: int) -> None:
        child, now = charge.child, time.monotonic()
        delay_s = charge.restarts.after_death(now - charge.started_at)
        if delay_s is None:
            raise CannotStart(
                "crash_loop",
                f"{child.name} {describe(status)}, {MAX_QUICK_DEATHS} times in a row soon after its start. "
                f"Its last words, from {child.log.path}:\n{child.log.tail()}",
            )
        charge.due_at = now + delay_s
        notice(f"{child.name} {describe(status)}; starting it again in {delay_s:.1f} s")

    def _end(self, child: Child) -> bool:
        child.terminate()
        deadline = time.monotonic() + child.grace_s
        while child.pid is not None and child.ended() is None:
            if time.monotonic() > deadline:
                notice(f"{child.name} did not end within {child.grace_s:.0f} s and was killed")
                child.kill()
                return False
            self._signals.wait(deadline - time.monotonic())
        return True


def notice(text: str) -> None:
    """Tell the person at the terminal; standard output carries only the ready line."""
    typer.echo(f"enginesmith: {text}", err=True)
