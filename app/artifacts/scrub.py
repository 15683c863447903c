"""Reads every artifact within a period, so that damage is found before somebody needs the bytes.

The database says when each artifact was last read. So many processes share the work, and a restart goes on where it
stopped. Whoever reads an artifact claims it for a while; the claim of a killed process runs out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Event

import structlog
from sqlalchemy import ColumnElement, and_, func, or_, select, update

from app.artifacts.damage import UNDAMAGED, note
from app.artifacts.store import ArtifactStore
from app.artifacts.tables import Blob
from app.database import Database, now
from app.settings import MIB

LEAST_RATE = 16 * MIB  # bytes a second that one process reads at least
CLAIM_S = 600.0
LOOK_AGAIN_S = 3600.0  # at what is damaged: somebody may have put the right bytes back
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """How many artifacts were read, how many of them are damaged or missing, and how many of these were healed."""

    read: int = 0
    damaged: int = 0
    healed: int = 0


class Stopped(Exception):
    """The process ends, so an artifact was not read to its end."""


@dataclass
class Throttle:
    """Waits after each piece, so that no more than `rate` bytes are read in a second; raises Stopped."""

    rate: float
    over: Event
    wait: Callable[[Event, float], object] = field(default=Event.wait)

    def __call__(self, nbytes: int) -> None:
        """Wait for as long as so many bytes may take."""
        if self.over.is_set():
            raise Stopped
        self.wait(self.over, nbytes / self.rate)


def scrub(database: Database, store: ArtifactStore, *, period_s: float, over: Event) -> Scrubbed:
    """Read what is due, one artifact after the other, until nothing is or `over` is set.

    An artifact is due half a period after it was last read. Each process reads at such a pace that all artifacts take
    it half a period. So each is read within the period by one process alone. What is damaged is replaced by this
    machine's copy in the cache if there is one, else it is put on record.
    """
    with database.reading() as session:
        total = float(session.scalar(select(func.sum(Blob.size))) or 0)
    throttle = Throttle(max(LEAST_RATE, total / (period_s / 2)), over)
    read = damaged = healed = 0
    while not over.is_set():
        claimed = _claim(database, period_s)
        if claimed is None:
            break
        try:
            is_whole = store.recheck(claimed, throttle) is not None
        except Stopped:
            _let_go(database, claimed)
            break
        read += 1
        if not is_whole:
            damaged += 1
            healed += _heal(database, store, claimed)
        _conclude(database, claimed, is_whole=is_whole)
    return Scrubbed(read, damaged, healed)


def due(moment: datetime, period_s: float) -> ColumnElement[bool]:
    """Return the condition for an artifact that is to be read; what a job has yet to put is not."""
    half = timedelta(seconds=period_s / 2)
    again = min(half, timedelta(seconds=LOOK_AGAIN_S))
    return and_(
        Blob.seen_at <= moment,
        or_(Blob.checking_until.is_(None), Blob.checking_until < moment),
        or_(
            Blob.checked_at.is_(None),
            Blob.checked_at < moment - half,
            and_(Blob.damaged_at.is_not(None), Blob.checked_at < moment - again),
        ),
    )


def _claim(database: Database, period_s: float) -> str | None:
    """Return the digest of the artifact that was read longest ago, claimed; None if none is due."""
    while True:
        moment = now()
        statement = select(Blob.digest, Blob.size).where(due(moment, period_s))
        with database.reading() as session:
            row = session.execute(statement.order_by(Blob.checked_at.nulls_first()).limit(1)).first()
        if row is None:
            return None
        digest, size = row
        until = moment + timedelta(seconds=CLAIM_S + 2 * size / LEAST_RATE)
        claim = update(Blob).where(Blob.digest == digest, due(moment, period_s)).values(checking_until=until)
        with database.transaction(durable=False) as session:
            if session.scalar(claim.returning(Blob.digest)) is not None:
                return str(digest)


def _let_go(database: Database, digest: str) -> None:
    with database.transaction(durable=False) as session:
        session.execute(update(Blob).where(Blob.digest == digest).values(checking_until=None))


def _heal(database: Database, store: ArtifactStore, digest: str) -> bool:
    """Replace a damaged artifact, or put it on record; return whether it was replaced."""
    if not store.heal(digest):
        note(database, digest, "missing" if store.size(digest) is None else "changed", "scrubber")
        return False
    log.info("a damaged artifact was replaced by the copy of this machine", digest=digest)
    with database.transaction() as session:
        session.execute(update(Blob).where(Blob.digest == digest).values(**UNDAMAGED))
    return True


def _conclude(database: Database, digest: str, *, is_whole: bool) -> None:
    found = UNDAMAGED if is_whole else {}
    with database.transaction(durable=False) as session:
        row = update(Blob).where(Blob.digest == digest)
        session.execute(row.values(checked_at=now(), checking_until=None, **found))
