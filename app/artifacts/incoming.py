"""A file on its way into a store: it is digested while it is written, and has a temporary name until it is whole."""

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from app.artifacts.writeback import WRITEBACK, start_writeback
from app.disk_faults import BROKEN, FULL, READ_ONLY
from app.errors import Unavailable

WRITE_BUFFER = 128 * 1024  # bytes; smaller chunks are gathered, larger ones pass straight through
SETTLING_S = 60.0  # the writer of a temporary file younger than this may not have locked it yet


class Incoming:
    """One temporary file, locked as long as its writer lives.

    The methods may be called from any thread. `discard` waits for a running `write`. A `write` after `discard` does
    nothing.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / uuid4().hex
        self.size = 0
        self._on_its_way = 0  # bytes the kernel was told to write out
        self._sha256 = hashlib.sha256()
        self._turn = threading.Lock()
        with storage_errors():
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._file = os.fdopen(descriptor, "wb", buffering=WRITE_BUFFER)

    def write(self, chunks: Iterable[bytes]) -> None:
        """Append the chunks."""
        with self._turn, storage_errors():
            if self._file.closed:
                return
            for chunk in chunks:
                self._sha256.update(chunk)
                self._file.write(chunk)
                self.size += len(chunk)
                self._start_writeback()

    @property
    def digest(self) -> str:
        """The digest of the bytes written so far."""
        return f"sha256:{self._sha256.hexdigest()}"

    def sync(self) -> None:
        """Return once the bytes are on the disk."""
        with self._turn, storage_errors():
            self._file.flush()
            os.fdatasync(self._file.fileno())

    def discard(self) -> None:
        """Close the file and remove its temporary name; a published file keeps its final name."""
        with self._turn:
            with suppress(OSError):  # closing flushes, which fails again if the disk is full
                self._file.close()
            with suppress(OSError):  # a disk that has become read-only keeps it; the next start removes it
                self.path.unlink(missing_ok=True)

    def _start_writeback(self) -> None:
        waiting = self.size - self._on_its_way
        if waiting >= WRITEBACK:
            start_writeback(self._file.fileno(), self._on_its_way, waiting)
            self._on_its_way = self.size


def clear_leftovers(directory: Path) -> int:
    """Remove the temporary files whose writer was killed, and return how many: nobody holds their lock any more."""
    removed = 0
    for path in directory.iterdir():
        with suppress(FileNotFoundError, BlockingIOError):
            if time.time() - path.stat().st_mtime > SETTLING_S:
                with locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    path.unlink()
                    removed += 1
    return removed


@contextmanager
def locked(path: Path, operation: int) -> Iterator[int]:
    """Hold an flock on an existing file or directory during the block, and give its descriptor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the OSError of a disk into Unavailable: "store_full", "store_read_only" or "store_unavailable".

    An OSError that says nothing of the disk passes through.
    """
    try:
        yield
    except OSError as error:
        known = _of_the_disk(error)
        if known is None:
            raise
        raise known from error


def _of_the_disk(error: OSError) -> Unavailable | None:
    if error.errno in FULL:
        return Unavailable(
            "The artifact store is full, so nothing was kept. Free space or raise the quota of the store, then try "
            "again.",
            code="store_full",
        )
    if error.errno in READ_ONLY:
        return Unavailable(
            f"Nothing can be written to the artifact store ({error.strerror}), so nothing was kept. Make its directory "
            "writable for this process, then try again.",
            code="store_read_only",
        )
    if error.errno in BROKEN:
        return Unavailable(
            f"The disk of the artifact store fails ({error.strerror}). See the system's log for that disk, then try "
            "again.",
            code="store_unavailable",
        )
    return None
