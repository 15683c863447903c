"""Artifacts as plain files, each at ROOT/sha256/ab/abcd…."""

import asyncio
import errno
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Self
from uuid import uuid4

from app.artifacts.batches import Room, Share, batched, writers
from app.artifacts.checked import Checked, Pace, Told
from app.artifacts.digest import file_digest, hex_of, require_equal
from app.artifacts.incoming import Incoming, clear_leftovers, locked, storage_errors
from app.artifacts.listing import FOLDER, PAGE, Stored, after, digest_at
from app.artifacts.stored_file import StoredFile
from app.errors import NotFound, Unavailable
from app.settings import MIB

BATCH = 4 * MIB
BUFFERED = 64 * MIB


class LocalStore:
    """A directory of read-only files.

    A file's time of modification says when its bytes were last put. A second put of the same bytes renews the time.
    Publishing and `using` take a shared lock on the directory of the file (sha256/ab), and `delete_if` takes an
    exclusive one. So neither overlaps with a deletion by age. This holds for all processes of this machine. `delete`
    takes no lock.

    A file is known by its device, inode, size and times. Its bytes are digested when this process first reads them.
    """

    def __init__(self, root: Path, buffered_bytes: int = BUFFERED, on_damage: Told = lambda _digest: None) -> None:
        self.root = root
        self._room = Room(buffered_bytes)
        self._writers = writers()
        self._artifacts = root / FOLDER
        self._incoming = root / "incoming"
        self._checked = Checked(on_damage)

    @classmethod
    def open(cls, root: Path, buffered_bytes: int = BUFFERED, on_damage: Told = lambda _digest: None) -> Self:
        """Make the directories that are missing, and remove the temporary files of killed writers.

        All uploads of this process together hold at most `buffered_bytes` bytes in memory.
        """
        store = cls(root, buffered_bytes, on_damage)
        try:
            store._artifacts.mkdir(parents=True, exist_ok=True)
            store._incoming.mkdir(exist_ok=True)
            clear_leftovers(store._incoming)
        except OSError as error:
            raise _unusable(root, error) from error
        return store

    @property
    def directory(self) -> Path:
        """See `ArtifactStore`."""
        return self.root

    async def put_stream(self, chunks: AsyncIterator[bytes], *, expected: str, limit: int) -> int:
        """See `ArtifactStore`. The next batch arrives while a thread digests and writes the one before."""
        hex_of(expected)
        with self._room.share() as share:
            return await self._put_batches(batched(chunks, nbytes=BATCH, limit=limit, share=share), share, expected)

    async def _put_batches(self, batches: AsyncIterator[list[bytes]], share: Share, expected: str) -> int:
        incoming = Incoming(self._incoming)
        try:
            writing: asyncio.Task[None] | None = None
            async for batch in batches:
                if writing is not None:
                    await writing
                    share.drop_written()
                writing = asyncio.create_task(self._writers.run(incoming.write, batch))
                writing.add_done_callback(partial(_keep_written, share, batch))
            if writing is not None:
                await writing
            await self._writers.run(self._seal, incoming, expected)
        finally:
            # Shielded: a cancelled upload is removed too, but never while its last batch is being written.
            await asyncio.shield(asyncio.create_task(self._writers.run(incoming.discard)))
        self.know(expected)
        return incoming.size

    def put_chunks(self, chunks: Iterable[bytes], *, expected: str | None = None) -> tuple[str, int]:
        """Store the bytes of `chunks` and return their digest and size in bytes.

        Raises:
            Invalid: "digest_mismatch" if `expected` is given and the bytes have another digest.
            Unavailable: "store_full".
        """
        incoming = Incoming(self._incoming)
        try:
            incoming.write(chunks)
            self._seal(incoming, expected or incoming.digest)
        finally:
            incoming.discard()
        self.know(incoming.digest)
        return incoming.digest, incoming.size

    def put_file(self, path: Path, *, digest: str | None = None) -> tuple[str, int]:
        """See `ArtifactStore`. On the same mount the file itself becomes the artifact; else it is copied.

        If the file itself becomes the artifact and `digest` is given, the file is not digested. A copy is digested in
        any case.

        Raises:
            Invalid: "digest_mismatch" if a copy has another digest than `digest`.
            Unavailable: "store_full".
        """
        if path.stat().st_dev != self.root.stat().st_dev:
            return self._copy_in(path, digest)
        digest = digest or file_digest(path)
        with path.open("rb") as file, storage_errors():
            size = os.fstat(file.fileno()).st_size
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        try:
            self._publish(path, digest)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return self._copy_in(path, digest)  # one filesystem that is mounted twice has one number, but takes no link
        if path.resolve() != self._path(digest).resolve():
            path.unlink()
        self.know(digest)
        return digest, size

    def size(self, digest: str) -> int | None:
        """See `ArtifactStore`."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """See `ArtifactStore`."""
        return b"".join(self.iter_bytes(digest, offset, offset + length, max(length, 1)))

    def iter_bytes(self, digest: str, start: int, stop: int, chunk: int = MIB) -> Iterator[bytes]:
        """See `ArtifactStore`. The file is opened at the call, so a later deletion does not cut the bytes short."""
        found = self._open(digest)
        return self._checked.read(digest, found, start, min(stop, found.size), chunk)

    def local_path(self, digest: str) -> Path:
        """See `ArtifactStore`."""
        self._checked.require(digest, self._open(digest))
        return self._path(digest)

    def unchecked_path(self, digest: str) -> Path:
        """See `ArtifactStore`."""
        if not (path := self._path(digest)).exists():
            raise missing_error(digest)
        return path

    def know(self, digest: str) -> None:
        """See `ArtifactStore`."""
        with suppress(NotFound):
            self._checked.know(digest, self._open(digest))

    def recheck(self, digest: str, pace: Pace | None = None) -> int | None:
        """See `ArtifactStore`. With a `pace` the bytes are read from the disk, not from the system's memory."""
        try:
            found = self._open(digest)
        except NotFound:
            return None
        if pace is None:
            return found.size if self._checked.recheck(digest, found) else None
        with found.from_disk():
            is_whole = self._checked.recheck(digest, found, pace)
        if not is_whole:
            with suppress(FileNotFoundError):
                self._path(digest).chmod(0o444)  # so that no process takes it any longer for what it has checked
        return found.size if is_whole else None

    def heal(self, _digest: str) -> bool:
        """See `ArtifactStore`. There is no other copy."""
        return False

    def holding(self) -> AbstractContextManager[None]:
        """See `ArtifactStore`. This store never evicts, so there is nothing to hold."""
        return nullcontext()

    @contextmanager
    def using(self, digest: str) -> Iterator[bool]:
        """Keep `delete_if` from the artifact during the block, and give whether it is there."""
        if not (path := self._path(digest)).parent.exists():
            yield False
            return
        with locked(path.parent, fcntl.LOCK_SH):
            yield path.exists()

    def discard_copy(self, _digest: str) -> bool:
        """See `ArtifactStore`. What lies here is the artifact itself."""
        return False

    def delete(self, digest: str) -> None:
        """See `ArtifactStore`."""
        self._path(digest).unlink(missing_ok=True)

    def delete_stale(self, digest: str, *, older_than_s: float) -> bool:
        """See `ArtifactStore`."""
        return self.delete_if(digest, lambda state: time.time() - state.st_mtime >= older_than_s)

    def delete_if(self, digest: str, condition: Callable[[os.stat_result], bool]) -> bool:
        """Remove the artifact if the condition holds for its `os.stat`; return whether it is gone."""
        path = self._path(digest)
        with suppress(FileNotFoundError), locked(path.parent, fcntl.LOCK_EX):
            if not condition(path.stat()):
                return False
            path.unlink()
        return True

    def page(self, last: str | None = None) -> Sequence[Stored]:
        """See `ArtifactStore`. A page ends with a folder."""
        first = "" if last is None else hex_of(last)[:2]
        found: list[Stored] = []
        for shard in sorted(path for path in self._artifacts.iterdir() if path.name >= first):
            found += after(_files_of(shard), last)
            if len(found) >= PAGE:
                break
        return found

    def owner(self, mine: str) -> str:
        """See `ArtifactStore`."""
        path = self.root / "owner"
        incoming = self._incoming / uuid4().hex
        with storage_errors():
            incoming.write_text(mine)
            try:
                path.hardlink_to(incoming)
            except FileExistsError:
                return path.read_text()
            finally:
                incoming.unlink()
        return mine

    def clear_leftovers(self, *, older_than_s: float) -> int:  # noqa: ARG002 - locks tell who lives
        """See `ArtifactStore`."""
        return clear_leftovers(self._incoming)

    def check(self) -> None:
        """See `ArtifactStore`."""
        try:
            Incoming(self._incoming).discard()
        except OSError as error:
            raise _unusable(self.root, error) from error

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the digest and `os.stat` of every artifact, in no order."""
        for path in self._artifacts.glob("*/*"):
            with suppress(FileNotFoundError):
                yield f"sha256:{path.name}", path.stat()

    def _path(self, digest: str) -> Path:
        name = hex_of(digest)
        return self._artifacts / name[:2] / name

    def _open(self, digest: str) -> StoredFile:
        try:
            return StoredFile(self._path(digest))
        except FileNotFoundError:
            raise missing_error(digest) from None

    def _copy_in(self, path: Path, expected: str | None) -> tuple[str, int]:
        with path.open("rb") as file:
            digest, size = self.put_chunks(iter(lambda: file.read(MIB), b""), expected=expected)
        path.unlink()
        return digest, size

    def _seal(self, incoming: Incoming, expected: str) -> None:
        require_equal(incoming.digest, expected)
        incoming.sync()
        self._publish(incoming.path, expected)

    def _publish(self, source: Path, digest: str) -> None:
        path = self._path(digest)
        with storage_errors():
            if not path.parent.exists():
                path.parent.mkdir(exist_ok=True)
                _sync_directory(self._artifacts)
            with locked(path.parent, fcntl.LOCK_SH) as shard:
                os.utime(source)
                try:
                    path.hardlink_to(source)
                except FileExistsError:
                    _replace(path, source)
                os.fsync(shard)


def _keep_written(share: Share, batch: list[bytes], _written: asyncio.Future[None]) -> None:
    share.keep_written(batch)


def _files_of(shard: Path) -> Iterator[Stored]:
    for path in shard.glob("*"):
        digest = digest_at(shard.name, path.name)
        if digest is not None:
            with suppress(FileNotFoundError):
                state = path.stat()
                yield Stored(digest, state.st_size, datetime.fromtimestamp(state.st_mtime, UTC))


def missing_error(digest: str) -> NotFound:
    """Return the error for an artifact that is not there."""
    return NotFound(f"There is no blob {digest}. Upload it with PUT /v1/blobs/{digest}.", code="blob_not_found")


def _replace(path: Path, source: Path) -> None:
    """Replace a file, which somebody may have damaged from outside, by `source`, which is taken to have the digest.

    A reader that has the old file open goes on reading it.
    """
    with _freed_by_thread(path):
        twin = source.with_name(f"{source.name}.twin")
        twin.hardlink_to(source)
        try:
            twin.replace(path)
        finally:
            twin.unlink(missing_ok=True)  # if both name one file, rename(2) does nothing and the twin is still there


@contextmanager
def _freed_by_thread(path: Path) -> Iterator[None]:
    """Keep `path` open during the block, which removes its name.

    A thread then closes it, because freeing a large file takes long.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:  # the cache that uses this store has just evicted it
        yield
        return
    try:
        yield
    finally:
        Thread(target=file.close, name="free").start()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(root: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"Nothing can be stored in {root}: {error.strerror}. Make it a directory this process may write to.",
        code="store_unavailable",
    )
