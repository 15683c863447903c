"""Sweeps, and the variants of an engine that each compares."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class Sweep(Base):
    """Engines of one definition and weight version that differ in options or profiles, to be measured in turns.

    `job_id` is the job that measures. `measurement` says how. `tolerance` is the largest relative error of the engine
    that is named the best, None if any verified engine may be.
    """

    __tablename__ = "sweeps"
    __table_args__ = (UniqueConstraint("model_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    definition: Mapped[int]
    weights: Mapped[int]
    backend: Mapped[str]
    tolerance: Mapped[float | None]
    measurement: Mapped[dict[str, Any]]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class SweepVariant(Base):
    """One engine of a sweep; `job_id` is the job that builds it or found an equal one."""

    __tablename__ = "sweep_variants"

    sweep_id: Mapped[int] = mapped_column(ForeignKey("sweeps.id"), primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str]
    options: Mapped[dict[str, Any]]
    profiles: Mapped[list[Any]]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
