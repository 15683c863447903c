"""Where artifacts lie: one interface, a local and a remote implementation, chosen by the store URL."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from app.artifacts.cache import ArtifactCache
from app.artifacts.local import LocalStore
from app.artifacts.remote import SCHEMES, RemoteStore
from app.errors import Invalid
from app.settings import MIB, Settings


class ArtifactStore(Protocol):
    """Bytes by digest. An artifact is there whole and verified, or not at all, and never changes.

    Every call may raise `Unavailable`: "store_full" or "store_unavailable". Where an artifact is
    needed and missing, `NotFound` "blob_not_found".
    """

    @property
    def directory(self) -> Path | None:
        """Where the artifacts lie on a disk of this machine; None if they lie elsewhere."""

    async def put_stream(self, chunks: AsyncIterator[bytes], *, expected: str, limit: int) -> int:
        """Store what arrives under the digest `expected` and return its size in bytes.

        Nothing is left behind if `chunks` raises, if the task is cancelled, or on an error.

        Raises:
            Invalid: "digest_mismatch", the bytes are others.
            TooLarge: more than `limit` bytes arrived.
        """

    def put_file(self, path: Path, *, digest: str | None = None) -> tuple[str, int]:
        """Store a file, which is moved where that is possible, and return its digest and size in bytes.

        Where `digest` is given it is taken for the file's own, so that the file is not read for it once more. Only
        for a file that one of this service's own processes wrote and digested, never for what came from a client.
        """

    def size(self, digest: str) -> int | None:
        """Return the size in bytes, None where there is no such artifact."""

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; fewer only where the artifact ends."""

    def iter_bytes(self, digest: str, start: int, stop: int, chunk: int = MIB) -> Iterator[bytes]:
        """Return the bytes from `start` up to `stop`, at most `chunk` at a time."""

    def local_path(self, digest: str) -> Path:
        """Return a local, read-only file with the artifact's bytes: itself or a cached copy.

        A cached copy may be evicted later: open it within minutes, or ask for it while `holding`. What is open stays
        readable.
        """

    def holding(self) -> AbstractContextManager[None]:
        """For as long as the block lasts, evict no file that `local_path` returns in it, to any thread."""

    def delete(self, digest: str) -> None:
        """Remove the artifact if it is there."""

    def delete_stale(self, digest: str, *, older_than_s: float) -> bool:
        """Remove the artifact unless it was put within the last `older_than_s` seconds; return whether it is gone."""

    def check(self) -> None:
        """Raise `Unavailable` if nothing can be stored now."""


def open_store(settings: Settings) -> ArtifactStore:
    """Open the store the settings name, and clear away what killed uploads left in it.

    Raises:
        Invalid: with code "bad_store_url".
        Unavailable: the directory cannot be written.
    """
    url = urlsplit(settings.store_url)
    if not settings.store_url:
        return LocalStore.open(settings.artifacts_dir)
    if url.scheme == "file" and url.netloc in {"", "localhost"}:
        return LocalStore.open(Path(unquote(url.path)))
    if url.scheme not in SCHEMES:
        raise Invalid(
            f"ENGINESMITH_STORE_URL is {settings.store_url!r}. Use file:///DIRECTORY, "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)} or leave it empty.",
            code="bad_store_url",
        )
    directory = settings.cache_dir or settings.data_dir / "cache"
    return RemoteStore.open(settings.store_url, ArtifactCache(directory, settings.cache_bytes))
