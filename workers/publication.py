"""A new engine, made by a build or a refit, on its way to being published."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.artifacts import service as artifacts
from app.engines import service as engines
from app.jobs.lease import Claim
from workers.backends.base import Against, Built, EngineFile, Refitted
from workers.kind import Ready
from workers.stored import BoundWeights, StoredDefinition, StoredEngine, StoredPlan
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
class Origin:
    """Where a new engine's plan works, the compiled plan it goes back to, and the engine it was refitted from."""

    platform: str
    root_plan: str
    parent: StoredEngine | None = None


@dataclass(frozen=True, slots=True)
class NewEngine:
    """A verified engine. `plan` is in the store, None where it is not materialised; `timings` are seconds by phase."""

    origin: Origin
    plan: StoredPlan | None
    backend_version: str
    device: str
    facts: dict[str, Any]
    verification: dict[str, Any]
    timings: dict[str, float]

    @property
    def blobs(self) -> Mapping[str, int]:
        """The plan."""
        return {} if self.plan is None else {self.plan.digest: self.plan.nbytes}


def equal_engine(session: Session, held: Claim, served: engines.Served) -> Ready | None:
    """Return the result where an equal engine that is served here has been made meanwhile.

    One without a plan of its own is not equal to what a job shall make that is to write a plan.
    """
    if not held.request["reuse"]:
        return None
    engine = engines.find_equal(session, held.model_id, held.request["fingerprint"], served)
    lazy = held.request.get("materialise") == "lazy"
    if engine is None or not (lazy or engine.materialised):
        return None
    return Ready({"engine": engine.number, "reused": True, "method": "reuse"})


def verified(
    worker: Worker,
    watch: Watch,
    engine: EngineFile,
    made: Built | Refitted,
    against: Against,
    origin: Origin,
) -> NewEngine:
    """Verify a new engine and meanwhile put its plan into the store; one that fails is never published.

    A refit whose plan is its parent's own puts nothing, nor does one whose plan is not materialised.
    Raises VerificationFailed.
    """
    inherited = origin.parent.plan if origin.parent is not None else None
    if made.plan is None or made.plan_digest is None:
        plan, verification = None, verification_of(watch, engine, against)
    elif inherited is not None and made.plan_digest == inherited.digest:
        plan, verification = inherited, verification_of(watch, engine, against)
    else:
        with plan_put(worker, watch, made.plan, made.plan_digest) as put:
            verification = verification_of(watch, engine, against)
            plan = watch.join(put)
    return NewEngine(
        origin=origin,
        plan=plan,
        backend_version=made.backend_version,
        device=worker.device,
        facts=dict(made.facts),
        verification=verification,
        timings=dict(made.timings) | {"verify": verification.get("seconds", 0.0), "total": watch.seconds},
    )


@contextmanager
def plan_put(worker: Worker, watch: Watch, plan: str, digest: str) -> Iterator[Future[StoredPlan]]:
    """Put a plan of the engine host's into the store and sign it, in a thread beside the block.

    The file stays where it is, as the host may load it in this time. Where the block fails, the plan is left to
    collection once it is put.
    """
    path = Path(plan)
    twin = path.with_name(f"{path.name}.put")
    twin.hardlink_to(path)
    put = worker.io.submit(_put, worker, twin, digest)
    try:
        yield put
    except Exception:
        with suppress(Exception):  # what failed first is what the client is told
            watch.join(put)  # as long as the job may go on its lease is kept
        wait([put])  # in any case: the file goes with the job's folder
        if put.exception() is None:
            artifacts.leave_to_collection(worker.database, {digest: put.result().nbytes})
        raise


def _put(worker: Worker, path: Path, digest: str) -> StoredPlan:
    _, nbytes = worker.store.put_file(path, digest=digest)
    return StoredPlan(digest, nbytes, worker.signer.sign(digest))


def publish_as(
    session: Session,
    held: Claim,
    recipe: Recipe,
    made: NewEngine,
    *,
    method: Literal["build", "refit"],
) -> dict[str, Any]:
    """Insert the engine; returns the job's result."""
    parent, plan = made.origin.parent, made.plan
    engine = engines.publish_engine(
        session,
        model_id=held.model_id,
        method=method,
        parent=None if parent is None else parent.number,
        definition_id=recipe.definition.id,
        weights_id=recipe.weights.weights_id,
        backend=recipe.backend,
        backend_version=made.backend_version,
        device=made.device,
        platform=made.origin.platform,
        profiles=recipe.profiles,
        options=recipe.options,
        rules=recipe.rules,
        binding_id=recipe.weights.binding_id,
        fingerprint=recipe.fingerprint,
        root_plan=made.origin.root_plan,
        plan_digest=None if plan is None else plan.digest,
        plan_bytes=None if plan is None else plan.nbytes,
        plan_signature=None if plan is None else plan.signature,
        base_id=None if plan is not None or parent is None else parent.materialised_id,
        verification=made.verification,
        facts=made.facts,
        timings=made.timings,
        job_id=held.job_id,
    )
    return {"engine": engine.number, "reused": False, "method": method, "seconds": made.timings}
