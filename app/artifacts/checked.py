"""Whether stored bytes are those of their digest: read once in each process, and remembered until the file changes.

An artifact is digested when it arrives, and may lie in a store for months. A disk that flips a bit, a copy that was cut
short or a tool that writes into the store would give wrong bytes to whoever reads it. So a store hands out nothing that
this process has not digested, except weights, whose tensors have digests of their own.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Protocol, Self
from weakref import WeakValueDictionary

from cachetools import LRUCache

from app.errors import Unavailable
from app.settings import MIB

Identity = tuple[object, ...]
Told = Callable[[str], None]  # of an artifact by its digest
Pace = Callable[[int], None]  # is told the number of bytes that were read, and may wait
KEPT = 100_000  # artifacts; some tens of megabytes
READ_BYTES = 4 * MIB
SMALL = 8 * MIB  # a whole artifact up to this size is checked before its first byte is handed out


def no_pace(_nbytes: int) -> None:
    """Read on at once."""


class BlobDamaged(Unavailable):
    """An artifact whose bytes are not those of its digest."""

    code = "blob_damaged"
    retry_after_s = None  # it heals once somebody has uploaded it again

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"The stored bytes of {digest} are not those that were stored: the artifact store is damaged. Upload the "
            f"same bytes again with PUT /v1/blobs/{digest}, which replaces them. A definition or an engine's plan may "
            'be made again instead: post the definition again, or build the engine again with "reuse": false. '
            "GET /v1/artifacts/damaged lists what else is damaged."
        )
        self.digest = digest

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        """Go from one process to another as what it was made of."""
        return type(self), (self.digest,)


class Stored(Protocol):
    """An artifact as it lies in a store now.

    `identity` is what it is known by: other bytes under the same name have another one.
    """

    identity: Identity
    size: int

    def chunks(self, start: int, stop: int, chunk: int) -> Iterator[bytes]:
        """Return the bytes from `start` up to, but not including, `stop`."""

    def is_unchanged(self) -> bool:
        """Whether nobody has written to it since it was opened."""


class Checked:
    """What this process knows of artifacts: which are whole, and which are damaged.

    `on_damage` is told the digest of each artifact that is found damaged.
    """

    def __init__(self, on_damage: Told = lambda _digest: None) -> None:
        self._on_damage = on_damage
        self._known: LRUCache[str, tuple[Identity, bool]] = LRUCache(KEPT)
        self._lock = Lock()
        self._turns: WeakValueDictionary[str, Lock] = WeakValueDictionary()

    def require(self, digest: str, found: Stored) -> None:
        """Return if the artifact is whole, after digesting it if this process has not yet; else raise BlobDamaged.

        Of several threads that need the same artifact one digests it, and the others wait.
        """
        if self._is_whole(digest, found):
            return
        with self._turn(digest):
            if not self._is_whole(digest, found):
                self._conclude(digest, found, digest_of(found))

    def read(self, digest: str, found: Stored, start: int, stop: int, chunk: int) -> Iterator[bytes]:
        """Return the bytes from `start` up to, but not including, `stop`; raise BlobDamaged if it is known to be.

        All bytes of a large artifact that this process has not digested yet are digested on their way, and the last
        chunk is held back until the digest is known. If it is wrong, the iterator raises BlobDamaged in its place. In
        any other case the artifact is checked before this returns.
        """
        is_everything = start == 0 and stop >= found.size
        if not is_everything or self._is_whole(digest, found):
            self.require(digest, found)
            return held_back(found.chunks(start, stop, chunk), lambda: self._require_unchanged(digest, found))
        if found.size > SMALL:
            return self._digested(digest, found, chunk)
        return iter(list(self._digested(digest, found, chunk)))

    def know(self, digest: str, found: Stored) -> None:
        """Take an artifact for whole: this process has just written and digested its bytes."""
        with self._lock:
            self._known[digest] = found.identity, True

    def recheck(self, digest: str, found: Stored, pace: Pace = no_pace) -> bool:
        """Digest an artifact, whatever is known of it, and return whether it is whole.

        `pace` is told the number of bytes after each piece that was read.
        """
        actual = digest_of(found, pace)
        try:
            self._conclude(digest, found, actual)
        except BlobDamaged:
            return False
        return True

    def _is_whole(self, digest: str, found: Stored) -> bool:
        with self._lock:
            identity, is_whole = self._known.get(digest, (None, False))
        if identity != found.identity:
            return False
        if not is_whole:
            raise BlobDamaged(digest)
        return True

    def _turn(self, digest: str) -> Lock:
        with self._lock:
            return self._turns.setdefault(digest, Lock())

    def _digested(self, digest: str, found: Stored, chunk: int) -> Iterator[bytes]:
        sha256 = hashlib.sha256()

        def digesting() -> Iterator[bytes]:
            with ThreadPoolExecutor(1, "digest") as thread:  # it digests a piece while the piece is sent
                before: Future[None] | None = None
                for piece in found.chunks(0, found.size, chunk):
                    if before is not None:
                        before.result()
                    before = thread.submit(sha256.update, piece)
                    yield piece

        return held_back(digesting(), lambda: self._conclude(digest, found, _named(sha256.hexdigest())))

    def _conclude(self, digest: str, found: Stored, actual: str) -> None:
        if found.is_unchanged():
            with self._lock:
                self._known[digest] = found.identity, actual == digest
        if actual != digest:
            self._on_damage(digest)
            raise BlobDamaged(digest)

    def _require_unchanged(self, digest: str, found: Stored) -> None:
        if not found.is_unchanged():
            raise Unavailable(
                f"The stored bytes of {digest} were written to while they were read. Send the request again.",
                code="blob_changed",
            )


def digest_of(found: Stored, pace: Pace = no_pace) -> str:
    """Read an artifact and return its digest."""
    sha256 = hashlib.sha256()
    for piece in found.chunks(0, found.size, READ_BYTES):
        sha256.update(piece)
        pace(len(piece))
    return _named(sha256.hexdigest())


def held_back(pieces: Iterator[bytes], check: Callable[[], None]) -> Iterator[bytes]:
    """Yield the pieces, but the last one only after `check` has raised nothing."""
    last: bytes | None = None
    for piece in pieces:
        if last is not None:
            yield last
        last = piece
    check()
    if last is not None:
        yield last


def _named(hexadecimal: str) -> str:
    return f"sha256:{hexadecimal}"
