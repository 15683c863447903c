"""Local copies of remote artifacts; the least recently used are removed first."""

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from app.artifacts.checked import BlobDamaged
from app.artifacts.digest import hex_of
from app.artifacts.incoming import locked
from app.artifacts.local import LocalStore
from app.errors import Invalid, NotFound, Unavailable
from app.scratch import remove_abandoned, scratch_folder

KEEP_S = 600.0
log = structlog.get_logger(__name__)


class ArtifactCache:
    """A directory of copies, shared by the processes of one machine.

    The time of an empty file in `used` says when a copy was last asked for; the copy itself is left as it is, so that a
    process need not digest it again. A path that `path` returns stays valid for `keep_s` seconds, in which the reader
    opens it. A path that is asked for in a `holding` block stays valid until the block ends: an empty file of its name
    lies in a folder that the holder has locked. So for a while the cache may hold more than `max_bytes`.
    """

    def __init__(self, directory: Path, max_bytes: int, *, keep_s: float = KEEP_S) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._files = LocalStore(directory)
        self._used = directory / "used"
        self._held = directory / "held"
        self._holders: list[Path] = []

    def prepare(self) -> None:
        """Make the directories that are missing."""
        LocalStore.open(self._directory)
        (self._directory / "locks").mkdir(exist_ok=True)
        self._used.mkdir(exist_ok=True)

    def path(self, digest: str, download: Callable[[], Iterable[bytes]]) -> Path:
        """Return the copy, and download it first if there is none; one process downloads, the others wait for it.

        A copy that is damaged is downloaded again.

        Raises:
            BlobDamaged: the downloaded bytes have another digest.
            Unavailable: "store_full".
        """
        path = self.unchecked_path(digest, download)
        try:
            return self._files.local_path(digest)
        except BlobDamaged:
            log.warning("a damaged copy is fetched again", digest=digest)
            self.drop(digest)
        except NotFound:  # another process has just dropped it for that
            pass
        self.unchecked_path(digest, download)
        return path

    def unchecked_path(self, digest: str, download: Callable[[], Iterable[bytes]]) -> Path:
        """Return the copy as `path` does, whatever its bytes are if it was there already."""
        lock = self._directory / "locks" / hex_of(digest)[:2]
        lock.touch()
        if not self._use(digest):
            with locked(lock, fcntl.LOCK_EX):
                if not self._use(digest):
                    self._fetch(digest, download())
                    self._use(digest)
            self._evict()
        return self._files.unchecked_path(digest)

    def whole_copy(self, digest: str) -> Path | None:
        """Return the copy if there is one and its bytes are right."""
        return None if self._files.recheck(digest) is None else self._files.unchecked_path(digest)

    def know(self, digest: str) -> None:
        """See `ArtifactStore`."""
        self._files.know(digest)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """See `ArtifactStore`. On a full disk nothing is held: a path then stays valid for `keep_s` seconds only."""
        with ExitStack() as stack:
            try:
                holder = stack.enter_context(scratch_folder(self._held, "job"))
            except OSError as error:
                log.warning("the files of a job are not held", error=str(error))
            else:
                self._holders.append(holder)
                stack.callback(self._holders.remove, holder)
            yield

    def adopt(self, path: Path, digest: str) -> None:
        """Take over a file that was just uploaded, as it is likely to be used soon; remove it if it cannot be kept."""
        try:
            self._files.put_file(path, digest=digest)
            self._use(digest)
            self._evict()
        except (OSError, Unavailable) as error:
            log.warning("what was uploaded is not kept in the cache", digest=digest, error=str(error))
            path.unlink(missing_ok=True)

    def drop(self, digest: str) -> None:
        """Remove the copy if there is one."""
        self._files.delete(digest)
        (self._used / hex_of(digest)).unlink(missing_ok=True)

    def _use(self, digest: str) -> bool:
        """Mark the copy as asked for and as held, and return whether there is one."""
        name = hex_of(digest)
        with self._files.using(digest) as is_there:
            for folder in (self._used, *self._holders) if is_there else ():
                with suppress(OSError):  # the holder has just ended, or the disk is full
                    (folder / name).touch()
        return is_there

    def _fetch(self, digest: str, chunks: Iterable[bytes]) -> None:
        try:
            self._files.put_chunks(chunks, expected=digest)
        except Invalid as error:
            raise BlobDamaged(digest) from error

    def _evict(self) -> None:
        remove_abandoned(self._held)
        files = sorted(self._files.files(), key=lambda file: self._asked_at(*file))
        excess = sum(state.st_size for _, state in files) - self._max_bytes
        for digest, state in files:
            if excess <= 0 or time.time() - self._asked_at(digest, state) < self._keep_s:
                return
            if self._delete_unused(digest):
                excess -= state.st_size

    def _delete_unused(self, digest: str) -> bool:
        def is_unused(state: os.stat_result) -> bool:
            is_held = any(self._held.glob(f"*/{hex_of(digest)}"))
            return not is_held and time.time() - self._asked_at(digest, state) >= self._keep_s

        if not self._files.delete_if(digest, is_unused):
            return False
        (self._used / hex_of(digest)).unlink(missing_ok=True)
        return True

    def _asked_at(self, digest: str, state: os.stat_result) -> float:
        """Return when a copy was last asked for; a copy that an earlier release fetched has the time itself."""
        try:
            return (self._used / hex_of(digest)).stat().st_mtime
        except FileNotFoundError:
            return state.st_mtime
