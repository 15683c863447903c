"""The ways in which a child ends without an answer. All of them are blamed on what it read."""

import signal


class ChildFailed(Exception):
    """The child gave no answer that can be used."""


class OutOfTime(ChildFailed):
    """The child took longer than it may."""


class Crashed(ChildFailed):
    """The child died; `status` is its exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    @staticmethod
    def of(status: int) -> ChildFailed:
        """Return the failure that an exit status stands for.

        SIGKILL counts as a timeout, because the limit of processor time ends in it. The kernel sends it too if the
        machine has no memory left, which looks the same here. The child's limit of memory makes that rare.
        """
        return OutOfTime() if status in {-signal.SIGXCPU, -signal.SIGKILL} else Crashed(status)


class AnswerTooLong(ChildFailed):
    """The child wrote more than `most` bytes."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.most = most
