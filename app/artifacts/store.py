"""Where artifacts lie: one interface with a local and a remote implementation; the store URL chooses between them."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from app.artifacts.cache import ArtifactCache
from app.artifacts.checked import Pace, Told
from app.artifacts.listing import Stored
from app.artifacts.local import LocalStore
from app.artifacts.remote import SCHEMES, RemoteStore
from app.errors import Invalid
from app.settings import MIB, Settings


class ArtifactStore(Protocol):
    """Bytes by digest. An artifact is either there, whole, or not there at all. It never changes.

    A disk or somebody else may damage an artifact all the same. So its bytes are digested when this process first
    reads them, and again if the file changes; nothing that is damaged is handed out.

    Every call may raise `Unavailable` "store_full", "store_read_only" or "store_unavailable". A call that
    needs an artifact raises `NotFound` "blob_not_found" if it is missing, and `BlobDamaged` if its bytes are not those
    of its digest.
    """

    @property
    def directory(self) -> Path | None:
        """Where the artifacts lie on a disk of this machine; None if they lie elsewhere."""

    async def put_stream(self, chunks: AsyncIterator[bytes], *, expected: str, limit: int) -> int:
        """Store the bytes that arrive under the digest `expected`, and return their size in bytes.

        Nothing is left behind if `chunks` raises, if the task is cancelled, or on an error.

        Raises:
            Invalid: "digest_mismatch", the bytes have another digest.
            TooLarge: more than `limit` bytes arrived.
        """

    def put_file(self, path: Path, *, digest: str | None = None) -> tuple[str, int]:
        """Store a file and return its digest and size in bytes; the file is moved if that is possible.

        If `digest` is given, it is taken for the file's digest, so that the file need not be read again. Give it only
        if one of this service's own processes wrote and digested the file, never if the file came from a client. An
        engine host may be taken over: `Worker.put` checks what it says.
        """

    def size(self, digest: str) -> int | None:
        """Return the size in bytes, None if there is no such artifact."""

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer only if the artifact ends there."""

    def iter_bytes(self, digest: str, start: int, stop: int, chunk: int = MIB) -> Iterator[bytes]:
        """Return the bytes from `start` up to, but not including, `stop`, at most `chunk` bytes at a time.

        All bytes of a large artifact are digested on their way if that was not done yet. Then the iterator raises
        `BlobDamaged` in place of the last chunk if the digest is wrong. In any other case the call raises it.
        """

    def local_path(self, digest: str) -> Path:
        """Return a local, read-only file with the artifact's bytes: the artifact itself or a cached copy.

        A cached copy may be evicted later. Open it within minutes, or ask for it in a `holding` block. A file that is
        open stays readable.
        """

    def unchecked_path(self, digest: str) -> Path:
        """Return what `local_path` returns, for a reader that checks the bytes it uses by digests of their own."""

    def know(self, digest: str) -> None:
        """Take the local file for whole as it is now: this process has just written and digested its bytes."""

    def recheck(self, digest: str, pace: Pace | None = None) -> int | None:
        """Digest an artifact, whatever is known of it; return its size in bytes, None if it is missing or damaged.

        If there is a `pace`, it is told the number of bytes after each piece that was read, and may wait.
        """

    def heal(self, digest: str) -> bool:
        """Replace a damaged or missing artifact by another copy of this machine; False if there is none."""

    def holding(self) -> AbstractContextManager[None]:
        """Until the block ends, evict no file that `local_path` returns during the block, in whichever thread."""

    def discard_copy(self, digest: str) -> bool:
        """Remove this machine's copy, which is damaged, so that it is fetched again; False if there are no copies."""

    def delete(self, digest: str) -> None:
        """Remove the artifact if it is there."""

    def delete_stale(self, digest: str, *, older_than_s: float) -> bool:
        """Remove the artifact unless it was put within the last `older_than_s` seconds; return whether it is gone."""

    def page(self, last: str | None = None) -> Sequence[Stored]:
        """Return the artifacts whose digests follow `last`, in order, about `PAGE` of them; none at the end.

        What lies in the store and is not named as an artifact is passed over.
        """

    def owner(self, mine: str) -> str:
        """Return the name of the service whose store this is; if nobody has written one yet, `mine` is written."""

    def clear_leftovers(self, *, older_than_s: float) -> int:
        """Remove what killed writers left half written, and return how many.

        If the store cannot tell whether the writer lives, only what is older than `older_than_s` seconds goes.
        """

    def check(self) -> None:
        """Raise `Unavailable` if nothing can be stored now."""


def open_store(settings: Settings, on_damage: Told = lambda _digest: None) -> ArtifactStore:
    """Open the store that the settings name, and remove the temporary files that killed uploads left in it.

    `on_damage` is told the digest of each artifact that is found damaged.

    Raises:
        Invalid: with code "bad_store_url".
        Unavailable: the directory cannot be written.
    """
    url = urlsplit(settings.store_url)
    buffered_bytes = settings.max_buffered_bytes // 2
    if not settings.store_url:
        return LocalStore.open(settings.artifacts_dir, buffered_bytes, on_damage)
    if url.scheme == "file" and url.netloc in {"", "localhost"}:
        return LocalStore.open(Path(unquote(url.path)), buffered_bytes, on_damage)
    if url.scheme not in SCHEMES:
        raise Invalid(
            f"ENGINESMITH_STORE_URL is {settings.store_url!r}. Use file:///DIRECTORY, "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)} or leave it empty.",
            code="bad_store_url",
        )
    directory = settings.cache_dir or settings.data_dir / "cache"
    cache = ArtifactCache(directory, settings.cache_bytes)
    return RemoteStore.open(settings.store_url, cache, buffered_bytes, on_damage)
