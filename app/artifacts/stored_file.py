"""An artifact that lies in a file, opened once: what it is known by, and its bytes."""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.artifacts.checked import Identity
from app.errors import Unavailable


class StoredFile:
    """See `Stored`. The file is closed with the last reference to this."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        state = os.fstat(self._descriptor)
        self.identity: Identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        self.size = state.st_size
        self._written_at = state.st_mtime_ns

    def chunks(self, start: int, stop: int, chunk: int) -> Iterator[bytes]:
        """See `Stored`."""
        while start < stop:
            data = os.pread(self._descriptor, min(chunk, stop - start), start)
            if not data:
                raise Unavailable("The artifact was cut short while it was read. Upload it again.", code="blob_damaged")
            start += len(data)
            yield data

    def is_unchanged(self) -> bool:
        """See `Stored`. Its names may have changed: it may be deleted while it is read."""
        state = os.fstat(self._descriptor)
        return (state.st_size, state.st_mtime_ns) == (self.size, self._written_at)

    @contextmanager
    def from_disk(self) -> Iterator[None]:
        """Have the block read from the disk, and leave nothing of it in the system's memory."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            yield
        finally:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
