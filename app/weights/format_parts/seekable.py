"""A file that is read by ranges, as a stream for libraries that want one."""

import io

from app.weights.checkpoint import Read

BUFFER_BYTES = 256 * 1024


def open_ranges(read: Read, size: int) -> io.BufferedReader:
    """Return a seekable stream of a file of `size` bytes."""
    return io.BufferedReader(_Ranges(read, size), BUFFER_BYTES)


class _Ranges(io.RawIOBase):
    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size, self._position = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the start of the file")  # as every file object says it
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader gives
        data = self._read(self._position, max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
