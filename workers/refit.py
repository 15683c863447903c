"""Refit jobs: a new engine from an existing one's plan and other weights."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore
from app.jobs.lease import Claim
from workers.backends.base import Refit, Refitted
from workers.kind import Kind, Ready
from workers.plans import PlanVerifier
from workers.publication import NewEngine, Recipe, equal_engine, publish_as, verified
from workers.stored import StoredEngine, engine_file, load_engine, load_weights, parameter_sources
from workers.watch import Watch
from workers.worker import Worker


@dataclass(frozen=True, slots=True)
class RefitInput:
    """The engine whose plan is refitted, and what the new one is made from."""

    parent: StoredEngine
    recipe: Recipe


def load(session: Session, held: Claim, worker: Worker) -> RefitInput | Ready:
    """Read the parent and the new weights, unless an equal engine has come into being meanwhile."""
    parent = load_engine(session, held.request["parent_id"])
    version = worker.version_of(parent.backend)
    return equal_engine(session, held, version) or RefitInput(parent, _recipe(session, held, parent))


def compute(job: RefitInput, worker: Worker, watch: Watch) -> NewEngine:
    """Refit and verify; the parent's plan is checked before anything loads it."""
    request = watch.during(_request, job, worker.store, worker.plans, str(watch.folder / "plan"))
    refitted = watch.ask(request, Refitted)
    engine = replace(
        request.parent,
        plan=refitted.plan,
        plan_digest=refitted.plan_digest,
        parameters=request.parameters,
    )
    made = verified(worker, watch, engine, refitted, job.recipe.against, job.parent)
    return replace(made, facts=made.facts | {"changed": refitted.changed, "warm": refitted.warm})


def publish(session: Session, held: Claim, job: RefitInput, made: NewEngine) -> dict[str, Any]:
    """Insert the engine; `changed` in the result counts the parameters that were set."""
    result = publish_as(session, held, job.recipe, made, method="refit", parent=job.parent.number)
    return result | {"changed": made.facts["changed"], "warm": made.facts["warm"]}


def _recipe(session: Session, held: Claim, parent: StoredEngine) -> Recipe:
    request = held.request
    return Recipe(
        definition=parent.definition,
        weights=load_weights(session, request["weights_id"], request["binding"]),
        backend=parent.backend,
        profiles=parent.profiles_json,
        options=dict(parent.options),
        rules=request["rules"],
        fingerprint=request["fingerprint"],
        against=request["verify"]["against"],
    )


def _request(job: RefitInput, store: ArtifactStore, plans: PlanVerifier, plan: str) -> Refit:
    parent = engine_file(job.parent, store, plans)
    return Refit(parent, parameter_sources(job.recipe.weights, store), plan)


REFIT = Kind(load, compute, publish)
