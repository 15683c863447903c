"""A new engine, made by a build or a refit, on its way to being published."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.artifacts.signing import PlanStatement
from app.engines.facts import EngineFacts, read_facts
from app.engines.publish import publish_engine
from app.engines.work import Verification
from app.jobs.lease import Claim
from workers.channel.messages import Built, PlanWritten, Refitted, Spent
from workers.jobs.stages import merged, stages_json, timings_json
from workers.jobs.stored import BoundWeights, StoredDefinition, StoredEngine, StoredPlan
from workers.jobs.verify import passed
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is made from, as the job asks for it."""

    definition: StoredDefinition
    weights: BoundWeights
    backend: str
    profiles: list[Any]
    options: dict[str, Any]
    rules: list[Any]
    fingerprint: str
    verify: Verification


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a new engine's plan works, the compiled plan it goes back to, and the engine it was refitted from."""

    platform: str
    root_plan: str
    parent: StoredEngine | None = None


@dataclass(frozen=True, slots=True)
class VerifiedEngine:
    """A verified engine, made in `seconds`. `plan` is in the store, None where it is not materialised.

    `device_fingerprint` is that of the device for which its plan was compiled, None if an earlier release did that.
    """

    origin: Origin
    plan: StoredPlan | None
    signature: str
    backend_version: str
    device: str
    facts: EngineFacts
    verification: dict[str, Any]
    stages: dict[str, Spent]
    seconds: float
    device_fingerprint: Mapping[str, Any] | None = None

    @property
    def blobs(self) -> Mapping[str, int]:
        """The plan."""
        return {} if self.plan is None else {self.plan.digest: self.plan.nbytes}


def new_engine(
    worker: Worker,
    watch: Watch,
    made: Built | Refitted,
    plan: StoredPlan | None,
    origin: Origin,
    spec: EngineSpec,
    earlier: Mapping[str, Any] | None,
) -> VerifiedEngine:
    """Gather what is to be published; an engine that failed its verification never is: VerificationFailed.

    `earlier` is what the verification of an engine of other weights found.
    """
    verification = passed(made.verification, spec.verify, earlier)
    checked = {} if made.verification is None else made.verification.stages
    return VerifiedEngine(
        origin=origin,
        plan=plan,
        signature=worker.signer.sign(_statement(worker, watch.claim, made, plan, origin, spec)),
        backend_version=made.backend_version,
        device=worker.device,
        facts=read_facts(made.facts),
        verification=verification,
        stages=merged(watch.stages, made.stages, checked),
        seconds=watch.seconds,
        device_fingerprint=_device_fingerprint(worker, made, origin),
    )


def _device_fingerprint(worker: Worker, made: Built | Refitted, origin: Origin) -> Mapping[str, Any] | None:
    """Return the fingerprint of the device for which an engine was compiled: a refit changes nothing of that."""
    if isinstance(made, Built):
        of_device = worker.device_fingerprint
        return None if of_device is None else {**of_device, "to_load": sorted(made.bound_to)}
    return None if origin.parent is None else origin.parent.device_fingerprint


def _statement(
    worker: Worker, held: Claim, made: Built | Refitted, plan: StoredPlan | None, origin: Origin, spec: EngineSpec
) -> PlanStatement:
    """Return what the row of a new engine will say of its plan."""
    parent = origin.parent
    return PlanStatement(
        digest=None if plan is None else plan.digest,
        model_id=held.model_id,
        job_id=held.job_id,
        method="build" if parent is None else "refit",
        parent=None if parent is None else parent.number,
        backend=spec.backend,
        backend_version=made.backend_version,
        platform=origin.platform,
        device=worker.device,
        definition=spec.definition.digest,
        weights=spec.weights.weights_digest,
        binding=spec.weights.binding_digest,
        profiles=spec.profiles,
        options=spec.options,
        root_plan=origin.root_plan,
    )


class PlanPut:
    """Puts a plan of the engine host's into the store, in a thread of the worker's."""

    def __init__(self, worker: Worker, watch: Watch, inherited: StoredPlan | None) -> None:
        self._worker = worker
        self._watch = watch
        self._inherited = inherited
        self._path: Path | None = None
        self._plan: Future[StoredPlan] | None = None

    def begin(self, written: PlanWritten) -> None:
        """Begin to put it; the file stays where it is, as the host may load it in this time."""
        if self._inherited is not None and written.plan_digest == self._inherited.digest:
            return
        self._path = Path(written.plan)
        twin = self._path.with_name(f"{self._path.name}.put")
        twin.hardlink_to(self._path)
        self._plan = self._worker.io.submit(self._put, twin, written.plan_digest)

    def end(self, digest: str) -> StoredPlan:
        """Wait until it is there, for when the host is done with the file; the inherited plan, where it wrote none.

        `digest` is that of the plan which the host made.
        """
        if self._plan is not None and self._path is not None:
            started = self._watch.seconds
            plan = self._watch.join(self._plan)
            self._watch.stages["write"] = Spent(self._watch.seconds - started)
            if plan.digest != digest:
                raise TypeError("the engine host told of another plan than it made")
            self._know(self._path, plan.digest)
            return plan
        if self._inherited is None or self._inherited.digest != digest:
            raise TypeError("the engine host told of no plan")
        return self._inherited

    def give_up(self) -> None:
        """Wait for nothing: the job's end is written now, and a put that has begun ends by itself or with the file."""
        if self._plan is not None:
            self._plan.cancel()

    def _put(self, path: Path, digest: str) -> StoredPlan:
        _, nbytes = self._worker.put(path, digest=digest)
        return StoredPlan(digest, nbytes)

    def _know(self, path: Path, digest: str) -> None:
        """Spare the next refit of this engine reading the plan, where a local store has the file itself and no copy."""
        if path.stat().st_nlink == 1:
            return
        stored = self._watch.during(self._worker.store.local_path, digest)
        if stored.samefile(path):
            path.unlink()  # which changes what a file is known by
            self._worker.store.know(digest)


@contextmanager
def plan_put(worker: Worker, watch: Watch, inherited: StoredPlan | None = None) -> Iterator[PlanPut]:
    """Give a block a way to put one plan into the store, while the engine host goes on with its request.

    Where the block fails what was or will be put is left to collection. A plan equal to `inherited` is there already.
    """
    put = PlanPut(worker, watch, inherited)
    try:
        yield put
    except Exception:
        put.give_up()
        raise


def publish_as(
    session: Session,
    held: Claim,
    spec: EngineSpec,
    made: VerifiedEngine,
    *,
    method: Literal["build", "refit"],
) -> dict[str, Any]:
    """Insert the engine; returns the job's result."""
    parent, plan = made.origin.parent, made.plan
    number = publish_engine(
        session,
        model_id=held.model_id,
        method=method,
        parent=None if parent is None else parent.number,
        definition_id=spec.definition.id,
        weights_id=spec.weights.weights_id,
        backend=spec.backend,
        backend_version=made.backend_version,
        device=made.device,
        platform=made.origin.platform,
        profiles=spec.profiles,
        options=spec.options,
        rules=spec.rules,
        binding_id=spec.weights.binding_id,
        fingerprint=spec.fingerprint,
        root_plan=made.origin.root_plan,
        plan_digest=None if plan is None else plan.digest,
        plan_bytes=None if plan is None else plan.nbytes,
        plan_signature=made.signature,
        base_id=None if plan is not None or parent is None else parent.materialised_id,
        verification=made.verification,
        facts=made.facts,
        timings=timings_json(made.stages, made.seconds),
        device_fingerprint=None if made.device_fingerprint is None else dict(made.device_fingerprint),
        job_id=held.job_id,
    )
    taken = {"seconds": made.seconds, "stages": stages_json(made.stages)}
    return {"engine": number, "reused": False, "method": method} | taken
