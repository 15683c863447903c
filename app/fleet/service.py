"""Workers report themselves; a worker that has been silent for too long is not listed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session

from app.database import Database, now
from app.fleet.backend_offer import BackendOffer, read_offers
from app.fleet.tables import ReportedWorker
from app.redaction import public_json
from app.settings import Settings

SEEN_LATELY = ReportedWorker.seen_at >= bindparam("oldest")
ALIVE = select(ReportedWorker).where(SEEN_LATELY).order_by(ReportedWorker.started_at)
CONSUMED = (ReportedWorker.id, ReportedWorker.queues, ReportedWorker.trouble)  # the other columns may be large
CONSUMING = select(*CONSUMED).where(SEEN_LATELY)


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker says of itself.

    `device` is {"kind": "cpu" or "cuda", "name", "memory_total", "memory_free"}, with the memory in bytes. `backends`
    maps the name of each backend to what the worker says of it. `trouble` is why it claims no jobs for now.
    """

    id: str
    hostname: str
    pid: int
    device: Mapping[str, Any]
    backends: Mapping[str, BackendOffer]
    queues: tuple[str, ...]
    job_id: str | None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Consumer:
    """The id of a worker that is alive, the queues from which it takes jobs, and why it takes none for now."""

    worker: str
    queues: frozenset[str]
    trouble: str | None


def report(database: Database, worker: WorkerReport) -> None:
    """Record that a worker is alive, and what it says of itself."""
    with database.transaction() as session:
        row = session.get(ReportedWorker, worker.id) or ReportedWorker(id=worker.id)
        row.hostname, row.pid, row.job_id, row.trouble = worker.hostname, worker.pid, worker.job_id, worker.trouble
        row.device, row.queues = dict(worker.device), list(worker.queues)
        row.backends = {name: public_json(offer.to_json()) for name, offer in worker.backends.items()}
        row.seen_at = now()
        session.add(row)


def forget(database: Database, worker_id: str) -> None:
    """Remove a worker from the fleet, because it stops."""
    with database.transaction() as session:
        session.execute(delete(ReportedWorker).where(ReportedWorker.id == worker_id))


def alive(session: Session, settings: Settings) -> list[ReportedWorker]:
    """Return the workers that reported in the last `worker_timeout_s` seconds, in the order in which they started."""
    return list(session.scalars(ALIVE, _lately(settings)))


def consumers(session: Session, settings: Settings) -> list[Consumer]:
    """Return each worker that is alive, with its queues and its trouble."""
    rows = session.execute(CONSUMING, _lately(settings))
    return [Consumer(worker, frozenset(queues), trouble) for worker, queues, trouble in rows]


def unavailable(session: Session, settings: Settings, backend: str) -> tuple[str, ...]:
    """Return the reasons why workers alive cannot use a backend that they have installed, each reason once."""
    said = (read_offers(worker.backends).get(backend) for worker in alive(session, settings))
    return tuple(dict.fromkeys(one.unavailable for one in said if one is not None and one.unavailable is not None))


def _lately(settings: Settings) -> dict[str, Any]:
    return {"oldest": now() - timedelta(seconds=settings.worker_timeout_s)}
