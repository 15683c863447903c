"""The ways in which a child ends without an answer."""

import signal
from typing import ClassVar

from app.errors import Unavailable


class ChildLost(Unavailable):
    """The child stalled, or somebody killed it; that says nothing of what it read."""

    retry_after_s: ClassVar[int | None] = 10


class ChildFailed(Exception):
    """The child gave no answer that can be used, and what it read is to blame."""


class OutOfTime(ChildFailed):
    """The child took more processor time than it may."""


class Crashed(ChildFailed):
    """The child died; `status` is its exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    @staticmethod
    def of(status: int) -> ChildFailed:
        """Return the failure that an exit status stands for; SIGXCPU is the limit of processor time."""
        return OutOfTime() if status == -signal.SIGXCPU else Crashed(status)


class AnswerTooLong(ChildFailed):
    """The child wrote more than `most` bytes."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.most = most
