"""Artifacts in an object store: S3, Google Cloud Storage, Azure."""

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore, S3Store, from_url

from app.artifacts.batches import Room, Share, batched, writers
from app.artifacts.cache import ArtifactCache
from app.artifacts.checked import BlobDamaged, Checked, Identity, Pace, Told, no_pace
from app.artifacts.digest import file_digest, hex_of, require_equal
from app.artifacts.listing import FOLDER, PAGE, Stored, after, digest_at
from app.artifacts.local import missing_error
from app.artifacts.unfinished_uploads import end_unfinished_uploads
from app.errors import NotFound, Unavailable
from app.settings import MIB

if TYPE_CHECKING:
    # These exist for type checkers only.
    from obstore import AsyncWritableFile, ObjectMeta
    from obstore.store import RetryConfig

SCHEMES = ("s3", "gs", "az", "memory")
BUFFERED = 64 * MIB
OWNER = "owner"
PART = 8 * MIB
MAX_PARTS = 10_000  # S3's limit; a larger upload gets larger parts, not more
PARTS_AT_ONCE = 3  # parts of one artifact that are uploaded at a time
WRITING = (BaseError, OSError)  # obstore's writers raise these, as does a put into a missing bucket
RETRY: "RetryConfig" = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}


class RemoteStore:
    """Objects named sha256/ab/abcd….

    A stream is written as a multipart upload to its final name. The object appears only when the upload is completed.
    The upload is completed only after its digest was found right, and it is aborted on any error. So it serves as a
    temporary name would, without the copy to a final name, which S3 limits to 5 GiB.
    """

    def __init__(
        self,
        objects: ObjectStore,
        cache: ArtifactCache,
        buffered_bytes: int = BUFFERED,
        on_damage: Told = lambda _digest: None,
    ) -> None:
        self._objects = objects
        self._cache = cache
        self._room = Room(buffered_bytes)
        self._writers = writers()
        self._on_damage = on_damage
        self._checked = Checked(on_damage)

    @classmethod
    def open(
        cls,
        url: str,
        cache: ArtifactCache,
        buffered_bytes: int = BUFFERED,
        on_damage: Told = lambda _digest: None,
    ) -> Self:
        """Connect to the bucket and prefix of `url`; credentials come from the provider's usual environment.

        All uploads of this process together hold at most `buffered_bytes` bytes in memory, and each some parts more.
        """
        cache.prepare()
        with _store_errors():
            return cls(from_url(url, retry_config=RETRY), cache, buffered_bytes, on_damage)

    @property
    def directory(self) -> None:
        """See `ArtifactStore`. An object store is not on a disk of this machine, and the API keeps no copies."""
        return None

    async def put_stream(self, chunks: AsyncIterator[bytes], *, expected: str, limit: int) -> int:
        """See `ArtifactStore`."""
        with self._room.share() as share:
            return await self._put_batches(
                batched(chunks, nbytes=MIB, limit=limit, share=share), share, expected, _part_bytes(limit)
            )

    async def _put_batches(self, batches: AsyncIterator[list[bytes]], share: Share, expected: str, part: int) -> int:
        sha256 = hashlib.sha256()
        size = 0
        async with _multipart(self._objects, _key(expected), part) as writer:
            async for batch in batches:
                data = b"".join(batch)
                batch.clear()
                await self._writers.run(sha256.update, data)
                with _store_errors(WRITING):
                    await writer.write(data)
                size += len(data)
                share.free(len(data))
                del data
            require_equal(f"sha256:{sha256.hexdigest()}", expected)
        await self._writers.run(self._know_object, expected)
        return size

    def put_file(self, path: Path, *, digest: str | None = None) -> tuple[str, int]:
        """See `ArtifactStore`. The file moves into the cache if there is room for it."""
        digest = digest or file_digest(path)
        size = path.stat().st_size
        self._put(path, digest)
        self._cache.adopt(path, digest)
        return digest, size

    def size(self, digest: str) -> int | None:
        """See `ArtifactStore`."""
        with suppress(FileNotFoundError), _store_errors():
            return obstore.head(self._objects, _key(digest))["size"]
        return None

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """See `ArtifactStore`."""
        return b"".join(self.iter_bytes(digest, offset, offset + length, max(length, 1)))

    def iter_bytes(self, digest: str, start: int, stop: int, chunk: int = MIB) -> Iterator[bytes]:
        """See `ArtifactStore`."""
        found = self._found(digest)
        return self._checked.read(digest, found, start, min(stop, found.size), chunk)

    def local_path(self, digest: str) -> Path:
        """See `ArtifactStore`. The copy's digest is checked when it is downloaded, and later on its first use."""
        with self._telling():
            return self._cache.path(digest, lambda: self._whole(digest))

    def unchecked_path(self, digest: str) -> Path:
        """See `ArtifactStore`."""
        with self._telling():
            return self._cache.unchecked_path(digest, lambda: self._whole(digest))

    def know(self, digest: str) -> None:
        """See `ArtifactStore`."""
        self._cache.know(digest)

    def recheck(self, digest: str, pace: Pace | None = None) -> int | None:
        """See `ArtifactStore`."""
        try:
            found = self._found(digest)
        except NotFound:
            return None
        return found.size if self._checked.recheck(digest, found, pace or no_pace) else None

    def heal(self, digest: str) -> bool:
        """See `ArtifactStore`. The copy in the cache is put into the store if its bytes are right."""
        copy = self._cache.whole_copy(digest)
        if copy is None:
            return False
        self._put(copy, digest)
        return self.recheck(digest) is not None

    def holding(self) -> AbstractContextManager[None]:
        """See `ArtifactStore`."""
        return self._cache.holding()

    def discard_copy(self, digest: str) -> bool:
        """See `ArtifactStore`."""
        self._cache.drop(digest)
        return True

    def delete(self, digest: str) -> None:
        """See `ArtifactStore`."""
        with suppress(FileNotFoundError), _store_errors():
            obstore.delete(self._objects, _key(digest))
        self._cache.drop(digest)

    def delete_stale(self, digest: str, *, older_than_s: float) -> bool:
        """See `ArtifactStore`. An object store cannot compare and delete in one step: see `service.collect_orphans`."""
        with suppress(FileNotFoundError), _store_errors():
            put_at = obstore.head(self._objects, _key(digest))["last_modified"]
            if (datetime.now(UTC) - put_at).total_seconds() < older_than_s:
                return False
        self.delete(digest)
        return True

    def page(self, last: str | None = None) -> Sequence[Stored]:
        """See `ArtifactStore`."""
        offset = None if last is None else _key(last)
        with _store_errors():
            for objects in obstore.list(self._objects, f"{FOLDER}/", offset=offset, chunk_size=PAGE):
                if found := after(filter(None, map(_stored, objects)), last):
                    return found
        return []

    def owner(self, mine: str) -> str:
        """See `ArtifactStore`."""
        with _store_errors():
            try:
                obstore.put(self._objects, OWNER, mine.encode(), mode="create")
            except AlreadyExistsError:
                return bytes(obstore.get(self._objects, OWNER).bytes()).decode()
        return mine

    def clear_leftovers(self, *, older_than_s: float) -> int:
        """See `ArtifactStore`. Azure forgets unfinished uploads by itself; a Google bucket needs a lifecycle rule."""
        if not isinstance(self._objects, S3Store):
            return 0
        return end_unfinished_uploads(self._objects, FOLDER, older_than_s=older_than_s)

    def check(self) -> None:
        """See `ArtifactStore`."""
        with _store_errors():
            next(iter(obstore.list(self._objects, chunk_size=1)), None)

    def _put(self, path: Path, digest: str) -> None:
        size = path.stat().st_size
        with _store_errors(WRITING):
            obstore.put(
                self._objects,
                _key(digest),
                path,
                use_multipart=size > PART,
                chunk_size=_part_bytes(size),
                max_concurrency=PARTS_AT_ONCE,
            )

    def _know_object(self, digest: str) -> None:
        """Spare the first reader the check: what was uploaded was digested on its way."""
        with suppress(NotFound):
            self._checked.know(digest, self._found(digest))

    def _found(self, digest: str) -> "_StoredObject":
        with _needed(digest), _store_errors():
            return _StoredObject(self._objects, _key(digest))

    def _whole(self, digest: str) -> Iterator[bytes]:
        with _needed(digest), _store_errors():
            result = obstore.get(self._objects, _key(digest))
        return _pieces(result.stream(min_chunk_size=PART), PART)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except BlobDamaged as error:
            self._on_damage(error.digest)
            raise


class _StoredObject:
    """An object in the store; see `Stored`."""

    def __init__(self, objects: ObjectStore, key: str) -> None:
        self._objects = objects
        self._key = key
        self._is_same = True
        meta = obstore.head(objects, key)
        self.size = meta["size"]
        self.identity = _identity(meta)

    def chunks(self, start: int, stop: int, chunk: int) -> Iterator[bytes]:
        """See `Stored`."""
        if start >= stop:
            return iter(())
        with _store_errors():
            result = obstore.get(self._objects, self._key, options={"range": (start, stop)})
            self._is_same = _identity(result.meta) == self.identity
        return _pieces(result.stream(min_chunk_size=chunk), chunk)

    def is_unchanged(self) -> bool:
        """See `Stored`. What is read of an object at once is of one object, so the answer told which it was."""
        return self._is_same


def _identity(meta: "ObjectMeta") -> Identity:
    return meta["e_tag"], meta["version"], meta["size"], meta["last_modified"]


@asynccontextmanager
async def _multipart(objects: ObjectStore, key: str, part: int) -> "AsyncIterator[AsyncWritableFile]":
    """Give a writer; its upload is completed if the block ends without an exception, and aborted otherwise."""
    writer = obstore.open_writer_async(objects, key, buffer_size=part, max_concurrency=PARTS_AT_ONCE)
    try:
        yield writer
    except BaseException as error:
        await writer.__aexit__(type(error), error, error.__traceback__)
        raise
    with _store_errors(WRITING):
        await writer.close()


def _key(digest: str) -> str:
    name = hex_of(digest)
    return f"{FOLDER}/{name[:2]}/{name}"


def _stored(row: "ObjectMeta") -> Stored | None:
    """Return the artifact that an object is; None if it is none."""
    shard, _, name = row["path"].removeprefix(f"{FOLDER}/").partition("/")
    digest = digest_at(shard, name)
    return None if digest is None else Stored(digest, row["size"], row["last_modified"])


def _part_bytes(size: int) -> int:
    """Return the bytes of one part, so that `size` bytes fit into `MAX_PARTS` parts."""
    return max(PART, -(-size // MAX_PARTS))


def _pieces(stream: Iterator[bytes], chunk: int) -> Iterator[bytes]:
    with _store_errors():
        for received in stream:
            view = memoryview(received)
            for start in range(0, len(view), chunk):
                yield bytes(view[start : start + chunk])


@contextmanager
def _needed(digest: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise missing_error(digest) from None


@contextmanager
def _store_errors(kinds: tuple[type[Exception], ...] = (BaseError,)) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise Unavailable(
            f"The artifact store does not answer as it should: {str(error).splitlines()[0]} Check "
            "ENGINESMITH_STORE_URL and its credentials, then try again.",
            code="store_unavailable",
        ) from error
