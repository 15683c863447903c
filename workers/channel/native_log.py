"""What native code writes to standard output and error, line by line."""

import os
import re
from collections import deque

from workers.channel.messages import LogLine

READ_BYTES = 64 * 1024
MAX_LINE_BYTES = 16 * 1024
TAIL_LINES = 100
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
LEVELS = (  # onnxruntime writes lines with [I: only if it is asked for verbose ones as well
    (re.compile(r"\[[VI]:"), "verbose"),
    (re.compile(r"\[[EF][:\]]|\berror\b", re.IGNORECASE), "error"),
    (re.compile(r"\[W[:\]]|\bwarning\b", re.IGNORECASE), "warning"),
)


class NativeLog:
    """Reads a pipe without ever waiting; `tail` keeps the last lines even if the process dies."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.ended = False
        self._partial = b""

    def fileno(self) -> int:
        """Return the pipe, for `multiprocessing.connection.wait`."""
        return self.fd

    def read(self) -> list[LogLine]:
        """Return the lines of one read; empty if there is nothing new."""
        return self._lines(self._more() or b"")

    def drain(self) -> list[LogLine]:
        """Return everything that has been written so far."""
        lines: list[LogLine] = []
        while not self.ended and (data := self._more()) is not None:
            lines += self._lines(data)
        return lines

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.fd)

    def _more(self) -> bytes | None:
        """Return new bytes, b"" at the end of the pipe, or None if there are none now."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return None
        self.ended = not data
        return data

    def _lines(self, data: bytes) -> list[LogLine]:
        *lines, rest = (self._partial + data).split(b"\n")
        if self.ended or len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        self._partial = rest
        return [line for line in map(self._line, lines) if line is not None]

    def _line(self, line: bytes) -> LogLine | None:
        text = COLOURS.sub("", line[:MAX_LINE_BYTES].decode(errors="replace")).rstrip()
        if not text:
            return None
        self.tail.append(text)
        level = next((level for pattern, level in LEVELS if pattern.search(text)), "info")
        return LogLine(level, text)
