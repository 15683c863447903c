"""A new engine, made by a build or a refit, on its way to being published."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.engines import service as engines
from app.jobs.lease import Claim
from workers.backends.base import Against, Built, EngineFile, Refitted
from workers.kind import Ready
from workers.stored import BoundWeights, StoredDefinition, StoredEngine
from workers.verify import verification_of
from workers.watch import Watch
from workers.worker import Worker


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an engine is made from, as the job asks for it."""

    definition: StoredDefinition
    weights: BoundWeights
    backend: str
    profiles: list[Any]
    options: dict[str, Any]
    rules: list[Any]
    fingerprint: str
    against: Against


@dataclass(frozen=True, slots=True)
class NewEngine:
    """A verified engine whose plan is in the store; `timings` are seconds by phase."""

    plan_digest: str
    plan_bytes: int
    plan_signature: str
    backend_version: str
    device: str
    facts: dict[str, Any]
    verification: dict[str, Any]
    timings: dict[str, float]

    @property
    def blobs(self) -> Mapping[str, int]:
        """The plan."""
        return {self.plan_digest: self.plan_bytes}


def equal_engine(session: Session, held: Claim, version: str) -> Ready | None:
    """Return the result where an equal engine, by this version of the backend, has been made meanwhile."""
    if not held.request["reuse"]:
        return None
    engine = engines.find_equal(session, held.model_id, held.request["fingerprint"], backend_versions=[version])
    return None if engine is None else Ready({"engine": engine.number, "reused": True, "method": "reuse"})


def verified(
    worker: Worker,
    watch: Watch,
    engine: EngineFile,
    made: Built | Refitted,
    against: Against,
    parent: StoredEngine | None = None,
) -> NewEngine:
    """Verify a new engine, then put its plan into the store and sign it; a failing one leaves nothing behind.

    A refit whose plan is its parent's own puts nothing. Raises VerificationFailed.
    """
    verification = verification_of(watch, engine, against)
    if parent is not None and made.plan_digest == parent.plan_digest:
        digest, size, signature = parent.plan_digest, parent.plan_bytes, parent.plan_signature
    else:
        digest, size = watch.during(worker.store.put_file, Path(made.plan))
        signature = worker.signer.sign(digest)
    return NewEngine(
        plan_digest=digest,
        plan_bytes=size,
        plan_signature=signature,
        backend_version=made.backend_version,
        device=worker.device,
        facts=dict(made.facts),
        verification=verification,
        timings=dict(made.timings) | {"verify": verification.get("seconds", 0.0), "total": watch.seconds},
    )


def publish_as(
    session: Session,
    held: Claim,
    recipe: Recipe,
    made: NewEngine,
    *,
    method: Literal["build", "refit"],
    parent: int | None = None,
) -> dict[str, Any]:
    """Insert the engine; returns the job's result."""
    engine = engines.publish_engine(
        session,
        model_id=held.model_id,
        method=method,
        parent=parent,
        definition_id=recipe.definition.id,
        weights_id=recipe.weights.weights_id,
        backend=recipe.backend,
        backend_version=made.backend_version,
        device=made.device,
        profiles=recipe.profiles,
        options=recipe.options,
        rules=recipe.rules,
        binding=dict(recipe.weights.binding),
        fingerprint=recipe.fingerprint,
        plan_digest=made.plan_digest,
        plan_bytes=made.plan_bytes,
        plan_signature=made.plan_signature,
        verification=made.verification,
        facts=made.facts,
        timings=made.timings,
        job_id=held.job_id,
    )
    return {"engine": engine.number, "reused": False, "method": method, "seconds": made.timings}
