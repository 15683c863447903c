"""Engines."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, now


class Engine(Base):
    """One immutable result of a build or a refit, with everything that says how it came to be."""

    __tablename__ = "engines"
    __table_args__ = (
        UniqueConstraint("model_id", "number"),
        Index(None, "model_id", "fingerprint", "number"),
        Index(None, "model_id", "recipe", "number"),
        Index(None, "model_id", "parent", "number"),
        Index(None, "model_id", "definition", "number"),
        Index(None, "model_id", "weights", "number"),
        Index(None, "model_id", "backend", "number"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    method: Mapped[str]  # "build" or "refit"
    parent: Mapped[int | None]  # the number of the engine this one was refitted from
    definition_id: Mapped[int] = mapped_column(ForeignKey("definitions.id"))
    definition: Mapped[int]
    weights_id: Mapped[int] = mapped_column(ForeignKey("weight_versions.id"))
    weights: Mapped[int]
    backend: Mapped[str]
    backend_version: Mapped[str]
    device: Mapped[str]
    fingerprint: Mapped[str]
    recipe: Mapped[str]  # a digest of everything but the weights
    refittable: Mapped[bool]
    plan_digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"))
    plan_bytes: Mapped[int]
    plan_signature: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = mapped_column(default=now)
    profiles: Mapped[list[Any]] = mapped_column(deferred=True)
    options: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    rules: Mapped[list[Any]] = mapped_column(deferred=True)
    binding: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    verification: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    facts: Mapped[dict[str, Any]] = mapped_column(deferred=True)  # what the backend tells of this engine
    timings: Mapped[dict[str, Any]] = mapped_column(deferred=True)  # seconds by phase
