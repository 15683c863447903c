"""Jobs, their events, and the keys that make it idempotent to post a job."""

from datetime import datetime
from enum import IntEnum
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils import uuid7

from app.database import Base, now


class Pruned(IntEnum):
    """What retention has taken of a job."""

    NOTHING = 0
    BLOBS = 1
    EVENTS = 2


class Job(Base):
    """One queued piece of work. Only `state.py` says which state follows which."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "lease_until"),
        Index(None, "state", "queue", "id"),  # workers look for the oldest queued jobs, queue by queue
        Index(None, "model_id", "id"),
        Index(None, "model_id", "kind", "state", "id"),
        Index(None, "likeness", "state", "id"),  # finds the last jobs of like work
        Index(None, "makes", "state"),  # finds the job under way that makes the same
        Index(None, "pruned", "finished_at"),  # finds what retention has not come to yet
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: str(uuid7()))  # sorts by time of creation
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(default="queued")
    queue: Mapped[str]
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    model: Mapped[str]
    request: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    likeness: Mapped[str | None] = mapped_column(deferred=True)  # equal for jobs of like work; null if no work was done
    expected_s: Mapped[float | None]  # the median seconds of earlier jobs of like work
    attempt: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    again_at: Mapped[datetime | None]  # a queued job is not claimed before
    outage: Mapped[dict[str, Any] | None]  # what kept the job from being done; see `outage.py`
    strikes: Mapped[int] = mapped_column(default=0)  # times the engine host died of it
    crashes: Mapped[int] = mapped_column(default=0, server_default="0")  # times that it crashed and was not killed
    makes: Mapped[str | None] = mapped_column(deferred=True)  # jobs with equal digests make the same
    phase: Mapped[str | None]
    step: Mapped[int | None]
    total: Mapped[int | None]
    last_event: Mapped[int] = mapped_column(default=0)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    pruned: Mapped[int] = mapped_column(default=Pruned.NOTHING)  # a value of `Pruned`


class JobDependency(Base):
    """A job that is not begun before another one has ended.

    The awaited one may be removed by retention, which takes none but jobs that ended long ago.
    """

    __tablename__ = "job_dependencies"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    awaited_id: Mapped[str] = mapped_column(primary_key=True, index=True)


class JobEvent(Base):
    """One thing that happened to a job; `seq` counts from 1 without a gap, so a reader can resume."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(default=now)


class IdempotencyKey(Base):
    """A client's Idempotency-Key, the digest of the request it was sent with, and the job it made."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(primary_key=True)
    request_digest: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
