"""Programs that are started again when they end, as a process manager does."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread

from benchmarks.service import descendants

LOOK_EVERY_S = 0.1
RESTART_AFTER_S = 0.3
GRACE_S = 15.0


class Program:
    """One program with a log file; `deaths` counts how often it ended without having been killed by a fault."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], logs: Path) -> None:
        self.name = name
        self.deaths = 0
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._log = logs / f"{name}.log"
        self._lock = Lock()
        self._killed: set[int] = set()
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The present process."""
        return self._process.pid

    def children(self) -> list[int]:
        """The processes below it."""
        with suppress(OSError):
            return list(descendants(self.pid))
        return []

    def kill(self) -> None:
        """End it at once; its keeper starts it again."""
        with self._lock:
            self._killed.add(self.pid)
            self._process.kill()

    def signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def look(self) -> None:
        """Start it again if it has ended."""
        with self._lock:
            if self._process.poll() is None:
                return
            if self.pid in self._killed:
                self._killed.discard(self.pid)
            else:
                self.deaths += 1
            time.sleep(RESTART_AFTER_S)
            self._process = self._start()

    def stop(self) -> None:
        """End it in order, or by force after some time."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@contextmanager
def kept(programs: Sequence[Program]) -> Iterator[None]:
    """Start programs again whenever they end, until the block ends; then stop them."""
    over = Event()

    def keep(program: Program) -> None:
        while not over.wait(LOOK_EVERY_S):
            program.look()

    keepers = [Thread(target=keep, args=(program,), daemon=True) for program in programs]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        over.set()
        for keeper in keepers:
            keeper.join()
        stoppers = [Thread(target=program.stop) for program in programs]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
