"""Which artifacts were found damaged: whoever reads one tells, and a put of the right bytes clears it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.artifacts.checked import BlobDamaged, Told
from app.artifacts.tables import Blob, BlobUse
from app.database import DATABASE_DOWN, Database, now
from app.http.pagination import PageQuery, Rows, list_rows

Damage = Literal["changed", "missing"]
Finder = Literal["api", "worker", "scrubber"]
UNDAMAGED: Final[Mapping[str, Any]] = {"damage": None, "damaged_at": None, "found_by": None}
log = structlog.get_logger(__name__)


def noting(database: Database, finder: Finder) -> Told:
    """Return what a store calls with the digest of each artifact that it finds damaged."""

    def tell(digest: str) -> None:
        try:
            note(database, digest, "changed", finder)
        except DATABASE_DOWN as error:
            log.warning("a damaged artifact is not on record", digest=digest, error=str(error))

    return tell


def note(database: Database, digest: str, damage: Damage, finder: Finder) -> None:
    """Put an artifact on record as damaged; if it is already, it stays on record since then."""
    log.error("an artifact is damaged", digest=digest, damage=damage, found_by=finder)
    found: dict[str, Any] = {"damage": damage, "damaged_at": now(), "found_by": finder}
    with database.transaction() as session:
        session.execute(update(Blob).where(Blob.digest == digest, Blob.damaged_at.is_(None)).values(**found))


def require_undamaged(database: Database, digest: str) -> None:
    """Raise BlobDamaged if an artifact is on record as damaged, but not missing."""
    with database.reading() as session:
        if session.scalar(select(Blob.damage).where(Blob.digest == digest)) == "changed":
            raise BlobDamaged(digest)


def note_whole(database: Database, digest: str) -> None:
    """Take an artifact off the record of damages, if it is on it: it was read, and it is whole."""
    with database.reading() as session:
        damaged_at = session.scalar(select(Blob.damaged_at).where(Blob.digest == digest))
    if damaged_at is None:
        return
    log.info("a damaged artifact is whole again", digest=digest, damaged_at=damaged_at.isoformat())
    with database.transaction() as session:
        session.execute(update(Blob).where(Blob.digest == digest).values(checked_at=now(), **UNDAMAGED))


def list_damaged(session: Session, page: PageQuery) -> Rows[Blob]:
    """Return one page of the damaged artifacts, by digest."""
    statement = select(Blob).where(Blob.damaged_at.is_not(None))
    return list_rows(session, statement, Blob.digest, page, newest_first=False)


def owners_of(session: Session, digests: list[str]) -> dict[str, list[str]]:
    """Return what keeps each of these artifacts, as `service.keep` was told it."""
    rows = select(BlobUse.digest, BlobUse.owner).where(BlobUse.digest.in_(digests)).order_by(BlobUse.owner)
    owners: dict[str, list[str]] = {digest: [] for digest in digests}
    for digest, owner in session.execute(rows):
        owners[digest].append(owner)
    return owners


def count_damaged(session: Session) -> dict[str, int]:
    """Count the damaged artifacts by their damage."""
    rows = select(Blob.damage, func.count()).where(Blob.damaged_at.is_not(None)).group_by(Blob.damage)
    counts = {str(damage): count for damage, count in session.execute(rows)}
    return {damage: counts.get(damage, 0) for damage in ("changed", "missing")}


def oldest_check_s(session: Session) -> float:
    """Return the seconds since the artifact was checked that was not checked for the longest time; 0 without any."""
    oldest: datetime | None = session.scalar(select(func.min(Blob.checked_at)))
    return 0.0 if oldest is None else (now() - oldest).total_seconds()
