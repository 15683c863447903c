"""Refit jobs: a new engine from an existing one's plan and other weights."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.signing import PlanSigner
from app.engines.work import RefitWork
from app.jobs.lease import Claim
from workers.channel.messages import Refit, Refitted
from workers.jobs.publication import EngineSpec, Origin, VerifiedEngine, new_engine, plan_put, publish_as
from workers.jobs.reuse import ReusedEngine, equal_engine, publish_reused, reused, verify_equal
from workers.jobs.steps import Ready, Steps
from workers.jobs.stored import Sources, StoredEngine, engine_file, load_engine, load_weights
from workers.jobs.verify import check_of
from workers.jobs.watch import Watch
from workers.jobs.worker import Worker


@dataclass(frozen=True, slots=True)
class RefitInput:
    """The engine whose plan is refitted, what the new one is made from, and whether its plan is written at once.

    `equal` is an engine that only lacks the verification that is asked for.
    """

    parent: StoredEngine
    spec: EngineSpec
    materialise: bool
    equal: StoredEngine | None


def load(session: Session, held: Claim, work: RefitWork, worker: Worker) -> RefitInput | Ready:
    """Read the parent and the new weights, unless an equal engine is there that is verified as asked."""
    parent = load_engine(session, work.parent_id)
    equal = equal_engine(session, held, work, worker.served(parent.backend))
    return (
        equal if isinstance(equal, Ready) else RefitInput(parent, _spec(session, work, parent), work.writes_plan, equal)
    )


def compute(job: RefitInput, worker: Worker, watch: Watch) -> VerifiedEngine | ReusedEngine:
    """Refit and verify, or only verify if there is an equal engine.

    The parent's plan is checked before anything loads it.
    """
    verified = verify_equal(job.equal, job.spec.verify, worker, watch, job.parent.verification)
    if verified is not None:
        return verified
    request = watch.during(_request, job, worker.sources, worker.signer, str(watch.folder / "plan"))
    origin = Origin(job.parent.platform, job.parent.root_plan, job.parent)
    with plan_put(worker, watch, job.parent.plan) as put:
        refitted = watch.ask(request, Refitted, put.begin)
        plan = None if refitted.plan_digest is None else put.end(refitted.plan_digest)
        made = new_engine(worker, watch, refitted, plan, origin, job.spec, job.parent.verification)
    return replace(made, facts=made.facts.told(changed=refitted.changed, warm=refitted.warm))


def publish(session: Session, held: Claim, job: RefitInput, made: VerifiedEngine | ReusedEngine) -> dict[str, Any]:
    """Insert the engine; `changed` in the result counts the parameters whose values differ from the parent's."""
    if isinstance(made, ReusedEngine):
        return publish_reused(session, made)
    result = publish_as(session, held, job.spec, made, method="refit")
    figures = {"changed": made.facts.changed, "warm": made.facts.warm}
    return result | figures | {"materialised": made.plan is not None}


def _spec(session: Session, work: RefitWork, parent: StoredEngine) -> EngineSpec:
    return EngineSpec(
        definition=parent.definition,
        weights=load_weights(session, work.weights_id, work.binding_id),
        backend=parent.backend,
        profiles=parent.profiles_json,
        options=dict(parent.options),
        rules=work.rules,
        fingerprint=work.fingerprint,
        verify=work.verify,
    )


def _request(job: RefitInput, sources: Sources, signer: PlanSigner, plan: str) -> Refit:
    parent = engine_file(job.parent, sources, signer)
    check = check_of(job.spec.verify, sources.store, earlier=job.parent.verification)
    return Refit(parent, sources.of(job.spec.weights), plan if job.materialise else None, check)


STEPS = Steps(RefitWork, load, compute, publish, shared=reused)
