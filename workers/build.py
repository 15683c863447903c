"""Build jobs: compile a definition with one weight version."""

from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore
from app.definitions.profiles import parse_profiles
from app.jobs.lease import Claim
from workers.backends.base import Build, Built, EngineFile
from workers.kind import Kind, Ready
from workers.publication import NewEngine, Origin, Recipe, equal_engine, publish_as, verified
from workers.stored import load_definition, load_weights, parameter_sources
from workers.watch import Watch
from workers.worker import Worker


def load(session: Session, held: Claim, worker: Worker) -> Recipe | Ready:
    """Read what is to be compiled, unless an equal engine has come into being meanwhile."""
    request = held.request
    return equal_engine(session, held, worker.served(request["backend"])) or Recipe(
        definition=load_definition(session, request["definition_id"]),
        weights=load_weights(session, request["weights_id"], request["binding"]),
        backend=request["backend"],
        profiles=request["profiles"],
        options=request["options"],
        rules=request["rules"],
        fingerprint=request["fingerprint"],
        against=request["verify"]["against"],
    )


def compute(recipe: Recipe, worker: Worker, watch: Watch) -> NewEngine:
    """Compile and verify."""
    request = watch.during(_request, recipe, worker.store, str(watch.folder / "plan"))
    built = watch.ask(request, Built)
    engine = EngineFile(
        backend=request.backend,
        plan=built.plan,
        root_plan=built.plan_digest,
        definition=request.definition,
        parameters=request.parameters,
        inputs=request.inputs,
        profiles=request.profiles,
        options=request.options,
    )
    origin = Origin(built.platform, built.plan_digest)
    return verified(worker, watch, engine, built, recipe.against, origin)


def publish(session: Session, held: Claim, recipe: Recipe, made: NewEngine) -> dict[str, Any]:
    """Insert the engine."""
    return publish_as(session, held, recipe, made, method="build")


def _request(recipe: Recipe, store: ArtifactStore, plan: str) -> Build:
    return Build(
        backend=recipe.backend,
        definition=str(store.local_path(recipe.definition.digest)),
        parameters=parameter_sources(recipe.weights, store),
        inputs=recipe.definition.inputs,
        plan=plan,
        profiles=parse_profiles(recipe.profiles, recipe.definition.inputs),
        options=recipe.options,
    )


BUILD = Kind(load, compute, publish)
