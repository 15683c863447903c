"""What goes by retention and by collection: removed in the background, or now, or only shown."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, literal, or_, select
from sqlalchemy.orm import Session

from app.artifacts.service import collect_orphans, unneeded
from app.artifacts.store import ArtifactStore
from app.artifacts.strays import call_for_sweep, find_strays, sweep_store
from app.artifacts.tables import Blob, BlobUse
from app.database import Database
from app.engines.tables import Engine
from app.jobs import retention
from app.jobs.tables import IdempotencyKey, Job, JobEvent
from app.pace import GoOn, unhindered
from app.settings import Settings
from app.sweeps.tables import Sweep, SweepVariant

# An engine or a sweep tells of these jobs for as long as it is there, which is for ever.
NAMED = or_(
    exists().where(Engine.job_id == Job.id),
    exists().where(Engine.materialise_job_id == Job.id),
    exists().where(Sweep.job_id == Job.id),
    exists().where(SweepVariant.job_id == Job.id),
)


@dataclass(frozen=True, slots=True)
class Prunable:
    """What would go of one kind: how many, how many bytes in the store, and since when the oldest could."""

    kind: str
    count: int
    bytes: int | None
    oldest: datetime | None
    setting: str


def retire(database: Database, settings: Settings, go_on: GoOn = unhindered) -> dict[str, int]:
    """Remove jobs, events, idempotency keys and uses of blobs that are older than the settings say; return the counts.

    What a release has freed is collected after another grace.
    """
    counts: dict[str, int] = {}
    if settings.keep_idempotency_keys_days:
        counts["idempotency keys"] = retention.remove_keys(
            database, days=settings.keep_idempotency_keys_days, go_on=go_on
        )
    if settings.keep_outputs_days:
        counts["jobs whose blobs were released"] = retention.release_blobs(
            database, days=settings.keep_outputs_days, named=NAMED, go_on=go_on
        )
    if settings.keep_jobs_days:
        removed = retention.remove_jobs(database, days=settings.keep_jobs_days, named=NAMED, go_on=go_on)
        counts |= {"jobs": removed.jobs, "events": removed.events}
    return counts


def prune(database: Database, store: ArtifactStore, settings: Settings) -> dict[str, int]:
    """Remove all that may go now; return the counts."""
    grace_s, every_s = settings.orphan_grace_s, settings.store_sweep_interval_s
    counts = retire(database, settings)
    counts["unneeded blobs"] = collect_orphans(database, store, older_than_s=grace_s)
    call_for_sweep(database)
    counts["files without a row"] = sweep_store(database, store, older_than_s=grace_s, every_s=every_s)
    return counts


def prunable(database: Database, store: ArtifactStore, settings: Settings) -> list[Prunable]:
    """Return what `prune` would remove now; this lists the whole store, and changes nothing."""
    with database.reading() as session:
        rows = [
            *_of_jobs(session, settings),
            _blobs(session, "unneeded blobs", "orphan_grace_s", *unneeded(settings.orphan_grace_s)),
        ]
    strays = list(find_strays(database, store, older_than_s=settings.orphan_grace_s))
    nbytes = sum(stray.size for stray in strays)
    oldest = min((stray.put_at for stray in strays), default=None)
    return [*rows, Prunable("files without a row", len(strays), nbytes, oldest, _variable("orphan_grace_s"))]


def _of_jobs(session: Session, settings: Settings) -> Iterator[Prunable]:
    jobs, outputs, keys = settings.keep_jobs_days, settings.keep_outputs_days, settings.keep_idempotency_keys_days
    old = retention.due_events(jobs)
    if jobs:
        events = select(func.count(), func.min(JobEvent.at)).join(Job, Job.id == JobEvent.job_id).where(*old)
        yield _rows(session, "jobs", "keep_jobs_days", _finished(*old, ~NAMED))
        yield _rows(session, "events", "keep_jobs_days", events)
    if keys:
        statement = select(func.count(), func.min(IdempotencyKey.created_at)).where(*retention.due_keys(keys))
        yield _rows(session, "idempotency keys", "keep_idempotency_keys_days", statement)
    if outputs:
        due = (*retention.due_blobs(outputs), ~NAMED)
        keeping = exists().where(BlobUse.owner == literal(retention.blobs_owner("")) + Job.id)
        yield _rows(session, "jobs whose blobs are released", "keep_outputs_days", _finished(*due, keeping))
        yield _blobs(session, "blobs that those release", "keep_outputs_days", Blob.digest.in_(_only_of(due)))


def _finished(*due: ColumnElement[bool]) -> Select[int, Any]:
    return select(func.count(), func.min(Job.finished_at)).where(*due)


def _only_of(due: Iterable[ColumnElement[bool]]) -> Select[Any]:
    """Return the digests that only jobs which are due keep."""
    job_id = func.substr(BlobUse.owner, len(retention.blobs_owner("")) + 1)
    return (
        select(BlobUse.digest)
        .outerjoin(Job, and_(Job.id == job_id, *due))
        .group_by(BlobUse.digest)
        .having(func.count() == func.count(Job.id))
    )


def _rows(session: Session, kind: str, setting: str, statement: Select[int, Any]) -> Prunable:
    count, oldest = session.execute(statement).one()
    return Prunable(kind, count, None, oldest, _variable(setting))


def _blobs(session: Session, kind: str, setting: str, *conditions: ColumnElement[bool]) -> Prunable:
    statement = select(func.count(), func.sum(Blob.size), func.min(Blob.seen_at)).where(*conditions)
    count, nbytes, oldest = session.execute(statement).one()
    return Prunable(kind, count, int(nbytes or 0), oldest, _variable(setting))


def _variable(setting: str) -> str:
    return f"ENGINESMITH_{setting.upper()}"
