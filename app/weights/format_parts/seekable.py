"""A file that is read by ranges, as a stream for libraries that want one."""

import io
from typing import Final

from app.weights.checkpoint import CheckpointError, Read

BUFFER_BYTES: Final = 256 * 1024
MAX_READ_BYTES: Final = 32 * 1024 * 1024


class RangeStream(io.BufferedReader):
    """A seekable stream. Only so much is read at once: a forged length asks for memory before it asks for bytes."""

    def __init__(self, read: Read, size: int) -> None:
        super().__init__(_Ranges(read, size), BUFFER_BYTES)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next `size` bytes, fewer at the end; raises CheckpointError for more than MAX_READ_BYTES."""
        wanted = self._size - self.tell() if size is None or size < 0 else size
        if wanted > MAX_READ_BYTES:
            raise CheckpointError(
                "header_too_large",
                f"The file says that one of its parts has {wanted} bytes, and {MAX_READ_BYTES} at most are read "
                "besides the tensors. Write the file again, or split the checkpoint up.",
            )
        if wanted > BUFFER_BYTES:
            wanted = min(wanted, self._size - self.tell())
        return super().read(max(0, wanted))


class _Ranges(io.RawIOBase):
    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size, self._position = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the start of the file")  # as every file object says it
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader gives
        length = max(0, min(len(buffer), self._size - self._position))
        data = self._read(self._position, length) if length else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
