"""Local copies of remote artifacts; the least recently used are removed first."""

import fcntl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from app.artifacts.digest import hex_of
from app.artifacts.incoming import locked
from app.artifacts.local import LocalStore
from app.errors import Unavailable
from app.scratch import remove_abandoned, scratch_folder

KEEP_S = 600.0
log = structlog.get_logger(__name__)


class ArtifactCache:
    """A directory of copies, shared by the processes of one machine.

    A copy's time of modification says when it was last asked for. A path that `path` returns stays valid for `keep_s`
    seconds, in which the reader opens it. A path that is asked for in a `holding` block stays valid until the block
    ends: the copy gets a second name in a folder that the holder has locked. So for a while the cache may hold more
    than `max_bytes`.
    """

    def __init__(self, directory: Path, max_bytes: int, *, keep_s: float = KEEP_S) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._files = LocalStore(directory)
        self._held = directory / "held"
        self._holders: list[Path] = []

    def prepare(self) -> None:
        """Make the directories that are missing."""
        LocalStore.open(self._directory)
        (self._directory / "locks").mkdir(exist_ok=True)

    def path(self, digest: str, download: Callable[[], Iterable[bytes]]) -> Path:
        """Return the copy, and download it first if there is none; one process downloads, the others wait for it.

        Raises:
            Unavailable: "blob_damaged" if the downloaded bytes have another digest; "store_full".
        """
        lock = self._directory / "locks" / hex_of(digest)[:2]
        lock.touch()
        if not self._files.touch(digest):
            with locked(lock, fcntl.LOCK_EX):
                if not self._files.touch(digest):
                    self._fetch(digest, download())
            self._evict()
        path = self._files.local_path(digest)
        for holder in tuple(self._holders):
            with suppress(OSError):  # the holder has it already or has just ended, or the disk is full
                (holder / path.name).hardlink_to(path)
        return path

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
            self._evict()
        except (OSError, Unavailable) as error:
            log.warning("what was uploaded is not kept in the cache", digest=digest, error=str(error))
            path.unlink(missing_ok=True)

    def drop(self, digest: str) -> None:
        """Remove the copy if there is one."""
        self._files.delete(digest)

    def _fetch(self, digest: str, chunks: Iterable[bytes]) -> None:
        actual, _ = self._files.put_chunks(chunks)
        if actual != digest:
            self._files.delete(actual)
            raise Unavailable(
                f"What the store returned for {digest} has the digest {actual}. Upload it again, which replaces it.",
                code="blob_damaged",
            )

    def _evict(self) -> None:
        remove_abandoned(self._held)
        files = sorted(self._files.files(), key=lambda file: file[1].st_mtime)
        excess = sum(state.st_size for _, state in files) - self._max_bytes
        for digest, state in files:
            if excess <= 0 or time.time() - state.st_mtime < self._keep_s:
                return
            if state.st_nlink == 1 and self._files.delete_stale(digest, older_than_s=self._keep_s):
                excess -= state.st_size
