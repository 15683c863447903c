"""Materialise jobs: the plan of an engine that was refitted lazily, written as a file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.signing import PlanSigner
from app.engines.publish import publish_plan
from app.engines.stages import no_time
from app.engines.work import MaterialiseWork
from app.jobs.lease import Claim
from workers.channel.messages import Materialise, Materialised, Spent
from workers.jobs.publication import plan_put
from workers.jobs.stages import merged, stages_json
from workers.jobs.steps import Ready, Steps
from workers.jobs.stored import BasePlan, Sources, StoredEngine, StoredPlan, engine_file, load_engine
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker


@dataclass(frozen=True, slots=True)
class WrittenPlan:
    """A plan in the store, made in `seconds`."""

    plan: StoredPlan
    signature: str
    stages: dict[str, Spent]
    seconds: float

    @property
    def blobs(self) -> Mapping[str, int]:
        """The plan."""
        return {self.plan.digest: self.plan.nbytes}


def load(session: Session, _held: Claim, work: MaterialiseWork, _worker: Worker) -> StoredEngine | Ready:
    """Read the engine, unless it has its plan by now."""
    engine = load_engine(session, work.engine_id)
    if isinstance(engine.source, BasePlan):
        return engine
    return Ready(_result(engine.number, engine.plan.digest) | no_time())


def compute(engine: StoredEngine, worker: Worker, watch: Watch) -> WrittenPlan:
    """Have the engine host write the plan, and put it into the store."""
    request = watch.during(_request, engine, worker.sources, worker.signer, str(watch.folder / "plan"))
    with plan_put(worker, watch) as put:
        made = watch.ask(request, Materialised, put.begin)
        plan = put.end(made.plan_digest)
    signature = worker.signer.sign(replace(engine.statement, digest=plan.digest))
    return WrittenPlan(plan, signature, merged(watch.stages, made.stages), watch.seconds)


def publish(session: Session, _held: Claim, engine: StoredEngine, made: WrittenPlan) -> dict[str, Any]:
    """Give the engine its plan; if another job was faster, its plan stays and this one is collected."""
    plan = made.plan
    published = publish_plan(session, engine.id, digest=plan.digest, nbytes=plan.nbytes, signature=made.signature)
    taken = {"seconds": made.seconds, "stages": stages_json(made.stages)}
    return _result(engine.number, published.plan_digest) | taken


def _request(engine: StoredEngine, sources: Sources, signer: PlanSigner, plan: str) -> Materialise:
    return Materialise(engine_file(engine, sources, signer), plan)


def _result(number: int, digest: str | None) -> dict[str, Any]:
    return {"engine": number, "plan_digest": digest}


STEPS = Steps(MaterialiseWork, load, compute, publish)
