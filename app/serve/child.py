"""One supervised process."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from app.processes.lifeline import die_with_parent
from app.serve.log_file import LogFile


class Child:
    """A program with its own session and log, which never outlives this process.

    A terminal's Ctrl-C does not reach the program in its own session, so the supervisor can stop its children in order.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        logs: Path,
        grace_s: float,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = LogFile(logs / f"{name}.log")
        self.grace_s = grace_s
        self._arguments = arguments
        self._environment = environment
        self._descriptors = descriptors
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while the program runs, None otherwise."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the program; raises OSError if there is no such program."""
        log = self.log.open()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._descriptors,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - this process has one thread
            )
        finally:
            os.close(log)

    def ended(self) -> int | None:
        """Return the exit status if the program has ended since the last call, negative for a signal; else None.

        Once the program has ended, its descendants are killed.
        """
        if self._process is None:
            return None
        status = self._process.poll()
        if status is not None:
            self._signal_session(signal.SIGKILL)
            self._process = None
        return status

    def terminate(self) -> None:
        """Ask the program to end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill the program and its descendants."""
        if self._process is not None:
            self._signal_session(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal_session(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def describe(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {signal.Signals(-status).name}"
