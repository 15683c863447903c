"""What a store tells of the artifacts that lie in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from app.artifacts.digest import DIGEST

PAGE = 1000  # artifacts of one page, about: an object store lists as many in one answer
FOLDER = "sha256"


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact that lies in the store: its size in bytes, and when its bytes were last put."""

    digest: str
    size: int
    put_at: datetime


def digest_at(shard: str, name: str) -> str | None:
    """Return the digest of what lies at sha256/`shard`/`name`; None if that is no place of an artifact."""
    digest = f"sha256:{name}"
    return digest if name[:2] == shard and DIGEST.fullmatch(digest) else None


def after(files: Iterable[Stored], last: str | None) -> list[Stored]:
    """Return the files whose digests come after `last`, in order of their digests."""
    return sorted((file for file in files if last is None or file.digest > last), key=lambda file: file.digest)
