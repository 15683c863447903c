"""Waiting for signals in one place, so that no signal handler interrupts other code."""

import os
import select
import signal
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(Exception):
    """A signal has asked this process to end."""


class Signals:
    """During its block, SIGCHLD and the signals that stop a process take effect only in `wait`."""

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._previous: dict[signal.Signals, Any] = {}
        for number in (signal.SIGCHLD, *STOPPING):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup has started this process, so SIGHUP stays ignored
            self._previous[number] = signal.signal(number, _written_to_the_pipe)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def wait(self, timeout_s: float) -> None:
        """Return when a child has ended or the time is over; raises StopRequested on SIGINT, SIGTERM or SIGHUP."""
        select.select([self._read], [], [], max(timeout_s, 0))
        try:
            received = os.read(self._read, 4096)
        except BlockingIOError:
            return
        if set(received) & set(STOPPING):
            raise StopRequested


def _written_to_the_pipe(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the interpreter writes a signal's number to the wakeup pipe only if the signal has a handler."""
