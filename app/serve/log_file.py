"""A child's log: the child writes it, and the supervisor keeps it small."""

import os
import shutil
from pathlib import Path

MAX_BYTES = 16 * 1024 * 1024
TAIL_BYTES = 4000


class LogFile:
    """A file that a child appends to; when it reaches its limit in bytes, its content moves to `NAME.1`."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._start = 0

    def open(self) -> int:
        """Open the file for one run of the child and return the descriptor."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._start = os.fstat(descriptor).st_size
        return descriptor

    def rotate(self) -> None:
        """Move the content to `NAME.1` if the file has reached its limit.

        The child keeps its descriptor. It appends, so after the file is cut the child writes from its start again.
        """
        if self.path.stat().st_size < self._max_bytes:
            return
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        os.truncate(self.path, 0)
        self._start = 0

    def tail(self) -> str:
        """Return the last lines that the child has written since `open`."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(self._start, size), size - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
