"""Jobs, their events, and the keys that make it idempotent to post a job."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils import uuid7

from app.database import Base, now


class Job(Base):
    """One queued piece of work. Only `state.py` says which state follows which."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "lease_until"),
        Index(None, "state", "queue", "id"),  # workers look for the oldest queued jobs, queue by queue
        Index(None, "model_id", "id"),
        Index(None, "model_id", "kind", "state", "id"),
        Index(None, "likeness", "state", "id"),  # finds the last jobs of like work
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
    phase: Mapped[str | None]
    step: Mapped[int | None]
    total: Mapped[int | None]
    last_event: Mapped[int] = mapped_column(default=0)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


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
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = mapped_column(default=now)
