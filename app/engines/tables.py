"""Engines, and the timing caches that their compilations fill."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.artifacts.signing import FORM
from app.database import Base, now


class Engine(Base):
    """One immutable result of a build or a refit, with everything that it was made from."""

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
    platform: Mapped[str]  # the machines on which its plan works, in the words of the workers' offers
    fingerprint: Mapped[str]
    recipe: Mapped[str]  # the digest of what is compiled: of neither weights nor rules
    refittable: Mapped[bool]
    root_plan: Mapped[str]  # the digest of the plan that was compiled, before any refit
    # An engine that is not materialised has no plan of its own: it is loaded from the plan of the engine `base_id`.
    plan_digest: Mapped[str | None] = mapped_column(ForeignKey("blobs.digest"))
    plan_bytes: Mapped[int | None]
    # What is signed says what the engine was made from, also where it has no plan yet (see `app.artifacts.signing`).
    plan_signature: Mapped[str | None]
    signature_form: Mapped[int] = mapped_column(default=FORM, server_default="1")
    base_id: Mapped[int | None] = mapped_column(ForeignKey("engines.id"))
    materialise_job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)  # the job queued last
    binding_id: Mapped[int] = mapped_column(ForeignKey("bindings.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    profiles: Mapped[list[Any]] = mapped_column(deferred=True)
    options: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    rules: Mapped[list[Any]] = mapped_column(deferred=True)
    verification: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    facts: Mapped[dict[str, Any]] = mapped_column(deferred=True)  # the facts that the backend tells of it
    timings: Mapped[dict[str, Any]] = mapped_column(deferred=True)  # seconds by stage
    # Of the device that made it; an engine of an earlier release has none.
    device_fingerprint: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)

    @property
    def materialised(self) -> bool:
        """Whether its plan exists as a file; an engine that was refitted lazily has none at first."""
        return self.plan_digest is not None


class VerificationDefault(Base):
    """What the engines of a definition are verified with if a request says nothing."""

    __tablename__ = "verification_defaults"

    definition_id: Mapped[int] = mapped_column(ForeignKey("definitions.id"), primary_key=True)
    inputs: Mapped[str] = mapped_column(ForeignKey("blobs.digest"))
    tolerance: Mapped[dict[str, Any]]  # those bounds that are not the usual ones
    updated_at: Mapped[datetime] = mapped_column(default=now)


class TimingCache(Base):
    """The timings that a compiler measured on one platform, for its next compilation there."""

    __tablename__ = "timing_caches"

    platform: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"))
    bytes: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(default=now)
